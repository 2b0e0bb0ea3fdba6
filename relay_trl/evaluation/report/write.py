"""Writes a result: tables for the terminal, Markdown, LaTeX and JSON, and the folder with plots and pages.

Owns formats and files. The contents come from `tables.py`, `plots.py` and `pages.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pandas import DataFrame
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from ...costs import NO_PRICES, PriceTable
from ...pages.render import markdown_table
from ..answer_files import Run
from .call_plots import called_answers, plot_difficulty, plot_lengths, plot_places
from .pages import write_pages
from .plots import inline_svg, plot_shares, save_figure
from .results import Results, evaluate_runs
from .summaries import Summary
from .tables import Table, all_tables, headline_table, notes, papers_table, results_tables
from .training_plots import plot_training
from .verdict import sentences


def print_results(summaries: Sequence[Summary], console: Console | None = None) -> None:
    """Prints the tables in the terminal."""
    console = console or Console()
    for table in results_tables(summaries):
        rich_table = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=0)
        for i, column in enumerate(table.columns):
            # One word per line, so that the table fits into eighty columns. Only names may be folded.
            heading = Text(column.replace(" ", "\n"))
            rich_table.add_column(
                heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold", vertical="bottom"
            )
        for row in table.rows:
            # As `Text`, because rich could read a label as markup.
            rich_table.add_row(*map(Text, row))
        console.print(Text(f"\n{table.title}", style="bold"))
        # On a very narrow terminal lines are broken, not cut.
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


def to_markdown(results: Results) -> str:
    """Verdict, tables and notes as Markdown."""
    parts = []
    verdicts = sentences(results.summaries)
    if verdicts:
        parts.append("\n".join(f"- {' '.join(sentence.split())}" for sentence in verdicts))
    parts += [f"**{table.title}**\n\n{markdown_table(table.columns, table.rows)}" for table in every_table(results)]
    parts.append("\n".join(f"- {note}" for note in notes(results.summaries)))
    return "\n\n".join(parts) + "\n"


def every_table(results: Results) -> list[Table]:
    """All tables; the intervals of gap and cost follow the main ones."""
    headlines = headline_table(results.summaries)
    return [*all_tables(results), *([headlines] if headlines else [])]


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {"<": r"\textless{}", ">": r"\textgreater{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(results: Results) -> str:
    """The paper's table and the table of each benchmark, for a document with `booktabs`."""
    summaries = results.summaries
    tables = [papers_table(summaries), *results_tables(summaries)]
    return "\n\n".join(_latex_table(table) for table in tables) + "\n"


def _latex_table(table: Table) -> str:
    rows = [[_latex(cell) for cell in row] for row in table.rows]
    frame = DataFrame(rows, columns=[_latex(column) for column in table.columns])
    return frame.style.hide().to_latex(
        caption=_latex(table.title),
        column_format="l" + "r" * (len(table.columns) - 1),
        hrules=True,
        position_float="centering",
    )


def to_json(results: Results, runs: Sequence[Run] = (), costs: PriceTable = NO_PRICES) -> str:
    """Summaries, comparisons, the runs' settings, and parameters and prices, as JSON."""
    compared = [
        {"benchmark": benchmark, "first": first, "second": second, **asdict(comparison)}
        for benchmark, first, second, comparison in results.comparisons
    ]
    data = {
        "results": [_finite(asdict(summary)) for summary in results.summaries],
        "comparisons": compared,
        "judged": [asdict(line) for line in results.judged],
        "settings": {run.name: run.settings for run in runs},
        "costs": None if costs == NO_PRICES else asdict(costs),
    }
    return json.dumps(data, indent=2) + "\n"


def _finite(value):
    """`value` for JSON, which has no infinity: a bound of minus infinity becomes null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if value == float("-inf") else value


def write_report(
    runs: Sequence[Run],
    output_dir: str | Path,
    logs: Mapping[str, Sequence[dict]] | None = None,
    title: str = "Relay evaluation",
    max_answers: int = 1500,
    seed: int = 0,
    costs: PriceTable = NO_PRICES,
    published: Sequence[Summary] = (),
) -> list[Summary]:
    """Writes `results.md`, `results.tex`, `results.json`, the plots as PNG and SVG, `report.html` and the pages of
    rollouts.

    Args:
        runs (`Sequence[Run]`): as read by [`read_run`]; the untrained student's first, see [`evaluate_runs`].
        output_dir (`str` or `Path`): made if it does not exist.
        logs (`Mapping[str, Sequence[dict]]`, *optional*): log histories by name, see [`plot_training`].
        title (`str`): of the page.
        max_answers (`int`, defaults to `1500`): most answers on the pages; problems are left out evenly.
        seed (`int`, defaults to `0`): of the bootstrap.
        costs ([`PriceTable`]): parameters and prices.
        published (`Sequence[Summary]`): figures without answers, see [`~relay_trl.evaluation.report.results.read_published`].

    Returns:
        `list[Summary]`: the rows of the tables, for [`print_results`].
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    found = evaluate_runs(runs, seed, costs)
    results = replace(found, summaries=[*published, *found.summaries])
    called = called_answers(runs, found.summaries)
    figures = {
        "shares": (plot_shares(results.summaries), "Accuracy against the teacher's share of all tokens"),
        "difficulty": (plot_difficulty(results.summaries), "Answers that called, by who solves the problem alone"),
        "lengths": (plot_lengths(called), "Tokens asked for and tokens delivered, by call"),
        "places": (plot_places(called), "Where in an answer calls happen"),
        "training": (plot_training(logs or {}), "Accuracy and teacher share over the training steps"),
    }
    drawings = []
    for name, (figure, caption) in figures.items():
        if figure is not None:
            *_, svg = save_figure(figure, folder / name)
            drawings.append((inline_svg(svg, caption), caption))
    (folder / "results.md").write_text(to_markdown(results), encoding="utf-8")
    (folder / "results.tex").write_text(to_latex(results), encoding="utf-8")
    (folder / "results.json").write_text(to_json(results, runs, costs), encoding="utf-8")
    write_pages(folder, runs, results, every_table(results), drawings, title, max_answers)
    return results.summaries
