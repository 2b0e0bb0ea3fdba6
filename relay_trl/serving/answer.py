"""One answer of the pair: a relay whose text goes through a [`Reader`], which can stop it.

Owns the contents of an answer, how several are written at once, and how a stop string or a cancellation ends the work of
both engines.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..engines.base import Engine
from ..relay import RelayPrompt, RelayRules, relay, turn_seed
from ..trace import Author, Call, Outcome, StopReason, Trace
from .logprobs import Place, score_answer
from .reader import Delta, Reader


@dataclass(frozen=True)
class Question:
    """What one answer depends on.

    Args:
        prompt ([`RelayPrompt`]).
        config ([`RelayRules`]).
        seed (`int`, *optional*): the same seed gives the same ids as in training and evaluation.
        stop (`tuple[str, ...]`): the answer ends before the first of these.
        shows_commands (`bool`, defaults to `False`): whether commands stay in the text.
        use_teacher (`bool`, defaults to `True`): whether the teacher may be asked.
        top_logprobs (`int`, *optional*): score the answer's tokens, and give so many of the likeliest at each place.
        is_echo (`bool`, defaults to `False`): whether the prompt is part of the answer.
        is_silent (`bool`, defaults to `False`): whether nothing is written; with `is_echo` the prompt alone is scored.
    """

    prompt: RelayPrompt
    config: RelayRules
    seed: int | None = None
    stop: tuple[str, ...] = ()
    shows_commands: bool = False
    use_teacher: bool = True
    top_logprobs: int | None = None
    is_echo: bool = False
    is_silent: bool = False


@dataclass
class Answer:
    """The answer to a question.

    Args:
        trace ([`Trace`]): the rollout. If a stop string ended it, the last turn is missing.
        spans (`list[Delta]`): who wrote what, as the client gets it.
        is_stopped (`bool`): whether a stop string ended it.
        places (`list[Place]`, *optional*): its tokens with logprobs, if they were asked for.
        is_scored (`bool`): whether each of these has a logprob of the model that wrote it.
    """

    trace: Trace
    spans: list[Delta]
    is_stopped: bool
    places: list[Place] | None = None
    is_scored: bool = False

    @property
    def text(self) -> str:
        """The answer as the client gets it."""
        return "".join(span.text for span in self.spans)

    @property
    def calls(self) -> list[Call]:
        """The student's commands, in order."""
        return self.trace.calls

    @property
    def has_failed_teacher(self) -> bool:
        """Whether the teacher failed at a call and the student went on alone."""
        return any(call.outcome is Outcome.FAILED for call in self.calls)

    @property
    def student_tokens(self) -> int:
        """Tokens that the student wrote, with commands and the end token."""
        return sum(span.tokens for span in self.spans if span.author is Author.STUDENT)

    @property
    def teacher_tokens(self) -> int:
        """Tokens of the answer that the teacher wrote."""
        return sum(span.tokens for span in self.spans if span.author is Author.TEACHER)

    @property
    def finish_reason(self) -> str:
        """`"stop"` or `"length"`, as in OpenAI's API."""
        return "length" if self.trace.stop is StopReason.LENGTH and not self.is_stopped else "stop"


async def answer(
    question: Question, student: Engine, teacher: Engine | None, on_delta: Callable[[Delta], None] | None = None
) -> Answer:
    """Lets the pair answer. If this is cancelled, so are the requests to both engines.

    Args:
        question ([`Question`]).
        student ([`Engine`]), teacher ([`Engine`], *optional*).
        on_delta (`Callable[[Delta], None]`, *optional*): gets every piece as it is written.

    Raises:
        EngineError: the student failed.
    """
    trace = Trace([])
    reader = Reader(question.config.syntax, question.stop, question.shows_commands, on_delta)
    is_heard = on_delta is not None or bool(question.stop)
    if question.is_silent:
        trace.prompt_ids, trace.stop = list(question.prompt.student), StopReason.LENGTH
        return await _scored(Answer(trace, [], False), question, student, teacher)
    job = relay(
        question.prompt,
        student,
        teacher if question.use_teacher else None,
        question.config,
        question.seed,
        listener=reader if is_heard else None,
        trace=trace,
    )
    if is_heard:
        task = asyncio.ensure_future(job)
        reader.on_stop = task.cancel
        async with ended_together([task]):
            await asyncio.wait({task})
        if not (task.cancelled() and reader.is_stopped):
            task.result()
    else:
        await job
        for span in trace.spans:
            if span.author is not Author.CLOSING:
                reader(span.author, span.text, len(span.ids))
    reader.close()
    if trace.stop is None:
        _close_cut_turn(trace, reader)
    return await _scored(Answer(trace, reader.spans, reader.is_stopped), question, student, teacher)


async def _scored(found: Answer, question: Question, student: Engine, teacher: Engine | None) -> Answer:
    """The answer with its tokens' scores, if they were asked for."""
    if question.top_logprobs is not None:
        syntax = question.config.syntax
        found.places, found.is_scored = await score_answer(
            question.prompt,
            found.trace,
            found.text,
            question.top_logprobs,
            question.is_echo,
            question.shows_commands,
            student,
            teacher,
            (syntax.open_tag, syntax.close_tag),
        )
    return found


News: TypeAlias = list[tuple[int, Delta | Answer]]
"""What has been written since the last news: pieces, and answers that ended, each with the number of its question."""


async def answer_all(
    questions: Sequence[Question],
    student: Engine,
    teacher: Engine | None,
    tell: Callable[[News], Awaitable[None]] | None = None,
    most_quiet_s: float | None = None,
) -> list[Answer]:
    """Lets the pair answer several questions at once. If one fails, or this is cancelled, all end.

    Args:
        questions (`Sequence[Question]`).
        student ([`Engine`]), teacher ([`Engine`], *optional*).
        tell (`Callable[[News], Awaitable[None]]`, *optional*): is awaited with the news as they come.
        most_quiet_s (`float`, *optional*): after so many seconds without news, `tell` gets an empty list.

    Raises:
        EngineError: the student failed.
    """
    came = asyncio.Event()
    pieces: list[tuple[int, Delta]] = []

    def listener(index: int) -> Callable[[Delta], None]:
        def hear(delta: Delta):
            last_index, last = pieces[-1] if pieces else (None, delta)
            if last_index == index and last.author is delta.author:
                pieces[-1] = index, Delta(delta.author, last.text + delta.text, last.tokens + delta.tokens)
            else:
                pieces.append((index, delta))
            came.set()

        return hear

    tasks = [
        asyncio.ensure_future(answer(question, student, teacher, None if tell is None else listener(index)))
        for index, question in enumerate(questions)
    ]
    async with ended_together(tasks):
        if tell is None:
            return await asyncio.gather(*tasks)
        for task in tasks:
            task.add_done_callback(lambda _: came.set())
        running = dict(enumerate(tasks))
        while running:
            with suppress(TimeoutError):  # then there are no news, which is told too
                async with asyncio.timeout(most_quiet_s):
                    await came.wait()
            came.clear()
            ended = [index for index, task in running.items() if task.done()]
            news: News = [*pieces, *((index, running.pop(index).result()) for index in ended)]
            pieces.clear()
            await tell(news)
    return [task.result() for task in tasks]


@asynccontextmanager
async def ended_together(tasks: Sequence[asyncio.Future[Any]]) -> AsyncIterator[None]:
    """At the end of the block, cancels the `tasks` that still run and waits until they have stopped."""
    try:
        yield
    finally:
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


def choice_seed(seed: int | None, index: int) -> int | None:
    """The seed of answer number `index` to a question. The first answer has the question's own seed."""
    return seed if index == 0 else turn_seed(seed, -index)


def _close_cut_turn(trace: Trace, reader: Reader):
    """Completes the trace for a turn that a stop string cut short: of a call, what the reader got of it. What the model read
    for it stays unknown, because an engine reports that at the end.
    """
    call = trace.calls[-1] if trace.calls else None
    if call is None or not call.granted or call.outcome is not Outcome.DENIED:
        trace.student_read.add(None, None)
        return
    trace.teacher_read.add(None, None)
    call.outcome = Outcome.ANSWERED
    call.delivered = reader.tokens_of(Author.TEACHER) - trace.teacher_tokens
