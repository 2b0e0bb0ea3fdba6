"""Figures of the answers of one method to one benchmark.

Owns what is counted, and which columns show it. `results.py` compares methods and averages benchmarks, `statistics.py` has the formulas, `costs.py`
the costs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np

from ...costs import Costs, PriceTable, usage_costs
from ...trace import Call, Outcome, Trace
from ..answer_files import Answer, Run
from ..methods import readable
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


def figure(
    of: Callable[["Cell"], Any] | None = None,
    column: tuple[str, Callable[["Summary"], str]] | None = None,
    over_seeds: str | None = None,
    is_averaged: bool = False,
    default: Any = 0.0,
) -> Any:
    """A field of [`Summary`]: all that there is to say about a figure.

    Args:
        of (`Callable[[Cell], Any]`, *optional*): the figure of one method's answers; `None` if it needs more than these.
        column (`tuple[str, Callable[[Summary], str]]`, *optional*): heading and text of its column in the main table.
        over_seeds (`str`, *optional*): heading of its column in tables over seeds, in percent.
        is_averaged (`bool`, defaults to `False`): whether the macro average has its mean over benchmarks.
        default (`Any`, defaults to `0.0`): its value without answers.
    """
    told = {"of": of, "column": column, "over_seeds": over_seeds, "is_averaged": is_averaged}
    if callable(default):
        return field(default_factory=default, metadata=told)
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Summary:
    """One method on one benchmark in one run. Rollouts whose teacher failed count only in `failures`. A new figure is a new
    field here; tables and files show the fields in this order.

    Args:
        run (`str`), benchmark (`str`), method (`str`).
        label (`str`): its name in reports.
        problems (`int`): problems with at least one answer.
        answers (`int`): answers without failures.
        failures (`int`): rollouts whose teacher failed.
    """

    run: str
    benchmark: str
    method: str
    label: str
    problems: int
    answers: int
    failures: int
    accuracy: float | None = figure(
        lambda cell: float(cell.scores.mean()),
        column=("acc. %", lambda s: percent(s.accuracy)),
        over_seeds="accuracy %",
        is_averaged=True,
        default=None,
    )
    """Share of right answers to a problem, mean over problems (avg@k); `None` without answers."""
    standard_error: float | None = figure(
        lambda cell: float(cell.scores.std(ddof=1) / len(cell.scores) ** 0.5) if len(cell.scores) > 1 else None,
        default=None,
    )
    """Standard error of the accuracy over problems; `None` with fewer than two."""
    low: float | None = figure(
        column=(
            "95\u00a0% interval",
            lambda s: "-" if s.low is None else f"{100 * s.low:.1f}-{100 * (s.high or 0):.1f}",
        ),
        default=None,
    )
    """The lower end of the accuracy's bootstrap 95 % interval, over problems."""
    high: float | None = None
    """Its upper end."""
    samples: int = figure(lambda cell: int(cell.numbers[:, 1].min()), default=0)
    """Answers to the problem that has the fewest."""
    pass_at: dict[int, float] = figure(lambda cell: _pass_at(cell.numbers), default=dict)
    """[`~relay_trl.evaluation.report.statistics.pass_at_k`] for k = 1, 2, 4, ... up to `samples`. The main table shows some."""
    teacher_share: float = figure(
        lambda cell: mean(trace.teacher_share for trace in cell.traces),
        column=("teacher share %", lambda s: percent(s.teacher_share if s.answers else None)),
        over_seeds="teacher share (rho) %",
        is_averaged=True,
    )
    """rho: teacher tokens / completion tokens without commands, mean over answers."""
    token_share: float = figure(
        lambda cell: float(cell.numbers[:, 2].sum() / max(1, cell.numbers[:, 3].sum())),
        column=("teacher tokens %", lambda s: percent(s.token_share, 2 if 0 < s.token_share < 0.1 else 1)),
        over_seeds="teacher tokens %",
        is_averaged=True,
    )
    """The paper's share: teacher tokens / all tokens of the run."""
    call_rate: float = figure(
        lambda cell: mean(trace.has_called for trace in cell.traces),
        column=("called %", lambda s: percent(s.call_rate if s.answers else None, 0)),
        over_seeds="answers that call %",
        is_averaged=True,
    )
    """Share of answers with at least one well-formed command, answered or not."""
    calls_per_answer: float = figure(
        lambda cell: len(cell.calls()) / len(cell.answers),
        column=("calls each", lambda s: f"{s.calls_per_answer:.2f}" if s.answers else "-"),
        is_averaged=True,
    )
    """Well-formed commands per answer."""
    requested: float | None = figure(
        lambda cell: _median(call.requested for call in cell.calls(Outcome.ANSWERED)), default=None
    )
    """Tokens that an answered call asked for, median (a single absurd n can move a mean anywhere); `None` without such calls."""
    delivered: float | None = figure(
        lambda cell: _median(call.delivered for call in cell.calls(Outcome.ANSWERED)), default=None
    )
    """Tokens that it got, median."""
    denied: int = figure(lambda cell: len(cell.calls(Outcome.DENIED)), default=0)
    """Commands beyond a limit."""
    malformed: int = figure(lambda cell: sum(trace.malformed for trace in cell.traces), default=0)
    """Malformed commands."""
    tokens_per_answer: float = figure(lambda cell: float(cell.numbers[:, 3].sum()) / len(cell.answers))
    """Completion tokens, with commands and the teacher's tokens."""
    by_kind: dict[str, KindSummary] = figure(lambda cell: _by_kind(cell.answers), default=dict)
    """Empty if the data has no kinds."""
    by_need: dict[str, KindSummary] = figure(default=dict)
    """By which model solves a problem alone, see `results.py`; empty without both methods."""
    costs: Costs | None = None
    """Of an answer; `None` without answers and for averages."""
    gap_recovered: float | None = figure(
        column=("gap rec. %", lambda s: percent(s.gap_recovered)), over_seeds="gap recovered %", default=None
    )
    """See [`~relay_trl.evaluation.report.statistics.gap_recovered`]; `None` for student and teacher themselves and without them."""
    gap_interval: Interval | None = None
    """Its bootstrap interval."""
    cost_reduction: float | None = figure(
        column=("cost red. %", lambda s: percent(s.cost_reduction)), over_seeds="cost reduction %", default=None
    )
    """See [`~relay_trl.evaluation.report.statistics.cost_reduction`], from `token_share`."""
    reduction_interval: Interval | None = None
    """Its bootstrap interval."""


def told(what: str) -> dict[str, Any]:
    """What the fields of [`Summary`] have under `what`, see [`figure`], by their names; those that have nothing are left out."""
    return {one.name: one.metadata[what] for one in fields(Summary) if one.metadata.get(what)}


@dataclass
class Cell:
    """The answers behind a summary, by problem: right answers, answers, teacher tokens, all tokens."""

    summary: Summary
    answers: list[Answer]
    table: dict[Problem, np.ndarray] = field(default_factory=dict)

    @property
    def traces(self) -> list[Trace]:
        """The answers' traces."""
        return [answer.trace for answer in self.answers]

    @property
    def numbers(self) -> np.ndarray:
        """The table as an array of shape (P, 4)."""
        return np.array(list(self.table.values()))

    @property
    def scores(self) -> np.ndarray:
        """The share of right answers to each problem, shape (P,)."""
        return self.numbers[:, 0] / self.numbers[:, 1]

    def calls(self, outcome: Outcome | None = None) -> list[Call]:
        """Well-formed commands of all answers, those of one outcome or all."""
        return [call for trace in self.traces for call in trace.calls if outcome in (None, call.outcome)]

    def score(self, problem: Problem) -> float:
        """The share of right answers to a problem."""
        return float(self.table[problem][0] / self.table[problem][1])


def summarize_method(
    run: Run, benchmark: str, method: str, everything: list[Answer], seed: int, prices: PriceTable
) -> Cell:
    """The cell of one method on one benchmark, with the part of its summary that needs no other cell."""
    answers = [answer for answer in everything if answer.correct is not None]
    label = run.labels.get(method) or readable(method)
    summary = Summary(run.name, benchmark, method, label, 0, len(answers), len(everything) - len(answers))
    if not answers:
        return Cell(summary, [])
    cell = Cell(summary, answers)
    for answer in answers:
        numbers = [bool(answer.correct), 1, answer.trace.teacher_tokens, answer.trace.num_tokens]
        cell.table[problem_of(answer)] = cell.table.get(problem_of(answer), np.zeros(4)) + numbers
    low, high = bootstrap_interval(cell.scores, seed=seed)
    figures = {name: of(cell) for name, of in told("of").items()}
    costs = usage_costs(cell.traces, prices)
    cell.summary = replace(summary, problems=len(cell.table), low=low, high=high, costs=costs, **figures)
    return cell


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign; `-` if there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _pass_at(numbers: np.ndarray) -> dict[int, float]:
    right, asked = numbers[:, 0].astype(int).tolist(), numbers[:, 1].astype(int).tolist()
    powers = (2**k for k in range(min(asked).bit_length()))
    return {k: value for k in powers if (value := pass_at_k(right, asked, k)) is not None}


def _by_kind(answers: list[Answer]) -> dict[str, KindSummary]:
    kinds = sorted({answer.kind for answer in answers if answer.kind is not None})
    return {kind: summarize_group([answer for answer in answers if answer.kind == kind]) for kind in kinds}


def _median(values: Iterable[int]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None


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
