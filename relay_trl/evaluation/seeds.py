"""Several seeds of one setting in one row: means, how far the seeds lie apart, and the uncertainty of the problems.

Owns the table of `recipes/reproduce.py`. The numbers of one run are `summaries.py`'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .answers import Run, read_run
from .results import summarize
from .summaries import Summary

COLUMNS = {
    "accuracy %": "accuracy",
    "teacher share (rho) %": "teacher_share",
    "teacher tokens %": "token_share",
    "answers that call %": "call_rate",
    "gap recovered %": "gap_recovered",
    "cost reduction %": "cost_reduction",
}
"""Heading and field of [`Summary`]; percentages."""


def cell(values: Sequence[float | None], scale: float = 100.0) -> str:
    """Mean [smallest, largest]; the mean alone where all are equal, and a dash where no seed has a value."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.1f}"
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return mean if low == high else f"{mean} [{low}, {high}]"


def pooled(runs: Sequence[Run]) -> Run:
    """The answers of several seeds as samples of the same problems, so that a bootstrap over problems covers them all.

    Answers are numbered on from seed to seed.
    """
    answers, samples = [], 0
    for run in runs:
        answers += [replace(answer, sample=samples + answer.sample) for answer in run.answers]
        samples += 1 + max((answer.sample for answer in run.answers), default=-1)
    return replace(runs[0], answers=answers)


def table_of_folder(folder: Path, names: Iterable[str], seeds: Sequence[int]) -> str:
    """[`seeds_table`] of the finished evaluations in `folder`: `ends`, and `<name>_seed_<seed>` where it is there."""
    groups: dict[str, list[Run]] = {}
    for name in names:
        for seed in seeds:
            if (folder / f"{name}_seed_{seed}" / "results.json").exists():
                groups.setdefault(name, []).append(read_run(folder / f"{name}_seed_{seed}"))
    return seeds_table(groups, [read_run(folder / "ends")])


def seeds_table(groups: Mapping[str, Sequence[Run]], ends: Sequence[Run]) -> str:
    """One row per setting and method, as Markdown.

    Args:
        groups (`Mapping[str, Sequence[Run]]`): the runs of each setting, one per seed, all of the same problems.
        ends (`Sequence[Run]`): runs of the untrained student and of the teacher, the two ends of the gap.

    Returns:
        `str`: accuracy as mean [smallest, largest] over seeds, then its bootstrap 95 % interval over problems, all seeds
        pooled; the other columns as mean [smallest, largest]; median n asked for, seed by seed.
    """
    ends_by_name = [replace(run, name=f"end {i}") for i, run in enumerate(ends)]
    by_seed = {
        label: [replace(run, name=f"{label} {i}") for i, run in enumerate(runs)] for label, runs in groups.items()
    }
    whole = [replace(pooled(runs), name=f"{label} all") for label, runs in by_seed.items()]
    everything = [*ends_by_name, *(run for runs in by_seed.values() for run in runs), *whole]
    found = {(summary.run, summary.method): summary for summary in summarize(everything)}

    headings = ["method", "seeds", *COLUMNS, "accuracy, 95 % interval over problems", "median n, each seed"]
    lines = [_row(headings), _row(["---", *["---:"] * (len(headings) - 1)])]
    for run in ends_by_name:
        for method in sorted({answer.method for answer in run.answers}):
            end = found[run.name, method]
            lines.append(_row([run.labels.get(method, method), "-", *_cells([end], end)]))
    for label, runs in by_seed.items():
        for method in sorted({answer.method for run in runs for answer in run.answers}):
            seeds = [found[run.name, method] for run in runs if (run.name, method) in found]
            name = runs[0].labels.get(method, method)
            lines.append(_row([f"{label}: {name}", str(len(seeds)), *_cells(seeds, found[f"{label} all", method])]))
    return "\n".join(lines) + "\n"


def _cells(seeds: Sequence[Summary], whole: Summary) -> list[str]:
    interval = "-" if whole.low is None or whole.high is None else f"{100 * whole.low:.1f}-{100 * whole.high:.1f}"
    asked = ", ".join("-" if seed.requested is None else f"{seed.requested:g}" for seed in seeds)
    return [*(cell([getattr(seed, field) for seed in seeds]) for field in COLUMNS.values()), interval, asked]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
