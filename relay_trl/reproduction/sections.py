"""The sections of a pair file: the recipe of each section, and the options of this recipe.

Owns the table of sections and the refusal of an unknown key. `pair.py` reads the values.
"""

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A recipe as a stage.

    Args:
        name (`str`): its name in `recipes/`, without suffix.
        title (`str`): what it does, for messages.
        classes (`tuple[str, ...]`): its config classes, `module:name`.
        is_launched (`bool`, defaults to `False`): whether it is started with `accelerate launch`.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    is_launched: bool = False


_DATA, _MODEL = "relay_trl.data.config:DataConfig", "trl:ModelConfig"

_WARMUP = "relay_trl.data.warmup:WarmupConfig"
_SFT = ("relay_trl.training:RelaySFTConfig", _MODEL)

SECTIONS = {
    "warmup": Recipe("build_warmup", "warm-up data: the student's own answers with calls put in", (_DATA, _WARMUP)),
    "sft": Recipe("sft_warmup", "warm-up: the syntax of a call", _SFT, is_launched=True),
    "second_warmup": Recipe("build_warmup", "warm-up data once more, of other problems", (_DATA, _WARMUP)),
    "second_sft": Recipe("sft_warmup", "second warm-up: goes on from the first", _SFT, is_launched=True),
    "filter": Recipe(
        "filter_by_teacher",
        "training set: the problems that the teacher can solve",
        (_DATA, "relay_trl.data.teacher_filter:FilterConfig"),
    ),
    "grpo": Recipe(
        "grpo_relay",
        "GRPO: when to call, and for how long",
        (_DATA, "relay_trl.training:RelayGRPOConfig", _MODEL),
        is_launched=True,
    ),
    "citer": Recipe("train_citer", "CITER's router", (_DATA, "relay_trl.citer.config:CiterConfig")),
    "evaluate": Recipe("evaluate", "evaluation", ("relay_trl.evaluation.config:EvaluationConfig",)),
    "push": Recipe("push", "push to the Hub", ("relay_trl.hub.upload:PushConfig",)),
}
"""All sections by name, in the order in which they run."""

FIRST = {"second_warmup": "warmup", "second_sft": "sft"}
"""For each second stage, the first one, whose options it has where its own section does not say otherwise."""


@cache
def options_of(section: str) -> frozenset[str]:
    """The names of all options of a section's recipe."""
    return frozenset(item.name for kind in load_classes(section) for item in fields(kind) if item.init)


def load_classes(section: str) -> tuple[Any, ...]:
    """The config classes of a section's recipe."""
    return tuple(_load(path) for path in SECTIONS[section].classes)


def _load(path: str) -> type:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def check_known(given: Iterable[str], known: Iterable[str], where: str):
    """Refuses the first unknown key.

    Raises:
        ValueError: with the key, the section and the most similar known key.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            few = f"; it has {', '.join(known)}" if not near and len(known) <= 20 else ""
            raise ValueError(f"{where} has no option {key!r}{hint}{few}.")
