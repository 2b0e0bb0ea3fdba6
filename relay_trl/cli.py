"""What all recipes do with their command line: one YAML, unknown keys refused, and one sentence for what goes wrong."""

import atexit
import difflib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from safetensors import SafetensorError
from torch import distributed
from transformers import TrainingArguments
from trl import TrlParser

from .engines.base import Engine, EngineError
from .lost import explain, limit_waiting
from .redaction import redact

EXPECTED = (ValueError, TypeError, ImportError, OSError, EngineError, RuntimeError, SafetensorError)
"""Errors that a user can mend; they reach the terminal as one sentence."""


class RecipeParser(TrlParser):
    """[`~trl.TrlParser`] that names the nearest known keys of an unknown one."""

    def parse(self, args: list[str] | None = None) -> tuple:
        """The dataclasses, filled from `--config file.yaml` and the command line (which wins)."""
        args = list(sys.argv[1:] if args is None else args)
        for i, arg in enumerate(args):
            path = args[i + 1] if arg == "--config" and i + 1 < len(args) else arg.partition("--config=")[2]
            if path and not os.path.isfile(path):
                raise FileNotFoundError(f"The config file {path} does not exist.")
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        try:
            *filled, rest = self.parse_args_and_config(args=args, return_remaining_strings=True)
        except yaml.YAMLError as error:
            raise ValueError(f"The config file is no valid YAML: {error}") from error
        unknown = [word.lstrip("-").partition("=")[0] for word in rest if word.startswith("--")] or rest
        if unknown:
            known = sorted({action.dest for action in self._actions})
            near = {key: difflib.get_close_matches(key, known, 1) for key in unknown}
            hints = "; ".join(f"{k!r}" + (f" (did you mean {n[0]!r}?)" if n else "") for k, n in near.items())
            raise ValueError(f"Unknown option {hints}. Run with --help for all options.")
        check_launch(filled)
        return tuple(filled)

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        """The YAML's options as defaults; argparse does not look at the kind of a default."""
        texts = {action.dest for action in self._actions if action.nargs is None}
        for kind in self.dataclass_types:
            hints = get_type_hints(kind)
            for name in texts & kwargs.keys() & hints.keys():
                value = kwargs[name]
                if hints[name] in (str, str | None) and value is not None and not isinstance(value, str):
                    raise ValueError(f"{name} is {value!r}; it must be a text (in a YAML, put it in quotes).")
        return super().set_defaults_with_config(**kwargs)

    def error(self, message: str):
        """What argparse found wrong, without the hundreds of lines of usage that it would print."""
        raise ValueError(f"{message[:1].upper()}{message[1:]}. Run with --help for all options.")


def check_launch(configs: Iterable[object]):
    """Refuses a launch whose processes do not know of one another: each would train alone, as rank 0, without a word."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    for config in configs:
        known = getattr(config, "world_size", launched)
        if known != launched:
            raise ValueError(
                f"{launched} processes were launched, but each sees {known}. On CPUs set use_cpu: true in the recipe's YAML "
                "(with DeepSpeed: ddp_backend: gloo instead), or launch with --num_processes 1."
            )
    if launched > 1 and distributed.is_available() and distributed.is_initialized():
        for config in configs:
            if isinstance(config, TrainingArguments):
                limit_waiting(config.ddp_timeout)
        _check_same_everywhere(configs)


def _check_same_everywhere(configs: Iterable[Any]):
    """Refuses options that differ from process to process: they would train different models, or wait for ever."""
    own = {
        item.name: repr(redact(getattr(config, item.name, None), item.name))
        for config in configs
        for item in fields(config)
        if item.name != "local_rank"
    }
    all_of_them: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(all_of_them, own)
    for name in own:
        values = [options[name] for options in all_of_them]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            raise ValueError(
                f"{name} is {values[0]} in process 0 and {values[other]} in process {other}; every process must be given "
                "the same options."
            )


def check_file(path: str, what: str) -> str:
    """`path`, if there is such a file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what}: the file {path} does not exist.")
    return path


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
            f"{what}: {path!r} is neither a folder with a model nor a model that can be had from the Hub ({reason})"
        ) from error
    return path


def check_student(path: str | None, revision: str | None = None) -> str:
    """`path`, if it is a whole model that can be trained."""
    path = check_model(path, "model_name_or_path", revision)
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(
            f"model_name_or_path: {path} holds an adapter and no whole model; merge it first, with merge_adapter: true in the "
            "stage that trained it, or by recipes/merge_adapter.py."
        )
    return path


def check_context(path: str, prompt_tokens: int, completion_tokens: int, revision: str | None = None):
    """Refuses a completion budget that the model at `path` has no room for behind a prompt of `prompt_tokens`."""
    config = _config_of(path, revision)
    room = (config.get("text_config") or config).get("max_position_embeddings")
    if room is not None and prompt_tokens + completion_tokens > room:
        raise ValueError(
            f"{path} has room for {room} tokens, but the longest prompt ({prompt_tokens} tokens) and "
            f"max_completion_length={completion_tokens} need {prompt_tokens + completion_tokens}; lower "
            "max_completion_length."
        )


def check_teacher_context(teacher: Engine | None, prompts: Iterable[object], completion_tokens: int):
    """Refuses a teacher that has no room for its rendering of the longest prompt and a completion behind it.

    Args:
        teacher ([`Engine`], *optional*).
        prompts (`list`): its contexts, of [`~relay_trl.prompts.PromptBuilder.teacher_context`]; a text or a chat has no
            length that is known here.
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

    return PreTrainedConfig.get_config_dict(path, revision=revision)[0]  # runs no code of the model's repository


def model_kwargs(model_config, config) -> dict[str, Any]:
    """What `from_pretrained` takes of TRL's [`~trl.ModelConfig`]."""
    return {
        "revision": model_config.model_revision,
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
    }


def run(main: Callable[[], None]):
    """Runs a recipe's `main`; an expected error becomes one sentence on stderr and exit status 1.

    Set RELAY_TRL_TRACEBACK=1 to see where it came from.
    """
    status = 0
    try:
        main()
    except EXPECTED as error:
        if os.environ.get("RELAY_TRL_TRACEBACK") == "1":
            _print_frames(error)
        rank = os.environ.get("RANK", "0")
        where = f"[rank {rank}] " if rank != "0" else ""
        words = explain(error) or " ".join(str(error).split()) or type(error).__name__
        print(f"{where}error: {words}", file=sys.stderr, flush=True)
        status = 1
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        end_process(status)
    if status:
        sys.exit(status)


def end_in_order():
    """Makes a process end with 0 that was told to leave and left: uvicorn raises its signal once more when all has ended."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))


def end_process(status: int = 0):
    """Ends one of several processes as soon as what is registered for its end has run.

    A process group that is taken down with the interpreter, or by hand, aborts the process now and then, as threads of gloo
    are still running.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _print_frames(error: BaseException | None):
    """Where an error and its causes came from. Their words stay out: a server may have repeated a key in them."""
    while error is not None:
        print(f"{type(error).__name__}, from:", file=sys.stderr)
        traceback.print_tb(error.__traceback__)
        error = error.__cause__ or error.__context__
