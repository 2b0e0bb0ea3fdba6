"""A student with its teacher, and the prompts and rules of their answers.

Owns the way from a conversation or a text to both models' prompts, and from the student's relay config and options to a
question. `answer.py` answers; `app.py` has the HTTP routes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..engines.base import Engine, EngineError, Sampling
from ..prompts import PromptBuilder
from ..relay import RelayPrompt, RelayRules
from ..relay_config import RelayRecord
from ..vocabulary import Vocabulary
from .answer import Question

_STUDENT = ("temperature", "top_p", "top_k", "min_p")
_RULES = ("max_calls", "max_call_tokens", "max_teacher_tokens", "call_bias", "fixed_call_tokens", "is_ended_by_teacher")


class PromptError(ValueError):
    """The pair cannot answer this prompt. The message is for the client.

    Args:
        message (`str`).
        param (`str`, *optional*): the parameter of a request that is wrong.
        code (`str`, defaults to `"invalid_prompt"`): a code for programs.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_prompt"):
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Pair:
    """A student, its teacher and how the student was trained.

    Args:
        student ([`Engine`]): one that gives token ids.
        teacher ([`Engine`], *optional*): with `None`, calls get no answer.
        record ([`RelayRecord`]): tags, limits and prompts.
        sampling ([`Sampling`]): how the student samples by default.
        teacher_top_p (`float`, defaults to `1.0`).
        has_template (`bool`, defaults to `True`): whether the prompt template and the system prompt that the student was
            trained with are put around a conversation; else it goes to the models as it is.
    """

    student: Engine
    teacher: Engine | None
    record: RelayRecord
    sampling: Sampling = Sampling(temperature=0.7)
    teacher_top_p: float = 1.0
    has_template: bool = True

    def __post_init__(self):
        if self.student.vocabulary is None:
            raise EngineError(
                f"The student {self.student.name!r} gives no token ids here; give its tokenizer (student_tokenizer), and "
                "use a server that returns ids (vLLM)."
            )

    @cached_property
    def rules(self) -> RelayRules:
        """The default rules of an answer. The student goes on alone if its teacher fails."""
        rules = self.record.relay_config(is_stopped_by_failure=False, student=self.sampling)
        return replace(rules, teacher=replace(rules.teacher, top_p=self.teacher_top_p))

    @property
    def vocabulary(self) -> Vocabulary:
        """The student's vocabulary."""
        assert self.student.vocabulary is not None
        return self.student.vocabulary

    @property
    def holds_conversation(self) -> bool:
        """Whether the student can have several turns: it has a chat template and was trained with it."""
        return self.record.is_chat is not False and bool(getattr(self.vocabulary.tokenizer, "chat_template", None))

    @property
    def _builder(self) -> PromptBuilder:
        # Built for each request, because the teacher's server may come up later.
        return self.record.prompt_builder(self.vocabulary.tokenizer, self.teacher)

    def chat(self, messages: list[dict[str, str]], template: Mapping[str, Any] = {}) -> RelayPrompt:  # noqa: B006
        """The prompt of a conversation. Each user turn is put into the template that the student was trained with.

        Args:
            messages (`list[dict]`).
            template (`Mapping`): further arguments of both models' chat templates, over those of the record.

        Raises:
            PromptError: a chat template refuses it.
        """
        if self.has_template:
            messages = [
                {**m, "content": self.record.prompt_template.format(problem=m["content"])} if m["role"] == "user" else m
                for m in messages
            ]
            if self.record.system_prompt and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self.record.system_prompt}, *messages]
        try:
            builder = self._builder
            builder.chat_template_kwargs = {**builder.chat_template_kwargs, **template}
            prompt = builder.build(messages)
        except Exception as error:  # templates are programs and can raise anything
            raise PromptError(f"The model's chat template refuses these messages: {error}", "messages") from error
        return self._checked(prompt, "messages")

    def complete(self, given: str | list[int]) -> RelayPrompt:
        """The prompt of a text, or of the student's token ids, without a template.

        Raises:
            PromptError: it is empty, or has ids that the student does not have.
        """
        tokenizer = self.vocabulary.tokenizer
        if isinstance(given, str):
            text, ids = given, list(tokenizer(given)["input_ids"])
        else:
            ids = given
            self.check_ids(ids, "prompt")
            begin = next((k for k, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))
            text = tokenizer.decode(ids[begin:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # The token that begins the student's prompt would be words to a teacher, which has a beginning of its own
        while tokenizer.bos_token and text.startswith(tokenizer.bos_token):
            text = text.removeprefix(tokenizer.bos_token)
        return self._checked(RelayPrompt(ids, self._for_teacher(text, ids)), "prompt")

    def check_ids(self, ids: list[int], param: str):
        """Refuses ids that the student does not have."""
        if not all(0 <= token < self.vocabulary.size for token in ids):
            raise PromptError(f"The {param} has token ids outside 0 to {self.vocabulary.size - 1}.", param)

    def _for_teacher(self, text: str, ids: list[int]) -> Any:
        teacher = self.teacher
        if teacher is None:
            return None
        if teacher.vocabulary is None:
            return [{"role": "user", "content": text}] if getattr(teacher, "api", "") in ("chat", "instruct") else text
        tags = (self.record.open_tag, self.record.close_tag)
        foreign = self.vocabulary.foreign_to(teacher.vocabulary, tags)
        if foreign is not None and not foreign.intersection(ids):
            return ids
        # A model without a token to begin with begins behind an end
        return list(teacher.vocabulary.tokenizer(text)["input_ids"]) or [teacher.vocabulary.eos_id]

    def _checked(self, prompt: RelayPrompt, param: str) -> RelayPrompt:
        if not prompt.student:
            raise PromptError("The prompt is empty.", param)
        return prompt

    def question(
        self,
        prompt: RelayPrompt,
        *,
        seed: int | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        show_commands: bool = False,
        use_teacher: bool = True,
        top_logprobs: int | None = None,
        echo: bool = False,
        **options: Any,
    ) -> Question:
        """The question of a prompt.

        Args:
            prompt ([`RelayPrompt`]).
            seed (`int`, *optional*), stop (`str` or `Sequence[str]`): see [`Question`].
            max_tokens (`int`, *optional*): most tokens of the answer, if there is room for them; 0 writes none.
            show_commands (`bool`, defaults to `False`), use_teacher (`bool`, defaults to `True`), top_logprobs (`int`,
                *optional*), echo (`bool`, defaults to `False`): see [`Question`].
            **options: `temperature`, `top_p`, `top_k` and `min_p` of the student; `max_calls`, `max_call_tokens`,
                `max_teacher_tokens`, `call_bias`, `fixed_call_tokens` and `is_ended_by_teacher` of the relay.

        Raises:
            TypeError: an unknown option.
            PromptError: there is no room for an answer after the prompt.
            ValueError: an option is out of its range.
        """
        unknown = [name for name in options if name not in (*_STUDENT, *_RULES)]
        if unknown:
            raise TypeError(f"There is no option {', '.join(unknown)}; see Pair.question for all of them.")
        room = self.room_for(prompt)
        if room < 1:
            raise PromptError(
                f"The prompt has {len(prompt.student)} tokens; there is room for {self.student.max_context}, answer included.",
                code="context_length_exceeded",
            )
        rules = replace(
            self.rules,
            max_completion_length=room if not max_tokens else min(max_tokens, room),
            student=replace(self.rules.student, **{name: options.pop(name) for name in _STUDENT if name in options}),
            **options,
        )
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        return Question(prompt, rules, seed, stop, show_commands, use_teacher, top_logprobs, echo, max_tokens == 0)

    def room_for(self, prompt: RelayPrompt) -> int:
        """Most tokens of an answer to `prompt`."""
        most = self.rules.max_completion_length
        if self.student.max_context is not None:
            most = min(most, self.student.max_context - len(prompt.student))
        return most
