"""The completion so far as the teacher gets it, and the teacher's answer as token ids of the student.

Owns the difference between two vocabularies. `relay.py` decides when the teacher is asked, and for how many tokens.
"""

import itertools
from collections.abc import Sequence
from typing import Any, TypeGuard

from .engines.base import Context, Engine, EngineError, FinishReason, Generation
from .spans import open_ids
from .trace import Trace
from .vocabulary import UNFINISHED, Vocabulary


def teacher_context(
    prompt: Context | None, trace: Trace, vocabulary: Vocabulary, teacher: Engine, tags: tuple[str, str]
) -> Context:
    """The teacher's prompt and the completion so far without its commands; nothing else is changed.

    Returns token ids if both models share a vocabulary, so that the teacher's prefix cache can be reused, else text.
    """
    if is_ids(prompt) and teacher.vocabulary is not None:
        foreign = vocabulary.foreign_to(teacher.vocabulary, tags)
        if foreign is None:
            unfinished = vocabulary.unfinished(open_ids(trace.spans, vocabulary))
            return prompt + teacher.vocabulary.encode(trace.answer.removesuffix(unfinished))
        kept = trace.kept_ids
        if foreign:  # a malformed command may leave a tag that is one token only in the student's vocabulary
            spelled = {i: teacher.vocabulary.encode(vocabulary.decode([i])) for i in foreign.intersection(kept)}
            kept = [token for i in kept for token in spelled.get(i, (i,))]
        return prompt + kept
    answer = trace.answer
    if opened := open_ids(trace.spans, vocabulary):
        answer = answer.removesuffix(vocabulary.unfinished(opened))  # half a character is no text
    if isinstance(prompt, str):
        return prompt + answer
    if isinstance(prompt, list) and not is_ids(prompt):
        last: Any = prompt[-1]
        if last.get("role") == "assistant":  # a turn that was begun for the models
            begun: list = [*prompt[:-1], {**last, "content": last["content"] + answer}]
            return begun
        turn: list = [{"role": "assistant", "content": answer}] if answer else []
        return prompt + turn
    raise ValueError("The prompt has no rendering for the teacher; build it with `prompts.PromptBuilder`.")


def teacher_ids(
    answer: Generation, vocabulary: Vocabulary, teacher: Engine, tags: tuple[str, str], granted: int
) -> tuple[list[int], bool]:
    """The teacher's answer in the student's vocabulary, without the end token, and whether the teacher ended the answer.

    What it wrote beyond the `granted` tokens is cut off: counted in its own vocabulary, or in the student's where it gives
    text only, whatever its server says of their number.
    """
    is_ended = answer.finish is FinishReason.EOS
    text = answer.text
    if answer.ids is not None and teacher.vocabulary is not None:
        is_shared = has_shared_ids(vocabulary, teacher, tags)
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
    ids = vocabulary.encode(text.rstrip(UNFINISHED))
    if answer.ids is None and len(ids) > granted:
        ids, is_ended = ids[:granted], False
        ids = ids[: len(ids) - len(vocabulary.open_end(ids))]  # and one that is cut here, at a whole one
    return ids, is_ended


def has_shared_ids(vocabulary: Vocabulary, teacher: Engine, tags: tuple[str, str]) -> bool:
    """Whether the teacher's ids are the student's, so that they go over as they are."""
    return teacher.vocabulary is not None and vocabulary.foreign_to(teacher.vocabulary, tags) is not None


def is_ids(context: Context | None) -> TypeGuard[list[int]]:
    """Whether a context is token ids rather than a text or chat messages."""
    return isinstance(context, list) and (not context or isinstance(context[0], int))


def aligned(
    ids: Sequence[int],
    vocabulary: Vocabulary,
    their_ids: Sequence[int],
    their_scores: Sequence[float],
    theirs: Vocabulary,
) -> list[float]:
    """Scores of one vocabulary's tokens on those of another that spell the same text: the lowest that each overlaps.

    Args:
        ids (`Sequence[int]`, shape (T,)), vocabulary ([`Vocabulary`]): whose tokens are asked about.
        their_ids, their_scores (`Sequence`, shape (S,)), theirs ([`Vocabulary`]): who has scored them.
    """
    scores, k = [], 0
    spans = _spans(their_ids, theirs)
    for start, end in _spans(ids, vocabulary):
        while k < len(spans) and spans[k][1] <= start:
            k += 1
        last = k
        while last < len(spans) and spans[last][0] < end:
            last += 1
        scores.append(min(their_scores[k:last], default=1.0))
    return scores


def _spans(ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """The first character of each token's text and the one behind its last."""
    lengths = [len(vocabulary.decode([token])) for token in ids]
    if "".join(vocabulary.decode([token]) for token in ids) != vocabulary.decode(
        list(ids)
    ):  # characters of several tokens
        ends = [len(vocabulary.decode(list(ids[: k + 1])).rstrip("\ufffd")) for k in range(len(ids))]
    else:
        ends = list(itertools.accumulate(lengths))
    return [(min(start, end), end) for start, end in zip([0, *ends][: len(ends)], ends, strict=True)]
