"""Plots of a result: accuracy against the teacher's share, with curves, the random router and the Pareto front.

Owns colours, style and how a figure is saved. The numbers come from `summaries.py`.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..methods import FAMILIES, family_of, readable
from .summaries import Summary

COLORS = ("#2f7fe0", "#e0722f", "#2f9e57", "#a066d3", "#c9a227", "#d6487e", "#23a3a8", "#8c7a6b")
"""Colours of runs or methods, readable on white and on black."""

_INK = "#3b4048"  # text and axes; a page replaces it by its own text colour
_STRIP = 0.3  # shares below this get a panel of their own

# Keeps text as text, and gives the same file for the same figure.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "relay_trl",
    "text.parse_math": False,  # a label may contain a dollar sign
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a8f98",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def plot_shares(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy with its 95 % interval against the teacher's share of all tokens, one panel per benchmark.

    The line of the random router goes from the student to the teacher; above it, a method is worth its teacher. Methods of one
    family (`call_bias_b` with the relay itself, `citer_t`, ...) are joined to a curve. The Pareto front joins the methods that
    no other one beats in both. If all but the teacher lie in a narrow strip, a second panel shows it.

    Returns:
        `Figure` or `None`: `None` without any answer.
    """
    known = [summary for summary in summaries if summary.accuracy is not None]
    benchmarks = list(dict.fromkeys(summary.benchmark for summary in known))
    if not known:
        return None
    names = list(dict.fromkeys(_curve_of(summary) or summary.label for summary in known))
    colors = zip(names, colors_of(len(names)), strict=True)
    styles = {name: (color, "os^D"[i // len(COLORS) % 4]) for i, (name, color) in enumerate(colors)}
    panels = []
    for benchmark in benchmarks:
        shown = [summary for summary in known if summary.benchmark == benchmark]
        panels.append((benchmark, shown, 1.0))
        shares = [s.token_share for s in shown if s.token_share < 1 and not s.method.startswith("random_")]
        if shares and 0 < max(shares) < _STRIP:
            panels.append((f"{benchmark}, the left strip", shown, 1.2 * max(shares)))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 3.6 * len(panels) + 0.9), layout="constrained")
        for row, (title, shown, right) in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, row + 1)
            _draw_router(axes, shown)
            _draw_front(axes, shown)
            for name in dict.fromkeys(_curve_of(s) or s.label for s in shown):
                _draw_method(axes, name, _points_of(name, shown), *styles[name])
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("teacher's share of all tokens")
            axes.set_ylabel("accuracy")
            axes.set_xlim(-0.03 * right, 1.03 * right)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if right > 0.1 else 1))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        # One legend for all panels, by label, because a method can be in several.
        pairs = [axes.get_legend_handles_labels() for axes in figure.axes]
        entries = {label: handle for handles, labels in pairs for handle, label in zip(handles, labels, strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _curve_of(summary: Summary) -> str | None:
    """The name of a method's curve; `None` if it is on no curve."""
    found = family_of(summary.method)
    if found is None:
        return None
    prefix = summary.label.removesuffix(readable(summary.method))  # "run: " if labels have it
    return prefix + FAMILIES[found[0]].readable.format(FAMILIES[found[0]].symbol)


def _points_of(name: str, shown: Sequence[Summary]) -> list[Summary]:
    """The methods on a curve, ordered by their numbers. A curve of `call_bias` includes the relay itself, with bias 0."""
    points = [s for s in shown if (_curve_of(s) or s.label) == name]
    if _curve_of(points[0]) and (family_of(points[0].method) or "")[0] == "call_bias":
        points += [s for s in shown if s.method == "relay" and s.run == points[0].run]
    return sorted(points, key=lambda s: (family_of(s.method) or ("", 0.0))[1])


def _draw_router(axes, shown: Sequence[Summary]) -> None:
    ends = {summary.method: summary for summary in reversed(shown)}
    if {"student", "teacher"} <= set(ends):
        accuracies = [ends[name].accuracy or 0.0 for name in ("student", "teacher")]
        axes.plot([0.0, 1.0], accuracies, "--", color=_INK, linewidth=1, zorder=1, label="random router")


def pareto_front(summaries: Sequence[Summary]) -> list[Summary]:
    """The methods that no other one beats in accuracy at the same or a smaller share of teacher tokens, ordered by share."""
    front: list[Summary] = []
    for summary in sorted(summaries, key=lambda s: (s.token_share, -(s.accuracy or 0.0))):
        if not front or (summary.accuracy or 0.0) > (front[-1].accuracy or 0.0):
            front.append(summary)
    return front


def _draw_front(axes, shown: Sequence[Summary]) -> None:
    front = pareto_front(shown)
    if len(front) > 1:
        xs, ys = [s.token_share for s in front], [s.accuracy or 0.0 for s in front]
        axes.step(xs, ys, where="post", color=_INK, alpha=0.35, linewidth=4, zorder=0, label="Pareto front")


def _draw_method(axes, name: str, points: Sequence[Summary], color: str, marker: str) -> None:
    xs, ys = [s.token_share for s in points], np.array([s.accuracy or 0.0 for s in points])
    bounds = ([s.low for s in points], [s.high for s in points])
    low, high = (np.array([y if v is None else v for v, y in zip(values, ys, strict=True)]) for values in bounds)
    axes.errorbar(
        xs,
        ys,
        yerr=np.maximum([ys - low, high - ys], 0),
        fmt=f"{marker}-" if len(points) > 1 else marker,
        color=color,
        markersize=5 if len(points) > 1 else 7,
        zorder=2 if len(points) > 1 else 3,  # the relay lies on its own curve
        linewidth=1.2,
        capsize=3,
        label=name,
    )


def colors_of(count: int) -> list[str]:
    """`count` colours; they repeat after eight."""
    return [COLORS[i % len(COLORS)] for i in range(count)]


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Saves a figure as `<stem>.png` (on white) and `<stem>.svg` and returns the two paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with rc_context(STYLE):
        figure.savefig(paths[0], dpi=160, facecolor="white")
        figure.set_layout_engine("none")  # the layout is computed once, for both files
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def inline_svg(path: str | Path, title: str) -> str:
    """A saved figure as an `<svg>` element for a page: no outside references, text and axes in the page's own colour.

    Args:
        path (`str` or `Path`): the `.svg` file of [`save_figure`].
        title (`str`): for screen readers.
    """
    svg = Path(path).read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Its size in points would be too wide for a phone; the viewBox keeps the shape.
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r"<svg\b[^>]*>", lambda tag: f"{tag[0]}<title>{escape(title)}</title>", svg, count=1)
    svg = _with_own_ids(svg, Path(path).stem)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)


def _with_own_ids(svg: str, prefix: str) -> str:
    """The SVG with a prefix on its ids, because several figures on one page must not share ids."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
