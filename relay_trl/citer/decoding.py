"""Decoding with a router, token by token: the student's token if its score reaches the threshold, else the teacher's.

Owns CITER's way of alternating. `relay.py` asks the teacher and inserts its answer.
"""

from dataclasses import replace

from ..engines.base import Engine, FinishReason
from ..relay import RelayPrompt, RelayRules, ask_teacher, turn_seed
from ..spans import add_words
from ..trace import Author, Call, StopReason, Trace
from .engine import RoutedEngine, RoutedSampling


async def answer_by_router(
    prompt: RelayPrompt,
    student: Engine,
    teacher: Engine | None,
    config: RelayRules,
    seed: int | None,
    threshold: float | None = None,
) -> Trace:
    """One answer. Each token of the teacher is a call for one token, without a limit on calls.

    Args:
        threshold (`float`, *optional*): the teacher is asked if the score is below it; `None`: the router's own threshold.

    Raises:
        ValueError: the student has no router, or there is no teacher.
    """
    if not isinstance(student, RoutedEngine) or student.record is None:
        raise ValueError("The method 'citer' needs a router over the student's hidden states; set `citer_router`.")
    if teacher is None:
        raise ValueError("The method 'citer' asks the teacher, but there is none; set `teacher`.")
    trace = Trace(prompt_ids=list(prompt.student))
    threshold = student.record.threshold if threshold is None else threshold
    await continue_by_router(trace, prompt, student, teacher, config, threshold, seed)
    return trace


async def continue_by_router(
    trace: Trace,
    prompt: RelayPrompt,
    student: RoutedEngine,
    teacher: Engine,
    config: RelayRules,
    threshold: float,
    seed: int | None,
):
    """Writes `trace` to its end. If the teacher returns no token, the student's token stays."""
    one_token = replace(config, fixed_call_tokens=1, max_call_tokens=None)
    # The engine's noise depends on seed and position, so one seed is enough for an answer.
    sampling = RoutedSampling.of(replace(config.student, seed=seed), threshold)
    while trace.stop is None:
        left = config.max_completion_length - trace.num_tokens
        written = await student.generate(prompt.student + trace.completion_ids, left, sampling=sampling)
        trace.student_read.add(written.prompt_tokens, written.cached_tokens)
        ids, logprobs = written.ids or [], written.logprobs or []
        if written.finish is not FinishReason.STOP:
            is_ended = written.finish is FinishReason.EOS
            add_words(trace, Author.STUDENT, ids, student.vocabulary, logprobs, is_ended)
            trace.stop = StopReason.EOS if is_ended else StopReason.LENGTH
            return
        add_words(trace, Author.STUDENT, ids[:-1], student.vocabulary, logprobs[:-1])
        call = Call(trace.num_tokens, requested=1)
        trace.calls.append(call)
        left = config.max_completion_length - trace.num_tokens
        asked = replace(config.teacher, seed=turn_seed(seed, len(trace.calls)))
        await ask_teacher(trace, prompt, student.vocabulary, teacher, one_token, left, asked)
        if trace.stop is None and call.delivered == 0:
            is_ended = ids[-1] in student.vocabulary.eos_ids
            add_words(trace, Author.STUDENT, ids[-1:], student.vocabulary, logprobs[-1:], is_ended)
            if is_ended:
                trace.stop = StopReason.EOS
            elif left == 1:
                trace.stop = StopReason.LENGTH
