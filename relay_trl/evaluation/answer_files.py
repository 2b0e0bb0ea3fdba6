"""The files of answers: a header line with the settings, then one JSON line per answer. A killed run can resume.

A run's folder has one file per benchmark, or one per benchmark and process. Owns the files' names and format, reading them,
and whether two runs are the same run. `runner.py` writes answers, `report/` computes figures from them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..run_files import ResumableFile, as_written, read_lines, refuse_other
from ..trace import Trace

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

    def to_dict(self) -> dict:
        """Its entry in the file."""
        trace = self.trace.to_dict()
        for span in trace["spans"]:
            span["logprobs"] = None
        return {**self.__dict__, "trace": trace}

    @classmethod
    def from_dict(cls, data: dict) -> "Answer":
        """The answer of an entry."""
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


class AnswerFile(ResumableFile):
    """A file of answers, open for writing. Existing answers are kept.

    Args:
        path (`str` or `Path`), settings (`dict`), errors: see [`ResumableFile`]. The other files of the run, in the same
            folder, must fit as well.

    Attributes:
        done (`set[Key]`): answers in the file, and in those that other processes wrote for the same benchmark. Rollouts
            whose teacher failed are not among them, so they are asked again.
    """

    kind, names = "answers", ("method", "benchmark", "index", "sample", "correct")

    def __init__(self, path: str | Path, settings: dict):
        self.done: set[Key] = set()
        for other in answer_files(Path(path).parent):
            if other != Path(path):
                self._look_at(other, as_written(settings))
        super().__init__(path, settings)

    def _look_at(self, other: Path, settings: dict) -> None:
        header, *entries = [entry for entry, _ in read_lines(other, AnswerFile)] or [{}]
        if not entries:
            return
        is_sibling = header["settings"].get("benchmark") == settings.get("benchmark")
        leave_out = () if is_sibling else PER_BENCHMARK
        refuse_other(other, _without(header["settings"], leave_out), _without(settings, leave_out))
        if is_sibling:
            for entry in entries:
                self._take(entry)

    def _take(self, entry: dict) -> None:
        if entry["correct"] is not None:
            self.done.add(_key(entry))

    def add(self, answer: Answer) -> None:
        """Writes `answer`, so that it outlives this process."""
        self._write(answer.to_dict())
        if answer.correct is not None:
            self.done.add(answer.key)


def answer_path(folder: str | Path, benchmark: str, shard: tuple[int, int] = (0, 1)) -> Path:
    """The file of one benchmark in a run's folder, or of shard `(k, n)` of it if several processes share the work."""
    name = re.sub(r"[^\w.-]+", "-", benchmark).strip("-.")
    end = f".{shard[0]}of{shard[1]}" if shard[1] > 1 else ""
    return Path(folder) / f"answers.{name}{end}.jsonl"


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
        for number, (entry, _) in enumerate(read_lines(file, AnswerFile)):
            if number == 0:
                settings = entry["settings"]
                if shared:
                    refuse_other(file, _without(settings, PER_BENCHMARK), _without(shared, PER_BENCHMARK))
                    shared = {key: value for key, value in shared.items() if settings.get(key) == value}
                else:
                    shared = settings
            # A rollout that failed first and was answered later has two lines; the answered one counts.
            elif entry["correct"] is not None or _key(entry) not in answers:
                answers[_key(entry)] = Answer.from_dict(entry)
    if not answers:
        raise ValueError(f"{path} is empty; run recipes/evaluate.py to fill it.")
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return Run(name or folder.name, shared, list(answers.values()), labels or {}, folder)


def _without(settings: dict, names: Iterable[str]) -> dict:
    return {name: value for name, value in settings.items() if name not in names}


def _key(entry: dict) -> Key:
    return (entry["method"], entry["benchmark"], entry["index"], entry["sample"])
