"""A student with its teacher, and the prompts and rules of their answers.

Owns the way from a conversation or a text to both models' prompts, and from the student's relay config and options to the
rules of an answer. `answer.py` answers; `app.py` has the HTTP routes.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..engines.base import Engine, EngineError, Sampling
from ..prompts import PromptBuilder
from ..relay import RelayPrompt, RelayRules
from ..relay_config import RelayRecord
from ..vocabulary import Vocabulary


class PromptError(ValueError):
    """The pair cannot answer this prompt. The message is for the client."""


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

    def chat(self, messages: list[dict[str, str]]) -> RelayPrompt:
        """The prompt of a conversation. Each user turn is put into the template that the student was trained with.

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
            prompt = self._builder.build(messages)
        except Exception as error:  # templates are programs and can raise anything
            raise PromptError(f"The model's chat template refuses these messages: {error}") from error
        return self._checked(prompt)

    def complete(self, text: str | list[int]) -> RelayPrompt:
        """The prompt of a text, or of the student's token ids, without a template.

        Raises:
            PromptError: it is empty, or has ids that the student does not have.
        """
        tokenizer = self.vocabulary.tokenizer
        if isinstance(text, str):
            ids = list(tokenizer(text)["input_ids"])
        else:
            ids = text
            if not all(0 <= token < self.vocabulary.size for token in ids):
                raise PromptError(f"The prompt has token ids outside 0 to {self.vocabulary.size - 1}.")
            begin = next((k for k, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))
            text = tokenizer.decode(ids[begin:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # The token that begins the student's prompt would be words to a teacher, which has a beginning of its own
        while tokenizer.bos_token and text.startswith(tokenizer.bos_token):
            text = text.removeprefix(tokenizer.bos_token)
        return self._checked(RelayPrompt(ids, self._for_teacher(text, ids)))

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

    def _checked(self, prompt: RelayPrompt) -> RelayPrompt:
        if not prompt.student:
            raise PromptError("The prompt is empty.")
        return prompt

    def room_for(self, prompt: RelayPrompt) -> int:
        """Most tokens of an answer to `prompt`."""
        most = self.rules.max_completion_tokens
        if self.student.max_context is not None:
            most = min(most, self.student.max_context - len(prompt.student))
        return most
