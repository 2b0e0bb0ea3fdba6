"""The relay's metrics: the facts of a rollout, and the figures that are logged at every step. docs/metrics.md explains them.

Owns names and formulas. The trainer gathers the facts of all processes, so that every rank logs the same numbers.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from ..rewards import Difficulty
from ..trace import Author, Outcome, StopReason, Trace

FACTS = (
    "correct",
    "called",
    "teacher_share",
    "failed",
    "student_failed",
    "calls",
    "requested",
    "granted",
    "delivered",
    "malformed",
    "denied",
    "wait_s",
    "teacher_tokens",
    "tokens",
    "answer_tokens",
    "truncated",
    "student_read",
    "student_cached",
    "teacher_read",
    "teacher_cached",
)
"""What is gathered of every rollout, in this order. NaN: the engine does not report it."""

METRICS = {
    "accuracy": "share of rollouts with a right final answer",
    "teacher_share": "rho: teacher tokens / completion tokens without commands, mean over rollouts",
    "teacher_share_all": "teacher tokens / all completion tokens of the step (the paper's reported share)",
    "call_rate": "share of rollouts with at least one well-formed command",
    "calls": "well-formed commands per rollout",
    "requested": "tokens asked for per command (the student's n, cut at 10,000 for this mean)",
    "granted": "tokens allowed per command, after all limits",
    "delivered": "tokens that the teacher wrote per command",
    "malformed": "malformed commands per rollout: empty, not a number, zero or never closed",
    "malformed_rate": "share of rollouts with at least one malformed command",
    "denied": "well-formed commands without an answer per rollout, for a limit was reached",
    "truncated": "share of rollouts cut at the completion budget",
    "student_solvable": "share of groups with a right rollout that did not call",
    "teacher_dependent": "share of groups whose right rollouts all called",
    "teacher_unsolvable": "share of groups without a right rollout",
    "teacher_failures": "share of rollouts lost to a teacher that failed; they are in no other figure and in no gradient",
    "student_failures": "share of rollouts lost because the student's engine failed; likewise",
    "teacher_wait_s": "seconds that a rollout waited for its teacher, mean over rollouts",
    "student_cached_share": "share of the student's context tokens that came from its engine's prefix cache",
    "teacher_cached_share": "share of the teacher's context tokens that came from its engine's prefix cache",
    "draws": "groups drawn for each one in the loss; above 1 only with `dynamic_sampling`",
    "is_effective_share": "effective share of the student's tokens (or rollouts) under the correction for vLLM's probabilities; 1 "
    "without one",
    "rollout_s": "wall-clock seconds of the step's rollouts on the slowest process",
    "grading_s": "wall-clock seconds of the step's grading on the slowest process",
    "grading_timeouts": "answers that could not be graded within their time limit in this step; they count as wrong",
    "judge_read": "answers of this step that a `judge` re-read and gave a verdict on",
    "judge_overruled": "those of them on which it differs from the rules",
    "judge_silent": "answers of this step that it was to re-read and gave no verdict on; the rules' stays",
}
"""Every metric, logged as `relay/<name>` (`eval_relay/<name>` in evaluation), with its meaning."""

GRADED = ("grading_timeouts", "judge_read", "judge_overruled", "judge_silent")
"""Metrics that grading counts."""


def weight_sums(weights: Any) -> Any:
    """What [`effective_share`] is made of, for a tensor of weights: sums that can be added up over processes."""
    return torch.stack([weights.sum(), weights.square().sum(), weights.new_tensor(float(weights.numel()))])


def effective_share(weights: float, squares: float, count: float) -> float:
    """The effective sample size of importance weights, as a share of their number: (sum w)^2 / (n sum w^2).

    Args:
        weights (`float`), squares (`float`), count (`float`): sum of the weights, sum of their squares, and how many there are.
    """
    return weights**2 / (count * squares) if count and squares else float("nan")


def facts(trace: Trace, is_correct: bool) -> list[float]:
    """The [`FACTS`] of one rollout."""
    return [
        float(is_correct),
        float(trace.has_called),
        trace.teacher_share,
        float(trace.has_failed),
        float(trace.stop is StopReason.STUDENT_ERROR),
        len(trace.calls),
        sum(min(call.requested, 10_000) for call in trace.calls),
        sum(call.granted for call in trace.calls),
        sum(call.delivered for call in trace.calls),
        trace.malformed,
        sum(call.outcome is Outcome.DENIED for call in trace.calls),
        sum(call.wait_s for call in trace.calls),
        trace.teacher_tokens,
        trace.num_tokens,
        trace.answer_tokens,
        float(trace.stop is StopReason.LENGTH),
        *(
            float("nan") if count is None else count
            for reading in (trace.student_read, trace.teacher_read)
            for count in (reading.tokens, reading.cached)
        ),
    ]


def shares(group: Sequence[Sequence[float]], rho_of: str) -> list[float]:
    """The rho that a reward sees of each rollout of a group.

    Args:
        group (`Sequence` of shape (G, len(FACTS))): the rollouts of one prompt.
        rho_of (`str`): `answer`, rho itself; or `group`, teacher tokens / the median answer's tokens, which a rollout cannot
            lower by writing more.
    """
    if rho_of == "answer":
        return [row[FACTS.index("teacher_share")] for row in group]
    length = median(row[FACTS.index("answer_tokens")] for row in group)
    return [row[FACTS.index("teacher_tokens")] / max(length, 1.0) for row in group]


def log_columns(traces: Sequence[Trace], rewards: Sequence[float]) -> dict[str, list]:
    """Columns for the tables of `log_completions`, beside TRL's: who wrote what, and what it was worth.

    Args:
        traces (`Sequence[Trace]`), rewards (`Sequence[float]`): of the same rollouts.
    """
    return {
        "relay/rollout": [trace.text for trace in traces],
        "relay/teacher_words": [
            " ... ".join(span.text for span in trace.spans if span.author is Author.TEACHER) for trace in traces
        ],
        "relay/calls": [", ".join(str(call.requested) for call in trace.calls) for trace in traces],
        "relay/teacher_share": [trace.teacher_share for trace in traces],
        "relay/reward": list(rewards),
    }


def summarize(rows: Sequence[Sequence[float]], kinds: Sequence[Difficulty]) -> dict[str, float]:
    """The metrics of a step, without its timings.

    Args:
        rows (`Sequence` of shape (N, len(FACTS))): all rollouts of the global batch.
        kinds (`Sequence[Difficulty]`): of the groups with a scored rollout.
    """
    columns: dict[str, tuple[float, ...]] = dict(zip(FACTS, zip(*rows, strict=True), strict=True))
    scored = [i for i, failed in enumerate(columns["failed"]) if not failed]

    def total(name: str) -> float:
        return sum(columns[name][i] for i in scored)

    def per_rollout(name: str) -> float:
        return total(name) / len(scored) if scored else float("nan")

    def per_call(name: str) -> float:
        return total(name) / total("calls") if total("calls") else 0.0

    def cached_share(model: str) -> float:
        return total(f"{model}_cached") / total(f"{model}_read") if total(f"{model}_read") else float("nan")

    shares = {kind.value: kinds.count(kind) / len(kinds) if kinds else float("nan") for kind in Difficulty}
    return {
        "accuracy": per_rollout("correct"),
        "teacher_share": per_rollout("teacher_share"),
        "teacher_share_all": total("teacher_tokens") / total("tokens") if total("tokens") else 0.0,
        "call_rate": per_rollout("called"),
        "calls": per_rollout("calls"),
        "requested": per_call("requested"),
        "granted": per_call("granted"),
        "delivered": per_call("delivered"),
        "malformed": per_rollout("malformed"),
        "malformed_rate": sum(columns["malformed"][i] > 0 for i in scored) / len(scored) if scored else float("nan"),
        "denied": per_rollout("denied"),
        "truncated": per_rollout("truncated"),
        "teacher_wait_s": per_rollout("wait_s"),
        "student_cached_share": cached_share("student"),
        "teacher_cached_share": cached_share("teacher"),
        "teacher_failures": (sum(columns["failed"]) - sum(columns["student_failed"])) / len(rows),
        "student_failures": sum(columns["student_failed"]) / len(rows),
        **shares,
    }
