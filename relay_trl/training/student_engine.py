"""The student as an engine that generates with the weights of this step: in the trainer's process or in vLLM.

Uses behaviour that TRL, accelerate and vLLM do not document. Each place says when it can go;
tests/training/test_trl_contract.py, tests/with_vllm and tests/distributed check it.
"""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from ..engines.base import Engine
from ..engines.transformers import TransformersEngine
from ..vocabulary import Vocabulary
from .config import RelayGRPOConfig


@contextmanager
def student_engine(trainer: GRPOTrainer, engines: dict[str, Engine]) -> Iterator[Engine]:
    """The student as an engine, ready to generate with the current weights.

    Args:
        trainer ([`~trl.GRPOTrainer`]).
        engines (`dict[str, Engine]`): the engine is kept here between steps.
    """
    if trainer.use_vllm:
        with _vllm_awake(trainer.vllm_generation):
            if "student" not in engines:
                engines["student"] = _vllm_engine(trainer)
            yield engines["student"]
        return
    # As TRL's own generation in `_generate_single_turn`. Can go when TRL has a public context for it.
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


def check_student_server(trainer: GRPOTrainer, engines: dict[str, Engine], wait: Callable[[Coroutine], Any]):
    """Makes the engine of a student behind a server and asks it once, before the run.

    Args:
        wait (`Callable`): runs a coroutine to its end.
    """
    engine = engines["student"] = _vllm_engine(trainer)
    wait(engine.check())


def _vllm_engine(trainer: GRPOTrainer) -> Engine:
    vocabulary = Vocabulary(trainer._tokenizer, trainer.eos_token_ids)
    if trainer.vllm_mode == "server":
        from ..engines.openai import OpenAIEngine
        from .student_server import server_url

        args = trainer.args
        limits = (args.student_concurrency, args.student_timeout_s, args.student_retries)
        # The key in the environment is the teacher's
        options: dict[str, Any] = {"needs_logprobs": True, "option_prefix": "student_"}
        return OpenAIEngine(f"{server_url(args)}/v1", None, "none", vocabulary, *limits, **options)
    from ..engines.vllm import VLLMEngine

    return VLLMEngine(trainer.vllm_generation.llm, vocabulary)


@contextmanager
def _vllm_awake(generation) -> Iterator[None]:
    """Wakes a sleeping colocated engine once a step, as `VLLMGeneration.generate` does.

    Can go when TRL does it around a `rollout_func`.
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
    if not args.use_vllm:
        yield
        return
    from trl.generation import vllm_generation

    if args.vllm_mode == "server":
        from .student_server import check_reachable, client_of

        check_reachable(args)
        with replaced(vllm_generation, "VLLMClient", client_of(args)):
            yield
        return
    from ..engines.vllm import CPU_OPTIONS

    # vLLM seeds this process's generators when it is built; TRL would give it only the rank
    options: dict[str, Any] = {"seed": args.seed + args.process_index}
    if args.device.type == "cpu":
        # Compilation takes minutes. "auto" would turn float32 into bfloat16, whose logprobs differ by hundredths. Contexts
        # are read in one step, so the limit must not be less than the longest; TRL has 4096, None takes the model's.
        options |= {
            "enforce_eager": True,
            "dtype": _precision(args, model),
            "max_num_batched_tokens": None,
            **CPU_OPTIONS,
        }
    options |= args.vllm_kwargs or {}
    original = vllm_generation.LLM
    with replaced(vllm_generation, "LLM", lambda **given: original(**{**given, **options})):
        yield


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _precision(args: RelayGRPOConfig, model: str | PreTrainedModel) -> str:
    """The trainer's precision, with vLLM's name for it."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    dtype = (args.model_init_kwargs or {}).get("dtype") if isinstance(model, str) else model.dtype
    return str(dtype or "float32").removeprefix("torch.")


@contextmanager
def unsharded(model: torch.nn.Module) -> Iterator[None]:
    """Keeps an FSDP-2 student unsharded on every process while it generates. Does nothing to other models.

    The number of forward passes differs from process to process, so that sharded processes would wait for each other.

    Can go when TRL gathers FSDP-2 parameters around a `rollout_func` as it does those of ZeRO-3.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # As `fully_shard` has it, the root stays unsharded between forward and backward; the others as accelerate set them
            part.set_reshard_after_forward(part is not parts[0], recurse=False)
