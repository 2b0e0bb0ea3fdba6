"""Reads problems from the named sets of `registry.py`, from local files and from the Hub, and checks them.

Every row gets the columns `prompt` (the problem, or chat messages) and `answer` (the gold answer, or a list of accepted
answers); other columns are kept. `prompts.py` renders the prompts.
"""

import logging
import math
from pathlib import Path
from typing import Protocol

from .embedded import EMBEDDED, load_task
from .registry import SOURCES, Source, column

logger = logging.getLogger(__name__)


def load_rows(
    name: str,
    data_dir: str | None = None,
    split: str | None = None,
    size: int | None = None,
    seed: int = 0,
    problem_column: str = "problem",
    answer_column: str = "answer",
) -> list[dict]:
    """Rows with `prompt`, `answer` and `source_row`, from the registry, an embedded task, a local file or the Hub.

    Args:
        name (`str`): a name in [`SOURCES`], `"arithmetic"`, `"lookups"`, the path of a `.jsonl`, `.json`, `.csv` or `.parquet` file,
            or a Hub dataset.
        data_dir (`str`, *optional*): folder with local copies of the registry's sets; `None` loads from the Hub.
        split (`str`, *optional*): of a Hub dataset (default `"train"`) or of an embedded task.
        size (`int`, *optional*): keep so many rows, chosen by `seed`; `None` keeps all.
        seed (`int`, defaults to `0`).
        problem_column, answer_column (`str`): columns of files and Hub datasets outside the registry. A `prompt` column
            is taken where there is no `problem_column`.

    Raises:
        FileNotFoundError: a local file is missing.
        ValueError: the needed columns are missing, or the set is unknown or empty.
    """
    if name in EMBEDDED:
        return load_task(name).problems(split or "train", size or 4096, seed)
    source = SOURCES.get(name)
    if source is not None:
        table = _read(source, data_dir)
        problem, gold = source.problem, source.gold
    else:
        table = _read_unregistered(name, split)
        problem = problem_column if problem_column in table.column_names else "prompt"
        missing = [c for c in (problem, answer_column) if c not in table.column_names]
        if missing:
            raise ValueError(
                f"{name} has no column {' and no column '.join(map(repr, missing))}; it has {table.column_names}. Name "
                "the right ones with problem_column and answer_column."
            )
        gold = column(answer_column)
    if len(table) == 0:
        raise ValueError(f"{name} has no rows.")
    if "source_row" not in table.column_names:  # so that messages can name a row by its place in the file
        table = table.add_column("source_row", list(range(len(table))))
    if size is not None and size < len(table):
        table = table.shuffle(seed=seed).select(range(size))
    rows: list[dict] = table.to_list()
    try:
        return [_row(row, problem, gold, source.kind if source else None) for row in rows]
    except KeyError as error:
        raise ValueError(f"{name} has no column {error}; it has {table.column_names}.") from error


def _row(row: dict, problem, gold, kind: str | None) -> dict:
    asked = {"prompt": row[problem] if isinstance(problem, str) else problem(row), "answer": _as_text(gold(row))}
    others = {key: value for key, value in row.items() if key != problem}
    if kind is not None and row.get(kind) is not None:  # a local copy may lack it
        others["kind"] = f"level {row[kind]}" if kind == "level" else str(row[kind])
    return {**others, **asked}


def _as_text(gold):
    """A gold answer as text: readers of JSON and CSV take `42` for a number."""
    if isinstance(gold, list):
        return [_as_text(one) for one in gold]
    is_number = isinstance(gold, int | float) and not isinstance(gold, bool) and math.isfinite(gold)
    return str(gold) if is_number else gold


def _read(source: Source, data_dir: str | None):
    from datasets import load_dataset

    if data_dir is None:
        return load_dataset(source.hub_id, source.config, split=source.split, revision=source.revision)
    path = Path(data_dir) / source.file
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; put a copy of {source.hub_id} there, or leave data_dir unset to load it from the Hub."
        )
    return read_file("json", str(path))


def read_file(kind: str, path: str):
    """The rows of a file as a [`~datasets.Dataset`].

    Args:
        kind (`str`): `"json"` (one object a line), `"csv"` or `"parquet"`.
        path (`str`): an existing file.

    Raises:
        ValueError: it is empty, or has another format.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if not Path(path).read_bytes().strip():
        raise ValueError(f"{path} has no rows.")
    try:
        return load_dataset(kind, data_files=path, split="train")
    except (DatasetGenerationError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error


def _read_unregistered(name: str, split: str | None):
    from datasets import load_dataset

    kinds = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    suffix = Path(name).suffix
    if suffix in kinds:
        if not Path(name).exists():
            raise FileNotFoundError(f"The data file {name} does not exist.")
        return read_file(kinds[suffix], name)
    try:
        return load_dataset(name, split=split or "train")
    except Exception as error:
        raise ValueError(
            f"{name!r} is not a known set ({', '.join([*EMBEDDED, *SOURCES])}), not a .jsonl, .json, .csv or .parquet file, "
            f"and could not be loaded from the Hub ({type(error).__name__}: {error})."
        ) from error


class CanGrade(Protocol):
    """The part of a grader that is needed here."""

    def is_gradable(self, gold) -> bool: ...


def drop_ungradable(rows: list[dict], grader: CanGrade, name: str) -> list[dict]:
    """`rows` without those whose gold answer is empty or does not match itself; a warning counts and names these.

    Raises:
        ValueError: no row is left.
    """
    bad = [i for i, row in enumerate(rows) if not grader.is_gradable(row["answer"])]
    if bad:
        shown = ", ".join(str(rows[i].get("source_row", i)) for i in bad[:10]) + (", ..." if len(bad) > 10 else "")
        logger.warning(f"{name}: skipping {len(bad)} of {len(rows)} rows with an empty or unreadable answer: {shown}.")
    dropped = set(bad)
    kept = [row for i, row in enumerate(rows) if i not in dropped]
    if not kept:
        raise ValueError(f"{name}: none of its {len(rows)} rows has an answer that can be graded.")
    return kept


def drop_overlong(
    rows: list[dict], lengths: list[int], budget: int, name: str, is_skipping: bool = False
) -> list[dict]:
    """`rows` whose prompts fit the `budget` of tokens.

    Raises:
        ValueError: a prompt does not fit and `is_skipping` is false. Prompts are never cut.
    """
    long = [i for i, length in enumerate(lengths) if length > budget]
    if not long:
        return rows
    shown = ", ".join(f"{rows[i].get('source_row', i)} ({lengths[i]} tokens)" for i in long[:5]) + (
        ", ..." if len(long) > 5 else ""
    )
    if not is_skipping or len(long) == len(rows):
        raise ValueError(
            f"{name}: {len(long)} of {len(rows)} prompts are longer than max_prompt_length={budget}: rows {shown}. Raise "
            "max_prompt_length, or set skip_long_prompts to leave these rows out."
        )
    logger.warning(f"{name}: skipping {len(long)} of {len(rows)} rows with prompts over {budget} tokens: {shown}.")
    dropped = set(long)
    return [row for i, row in enumerate(rows) if i not in dropped]
