"""A bonus on the entropy of n: which tokens of a batch hold the digits of a call's n, and their mean entropy.

Owns the choice of tokens; the trainer has the entropies. Can go when TRL can apply its bonus to chosen tokens; its
`entropy_coef` applies to all.
"""

from itertools import groupby

import torch

from ..call_syntax import CallSyntax
from ..vocabulary import Vocabulary


def number_mask(inputs: dict[str, torch.Tensor], vocabulary: Vocabulary, syntax: CallSyntax) -> torch.Tensor:
    """1 for tokens with digits of n in the student's commands, else 0; shape (rollouts, T). `inputs` are those of the loss."""
    mask = torch.zeros_like(inputs["completion_ids"], dtype=torch.float32)
    is_own = inputs["completion_mask"] * inputs["tool_mask"]
    for row, ids, own in zip(mask, inputs["completion_ids"].tolist(), is_own.tolist(), strict=True):
        place = 0
        for is_student, run in groupby(own):
            words = ids[place : place + len(list(run))]
            for k in syntax.number_tokens(words, vocabulary.decode(words), vocabulary) if is_student else ():
                row[place + k] = 1.0
            place += len(words)
    return mask


def mean_entropy(entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `entropies` over the tokens of `mask`; 0 without any."""
    return (entropies * mask).sum() / mask.sum().clamp(min=1.0)
