"""A problem as the prompt of each model. All stages use the same builder, so that their prompts do not differ.

Owns templates and chat formats. The rows come from `data/`.
"""

import datetime
import functools
import logging
from array import array
from dataclasses import dataclass, field
from typing import Any

from .engines.base import Context, Engine
from .relay import RelayPrompt

logger = logging.getLogger(__name__)

BOXED_TEMPLATE = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
"""The instruction of the paper's runs."""


def check_template(template: str):
    """Refuses a template that cannot hold a problem.

    Raises:
        ValueError: it has no `{problem}`, or other braces that are not doubled.
    """
    if "{problem}" not in template:
        raise ValueError(f"The prompt template {template!r} has no '{{problem}}' as the place of the problem.")
    try:
        template.format(problem="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"The prompt template {template!r} cannot be filled in ({error!r}); only '{{problem}}' may stand in "
            "braces, write literal braces as '{{' and '}}'."
        ) from error


def _clock(name: str, template: str, form: str) -> str:
    """`strftime_now` of a chat template."""
    _warn_of_clock(name, template)
    return datetime.datetime.now().strftime(form)


@functools.cache
def _warn_of_clock(name: str, template: str):
    remedy = "save its tokenizer with a template that names a day"
    if "date_string" in template:
        remedy = 'give all stages one day, such as chat_template_kwargs: {date_string: "01 Jan 2026"}'
    logger.warning(
        "The chat template of %s reads the clock, so tomorrow's prompts differ from today's; %s.",
        name or "a model",
        remedy,
    )


def check_problem(problem: Any, where: str = "A problem"):
    """Refuses a problem that no model can be asked.

    Args:
        problem (`str` or `list[dict]`): a text, or chat messages with `role` and `content`; a content may be a list of text
            parts.
        where (`str`): its place, for the message.

    Raises:
        ValueError: it is empty or of another type.
    """
    if isinstance(problem, str):
        if not problem.strip():
            raise ValueError(f"{where}: the problem is empty; give it a text, or leave the row out.")
        return
    is_chat = isinstance(problem, list) and problem and all(isinstance(m, dict) and "role" in m for m in problem)
    if not is_chat:
        raise ValueError(
            f"{where}: the problem is {_short(problem)}; it must be a text, or a list of messages with role and content."
        )
    for message in problem:
        if not _content(message.get("content"), where).strip():
            raise ValueError(
                f"{where}: the message of the {message['role']} is empty; give it a text, or leave it out."
            )


def _content(content: Any, where: str = "A problem") -> str:
    """The text of a message, whose content may be a list of text parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    written = [text for text in texts if isinstance(text, str)]
    if len(written) < len(texts):
        raise ValueError(f"{where}: a message has the content {_short(content)}; it must be a text, or text parts.")
    return "".join(written)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


@dataclass
class PromptBuilder:
    """Renders problems for the student and the teacher.

    Args:
        student ([`~transformers.PreTrainedTokenizerBase`]): the student's tokenizer.
        teacher ([`Engine`], *optional*): the chat template of its vocabulary renders the teacher's prompt; an engine without
            a vocabulary gets chat messages or text.
        template (`str`, defaults to `"{problem}"`): the user turn, or the whole prompt of a model without a chat template.
            Literal braces are doubled.
        system (`str`, *optional*): a system turn.
        is_chat (`bool`, *optional*): whether to use the chat template; `None` uses it if the tokenizer has one.
        chat_template_kwargs (`dict`): passed to both models' chat templates; thinking is off unless asked for.
    """

    student: Any
    teacher: Engine | None = None
    template: str = "{problem}"
    system: str | None = None
    is_chat: bool | None = None
    chat_template_kwargs: dict = field(default_factory=lambda: {"enable_thinking": False})

    def __post_init__(self):
        check_template(self.template)
        if self.is_chat and not getattr(self.student, "chat_template", None):
            raise ValueError("is_chat is true, but the student's tokenizer has no chat template; leave it unset.")
        self._check_system(self.student)
        self.use_teacher(self.teacher)

    def use_teacher(self, teacher: Engine | None):
        """Renders for this teacher from now on.

        Raises:
            ValueError: its chat template has no place for the system turn.
        """
        self.teacher = teacher
        if (vocabulary := getattr(teacher, "vocabulary", None)) is not None:
            self._check_system(vocabulary.tokenizer)

    def messages(self, problem: str | list[dict]) -> list[dict]:
        """The conversation that asks `problem`; a list of messages is taken as it is."""
        if isinstance(problem, list) and all(isinstance(message, dict) for message in problem):
            return [
                {**message, "content": _content(message["content"])}
                if isinstance(message.get("content"), list)
                else message
                for message in problem
            ]
        if not isinstance(problem, str):
            check_problem(problem)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.template.format(problem=problem)}]

    def _is_chat(self, tokenizer) -> bool:
        return bool(getattr(tokenizer, "chat_template", None)) and self.is_chat is not False

    def _render(self, tokenizer, messages: list[dict], **options: Any) -> Any:
        clock = functools.partial(_clock, getattr(tokenizer, "name_or_path", ""), str(tokenizer.chat_template))
        try:
            return tokenizer.apply_chat_template(
                messages,
                **options,
                **{"strftime_now": clock, "add_generation_prompt": True, **self.chat_template_kwargs},
            )
        except Exception as error:  # a template may raise anything
            roles = ", ".join(str(message["role"]) for message in messages)
            hint = "leave system_prompt out, as it may take no system turn" if self.system else "use another template"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} cannot render turns of {roles} ({reason}); {hint}, or set "
                "is_chat: false."
            ) from error

    def _check_system(self, tokenizer):
        """Refuses a system turn that the chat template leaves out."""
        if not self.system or not self._is_chat(tokenizer):
            return
        if str(self.system).strip() not in self._render(tokenizer, self.messages("1"), tokenize=False):
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} leaves the system turn out, so system_prompt would have no "
                "effect; write it into prompt_template."
            )

    def _ids(self, tokenizer, problem: str | list[dict]) -> list[int]:
        if self._is_chat(tokenizer):
            rendered = self._render(tokenizer, self.messages(problem), tokenize=True, return_dict=True)
            return list(rendered["input_ids"])
        return list(tokenizer(self.text(problem))["input_ids"])

    def text(self, problem: str | list[dict]) -> str:
        """The prompt of a model without a chat template."""
        return "\n\n".join(message["content"] for message in self.messages(problem))

    def student_ids(self, problem: str | list[dict]) -> list[int]:
        """The student's prompt."""
        return self._ids(self.student, problem)

    def teacher_context(self, problem: str | list[dict]) -> Context | None:
        """The teacher's prompt in the form that its engine accepts; `None` without a teacher."""
        if self.teacher is None:
            return None
        if self.teacher.vocabulary is not None:
            return self._ids(self.teacher.vocabulary.tokenizer, problem)
        return (
            self.messages(problem) if getattr(self.teacher, "api", "") in ("chat", "instruct") else self.text(problem)
        )

    def build(self, problem: str | list[dict]) -> RelayPrompt:
        """Both prompts."""
        return RelayPrompt(self.student_ids(problem), self.teacher_context(problem))


@dataclass
class RunPrompts(PromptBuilder):
    """A [`PromptBuilder`] that tokenizes each problem once for a tokenizer: a training asks the same ones over and over."""

    _known: dict[tuple[int, str], array] = field(default_factory=dict, repr=False)

    def _ids(self, tokenizer, problem: str | list[dict]) -> list[int]:
        key = (id(tokenizer), repr(problem))
        if key not in self._known:
            self._known[key] = array("i", super()._ids(tokenizer, problem))
        return self._known[key].tolist()
