"""The student's weights as vLLM takes them: names, adapters merged for the time of a reading, and the sync on a CPU.

Uses behaviour that TRL, peft and vLLM do not document. Each place says when it can go; tests/with_vllm checks it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from trl import GRPOTrainer


def sync_weights_on_cpu(trainer: GRPOTrainer):
    """Replaces TRL's weight sync for a colocated engine on a CPU.

    vLLM repacks weights there when it loads them, so that loading into the packed model leaves the old weights in use. Can go
    when `load_weights` of vLLM's CPU models works a second time.
    """
    generation = trainer.vllm_generation

    def sync_weights():
        weights = copied(generation._iter_named_params())
        generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights


def copied(named_weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A copy of all weights for vLLM, by name. All are read before any is sent: a generator that is left before its end would leave
    adapters merged or parameters gathered.
    """
    weights = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in named_weights}
    if not any(name.endswith("lm_head.weight") for name in weights):
        # A tied head. vLLM's on a CPU has its own packed copy; without this it stays old without an error
        weights["lm_head.weight"] = next(w.clone() for n, w in weights.items() if n.endswith("embed_tokens.weight"))
    return weights


@contextmanager
def base_weights_kept(model: torch.nn.Module) -> Iterator[None]:
    """Restores the weights under adapters. To merge an adapter and subtract it again leaves rounding errors, which would add
    up from sync to sync, most of all in bfloat16 (huggingface/trl#6688). Copies are kept in main memory. Can go when TRL or
    peft does it.
    """
    kept = []
    for module in model.modules() if isinstance(model, PeftModel) else ():
        base = getattr(module, "base_layer", None)
        if isinstance(base, torch.nn.Module):
            kept += [
                (base, name, weight, weight.detach().to("cpu", copy=True))
                for name, weight in base.named_parameters(recurse=False)
            ]
    try:
        yield
    finally:
        with torch.no_grad():
            for base, name, weight, before in kept:
                setattr(base, name, weight)  # to merge into quantized weights puts new ones in their place
                weight.copy_(before)


def base_names(named_weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Merged weights with the base model's names for the rows that an adapter trains for added tokens: those of the merged
    embedding, not of the adapter's copy. Can go when TRL's iterators of weights know `trainable_token_indices`.
    """
    for name, weight in named_weights:
        if "trainable_tokens_" not in name:
            yield name.replace(".token_adapter", ""), weight


def vllm_names(generation):
    """Makes TRL's weight sync use [`base_names`]. The weights under an adapter are the same afterwards.

    Args:
        generation ([`~trl.generation.vllm_generation.VLLMGeneration`]).
    """
    original = generation._iter_named_params

    def named_weights():
        with base_weights_kept(generation.model):
            yield from base_names(original())

    generation._iter_named_params = named_weights
