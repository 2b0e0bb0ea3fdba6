"""Results for a model card, from evaluations and a training's log: rows, pictures and notes.

Owns which figures are shown. The numbers come from `summaries.py`; `hub/model_card.py` writes the card.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...costs import NO_PRICES, ModelCosts, PriceTable
from ...data.registry import SOURCES
from ..answer_files import read_run
from .plots import plot_shares, save_figure
from .results import summarize
from .summaries import Summary
from .tables import notes, number
from .training_plots import plot_training, read_log


def card_contents(model: str, evaluations: Sequence[str], folder: str | Path) -> dict[str, Any]:
    """Arguments of [`~relay_trl.hub.model_card.write_model_card`] for a run; the pictures are drawn into `folder`.

    Args:
        model (`str`): the training's output folder; its log is drawn if it has one.
        evaluations (`Sequence[str]`): folders that `recipes/evaluate.py` wrote, the untrained student's first.
        folder (`str` or `Path`): the card's folder.

    Raises:
        FileNotFoundError, ValueError: an evaluation cannot be read, or two have different prices.
    """
    runs = [read_run(Path(path), Path(path).resolve().name) for path in evaluations]
    summaries = summarize(runs, prices=given_prices(evaluations))
    try:
        log = read_log(model)
    except FileNotFoundError:
        log = []
    figures = {
        "training": (plot_training({"this model": log}), "Accuracy and teacher share over the training steps."),
        "shares": (
            plot_shares(summaries),
            "Accuracy against the teacher's share of all tokens; the line is a random router.",
        ),
    }
    pictures = {}
    for name, (figure, caption) in figures.items():
        if figure is not None:
            path, other = save_figure(figure, Path(folder) / "images" / name)
            other.unlink()  # pages contain the SVG; a card needs a file, and PNG is shown everywhere
            pictures[f"images/{path.name}"] = caption
    return {
        "results": [card_row(summary) for summary in summaries],
        "pictures": pictures,
        "notes": notes(summaries)[:1] + _headlines(summaries) if summaries else [],
        "log_history": log,
    }


def given_prices(evaluations: Sequence[str]) -> PriceTable:
    """The price table of evaluations, from their `results.json`; an empty one if they have none.

    Raises:
        ValueError: two of them have different price tables.
    """
    found: dict[str, PriceTable] = {}
    for folder in evaluations:
        path = Path(folder) / "results.json"
        given = json.loads(path.read_text(encoding="utf-8")).get("costs") if path.is_file() else None
        if given is not None:
            models = (ModelCosts(**given[name]) for name in ("student", "teacher"))
            found[folder] = PriceTable(*models, currency=given["currency"])
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{' and '.join(found)} were given different prices (costs); run recipes/evaluate.py again with one file for all."
        )
    return next(iter(found.values()), NO_PRICES)


def card_row(summary: Summary) -> dict[str, Any]:
    """A row of the card's table of results."""
    source = SOURCES.get(summary.benchmark)
    costs = summary.costs
    row = {
        "benchmark": f"{summary.benchmark}, {summary.problems} problems",
        "dataset": source.hub_id if source else None,
        "method": summary.method,
        "label": summary.label,
        "accuracy": summary.accuracy,
        "interval": None if summary.low is None else [summary.low, summary.high],
        "teacher_share": summary.teacher_share,
        "call_rate": summary.call_rate,
    }
    if costs is not None and costs.money is not None:
        row["cost"] = f"{number(1000 * costs.money)} {costs.currency}"
    return row


def _headlines(summaries: Sequence[Summary]) -> list[str]:
    said = []
    for summary in summaries:
        if summary.method == "relay" and summary.gap_recovered is not None:
            cost = (
                ""
                if summary.cost_reduction is None
                else (
                    f", with {100 * summary.cost_reduction:.1f} % fewer teacher tokens than a random router of equal accuracy"
                )
            )
            said.append(
                f"{summary.benchmark}: {summary.label} recovers {100 * summary.gap_recovered:.1f} % of the gap from the "
                f"student to the teacher{cost}."
            )
    return said
