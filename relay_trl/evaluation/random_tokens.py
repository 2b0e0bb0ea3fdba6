"""The method `random_tokens_q`: a random choice decides which model writes the next token.

Owns the choice. It shows what a share of teacher tokens is worth at random places. `relay.py` asks the teacher and inserts its
answer.
"""

import random
from dataclasses import replace

from ..engines.base import Engine, EngineError, FinishReason
from ..relay import RelayPrompt, RelayRules, ask_teacher, turn_seed
from ..spans import add_words
from ..trace import Author, Call, StopReason, Trace


async def answer_by_lot(
    prompt: RelayPrompt,
    student: Engine,
    teacher: Engine | None,
    config: RelayRules,
    seed: int | None,
    probability: float,
) -> Trace:
    """One answer in which each token is the teacher's with `probability`, else the student's.

    Consecutive tokens of the same model are one request. The student's commands are plain text. Each request to the teacher
    counts as a call. The answer ends when the teacher ends it.
    """
    vocabulary = student.vocabulary
    if teacher is None or vocabulary is None:
        raise ValueError("The method 'random_tokens' needs a teacher, and a student that gives token ids.")
    trace = Trace(prompt_ids=list(prompt.student))
    rng = random.Random(f"{seed}/lot")
    config = replace(config, max_call_tokens=None, is_ended_by_teacher=True)
    is_teacher, turn = rng.random() < probability, 0
    while trace.stop is None:
        left = config.max_completion_length - trace.num_tokens
        length = 1
        while length < left and (rng.random() < probability) == is_teacher:
            length += 1
        if is_teacher:
            trace.calls.append(Call(trace.num_tokens, requested=length))
            rules = replace(config, fixed_call_tokens=length)
            sampling = replace(config.teacher, seed=turn_seed(seed, turn))
            await ask_teacher(trace, prompt, vocabulary, teacher, rules, left, sampling)
            if trace.stop is None and trace.calls[-1].delivered == 0:
                is_teacher = False  # it has no room or nothing to say; the student must go on
                continue
        else:
            sampling = replace(config.student, seed=turn_seed(seed, turn))
            written = await student.generate(prompt.student + trace.completion_ids, length, sampling=sampling)
            if not written.ids:
                raise EngineError(f"The student {student.name!r} returned no token ids; use an engine that does.")
            trace.student_read.add(written.prompt_tokens, written.cached_tokens)
            is_ended = written.finish is FinishReason.EOS
            add_words(trace, Author.STUDENT, written.ids, vocabulary, written.logprobs, is_ended)
            if is_ended:
                trace.stop = StopReason.EOS
            elif trace.num_tokens >= config.max_completion_length or len(written.ids) < length:
                trace.stop = StopReason.LENGTH
        is_teacher, turn = not is_teacher, turn + 1
    return trace
