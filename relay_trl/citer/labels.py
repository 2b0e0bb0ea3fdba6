"""The labels of CITER: at which positions of a reference solution the student's own token may stay.

Owns the three kinds of positions and the rounds of labelling. In round 1 the student finishes alone from its own token; from
round 2 on, student and teacher finish together under the router.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from ..engines.base import Engine, EngineError, Sampling
from ..engines.in_flight import ask_all
from ..grading.grader import Grader
from ..relay import RelayPrompt, RelayRules, ask_teacher
from ..spans import add_words
from ..trace import Author, Call, Span, StopReason, Trace
from .decoding import continue_by_router
from .engine import RoutedEngine


class Kind(StrEnum):
    """What decides the label: the student's token is that of the reference (1), else the teacher's is (0), else a roll-out."""

    STUDENT = "student"
    TEACHER = "teacher"
    OPEN = "open"


@dataclass(frozen=True)
class Reference:
    """A problem with a right solution.

    Args:
        prompt ([`RelayPrompt`]).
        ids (`list[int]`): the solution in the student's vocabulary, with the end token.
        gold (`str` or `list[str]`).
    """

    prompt: RelayPrompt
    ids: list[int]
    gold: str | list[str]


@dataclass
class Position:
    """One token of a reference.

    Args:
        question (`int`): index of the reference.
        index (`int`): index of the token.
        own (`int`): the student's likeliest token at this place.
        kind ([`Kind`]).
        label (`int`): 1 = keep the student's token.
    """

    question: int
    index: int
    own: int
    kind: Kind
    label: int


class Labeller:
    """Labels the positions of references.

    Args:
        references (`Sequence[Reference]`).
        student ([`RoutedEngine`]), teacher ([`Engine`]).
        grader ([`Grader`]): grades roll-outs.
        config ([`RelayRules`]): the syntax, and `max_completion_length` of the answers that the student finishes alone in
            round 1.
        temperature (`float`, defaults to `0.0`): of these answers and of roll-outs.
        max_in_flight (`int`, defaults to `256`): requests at a time.
        on_done (`Callable`): called after each request, for a progress bar.

    Attributes:
        positions (`list[Position]`): all positions, in order, after [`~Labeller.first_round`].
        states (`torch.Tensor` of shape (N, h)): the student's hidden state at each.
        questions (`torch.Tensor` of shape (N,)): the reference of each.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        student: RoutedEngine,
        teacher: Engine,
        grader: Grader,
        config: RelayRules,
        temperature: float = 0.0,
        max_in_flight: int = 256,
        on_done: Callable[[], object] = lambda: None,
    ):
        self.references = references
        self.student, self.teacher, self.grader = student, teacher, grader
        greedy = Sampling(temperature=0.0)
        self.config = replace(config, student=Sampling(temperature=temperature), teacher=greedy)
        self.max_in_flight = max_in_flight
        self.on_done = on_done
        self.positions: list[Position] = []
        self.states = self.questions = torch.empty(0)

    @property
    def labels(self) -> torch.Tensor:
        """The label of each position, shape (N,)."""
        return torch.tensor([position.label for position in self.positions])

    def counts(self) -> dict[str, int]:
        """Number of positions by kind, and how many of the open ones may keep the student's token."""
        by_kind = {kind.value: sum(p.kind is kind for p in self.positions) for kind in Kind}
        return {**by_kind, "open_kept": sum(p.label for p in self.positions if p.kind is Kind.OPEN)}

    async def first_round(self, seed: int = 0):
        """Reads the references. Where the student would write another token, it asks the teacher; where the teacher would
        too, the student finishes alone.
        """
        states, positions = [], []
        for question, reference in enumerate(self.references):
            found, own = self.student.read(reference.prompt.student, reference.ids)
            states.append(found)
            positions += [
                Position(question, t, token, Kind.STUDENT, 1)
                if token == reference.ids[t]
                else Position(question, t, token, Kind.TEACHER, 0)
                for t, token in enumerate(own)
            ]
            self.on_done()
        self.positions, self.states = positions, torch.cat(states)
        self.questions = torch.tensor([position.question for position in positions])
        other = [position for position in positions if position.kind is Kind.TEACHER]
        async for position, token in ask_all(other, self._teacher_token, self.max_in_flight):
            is_right = token == self.references[position.question].ids[position.index]
            position.kind = Kind.TEACHER if is_right else Kind.OPEN
            self.on_done()
        await self.label_open(0.0, self.config.max_completion_length, seed)

    def _begin(self, position: Position, with_own: bool) -> Trace:
        """The reference up to a position, with the student's own token if `with_own`."""
        reference = self.references[position.question]
        trace = Trace(prompt_ids=list(reference.prompt.student))
        vocabulary = self.student.vocabulary
        add_words(trace, Author.STUDENT, reference.ids[: position.index], vocabulary)
        if with_own:
            is_ended = position.own in vocabulary.eos_ids
            add_words(trace, Author.STUDENT, [position.own], vocabulary, is_ended=is_ended)
            if is_ended:
                trace.stop = StopReason.EOS
        return trace

    async def _teacher_token(self, position: Position) -> int | None:
        """The teacher's likeliest next token at a position, in the student's vocabulary."""
        trace = self._begin(position, with_own=False)
        trace.calls.append(Call(trace.num_tokens, requested=1))
        prompt = self.references[position.question].prompt
        await ask_teacher(trace, prompt, self.student.vocabulary, self.teacher, self.config, 2, self.config.teacher)
        _check(trace)
        if trace.stop is StopReason.TEACHER_EOS:
            return self.student.vocabulary.eos_id
        span: Span | None = trace.spans[-1] if trace.spans else None
        return span.ids[0] if span is not None and span.author is Author.TEACHER else None

    async def label_open(self, threshold: float, max_tokens: int, seed: int = 0):
        """A round: at the open positions the student finishes from its own token, with the teacher below `threshold` (0: without)."""
        open_ones = [position for position in self.positions if position.kind is Kind.OPEN]

        async def roll_out(i: int) -> str:
            trace = self._begin(open_ones[i], with_own=True)
            prompt = self.references[open_ones[i].question].prompt
            room = (self.student.max_context or sys.maxsize) - len(prompt.student)
            config = replace(self.config, max_completion_length=min(trace.num_tokens + max_tokens, room))
            if trace.stop is None and trace.num_tokens < room:
                rollout_seed = seed * 1_000_003 + i
                await continue_by_router(trace, prompt, self.student, self.teacher, config, threshold, rollout_seed)
            _check(trace)
            return trace.answer

        texts = [""] * len(open_ones)
        async for i, text in ask_all(range(len(open_ones)), roll_out, self.max_in_flight):
            texts[i] = text
            self.on_done()
        golds = [self.references[position.question].gold for position in open_ones]
        verdicts = await asyncio.to_thread(self.grader.grade, texts, golds)
        for position, verdict in zip(open_ones, verdicts, strict=True):
            position.label = int(verdict)


def _check(trace: Trace):
    if trace.stop is StopReason.TEACHER_ERROR:
        raise EngineError(f"The teacher failed, so there are no labels: {trace.error}")
