"""Rows being made, in a file that a killed run goes on with: a line with the settings, then a line for each row.

Owns the file. Lines may come in any order; memory holds their places, not the rows.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMAT = "relay_trl.rows"
VERSION = 1


class ResumableRows:
    """A file of rows by number, opened for reading and writing. Half a last line, of a run that was killed, is dropped.

    Args:
        path (`str` or `Path`): created with its folders where it does not exist.
        settings (`dict`): JSON-ready; everything that the rows depend on.
        is_read_only (`bool`, defaults to `False`): for a file that another process may be writing: it must exist, and half a
            last line is left there.

    Raises:
        ValueError: the file was begun with other settings or by another version, or is no such file.
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
        """Learns the places of all whole lines and cuts off what follows them; returns the file's length."""
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
                raise ValueError(f"{self.path} is damaged in line {number}; remove it to begin anew.") from error
            end += len(line)
        if not self._is_read_only:
            self._file.truncate(end)
        return end

    def _check(self, entry: Any, header: dict):
        if entry["format"] != FORMAT or entry["version"] != VERSION:
            raise ValueError(
                f"{self.path} has format {entry['format']} {entry['version']}, this package writes {FORMAT} {VERSION}; remove "
                "it to begin anew, or use the package that wrote it."
            )
        old, new = entry["settings"], header["settings"]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if names:
            shown = "; ".join(f"{name} was {old.get(name)!r} and is now {new.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.path} is of a run with other settings: {shown}. Remove it to begin anew, or go back to the old settings."
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
        """Writes a row, JSON-ready, so that it outlives this process."""
        self._places[number] = self._write({"number": number, "row": row})

    def in_order(self) -> Iterator[tuple[int, Any]]:
        """Numbers and rows, by number."""
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
