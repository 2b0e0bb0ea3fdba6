"""The file of answers: one JSON line per answer behind a header line with the settings, safe to kill and to resume.

Owns the file's format, what makes two runs the same run, and reading it back. Who answers is the runner's business, what
the answers add up to is the statistics'.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from ..trace import Trace

logger = logging.getLogger(__name__)

FORMAT = "relay_trl.answers"
VERSION = 1

Key = tuple[str, str, int, int]
"""Method, benchmark, index of the problem, sample: one answer of a run."""


@dataclass
class Answer:
    """One answer to one problem.

    Args:
        method (`str`), benchmark (`str`).
        index (`int`): which problem of the benchmark's rows.
        sample (`int`): which of its answers.
        prompt (`str` or `list[dict]`): the problem as it stands in the data.
        gold (`str` or `list[str]`).
        correct (`bool`, *optional*): `None` where the teacher failed: such a rollout is neither right nor wrong.
        kind (`str`, *optional*): of the problem, where the data has kinds.
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
        """What it answers."""
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
    """What a file of answers holds.

    Args:
        name (`str`): what reports call it.
        settings (`dict`): what the answers depend on, as [`AnswerFile`] got it.
        answers (`list[Answer]`): in the order of the file, each key once.
        labels (`dict[str, str]`): what reports call a method of this run, where not by its name.
    """

    name: str
    settings: dict
    answers: list[Answer]
    labels: dict[str, str] = field(default_factory=dict)


class AnswerFile:
    """A file of answers opened for writing. Answers that are there already are kept, half a last line is dropped.

    Args:
        path (`str` or `Path`): created with its folders where it does not exist.
        settings (`dict`): JSON-ready; everything that the answers depend on.

    Attributes:
        done (`set[Key]`): answers in the file. Rollouts whose teacher failed are not among them: they are tried again.

    Raises:
        ValueError: the file belongs to a run with other settings or another version, or is no such file.
    """

    def __init__(self, path: str | Path, settings: dict):
        self.path = Path(path)
        self.done: set[Key] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        self._header = json.dumps({"format": FORMAT, "version": VERSION, "settings": settings}) + "\n"
        size = 0
        if self.path.exists():
            header, entries, size = _read(self.path)
            if header is not None and entries:
                _refuse_other(self.path, header["settings"], settings)
            self.done = {_key(entry) for entry in entries if entry["correct"] is not None}
            if size < self.path.stat().st_size:
                logger.warning(
                    f"{self.path} ended in half a line, from a run that was killed; that answer is asked again."
                )
            # A header without answers binds nobody: it may be of a run that was refused before it asked anything.
            size = size if entries else 0
            with open(self.path, "r+b") as file:
                file.truncate(size)
        self._is_empty = size == 0
        self._file = open(self.path, "a", encoding="utf-8")

    def add(self, answer: Answer) -> None:
        """Writes `answer`, so that it outlives this process."""
        self._file.write((self._header if self._is_empty else "") + answer.to_line())
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


def read_run(path: str | Path, name: str | None = None, labels: dict[str, str] | None = None) -> Run:
    """Reads a file of answers.

    Args:
        path (`str` or `Path`): the file, or the folder that holds it as `answers.jsonl`.
        name (`str`, *optional*): what reports call the run; `None`: the folder's name.
        labels (`dict[str, str]`, *optional*): what reports call its methods, such as `{"student": "GRPO, no teacher"}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of answers, or of another version.
    """
    path = Path(path)
    path = path / "answers.jsonl" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run recipes/evaluate.py first, or name its output_dir.")
    header, entries, size = _read(path)
    if header is None:
        raise ValueError(f"{path} is empty; run recipes/evaluate.py to fill it.")
    if size < path.stat().st_size:
        logger.warning(
            f"{path} ends in half a line, which is left out; the run that wrote it was killed or still runs."
        )
    # A rollout that failed first and was answered later has two lines: the later one counts.
    answers = {_key(entry): Answer.from_dict(entry) for entry in entries}
    settings = header["settings"]
    return Run(name or path.resolve().parent.name, settings, list(answers.values()), labels or {})


def _key(entry: dict) -> Key:
    return (entry["method"], entry["benchmark"], entry["index"], entry["sample"])


def _read(path: Path) -> tuple[dict | None, list[dict], int]:
    """The header (`None` of a file without a whole line), the lines behind it, and the bytes that they all take."""
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
