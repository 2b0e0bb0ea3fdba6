"""The `--help` of a recipe: this package's options first and in groups, then TRL's, then transformers'.

Owns the groups and their order. The help text of an option is its entry in the docstring of the class that defines it.
"""

import argparse
import copy
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields

_GROUPS = {
    "student": ("model_name_or_path", "student", "add_call_tokens", "dtype", "merge_adapter", "citer_router"),
    "teacher": ("teacher", "max_teacher_failures"),
    "data": (
        *("dataset", "data_dir", "problem_column", "answer_column", "solution_column", "decontaminate", "validation"),
        *("prompt_template", "system_prompt", "is_chat", "chat_template", "max_prompt", "skip_long", "answer_marker"),
        *("warmup_data", "grading", "benchmarks", "split", "limit"),
    ),
    "calls": (
        "max_call",
        "fixed_call",
        "is_ended_by",
        "open_tag",
        "close_tag",
        "call",
        "num_orders",
        "step_",
        "search",
    ),
    "reward": ("reward", "extra_rewards", "min_pass_rate", "max_pass_rate"),
}
"""Groups of this package's options, and the prefixes of their names."""

_REST = "rollouts and the rest"
_OWNERS = {"trl": "TRL's options", "transformers": "transformers' options"}


_ENTRY = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?:\s+(.+(?:\n {8}.+)*)", re.MULTILINE)
"""An entry under `Args:` in a docstring, without indentation: name, type, text."""


def texts_of(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its parents say about its fields, by name, without their markup."""
    found = {}
    for parent in reversed(kind.__mro__):
        own = parent.__dict__.get("__annotations__", {})
        for name, text in _ENTRY.findall(inspect.cleandoc(parent.__doc__ or "")):
            if name in own:
                is_value = text.startswith("`")
                text = re.sub(r"\[`~?(?:[\w.]*\.)?(\w+)`\]", r"\1", " ".join(text.split())).replace("`", "")
                found[name] = text if is_value else text[:1].upper() + text[1:]
    return found


def add_texts(parser: argparse.ArgumentParser, kinds: Iterable[type]):
    """Gives the options of a parser that was filled from dataclasses their help texts, where they have none."""
    texts = {name: text for kind in kinds for name, text in texts_of(kind).items()}
    for action in parser._actions:
        if action.help is None and action.dest in texts:
            action.help = texts[action.dest].replace("%", "%%")


def owner_of(kind: type, name: str) -> str:
    """The package whose class defines a field."""
    for parent in kind.__mro__:
        if name in parent.__dict__.get("__annotations__", {}):
            return parent.__module__.partition(".")[0]
    return "relay_trl"


def group_of(kind: type, name: str) -> str:
    """The heading of an option's group."""
    if name not in ("model_name_or_path",) and (owner := owner_of(kind, name)) in _OWNERS:
        return _OWNERS[owner]
    return next((group for group, starts in _GROUPS.items() if name.startswith(starts)), _REST)


def grouped_help(parser: argparse.ArgumentParser, kinds: Iterable[type]) -> str:
    """The help of a parser that was filled from dataclasses.

    Args:
        parser (`argparse.ArgumentParser`).
        kinds (`Iterable[type]`): the dataclasses.
    """
    groups: dict[str, list[argparse.Action]] = {name: [] for name in (*_GROUPS, _REST, *_OWNERS.values())}
    places = {item.name: group_of(kind, item.name) for kind in kinds for item in fields(kind)}
    for action in parser._actions:
        name = action.dest.removeprefix("no_") if action.dest not in places else action.dest
        action = copy.copy(action)
        action.option_strings = action.option_strings[:1]  # without the spelling with hyphens, and no_ for false
        groups[places.get(name, _REST)].append(action)
    formatter = parser._get_formatter()
    formatter.add_text(
        f"usage: {parser.prog} --config FILE.yaml [--option value ...]   (the command line wins over the file)"
    )
    for heading, actions in groups.items():
        if actions:
            formatter.start_section(heading)
            formatter.add_arguments(actions)
            formatter.end_section()
    return formatter.format_help()
