"""The methods of an evaluation: the student alone, the teacher alone, or both in one of several ways.

Owns the methods' names and what each name means. Every method gives one `Trace` per problem. `relay.py` relays; `runner.py`
chooses the problems and writes the answers.
"""

import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..call_bias import NEVER
from ..engines.base import Engine, EngineError, FinishReason
from ..relay import RelayPrompt, RelayRules, relay
from ..trace import Author, Span, StopReason, Trace
from ..vocabulary import Vocabulary
from .random_tokens import answer_by_lot

Answerer = Callable[[RelayPrompt, Engine, Engine | None, RelayRules, int | None], Awaitable[Trace]]
"""`answer(prompt, student, teacher, config, seed)`: one rollout."""


@dataclass(frozen=True)
class Method:
    """A way to answer a problem.

    Args:
        name (`str`): as in the option `methods`.
        answer (`Answerer`): the coroutine that answers one problem.
        has_teacher (`bool`): whether it asks the teacher, so that the run needs one.
        has_router (`bool`, defaults to `False`): whether it needs CITER's router.
    """

    name: str
    answer: Answerer
    has_teacher: bool
    has_router: bool = False


async def answer_alone(
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayRules, seed: int | None
) -> Trace:
    """The student alone. Its commands are not looked for and stay in the answer as plain text."""
    trace = Trace(prompt_ids=list(prompt.student))
    sampling = replace(config.student, seed=seed)
    written = await student.generate(prompt.student, config.max_completion_length, sampling=sampling)
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
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayRules, seed: int | None
) -> Trace:
    """The teacher alone, with its own rendering of the prompt. Its tokens are counted in its own vocabulary, or in the
    student's if its engine gives only text. A failure is recorded in the trace, as in a relay.
    """
    if teacher is None or prompt.teacher is None:
        raise ValueError("The method 'teacher' asks the teacher, but there is none; set `teacher`.")
    trace = Trace(prompt_ids=list(prompt.student))
    try:
        sampling = replace(config.teacher, seed=seed)
        written = await teacher.generate(prompt.teacher, config.max_completion_length, sampling=sampling)
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
    prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayRules, seed: int | None
) -> Trace:
    """A relay without its teacher: calls are made, counted and removed from the answer, but not answered."""
    return await relay(prompt, student, None, config, seed)


def _relay_with(**changes: Any) -> Answerer:
    async def answer(
        prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayRules, seed: int | None
    ) -> Trace:
        return await relay(prompt, student, teacher, replace(config, **changes), seed)

    return answer


def _fixed(n: float) -> Answerer:
    # The comparison needs this length, so a limit on requested lengths does not apply.
    return _relay_with(fixed_call_tokens=int(n), max_call_tokens=None)


def _random_router(share: float) -> Answerer:
    async def answer(
        prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayRules, seed: int | None
    ) -> Trace:
        is_routed = random.Random(f"{seed}/router").random() < share
        return await (answer_by_teacher if is_routed else answer_alone)(prompt, student, teacher, config, seed)

    return answer


def _citer(threshold: float | None) -> Answerer:
    async def answer(
        prompt: RelayPrompt, student: Engine, teacher: Engine | None, config: RelayRules, seed: int | None
    ) -> Trace:
        from ..citer.decoding import answer_by_router  # needs torch; the name of a method does not

        return await answer_by_router(prompt, student, teacher, config, seed, threshold)

    return answer


METHODS: dict[str, Method] = {
    "student": Method("student", answer_alone, has_teacher=False),
    "teacher": Method("teacher", answer_by_teacher, has_teacher=True),
    "relay": Method("relay", relay, has_teacher=True),
    "relay_no_teacher": Method("relay_no_teacher", answer_unheard, has_teacher=False),
    "relay_calls_off": Method("relay_calls_off", _relay_with(call_bias=NEVER), has_teacher=False),
    "citer": Method("citer", _citer(None), has_teacher=True, has_router=True),
}
"""Methods without a number in their name. In `relay_no_teacher` calls get no answer, in `relay_calls_off` the student cannot
call, `citer` uses its router's own threshold."""

READABLE = {"relay_no_teacher": "relay, teacher away", "relay_calls_off": "relay, calls barred", "citer": "CITER"}
"""Names of methods for people, where they differ from those of options."""


@dataclass(frozen=True)
class Family:
    """Methods that differ in one number at the end of their names: `fixed_4`, `call_bias_-2`.

    Args:
        symbol (`str`): the symbol of the number, as in `fixed_n`.
        meaning (`str`): what the number means, with its range and an example.
        readable (`str`): its name for people, with `{}` for the number.
        make (`Callable[[float], Answerer]`): the coroutine for a number.
        is_valid (`Callable[[float], bool]`): whether there is a method with this number.
        has_router (`bool`, defaults to `False`): as in [`Method`].
    """

    symbol: str
    meaning: str
    readable: str
    make: Callable[[float], Answerer]
    is_valid: Callable[[float], bool]
    has_router: bool = False


FAMILIES: dict[str, Family] = {
    "fixed": Family(
        "n",
        "every call gets n tokens: a number of at least 1, such as fixed_4",
        "relay, {} tokens a call",
        _fixed,
        lambda n: 1 <= n < 10**9 and n == int(n),
    ),
    "call_bias": Family(
        "b",
        "a relay with this bias on calling: any number, such as call_bias_-2",
        "relay, call bias {}",
        lambda bias: _relay_with(call_bias=bias),
        math.isfinite,
    ),
    "random_router": Family(
        "p",
        "this share of the problems to the teacher: 0 to 1, such as random_router_0.3",
        "random router, {}",
        _random_router,
        lambda share: 0 <= share <= 1,
    ),
    "random_tokens": Family(
        "q",
        "each token from the teacher with this probability: 0 to 1, such as random_tokens_0.1",
        "random tokens, {}",
        lambda probability: partial(answer_by_lot, probability=probability),
        lambda probability: 0 <= probability <= 1,
    ),
    "citer": Family(
        "t",
        "the teacher for each token whose score is below this threshold: 0 to 1, such as citer_0.9",
        "CITER, threshold {}",
        _citer,
        lambda threshold: 0 <= threshold <= 1,
        has_router=True,
    ),
}
"""Methods with a number in their name, by the part before the number."""

_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")


def family_of(name: str) -> tuple[str, float] | None:
    """The family and the number of a method's name; `None` for a method without a number."""
    family, _, number = name.rpartition("_")
    return (family, float(number)) if family in FAMILIES and _NUMBER.fullmatch(number) else None


def readable(name: str) -> str:
    """A method's name for people."""
    family, _, number = name.rpartition("_")
    return FAMILIES[family].readable.format(number) if family_of(name) else READABLE.get(name, name)


def known_methods() -> str:
    """All methods' names, for messages."""
    return ", ".join([*METHODS, *(f"{name}_{family.symbol}" for name, family in FAMILIES.items())])


def load_method(name: str) -> Method:
    """The method called `name`: one of [`METHODS`], or one of [`FAMILIES`] with its number, such as `"fixed_16"`.

    Raises:
        ValueError: there is no such method.
    """
    if name in METHODS:
        return METHODS[name]
    found = family_of(name)
    if found is None or not FAMILIES[found[0]].is_valid(found[1]):
        named = FAMILIES.get(name.rpartition("_")[0])
        hint = f" ({named.meaning})" if named else ""
        raise ValueError(
            f"Unknown method {name!r}{hint}; known are {known_methods()}, with a number for the last letter."
        )
    family = FAMILIES[found[0]]
    return Method(name, family.make(found[1]), has_teacher=True, has_router=family.has_router)


def load_methods(names: Iterable[str]) -> list[Method]:
    """The methods called `names`, each once, in order.

    Raises:
        ValueError: a name is unknown, or there are no names.
    """
    methods = [load_method(name) for name in dict.fromkeys(names)]
    if not methods:
        raise ValueError(f"methods is empty; name at least one of {known_methods()}.")
    return methods
