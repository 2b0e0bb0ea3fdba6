"""Rollouts in the form that TRL 1.16 needs: the order of prompts, a batch of relays, and TRL's dictionary of rollouts.

Uses behaviour that TRL does not document. Each place says when it can go; tests/training/test_trl_contract.py checks it
against the installed TRL.
"""

import asyncio
import hashlib
import selectors
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler

from ..cli.endings import first_of
from ..engines.base import Engine, EngineError
from ..prompts import PromptBuilder
from ..relay import RelayRules, relay
from ..trace import Author, Span, StopReason, Trace

TRACE_COLUMN = "relay_trace"


def rollout_seed(seed: int, *place: object) -> int:
    """A seed for a rollout that depends on its place in the run and not on the process that runs it."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *place)).encode(), digest_size=4).digest(), "big")


class EpochSampler(Sampler[int]):
    """TRL's order of the prompts, also after a restart, when TRL's own sampler begins with the first epoch's order again.

    Can go when TRL's sampler knows the epoch.

    Args:
        sampler ([`~trl.trainer.utils.RepeatSampler`]): TRL's.
        epoch (`Callable[[], int]`): gives the current epoch, from 0.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler = sampler
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        order = self.sampler
        if order.shuffle and order.seed is not None:
            order.generator.manual_seed(order.seed)
            for _ in range(self.epoch()):
                torch.randperm(order.num_samples, generator=order.generator)
        return iter(order)


def to_trl(traces: list[Trace], has_logprobs: bool) -> dict[str, list]:
    """The dictionary that TRL expects of a `rollout_func`.

    `env_mask` (1 = the student's token) becomes the loss mask, because no `tools` are given. A rollout whose teacher failed is
    masked completely, so that it does not move the weights through the KL or entropy terms. Masked logprobs are 0.0, because
    a NaN would reach the loss.

    Args:
        traces (`list[Trace]`): one per prompt, in the order of the prompts.
        has_logprobs (`bool`): whether TRL corrects for the engine's distribution (with vLLM) and so needs its logprobs.
    """
    return {
        "prompt_ids": [trace.prompt_ids for trace in traces],
        "completion_ids": [trace.completion_ids for trace in traces],
        "logprobs": [trace.logprobs for trace in traces] if has_logprobs else None,
        "env_mask": [[0] * trace.num_tokens if trace.has_failed else trace.loss_mask for trace in traces],
        TRACE_COLUMN: traces,
    }


class Rollouts:
    """Runs batches of relays on an event loop that lives as long as the trainer.

    Args:
        builder ([`PromptBuilder`]).
        config ([`RelayRules`]).
        teacher ([`Engine`], *optional*).
    """

    def __init__(self, builder: PromptBuilder, config: RelayRules, teacher: Engine | None):
        self.builder = builder
        self.config = config
        self.teacher = teacher
        self.selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self.selector)

    def run(self, problems: list, seeds: list[int], student: Engine) -> list[Trace]:
        """One trace per problem, in order."""
        return self.wait(together(self.jobs(problems, seeds, student)))

    def jobs(self, problems: list, seeds: list[int], student: Engine) -> list[Coroutine]:
        """One relay per problem, not yet begun."""
        return [self.one(problem, seed, student) for problem, seed in zip(problems, seeds, strict=True)]

    async def one(self, problem: Any, seed: int, student: Engine) -> Trace:
        """One rollout. One whose student's engine fails is lost, as one whose teacher fails: the guard ends the run over many."""
        trace = Trace([])
        try:
            return await relay(self.builder.build(problem), student, self.teacher, self.config, seed, trace=trace)
        except EngineError as error:
            trace.error, trace.stop = str(error), StopReason.STUDENT_ERROR
            if not trace.num_tokens and student.vocabulary is not None:  # TRL takes no empty completion
                trace.spans.append(Span(Author.CLOSING, [student.vocabulary.eos_id], ""))
            return trace

    def wait(self, job: Coroutine) -> Any:
        """The result of a coroutine on the event loop that the engines' connections belong to."""
        return self._loop.run_until_complete(job)


async def together(jobs: list[Coroutine]) -> list[Any]:
    """The results of coroutines that run at once, in order."""
    try:
        async with asyncio.TaskGroup() as group:  # one failure cancels the others instead of leaving them behind
            tasks = [group.create_task(job) for job in jobs]
    except* Exception as failed:
        error = first_of(failed)
    else:
        return [task.result() for task in tasks]
    raise error  # alone, as there is one sentence to say
