"""Files that survive a kill: atomic writes, rows that a killed run continues, and hashes that tell runs apart.

Owns how such files are written and read, not what is in them.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

logger = logging.getLogger(__name__)

VERSION = 1

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_SAMPLED_BLOCKS = 16
_BLOCK = 65536


class ResumableFile:
    """A file of JSON lines that a killed run continues: a header with the settings, written with the first entry, then the
    entries. An incomplete last line is dropped.

    Args:
        path (`str` or `Path`): created with its folders if it does not exist.
        settings (`dict`): JSON-ready; everything that the entries depend on.

    Raises:
        ValueError: the file has entries of other settings, another version or another format, or another process is
            writing to it.
    """

    kind: ClassVar[str]
    """What the entries are, for the format and for errors."""
    names: ClassVar[tuple[str, ...]]
    """Names that every entry has."""

    def __init__(self, path: str | Path, settings: dict):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._settings = as_written(settings)
        self._file = open(self.path, "a+b")  # noqa: SIM115  (closed by `close`)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end = self._take_up()
            self._file.truncate(end)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"{self.path} is being written by another process; wait for it, or give another output_dir."
            ) from error
        except BaseException:
            self._file.close()
            raise
        self._is_empty = end == 0

    def _take_up(self) -> int:
        """Takes all entries up; returns the bytes that they and the header take."""
        lines = read_lines(self.path, self)
        header, _ = next(lines, ({}, 0))
        end = 0  # a header without entries is ignored: it may be of a run that was refused before it made anything
        for entry, place in lines:
            if not end:
                refuse_other(self.path, header["settings"], self._settings)
            self._take(entry)
            end = place
        return end

    def _take(self, entry: dict):
        """Takes up an entry that is in the file."""
        raise NotImplementedError

    def _write(self, entry: dict):
        """Writes an entry, so that it outlives this process."""
        header = {"format": f"relay_trl.{self.kind}", "version": VERSION, "settings": self._settings}
        lines = [json.dumps(one) + "\n" for one in ([header, entry] if self._is_empty else [entry])]
        self._file.write("".join(lines).encode())
        self._file.flush()
        self._is_empty = False

    def close(self):
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception):
        self.close()


class ResumableRows(ResumableFile):
    """Numbered rows that a killed run continues. Arguments and errors are those of [`ResumableFile`]."""

    kind, names = "rows", ("number", "row")

    def __init__(self, path: str | Path, settings: dict):
        self._rows: dict[int, Any] = {}
        super().__init__(path, settings)

    def _take(self, entry: dict):
        self._rows[entry["number"]] = entry["row"]

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, number: int, row: Any):
        """Writes a JSON-ready row."""
        self._rows[number] = row
        self._write({"number": number, "row": row})

    def in_order(self) -> Iterator[tuple[int, Any]]:
        """Numbers and rows, in order of their numbers."""
        yield from sorted(self._rows.items(), key=lambda item: item[0])


def read_lines(path: Path, form: ResumableFile | type[ResumableFile]) -> Iterator[tuple[dict, int]]:
    """The header and the entries of a [`ResumableFile`], which another process may be writing, each with the place where it
    ends, in bytes. An incomplete last line is left out.

    Raises:
        ValueError: the file has another format or version, or is damaged.
    """
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                logger.warning(
                    f"{path} ends in half a line, which is left out; the run that wrote it was killed or still runs."
                )
                return
            try:
                entry = json.loads(line)
                if number == 1 and entry["format"] != f"relay_trl.{form.kind}":
                    raise ValueError
                for name in ("version", "settings") if number == 1 else form.names:
                    entry[name]
            except (ValueError, KeyError, TypeError) as error:
                what = f"is no file of {form.kind}" if number == 1 else f"is damaged in line {number}"
                raise ValueError(f"{path} {what}; move it away, or give another output.") from error
            if number == 1 and entry["version"] != VERSION:
                raise ValueError(
                    f"{path} has version {entry['version']} of the format, this package reads version {VERSION}; give "
                    "another output, or use the package that wrote it."
                )
            end += len(line)
            yield entry, end


def as_written(settings: dict) -> dict:
    """Settings as they are read from a file again."""
    return json.loads(json.dumps(settings))


def refuse_other(path: Path, old: dict, new: dict):
    """Refuses to go on with a file whose settings were others."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        shown = "; ".join(f"{name} was {old.get(name)!r} and is now {new.get(name)!r}" for name in names)
        raise ValueError(
            f"{path} is of a run with other settings: {shown}. Give another output, remove the file, or go back to the old "
            "settings."
        )


def read_shards(paths: Sequence[Path], settings: dict, total: int) -> tuple[dict[int, Any], list[str]]:
    """What all shards of a run have made; the shard k of K makes every K-th row, from k on.

    Returns:
        `tuple[dict[int, Any], list[str]]`: the rows by number, and a word on each shard that lacks some.
    """
    found: dict[int, Any] = {}
    missing = []
    for shard, path in enumerate(paths):
        expected = len(range(shard, total, len(paths)))
        if path.exists():
            (header, _), *lines = [*read_lines(path, ResumableRows)] or [({"settings": settings}, 0)]
            refuse_other(path, header["settings"], as_written(settings))
            rows = {entry["number"]: entry["row"] for entry, _ in lines}
            found |= rows
            expected -= len(rows)
        if expected:
            missing.append(f"{shard} ({expected} problems)")
    return found, missing


def write_atomically(path: Path, text: str) -> Path:
    """Writes `text` so that no reader, and no upload in the background, sees a part of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # `Trainer` does not upload names that begin with "_".
    temporary = path.with_name(f"_{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_jsonl(rows: Iterable[dict], path: str | Path) -> int:
    """Writes all `rows` to `path`, or nothing; returns their number."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def fingerprint(model: str) -> str | None:
    """A short hash of a local model's weights, so that answers of an earlier training in the same folder are not taken for
    answers of this one. Reads the two ends and some blocks of every file. `None` if `model` is no folder with weights.
    """
    folder = Path(model)
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for block in range(_SAMPLED_BLOCKS + 1):
                file.seek(max(0, size - _BLOCK) * block // _SAMPLED_BLOCKS)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def fingerprint_rows(rows: list[dict]) -> str:
    """A short hash of a run's problems and gold answers, in order."""
    text = json.dumps([[row["prompt"], row["answer"]] for row in rows])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
