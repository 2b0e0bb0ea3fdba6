"""Figures of the answers of one method to one benchmark.

Owns what is counted. `results.py` compares methods and averages benchmarks, `statistics.py` has the formulas, `costs.py`
the costs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from ...costs import Costs, PriceTable, usage_costs
from ...trace import Outcome
from ..answer_files import Answer, Run
from .statistics import bootstrap_interval, pass_at_k

Interval: TypeAlias = tuple[float, float]
Problem: TypeAlias = tuple[int, str]
"""Index and text of a problem, so that only equal problems are paired."""


@dataclass(frozen=True)
class KindSummary:
    """Answers to the problems of one kind.

    Args:
        answers (`int`): without teacher failures.
        accuracy (`float`), call_rate (`float`), teacher_share (`float`): as in [`Summary`].
    """

    answers: int
    accuracy: float
    call_rate: float
    teacher_share: float


@dataclass(frozen=True)
class Summary:
    """One method on one benchmark in one run. Rollouts whose teacher failed count only in `failures`.

    Args:
        run (`str`), benchmark (`str`), method (`str`).
        label (`str`): its name in reports.
        problems (`int`): problems with at least one answer.
        answers (`int`): answers without failures.
        failures (`int`): rollouts whose teacher failed.
        accuracy (`float`, *optional*): share of right answers to a problem, mean over problems (avg@k); `None` without
            answers.
        standard_error (`float`, *optional*): standard error of the accuracy over problems; `None` with fewer than two.
        low, high (`float`, *optional*): bootstrap 95 % interval of the accuracy, over problems.
        samples (`int`): answers to the problem that has the fewest.
        pass_at (`dict[int, float]`): [`~relay_trl.evaluation.report.statistics.pass_at_k`] for k = 1, 2, 4, ... up to `samples`.
        teacher_share (`float`): rho, teacher tokens / completion tokens without commands, mean over answers.
        token_share (`float`): the paper's share, teacher tokens / all tokens of the run.
        call_rate (`float`): share of answers with at least one well-formed command, answered or not.
        calls_per_answer (`float`): well-formed commands per answer.
        requested, delivered (`float`, *optional*): tokens that an answered call asked for and got, medians (a single absurd n
            can move a mean anywhere); `None` without such calls.
        denied (`int`), malformed (`int`): commands beyond a limit, and malformed commands.
        tokens_per_answer (`float`): completion tokens, with commands and the teacher's tokens.
        by_kind (`dict[str, KindSummary]`): empty if the data has no kinds.
        by_need (`dict[str, KindSummary]`): by which model solves a problem alone, see `results.py`; empty without both
            methods.
        costs ([`Costs`], *optional*): of an answer; `None` without answers and for averages.
        gap_recovered, cost_reduction (`float`, *optional*): see [`~relay_trl.evaluation.report.statistics.gap_recovered`] and
            [`~relay_trl.evaluation.report.statistics.cost_reduction`], the latter from `token_share`; `None` for student and
            teacher themselves and without them. `gap_interval` and `reduction_interval` are their bootstrap intervals.
    """

    run: str
    benchmark: str
    method: str
    label: str
    problems: int
    answers: int
    failures: int
    accuracy: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    pass_at: dict[int, float] = field(default_factory=dict)
    teacher_share: float = 0.0
    token_share: float = 0.0
    call_rate: float = 0.0
    calls_per_answer: float = 0.0
    requested: float | None = None
    delivered: float | None = None
    denied: int = 0
    malformed: int = 0
    tokens_per_answer: float = 0.0
    by_kind: dict[str, KindSummary] = field(default_factory=dict)
    by_need: dict[str, KindSummary] = field(default_factory=dict)
    costs: Costs | None = None
    gap_recovered: float | None = None
    gap_interval: Interval | None = None
    cost_reduction: float | None = None
    reduction_interval: Interval | None = None


@dataclass
class Cell:
    """The answers behind a summary, by problem: right answers, answers, teacher tokens, all tokens."""

    summary: Summary
    answers: list[Answer]
    table: dict[Problem, np.ndarray] = field(default_factory=dict)

    def score(self, problem: Problem) -> float:
        """The share of right answers to a problem."""
        return float(self.table[problem][0] / self.table[problem][1])


def summarize_method(
    run: Run, benchmark: str, method: str, everything: list[Answer], seed: int, prices: PriceTable
) -> Cell:
    """The cell of one method on one benchmark, with the part of its summary that needs no other cell."""
    answers = [answer for answer in everything if answer.correct is not None]
    label = run.labels.get(method, method)
    summary = Summary(run.name, benchmark, method, label, 0, len(answers), len(everything) - len(answers))
    if not answers:
        return Cell(summary, [])
    cell = Cell(summary, answers)
    by_kind: dict[str, list[Answer]] = {}
    for answer in answers:
        numbers = [bool(answer.correct), 1, answer.trace.teacher_tokens, answer.trace.num_tokens]
        cell.table[problem_of(answer)] = cell.table.get(problem_of(answer), np.zeros(4)) + numbers
        if answer.kind is not None:
            by_kind.setdefault(answer.kind, []).append(answer)
    table = np.array(list(cell.table.values()))
    scores = table[:, 0] / table[:, 1]
    low, high = bootstrap_interval(scores, seed=seed)
    samples = int(table[:, 1].min())
    right, asked = table[:, 0].astype(int).tolist(), table[:, 1].astype(int).tolist()
    powers = [2**k for k in range(samples.bit_length())]
    traces = [answer.trace for answer in answers]
    calls = [call for trace in traces for call in trace.calls]
    answered = [call for call in calls if call.outcome is Outcome.ANSWERED]
    cell.summary = replace(
        summary,
        problems=len(scores),
        accuracy=float(scores.mean()),
        standard_error=float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None,
        low=low,
        high=high,
        samples=samples,
        pass_at={k: value for k in powers if (value := pass_at_k(right, asked, k)) is not None},
        teacher_share=mean(trace.teacher_share for trace in traces),
        token_share=float(table[:, 2].sum() / table[:, 3].sum()) if table[:, 3].sum() else 0.0,
        call_rate=mean(trace.has_called for trace in traces),
        calls_per_answer=len(calls) / len(traces),
        requested=float(np.median([call.requested for call in answered])) if answered else None,
        delivered=float(np.median([call.delivered for call in answered])) if answered else None,
        denied=sum(call.outcome is Outcome.DENIED for call in calls),
        malformed=sum(trace.malformed for trace in traces),
        tokens_per_answer=float(table[:, 3].sum()) / len(traces),
        by_kind={kind: summarize_group(by_kind[kind]) for kind in sorted(by_kind)},
        costs=usage_costs(traces, prices),
    )
    return cell


def problem_of(answer: Answer) -> Problem:
    """The problem that an answer belongs to."""
    return (answer.index, answer.prompt if isinstance(answer.prompt, str) else repr(answer.prompt))


def summarize_group(answers: list[Answer]) -> KindSummary:
    """The figures of some answers of one method."""
    return KindSummary(
        len(answers),
        accuracy=mean(bool(answer.correct) for answer in answers),
        call_rate=mean(answer.trace.has_called for answer in answers),
        teacher_share=mean(answer.trace.teacher_share for answer in answers),
    )


def mean(values: Iterable[float]) -> float:
    """The mean of at least one number."""
    return float(np.mean([float(value) for value in values]))
