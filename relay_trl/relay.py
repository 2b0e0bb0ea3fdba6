"""The coroutine at the centre: one prompt, a student, a teacher, and who writes when (paper, section 3.1).

The only place where student and teacher alternate. Training, evaluation, data building and serving all run it. It knows
no batches: engines batch whatever is in flight.
"""

import hashlib
import itertools
import math
import time
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from .call_bias import Piece, next_piece
from .command import CallSyntax, Command, tokens_until
from .engines.base import Context, Engine, EngineError, FinishReason, Generation, Sampling
from .trace import Author, Call, Outcome, Span, StopReason, Trace
from .vocabulary import Vocabulary

_rollouts = itertools.count()  # names for the rollouts of this process, see `Sampling.rollout`


@dataclass(frozen=True)
class RelayConfig:
    """The rules of a relay.

    Args:
        max_completion_tokens (`int`, defaults to `1024`): budget of a completion, the teacher's tokens and the commands
            included.
        syntax ([`CallSyntax`]): how a call is written.
        max_calls (`int`, defaults to `3`): answered calls per rollout; 0 answers none. Released code: 3 in training, 5
            in evaluation.
        max_call_tokens (`int`, *optional*): most tokens of one answer; `None` leaves it to the budget.
        fixed_call_tokens (`int`, *optional*): grant every call this many tokens, whatever it asks for (the paper's
            fixed-length comparison).
        is_ended_by_teacher (`bool`, defaults to `True`): whether a teacher that ends its answer ends the rollout; else
            the student goes on.
        is_stopped_by_failure (`bool`, defaults to `True`): whether a teacher that fails ends the rollout with
            `StopReason.TEACHER_ERROR`; else the student goes on alone.
        student (`Sampling`), teacher (`Sampling`): how each draws its tokens. Their seeds are set per rollout.
        call_bias (`float`, defaults to `0.0`): bias on the tokens with which the student begins a call, see
            `call_bias.py`: below 0 it calls less often, above 0 more often (as long as calls are answered), at `-inf`
            never. Not for training, which needs the student's own distribution.
    """

    max_completion_tokens: int = 1024
    syntax: CallSyntax = field(default_factory=CallSyntax)
    max_calls: int = 3
    max_call_tokens: int | None = None
    fixed_call_tokens: int | None = None
    is_ended_by_teacher: bool = True
    is_stopped_by_failure: bool = True
    student: Sampling = Sampling()
    teacher: Sampling = Sampling(temperature=0.7)
    call_bias: float = 0.0

    def __post_init__(self):
        if math.isnan(self.call_bias) or self.call_bias == math.inf:
            raise ValueError(f"call_bias is {self.call_bias}; it must be a finite number, or -inf for no calls at all.")
        for name in ("max_completion_tokens", "max_call_tokens", "fixed_call_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if self.max_calls < 0:
            raise ValueError(f"max_calls is {self.max_calls}; it must be 0 (no calls answered) or more.")


@dataclass(frozen=True)
class RelayPrompt:
    """One prompt as each model wants it.

    Args:
        student (`list[int]`): the student's token ids.
        teacher (`list[int]`, `str` or `list[dict]`, *optional*): the teacher's own rendering: its token ids, a text, or
            chat messages; `None` where there is no teacher.
    """

    student: list[int]
    teacher: Context | None = None


async def relay(
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayConfig, seed: int | None = None
) -> Trace:
    """Lets the student answer `prompt`, with the teacher writing where the student calls it.

    Args:
        prompt ([`RelayPrompt`]).
        student ([`Engine`]): must have a vocabulary.
        teacher ([`Engine`], *optional*): `None` leaves every call unanswered.
        config ([`RelayConfig`]).
        seed (`int`, *optional*): fixes the student's and the teacher's sampling for this rollout.

    Returns:
        [`Trace`]: the finished rollout.

    Raises:
        EngineError: the student failed. A failing teacher is recorded in the trace instead.
    """
    vocabulary = student.vocabulary
    if vocabulary is None:
        raise EngineError(f"The student {student.name!r} returns no token ids; use an engine that does (see engines/).")
    trace = Trace(prompt_ids=list(prompt.student))
    rollout = next(_rollouts)
    turn = 0
    while trace.stop is None:
        left = config.max_completion_tokens - trace.num_tokens
        answered = sum(call.outcome is not Outcome.DENIED for call in trace.calls)
        is_open = teacher is not None and answered < config.max_calls
        piece = _next_piece(trace, vocabulary, config, is_open)
        asked = min(left, piece.max_tokens or left)
        sampling = replace(config.student, seed=turn_seed(seed, turn), rollout=rollout)
        if piece.logit_bias:
            sampling = replace(sampling, logit_bias={**(sampling.logit_bias or {}), **piece.logit_bias})
        written = await student.generate(
            prompt.student + trace.completion_ids, max_tokens=asked, stop=piece.stop, sampling=sampling
        )
        turn += 1
        trace.student_read.add(written.prompt_tokens, written.cached_tokens)
        command = _add_student(trace, written, vocabulary, config.syntax)
        left -= len(written.ids or ())
        if written.finish is FinishReason.EOS:
            trace.stop = StopReason.EOS
        elif left <= 0 or (written.finish is FinishReason.LENGTH and len(written.ids or ()) < asked):
            trace.stop = StopReason.LENGTH
        elif command is not None and teacher is not None and is_open:
            sampling = replace(config.teacher, seed=turn_seed(seed, turn), rollout=rollout)
            await _ask_teacher(trace, prompt, vocabulary, teacher, config, left, sampling)
            turn += 1
    return trace


def _next_piece(trace: Trace, vocabulary: Vocabulary, config: RelayConfig, is_open: bool) -> Piece:
    """What the student is asked for next: all that is left, up to a call that is answered, unless its calls are biased."""
    if config.call_bias < 0 or (config.call_bias > 0 and is_open):
        is_going_on = bool(trace.spans) and trace.spans[-1].author is Author.STUDENT
        return next_piece(config.call_bias, trace.spans[-1].text if is_going_on else "", config.syntax, vocabulary)
    return Piece(stop=(config.syntax.close_tag,) if is_open else ())


def _add_student(trace: Trace, written: Generation, vocabulary: Vocabulary, syntax: CallSyntax) -> Command | None:
    """Appends what the student wrote; returns the command that its last token completes, if any."""
    if not written.ids:
        raise EngineError("The student's engine returned no token ids; a student's must, at least one per request.")
    ids = written.ids[:-1] if written.finish is FinishReason.EOS else written.ids
    if not trace.spans or trace.spans[-1].author is not Author.STUDENT:
        trace.spans.append(Span(Author.STUDENT, [], "", logprobs=[]))
    span = trace.spans[-1]
    seen = len(syntax.find(span.text))
    span.ids = span.ids + written.ids
    span.text += vocabulary.decode(ids)
    if span.logprobs is not None and written.logprobs is not None:
        span.logprobs = span.logprobs + written.logprobs
    else:
        span.logprobs = None
    commands = syntax.find(span.text)
    content = span.ids[: len(span.ids) - (len(written.ids) - len(ids))]
    span.kept_ids = syntax.remove_from_ids(content, span.text, vocabulary)
    span.kept_text = syntax.remove(span.text)
    span.removed = len(content) - len(span.kept_ids)
    span.malformed = syntax.count_malformed(span.text)
    before = trace.num_tokens - len(span.ids)
    for command in commands[seen:]:
        trace.calls.append(Call(before + tokens_until(content, span.text, command.end, vocabulary), command.n))
    ends_in_last_token = commands[seen:] and commands[-1].end > len(span.text) - len(vocabulary.decode(ids[-1:]))
    return commands[-1] if ends_in_last_token else None


async def _ask_teacher(
    trace: Trace,
    prompt: RelayPrompt,
    vocabulary: Vocabulary,
    teacher: Engine,
    config: RelayConfig,
    left: int,
    sampling: Sampling,
):
    """Answers the trace's last call: shows the teacher the text without commands and splices in what it writes."""
    call = trace.calls[-1]
    tags = (config.syntax.open_tag, config.syntax.close_tag)
    context = teacher_context(prompt.teacher, trace, vocabulary, teacher, tags)
    room = teacher.max_context - len(context) if teacher.max_context is not None and _is_ids(context) else left
    limits = (config.fixed_call_tokens or call.requested, config.max_call_tokens or left, left, room)
    call.granted = max(0, min(limits))
    if call.granted == 0:
        return
    started = time.perf_counter()
    try:
        answer = await teacher.generate(context, call.granted, sampling=sampling)
        trace.teacher_read.add(answer.prompt_tokens, answer.cached_tokens)
        ids, is_ended = _teacher_ids(answer, vocabulary, teacher, tags, call.granted)
    except EngineError as error:
        call.outcome = Outcome.FAILED
        trace.error = str(error)
        if config.is_stopped_by_failure:
            trace.stop = StopReason.TEACHER_ERROR
        return
    finally:
        call.wait_s = time.perf_counter() - started
    call.outcome = Outcome.ANSWERED
    is_ended = is_ended and len(ids) <= left  # an answer that is cut has not ended
    ids = ids[:left]
    call.delivered = len(ids)
    if ids:
        text = vocabulary.decode(ids)
        trace.spans.append(Span(Author.TEACHER, ids, text, kept_ids=ids, kept_text=text))
    left -= len(ids)
    if is_ended and config.is_ended_by_teacher and left > 0:
        trace.spans.append(Span(Author.CLOSING, [vocabulary.eos_id], ""))
        trace.stop = StopReason.TEACHER_EOS
    elif left == 0:
        trace.stop = StopReason.LENGTH


def teacher_context(
    prompt: Context | None, trace: Trace, vocabulary: Vocabulary, teacher: Engine, tags: tuple[str, str]
) -> Context:
    """The teacher's prompt and the completion so far without commands, nothing else changed: ids where both share a
    vocabulary, so that the teacher's prefix cache holds, else text.
    """
    if _is_ids(prompt) and teacher.vocabulary is not None:
        foreign = vocabulary.foreign_to(teacher.vocabulary, tags)
        if foreign is None:
            return prompt + teacher.vocabulary.encode(trace.answer)
        kept = trace.kept_ids
        if foreign:  # a malformed command may leave a tag behind that only the student has as one token
            spelled = {i: teacher.vocabulary.encode(vocabulary.decode([i])) for i in foreign.intersection(kept)}
            kept = [token for i in kept for token in spelled.get(i, (i,))]
        return prompt + kept
    if isinstance(prompt, str):
        return prompt + trace.answer
    if isinstance(prompt, list) and not _is_ids(prompt):
        turn: list = [{"role": "assistant", "content": trace.answer}] if trace.answer else []
        return prompt + turn
    raise ValueError("The prompt has no rendering for the teacher; build it with `prompts.PromptBuilder`.")


def _teacher_ids(
    answer: Generation, vocabulary: Vocabulary, teacher: Engine, tags: tuple[str, str], granted: int
) -> tuple[list[int], bool]:
    """The teacher's words in the student's vocabulary, end token cut off, and whether the teacher ended the answer.

    What it wrote beyond the `granted` tokens, counted in its own vocabulary, is cut off.
    """
    is_ended = answer.finish is FinishReason.EOS
    text = answer.text
    if answer.ids is not None and teacher.vocabulary is not None:
        is_shared = vocabulary.foreign_to(teacher.vocabulary, tags) is not None
        ends = teacher.vocabulary.eos_ids | (vocabulary.eos_ids if is_shared else set())
        end = next((k for k, token in enumerate(answer.ids) if token in ends), None)
        ids, is_ended = answer.ids[:end], is_ended or end is not None
        wrong = next((token for token in ids if not 0 <= token < teacher.vocabulary.size), None)
        if wrong is not None:
            raise EngineError(
                f"The teacher {teacher.name!r} returned token id {wrong}, but its vocabulary has ids 0 to "
                f"{teacher.vocabulary.size - 1}; check that it serves the model whose tokenizer was given."
            )
        ids, is_ended = ids[:granted], is_ended and len(ids) <= granted
        if is_shared:
            return ids, is_ended
        text = teacher.vocabulary.decode(ids)
    # An answer cut inside a character ends in a replacement character that the teacher did not write.
    return vocabulary.encode(text.rstrip("\ufffd")), is_ended


def _is_ids(context: Context | None) -> TypeGuard[list[int]]:
    """Whether a context is token ids rather than a text or chat messages."""
    return isinstance(context, list) and (not context or isinstance(context[0], int))


def turn_seed(seed: int | None, turn: int) -> int | None:
    """The seed of a rollout's `turn`-th request: the rollout's own for the first, so that a rollout without calls is
    what the engine alone would write; then one that shares no random numbers with it.
    """
    if seed is None or turn == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=4).digest(), "big")
