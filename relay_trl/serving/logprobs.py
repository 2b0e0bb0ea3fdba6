"""Log-probabilities of an answer's tokens, and with `echo` of its prompt's, each from the model that wrote it.

Owns which tokens are listed, who scores them, and the two forms in which OpenAI's APIs list them. The engines score texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from ..engines.base import Engine, EngineError
from ..relay import RelayPrompt
from ..trace import Author, Span, Trace
from ..translation import has_shared_ids, is_ids, teacher_context
from ..vocabulary import Vocabulary
from .protocol import ApiError


@dataclass(frozen=True)
class Place:
    """One token.

    Args:
        token (`str`): its text.
        logprob (`float`, *optional*): at temperature 1, without filters or biases; `None` for the first token of a prompt, and
            where nobody can say.
        top (`dict[str, float]`): the likeliest tokens at its place, the likeliest first.
    """

    token: str
    logprob: float | None
    top: dict[str, float]


async def score_answer(
    prompt: RelayPrompt,
    trace: Trace,
    text: str,
    top: int,
    is_echo: bool,
    shows_commands: bool,
    student: Engine,
    teacher: Engine | None,
    tags: tuple[str, str],
) -> tuple[list[Place], bool]:
    """The tokens of an answer, those of its prompt first with `is_echo`, and whether all have a score of their own writer.

    The student's tokens are scored by the student, the teacher's by the teacher where its engine can and its ids are the
    student's.

    Args:
        text (`str`): the answer as the client gets it; tokens behind its end are left out.
        top (`int`): how many of the likeliest tokens are given.

    Raises:
        ApiError: the student's engine does not score texts.
    """
    vocabulary = student.vocabulary
    assert vocabulary is not None
    shown: list[tuple[int, int | None, bool]] = []  # token, its place in the completion, whether the teacher wrote it
    written = ""
    ids = list(trace.completion_ids)
    start = 0
    for span in trace.spans:
        if span.author is not Author.CLOSING:
            listed = [
                (token, None if k is None else start + k) for token, k in _listed(span, shows_commands, vocabulary)
            ]
            shown += [(token, place, span.author is Author.TEACHER) for token, place in listed]
            written += span.text if shows_commands else span.kept_text
        start += len(span.ids)
    if text.startswith(written) and len(text) > len(written):  # a stop string cut the last turn, which no trace has
        rest = vocabulary.encode(text[len(written) :])
        shown += [(token, len(ids) + k, False) for k, token in enumerate(rest)]
        ids += rest
    first = 1 if is_echo else len(prompt.student)
    whole = prompt.student + ids
    ask = getattr(student, "alternatives", None)
    found = [] if len(whole) == first else await ask(whole, first, top) if ask else None
    if found is None:
        raise ApiError(
            400,
            f"{student.name} scores no texts, which logprobs need; leave them out.",
            "logprobs",
            "unsupported_parameter",
        )
    scored = dict(enumerate(found, start=first - len(prompt.student)))
    theirs = await _teachers(prompt, trace, teacher, vocabulary, tags, top)
    places = []
    if is_echo:
        places = [
            _place(token, scored.get(k - len(prompt.student)), top, vocabulary)
            for k, token in enumerate(prompt.student)
        ]
    length = 0
    is_whole = True
    for token, place, is_teachers in shown:
        if length >= len(text) and token not in vocabulary.eos_ids:
            break
        scores = None if place is None else (theirs if is_teachers else scored).get(place)
        is_whole = is_whole and scores is not None
        places.append(_place(token, scores, top, vocabulary))
        length += len(places[-1].token)
    return places, is_whole


def _listed(span: Span, shows_commands: bool, vocabulary: Vocabulary) -> list[tuple[int, int | None]]:
    """The tokens of a span that a client sees, each with its place in the span; `None` of one that was encoded anew where a
    command ended inside a token."""
    ended = span.ids[-1:] if span.ids and span.ids[-1] in vocabulary.eos_ids else []
    if shows_commands or not span.removed:
        return [(token, k) for k, token in enumerate(span.ids)]
    blocks = SequenceMatcher(None, span.kept_ids, span.ids, autojunk=False).get_matching_blocks()
    places = {block.a + k: block.b + k for block in blocks for k in range(block.size)}
    kept = [(token, places.get(k)) for k, token in enumerate(span.kept_ids)]
    return [*kept, *((token, len(span.ids) - 1) for token in ended)]


async def _teachers(
    prompt: RelayPrompt,
    trace: Trace,
    teacher: Engine | None,
    vocabulary: Vocabulary,
    tags: tuple[str, str],
    top: int,
) -> dict[int, dict[int, float]]:
    """The teacher's scores of its own tokens by their place in the completion; empty where it gives none."""
    ask = getattr(teacher, "alternatives", None)
    if teacher is None or ask is None or not is_ids(prompt.teacher) or not has_shared_ids(vocabulary, teacher, tags):
        return {}
    found: dict[int, dict[int, float]] = {}
    start = 0
    for k, span in enumerate(trace.spans):
        if span.author is Author.TEACHER:
            context = teacher_context(prompt.teacher, Trace([], trace.spans[:k]), vocabulary, teacher, tags)
            try:
                scores = await ask(list(context) + span.ids, len(context), top)
            except EngineError:  # its answer is there, so only its scores are missing
                scores = None
            found |= enumerate(scores or (), start=start)
        start += len(span.ids)
    return found


def _place(token: int, scores: dict[int, float] | None, top: int, vocabulary: Vocabulary) -> Place:
    likeliest = sorted((scores or {}).items(), key=lambda item: -item[1])[: max(top, 1)]
    text = vocabulary.decode([token])
    return Place(
        text,
        None if scores is None else scores[token],
        {vocabulary.decode([other]): score for other, score in likeliest} if top else {},
    )


def as_completion(places: Sequence[Place]) -> dict[str, Any]:
    """`logprobs` of a choice of `/v1/completions`."""
    offsets, end = [], 0
    for place in places:
        offsets.append(end)
        end += len(place.token)
    return {
        "tokens": [place.token for place in places],
        "token_logprobs": [place.logprob for place in places],
        # The token that is there is among them, as in OpenAI's API
        "top_logprobs": [
            None if place.logprob is None else {**place.top, place.token: place.logprob} for place in places
        ],
        "text_offset": offsets,
    }


def as_chat(places: Sequence[Place]) -> dict[str, Any]:
    """`logprobs` of a choice of `/v1/chat/completions`."""

    def entry(token: str, logprob: float | None) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [
        {**entry(place.token, place.logprob), "top_logprobs": [entry(*other) for other in place.top.items()]}
        for place in places
    ]
    return {"content": content, "refusal": None}
