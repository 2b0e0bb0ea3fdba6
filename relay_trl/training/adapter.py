"""Where the relay meets TRL 1.16: traces to TRL's rollout dictionary, the student's engine, and the weight sync on a CPU.

Every touch of behaviour that TRL does not document is here, named with the condition under which it can go;
tests/test_trl_contract.py holds each of them against the installed TRL.
"""

import asyncio
import hashlib
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from ..engines.base import Engine
from ..engines.transformers import TransformersEngine
from ..prompts import PromptBuilder
from ..relay import RelayConfig, RelayPrompt, relay
from ..trace import Trace
from ..vocabulary import Vocabulary
from .config import RelayGRPOConfig
from .sharding import unsharded

if TYPE_CHECKING:
    from .grpo import RelayGRPOTrainer

TRACE_COLUMN = "relay_trace"


def rollout_seed(seed: int, *place: object) -> int:
    """A seed for one rollout that depends on where it stands in the run and not on the process that runs it."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *place)).encode(), digest_size=4).digest(), "big")


class EpochSampler(RepeatSampler):
    """TRL's order of the prompts, and the same one after a restart: TRL's own begins with the first epoch's again.

    Can go when TRL's sampler knows the epoch.

    Args:
        sampler ([`~trl.trainer.utils.RepeatSampler`]): TRL's.
        epoch (`Callable[[], int]`): the epoch that begins or goes on, from 0.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        vars(self).update(vars(sampler))
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


def to_trl(traces: list[Trace], has_logprobs: bool) -> dict[str, list]:
    """The dictionary that TRL expects of a `rollout_func`.

    `env_mask` (1 = the student's token) becomes the loss mask, since no `tools` are given. A rollout that its teacher
    failed is masked as a whole: it must not move the weights through the KL or entropy terms either. Masked logprobs are
    0.0, for a NaN there would reach the loss.

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
    """Runs a batch of relays to its end on an event loop that lives as long as the trainer.

    Args:
        builder ([`PromptBuilder`]).
        config ([`RelayConfig`]).
        teacher ([`Engine`], *optional*).
    """

    def __init__(self, builder: PromptBuilder, config: RelayConfig, teacher: Engine | None):
        self.builder = builder
        self.config = config
        self.teacher = teacher
        self.selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self.selector)
        self._prompts: dict[str, RelayPrompt] = {}

    def run(self, problems: list, seeds: list[int], student: Engine) -> list[Trace]:
        """One trace per problem, in order."""
        prompts = [self._prompt(problem) for problem in problems]
        jobs = [
            relay(prompt, student, self.teacher, self.config, seed) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return self.wait(_together(jobs))

    def wait(self, job: Coroutine) -> Any:
        """The result of a coroutine, on the loop that the engines' connections belong to."""
        return self._loop.run_until_complete(job)

    def _prompt(self, problem) -> RelayPrompt:
        key = problem if isinstance(problem, str) else repr(problem)
        if key not in self._prompts:
            if len(self._prompts) > 10_000:
                self._prompts.clear()
            self._prompts[key] = self.builder.build(problem)
        return self._prompts[key]


async def _together(jobs: list[Coroutine]) -> list[Trace]:
    async with asyncio.TaskGroup() as group:  # one failure cancels the others instead of leaving them behind
        tasks = [group.create_task(job) for job in jobs]
    return [task.result() for task in tasks]


@contextmanager
def student_engine(trainer: "RelayGRPOTrainer", engines: dict[str, Engine]) -> Iterator[Engine]:
    """The student as an engine, ready to generate with the current weights.

    Args:
        trainer ([`~trl.GRPOTrainer`]).
        engines (`dict[str, Engine]`): keeps the engine between steps.
    """
    if trainer.use_vllm:
        with _vllm_awake(trainer.vllm_generation):
            if "student" not in engines:
                engines["student"] = _vllm_engine(trainer)
            yield engines["student"]
        return
    # As TRL's own generation does in `_generate_single_turn`; can go when TRL offers a public context for it.
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        torch.no_grad(),
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
        unsharded(model),
    ):
        if "student" not in engines:
            engines["student"] = TransformersEngine(model, trainer._tokenizer, name="the student")
        engine = engines["student"]
        engine.model = model
        yield engine


def _vllm_engine(trainer: "RelayGRPOTrainer") -> Engine:
    vocabulary = Vocabulary(trainer._tokenizer, trainer.eos_token_ids)
    if trainer.vllm_mode == "server":
        from ..engines.openai import OpenAIEngine

        url = trainer.args.vllm_server_base_url
        url = url or f"http://{trainer.args.vllm_server_host}:{trainer.args.vllm_server_port}"
        return OpenAIEngine(f"{url.rstrip('/')}/v1", vocabulary=vocabulary, needs_logprobs=True)
    from ..engines.vllm import VLLMEngine

    return VLLMEngine(trainer.vllm_generation.llm, vocabulary)


@contextmanager
def _vllm_awake(generation) -> Iterator[None]:
    """Wakes a sleeping colocated engine once a step, as `VLLMGeneration.generate` does; can go when TRL does it around a
    `rollout_func`.
    """
    is_sleeper = generation.mode == "colocate" and generation.enable_sleep_mode
    if is_sleeper:
        if generation._llm_weights_sleeping:
            generation.sync_weights()
        generation.llm.wake_up(tags=["kv_cache"])
    try:
        yield
    finally:
        if is_sleeper:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True


@contextmanager
def engine_options(args: RelayGRPOConfig, model: str | PreTrainedModel) -> Iterator[None]:
    """Lets a trainer that is made inside build its colocated engine with arguments that TRL has no option for.

    Can go when TRL passes arguments on to `vllm.LLM`.

    Args:
        args ([`RelayGRPOConfig`]): its `vllm_kwargs` have the last word.
        model (`str` or [`~transformers.PreTrainedModel`]): the student.
    """
    if not args.use_vllm or args.vllm_mode != "colocate":
        yield
        return
    from trl.generation import vllm_generation

    from ..engines.vllm import CPU_OPTIONS

    # vLLM seeds this process's generators when it is built, TRL with the rank alone
    options: dict[str, Any] = {"seed": args.seed + args.process_index}
    if args.device.type == "cpu":
        # Compilation takes minutes, and "auto" would turn float32 into bfloat16, whose logprobs are off by hundredths.
        # Contexts are read whole, so TRL's 4096 tokens a step must not be less than the longest; None takes the model's.
        options |= {
            "enforce_eager": True,
            "dtype": _precision(args, model),
            "max_num_batched_tokens": None,
            **CPU_OPTIONS,
        }
    options |= args.vllm_kwargs or {}
    original = vllm_generation.LLM
    vllm_generation.LLM = lambda **given: original(**{**given, **options})
    try:
        yield
    finally:
        vllm_generation.LLM = original


def _precision(args: RelayGRPOConfig, model: str | PreTrainedModel) -> str:
    """What the trainer computes in, under vLLM's name."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    dtype = (args.model_init_kwargs or {}).get("dtype") if isinstance(model, str) else model.dtype
    return str(dtype or "float32").removeprefix("torch.")


def sync_weights_on_cpu(trainer: "RelayGRPOTrainer"):
    """Replaces TRL's weight sync for a colocated engine on a CPU, where vLLM repacks weights as it loads them, so that
    loading into the packed model leaves the old ones in use. Can go when vLLM's CPU models take `load_weights` twice.
    """
    generation = trainer.vllm_generation

    def named_weights():
        config = trainer.accelerator.unwrap_model(trainer.model).config
        is_tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
        for name, weight in generation._iter_named_params():
            yield name, weight
            if is_tied and name.endswith("embed_tokens.weight"):
                # vLLM's CPU head keeps a packed copy of its own: without this it silently stays old
                yield "lm_head.weight", weight

    def sync_weights():
        with _base_weights_kept(trainer.model):
            # A list, because a generator would be left before its end, with adapters still merged or parameters gathered
            weights = [(name, weight.detach().clone()) for name, weight in named_weights()]
        generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights


@contextmanager
def _base_weights_kept(model: torch.nn.Module) -> Iterator[None]:
    """Puts back what lies under adapters: to merge them and subtract them again leaves rounding errors, which would add up
    from sync to sync. Can go when TRL or peft does it.
    """
    kept = []
    if isinstance(model, PeftModel):
        kept = [(w, w.detach().clone()) for name, w in model.named_parameters() if ".base_layer." in name]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
