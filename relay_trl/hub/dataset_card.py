"""The card of a data set: warm-up answers with inserted calls, or problems that a teacher can solve.

Owns its text and its metadata for the Hub. `hub/upload.py` uploads it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..data.sources import read_file
from ..pages.render import render
from ..redaction import redact

if TYPE_CHECKING:
    from datasets import Dataset

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LONGEST = 400  # characters of a value in the example

COLUMNS = {
    "prompt": "the problem, as it stands in its source",
    "problem": "the problem",
    "answer": "the gold answer",
    "completion": "the student's answer, with its calls and, where they were searched for, what the teacher wrote",
    "prompt_ids": "token ids of the prompt, in the student's vocabulary",
    "completion_ids": "token ids of the completion",
    "completion_mask": "1 for a token to learn, 0 for one that the teacher wrote",
    "calls": "commands in the completion",
}
"""Meanings of the columns in files of this package."""


def read_rows(path: str | Path) -> "Dataset":
    """The rows of a file that is pushed as a data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, cannot be read, or is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: the file {path} does not exist.")
    if path.suffix not in LOADERS:
        raise ValueError(f"data is {str(path)!r}; it must be one of {', '.join(LOADERS)}.")
    return read_file(LOADERS[path.suffix], str(path))


def write_dataset_card(
    folder: str | Path,
    rows: "Dataset",
    repo_id: str,
    file_name: str,
    licence: str | None = None,
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Writes README.md into `folder`.

    Args:
        folder (`str` or `Path`).
        rows ([`~datasets.Dataset`]): the rows.
        repo_id (`str`): id of the repository.
        file_name (`str`): name of the file in the repository.
        licence (`str`, *optional*): the Hub's identifier.
        source (`str`, *optional*): Hub id or name of the data that the rows were made from.
        settings (`dict`, *optional*): of the recipe that made the rows; secrets are left out.

    Returns:
        `Path`: README.md.
    """
    names = rows.column_names
    is_warmup = "completion_ids" in names
    metadata = DatasetCardData(
        license=licence,
        task_categories=["text-generation"],
        size_categories=[next((size for limit, size in _SIZES if len(rows) < limit), "n>1M")],
        source_datasets=[source] if source and source.count("/") == 1 and not Path(source).exists() else None,
        tags=["relay-trl", "warm-up" if is_warmup else "filtered"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": file_name}]}],
    )
    text = render(
        Path(__file__).with_name("dataset_card.md.j2"),
        card_data=metadata.to_yaml(),
        name=repo_id.rpartition("/")[2],
        repo_id=json.dumps(repo_id),
        is_warmup=is_warmup,
        is_searched="completion_mask" in names and any(0 in mask for mask in rows["completion_mask"]),
        num_rows=f"{len(rows):,}",
        num_calls=f"{sum(rows['calls']):,}" if "calls" in names else None,
        columns=[(name, COLUMNS.get(name, "-")) for name in names],
        example=json.dumps({name: _short(value) for name, value in rows[0].items()}, indent=2, ensure_ascii=False),
        licence=licence,
        source=redact(source),
        settings=[(name, json.dumps(value)) for name, value in sorted(redact(dict(settings or {})).items())],
    )
    DatasetCard(text)  # reads the metadata back, so that an error shows here and not on the Hub
    path = Path(folder) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 12 and all(isinstance(item, int) for item in value):
        return [*value[:12], f"... {len(value)} in all"]
    # Three backticks in a row would end the code block of the example.
    text = value.replace("```", "'''") if isinstance(value, str) else value
    return f"{text[:_LONGEST]} ..." if isinstance(text, str) and len(text) > _LONGEST else text
