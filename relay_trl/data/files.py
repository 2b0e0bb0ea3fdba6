"""Rows of local files, numbers exactly as they are written: JSON, CSV and Parquet, packed or not, and saved data sets.

Owns file formats. Which columns a row needs is `sources.py`'s business.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

KINDS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Written(float):
    """A number of a file with the digits that it is written with, of which a `float` keeps about 16."""

    def __new__(cls, text: str):
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __reduce__(self):
        return Written, (self.text,)


def kind_of(path: str) -> str | None:
    """`"json"`, `"csv"`, `"parquet"` or `"saved"` (a folder of `save_to_disk`); `None` for anything else."""
    if Path(path).is_dir():
        return "saved" if _is_saved(Path(path)) else None
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in _PACKED:
        suffixes = suffixes[:-1]
    return KINDS.get(suffixes[-1]) if suffixes else None


def read_rows(path: str, kind: str | None = None, split: str | None = None) -> Iterator[dict]:
    """The rows of a file, one after the other.

    Args:
        path (`str`): an existing file or folder.
        kind (`str`, *optional*): see [`kind_of`], which finds it out.
        split (`str`, *optional*): of a folder that has several.

    Raises:
        ValueError: it is empty, is no such file, or has no such split.
    """
    kind = kind or kind_of(path)
    if kind == "saved":
        yield from _saved(path, split)
        return
    if split is not None:
        raise ValueError(f"The split {split!r} was asked for, but {path} is a file and has none; leave it unset.")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{path} has no rows.")
    reader = {"json": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}[str(kind)]
    is_empty = True
    try:
        for row in reader(path):
            is_empty = False
            yield row
    except (ValueError, OSError, EOFError, csv.Error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error
    if is_empty:
        raise ValueError(f"{path} has no rows.")


def _open(path: str) -> IO[str]:
    opener = _PACKED.get(Path(path).suffix)
    if opener is None:
        return open(path, encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8-sig", newline="")  # type: ignore[arg-type]


def _json_rows(path: str) -> Iterator[dict]:
    """An object a line, or one list of objects."""
    with _open(path) as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        if start == "[":
            found = json.loads(start + file.read(), parse_float=Written)
            yield from (_as_row(row, f"entry {k}") for k, row in enumerate(found))
            return
        rest = start  # what was read of the first line
        for k, line in enumerate(file):
            line, rest = rest + line, ""
            if line.strip():
                try:
                    row = json.loads(line, parse_float=Written)
                except ValueError as error:
                    raise ValueError(f"line {k + 1}: {error}") from error
                yield _as_row(row, f"line {k + 1}")


def _as_row(row: Any, where: str) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object with columns, but {str(row)[:60]!r}")
    return row


def _csv_rows(path: str) -> Iterator[dict]:
    csv.field_size_limit(1 << 30)
    with _open(path) as file:
        reader = csv.DictReader(file, delimiter="\t" if ".tsv" in Path(path).suffixes else ",", strict=True)
        has_rows = False
        for row in reader:
            has_rows = True
            if None in row or None in row.values():
                raise ValueError(
                    f"line {reader.line_num} has not as many fields as the {len(reader.fieldnames or ())} columns"
                )
            yield {key: _cell(value) for key, value in row.items()}
        if not has_rows:
            raise ValueError("there is a header and no row")


def _cell(text: str) -> str | int | None:
    is_whole = text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 4000 and str(int(text)) == text
    return int(text) if is_whole else text or None


def _parquet_rows(path: str) -> Iterator[dict]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            yield from batch.to_pylist()


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _saved(path: str, split: str | None) -> Iterator[dict]:
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(path)
    if isinstance(found, DatasetDict):
        name = split or ("train" if "train" in found or len(found) > 1 else next(iter(found)))
        if name not in found:
            raise ValueError(f"{path} has no split {name!r}, but {', '.join(map(repr, found))}; name one of them.")
        found = found[name]
    elif split is not None:
        raise ValueError(f"The split {split!r} was asked for, but {path} holds one set without splits; leave it unset.")
    if len(found) == 0:
        raise ValueError(f"{path} has no rows.")
    yield from (dict(row) for row in found)
