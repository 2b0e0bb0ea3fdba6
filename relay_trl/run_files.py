"""Files that survive a kill: atomic writes, rows that a killed run continues, and hashes that tell runs apart.

Owns how such files are written and read, not what is in them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMAT = "relay_trl.rows"
VERSION = 1

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_SAMPLED_BLOCKS = 16
_BLOCK = 65536


class ResumableRows:
    """A file of numbered rows, open for reading and writing. An incomplete last line, left by a killed run, is dropped.

    Args:
        path (`str` or `Path`): created with its folders if it does not exist.
        settings (`dict`): JSON-ready; everything that the rows depend on.
        is_read_only (`bool`, defaults to `False`): for a file that another process may be writing. It must exist, and an
            incomplete last line stays.

    Raises:
        ValueError: the file was begun with other settings or by another version, or has another format.
    """

    def __init__(self, path: str | Path, settings: dict, is_read_only: bool = False):
        self.path = Path(path)
        if not is_read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "version": VERSION, "settings": json.loads(json.dumps(settings))}
        self._places: dict[int, int] = {}
        self._is_read_only = is_read_only
        self._file = open(self.path, "rb" if is_read_only else "a+b")  # noqa: SIM115  (closed by `close`)
        try:
            self._end = self._read(header)
        except ValueError:
            self._file.close()
            raise
        if self._end == 0 and not is_read_only:
            self._write(header)

    def _read(self, header: dict) -> int:
        """Finds the places of all complete lines and cuts off the rest; returns the file's length."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                if not self._is_read_only:
                    logger.warning(
                        f"{self.path} ended in half a line, from a run that was killed; that row is made again."
                    )
                break
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check(entry, header)
                else:
                    self._places[entry["number"]] = end
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is damaged in line {number}; remove it to start over.") from error
            end += len(line)
        if not self._is_read_only:
            self._file.truncate(end)
        return end

    def _check(self, entry: Any, header: dict):
        if entry["format"] != FORMAT or entry["version"] != VERSION:
            raise ValueError(
                f"{self.path} has format {entry['format']} {entry['version']}, this package writes {FORMAT} {VERSION}; remove "
                "it to start over, or use the package that wrote it."
            )
        old, new = entry["settings"], header["settings"]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if names:
            shown = "; ".join(f"{name} was {old.get(name)!r} and is now {new.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.path} is of a run with other settings: {shown}. Remove it to start over, or go back to the old settings."
            )

    def _write(self, entry: dict) -> int:
        line = json.dumps(entry).encode() + b"\n"
        self._file.seek(0, 2)
        self._file.write(line)
        self._file.flush()
        place, self._end = self._end, self._end + len(line)
        return place

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, number: int, row: Any):
        """Writes a JSON-ready row, so that it outlives this process."""
        self._places[number] = self._write({"number": number, "row": row})

    def in_order(self) -> Iterator[tuple[int, Any]]:
        """Numbers and rows, in order of their numbers."""
        for number in sorted(self._places):
            self._file.seek(self._places[number])
            yield number, json.loads(self._file.readline())["row"]

    def close(self):
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "ResumableRows":
        return self

    def __exit__(self, *exception):
        self.close()


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
            with ResumableRows(path, settings, is_read_only=True) as rows:
                found |= dict(rows.in_order())
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
