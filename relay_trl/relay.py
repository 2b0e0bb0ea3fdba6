"""The relay coroutine: one prompt, a student and a teacher, and who writes when (paper, section 3.1).

Owns the rules of a relay, and is the only place where student and teacher alternate. Training, evaluation, warm-up data and
serving all run it. It knows no batches: engines batch the requests that are under way.
"""

import hashlib
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from .call_bias import Piece, next_piece
from .call_syntax import CallSyntax
from .engines.base import Context, Engine, EngineError, FinishReason, Sampling
from .spans import add_student, add_words, open_ids
from .streaming import Feed, Listener
from .trace import Author, Outcome, Span, StopReason, Trace
from .translation import has_shared_ids, is_ids, teacher_context, teacher_ids
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class RelayRules:
    """The rules of a relay.

    Args:
        max_completion_length (`int`, defaults to `1024`): budget of a completion, with the teacher's tokens and the commands.
        syntax ([`CallSyntax`]): how a call is written.
        max_calls (`int`, defaults to `3`): how many calls of a rollout are answered; 0 answers none. The released code has 3 in
            training and 5 in evaluation.
        max_call_tokens (`int`, *optional*): most tokens of one answer; `None`: only the budget limits it.
        max_teacher_tokens (`int`, *optional*): most tokens of all answers together; `None`: only the budget limits them.
        fixed_call_tokens (`int`, *optional*): every call gets this many tokens, whatever it asks for (the paper's comparison
            with fixed lengths).
        is_ended_by_teacher (`bool`, defaults to `True`): whether the rollout ends when the teacher ends its answer; otherwise
            the student goes on.
        is_stopped_by_failure (`bool`, defaults to `True`): whether the rollout ends with `StopReason.TEACHER_ERROR` when the
            teacher fails; otherwise the student goes on alone.
        student (`Sampling`), teacher (`Sampling`): how each model samples. The seeds are set per rollout.
        call_bias (`float`, defaults to `0.0`): bias on the tokens that begin a call, see `call_bias.py`. Below 0 the student
            calls less often, above 0 more often (as long as calls are answered), at `-inf` never. Not for training, which
            needs the student's own distribution.
    """

    max_completion_length: int = 1024
    syntax: CallSyntax = field(default_factory=CallSyntax)
    max_calls: int = 3
    max_call_tokens: int | None = None
    max_teacher_tokens: int | None = None
    fixed_call_tokens: int | None = None
    is_ended_by_teacher: bool = True
    is_stopped_by_failure: bool = True
    student: Sampling = Sampling()
    teacher: Sampling = Sampling(temperature=0.7)
    call_bias: float = 0.0

    def __post_init__(self):
        if math.isnan(self.call_bias) or self.call_bias == math.inf:
            raise ValueError(f"call_bias is {self.call_bias}; it must be a finite number, or -inf for no calls at all.")
        for name in ("max_completion_length", "max_call_tokens", "fixed_call_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name in ("max_calls", "max_teacher_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must be 0 (no calls answered) or more.")


@dataclass(frozen=True)
class RelayPrompt:
    """One prompt as each model gets it.

    Args:
        student (`list[int]`): the student's token ids.
        teacher (`list[int]`, `str` or `list[dict]`, *optional*): the teacher's rendering: its token ids, a text, or chat
            messages; `None` without a teacher.
    """

    student: list[int]
    teacher: Context | None = None


async def relay(
    prompt: RelayPrompt,
    student: Engine,
    teacher: Engine | None,
    config: RelayRules,
    seed: int | None = None,
    listener: Listener | None = None,
    trace: Trace | None = None,
) -> Trace:
    """Lets the student answer `prompt`; the teacher writes where the student calls it.

    Args:
        prompt ([`RelayPrompt`]).
        student ([`Engine`]): must have a vocabulary.
        teacher ([`Engine`], *optional*): with `None`, no call is answered.
        config ([`RelayRules`]).
        seed (`int`, *optional*): fixes the sampling of both models for this rollout.
        listener ([`Listener`], *optional*): gets every text while it is written.
        trace ([`Trace`], *optional*): an empty trace to fill, or one to go on with. A caller that cancels
            the rollout can read it.

    Returns:
        [`Trace`]: the finished rollout.

    Raises:
        EngineError: the student failed. A failure of the teacher is recorded in the trace instead.
    """
    vocabulary = student.vocabulary
    if vocabulary is None:
        raise EngineError(f"The student {student.name!r} returns no token ids; use an engine that does (see engines/).")
    trace = trace or Trace([])
    trace.prompt_ids = list(prompt.student)
    feed = Feed(listener, vocabulary) if listener else None
    turn = 0
    while trace.stop is None:
        left = config.max_completion_length - trace.num_tokens
        answered = sum(call.outcome is not Outcome.DENIED for call in trace.calls)
        is_open = teacher is not None and answered < config.max_calls and _teacher_budget(trace, config) > 0
        piece = _next_piece(trace, vocabulary, config, is_open)
        asked = min(left, piece.max_tokens or left)
        sampling = replace(config.student, seed=turn_seed(seed, turn))
        if piece.logit_bias:
            sampling = replace(sampling, logit_bias={**(sampling.logit_bias or {}), **piece.logit_bias})
        opened = open_ids(trace.spans, vocabulary)
        said = len(trace.spans[-1].text) if trace.spans and trace.spans[-1].author is Author.STUDENT else 0
        said -= len(vocabulary.unfinished(opened)) if said else 0
        # An engine of somebody's own that cannot stream serves whoever does not ask for it
        heard = {} if feed is None else {"on_tokens": feed.begin(Author.STUDENT, student, asked, opened)}
        written = await student.generate(
            prompt.student + trace.completion_ids, max_tokens=asked, stop=piece.stop, sampling=sampling, **heard
        )
        turn += 1
        trace.student_read.add(written.prompt_tokens, written.cached_tokens)
        command = add_student(trace, written, vocabulary, config.syntax)
        if feed is not None:
            feed.close(trace.spans[-1].text[said:], len(written.ids or ()), open_ids(trace.spans, vocabulary))
        left -= len(written.ids or ())
        if written.finish is FinishReason.EOS:
            trace.stop = StopReason.EOS
        elif left <= 0 or (written.finish is FinishReason.LENGTH and len(written.ids or ()) < asked):
            trace.stop = StopReason.LENGTH
        elif command is not None and teacher is not None and is_open:
            sampling = replace(config.teacher, seed=turn_seed(seed, turn))
            await ask_teacher(trace, prompt, vocabulary, teacher, config, left, sampling, feed)
            turn += 1
    if feed is not None:
        feed.end()
    return trace


def _next_piece(trace: Trace, vocabulary: Vocabulary, config: RelayRules, is_open: bool) -> Piece:
    """The student's next request: all that is left, up to a call that can be answered; with a bias only the next piece."""
    if config.call_bias < 0 or (config.call_bias > 0 and is_open):
        is_going_on = bool(trace.spans) and trace.spans[-1].author is Author.STUDENT
        return next_piece(config.call_bias, trace.spans[-1].text if is_going_on else "", config.syntax, vocabulary)
    return Piece(stop=(config.syntax.close_tag,) if is_open else ())


def _teacher_budget(trace: Trace, config: RelayRules) -> int:
    """Tokens that the teacher may still write."""
    most = config.max_completion_length if config.max_teacher_tokens is None else config.max_teacher_tokens
    return most - trace.teacher_tokens


async def ask_teacher(
    trace: Trace,
    prompt: RelayPrompt,
    vocabulary: Vocabulary,
    teacher: Engine,
    config: RelayRules,
    left: int,
    sampling: Sampling,
    feed: Feed | None = None,
):
    """Answers the trace's last call: the teacher gets the text without commands, and its answer is appended.

    Args:
        trace ([`Trace`]): changed in place. Its last call has no answer yet.
        left (`int`): completion tokens that are left of the budget.
        feed ([`Feed`], *optional*): of the rollout's listener.
    """
    call = trace.calls[-1]
    tags = (config.syntax.open_tag, config.syntax.close_tag)
    context = teacher_context(prompt.teacher, trace, vocabulary, teacher, tags)
    room = teacher.max_context - len(context) if teacher.max_context is not None and is_ids(context) else left
    limits = (config.fixed_call_tokens or call.requested, config.max_call_tokens or left, left, room)
    call.granted = max(0, min(*limits, _teacher_budget(trace, config)))
    if call.granted == 0:
        return
    heard: dict[str, Any] = {}
    if feed is not None:
        shared = has_shared_ids(vocabulary, teacher, tags)
        opened = open_ids(trace.spans, vocabulary)
        heard = {"on_tokens": feed.begin(Author.TEACHER, teacher, call.granted, opened, shared)}
    started = time.perf_counter()
    try:
        answer = await teacher.generate(context, call.granted, sampling=sampling, **heard)
        trace.teacher_read.add(answer.prompt_tokens, answer.cached_tokens)
        ids, is_ended = teacher_ids(answer, vocabulary, teacher, tags, call.granted)
        call.outcome = Outcome.ANSWERED
    except EngineError as error:
        call.outcome = Outcome.FAILED
        trace.error = str(error)
        if config.is_stopped_by_failure:
            trace.stop = StopReason.TEACHER_ERROR
        if error.written is None:
            return
        # A listener already has this text, so it stays
        ids, is_ended = teacher_ids(error.written, vocabulary, teacher, tags, call.granted)[0], False
    finally:
        call.wait_s = time.perf_counter() - started
    if feed is not None and teacher.vocabulary is None and len(feed.words) > len(vocabulary.decode(ids)):
        ids = vocabulary.encode(feed.words)  # what a listener was told stays
    is_ended = is_ended and len(ids) <= left  # an answer that is cut has not ended
    ids = ids[:left]
    call.delivered = len(ids)
    add_words(trace, Author.TEACHER, ids, vocabulary)
    if feed is not None:
        feed.close(trace.spans[-1].text if ids else "", len(ids), open_ids(trace.spans, vocabulary))
    left -= len(ids)
    if is_ended and config.is_ended_by_teacher and left > 0:
        trace.spans.append(Span(Author.CLOSING, [vocabulary.eos_id], ""))
        trace.stop = StopReason.TEACHER_EOS
    elif left == 0:
        trace.stop = trace.stop or StopReason.LENGTH


def turn_seed(seed: int | None, turn: int) -> int | None:
    """The seed of a rollout's request number `turn`.

    The first request has the rollout's own seed, so that a rollout without calls is what the engine alone would write. Later
    requests have other seeds, so that they do not repeat its random numbers.
    """
    if seed is None or turn == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=4).digest(), "big")
