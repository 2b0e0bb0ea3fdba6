"""Samples one token per row, so that a seed gives the same tokens whatever else is in the batch.

The next token is the argmax of the log-probabilities plus Gumbel noise that depends only on (seed, position). This samples
from the same distribution as drawing from the probabilities.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from .base import Sampling


def draw(
    logits: torch.Tensor,
    samplings: list[Sampling],
    seeds: list[int],
    positions: list[int],
    seen: Sequence[Iterable[int]] = (),
) -> tuple[list[int], list[float]]:
    """One token per row.

    Args:
        logits (`torch.Tensor` of shape (B, V)): raw scores.
        samplings (`list[Sampling]`), seeds (`list[int]`), positions (`list[int]`): one per row.
        seen (`Sequence[Iterable[int]]`, *optional*): the tokens of each row so far; needed for a `repetition_penalty`.

    Returns:
        `tuple[list[int], list[float]]`: tokens, and their log-probabilities after bias, penalty, temperature and filters.
    """
    device = logits.device

    def column(values: list) -> torch.Tensor:
        return torch.tensor(values, device=device)[:, None]

    is_greedy = column([s.temperature == 0 for s in samplings])
    scores = _penalized(_biased(logits, samplings), samplings, seen) / column([s.temperature or 1.0 for s in samplings])
    scores = _filter(scores, samplings, column).log_softmax(-1)
    noise = gumbel(column(seeds), column(positions), logits.shape[1])
    tokens = torch.where(is_greedy, scores, scores + noise).argmax(-1, keepdim=True)
    return tokens[:, 0].tolist(), scores.gather(1, tokens)[:, 0].tolist()


def _biased(logits: torch.Tensor, samplings: list[Sampling]) -> torch.Tensor:
    biases = [(row, token, bias) for row, s in enumerate(samplings) for token, bias in (s.logit_bias or {}).items()]
    if not biases:
        return logits
    rows, tokens, values = (torch.tensor(part, device=logits.device) for part in zip(*biases, strict=True))
    return logits.index_put((rows, tokens), values.to(logits.dtype), accumulate=True)


def _penalized(logits: torch.Tensor, samplings: list[Sampling], seen: Sequence[Iterable[int]]) -> torch.Tensor:
    rows = [row for row, s in enumerate(samplings) if s.repetition_penalty != 1]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        tokens = torch.tensor(sorted(set(seen[row])), device=logits.device)
        scores, penalty = logits[row, tokens], samplings[row].repetition_penalty
        logits[row, tokens] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits


def _filter(scores: torch.Tensor, samplings: list[Sampling], column) -> torch.Tensor:
    if all(s.top_p == 1 and s.top_k == 0 and s.min_p == 0 for s in samplings):
        return scores
    size = scores.shape[1]
    ranked, order = scores.sort(descending=True)
    drop = torch.arange(size, device=scores.device) >= column([s.top_k or size for s in samplings])
    probs = ranked.masked_fill(drop, -math.inf).softmax(-1)  # top_p applies to what top_k has left
    drop |= probs.cumsum(-1) - probs >= column([s.top_p if s.top_p < 1 else math.inf for s in samplings])
    drop |= probs < probs[:, :1] * column([s.min_p for s in samplings])
    drop[:, 0] = False
    return scores.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -math.inf)


def gumbel(seeds: torch.Tensor, positions: torch.Tensor, size: int) -> torch.Tensor:
    """Standard Gumbel noise that depends only on (seed, position, token).

    Uses a counter-based generator (the mixing function of SplitMix64) instead of torch's, so that rows do not depend on their
    batch or device.

    Args:
        seeds (`torch.Tensor` of shape (B, 1)), positions (`torch.Tensor` of shape (B, 1)): integers.
        size (`int`): V.

    Returns:
        `torch.Tensor` of shape (B, V).
    """
    tokens = torch.arange(size, device=seeds.device)
    bits = _mix(_mix(_mix(seeds) + positions) + tokens)
    dtype = torch.float32 if seeds.device.type == "mps" else torch.float64
    digits = 23 if dtype == torch.float32 else 52  # one less than the mantissa holds, so that 1.0 is never reached
    uniform = (_shift(bits, 64 - digits).to(dtype) + 0.5) * 2.0**-digits
    return -(-uniform.log()).log()


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # torch shifts the sign in


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _signed(x: int) -> int:
    return x - (1 << 64)


def alternatives(logprobs: torch.Tensor, ids: list[int], top: int) -> list[dict[int, float]]:
    """By token, the log-probabilities of `ids`, each at its place, and of the `top` likeliest tokens there.

    Args:
        logprobs (`torch.Tensor` of shape (T, V)).
        ids (`list[int]`, shape (T,)).
    """
    own = logprobs.gather(1, torch.tensor(ids, device=logprobs.device)[:, None])[:, 0].tolist()
    best, tokens = (found.tolist() for found in logprobs.topk(top))
    places = zip(ids, own, tokens, best, strict=True)
    return [{token: score, **dict(zip(others, theirs, strict=True))} for token, score, others, theirs in places]
