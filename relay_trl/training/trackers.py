"""What experiment trackers get beside the figures: a table of rollouts with each author's words, and the pair file.

Owns the table and how each tracker takes it. TRL and transformers send the figures and the options to whatever `report_to` names.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from pandas import DataFrame
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..call_syntax import CallSyntax
from ..pages.render import markdown_table
from ..pages.segments import segments
from ..rollout_files import Draw

PAIR_FILE = "RELAY_TRL_PAIR_FILE"
"""Environment variable: the pair file that a training is a stage of; `relay-trl train` sets it."""

TABLE = "relay/rollouts"
_OPEN, _CLOSE = "\u27e6", "\u27e7"  # around the teacher's words


def rollout_table(draw: Draw, syntax: CallSyntax) -> DataFrame:
    """The first group of a draw: a row for each rollout, with the teacher's words in double brackets."""
    rows = []
    for i, trace in enumerate(draw.traces[: draw.size]):
        pieces = segments(trace, syntax)
        rows.append(
            {
                "step": draw.step,
                "problem": draw.rows[i]["prompt"],
                "gold": draw.rows[i]["answer"],
                "rollout": "".join(f"{_OPEN}{p.text}{_CLOSE}" if p.author == "teacher" else p.text for p in pieces),
                "correct": bool(draw.correct[i]),
                "reward": round(draw.rewards[draw.first + i], 4),
                "advantage": round(draw.advantages[i], 4),
                "calls": len(trace.calls),
                "teacher_tokens": trace.teacher_tokens,
            }
        )
    return DataFrame(rows)


class TrackerTables(TrainerCallback):
    """Sends the pair file and, with every log, a table of rollouts to wandb, trackio and TensorBoard.

    Args:
        callbacks (`Callable`): gives the trainer's callbacks, TensorBoard's among them.
        draw (`Callable`, *optional*): gives the last [`Draw`]; `None` sends no table.
        syntax ([`CallSyntax`], *optional*): of the commands.
    """

    def __init__(
        self,
        callbacks: Callable[[], list[TrainerCallback]],
        draw: Callable[[], Draw | None] = lambda: None,
        syntax: CallSyntax | None = None,
    ):
        self._callbacks, self._draw, self._syntax = callbacks, draw, syntax
        self._sent: Draw | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        path = os.environ.get(PAIR_FILE)
        if not (path and state.is_world_process_zero and Path(path).is_file()):
            return
        text = Path(path).read_text(encoding="utf-8")
        for tracker in _trackers(args):
            tracker.config.update({"pair_file": text}, allow_val_change=True)
        for writer in self._writers():
            writer.add_text("pair_file", f"```yaml\n{text}\n```")

    def on_log(self, args, state, control, logs=None, **kwargs):
        draw = self._draw()
        if not state.is_world_process_zero or draw is None or draw is self._sent or draw.mode != "train":
            return
        trackers, writers = _trackers(args), self._writers()
        if not draw.advantages or not (trackers or writers):
            return
        assert self._syntax is not None  # it comes with `draw`
        table, self._sent = rollout_table(draw, self._syntax), draw
        for tracker in trackers:
            tracker.log({TABLE: tracker.Table(dataframe=table)})
        for writer in writers:
            writer.add_text(TABLE, _markdown(table), state.global_step)

    def _writers(self) -> list[Any]:
        found = [each.tb_writer for each in self._callbacks() if isinstance(each, TensorBoardCallback)]
        return [writer for writer in found if writer is not None]


def _trackers(args) -> list[Any]:
    """The modules of those trackers that have tables and a run."""
    found = []
    if "wandb" in args.report_to:
        wandb = import_module("wandb")
        found += [wandb] if wandb.run is not None else []
    if "trackio" in args.report_to:
        found.append(import_module("trackio"))
    return found


def _markdown(table: DataFrame) -> str:
    """As TensorBoard shows it."""
    rows = [[str(value).replace("\n", "<br>") for value in row] for row in table.to_numpy()]
    return markdown_table(list(table.columns), rows)
