"""Tables over several seeds: mean, smallest and largest over the seeds, and the interval over problems.

Owns the table and the picture of a run with seeds. The numbers of one run come from `evaluation/report/summaries.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..evaluation.answer_files import Run, read_run
from ..evaluation.methods import family_of, readable
from ..evaluation.report.plots import plot_shares, save_figure
from ..evaluation.report.results import summarize
from ..evaluation.report.summaries import Summary, told
from ..pages.render import markdown_table


def cell(values: Sequence[float | None], scale: float = 100.0) -> str:
    """Mean [smallest, largest]; only the mean if all are equal, and a dash if no seed has a value."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.1f}"
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return mean if low == high else f"{mean} [{low}, {high}]"


def pooled(runs: Sequence[Run]) -> Run:
    """The answers of several seeds as samples of the same problems, so that a bootstrap over problems covers all seeds.

    Samples get new numbers, which continue from seed to seed.
    """
    answers, samples = [], 0
    for run in runs:
        answers += [replace(answer, sample=samples + answer.sample) for answer in run.answers]
        samples += 1 + max((answer.sample for answer in run.answers), default=-1)
    return replace(runs[0], answers=answers)


def write_results(folder: str | Path, names: Iterable[str], seeds: Sequence[int], notes: str, ends: Sequence[Path]):
    """Writes `results.md` ([`seeds_table`], then `notes`) and `shares.svg` of the finished evaluations in
    `<folder>/evaluation`: `<name>_seed_<seed>` where it is there, and the folders `ends`, of runs without seeds.
    """
    groups: dict[str, list[Run]] = {}
    for name in names:
        for seed in seeds:
            path = Path(folder, "evaluation", f"{name}_seed_{seed}")
            if (path / "results.json").exists():
                groups.setdefault(name, []).append(read_run(path))
    table, whole = seeds_table(groups, [read_run(path) for path in ends])
    Path(folder, "results.md").write_text(f"{table}\n{notes}", encoding="utf-8")
    if (figure := plot_shares(whole)) is not None:
        save_figure(figure, Path(folder, "shares"))


def seeds_table(groups: Mapping[str, Sequence[Run]], ends: Sequence[Run]) -> tuple[str, list[Summary]]:
    """One row per setting and method.

    Args:
        groups (`Mapping[str, Sequence[Run]]`): the runs of each setting, one per seed, on the same problems.
        ends (`Sequence[Run]`): runs of the untrained student and of the teacher, the two ends of the gap, and of other
            methods without seeds.

    Returns:
        `tuple[str, list[Summary]]`: the table as Markdown, and each row with all seeds pooled. The table has mean
        [smallest, largest] over seeds for every column, the bootstrap 95 % interval of the accuracy over problems with all
        seeds pooled, and the median requested n for each seed.
    """
    ends_by_name = [replace(run, name=f"end {i}") for i, run in enumerate(ends)]
    by_seed = {
        label: [replace(run, name=f"{label} {i}") for i, run in enumerate(runs)] for label, runs in groups.items()
    }
    pools = [replace(pooled(runs), name=f"{label} all") for label, runs in by_seed.items()]
    everything = [*ends_by_name, *(run for runs in by_seed.values() for run in runs), *pools]
    found = {(summary.run, summary.method): summary for summary in summarize(everything)}

    headings = [
        "method",
        "seeds",
        *told("over_seeds").values(),
        "accuracy, 95 % interval over problems",
        "median n, each seed",
    ]
    lines: list[list[str]] = []
    rows: list[Summary] = []
    for run in ends_by_name:
        for method in _methods_of([run]):
            rows.append(replace(found[run.name, method], label=run.labels.get(method) or readable(method)))
            lines.append([rows[-1].label, "-", *_cells([rows[-1]], rows[-1])])
    for label, runs in by_seed.items():
        methods = _methods_of(runs)
        for method in methods:
            of_seeds = [found[run.name, method] for run in runs if (run.name, method) in found]
            rows.append(replace(found[f"{label} all", method], label=_label(label, method, len(methods))))
            lines.append([rows[-1].label, str(len(of_seeds)), *_cells(of_seeds, rows[-1])])
    return markdown_table(headings, lines) + "\n", rows


def _methods_of(runs: Sequence[Run]) -> list[str]:
    """The methods, ordered by name and number; the order of the answers in a file is arbitrary."""
    methods = {answer.method for run in runs for answer in run.answers}
    return sorted(methods, key=lambda method: (family_of(method) is not None, family_of(method) or (method, 0.0)))


def _label(setting: str, method: str, count: int) -> str:
    """The setting's name if it has one method; the method's name if that begins with the setting's; else both."""
    name = readable(method)
    return (
        setting
        if count == 1
        else name
        if setting in (method[: len(setting)], name[: len(setting)])
        else f"{setting}: {name}"
    )


def _cells(seeds: Sequence[Summary], whole: Summary) -> list[str]:
    interval = "-" if whole.low is None or whole.high is None else f"{100 * whole.low:.1f}-{100 * whole.high:.1f}"
    asked = ", ".join("-" if seed.requested is None else f"{seed.requested:g}" for seed in seeds)
    return [*(cell([getattr(seed, field) for seed in seeds]) for field in told("over_seeds")), interval, asked]
