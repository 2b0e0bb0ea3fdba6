"""Reads problems from the named sets of `registry.py`, from local files and from the Hub, and checks them.

Every row gets the columns `prompt` (the problem, or chat messages) and `answer` (the gold answer, or a list of accepted
answers); other columns are kept. `prompts.py` renders the prompts.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..grading.grader import last_boxed
from ..prompts import check_problem
from .embedded import EMBEDDED, load_task
from .files import KINDS, Written, kind_of, read_rows
from .registry import SOURCES, Source

logger = logging.getLogger(__name__)


def load_rows(
    name: str,
    data_dir: str | None = None,
    split: str | None = None,
    size: int | None = None,
    seed: int = 0,
    problem_column: str = "problem",
    answer_column: str = "answer",
    config: str | None = None,
    is_streamed: bool = False,
) -> list[dict]:
    """Rows with `prompt`, `answer` and `source_row`, from the registry, an embedded task, a local file or the Hub.

    Golds keep the digits that they are written with. A gold that is a whole solution is read as the final answer of it:
    behind the last `####`, or in the last box.

    Args:
        name (`str`): a name in [`SOURCES`], `"arithmetic"`, `"lookups"`, the path of a file (`.jsonl`, `.json`, `.csv`, `.tsv`,
            the same with `.gz`, `.bz2` or `.xz` behind it, `.parquet`) or of a folder that `save_to_disk` wrote, or a Hub
            dataset.
        data_dir (`str`, *optional*): folder with local copies of the registry's sets; `None` loads from the Hub.
        split (`str`, *optional*): of a Hub dataset or a saved folder (default `"train"`) or of an embedded task.
        size (`int`, *optional*): keep this many rows, chosen by `seed`; `None` keeps all.
        seed (`int`, defaults to `0`).
        problem_column, answer_column (`str`): columns of files and Hub datasets outside the registry; dots lead into nested
            ones (`reward_model.ground_truth`). Without a column `problem`, the default is `prompt`.
        config (`str`, *optional*): of a Hub dataset that has several.
        is_streamed (`bool`, defaults to `False`): take the first `size` rows and read no further.

    Raises:
        FileNotFoundError: a local file is missing.
        ValueError: the needed columns are missing, an option does not apply, or the set is unknown or empty.
    """
    if is_streamed and size is None:
        raise ValueError(f"{name} is to be streamed; set dataset_size to the number of rows to take.")
    if name in EMBEDDED:
        _refuse(name, "an embedded task", config=config)
        return load_task(name).problems(split or "train", size or 4096, seed)
    source = SOURCES.get(name)
    rows = _read(source, name, data_dir, split, config, is_streamed)
    found = list(itertools.islice(rows, size)) if is_streamed else list(rows)
    if not found:
        raise ValueError(f"{name} has no rows.")
    columns = list(dict.fromkeys(key for row in found for key in row))
    if source is not None:
        problem, gold = source.problem, source.gold
    else:
        problem = problem_column
        if problem == "problem" and "problem" not in columns:
            problem = "prompt"
        missing = [c for c in (problem, answer_column) if not any(_has(row, c) for row in found)]
        if missing:
            raise ValueError(
                f"{name} has no column {' and no column '.join(map(repr, missing))}; it has {columns}. Name "
                "the right ones with problem_column and answer_column."
            )
        gold = lambda row: final_gold(_cell(row, answer_column))  # noqa: E731
    places = range(len(found))
    if size is not None and size < len(found):
        places = np.random.default_rng(seed).permutation(len(found))[:size].tolist()
    empty = dict.fromkeys(columns)
    try:
        chosen = [{**empty, "source_row": k, **found[k]} for k in places]
        made = [_row(row, problem, gold, source.kind if source else None) for row in chosen]
    except KeyError as error:
        raise ValueError(f"{name} has no column {error}; it has {columns}.") from error
    for row in made:
        check_problem(row["prompt"], f"{name}, row {row['source_row']}")
    return made


def _row(row: dict, problem, gold, kind: str | None) -> dict:
    asked = {"prompt": _cell(row, problem) if isinstance(problem, str) else problem(row), "answer": _as_text(gold(row))}
    if asked["prompt"] is None:
        raise ValueError(f"Row {row['source_row']} has no problem: its column {problem!r} is empty.")
    others = {key: _plain(value) for key, value in row.items() if key != problem}
    if kind is not None and row.get(kind) is not None:  # a local copy may lack it
        others["kind"] = f"level {row[kind]}" if kind == "level" else str(row[kind])
    return {**others, **asked}


def _cell(row: dict, path: str):
    """What a row has in a column, perhaps a nested one; `None` if it lacks the nested one."""
    if path in row or "." not in path:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def _has(row: dict, path: str) -> bool:
    return path in row or ("." in path and _cell(row, path) is not None)


def final_gold(gold):
    """The final answer of a gold that is a whole solution, as GSM8K's are; any other gold as it is."""
    if isinstance(gold, list):
        return [final_gold(one) for one in gold]
    if not isinstance(gold, str):
        return gold
    _, marker, rest = gold.rpartition("####")
    if marker and rest.strip():
        return rest.strip().split("\n", 1)[0].strip()
    return last_boxed(gold) if "\\boxed" in gold else gold


def _as_text(gold):
    """A gold as it is written: readers take `42` for a number. `None` for one whose digits are lost."""
    if isinstance(gold, list):
        return [_as_text(one) for one in gold]
    if isinstance(gold, Written):
        return gold.text
    if isinstance(gold, float) and abs(gold) >= 2**53 and math.isfinite(gold):
        return None  # a float that large has not all digits of a whole number
    is_number = isinstance(gold, int | float | Decimal) and not isinstance(gold, bool) and math.isfinite(gold)
    return str(gold) if is_number else gold


def _plain(value):
    if isinstance(value, Written):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _refuse(name: str, what: str, **options: str | None):
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option} is {value!r}, but {name} is {what}, which has none; leave it unset.")


def _read(
    source: Source | None, name: str, data_dir: str | None, split: str | None, config: str | None, is_streamed: bool
) -> Iterator[dict]:
    from datasets import load_dataset

    if source is not None:
        _refuse(name, "a registered set", split=split, config=config)
        if data_dir is None:
            return iter(
                load_dataset(
                    *(source.hub_id, source.config),
                    split=source.split,
                    revision=source.revision,
                    streaming=is_streamed,  # type: ignore[arg-type]  (either value is one of its overloads)
                )
            )
        path = Path(data_dir) / source.file
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; put a copy of {source.hub_id} there, or leave data_dir unset to load it from the "
                "Hub."
            )
        return read_rows(str(path))
    kind = kind_of(name)
    if kind is not None:
        _refuse(name, "a local set", config=config)
        if not Path(name).exists():
            raise FileNotFoundError(f"The data file {name} does not exist.")
        return read_rows(name, kind, split)
    try:
        return iter(load_dataset(name, config, split=split or "train", streaming=is_streamed))
    except Exception as error:
        raise ValueError(
            f"{name!r} is not a known set ({', '.join([*EMBEDDED, *SOURCES])}), no file that can be read ({', '.join(KINDS)}, "
            f"packed or not), no folder of save_to_disk, and could not be loaded from the Hub ({type(error).__name__}: "
            f"{error}). A set with several configs needs dataset_config, one with other splits dataset_split."
        ) from error


def read_file(kind: str, path: str):
    """The rows of a file as a [`~datasets.Dataset`].

    Args:
        kind (`str`): `"json"` (one object a line), `"csv"` or `"parquet"`.
        path (`str`): an existing file.

    Raises:
        ValueError: it is empty, or has another format.
    """
    from datasets import load_dataset

    if not Path(path).read_bytes().strip():
        raise ValueError(f"{path} has no rows.")
    try:
        return load_dataset(kind, data_files=path, split="train")
    except Exception as error:  # its readers fail in many ways
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error


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
    rows: list[dict], lengths: list[int], budget: int, name: str, skip_long_prompts: bool = False
) -> list[dict]:
    """`rows` whose prompts fit the `budget` of tokens.

    Raises:
        ValueError: a prompt does not fit and `skip_long_prompts` is false. Prompts are never cut.
    """
    long = [i for i, length in enumerate(lengths) if length > budget]
    if not long:
        return rows
    shown = ", ".join(f"{rows[i].get('source_row', i)} ({lengths[i]} tokens)" for i in long[:5]) + (
        ", ..." if len(long) > 5 else ""
    )
    if not skip_long_prompts or len(long) == len(rows):
        raise ValueError(
            f"{name}: {len(long)} of {len(rows)} prompts are longer than max_prompt_length={budget}: rows {shown}. Raise "
            "max_prompt_length, or set skip_long_prompts to leave these rows out."
        )
    logger.warning(f"{name}: skipping {len(long)} of {len(rows)} rows with prompts over {budget} tokens: {shown}.")
    dropped = set(long)
    return [row for i, row in enumerate(rows) if i not in dropped]
