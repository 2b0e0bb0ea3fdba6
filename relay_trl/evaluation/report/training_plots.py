"""Curves of a training: accuracy, the teacher's share and the call rate over the steps, from the trainer's log.

Owns reading logs and this figure. Colours and style are in `plots.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .plots import STYLE, colors_of

_SMOOTHING = 0.06  # share of the steps in the running mean


def read_log(path: str | Path) -> list[dict]:
    """The `log_history` of a training.

    Args:
        path (`str` or `Path`): a `trainer_state.json`, or a trainer's output folder. If the folder has none, that of the
            latest checkpoint is read.

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
    """The log histories of `folders` by the folders' names; without folders, that of the student, if it has one."""
    if folders is None:
        folders = [student] if (Path(student) / "trainer_state.json").is_file() else []
    return {Path(folder).name: read_log(folder) for folder in folders}


def _step_of(path: Path) -> int:
    digits = path.parent.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def plot_training(logs: Mapping[str, Sequence[dict]]) -> Figure | None:
    """Accuracy, and below it rho and the call rate, over the training steps.

    Args:
        logs (`Mapping[str, Sequence[dict]]`): a log history ([`read_log`]) for each name in the legend. Points on the curves
            are evaluations on the validation rows.

    Returns:
        `Figure` or `None`: `None` if no log has `relay/` metrics.
    """
    if not any(_series(log, "relay/accuracy")[0].size for log in logs.values()):
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for (name, log), color in zip(logs.items(), colors_of(len(logs)), strict=True):
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
    """The mean of `width` values around each value; fewer at the ends."""
    total = np.concatenate([[0.0], np.nancumsum(values)])
    first = np.maximum(np.arange(len(values)) - (width - 1) // 2, 0)
    last = np.minimum(np.arange(len(values)) + width // 2 + 1, len(values))
    return (total[last] - total[first]) / (last - first)
