"""Results as tables of texts: the paper's table, one per benchmark, by difficulty, costs, comparisons.

Owns which tables there are and their wording. The numbers and the main table's columns come from `summaries.py`, comparisons
from `results.py`; `write.py` writes the tables in several formats.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..judging import Judged
from .results import NEEDS, Results
from .statistics import Comparison
from .summaries import Interval, KindSummary, Summary, percent, told

MAX_KINDS = 8
"""With more kinds than this, each kind is a row and each method a column."""

NOTES = (
    "Accuracy: share of right answers to a problem, mean over problems, with a bootstrap 95 % interval over problems. "
    "pass@k: share of problems that at least one of k answers solves, an unbiased estimate from all answers.",
    "Teacher share (rho): teacher tokens / completion tokens without commands, mean over answers. Teacher tokens: teacher "
    "tokens / all tokens of the run, with commands, the paper's figure. It does not include what the teacher reads (the "
    "prompt and the answer so far, again at each call, without what its prefix cache has), what the student writes and "
    "reads, and that the teacher's tokens cost more than the student's. The table of costs includes these.",
    "Called: share of answers with a well-formed command, answered or not; calls each: such commands per answer.",
    "Gap rec.: gap recovered, the share of the way from the student's to the teacher's accuracy; a random router of "
    "equal accuracy sends this share of the problems to the teacher. Cost red.: cost reduction, 1 - teacher tokens / "
    "that share. Both with bootstrap intervals over problems, the same problems drawn for all methods.",
    "Difficulty: the student (teacher) solves a problem if at least half of its own answers are right. If the table shows "
    "these same answers, their accuracy is 100 % or 0 % by definition.",
    "Costs, per answer: tokens that each model wrote and read; 'read anew' are those that did not come from a prefix cache. "
    "Active parameters: those of the model that wrote a token, mean over tokens. FLOPs: 2 N for each token that a model "
    "with N parameters reads or writes, without attention; without cache: as if every request were read completely.",
    "Against relay: paired bootstrap over problems (difference, interval, p) and McNemar's exact test on the problems that "
    "one of the two solves; no correction for many comparisons.",
)
FAILURE_NOTE = "Failed: answers that ended because the teacher failed. They are neither right nor wrong and count in no other column."


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        title (`str`).
        columns (`list[str]`): the first one has names, the others numbers.
        rows (`list[list[str]]`).
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def interval(value: Interval | None) -> str:
    """An interval of shares in percent."""
    return "-" if value is None else f"{_bound(value[0])} to {_bound(value[1])}"


def _bound(value: float) -> str:
    return "-inf" if value == float("-inf") else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """A count or a size with three digits: `0.123`, `12.3`, `1,234`, `1.23e9`."""
    if value is None:
        return "-"
    if value >= 1e6 or 0 < value < 1e-3:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def all_tables(results: Results) -> list[Table]:
    """Every table of a report, the most important ones first."""
    summaries = results.summaries
    benchmarks = list(dict.fromkeys(summary.benchmark for summary in summaries))
    tables = [papers_table(summaries)] if len(benchmarks) > 1 else []
    tables += results_tables(summaries)
    for benchmark in benchmarks:
        shown = [summary for summary in summaries if summary.benchmark == benchmark]
        tables += [table for table in (_need_table(benchmark, shown), _cost_table(benchmark, shown)) if table]
        compared = [(first, second, c) for name, first, second, c in results.comparisons if name == benchmark]
        tables += [_comparison_table(benchmark, compared)] if compared else []
        judged = [line for line in results.judged if line.benchmark == benchmark]
        tables += [_judge_table(benchmark, judged)] if judged else []
    return tables


def papers_table(summaries: Sequence[Summary]) -> Table:
    """Accuracy of each method on each benchmark, their average, and the paper's share of teacher tokens."""
    benchmarks = list(dict.fromkeys(summary.benchmark for summary in summaries))
    average = next((name for name in benchmarks if name.startswith("average of ")), None)
    rows = []
    for label in dict.fromkeys(summary.label for summary in summaries):
        own = {summary.benchmark: summary for summary in summaries if summary.label == label}
        last = own.get(average or "") or (next(iter(own.values())) if len(own) == 1 else None)
        accuracies = [percent(own[name].accuracy) if name in own else "-" for name in benchmarks]
        rows.append([label, *accuracies, percent(last.token_share if last else None, 2)])
    return Table("Accuracy in percent, by method and benchmark", ["method", *benchmarks, "teacher tokens %"], rows)


def results_tables(summaries: Sequence[Summary]) -> list[Table]:
    """One table per benchmark with a row per method, and one by kind if its problems have kinds."""
    tables = []
    for benchmark in dict.fromkeys(summary.benchmark for summary in summaries):
        shown = [summary for summary in summaries if summary.benchmark == benchmark]
        tables.append(_main_table(benchmark, shown))
        kinds = sorted({kind for summary in shown for kind in summary.by_kind})
        if kinds:
            title = f"{benchmark}, by kind of problem: accuracy % / answers that called %"
            tables.append(_group_table(title, shown, kinds, lambda s: s.by_kind))
    return tables


def _main_table(benchmark: str, shown: Sequence[Summary]) -> Table:
    columns: dict[str, Callable[[Summary], str]] = {"method": lambda s: s.label}
    most = max(summary.samples for summary in shown)
    for name, (heading, show) in told("column").items():
        columns[heading] = show
        if name == "low" and most > 1:
            for k in sorted({k for summary in shown for k in summary.pass_at if k in (4, 8, 32)} or {most}):
                columns[f"pass@{k} %"] = lambda s, k=k: percent(s.pass_at.get(k))
    if any(summary.failures for summary in shown):
        columns["failed"] = lambda s: str(s.failures)
    problems = max(summary.problems for summary in shown)
    rows = [[show(summary) for show in columns.values()] for summary in shown]
    return Table(f"{benchmark}, {problems} problems" if problems else benchmark, list(columns), rows)


def headline_table(summaries: Sequence[Summary]) -> Table | None:
    """Gap recovered and cost reduction with their intervals."""
    rows = [
        [s.label, s.benchmark, percent(s.gap_recovered), interval(s.gap_interval)]
        + [percent(s.cost_reduction), interval(s.reduction_interval)]
        for s in summaries
        if s.gap_recovered is not None
    ]
    columns = ["method", "benchmark", "gap recovered %", "95 % interval", "cost reduction %", "95 % interval"]
    return Table("Headline figures with intervals", columns, rows) if rows else None


def _group_table(
    title: str,
    shown: Sequence[Summary],
    groups: Sequence[str],
    groups_of: Callable[[Summary], dict[str, KindSummary]],
) -> Table:
    def cell(summary: Summary, group: str) -> str:
        found = groups_of(summary).get(group)
        return "-" if found is None else f"{percent(found.accuracy)} / {percent(found.call_rate, 0)}"

    if len(groups) > MAX_KINDS:
        rows = [[group, *(cell(summary, group) for summary in shown)] for group in groups]
        return Table(title, ["kind", *(summary.label for summary in shown)], rows)
    rows = [[summary.label, *(cell(summary, group) for group in groups)] for summary in shown]
    return Table(title, ["method", *groups], rows)


def _need_table(benchmark: str, shown: Sequence[Summary]) -> Table | None:
    groups = [need for need in NEEDS if any(need in summary.by_need for summary in shown)]
    if not groups:
        return None
    counts = {need: max(s.by_need[need].answers for s in shown if need in s.by_need) for need in groups}
    title = f"{benchmark}, by difficulty: accuracy % / answers that called % ({_listed(counts)} answers)"
    return _group_table(title, shown, groups, lambda s: s.by_need)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _cost_table(benchmark: str, shown: Sequence[Summary]) -> Table | None:
    costed = [(summary.label, summary.costs) for summary in shown if summary.costs is not None]
    if not costed:
        return None
    rows = [
        [label]
        + [number(value) for usage in (c.teacher, c.student) for value in (usage.written, usage.read, usage.computed)]
        + [number(value) for value in (c.active_parameters, c.flops, c.flops_uncached, c.money)]
        for label, c in costed
    ]
    columns = ["method", "teacher wrote", "teacher read", "read anew", "student wrote", "student read", "read anew"]
    columns += ["active parameters", "FLOPs", "FLOPs without cache", costed[0][1].currency]
    known = [i for i in range(len(columns)) if i < 7 or any(row[i] != "-" for row in rows)]
    rows = [[row[i] for i in known] for row in rows]
    return Table(f"{benchmark}, costs of an answer in tokens", [columns[i] for i in known], rows)


def _comparison_table(benchmark: str, compared: Iterable[tuple[str, str, Comparison]]) -> Table:
    def cell(c: Comparison) -> list[str]:
        split = "-" if c.first_only is None else f"{c.first_only} / {c.second_only}"
        p = "-" if c.p_mcnemar is None else _p(c.p_mcnemar)
        return [str(c.problems), f"{100 * c.difference:+.1f}", interval(c.interval), _p(c.p_bootstrap), split, p]

    compared = list(compared)
    rows = [[f"{first} - {second}", *cell(c)] for first, second, c in compared]
    columns = ["methods", "problems", "difference", "95 % interval", "p", "only one right", "p (McNemar)"]
    return Table(f"{benchmark}, accuracy against {compared[0][0]} on the same problems, in points", columns, rows)


def _judge_table(benchmark: str, judged: Sequence[Judged]) -> Table:
    rows = [
        [line.label, percent(line.accuracy), percent(line.judged_accuracy)]
        + [f"{line.wrong_overruled} of {line.wrong_read}", f"{line.right_overruled} of {line.right_read}"]
        + [str(line.silent), percent(line.agreement), "-" if line.kappa is None else f"{line.kappa:.2f}"]
        for line in judged
    ]
    columns = ["method", "rules: acc. %", "judge: acc. %", "wrong, judged right", "right, judged wrong", "no verdict"]
    judges = ", ".join(dict.fromkeys(line.judge for line in judged))
    return Table(f"{benchmark}, the rules beside a judge ({judges})", [*columns, "agreement %", "kappa"], rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def notes(summaries: Sequence[Summary]) -> list[str]:
    """What the columns mean, one sentence each."""
    return [*NOTES, *([FAILURE_NOTE] if any(summary.failures for summary in summaries) else [])]
