"""What the answers add up to: accuracy with its uncertainty, the teacher's share, calls, and the paper's headline figures.

Owns the numbers of a report; how they are shown is `report.py`'s business. Seeds in, same numbers out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..trace import Outcome
from .answers import Answer, Run

BOOTSTRAP_ROUNDS = 10_000
_CHUNK = 4_000_000  # resampled numbers held in memory at a time


@dataclass(frozen=True)
class KindSummary:
    """Answers to the problems of one kind.

    Args:
        answers (`int`): teacher failures left out.
        accuracy (`float`), call_rate (`float`), teacher_share (`float`): as in [`Summary`].
    """

    answers: int
    accuracy: float
    call_rate: float
    teacher_share: float


@dataclass(frozen=True)
class Summary:
    """One method on one benchmark in one run. Rollouts whose teacher failed count in `failures` and nowhere else.

    Args:
        run (`str`), benchmark (`str`), method (`str`).
        label (`str`): what reports call it.
        problems (`int`): with at least one answer.
        answers (`int`): failures left out.
        failures (`int`): rollouts that the teacher's failure ended.
        accuracy (`float`, *optional*): mean over problems of each one's share of right answers; `None` without answers.
        standard_error (`float`, *optional*): of the accuracy, over problems; `None` with fewer than two.
        low, high (`float`, *optional*): bootstrap 95 % interval of the accuracy, over problems.
        teacher_share (`float`): rho, averaged over answers: teacher tokens / completion tokens without commands.
        token_share (`float`): the paper's figure: teacher tokens / all tokens, over the whole run.
        call_rate (`float`): share of answers with at least one well-formed command, answered or not.
        calls_per_answer (`float`): well-formed commands per answer.
        requested, delivered (`float`, *optional*): tokens asked for and received by an answered call, medians (one absurd n
            moves a mean anywhere); `None` without such calls.
        denied (`int`), malformed (`int`): commands beyond a limit, and commands that are none.
        tokens_per_answer (`float`): completion tokens, commands and the teacher's included.
        by_kind (`dict[str, KindSummary]`): empty where the data has no kinds.
        gap_recovered (`float`, *optional*): see [`gap_recovered`]; `None` for the two ends of the gap and without them.
        cost_reduction (`float`, *optional*): see [`cost_reduction`], from `token_share`.
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
    gap_recovered: float | None = None
    cost_reduction: float | None = None


def gap_recovered(accuracy: float, student: float, teacher: float) -> float | None:
    """How much of the way from the student's to the teacher's accuracy a method goes. A random router that sends this
    share of the queries to the teacher is as accurate.

    Returns:
        `float` or `None`: 1 at the teacher's accuracy, negative below the student's; `None` if the teacher is no better
        than the student, so that there is no gap.
    """
    return (accuracy - student) / (teacher - student) if teacher > student else None


def cost_reduction(teacher_share: float, gap: float) -> float | None:
    """How much less of the teacher a method takes than the random router of equal accuracy: 1 - share / p.

    Args:
        teacher_share (`float`): share of the tokens that the teacher wrote, 0 to 1.
        gap (`float`): [`gap_recovered`], the router's share p; above 1, where no router is as accurate, the router that
            sends everything (p = 1) is taken, so that the figure errs against the method.

    Returns:
        `float` or `None`: `None` where nothing is recovered, so that the router needs no teacher either.
    """
    return 1.0 - teacher_share / min(gap, 1.0) if gap > 0 else None


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values`, shape (P,), one per problem."""
    array = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(array))
    means = np.concatenate(
        [
            array[rng.integers(len(array), size=(min(step, rounds - done), len(array)))].mean(axis=1)
            for done in range(0, rounds, step)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(runs: Iterable[Run], seed: int = 0) -> list[Summary]:
    """One summary per run, benchmark and method, in the order in which they come.

    Gap recovered and cost reduction are measured against the first `student` and the first `teacher` of the same
    benchmark, in whichever run: put the untrained student's run first.

    Args:
        runs (`Iterable[Run]`): files read by [`~evaluation.answers.read_run`].
        seed (`int`, defaults to `0`): of the bootstrap.

    Raises:
        ValueError: two runs have one name.
    """
    runs = list(runs)
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"Two runs are called {twice!r}; give each its own name where they are read (read_run).")
    summaries = []
    for run in runs:
        groups: dict[tuple[str, str], list[Answer]] = {}
        for answer in run.answers:
            groups.setdefault((answer.benchmark, answer.method), []).append(answer)
        for (benchmark, method), answers in groups.items():
            label = run.labels.get(method, method)
            summaries.append(_summarize_method(run.name, benchmark, method, label, answers, seed))
    return _with_headlines(_with_distinct_labels(summaries))


def _summarize_method(
    run: str, benchmark: str, method: str, label: str, everything: list[Answer], seed: int
) -> Summary:
    answers = [answer for answer in everything if answer.correct is not None]
    summary = Summary(run, benchmark, method, label, 0, len(answers), len(everything) - len(answers))
    if not answers:
        return summary
    by_problem: dict[int, list[bool]] = {}
    by_kind: dict[str, list[Answer]] = {}
    for answer in answers:
        by_problem.setdefault(answer.index, []).append(bool(answer.correct))
        if answer.kind is not None:
            by_kind.setdefault(answer.kind, []).append(answer)
    scores = np.array([np.mean(by_problem[index]) for index in sorted(by_problem)])
    low, high = bootstrap_interval(scores, seed=seed)
    traces = [answer.trace for answer in answers]
    calls = [call for trace in traces for call in trace.calls]
    answered = [call for call in calls if call.outcome is Outcome.ANSWERED]
    total = sum(trace.num_tokens for trace in traces)
    return replace(
        summary,
        problems=len(scores),
        accuracy=float(scores.mean()),
        standard_error=float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None,
        low=low,
        high=high,
        teacher_share=_mean(trace.teacher_share for trace in traces),
        token_share=sum(trace.teacher_tokens for trace in traces) / total if total else 0.0,
        call_rate=_mean(trace.has_called for trace in traces),
        calls_per_answer=len(calls) / len(traces),
        requested=float(np.median([call.requested for call in answered])) if answered else None,
        delivered=float(np.median([call.delivered for call in answered])) if answered else None,
        denied=sum(call.outcome is Outcome.DENIED for call in calls),
        malformed=sum(trace.malformed for trace in traces),
        tokens_per_answer=total / len(traces),
        by_kind={kind: _summarize_kind(by_kind[kind]) for kind in sorted(by_kind)},
    )


def _summarize_kind(answers: list[Answer]) -> KindSummary:
    return KindSummary(
        len(answers),
        accuracy=_mean(bool(answer.correct) for answer in answers),
        call_rate=_mean(answer.trace.has_called for answer in answers),
        teacher_share=_mean(answer.trace.teacher_share for answer in answers),
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([float(value) for value in values]))


def _with_distinct_labels(summaries: list[Summary]) -> list[Summary]:
    names = [(summary.benchmark, summary.label) for summary in summaries]
    return [
        replace(summary, label=f"{summary.run}: {summary.label}") if names.count(name) > 1 else summary
        for summary, name in zip(summaries, names, strict=True)
    ]


def _with_headlines(summaries: list[Summary]) -> list[Summary]:
    done = []
    for summary in summaries:
        student = _first(summaries, summary.benchmark, "student")
        teacher = _first(summaries, summary.benchmark, "teacher")
        if student is not None and teacher is not None and summary not in (student, teacher):
            summary = _with_headline(summary, student.accuracy, teacher.accuracy)
        done.append(summary)
    return done


def _first(summaries: list[Summary], benchmark: str, method: str) -> Summary | None:
    return next((s for s in summaries if s.benchmark == benchmark and s.method == method), None)


def _with_headline(summary: Summary, student: float | None, teacher: float | None) -> Summary:
    if summary.accuracy is None or student is None or teacher is None:
        return summary
    gap = gap_recovered(summary.accuracy, student, teacher)
    # A method that takes no teacher at all has no cost to reduce.
    reduction = cost_reduction(summary.token_share, gap) if gap is not None and summary.token_share > 0 else None
    return replace(summary, gap_recovered=gap, cost_reduction=reduction)
