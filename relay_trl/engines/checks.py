"""Checks from a model's config whether it can be used, before its weights are loaded.

Owns the refusals of folders without a model, of pickles, and of contexts that are too short.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .base import Engine


def check_model(path: str | None, what: str, revision: str | None = None) -> str:
    """`path`, if it is a folder with a model, or a model on the Hub; looks at its config only."""
    if not path:
        raise ValueError(f"{what} is not set; give a folder with a model or a Hub id.")
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        if not os.path.isfile(os.path.join(path, "adapter_config.json")):
            raise FileNotFoundError(f"{what}: the folder {path} has no config.json, so there is no model in it.")
        return path
    pickles = sorted(name.name for name in Path(path).glob("pytorch_model*.bin"))
    if pickles and not any(Path(path).glob("*.safetensors")):
        raise ValueError(
            f"{what}: {path} has its weights in {pickles[0]}, a pickle, which may run code as it is read; save the model "
            "again with safe_serialization, as safetensors."
        )
    try:
        _config_of(path, revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{what}: {path!r} is neither a folder with a model nor a model that the Hub has ({reason})"
        ) from error
    return path


def check_student(path: str | None, revision: str | None = None) -> str:
    """`path`, if it is a complete model that can be trained."""
    path = check_model(path, "model_name_or_path", revision)
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(
            f"model_name_or_path: {path} holds an adapter and no whole model; merge it first, with merge_adapter: true in the "
            "stage that trained it, or by recipes/merge_adapter.py."
        )
    return path


def check_context(path: str, prompt_tokens: int, completion_tokens: int, revision: str | None = None):
    """Refuses a completion budget that does not fit into the context of the model at `path` after a prompt of `prompt_tokens`."""
    config = _config_of(path, revision)
    room = (config.get("text_config") or config).get("max_position_embeddings")
    if room is not None and prompt_tokens + completion_tokens > room:
        raise ValueError(
            f"{path} has room for {room} tokens, but the longest prompt ({prompt_tokens} tokens) and "
            f"max_completion_length={completion_tokens} need {prompt_tokens + completion_tokens}; lower "
            "max_completion_length."
        )


def check_teacher_context(teacher: Engine | None, prompts: Iterable[object], completion_tokens: int):
    """Refuses a teacher whose context is too short for its rendering of the longest prompt and a completion.

    Args:
        teacher ([`Engine`], *optional*).
        prompts (`list`): its contexts from [`~relay_trl.prompts.PromptBuilder.teacher_context`]. The length of a text or
            a chat is not known here.
        completion_tokens (`int`): `max_completion_length`.
    """
    room = None if teacher is None else teacher.max_context
    longest = max((len(p) for p in prompts if isinstance(p, list) and p and isinstance(p[0], int)), default=0)
    if teacher is not None and room is not None and longest + completion_tokens > room:
        raise ValueError(
            f"The teacher {teacher.name} has room for {room} tokens, but its longest prompt ({longest} tokens) and "
            f"max_completion_length={completion_tokens} need {longest + completion_tokens}; lower max_completion_length, or "
            "serve the teacher with a larger --max-model-len."
        )


def _config_of(path: str, revision: str | None) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    return PreTrainedConfig.get_config_dict(path, revision=revision)[0]  # runs no code from the model's repository
