"""Where the relay meets sharded and adapted students: a second adapter to TRL and accelerate, beside `adapter.py`.

Every touch of behaviour that they do not document is here, named with the condition under which it can go;
tests/test_trl_contract.py and tests/distributed hold them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.utils.other import TrainableTokensWrapper
from torch.distributed.fsdp import FSDPModule


@contextmanager
def unsharded(model: torch.nn.Module) -> Iterator[None]:
    """Holds an FSDP-2 student whole on every process while it generates, so that no forward pass waits for another
    process: they ask it as often as their rollouts need, which differs. Does nothing to other models.

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
            # The root stays whole between forward and backward, as `fully_shard` has it; the others as accelerate set it
            part.set_reshard_after_forward(part is not parts[0], recurse=False)


def give_bias(model: torch.nn.Module):
    """Lets TRL's fused head read the bias of a head whose rows for added tokens an adapter trains: peft's wrapper gives the
    merged weight and no bias. Can go when peft's `TrainableTokensWrapper` has a bias.
    """
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper) and isinstance(module.original_module, torch.nn.Linear):
            module.bias = module.original_module.bias


def vllm_names(generation):
    """Lets TRL's weight sync name the rows that an adapter trains for added tokens as vLLM does: the embedding that holds
    them, merged, and not the adapter's own copy. Can go when TRL's `_iter_named_params` knows `trainable_token_indices`.

    Args:
        generation ([`~trl.generation.vllm_generation.VLLMGeneration`]).
    """
    original = generation._iter_named_params

    def named_weights():
        for name, weight in original():
            if "trainable_tokens_" not in name:
                yield name.replace(".token_adapter", ""), weight

    generation._iter_named_params = named_weights
