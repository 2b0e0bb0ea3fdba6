"""The command line of all recipes: options from one YAML, and unknown keys refused."""

import difflib
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, get_type_hints

import yaml
from trl import TrlParser

from .help_text import add_texts, grouped_help

# YAML 1.1 reads 1e-6 as a text; 1.2, and whoever writes one, as a number
yaml.SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)

_SWITCHES = {"scale_rewards"}
"""Options of type `str` that TRL gives a truth value too."""


class RecipeParser(TrlParser):
    """[`~trl.TrlParser`] that refuses unknown keys and names the most similar known one."""

    def __init__(self, dataclass_types: type | Iterable[type]):
        super().__init__(dataclass_types)  # type: ignore[arg-type]
        add_texts(self, self.dataclass_types)

    def parse(self, args: list[str] | None = None) -> tuple:
        """The dataclasses, filled from `--config file.yaml` and the command line, which overrides it."""
        args = list(sys.argv[1:] if args is None else args)
        for i, arg in enumerate(args):
            path = args[i + 1] if arg == "--config" and i + 1 < len(args) else arg.partition("--config=")[2]
            if path and not os.path.isfile(path):
                raise FileNotFoundError(f"The config file {path} does not exist.")
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        try:
            *filled, rest = self.parse_args_and_config(args=args, return_remaining_strings=True)
        except yaml.YAMLError as error:
            raise ValueError(f"The config file is not valid YAML: {error}") from error
        unknown = [word.lstrip("-").partition("=")[0] for word in rest if word.startswith("--")] or rest
        if unknown:
            for kind in self.dataclass_types:
                if hasattr(kind, "check_unknown"):
                    kind.check_unknown(unknown)
            known = sorted({action.dest for action in self._actions})
            near = {key: difflib.get_close_matches(key, known, 1) for key in unknown}
            hints = "; ".join(f"{k!r}" + (f" (did you mean {n[0]!r}?)" if n else "") for k, n in near.items())
            raise ValueError(f"Unknown option {hints}. Run with --help for all options.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from .launch import check_launch  # imports torch

            check_launch(filled)
        return tuple(filled)

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        """The YAML's options as defaults, with their types checked: argparse does not check the type of a default."""
        texts = {action.dest for action in self._actions if action.nargs is None}
        for kind in self.dataclass_types:
            hints = get_type_hints(kind)
            for name in texts & kwargs.keys() & hints.keys():
                value = kwargs[name]
                if name in _SWITCHES and isinstance(value, bool):
                    continue
                if hints[name] in (str, str | None) and value is not None and not isinstance(value, str):
                    raise ValueError(f"{name} is {value!r}; it must be a text (in a YAML, put it in quotes).")
        return super().set_defaults_with_config(**kwargs)

    def format_help(self) -> str:
        """Our options first, in groups, with their defaults."""
        return grouped_help(self, self.dataclass_types)

    def error(self, message: str):
        """Raises argparse's error without the hundreds of lines of usage."""
        raise ValueError(f"{message[:1].upper()}{message[1:]}. Run with --help for all options.")


def model_kwargs(model_config, config) -> dict[str, Any]:
    """What `from_pretrained` takes of TRL's [`~trl.ModelConfig`]."""
    return {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
    }
