"""Plots of calls: tokens requested and delivered, where in an answer calls are, and for which problems.

Owns these three figures. Colours and style are in `plots.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from ...trace import Outcome
from ..answer_files import Answer, Run
from .plots import STYLE, colors_of
from .results import NEEDS
from .summaries import Summary

_BINS = 20
_MOST_METHODS = 6  # with more methods the figure is not readable


def called_answers(runs: Sequence[Run], summaries: Sequence[Summary]) -> dict[str, list[Answer]]:
    """The answers of methods whose student made calls, by label: `relay` first, then in the order of the table."""
    labels = {(s.run, s.benchmark, s.method): s.label for s in summaries}
    found: dict[str, list[Answer]] = {}
    for run in runs:
        for answer in run.answers:
            # Teacher tokens that were chosen at random or by a router are not calls of the student.
            if answer.trace.calls and not answer.method.startswith(("random_tokens", "citer")):
                found.setdefault(labels[run.name, answer.benchmark, answer.method], []).append(answer)
    order = sorted(found, key=lambda label: label != "relay")
    return {label: found[label] for label in order[:_MOST_METHODS]}


def plot_lengths(answers: Mapping[str, Sequence[Answer]]) -> Figure | None:
    """Requested and delivered tokens of answered calls; larger dots stand for more calls.

    Returns:
        `Figure` or `None`: `None` without an answered call.
    """
    counts = {
        label: Counter(
            (call.requested, call.delivered)
            for answer in own
            for call in answer.trace.calls
            if call.outcome is Outcome.ANSWERED and call.delivered > 0
        )
        for label, own in answers.items()
    }
    counts = {label: counter for label, counter in counts.items() if counter}
    if not counts:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 4.6), layout="constrained")
        axes = figure.add_subplot()
        highest = max(max(pair) for counter in counts.values() for pair in counter)
        axes.plot(
            [1, highest], [1, highest], "--", color=STYLE["text.color"], linewidth=1, label="all that was asked for"
        )
        for (label, counter), color in zip(counts.items(), colors_of(len(counts)), strict=True):
            asked, came = np.array(list(counter)).T
            size = 14 + 220 * np.array(list(counter.values())) / max(counter.values())
            axes.scatter(asked, came, s=size, color=color, alpha=0.55, linewidths=0, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):  # the default writes powers as TeX
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("tokens asked for")
        axes.set_ylabel("tokens delivered")
        axes.legend(loc="upper left", fontsize=8, markerscale=0.7)
    return figure


def plot_places(answers: Mapping[str, Sequence[Answer]]) -> Figure | None:
    """Where in an answer calls are: the share of a method's calls in each twentieth of the completion.

    Returns:
        `Figure` or `None`: `None` without a call.
    """
    if not answers:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        axes = figure.add_subplot()
        edges = np.linspace(0, 1, _BINS + 1)
        for (label, own), color in zip(answers.items(), colors_of(len(answers)), strict=True):
            places = [min(1.0, c.position / max(1, a.trace.num_tokens)) for a in own for c in a.trace.calls]
            shares = np.histogram(places, edges)[0] / len(places)
            axes.stairs(shares, edges, color=color, linewidth=1.8, label=f"{label} ({len(places)} calls)")
        axes.set_xlabel("place in the answer")
        axes.set_ylabel("share of the calls")
        axes.set_xlim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(fontsize=8)
    return figure


def plot_difficulty(summaries: Sequence[Summary]) -> Figure | None:
    """Share of answers that call, by which model solves the problem alone, one panel per benchmark.

    Returns:
        `Figure` or `None`: `None` without a method with calls, the student alone and the teacher alone.
    """
    shown = [s for s in summaries if s.by_need and s.call_rate > 0]
    shown = [s for s in shown if not s.method.startswith(("random_tokens", "citer"))]
    benchmarks = list(dict.fromkeys(s.benchmark for s in shown))
    if not shown:
        return None
    labels = list(dict.fromkeys(s.label for s in shown))[:_MOST_METHODS]
    colors = dict(zip(labels, colors_of(len(labels)), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 2.6 * len(benchmarks) + 0.6), layout="constrained")
        for row, benchmark in enumerate(benchmarks):
            axes = figure.add_subplot(len(benchmarks), 1, row + 1)
            own = [s for s in shown if s.benchmark == benchmark and s.label in colors]
            width = 0.8 / max(1, len(own))
            for k, summary in enumerate(own):
                rates = [summary.by_need[need].call_rate if need in summary.by_need else np.nan for need in NEEDS]
                places = np.arange(len(NEEDS)) + (k - (len(own) - 1) / 2) * width
                axes.bar(places, rates, width * 0.92, color=colors[summary.label], label=summary.label)
            axes.set_xticks(range(len(NEEDS)), NEEDS)
            axes.set_ylim(0, 1)
            axes.set_ylabel("answers that called")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_title(benchmark, loc="left", fontsize=10)
            axes.grid(visible=False, axis="x")
        handles = {
            label: handle for a in figure.axes for handle, label in zip(*a.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure
