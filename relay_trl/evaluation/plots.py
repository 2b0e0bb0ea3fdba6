"""Pictures of a result: how accuracy and the teacher's share went over training, and accuracy against that share.

Owns curves, colours and how a figure is saved. The numbers come from the trainer's log and from `statistics.py`.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .statistics import Summary

COLORS = ("#2f7fe0", "#e0722f", "#2f9e57", "#a066d3", "#c9a227", "#d6487e", "#23a3a8", "#8c7a6b")
"""Of one run or method each; readable on white and on black."""

_INK = "#3b4048"  # text and axes; a page replaces it by its own text colour
_SMOOTHING = 0.06  # of the steps, in the running mean

# Text stays text, and the same figure gives the same file.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "relay_trl",
    "text.parse_math": False,  # a label may hold a dollar sign
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


def read_log(path: str | Path) -> list[dict]:
    """The `log_history` of a training.

    Args:
        path (`str` or `Path`): a `trainer_state.json`, or a trainer's output folder; there its own or, without one, that
            of the latest checkpoint is read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file has no `log_history`.
    """
    path = Path(path)
    if path.is_dir():
        checkpoints = sorted(path.glob("checkpoint-*/trainer_state.json"), key=_step_of)
        found = [file for file in (*checkpoints, path / "trainer_state.json") if file.exists()]
        if not found:
            raise FileNotFoundError(
                f"{path} has no trainer_state.json, nor has a checkpoint in it; name another folder."
            )
        path = found[-1]
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or "log_history" not in state:
        raise ValueError(f"{path} has no log_history; give the trainer_state.json that a trainer wrote.")
    return state["log_history"]


def find_logs(folders: Sequence[str] | None, student: str) -> dict[str, list[dict]]:
    """The log histories of `folders` by their last names; without any, the student's own, if it has one."""
    if folders is None:
        folders = [student] if (Path(student) / "trainer_state.json").is_file() else []
    return {Path(folder).name: read_log(folder) for folder in folders}


def _step_of(path: Path) -> int:
    digits = path.parent.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def plot_training(logs: Mapping[str, Sequence[dict]]) -> Figure | None:
    """Accuracy, and below it rho and the call rate, over the training steps.

    Args:
        logs (`Mapping[str, Sequence[dict]]`): a log history ([`read_log`]) per run, by what the legend calls it. Points on
            the curves are evaluations on the validation rows.

    Returns:
        `Figure` or `None`: `None` where no log has `relay/` metrics.
    """
    if not any(_series(log, "relay/accuracy")[0].size for log in logs.values()):
        return None
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.0, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for (name, log), color in zip(logs.items(), _colors(len(logs)), strict=True):
            _draw(upper, log, "relay/accuracy", color, name)
            _draw(lower, log, "relay/teacher_share", color, f"{name}: teacher share (rho)")
            _draw(lower, log, "relay/call_rate", color, f"{name}: call rate", linestyle=(0, (4, 2)))
        upper.set_ylabel("accuracy")
        lower.set_ylabel("share")
        lower.set_xlabel("training step")
        for axes in (upper, lower):
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.legend(loc="best", fontsize=8)
    return figure


def _draw(axes, log: Sequence[dict], key: str, color: str, label: str, linestyle: Any = "-") -> None:
    steps, values = _series(log, key)
    if steps.size == 0:
        return
    width = max(1, round(len(values) * _SMOOTHING))
    if width > 1:
        axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
    axes.plot(steps, _running_mean(values, width), color=color, linewidth=1.8, linestyle=linestyle, label=label)
    evaluated = _series(log, f"eval_{key}")
    if evaluated[0].size:
        axes.plot(*evaluated, "o", color=color, markersize=4)


def _series(log: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["step"], entry[key]) for entry in log if "step" in entry and entry.get(key) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the `width` values around each; fewer at the ends."""
    total = np.concatenate([[0.0], np.nancumsum(values)])
    first = np.maximum(np.arange(len(values)) - (width - 1) // 2, 0)
    last = np.minimum(np.arange(len(values)) + width // 2 + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def plot_shares(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy with its 95 % interval against the teacher's share of all tokens, one panel per benchmark, with the line
    of the random router from the student to the teacher: a method is worth its teacher above that line.

    Returns:
        `Figure` or `None`: `None` without any answer.
    """
    known = [summary for summary in summaries if summary.accuracy is not None]
    benchmarks = list(dict.fromkeys(summary.benchmark for summary in known))
    if not known:
        return None
    labels = list(dict.fromkeys(summary.label for summary in known))
    colors = dict(zip(labels, _colors(len(labels)), strict=True))
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.0, 3.6 * len(benchmarks) + 0.9), layout="constrained")
        for row, benchmark in enumerate(benchmarks):
            axes = figure.add_subplot(len(benchmarks), 1, row + 1)
            shown = [summary for summary in known if summary.benchmark == benchmark]
            firsts = {summary.method: summary.accuracy or 0.0 for summary in reversed(shown)}
            if {"student", "teacher"} <= set(firsts):
                ends = [firsts["student"], firsts["teacher"]]
                axes.plot([0.0, 1.0], ends, "--", color=_INK, linewidth=1, zorder=1, label="random router")
            for summary in shown:
                accuracy, low, high = (value or 0.0 for value in (summary.accuracy, summary.low, summary.high))
                axes.errorbar(
                    [summary.token_share],
                    [accuracy],
                    yerr=np.maximum([[accuracy - low], [high - accuracy]], 0),
                    fmt="o",
                    color=colors[summary.label],
                    markersize=7,
                    capsize=3,
                    label=summary.label,
                )
            axes.set_title(benchmark, loc="left", fontsize=10)
            axes.set_xlabel("teacher's share of all tokens")
            axes.set_ylabel("accuracy")
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        # One legend for all panels; by label, as a method stands in several of them.
        pairs = [axes.get_legend_handles_labels() for axes in figure.axes]
        entries = {label: handle for handles, labels in pairs for handle, label in zip(handles, labels, strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Saves a figure as `<stem>.png` (on white) and `<stem>.svg` and returns the two paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with rc_context(_STYLE):
        figure.savefig(paths[0], dpi=160, facecolor="white")
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def inline_svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element for a page: no outside references, text and axes in the page's own colour.

    Args:
        title (`str`): what a screen reader says.
    """
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Its size in points would overflow a phone; the viewBox keeps the shape.
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1 role="img"', svg, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
