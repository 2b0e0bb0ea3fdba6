"""Tight micro-batches: rows of similar length together, each micro-batch as wide as its own longest row.

TRL pads a whole draw to its longest row and splits it at random. This module decides which row goes into which micro-batch, and
trims each; the loss does not change. It uses TRL's undocumented buffer of a draw, which tests/training/test_trl_contract.py
checks. Can go when TRL trims its micro-batches.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

Rows = dict[str, Any]
"""A micro-batch in TRL's form: tensors with one entry per row, or without dimensions for values of the whole draw."""

_PROMPT = ("prompt_ids", "prompt_mask")  # padded on the left; everything else on the right


def why_not_sorted(trainer) -> str | None:
    """The option whose effect depends on which rows share a micro-batch; `None` if there is none.

    Args:
        trainer ([`~trl.GRPOTrainer`]).
    """
    args = trainer.args
    kept = {
        f"loss_type={args.loss_type!r}": args.loss_type == "bnpo",
        "entropy_coef": trainer._entropy_bonus_enabled,
        "top_entropy_quantile": args.top_entropy_quantile < 1,
        "call_entropy_coef": args.call_entropy_coef != 0,
        "router_aux_loss_coef": trainer.aux_loss_enabled,
    }
    return next((name for name, is_local in kept.items() if is_local), None)


def tighten(batches: list[Rows], trainer) -> list[Rows]:
    """The micro-batches of a draw, sorted and trimmed.

    Rows change places only within an optimizer step, over all processes, the longest first. So every step learns from the rows
    that TRL's shuffle gave it. Each process gets as many rows as before.

    Args:
        batches (`list[Rows]`): of this process, one per micro-batch of the draw.
        trainer ([`~trl.GRPOTrainer`]).
    """
    if why_not_sorted(trainer) is None:
        size = math.gcd(len(batches), trainer.args.gradient_accumulation_steps)
        batches = [
            batch
            for first in range(0, len(batches), size)
            for batch in _sorted(batches[first : first + size], trainer.accelerator)
        ]
    return [trim(batch, trainer.pad_to_multiple_of or 1) for batch in batches]


def _sorted(batches: list[Rows], accelerator: Accelerator) -> list[Rows]:
    """The rows of one optimizer step, over all processes, from the longest to the shortest."""
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if len(batches) * ranks == 1:
        return batches
    whole: Rows = {}
    for name, value in batches[0].items():
        if isinstance(value, torch.Tensor) and value.ndim:
            value = torch.cat([batch[name] for batch in batches])
            if ranks > 1:
                is_prompt = name in _PROMPT
                value = accelerator.pad_across_processes(value, dim=1, pad_first=is_prompt) if value.ndim > 1 else value
                value = accelerator.gather(value)
        whole[name] = value
    lengths = whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)
    return [
        {
            name: value[part] if isinstance(value, torch.Tensor) and value.ndim else value
            for name, value in whole.items()
        }
        for part in share_out(lengths, len(batches), ranks)[:, rank]
    ]


def share_out(lengths: torch.Tensor, batches: int, ranks: int) -> torch.Tensor:
    """Which rows go into which micro-batch of which process, so that rows that are read at the same time have similar length.

    Args:
        lengths (`torch.Tensor` of shape (B,)): of all rows of an optimizer step.
        batches (`int`): micro-batches of each process.
        ranks (`int`): processes.

    Returns:
        `torch.Tensor` of shape (batches, ranks, B // (batches * ranks)): indices.
    """
    return lengths.argsort(descending=True, stable=True).view(batches, ranks, -1)


def trim(batch: Rows, multiple: int = 1) -> Rows:
    """A micro-batch without the columns that are padding in all rows.

    Args:
        batch (`Rows`).
        multiple (`int`, defaults to `1`): the lengths of prompts and of completions must be multiples of this.
    """
    prompt, completion = (_width(batch[f"{part}_mask"], multiple) for part in ("prompt", "completion"))
    full = batch["completion_ids"].shape[1]
    cut = {name: batch[name][:, batch[name].shape[1] - prompt :] for name in _PROMPT}
    for name, value in batch.items():
        # Every other tensor of this width has a value for each token of the completions
        if name not in _PROMPT and isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == full:
            cut[name] = value[:, :completion]
    return {**batch, **cut}


def _width(mask: torch.Tensor, multiple: int) -> int:
    most = max(1, int(mask.sum(1).max()))
    return min(mask.shape[1], -(-most // multiple) * multiple)


def tight_forward(
    forward: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    ids: torch.Tensor,
    mask: torch.Tensor,
    kept: int,
    rows: int,
) -> torch.Tensor:
    """Logprobs of a whole draw, computed for `rows` rows at a time, with rows of similar length together and each part trimmed.

    Args:
        forward (`Callable`): the logprobs of a part: `(ids, mask, kept)` to a tensor of shape (rows, kept).
        ids (`torch.Tensor` of shape (B, P + C)), mask (`torch.Tensor` of shape (B, P + C)): prompts padded on the left, and
            completions on the right.
        kept (`int`): C.
        rows (`int`): of one part.

    Returns:
        `torch.Tensor` of shape (B, C): 0.0 beyond the end of a part's longest completion.
    """
    prompts, completions = mask[:, :-kept], mask[:, -kept:]
    found = torch.zeros(completions.shape, device=ids.device)
    for part in mask.sum(1).argsort(descending=True, stable=True).split(rows):
        begin, width = prompts.shape[1] - _width(prompts[part], 1), _width(completions[part], 1)
        columns = slice(begin, prompts.shape[1] + width)
        values = forward(ids[part, columns], mask[part, columns], width)
        found = found.to(values.dtype)
        found[part, :width] = values
    return found
