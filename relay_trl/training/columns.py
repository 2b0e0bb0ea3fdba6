"""The columns of a dataset that a training uses: `prompt`, `answer`, and those that per-rollout rewards name.

Owns what is refused of a dataset before the run. All other columns stay behind: TRL takes some names, such as `images`, for its own.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from ..prompts import check_problem
from ..rewards import load_function

_TRLS = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
_IMAGES = {"image", "images"}


def reward_columns(rewards: Sequence[Callable]) -> set[str]:
    """The columns that per-rollout rewards name in their signatures; `**kwargs` names none."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name for reward in rewards for p in inspect.signature(reward).parameters.values() if p.kind in kinds}
    return {name for name in named - _TRLS if not name.startswith("relay_")}


def used_columns(dataset: Any, rewards: Sequence[Callable], what: str) -> Any:
    """`dataset` with the columns that are used, its problems checked.

    Args:
        dataset ([`~datasets.Dataset`], or a `dict` of them).
        rewards (`Sequence[Callable]`): per-rollout rewards.
        what (`str`): what people call the dataset.

    Raises:
        ValueError: it is no such dataset, a needed column is missing, or a problem is none.
    """
    if isinstance(dataset, dict):
        return {name: used_columns(part, rewards, f"{what}[{name!r}]") for name, part in dataset.items()}
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{what} is of type {type(dataset).__name__}; it must be a datasets.Dataset, which has a length."
        )
    for name in ("prompt", "answer"):
        if name not in dataset.column_names:
            raise ValueError(
                f"{what} has no column {name!r}; it has {', '.join(dataset.column_names)}. It needs prompt (the problem) and "
                "answer (the gold answer)."
            )
    named = reward_columns(rewards)
    if named & _IMAGES & set(dataset.column_names):
        raise ValueError(
            f"A reward asks for the column {min(named & _IMAGES)!r} of {what}, which TRL takes for pictures of a prompt; "
            "rename the column."
        )
    for i, problem in enumerate(dataset["prompt"]):
        check_problem(problem, f"{what}, row {i}")
    kept = [name for name in dataset.column_names if name in {"prompt", "answer"} | named]
    return dataset.select_columns(kept)


def to_dataset(rows: Sequence[dict], extra_rewards: Sequence[str] | None) -> Dataset:
    """A dataset of the columns of `rows` that are used. Where one answer is a list of accepted ones, all are lists.

    Args:
        rows (`Sequence[dict]`).
        extra_rewards (`Sequence[str]`, *optional*): dotted paths of per-rollout rewards.

    Raises:
        ValueError: a column that is used has values of several types.
    """
    named = reward_columns([load_function(path, "extra_rewards") for path in extra_rewards or ()])
    names = dict.fromkeys(("prompt", "answer", *sorted(named)))
    columns = {name: [row.get(name) for row in rows] for name in names if any(name in row for row in rows)}
    answers = columns["answer"]
    if any(isinstance(answer, list) for answer in answers):
        columns["answer"] = [answer if isinstance(answer, list) else [answer] for answer in answers]
    parts = []
    for name, values in columns.items():
        try:
            parts.append(Dataset.from_dict({name: values}))
        except (ValueError, TypeError) as error:
            kinds = sorted({type(value).__name__ for value in values})
            raise ValueError(
                f"The column {name!r} has values of several types ({', '.join(kinds)}); give all rows the same type."
            ) from error
    return concatenate_datasets(parts, axis=1)
