"""Who answers: the student, the teacher, or both in one of several ways. Every method gives one `Trace` per problem.

Owns the methods' names and what each name means. Relaying itself is `relay.py`'s business, which problems are asked and
what becomes of the answers is the runner's.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from ..engines.base import Engine, EngineError, FinishReason
from ..relay import RelayConfig, RelayPrompt, relay
from ..trace import Author, Span, StopReason, Trace
from ..vocabulary import Vocabulary

Answerer = Callable[[RelayPrompt, Engine, Engine | None, RelayConfig, int | None], Awaitable[Trace]]
"""`answer(prompt, student, teacher, config, seed)`: one rollout."""


@dataclass(frozen=True)
class Method:
    """A way to answer a problem.

    Args:
        name (`str`): as people write it.
        answer (`Answerer`): the coroutine that answers one problem.
        has_teacher (`bool`): whether it asks the teacher, so that a run needs one.
        has_router (`bool`, defaults to `False`): whether it reads CITER's router.
    """

    name: str
    answer: Answerer
    has_teacher: bool
    has_router: bool = False


async def answer_alone(
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayConfig, seed: int | None
) -> Trace:
    """The student alone. No calls are looked for: a command in its words stays there as plain text."""
    trace = Trace(prompt_ids=list(prompt.student))
    sampling = replace(config.student, seed=seed)
    written = await student.generate(prompt.student, config.max_completion_tokens, sampling=sampling)
    if written.ids is None:
        raise EngineError(
            f"The student {student.name!r} returned no token ids; use an engine that does (see engines/)."
        )
    span = _whole_answer(Author.STUDENT, written.ids, _vocabulary(student))
    span.logprobs = written.logprobs
    trace.student_read.add(written.prompt_tokens, written.cached_tokens)
    trace.spans.append(span)
    trace.stop = StopReason.EOS if written.finish is FinishReason.EOS else StopReason.LENGTH
    return trace


async def answer_by_teacher(
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayConfig, seed: int | None
) -> Trace:
    """The teacher alone answers its own rendering of the prompt. Its tokens are counted in its own vocabulary, in the
    student's where its engine gives text only. A failure is recorded in the trace, as in a relay.
    """
    if teacher is None or prompt.teacher is None:
        raise ValueError("The method 'teacher' asks the teacher, but there is none; set `teacher`.")
    trace = Trace(prompt_ids=list(prompt.student))
    try:
        sampling = replace(config.teacher, seed=seed)
        written = await teacher.generate(prompt.teacher, config.max_completion_tokens, sampling=sampling)
    except EngineError as error:
        trace.error = str(error)
        trace.stop = StopReason.TEACHER_ERROR
        return trace
    trace.teacher_read.add(written.prompt_tokens, written.cached_tokens)
    if written.ids is None or teacher.vocabulary is None:
        words = _vocabulary(student)
        trace.spans.append(_whole_answer(Author.TEACHER, words.encode(written.text), words))
    else:
        trace.spans.append(_whole_answer(Author.TEACHER, written.ids, teacher.vocabulary))
    trace.stop = StopReason.TEACHER_EOS if written.finish is FinishReason.EOS else StopReason.LENGTH
    return trace


def _vocabulary(student: Engine) -> Vocabulary:
    if student.vocabulary is None:
        raise ValueError(f"The student {student.name!r} has no vocabulary; use an engine that has (see engines/).")
    return student.vocabulary


def _whole_answer(author: Author, ids: list[int], vocabulary: Vocabulary) -> Span:
    end = next((k for k, token in enumerate(ids) if token in vocabulary.eos_ids), len(ids))
    text = vocabulary.decode(ids[:end])
    return Span(author, list(ids), text, kept_ids=ids[:end], kept_text=text)


async def answer_unheard(
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayConfig, seed: int | None
) -> Trace:
    """A relay whose teacher is away: calls are made, counted, taken out of the answer, and never answered."""
    return await relay(prompt, student, None, config, seed)


def _fixed(n: int) -> Answerer:
    async def answer(
        prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayConfig, seed: int | None
    ) -> Trace:
        # A fixed length is the point of the comparison, so a limit on asked-for lengths has no say in it.
        fixed = replace(config, fixed_call_tokens=n, max_call_tokens=None)
        return await relay(prompt, student, teacher, fixed, seed)

    return answer


def _citer(threshold: float | None) -> Answerer:
    async def answer(
        prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayConfig, seed: int | None
    ) -> Trace:
        from ..citer.decoding import answer_by_router  # needs torch, which naming a method does not

        return await answer_by_router(prompt, student, teacher, config, seed, threshold)

    return answer


METHODS: dict[str, Method] = {
    "student": Method("student", answer_alone, has_teacher=False),
    "teacher": Method("teacher", answer_by_teacher, has_teacher=True),
    "relay": Method("relay", relay, has_teacher=True),
    "relay_no_teacher": Method("relay_no_teacher", answer_unheard, has_teacher=False),
    "citer": Method("citer", _citer(None), has_teacher=True, has_router=True),
}
"""Methods without a number in their name. `fixed_n` grants every call n tokens, whatever it asks for; `citer_t` asks the
teacher for each token whose score is below t, `citer` below the router's own threshold.
"""


def load_method(name: str) -> Method:
    """The method called `name`: one of [`METHODS`], `fixed_n`, such as `"fixed_16"`, or `citer_t`, such as `"citer_0.9"`.

    Raises:
        ValueError: there is no such method.
    """
    if name in METHODS:
        return METHODS[name]
    match = re.fullmatch(r"citer_(0?\.[0-9]{1,8}|[01](?:\.0)?)", name)
    if match is not None:
        return Method(name, _citer(float(match[1])), has_teacher=True, has_router=True)
    match = re.fullmatch(r"fixed_([1-9][0-9]{0,8})", name)
    if match is None:
        raise ValueError(
            f"Unknown method {name!r}; known are {', '.join(METHODS)}, fixed_n with a number of at least 1 for n, such as "
            "fixed_4, and citer_t with a threshold from 0 to 1, such as citer_0.9."
        )
    return Method(name, _fixed(int(match[1])), has_teacher=True)


def load_methods(names: Iterable[str]) -> list[Method]:
    """The methods called `names`, each once, in order.

    Raises:
        ValueError: a name is unknown, or there is none.
    """
    methods = [load_method(name) for name in dict.fromkeys(names)]
    if not methods:
        raise ValueError(f"methods is empty; name at least one of {', '.join(METHODS)} fixed_n and citer_t.")
    return methods
