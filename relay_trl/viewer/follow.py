"""Follows a run for the viewer: its newest rollouts and its figures, read from the files.

Owns what is kept in memory and in which parts a page gets it. `rollout_files.py` owns the files.
"""

import threading
from pathlib import Path
from typing import Any

from ..rollout_files import RolloutReader

FIRST = 60  # groups of the first answer: enough for a screen, few enough to be quick
MOST = 400  # groups of any other answer


class FollowedRun:
    """Follows a run. Can be used from several threads.

    Args:
        run (`str` or `Path`): the training's output folder.
        max_rollouts (`int`, defaults to `10000`): the newest rollouts to keep.

    Raises:
        FileNotFoundError: the folder has no rollouts.
    """

    def __init__(self, run: str | Path, max_rollouts: int = 10_000):
        self.name = Path(run).resolve().name
        self.max_rollouts = max_rollouts
        self.epoch = 0  # goes up when a page must drop everything it has
        self.groups: list[dict] = []
        self.figures: list[dict] = []
        self._reader = RolloutReader(run)
        self._next_id = 0
        self._rollouts = 0
        self._lock = threading.Lock()

    def poll(self):
        """Reads what is new."""
        is_new, groups, figures = self._reader.poll()
        if is_new:
            self.epoch += 1
            self.groups, self.figures, self._rollouts = [], [], 0
        for group in groups:
            self.groups.append({**group, "id": self._next_id})
            self._next_id += 1
            self._rollouts += len(group["rollouts"])
        self.figures += figures
        surplus = 0
        while self._rollouts - len(self.groups[surplus]["rollouts"]) >= self.max_rollouts if self.groups else False:
            self._rollouts -= len(self.groups[surplus]["rollouts"])
            surplus += 1
        del self.groups[:surplus]

    def updates(self, epoch: int, after: int, figures: int) -> dict[str, Any]:
        """The groups after id `after` and the figures after the first `figures`, for a page of `epoch`.

        A page of another epoch, or without groups, gets the newest groups; [`~FollowedRun.older`] has the others.
        """
        with self._lock:
            self.poll()
            if epoch != self.epoch:
                after, figures = -1, 0
            found = self.groups[-FIRST:] if after < 0 else self._after(after)[:MOST]
            return {
                "epoch": self.epoch,
                "run": {**self._reader.run, "folder": self.name},
                "oldest": self.groups[0]["id"] if self.groups else -1,
                "groups": found,
                "figures": self.figures[figures:],
            }

    def older(self, before: int) -> list[dict]:
        """The newest groups before id `before`, oldest first."""
        with self._lock:
            first = self.groups[0]["id"] if self.groups else 0
            end = max(0, min(before - first, len(self.groups)))
            return self.groups[max(0, end - MOST) : end]

    def everything(self) -> dict[str, Any]:
        """Everything that is kept, for a page without a server."""
        with self._lock:
            self.poll()
            run = {**self._reader.run, "folder": self.name}
            return {"epoch": self.epoch, "run": run, "groups": self.groups, "figures": self.figures}

    def _after(self, after: int) -> list[dict]:
        first = self.groups[0]["id"] if self.groups else 0
        return self.groups[max(0, after + 1 - first) :]
