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

    def messages(self, problem: str | list[dict]) -> list[dict]:
        """The conversation that asks `problem`; a list of messages is taken as it is."""
        if not isinstance(problem, str):
            return list(problem)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.template.format(problem=problem)}]

    def _ids(self, tokenizer, problem: str | list[dict]) -> list[int]:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if has_template and self.is_chat is not False:
            clock = functools.partial(_clock, getattr(tokenizer, "name_or_path", ""), str(tokenizer.chat_template))
            rendered = tokenizer.apply_chat_template(
                self.messages(problem),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **{"strftime_now": clock, **self.chat_template_kwargs},
            )
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
