"""The files of answers: a header line with the settings, then one JSON line per answer. A killed run can resume.

A run's folder has one file per benchmark, or one per benchmark and process. Owns the files' names and format, reading them,
and whether two runs are the same run. `runner.py` writes answers, `report/` computes figures from them.
"""

import fcntl
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..trace import Trace

logger = logging.getLogger(__name__)

FORMAT = "relay_trl.answers"
VERSION = 1
PER_BENCHMARK = ("benchmark", "problems", "samples", "prompt_template", "answer_marker")
"""Settings that may differ between the benchmarks of one run."""

Key = tuple[str, str, int, int]
"""Method, benchmark, index of the problem, sample: identifies one answer of a run."""


@dataclass
class Answer:
    """One answer to one problem.

    Args:
        method (`str`), benchmark (`str`).
        index (`int`): which problem of the benchmark's rows.
        sample (`int`): which of its answers.
        prompt (`str` or `list[dict]`): the problem as in the data.
        gold (`str` or `list[str]`).
        correct (`bool`, *optional*): `None` if the teacher failed; such a rollout is neither right nor wrong.
        kind (`str`, *optional*): kind of the problem, if the data has kinds.
        trace ([`Trace`]): the rollout. Logprobs are not kept in the file.
    """

    method: str
    benchmark: str
    index: int
    sample: int
    prompt: str | list[dict]
    gold: str | list[str]
    correct: bool | None
    kind: str | None
    trace: Trace

    @property
    def key(self) -> Key:
        """Which answer of the run it is."""
        return (self.method, self.benchmark, self.index, self.sample)

    def to_line(self) -> str:
        """Its line in the file."""
        trace = self.trace.to_dict()
        for span in trace["spans"]:
            span["logprobs"] = None
        return json.dumps({**self.__dict__, "trace": trace}) + "\n"

    @classmethod
    def from_dict(cls, data: dict) -> "Answer":
        """The answer of a parsed line."""
        return cls(**{**data, "trace": Trace.from_dict(data["trace"])})


@dataclass
class Run:
    """The contents of a file of answers.

    Args:
        name (`str`): its name in reports.
        settings (`dict`): what the answers depend on, as given to [`AnswerFile`]; of several files, the common settings.
        answers (`list[Answer]`): in the order of the files, each key once.
        labels (`dict[str, str]`): names of methods in reports, if they differ from the methods' own.
        folder (`Path`, *optional*): where it was read.
    """

    name: str
    settings: dict
    answers: list[Answer]
    labels: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


class AnswerFile:
    """A file of answers, open for writing. Existing answers are kept; an incomplete last line is dropped.

    Args:
        path (`str` or `Path`): created with its folders if it does not exist.
        settings (`dict`): JSON-ready; everything that the answers depend on.

    Attributes:
        done (`set[Key]`): answers in the file, and in those that other processes wrote for the same benchmark. Rollouts
            whose teacher failed are not among them, so they are asked again.

    Raises:
        ValueError: a file of this run has other settings, another version or another format, or another process is
            writing to this one.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path = Path(path)
        self.done: set[Key] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        self._header = json.dumps({"format": FORMAT, "version": VERSION, "settings": settings}) + "\n"
        for other in answer_files(self.path.parent):
            if other != self.path:
                self._look_at(other, settings)
        self._file = open(self.path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"{self.path} is being written by another process; wait for it, or give another output_dir."
            ) from error
        try:
            self._is_empty = self._take_up(settings)
        except BaseException:
            self._file.close()
            raise

    def _look_at(self, other: Path, settings: dict) -> None:
        header, entries, _ = _read(other)
        if header is None or not entries:
            return
        is_sibling = header["settings"].get("benchmark") == settings.get("benchmark")
        leave_out = () if is_sibling else PER_BENCHMARK
        _refuse_other(other, _without(header["settings"], leave_out), _without(settings, leave_out))
        if is_sibling:
            self.done |= {_key(entry) for entry in entries if entry["correct"] is not None}

    def _take_up(self, settings: dict) -> bool:
        header, entries, size = _read(self.path)
        if header is not None and entries:
            _refuse_other(self.path, header["settings"], settings)
        self.done |= {_key(entry) for entry in entries if entry["correct"] is not None}
        if size < self.path.stat().st_size:
            logger.warning(f"{self.path} ended in half a line, from a run that was killed; that answer is asked again.")
        # A header without answers is ignored: it may be of a run that was refused before it asked anything.
        size = size if entries else 0
        self._file.truncate(size)
        return size == 0

    def add(self, answer: Answer) -> None:
        """Writes `answer`, so that it outlives this process."""
        self._file.write(((self._header if self._is_empty else "") + answer.to_line()).encode())
        self._file.flush()
        self._is_empty = False
        if answer.correct is not None:
            self.done.add(answer.key)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def answer_path(folder: str | Path, benchmark: str, part: tuple[int, int] = (0, 1)) -> Path:
    """The file of one benchmark in a run's folder, or of part `(k, n)` of it if several processes share the work."""
    name = re.sub(r"[^\w.-]+", "-", benchmark).strip("-.")
    shard = f".{part[0]}of{part[1]}" if part[1] > 1 else ""
    return Path(folder) / f"answers.{name}{shard}.jsonl"


def answer_files(folder: str | Path) -> list[Path]:
    """All files of answers in a run's folder."""
    return sorted(Path(folder).glob("answers*.jsonl"))


def read_run(path: str | Path, name: str | None = None, labels: dict[str, str] | None = None) -> Run:
    """Reads the answers of a run.

    Args:
        path (`str` or `Path`): a file of answers, or the folder with those of a run.
        name (`str`, *optional*): name of the run in reports; `None`: the folder's name.
        labels (`dict[str, str]`, *optional*): names of its methods in reports, such as `{"student": "GRPO, no teacher"}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of answers, has another version, or the files of the folder are of different runs.
    """
    path = Path(path)
    files = answer_files(path) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"{path} has no answers; run recipes/evaluate.py first, or name its output_dir.")
    shared: dict = {}
    answers: dict[Key, Answer] = {}
    for file in files:
        header, entries, size = _read(file)
        if size < file.stat().st_size:
            logger.warning(
                f"{file} ends in half a line, which is left out; the run that wrote it was killed or still runs."
            )
        if header is None:
            continue
        if shared:
            _refuse_other(file, _without(header["settings"], PER_BENCHMARK), _without(shared, PER_BENCHMARK))
            shared = {key: value for key, value in shared.items() if header["settings"].get(key) == value}
        else:
            shared = header["settings"]
        for entry in entries:
            # A rollout that failed first and was answered later has two lines; the answered one counts.
            if entry["correct"] is not None or _key(entry) not in answers:
                answers[_key(entry)] = Answer.from_dict(entry)
    if not answers:
        raise ValueError(f"{path} is empty; run recipes/evaluate.py to fill it.")
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return Run(name or folder.name, shared, list(answers.values()), labels or {}, folder)


def _without(settings: dict, names: Iterable[str]) -> dict:
    return {name: value for name, value in settings.items() if name not in names}


def _key(entry: dict) -> Key:
    return (entry["method"], entry["benchmark"], entry["index"], entry["sample"])


def _read(path: Path) -> tuple[dict | None, list[dict], int]:
    """The header (`None` in a file without a complete line), the other lines, and the bytes that they all take."""
    entries: list[dict] = []
    size = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if number == 1 and entry["format"] != FORMAT:
                    raise ValueError
                if number > 1:
                    _key(entry)
            except (ValueError, KeyError, TypeError) as error:
                what = "is no file of answers" if number == 1 else f"is damaged in line {number}"
                raise ValueError(f"{path} {what}; move it away, or give another output_dir.") from error
            if number == 1 and entry["version"] != VERSION:
                raise ValueError(
                    f"{path} has version {entry['version']} of the format, this package reads version {VERSION}; give "
                    "another output_dir, or use the package that wrote it."
                )
            entries.append(entry)
            size += len(line)
    return (entries[0] if entries else None), entries[1:], size


def _refuse_other(path: Path, old: dict, new: dict) -> None:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        shown = "; ".join(f"{name} was {old.get(name)!r} and is now {new.get(name)!r}" for name in names)
        raise ValueError(
            f"{path} holds answers of a run with other settings: {shown}. Give another output_dir, remove the file, or "
            "go back to the old settings."
        )
