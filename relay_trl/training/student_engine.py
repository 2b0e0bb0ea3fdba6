"""The student as an engine that generates with the weights of this step: in the trainer's process or in vLLM.

Uses behaviour that TRL, accelerate and vLLM do not document. Each place says when it can go;
tests/training/test_trl_contract.py, tests/with_vllm and tests/distributed check it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import unwrap_model_for_generation
from trl.trainer import grpo_trainer
from trl.trainer.utils import ensure_master_addr_port

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
        with trainer.vllm_generation.awake():
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


def _vllm_engine(trainer: GRPOTrainer) -> Engine:
    vocabulary = Vocabulary(trainer._tokenizer, trainer.eos_token_ids)
    if trainer.vllm_mode == "server":
        from ..engines.openai import OpenAIEngine

        url = trainer.args.vllm_server_base_url
        url = url or f"http://{trainer.args.vllm_server_host}:{trainer.args.vllm_server_port}"
        return OpenAIEngine(f"{url.rstrip('/')}/v1", vocabulary=vocabulary, needs_logprobs=True)
    from ..engines.vllm import VLLMEngine

    return VLLMEngine(trainer.vllm_generation.llm, vocabulary)


@contextmanager
def own_vllm(args: RelayGRPOConfig, model: str | PreTrainedModel) -> Iterator[None]:
    """Lets a trainer that is made inside generate with a [`StudentVLLM`]. Can go when TRL's trainer takes a class or arguments
    of the engine.

    Args:
        args ([`RelayGRPOConfig`]).
        model (`str` or [`~transformers.PreTrainedModel`]): the student.
    """
    grpo_trainer.VLLMGeneration = partial(StudentVLLM, vllm_options(args, model))
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = VLLMGeneration


def vllm_options(args: RelayGRPOConfig, model: str | PreTrainedModel) -> dict[str, Any]:
    """Arguments of the colocated engine, over TRL's own; `args.vllm_kwargs` have the last word."""
    # vLLM seeds this process's generators when it is built; TRL would give it only the rank
    options: dict[str, Any] = {"seed": args.seed + args.process_index}
    if args.use_vllm and args.device.type == "cpu":
        from ..engines.vllm import CPU_OPTIONS

        # Compilation takes minutes. "auto" would turn float32 into bfloat16, whose logprobs differ by hundredths. Contexts
        # are read in one step, so the limit must not be less than the longest; TRL has 4096, None takes the model's.
        options |= {
            "enforce_eager": True,
            "dtype": _precision(args, model),
            "max_num_batched_tokens": None,
            **CPU_OPTIONS,
        }
    return options | (args.vllm_kwargs or {})


class StudentVLLM(VLLMGeneration):
    """TRL's student in vLLM, with arguments of the engine that TRL has no option for, and with weights that arrive.

    Args:
        options (`dict`): arguments of the colocated `vllm.LLM`, over TRL's own.
        args, kwargs: of [`~trl.generation.vllm_generation.VLLMGeneration`].
    """

    def __init__(self, options: dict[str, Any], *args: Any, **kwargs: Any):
        self._options = options
        super().__init__(*args, **kwargs)

    def _init_vllm(self):
        """As TRL's, which has no way in for further arguments; no ranks share a student (`RelayGRPOConfig` refuses it)."""
        if self.mode != "colocate":
            return super()._init_vllm()
        from vllm import LLM

        here = self.accelerator
        ranks = {"RANK": here.process_index, "LOCAL_RANK": here.local_process_index, "WORLD_SIZE": here.num_processes}
        os.environ.update({name: str(value) for name, value in ranks.items()})
        ensure_master_addr_port()
        given = {
            "model": self.model.name_or_path,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_length,
            "max_num_seqs": self.max_num_seqs,
            "enable_sleep_mode": self.enable_sleep_mode,
            "model_impl": self.model_impl,
            "distributed_executor_backend": "external_launcher",
            "max_num_batched_tokens": 4096,
            "logprobs_mode": "processed_logprobs",
            "quantization": "bitsandbytes" if getattr(self.model, "is_loaded_in_4bit", False) else None,
            "trust_remote_code": self.trust_remote_code,
        }
        self.llm = LLM(**{**given, **self._options})
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
        self._llm_weights_sleeping = self.enable_sleep_mode
        here.wait_for_everyone()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Wakes a sleeping colocated engine once a step, as `generate` does; can go when TRL does it around a `rollout_func`."""
        is_sleeper = self.mode == "colocate" and self.enable_sleep_mode
        if is_sleeper:
            if self._llm_weights_sleeping:
                self.sync_weights()
            self.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            if is_sleeper:
                self.llm.sleep(level=2)
                self._llm_weights_sleeping = True

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As TRL's, with vLLM's names for the rows that an adapter trains for added tokens: those of the merged embedding, not
        of the adapter's copy. Can go when TRL's knows `trainable_token_indices`.
        """
        for name, weight in super()._iter_named_params():
            if "trainable_tokens_" not in name:
                yield name.replace(".token_adapter", ""), weight

    def sync_weights(self):
        """As TRL's, except on a CPU. vLLM repacks weights there when it loads them, so that loading into the packed model leaves
        the old weights in use. Can go when `load_weights` of vLLM's CPU models works a second time.
        """
        if self.mode != "colocate" or self.accelerator.device.type != "cpu":
            return super().sync_weights()
        with _base_weights_kept(self.model):
            # A list: a generator may not be read to its end, and would leave adapters merged or parameters gathered
            weights = [(name, weight.detach().clone()) for name, weight in self._weights_on_cpu()]
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self.llm.reset_prefix_cache()

    def _weights_on_cpu(self) -> Iterator[tuple[str, torch.Tensor]]:
        config = self.accelerator.unwrap_model(self.model).config
        is_tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
        for name, weight in self._iter_named_params():
            yield name, weight
            if is_tied and name.endswith("embed_tokens.weight"):
                # vLLM's head on a CPU has its own packed copy; without this it stays old without an error
                yield "lm_head.weight", weight


def _precision(args: RelayGRPOConfig, model: str | PreTrainedModel) -> str:
    """The trainer's precision, with vLLM's name for it."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    dtype = (args.model_init_kwargs or {}).get("dtype") if isinstance(model, str) else model.dtype
    return str(dtype or "float32").removeprefix("torch.")


@contextmanager
def _base_weights_kept(model: torch.nn.Module) -> Iterator[None]:
    """Restores the weights under adapters. To merge an adapter and subtract it again leaves rounding errors, which would add
    up from sync to sync. Can go when TRL or peft does it.
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
