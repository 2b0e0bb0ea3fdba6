"""The model card of a trained student, written beside its relay config.

Owns the contents of README.md (the text is in `model_card.md.j2`) and its metadata for the Hub. Uploads nothing: transformers'
`Trainer` pushes the folder that it saved, without checkpoints and names that begin with "_"; `hub/upload.py` pushes for
`recipes/push.py`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..pages.render import markdown_cell, render
from ..redaction import redact
from ..relay_config import RelayRecord, save_record
from ..run_files import write_atomically

FIGURES = {
    "sft": {"loss": "Loss", "mean_token_accuracy": "Token accuracy"},
    "grpo": {
        "relay/accuracy": "Accuracy",
        "relay/teacher_share": "Teacher share of the tokens",
        "relay/call_rate": "Rollouts with a call",
    },
}
"""Logged figures by stage. A card shows them if there are no results."""

RELAY_METHOD = "relay"
"""The method whose results go into the card's `model-index`."""


def write_model_card(
    folder: str | Path,
    record: RelayRecord,
    model_name: str | None = None,
    base_model: str | None = None,
    dataset_name: str | None = None,
    log_history: Sequence[Mapping[str, Any]] | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    licence: str | None = None,
    tags: str | Iterable[str] | None = (),
    *,
    repo_id: str | None = None,
    is_adapter: bool | None = None,
    licences: Mapping[str, str | None] | None = None,
    pictures: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes README.md and `relay_config.json` into `folder`.

    Args:
        folder (`str` or `Path`): the model's folder.
        record ([`RelayRecord`]): written too, because `Trainer` copies only the weights from a checkpoint's folder to the
            one that it pushes.
        model_name (`str`, *optional*): title, defaults to the folder's name.
        base_model (`str`, *optional*): defaults to the record's `student_base`; a Hub id goes into the metadata.
        dataset_name (`str`, *optional*): training set, defaults to the record's; a Hub id goes into the metadata (for a
            registered set, give [`Source.hub_id`]).
        log_history (`list[dict]`, *optional*): `trainer.state.log_history`, shown if there are no results.
        results (`list[dict]`, *optional*): a row for each benchmark and method: `benchmark`, `method`, `label` (defaults to the
            method), `accuracy`, `interval` (two bounds), `teacher_share`, `call_rate`, from 0 to 1, and `cost` (a text); all
            but the first two optional. Those of the method `"relay"` go into the metadata.
        licence (`str`, *optional*): the Hub's identifier, such as `"apache-2.0"`.
        tags (`list[str]`, *optional*): more tags.
        repo_id (`str`, *optional*): the model's id on the Hub, for the example; defaults to the folder's name.
        is_adapter (`bool`, *optional*): whether the model is a PEFT adapter; `None` looks into the folder.
        licences (`dict[str, str]`, *optional*): licences of other models by name; `None` for an unknown one.
        pictures (`dict[str, str]`, *optional*): captions by path, relative to `folder`.
        notes (`list[str]`): sentences below the table of results.

    Returns:
        `Path`: README.md.
    """
    folder = Path(folder)
    save_record(record, folder)
    model_name = model_name or folder.resolve().name
    base_model = base_model or record.student_base
    dataset_name = dataset_name or record.training_set
    if is_adapter is None:
        is_adapter = (folder / "adapter_config.json").is_file()
    metadata = ModelCardData(
        base_model=hub_id(base_model),
        datasets=[dataset] if (dataset := hub_id(dataset_name)) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        license=licence,
        model_name=model_name,
        tags=["relay-trl", "trl", record.stage, *([tags] if isinstance(tags, str) else tags or ())],
        eval_results=_eval_results(results),
    )
    if metadata.eval_results is None:
        metadata.pop("model_name")
    text = render(
        Path(__file__).with_name("model_card.md.j2"),
        filters={"code": code, "percent": percent, "json": json.dumps, "cell": cell},
        card_data=metadata.to_yaml(),
        record=record,
        model_name=model_name,
        repo_id=repo_id or str(folder),
        base_model=redact(base_model),
        base_id=metadata.base_model,
        dataset_name=redact(dataset_name),
        dataset_id=dataset,
        results=results,
        notes=notes,
        pictures=pictures or {},
        licences=licences or {},
        figures=last_figures(log_history, record.stage),
        labels=FIGURES[record.stage],
        licence=licence,
        has_teacher_url="://" in (record.teacher or ""),
        problem="78*6+49=" if record.training_set == "arithmetic" else "What is 78 times 6, plus 49?",
    )
    ModelCard(text)  # reads the metadata back, so that an error shows here and not on the Hub
    return write_atomically(folder / "README.md", text)


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a repository on the Hub, else `None`: paths and URLs do not belong in the metadata."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def last_figures(log_history: Sequence[Mapping[str, Any]] | None, stage: str) -> dict[str, float]:
    """The newest value of each of the stage's `FIGURES` in a training's log."""
    found = {}
    for entry in log_history or ():
        found |= {name: entry[name] for name in FIGURES[stage] if _is_number(entry.get(name))}
    return {name: found[name] for name in FIGURES[stage] if name in found}


def percent(value: Any, digits: int = 1) -> str:
    """0.8425 as `84.2 %`, a pair as `82.1-86.3 %`, and a dash if there is no number."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or not all(map(_is_number, value)):
            return "-"
        return f"{100 * value[0]:.{digits}f}-{100 * value[1]:.{digits}f} %"
    return f"{100 * value:.{digits}f} %" if _is_number(value) else "-"


def code(value: Any) -> str:
    """`value` as inline code, safe against backticks, line breaks and the bars of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.replace("\n", "\\n").replace("|", "\\|") or '""'
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def cell(value: Any) -> str:
    """`value` as a cell of a table."""
    return markdown_cell(value) or "-"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _eval_results(results: Sequence[Mapping[str, Any]]) -> list[EvalResult] | None:
    metrics = {"accuracy": "Accuracy", "teacher_share": "Teacher share of the tokens"}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_id(row.get("dataset")) or re.sub(r"[^\w.-]+", "-", row["benchmark"]),
            dataset_name=row["benchmark"],
            metric_type=key,
            metric_name=label,
            metric_value=round(float(row[key]), 6),
        )
        for row in results
        if row["method"] == RELAY_METHOD
        for key, label in metrics.items()
        if _is_number(row.get(key))
    ] or None
