"""All results of a report: summaries, gap and cost relative to student and teacher, macro averages, comparisons.

Owns which answers are compared, and reading published figures, which have no answers. The formulas are in `statistics.py`;
`tables.py`, `plots.py` and `pages.py` show the results.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...costs import NO_PRICES, PriceTable, fill_parameters
from ...data.registry import PAPER_SIX
from ..answer_files import Answer, Run
from ..judging import FILE, Judged, compare_with_rules, read_verdicts
from .statistics import (
    Comparison,
    compare,
    cost_reduction,
    gap_recovered,
    headline,
    interval_of,
    resampled_means,
)
from .summaries import Cell, Summary, mean, problem_of, summarize_group, summarize_method, told

_PUBLISHED = ("benchmark", "method", "accuracy", "teacher_tokens")
NEEDS = ("student solves it", "only the teacher does", "neither does")


@dataclass(frozen=True)
class Results:
    """Everything that a report shows.

    Args:
        summaries (`list[Summary]`): in the order of the answers; macro averages last.
        comparisons (`list[tuple[str, str, str, Comparison]]`): benchmark, label, label of what it is compared with.
        judged (`list[Judged]`): what a judge says beside the rules, where there is one.
    """

    summaries: list[Summary]
    comparisons: list[tuple[str, str, str, Comparison]]
    judged: list[Judged] = field(default_factory=list)


def summarize(runs: Iterable[Run], seed: int = 0, prices: PriceTable = NO_PRICES) -> list[Summary]:
    """One summary per run, benchmark and method, in the order of the answers, and one per method for the macro average if
    there are several benchmarks. See [`evaluate_runs`].
    """
    return evaluate_runs(runs, seed, prices).summaries


def evaluate_runs(runs: Iterable[Run], seed: int = 0, prices: PriceTable = NO_PRICES) -> Results:
    """Summaries and paired comparisons.

    Gap recovered and cost reduction are measured from the first `student` and the first `teacher` of the same benchmark, of
    any run; so put the untrained student's run first. The first `relay` is compared with every other method of its
    benchmark.

    Args:
        runs (`Iterable[Run]`): files read by [`~relay_trl.evaluation.answer_files.read_run`].
        seed (`int`, defaults to `0`): of the bootstrap.
        prices ([`PriceTable`]): missing parameters are counted for models in local folders.

    Raises:
        ValueError: two runs have the same name.
    """
    runs = list(runs)
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"Two runs are called {twice!r}; give each its own name (NAME=FOLDER on the command line).")
    cells = []
    for run in runs:
        filled = fill_parameters(prices, run.settings.get("student"), run.settings.get("teacher"))
        groups: dict[tuple[str, str], list[Answer]] = {}
        for answer in run.answers:
            groups.setdefault((answer.benchmark, answer.method), []).append(answer)
        cells += [summarize_method(run, *key, answers, seed, filled) for key, answers in groups.items()]
    for cell, summary in zip(cells, with_distinct_labels([cell.summary for cell in cells]), strict=True):
        cell.summary = summary
    rounds = {}
    for cell in cells:
        cell.summary, rounds[id(cell)] = _with_references(cell, cells, seed)
    averages = _averages(cells, rounds)
    judged = []
    verdicts = {run.name: read_verdicts(run.folder / FILE) if run.folder else {} for run in runs}
    for cell in cells:
        place = (cell.summary.benchmark, cell.summary.label)
        judged += compare_with_rules(*place, cell.answers, verdicts[cell.summary.run])
    return Results([*(cell.summary for cell in cells), *averages], _comparisons(cells, seed), judged)


def with_distinct_labels(summaries: list[Summary]) -> list[Summary]:
    """The summaries, with the run's name before labels that a benchmark has twice."""
    names = [(summary.benchmark, summary.label) for summary in summaries]
    return [
        replace(summary, label=f"{summary.run}: {summary.label}") if names.count(name) > 1 else summary
        for summary, name in zip(summaries, names, strict=True)
    ]


def _first(cells: Sequence[Cell], benchmark: str, method: str) -> Cell | None:
    found = (cell for cell in cells if cell.summary.benchmark == benchmark and cell.summary.method == method)
    return next((cell for cell in found if cell.answers), None)


def _with_references(cell: Cell, cells: list[Cell], seed: int) -> tuple[Summary, tuple | None]:
    """The summary with the figures that need student and teacher, and means and resampled means for the averages."""
    student = _first(cells, cell.summary.benchmark, "student")
    teacher = _first(cells, cell.summary.benchmark, "teacher")
    if student is None or teacher is None or not cell.answers:
        return cell.summary, None
    common = [problem for problem in cell.table if problem in student.table and problem in teacher.table]
    if not common:
        return cell.summary, None
    solved = [(student.score(problem), teacher.score(problem)) for problem in common]
    needs = {
        p: NEEDS[0 if own >= 0.5 else 1 if other >= 0.5 else 2] for p, (own, other) in zip(common, solved, strict=True)
    }
    groups: dict[str, list[Answer]] = {}
    for answer in cell.answers:
        if problem_of(answer) in needs:
            groups.setdefault(needs[problem_of(answer)], []).append(answer)
    summary = replace(cell.summary, by_need={name: summarize_group(groups[name]) for name in NEEDS if name in groups})
    table = np.array([[cell.score(p), *both, *cell.table[p][2:]] for p, both in zip(common, solved, strict=True)])
    means, rounds = table.mean(axis=0), resampled_means(table, seed=seed)
    if cell is not student and cell is not teacher:
        found = headline(means, rounds)
        summary = replace(
            summary,
            gap_recovered=found.gap,
            gap_interval=found.gap_interval,
            cost_reduction=found.reduction,
            reduction_interval=found.reduction_interval,
        )
    return summary, (means, rounds)


def _averages(cells: list[Cell], rounds: dict) -> list[Summary]:
    """The macro average over the benchmarks, for each label with answers to all of them."""
    benchmarks = list(dict.fromkeys(cell.summary.benchmark for cell in cells))
    benchmarks = list(PAPER_SIX) if set(PAPER_SIX) <= set(benchmarks) else benchmarks
    if len(benchmarks) < 2:
        return []
    averages = []
    for label in dict.fromkeys(cell.summary.label for cell in cells):
        own = [c for c in cells if c.summary.label == label and c.summary.benchmark in benchmarks and c.answers]
        if len(own) != len(benchmarks):
            continue
        parts = [cell.summary for cell in own]
        known = [rounds[id(cell)] for cell in own if rounds[id(cell)] is not None]
        averages.append(_average(parts, known, f"average of {len(benchmarks)}"))
    return averages


def _average(parts: list[Summary], known: list[tuple], name: str) -> Summary:
    first = parts[0]
    averaged: dict[str, Any] = {figure: mean(getattr(part, figure) for part in parts) for figure in told("is_averaged")}
    average = Summary(
        *(first.run, name, first.method, first.label),
        problems=sum(part.problems for part in parts),
        answers=sum(part.answers for part in parts),
        failures=sum(part.failures for part in parts),
        **averaged,
    )
    if len(known) < len(parts):
        return average
    # Benchmarks are resampled independently, so the rounds of each are put in another order.
    shuffled = [np.roll(part[1], 1009 * k, axis=0) for k, part in enumerate(known)]
    together = np.mean(shuffled, axis=0)
    found = interval_of(together[:, 0])
    average = replace(average, low=found[0], high=found[1]) if found else average
    if first.method in ("student", "teacher") and first.gap_recovered is None:
        return average
    # The share of tokens is averaged over benchmarks, like accuracy, so that long answers do not weigh more.
    share = np.mean([part[:, 3] / np.maximum(part[:, 4], 1e-9) for part in shuffled], axis=0)
    means = np.mean([part[0] for part in known], axis=0)
    means[3:] = average.token_share, 1.0
    found = headline(means, np.column_stack([together[:, :3], share, np.ones_like(share)]))
    return replace(
        average,
        gap_recovered=found.gap,
        gap_interval=found.gap_interval,
        cost_reduction=found.reduction,
        reduction_interval=found.reduction_interval,
    )


def _comparisons(cells: list[Cell], seed: int) -> list[tuple[str, str, str, Comparison]]:
    found = []
    for benchmark in dict.fromkeys(cell.summary.benchmark for cell in cells):
        relay = _first(cells, benchmark, "relay")
        for other in cells:
            if relay is None or other is relay or other.summary.benchmark != benchmark:
                continue
            common = [problem for problem in relay.table if problem in other.table]
            if common:
                scores = [np.array([cell.score(problem) for problem in common]) for cell in (relay, other)]
                labels = (relay.summary.label, other.summary.label)
                found.append((benchmark, *labels, compare(scores[0], scores[1], seed)))
    return found


def read_published(path: str | Path, name: str | None = None) -> list[Summary]:
    """The rows of a small CSV of figures without answers, which a report shows like a run. Accuracy and the teacher's share of all
    tokens are in percent; there are no intervals without answers.

        benchmark,method,accuracy,teacher_tokens
        average,student,42.50,
        average,relay,49.52,1.07
        average,teacher,54.12,100

    Gap recovered and cost reduction are those between its own rows `student` and `teacher`.

    Args:
        path (`str` or `Path`).
        name (`str`, *optional*): name of the run in reports; `None`: the file's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns, or a value that is not a percentage.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The file of published figures {path} does not exist.")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != set(_PUBLISHED):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; it must have {', '.join(_PUBLISHED)}.")
        rows = list(reader)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    summaries = [_summary(row, name or path.stem, f"{path}, line {k}") for k, row in enumerate(rows, start=2)]
    return [_with_headline(summary, summaries) for summary in summaries]


def _summary(row: dict, run: str, where: str) -> Summary:
    method = row["method"]
    share = _percent(row["teacher_tokens"], where) if row["teacher_tokens"] else 0.0
    accuracy = _percent(row["accuracy"], where)
    return Summary(run, row["benchmark"], method, method, 0, 0, 0, accuracy=accuracy, token_share=share)


def _percent(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"{where} has {text!r}, which is no percentage from 0 to 100.")
    return value / 100


def _with_headline(summary: Summary, summaries: list[Summary]) -> Summary:
    ends = {s.method: s.accuracy for s in summaries if s.benchmark == summary.benchmark}
    if summary.method in ("student", "teacher") or not {"student", "teacher"} <= set(ends):
        return summary
    gap = gap_recovered(summary.accuracy or 0.0, ends["student"] or 0.0, ends["teacher"] or 0.0)
    reduction = cost_reduction(summary.token_share, gap) if gap is not None and summary.token_share > 0 else None
    return replace(summary, gap_recovered=gap, cost_reduction=reduction)
