"""Options that more than one stage shares: which problems, and how they are asked.

Owns names, defaults and limits of these options, as dataclasses that the stages' own configs inherit.
"""

import json
import os
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from .call_syntax import CallSyntax
from .engines.base import APIS, BACKENDS
from .prompts import check_template
from .redaction import redact


def mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """An option that is a mapping: in a YAML as such, on the command line as JSON.

    Raises:
        ValueError: it is not a mapping.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is {value!r}; it must be JSON.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; it must be a JSON object.")
    return value


def template_options(config: Any) -> dict[str, Any]:
    """`chat_template_kwargs` of a stage's config; thinking is off unless asked for."""
    given = mapping("chat_template_kwargs", getattr(config, "chat_template_kwargs", None))
    return {"enable_thinking": False, **(given or {})}


def given_options(config: Any) -> dict[str, Any]:
    """The options that are not at their default, by name."""
    given = {}
    for item in fields(config):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        value = getattr(config, item.name)
        is_no = default == "no" and value is False  # as a YAML and argparse read it
        if value != default and not is_no:
            given[item.name] = value
    return given


def refuse_without(config: Any, names: Collection[str], setting: str):
    """Refuses options that are not at their default, as `setting`, without which they have no effect, is not met.

    Raises:
        ValueError: with the first of them, its value, and the setting.
    """
    for name, value in redact(given_options(config)).items():
        if name in names:
            raise ValueError(
                f"{name} is {value!r}, which has an effect with {setting} only; leave it out, or set that."
            )


def check_file(path: str, what: str) -> str:
    """`path`, if there is such a file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what}: the file {path} does not exist.")
    return path


def broken_groups(batch: int, processes: int, steps: int, group: int) -> str | None:
    """What is wrong with a draw of rollouts that leaves a group incomplete; `None` if all groups are complete.

    Args:
        batch (`int`): `per_device_train_batch_size`.
        processes (`int`), steps (`int`): number of processes, and `steps_per_generation`.
        group (`int`): `num_generations`.
    """
    rollouts = batch * processes * steps
    if rollouts % group == 0:
        return None
    return (
        f"{batch} (per_device_train_batch_size) x {processes} (processes) x {steps} (steps_per_generation) = "
        f"{rollouts} rollouts are no whole groups of num_generations={group}"
    )


@dataclass
class PromptFields:
    """How prompts are built and answers are read, the same in every stage.

    Args:
        prompt_template (`str`, defaults to `"{problem}"`): the user's turn.
        system_prompt (`str`, *optional*): a system turn.
        is_chat (`bool`, *optional*): use the chat template; `None` uses it where there is one.
        max_prompt_length (`int`, defaults to `4096`): most tokens of a prompt; longer ones stop the run before it begins.
        skip_long_prompts (`bool`, defaults to `False`): leave rows with longer prompts out instead.
        answer_marker (`str`, *optional*): the final answer is what follows the last of these; `None`: the last `\\boxed{}`.
        open_tag (`str`): begins a command.
        close_tag (`str`): ends a command; the command is `open_tag`, a number, `close_tag`.
    """

    prompt_template: str = "{problem}"
    system_prompt: str | None = None
    is_chat: bool | None = None
    max_prompt_length: int = 4096
    skip_long_prompts: bool = False
    answer_marker: str | None = None
    open_tag: str = "<call>"
    close_tag: str = "</call>"

    @property
    def syntax(self) -> CallSyntax:
        """The command's syntax."""
        return CallSyntax(self.open_tag, self.close_tag)

    def check_prompts(self):
        """Refuses tags and templates that cannot work.

        Raises:
            ValueError: with the name of the field.
        """
        self.syntax  # noqa: B018  (its own checks)
        check_template(self.prompt_template)
        if self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length is {self.max_prompt_length}; it must be at least 1.")

    def prompt_options(self) -> dict[str, Any]:
        """The options of a [`~relay_trl.prompts.PromptBuilder`]; thinking is off unless asked for."""
        return {
            "template": self.prompt_template,
            "system": self.system_prompt,
            "is_chat": self.is_chat,
            "chat_template_kwargs": template_options(self),
        }


@dataclass(kw_only=True)
class TrainedFields:
    """How a trained student is asked, and the rules of its relay. An unset field is that of its relay config.

    Args:
        max_completion_length (`int`, from the student): most tokens of an answer, all included.
        max_calls (`int`, from the student): answered calls per answer.
        max_call_tokens (`int`, from the student): most tokens of one answer of the teacher.
        is_ended_by_teacher (`bool`, from the student): a teacher's end is the answer's end.
        teacher_temperature (`float`, from the student): sampling temperature of the teacher.
        prompt_template (`str`, from the student): the user's turn; {problem} is filled in.
        system_prompt (`str`, from the student): a system turn.
        is_chat (`bool`, from the student): use the chat template.
        chat_template_kwargs (`dict`, from the student): JSON, for the template.
        open_tag (`str`, from the student): begins a command.
        close_tag (`str`, from the student): ends a command.
    """

    max_completion_length: int | None = None
    max_calls: int | None = None
    max_call_tokens: int | None = None
    is_ended_by_teacher: bool | None = None
    teacher_temperature: float | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    is_chat: bool | None = None
    chat_template_kwargs: dict[str, Any] | str | None = None
    open_tag: str | None = None
    close_tag: str | None = None


@dataclass
class TeacherFields:
    """The teacher and how it is reached.

    Args:
        teacher (`str`, *optional*): a folder, a Hub id or the URL of an OpenAI-compatible server; `None`: no teacher. A
            list of URLs, joined with blanks here, is a pool: servers of one model that share the work.
        teacher_backend (`str`, defaults to `"auto"`): `auto`, `transformers`, `vllm` or `openai`.
        teacher_tokenizer (`str`, *optional*): tokenizer of a teacher behind a URL, if the server does not tell.
        teacher_model (`str`, *optional*): the model's name on its server; `None` takes the only one.
        teacher_api (`str`, defaults to `"completions"`): `completions`; `chat` for a server that has nothing else, whose
            template gets `chat_template_kwargs`; `instruct` for a chat server that continues no answer that is begun: it is
            asked for a continuation in words, which is weaker.
        teacher_extra_body (`dict`, *optional*): fields put into every request to the teacher's server; `null` leaves one of
            ours out.
        teacher_headers (`dict`, *optional*): headers of every request to it. Never written anywhere.
        teacher_top_p (`float`, defaults to `1.0`): nucleus of the teacher.
        teacher_timeout_s (`float`, defaults to `120`): seconds for one answer.
        teacher_retries (`int`, defaults to `4`): of a failed request, with back-off.
        teacher_concurrency (`int`, defaults to `64`): requests under way at once, per server.
    """

    teacher: str | None = field(default=None, metadata={"nargs": "+"})
    teacher_backend: str = "auto"
    teacher_tokenizer: str | None = None
    teacher_model: str | None = None
    teacher_api: str = "completions"
    teacher_extra_body: dict[str, Any] | str | None = None
    teacher_headers: dict[str, Any] | str | None = None
    teacher_top_p: float = 1.0
    teacher_timeout_s: float = 120.0
    teacher_retries: int = 4
    teacher_concurrency: int = 64

    def check_teacher(self):
        """Refuses an unknown backend or API, and joins a list of servers into one text."""
        if isinstance(self.teacher, list):
            lacking = [name for name in self.teacher if "://" not in name]
            if lacking and len(self.teacher) > 1:
                raise ValueError(
                    f"teacher has several entries, so each must be a URL of a server; {lacking[0]!r} is none."
                )
            self.teacher = " ".join(self.teacher)
        for name in ("teacher_extra_body", "teacher_headers"):
            setattr(self, name, mapping(name, getattr(self, name)))
        for name, known in (("teacher_backend", BACKENDS), ("teacher_api", APIS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")

    def teacher_options(self) -> dict[str, Any]:
        """Options of the teacher's engine; see [`~relay_trl.engines.loading.load_engine`]."""
        return {
            "backend": self.teacher_backend,
            "tokenizer": self.teacher_tokenizer,
            "model": self.teacher_model,
            "api": self.teacher_api,
            "extra_body": mapping("teacher_extra_body", self.teacher_extra_body),
            "headers": mapping("teacher_headers", self.teacher_headers),
            "chat_template_kwargs": template_options(self),
            "timeout_s": self.teacher_timeout_s,
            "max_retries": self.teacher_retries,
            "max_concurrency": self.teacher_concurrency,
            "option_prefix": "teacher_",
        }
