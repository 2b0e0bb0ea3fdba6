"""Rollouts beside the training: relays without pause in a process of their own, which takes new weights between two turns.

Owns the process's side: which prompts are under way, and what a finished group becomes; weights are `async_student.py`'s. How the process
starts, stops and is watched is TRL's `AsyncRolloutWorker`; tests/training/test_async_grpo.py holds what we use of it.
"""

import asyncio
import contextlib
import itertools
import statistics
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker, RolloutSample

from ..engines.base import Engine
from ..engines.in_flight import ask_all
from ..grading.grader import Grader
from ..prompts import PromptBuilder
from ..relay import relay
from ..rewards import load_reward
from ..rollout_files import Draw
from .async_config import RelayAsyncGRPOConfig
from .async_student import Student, Turns
from .groups import score_groups
from .metrics import facts, summarize
from .rollouts import rollout_seed, together

_POLL_S = 0.02


@dataclass(slots=True)
class RelaySample(RolloutSample):
    """TRL's sample; the first one of a group brings the whole group along, for files and guard.

    Args:
        draw ([`~relay_trl.rollout_files.Draw`], *optional*).
    """

    draw: Draw | None = field(default=None)


def prompt_order(seed: int, size: int, start: int) -> Iterator[int]:
    """Rows in the order of the run, epoch after epoch, each in an order of its own, from the `start`-th on."""
    for epoch in itertools.count(start // size):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(rollout_seed(seed, "epoch", epoch)))
        yield from order[start % size if epoch == start // size else 0 :].tolist()


def to_samples(draw: Draw, versions: Sequence[int], group_id: int) -> list[RelaySample]:
    """What TRL's trainer learns from: the scored rollouts of a group, the teacher's tokens out of the loss.

    Args:
        draw ([`~relay_trl.rollout_files.Draw`]): of one group.
        versions (`Sequence[int]`): the oldest weights that wrote a turn of each rollout.
        group_id (`int`).
    """
    samples, waiting = [], draw
    for i, trace in enumerate(draw.traces):
        if trace.has_failed or draw.rewards[i] != draw.rewards[i]:
            continue
        if trace.logprobs is None:
            raise ValueError("The student's engine gives no logprobs, which asynchronous training needs.")
        prompt = [0] * len(trace.prompt_ids)
        figures = {f"relay/{name}": value for name, value in draw.metrics.items()}
        samples.append(
            RelaySample(
                prompt=[{"role": "user", "content": str(draw.rows[i]["prompt"])}],
                completion=[{"role": "assistant", "content": trace.text}],
                input_ids=np.asarray(trace.prompt_ids + trace.completion_ids, dtype=np.int64),
                completion_mask=np.asarray(prompt + trace.loss_mask, dtype=np.int64),
                old_log_probs=np.asarray(prompt + trace.logprobs, dtype=np.float32),
                advantage=draw.advantages[i],
                model_version=versions[i],
                group_id=group_id,
                metrics={"reward": draw.rewards[i], **figures},
                enqueued_at=time.time(),
                draw=waiting,
            )
        )
        waiting = None
    return samples


def advantages_of(rewards: Sequence[float]) -> list[float]:
    """How far each reward of a group lies above its mean, in standard deviations; 0 for one that is not scored (NaN)."""
    scored = [reward for reward in rewards if reward == reward]
    if not scored:
        return [0.0] * len(rewards)
    mean, spread = statistics.fmean(scored), statistics.pstdev(scored)
    return [(reward - mean) / (spread + 1e-4) if reward == reward else 0.0 for reward in rewards]


class RelayLoop:
    """What runs in the worker's process. TRL's `_child_main` makes it, calls `run`, and sets `_stop_event` to end it.

    Args:
        args ([`RelayAsyncGRPOConfig`]), rows (`list[dict]`): the run's options and its problems.
        engines (`Callable`): gives student and teacher, see [`load_engines`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the student's.
        weights (`str`, *optional*): the file of weights.
        dataset_start_index (`int`): prompts that a run before this one has learnt from.
        rollout_buffer, model_version_value, heartbeat_value, failed_event, exception_info_queue: TRL's.
    """

    def __init__(
        self,
        *,
        args: RelayAsyncGRPOConfig,
        rows: list[dict],
        engines: Callable[[], tuple[Engine, Engine | None]],
        tokenizer,
        weights: str | None,
        dataset_start_index: int,
        rollout_buffer,
        model_version_value,
        heartbeat_value,
        failed_event,
        exception_info_queue,
        **_: Any,
    ):
        self.args, self.rows, self.start, self.buffer = args, rows, dataset_start_index, rollout_buffer
        self._heartbeat, self._failed, self._faults = heartbeat_value, failed_event, exception_info_queue
        self._loop = asyncio.new_event_loop()
        self._stop_event = asyncio.Event()
        engine, self.teacher = engines()
        self.student = Student(engine, lambda: model_version_value.value, weights)
        self.builder = PromptBuilder(tokenizer, self.teacher, **args.prompt_options())
        self.grader = Grader(args.answer_marker, args.grading_time_limit_s)
        self.reward = partial(load_reward(args.reward), **(args.reward_kwargs or {}))
        self._recent: deque[bool] = deque(maxlen=args.samples_per_step * args.teacher_failure_steps)

    def run(self):
        """Until the training ends, or something fails, which the trainer is told."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._until_stopped())
        except BaseException as error:
            self._faults.put((type(error).__name__, str(error), traceback.format_exc()))
            self._failed.set()
            raise
        finally:
            self.grader.close()
            self.buffer.cancel_join_thread()  # nobody reads the samples that are left

    async def _until_stopped(self):
        work = asyncio.create_task(self._produce())
        stop = asyncio.create_task(self._stop_event.wait())
        while not stop.done() and not work.done():
            self._heartbeat.value = time.time()
            await asyncio.wait([work, stop], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
        for task in (work, stop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _produce(self):
        order = enumerate(prompt_order(self.args.seed, len(self.rows), self.start))
        groups = max(1, self.args.max_inflight_tasks // self.args.num_generations)
        async for (number, _), (draw, versions) in ask_all(order, self._group, groups):
            self._check_failures([trace.has_failed for trace in draw.traces], draw)
            for sample in to_samples(draw, versions, number):
                while self.buffer.full():
                    await asyncio.sleep(_POLL_S)
                self.buffer.put(sample)

    async def _group(self, job: tuple[int, int]) -> tuple[Draw, list[int]]:
        (number, k), args = job, self.args
        # What would be stale by the time it is learnt from is not begun
        while self.buffer.qsize() >= max(1, args.max_staleness) * args.samples_per_step:
            await asyncio.sleep(_POLL_S)
        size, row, prompt = args.num_generations, self.rows[k], self.builder.build(self.rows[k]["prompt"])
        turns = [Turns(self.student) for _ in range(size)]
        seeds = [rollout_seed(args.seed, "group", self.start + number, i) for i in range(size)]
        started, rules = time.perf_counter(), args.relay_config()
        traces = await together(
            [relay(prompt, one, self.teacher, rules, seed) for one, seed in zip(turns, seeds, strict=True)]
        )
        drawn, timeouts = time.perf_counter(), self.grader.timeouts
        correct = await asyncio.to_thread(self.grader.grade, [t.answer for t in traces], [row["answer"]] * size)
        found = [facts(trace, is_correct) for trace, is_correct in zip(traces, correct, strict=True)]
        rewards, kinds = score_groups(found, size, args, self.reward)
        metrics = summarize(found, [kind for kind in kinds if kind is not None])
        metrics |= {"rollout_s": drawn - started, "grading_s": time.perf_counter() - drawn, "draws": 1.0}
        metrics["grading_timeouts"] = self.grader.timeouts - timeouts
        draw = Draw("train", 0, 0, size, [row] * size, number, traces, correct, advantages_of(rewards), rewards, kinds)
        draw.metrics = metrics
        return draw, [min(one.versions) for one in turns]

    def _check_failures(self, failed: list[bool], draw: Draw):
        """Ends the run where the teacher fails too often: its rollouts never reach the trainer, which would wait for ever."""
        self._recent.extend(failed)
        share = sum(self._recent) / len(self._recent)
        if len(self._recent) == self._recent.maxlen and share > self.args.max_teacher_failures:
            errors = [trace.error for trace in draw.traces if trace.error]
            last = f" The last fault: {errors[-1]}" if errors else ""
            raise RuntimeError(
                f"The teacher failed in {share:.0%} of the last {len(self._recent)} rollouts, more than max_teacher_failures="
                f"{self.args.max_teacher_failures:.0%}; the run stops rather than train on what is left.{last}"
            )


class RelayRolloutWorker(AsyncRolloutWorker):
    """TRL's worker with a [`RelayLoop`] in its process; what goes wrong there is said in one sentence.

    Args:
        queue_maxsize (`int`): samples that wait at most.
        kwargs: of [`RelayLoop`].
    """

    _loop_cls = RelayLoop

    def check_health(self, stale_after_s: float):
        """Raises `RuntimeError` if the process has failed, died, or not moved for `stale_after_s` seconds."""
        process = self._process
        if process is not None and not process.is_alive() and not self._failed_event.is_set():
            raise RuntimeError(
                f"The process of the rollouts has died (exit status {process.exitcode}); look at what it wrote last, such as "
                "for memory, and go on with resume_from_checkpoint: auto."
            )
        try:
            super().check_health(stale_after_s)
        except RuntimeError as error:
            if error.__cause__ is None:
                raise RuntimeError(
                    f"The process of the rollouts has not moved for {stale_after_s:g} s (heartbeat_stale_after_s); the run stops."
                ) from error
            said = str(error.__cause__).splitlines()[0].partition(": ")[2]
            raise RuntimeError(said) from error.__cause__
