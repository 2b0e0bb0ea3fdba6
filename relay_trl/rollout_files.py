"""The rollouts of a training on disk: JSON lines that each process appends, and a reader that can follow a run.

Owns the files under `<output_dir>/_rollouts`: format, size, what a resumed run keeps of them, and how they are followed.
`training/` writes them, `viewer/` shows them. The name begins with "_" so that `Trainer` does not push them.

    _rollouts/run.json                     what is trained; a new `id` whenever a training begins or resumes
    _rollouts/metrics.jsonl                one line per log of the trainer: `step` and its figures
    _rollouts/rank0000-000000.jsonl, ...   one line per prompt and process of a [`Draw`]
"""

import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .call_syntax import CallSyntax
from .pages.segments import segments
from .trace import Trace

logger = logging.getLogger(__name__)

FOLDER = "_rollouts"
METRICS = "metrics.jsonl"
RUN = "run.json"
VERSION = 1
_PARTS = 8  # files per process; the oldest one is removed first
_NAME = re.compile(r"rank(\d+)-(\d+)\.jsonl")


@dataclass
class Draw:
    """One draw of rollouts as a process of the training knows it: N rollouts of its own, M of all processes.

    Args:
        mode (`str`): `"train"` or `"eval"`.
        step (`int`): in training the optimizer step that it is drawn for, counted from 1 as in the trainer's log; in an
            evaluation the steps done.
        first (`int`): index of this process's first rollout among all M.
        size (`int`): rollouts of a group.
        rows (`Sequence[dict]`, length N): `prompt` and `answer`.
        batch (`int`, defaults to `0`): which draw of this step.
        traces, correct, advantages (`Sequence`, length N): of this process.
        rewards (`Sequence[float]`, length M): of all processes; NaN is a rollout without a reward.
        kinds (`Sequence[str]`): difficulty of every group, `None` of one without a scored rollout.
        metrics (`dict[str, float]`): of all M.
        rollout_s (`float`), drawn (`int`): this process's seconds, and the groups that it drew; 0 if it kept all.
    """

    mode: str
    step: int
    first: int
    size: int
    rows: Sequence[dict]
    batch: int = 0
    traces: Sequence[Trace] = ()
    correct: Sequence[bool] = ()
    advantages: Sequence[float] = ()
    rewards: Sequence[float] = ()
    kinds: Sequence[str | None] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    rollout_s: float = 0.0
    drawn: int = 0


class RolloutWriter:
    """Appends the rollouts of one process of a training. If the disk fails, it warns once and the training goes on.

    Args:
        output_dir (`str` or `Path`): of the training.
        syntax ([`CallSyntax`]): of its commands.
        rank (`int`, defaults to `0`), world_size (`int`, defaults to `1`): of this process.
        max_mb (`int`, defaults to `512`): MiB of rollouts that this process keeps; the oldest are removed first. 0 writes none.
    """

    def __init__(
        self, output_dir: str | Path, syntax: CallSyntax, rank: int = 0, world_size: int = 1, max_mb: int = 512
    ):
        self.folder = Path(output_dir) / FOLDER
        self.syntax = syntax
        self.rank = rank
        self.world_size = world_size
        self.part_bytes = max_mb * 2**20 // _PARTS
        self.is_on = max_mb > 0

    def start(self, step: int, run: dict[str, Any]):
        """Drops what a killed run wrote after the checkpoint that this run resumes from, and everything of an earlier run.

        Args:
            step (`int`): optimizer steps done; 0 for a new run.
            run (`dict`): what the viewer shows of the run; JSON-ready.
        """
        self._do(lambda: self._start(step, run))

    def _start(self, step: int, run: dict[str, Any]):
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, rank, _ in _files(self.folder):
            # The first process also cleans the files of processes that an earlier run had and this one has not.
            if rank == self.rank or (self.rank == 0 and rank >= self.world_size):
                _keep(path, lambda entry: entry["step"] <= step)
        if self.rank == 0:
            _keep(self.folder / METRICS, lambda entry: 0 < entry["step"] <= step)
            text = json.dumps({"version": VERSION, "id": uuid.uuid4().hex, "started": time.time(), **run})
            (self.folder / f"{RUN}.part").write_text(text, encoding="utf-8")
            os.replace(self.folder / f"{RUN}.part", self.folder / RUN)

    def add(self, draw: Draw):
        """Writes this process's share of a draw, a line for each prompt. Of a group that lies across processes each writes its
        own part.
        """
        if not self.is_on:
            return
        lines: dict[int, dict] = {}
        for i, (row, trace) in enumerate(zip(draw.rows, draw.traces, strict=True)):
            group, index = divmod(draw.first + i, draw.size)
            line = lines.setdefault(
                group,
                {
                    "v": VERSION,
                    "step": draw.step,
                    "batch": draw.batch,
                    "group": group,
                    "size": draw.size,
                    "kind": draw.kinds[group],
                    "prompt": row["prompt"],
                    "gold": row["answer"],
                    "rollouts": [],
                },
            )
            scores = (bool(draw.correct[i]), draw.rewards[draw.first + i], draw.advantages[i])
            line["rollouts"].append({"index": index, **describe(trace, self.syntax, *scores)})
        self._do(lambda: self._append(self._part(), lines.values()))

    def log(self, step: int, figures: dict[str, Any]):
        """Writes the trainer's figures of a step; for the first process."""
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        self._do(lambda: self._append(self.folder / METRICS, [{"step": step, **numbers}]))

    def _part(self) -> Path:
        """The file to append to: the newest one, or a new one if that is full; the oldest one is then removed."""
        own = [path for path, rank, _ in _files(self.folder) if rank == self.rank]
        if own and own[-1].stat().st_size < self.part_bytes:
            return own[-1]
        for path in own[: max(0, len(own) - _PARTS + 1)]:
            path.unlink()
        number = int(_NAME.fullmatch(own[-1].name)[2]) + 1 if own else 0  # type: ignore[index]
        return self.folder / f"rank{self.rank:04d}-{number:06d}.jsonl"

    @staticmethod
    def _append(path: Path, lines: Iterable[dict]):
        # UTF-8 has no bytes for half of a surrogate pair; it becomes JSON's escape.
        text = "".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
        with open(path, "ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))

    def _do(self, write: Callable[[], None]):
        if not self.is_on:
            return
        try:
            write()
        except OSError as error:
            self.is_on = False
            logger.warning(f"Rollouts are no longer written to {self.folder} ({error}); the training goes on.")


def describe(trace: Trace, syntax: CallSyntax, is_correct: bool, reward: float, advantage: float) -> dict[str, Any]:
    """What is kept of a rollout: its segments, and the figures that a reader can filter by."""
    return {
        "correct": None if trace.has_failed else is_correct,
        "called": trace.has_called,
        "malformed": trace.malformed,
        "reward": round(reward, 6),
        "advantage": round(advantage, 6),
        "tokens": trace.num_tokens,
        "teacher_tokens": trace.teacher_tokens,
        "share": round(trace.teacher_share, 6),
        "stop": trace.stop and trace.stop.value,
        "error": trace.error,
        "segments": [piece.to_dict() for piece in segments(trace, syntax)],
    }


def finite(value: Any) -> Any:
    """A copy of JSON-ready `value` with `None` for NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _files(folder: Path) -> list[tuple[Path, int, int]]:
    """The files of rollouts with rank and number, in order."""
    found = [(path, match) for path in folder.glob("rank*.jsonl") if (match := _NAME.fullmatch(path.name))]
    return sorted(((path, int(match[1]), int(match[2])) for path, match in found), key=lambda item: item[1:])


def _keep(path: Path, is_kept: Callable[[dict], bool]):
    """Keeps the whole lines of `path` for which `is_kept` is true; removes the file if none is left."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        lines = file.readlines()
    kept = [line for line in lines if (entry := _parse(line)) is not None and is_kept(entry)]
    if not kept:
        path.unlink()
    elif len(kept) < len(lines):
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(b"".join(kept))
        os.replace(part, path)


def _parse(line: bytes) -> dict | None:
    """The entry of a line; `None` if the line is cut or has another format."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


class RolloutReader:
    """Follows the files of a run, during the training or after it.

    Args:
        run (`str` or `Path`): the training's output folder.

    Raises:
        FileNotFoundError: the folder has no rollouts.
        ValueError: they have a newer format.
    """

    def __init__(self, run: str | Path):
        self.folder = Path(run) / FOLDER
        self.run: dict[str, Any] = {}
        self._read: dict[str, tuple[int, int]] = {}  # inode and bytes read, by file
        self._parts: dict[tuple[int, int, int], dict] = {}
        if not (self.folder / RUN).is_file():
            raise FileNotFoundError(
                f"{run} has no {FOLDER}/{RUN}; give the output_dir of a GRPO run that was started with rollouts_max_mb "
                "above 0."
            )

    def poll(self) -> tuple[bool, list[dict], list[dict]]:
        """What was written since the last call.

        Returns:
            `tuple`: whether to drop everything read before, because the run began again or resumed from a checkpoint; the groups
            that are complete now, in order; and the trainer's figures.
        """
        run = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        if run["version"] > VERSION:
            raise ValueError(
                f"{self.folder} has version {run['version']}, this package reads {VERSION}; upgrade relay_trl."
            )
        paths = [path for path, *_ in _files(self.folder)]
        is_new = run["id"] != self.run.get("id") or any(map(self._was_replaced, paths))
        if is_new:
            self.run, self._read, self._parts = run, {}, {}
        whole = [group for path in paths for entry in self._new_lines(path) if (group := self._join(entry))]
        whole.sort(key=lambda group: (group["step"], group["batch"], group["group"]))
        return is_new, whole, self._new_lines(self.folder / METRICS)

    def _was_replaced(self, path: Path) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        inode, size = self._read.get(path.name, (status.st_ino, 0))
        return status.st_ino != inode or status.st_size < size

    def _new_lines(self, path: Path) -> list[dict]:
        try:
            file = open(path, "rb")
        except FileNotFoundError:  # the oldest file can be removed at any time
            return []
        with file:
            inode, done = self._read.get(path.name, (os.fstat(file.fileno()).st_ino, 0))
            file.seek(done)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._read[path.name] = (inode, done + end)
        return [entry for line in text[:end].splitlines(keepends=True) if (entry := _parse(line)) is not None]

    def _join(self, entry: dict) -> dict | None:
        """The group that `entry` completes, or `None`. A group of several processes comes in parts."""
        key = (entry["step"], entry["batch"], entry["group"])
        group = self._parts.pop(key, None)
        if group is not None:
            entry["rollouts"] = sorted(group["rollouts"] + entry["rollouts"], key=lambda rollout: rollout["index"])
        if len(entry["rollouts"]) < entry["size"]:
            self._parts[key] = entry
            return None
        return entry
