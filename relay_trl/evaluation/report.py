"""Results as people read them: tables for the terminal, Markdown and JSON, and the folder with plots and page.

Owns columns and wording. The numbers are `statistics.py`'s, the pictures `plots.py`'s, the page `pages.py`'s.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from .answers import Run
from .pages import render_page
from .plots import inline_svg, plot_shares, plot_training, save_figure
from .statistics import Summary, summarize

NOTES = (
    "Accuracy: mean over problems, with a bootstrap 95 % interval over problems.",
    "Teacher share (rho): teacher tokens / completion tokens without commands, averaged over answers. Teacher tokens: "
    "teacher tokens / all tokens, commands included, over the run (the paper's figure). Called: share of answers with a "
    "well-formed command, answered or not; calls each: such commands per answer.",
    "Gap rec.: gap recovered, the share of the way from the student's to the teacher's accuracy; a random router of "
    "equal accuracy sends this share of the problems to the teacher. Cost red.: cost reduction, 1 - teacher tokens / "
    "that share.",
)
FAILURE_NOTE = (
    "Failed: answers that a failing teacher cut off. They are neither right nor wrong and count in no other column."
)


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        title (`str`).
        columns (`list[str]`): the first one holds names, the others numbers.
        rows (`list[list[str]]`).
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign, and `-` where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def results_tables(summaries: Sequence[Summary]) -> list[Table]:
    """One table per benchmark with a row per method, and one by kind where its problems have kinds."""
    tables = []
    for benchmark in dict.fromkeys(summary.benchmark for summary in summaries):
        shown = [summary for summary in summaries if summary.benchmark == benchmark]
        tables.append(_main_table(benchmark, shown))
        kinds = sorted({kind for summary in shown for kind in summary.by_kind})
        if kinds:
            tables.append(_kind_table(benchmark, shown, kinds))
    return tables


def _main_table(benchmark: str, shown: Sequence[Summary]) -> Table:
    columns = {
        "method": lambda s: s.label,
        "acc. %": lambda s: percent(s.accuracy),
        "95\u00a0% interval": lambda s: "-" if s.low is None else f"{100 * s.low:.1f}-{100 * s.high:.1f}",
        "teacher share %": lambda s: percent(s.teacher_share if s.answers else None),
        "teacher tokens %": lambda s: percent(s.token_share if s.answers else None),
        "called %": lambda s: percent(s.call_rate if s.answers else None, 0),
        "calls each": lambda s: f"{s.calls_per_answer:.2f}" if s.answers else "-",
        "gap rec. %": lambda s: percent(s.gap_recovered),
        "cost red. %": lambda s: percent(s.cost_reduction),
    }
    if any(summary.failures for summary in shown):
        columns["failed"] = lambda s: str(s.failures)
    problems = max(summary.problems for summary in shown)
    rows = [[show(summary) for show in columns.values()] for summary in shown]
    return Table(f"{benchmark}, {problems} problems", list(columns), rows)


def _kind_table(benchmark: str, shown: Sequence[Summary], kinds: Sequence[str]) -> Table:
    def cell(summary: Summary, kind: str) -> str:
        found = summary.by_kind.get(kind)
        return "-" if found is None else f"{percent(found.accuracy)} / {percent(found.call_rate, 0)}"

    rows = [[summary.label, *(cell(summary, kind) for kind in kinds)] for summary in shown]
    title = f"{benchmark}, by kind of problem: accuracy % / answers that called %"
    return Table(title, ["method", *kinds], rows)


def notes(summaries: Sequence[Summary]) -> list[str]:
    """What the columns mean, one sentence each."""
    return [*NOTES, *([FAILURE_NOTE] if any(summary.failures for summary in summaries) else [])]


def print_results(summaries: Sequence[Summary], console: Console | None = None) -> None:
    """Prints the tables in the terminal."""
    console = console or Console()
    for table in results_tables(summaries):
        rich_table = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=0)
        for i, column in enumerate(table.columns):
            # A word a line: the whole table has to fit into eighty columns. Only names may be folded.
            heading = Text(column.replace(" ", "\n"))
            rich_table.add_column(
                heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold", vertical="bottom"
            )
        for row in table.rows:
            # As `Text`: a label may hold what rich would read as markup.
            rich_table.add_row(*map(Text, row))
        console.print(Text(f"\n{table.title}", style="bold"))
        # A terminal too narrow for the numbers breaks lines rather than cut them off.
        width = max(console.width, Measurement.get(console, console.options, rich_table).minimum)
        console.print(rich_table, width=width, crop=False, no_wrap=True, overflow="ignore")
    console.print()
    for summary in summaries:
        if summary.failures:
            console.print(
                Text(
                    f"{summary.label}: the teacher failed in {summary.failures} rollouts; run again to ask them again."
                )
            )


def to_markdown(summaries: Sequence[Summary]) -> str:
    """The tables and the notes as Markdown."""
    parts = []
    for table in results_tables(summaries):
        rule = ["---", *["---:"] * (len(table.columns) - 1)]
        lines = [_markdown_row(table.columns), _markdown_row(rule), *map(_markdown_row, table.rows)]
        parts.append(f"**{table.title}**\n\n" + "\n".join(lines))
    parts.append("\n".join(f"- {note}" for note in notes(summaries)))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def to_json(summaries: Sequence[Summary], runs: Sequence[Run] = ()) -> str:
    """The summaries, and the settings of the runs that they come from, as JSON."""
    settings = {run.name: run.settings for run in runs}
    return json.dumps({"results": [asdict(summary) for summary in summaries], "settings": settings}, indent=2) + "\n"


def write_report(
    runs: Sequence[Run],
    output_dir: str | Path,
    logs: Mapping[str, Sequence[dict]] | None = None,
    title: str = "Relay evaluation",
    max_answers: int = 1500,
    seed: int = 0,
) -> list[Summary]:
    """Writes `results.md`, `results.json`, `shares.png|svg`, `training.png|svg` and the page `rollouts.html`.

    Args:
        runs (`Sequence[Run]`): as read by [`read_run`]; the untrained student's first, see [`summarize`].
        output_dir (`str` or `Path`): made if it does not exist.
        logs (`Mapping[str, Sequence[dict]]`, *optional*): log histories by name, see [`plot_training`].
        title (`str`): of the page.
        max_answers (`int`, defaults to `1500`): on the page; whole problems, evenly spaced, are left out beyond it.
        seed (`int`, defaults to `0`): of the bootstrap.

    Returns:
        `list[Summary]`: what the tables show, for [`print_results`].
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarize(runs, seed)
    figures = {
        "training": (plot_training(logs or {}), "Accuracy and teacher share over the training steps"),
        "shares": (plot_shares(summaries), "Accuracy against the teacher's share of all tokens"),
    }
    drawings = []
    for name, (figure, caption) in figures.items():
        if figure is not None:
            save_figure(figure, folder / name)
            drawings.append((inline_svg(figure, caption), caption))
    (folder / "results.md").write_text(to_markdown(summaries), encoding="utf-8")
    (folder / "results.json").write_text(to_json(summaries, runs), encoding="utf-8")
    page = render_page(runs, results_tables(summaries), notes(summaries), drawings, summaries, title, max_answers)
    (folder / "rollouts.html").write_text(page, encoding="utf-8")
    return summaries
