"""The record of one rollout: who wrote what, which calls were made, and what follows from it.

Owns ids, loss mask, logprobs, texts and shares of a rollout. `relay.py` writes it; training, evaluation and serving read it.
It knows no engine and does not judge the answer.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum


class Author(StrEnum):
    """Who wrote a span. `CLOSING` is the end token that is added when the teacher has ended the answer."""

    STUDENT = "student"
    TEACHER = "teacher"
    CLOSING = "closing"


class StopReason(StrEnum):
    """Why a rollout ended."""

    EOS = "eos"
    TEACHER_EOS = "teacher_eos"
    LENGTH = "length"
    TEACHER_ERROR = "teacher_error"
    STUDENT_ERROR = "student_error"


class Outcome(StrEnum):
    """What became of a command: answered by the teacher, denied by a limit, or failed with the teacher."""

    ANSWERED = "answered"
    DENIED = "denied"
    FAILED = "failed"


@dataclass
class Span:
    """Tokens written by one author without interruption.

    Args:
        author ([`Author`]).
        ids (`list[int]`): in the student's vocabulary; a student's exactly as sampled.
        text (`str`): their text, without end tokens.
        logprobs (`list[float]`, *optional*): one per id of a student's span, if the engine gives them.
        kept_ids (`list[int]`): `ids` without well-formed commands and end tokens; the teacher sees these.
        kept_text (`str`): the text of `kept_ids`.
        removed (`int`): how many tokens shorter the span becomes when its commands are removed.
        malformed (`int`): number of open tags that begin no well-formed command.
    """

    author: Author
    ids: list[int]
    text: str
    logprobs: list[float] | None = None
    kept_ids: list[int] = field(default_factory=list)
    kept_text: str = ""
    removed: int = 0
    malformed: int = 0


@dataclass
class Call:
    """One well-formed command.

    Args:
        position (`int`): number of completion tokens up to the end of the command.
        requested (`int`): the n it asked for.
        granted (`int`): tokens the teacher was allowed to write.
        delivered (`int`): tokens that the teacher wrote into the completion.
        outcome ([`Outcome`]).
        wait_s (`float`): seconds spent waiting for the teacher.
    """

    position: int
    requested: int
    granted: int = 0
    delivered: int = 0
    outcome: Outcome = Outcome.DENIED
    wait_s: float = 0.0


@dataclass
class Reading:
    """What one model read in a rollout, over all its answered requests, as its engine counts it.

    Args:
        tokens (`int`, *optional*): tokens of the contexts; `None` if the engine does not report them.
        cached (`int`, *optional*): how many of them came from the prefix cache; `None` if the engine does not report it.
    """

    tokens: int | None = 0
    cached: int | None = 0

    def add(self, tokens: int | None, cached: int | None):
        """Adds one request. If a count of one request is unknown, so is the sum."""
        self.tokens = None if self.tokens is None or tokens is None else self.tokens + tokens
        self.cached = None if self.cached is None or cached is None else self.cached + cached


@dataclass
class Trace:
    """What happened in one rollout. T is the number of completion tokens.

    Args:
        prompt_ids (`list[int]`): the student's prompt.
        spans (`list[Span]`): the completion, in order.
        calls (`list[Call]`): its well-formed commands, in order.
        stop ([`StopReason`], *optional*): why it ended; `None` while it is being written.
        error (`str`, *optional*): the teacher's error, if one ended the rollout. Never part of a text.
        student_read ([`Reading`]), teacher_read ([`Reading`]): what each model read.
    """

    prompt_ids: list[int]
    spans: list[Span] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    stop: StopReason | None = None
    error: str | None = None
    student_read: Reading = field(default_factory=Reading)
    teacher_read: Reading = field(default_factory=Reading)

    @property
    def completion_ids(self) -> list[int]:
        """All tokens after the prompt, shape (T,)."""
        return [token for span in self.spans for token in span.ids]

    @property
    def loss_mask(self) -> list[int]:
        """1 for tokens that the student sampled, commands included, and 0 for all others, shape (T,)."""
        return [int(span.author is Author.STUDENT) for span in self.spans for _ in span.ids]

    @property
    def logprobs(self) -> list[float] | None:
        """The student's logprobs, 0.0 where it did not sample, shape (T,); `None` if its engine gives none."""
        student = [span for span in self.spans if span.author is Author.STUDENT]
        if any(span.logprobs is None for span in student):
            return None
        return [p for span in self.spans for p in (span.logprobs or [0.0] * len(span.ids))]

    @property
    def text(self) -> str:
        """The whole completion as text, with commands and without the end token."""
        return "".join(span.text for span in self.spans)

    @property
    def answer(self) -> str:
        """The completion as a reader gets it: without commands."""
        return "".join(span.kept_text for span in self.spans)

    @property
    def kept_ids(self) -> list[int]:
        """The completion without commands and end token, in the student's vocabulary."""
        return [token for span in self.spans for token in span.kept_ids]

    @property
    def num_tokens(self) -> int:
        """T, the number of completion tokens."""
        return sum(len(span.ids) for span in self.spans)

    @property
    def teacher_tokens(self) -> int:
        """Completion tokens that the teacher wrote."""
        return sum(len(span.ids) for span in self.spans if span.author is Author.TEACHER)

    @property
    def answer_tokens(self) -> int:
        """Completion tokens without those of commands."""
        return self.num_tokens - sum(span.removed for span in self.spans)

    @property
    def teacher_share(self) -> float:
        """rho: teacher tokens / completion tokens without commands; 0 for an empty completion.

        Unlike in section 3.3 of the paper, delivered tokens count and not requested ones, and the tokens of commands are left
        out, so that commands cannot dilute the share.
        """
        return self.teacher_tokens / self.answer_tokens if self.answer_tokens else 0.0

    @property
    def has_called(self) -> bool:
        """Whether the student made any well-formed command, answered or not."""
        return bool(self.calls)

    @property
    def malformed(self) -> int:
        """Number of malformed commands in the student's text."""
        return sum(span.malformed for span in self.spans)

    @property
    def has_failed(self) -> bool:
        """Whether an engine failed, so that the rollout says nothing about the student."""
        return self.stop in (StopReason.TEACHER_ERROR, StopReason.STUDENT_ERROR)

    def to_dict(self) -> dict:
        """A JSON-ready form, read back by [`Trace.from_dict`]."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Trace":
        """The trace that [`Trace.to_dict`] wrote."""
        return cls(
            prompt_ids=list(data["prompt_ids"]),
            spans=[Span(**{**span, "author": Author(span["author"])}) for span in data["spans"]],
            calls=[Call(**{**call, "outcome": Outcome(call["outcome"])}) for call in data["calls"]],
            stop=None if data["stop"] is None else StopReason(data["stop"]),
            error=data.get("error"),
            # older files do not have these
            student_read=Reading(**data.get("student_read", {"tokens": None, "cached": None})),
            teacher_read=Reading(**data.get("teacher_read", {"tokens": None, "cached": None})),
        )
