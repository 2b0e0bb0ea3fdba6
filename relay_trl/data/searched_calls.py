"""Searched calls in warm-up answers: where a student needs its teacher, for how many tokens, and with a right answer.

Owns the search for one problem. Every try is a real relay: the teacher writes the requested tokens, the student goes on, and
the answer is graded. `warmup.py` makes the rows.
"""

import asyncio
import heapq
import itertools
import logging
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..call_syntax import tokens_until
from ..engines.base import Engine, EngineError, ScoringEngine
from ..grading.grader import Grader
from ..relay import RelayPrompt, RelayRules, ask_teacher, relay, turn_seed
from ..spans import open_ids
from ..trace import Author, Call, Span, StopReason, Trace
from ..translation import aligned, is_ids, teacher_context
from ..vocabulary import Vocabulary
from .random_calls import command_ids
from .search_fields import SearchFields

logger = logging.getLogger(__name__)

LINE_END = r"\n"
"""The end of a step, by default."""


@dataclass
class Found:
    """The result of a search.

    Args:
        trace ([`Trace`], *optional*): the right answer with the fewest teacher tokens; `None` if there is no right one.
        is_own (`bool`): whether the student's first answer was right without help.
        tries (`int`): number of relays and new answers.
        teacher_written (`int`), teacher_read (`int`): tokens of the teacher, those of scored texts among the latter.
    """

    trace: Trace | None = None
    is_own: bool = False
    tries: int = 0
    teacher_written: int = 0
    teacher_read: int = 0


@dataclass(order=True)
class _Candidate:
    """A call for `n` tokens at completion token `place` of an answer. The cheapest one is tried first."""

    teacher_tokens: int
    number: int
    trace: Trace = field(compare=False)
    place: int = field(compare=False)
    n: int = field(compare=False)


class CallSearch:
    """Searches for calls with one student and one teacher.

    Args:
        student ([`Engine`]): with a vocabulary.
        teacher ([`Engine`]): with probabilities ([`ScoringEngine`]) its own judgement of the student's tokens says where help is
            needed and for how long; without, the search uses the student's own doubt, the steps, and the graded answers.
        relay_rules ([`RelayRules`]): of the relays; its `max_calls` is 0 or its `call_bias` bars calls, so that only the
            search puts them in.
        rules ([`SearchFields`]).
        grader ([`Grader`]).
        is_caller (`bool`, defaults to `False`): whether the student has learned to read past its calls. If not, it does not
            see them, and they are inserted when the answer is finished.
    """

    def __init__(
        self,
        student: Engine,
        teacher: Engine,
        relay_rules: RelayRules,
        rules: SearchFields,
        grader: Grader,
        is_caller: bool = False,
    ):
        assert student.vocabulary is not None  # `warmup_rows` refuses others
        self._student, self._teacher, self._grader = student, teacher, grader
        self._vocabulary: Vocabulary = student.vocabulary
        self._relay_rules, self._rules = relay_rules, rules
        self._is_caller = is_caller
        self._gives_scores = True  # until it turns out that the teacher does not

    async def search(self, prompt: RelayPrompt, gold: str | Sequence[str], seed: int) -> Found:
        """The right answer to a problem with the fewest teacher tokens.

        Raises:
            EngineError: student or teacher failed.
        """
        found, queue, numbers = Found(), [], itertools.count()
        keeps_lucky = random.Random(f"{seed}/lucky").random() < self._rules.keep_lucky
        while found.tries < self._rules.tries:
            turn = found.tries
            if turn and not queue and self._relay_rules.student.temperature == 0:
                break  # a greedy student would give its first answer again
            found.tries += 1
            asked = heapq.heappop(queue) if queue else None
            trace = await self._ask(asked, prompt, found, turn_seed(seed, 2 * turn)) if asked else Trace([])
            if trace.stop is None:
                last = turn_seed(seed, 2 * turn + 1) if turn else seed
                await relay(prompt, self._student, None, self._relay_rules, last, trace=trace)
            if trace.stop not in (StopReason.EOS, StopReason.TEACHER_EOS):
                continue
            is_right = (await asyncio.to_thread(self._grader.grade, [trace.answer], [gold]))[0]
            if any(call.delivered == 0 for call in trace.calls):  # the student's own, or one without room
                continue
            if self._rules.every_place and queue and not is_right:
                continue  # places that are known first: to judge this answer costs more than to try them
            needs = [] if is_right and keeps_lucky else await self._needs(trace, prompt, found)
            if is_right and not (needs and self._gives_scores):
                found.is_own = turn == 0
                found.trace = trace if self._is_caller else self._with_commands(trace)
                return found
            for place, n in needs:
                following = self._candidate(trace, place, n, asked, next(numbers))
                if len(following.trace.calls) < self._rules.max_calls:
                    heapq.heappush(queue, following)
        return found

    def _candidate(self, trace: Trace, place: int, n: int, asked: _Candidate | None, number: int) -> _Candidate:
        """The call of `n` tokens at `place` of an answer, or, right behind what its last call, `asked`, brought, that call with a
        larger n: one request where two would do the same.
        """
        ids = trace.spans[-1].ids
        behind = place - (trace.num_tokens - len(ids))
        while behind and self._vocabulary.decode(ids[:behind]).endswith("\ufffd"):  # not inside a character
            place, behind, n = place - 1, behind - 1, n + 1
        if asked is not None and self._gives_scores and behind <= self._rules.gap:
            trace, place, n = asked.trace, asked.place, trace.calls[-1].delivered + behind + n
        n = max(n, self._rules.min_call_tokens)
        n = min(n, self._rules.max_call_tokens or n)
        return _Candidate(trace.teacher_tokens + n, number, trace, place, n)

    async def _ask(self, candidate: _Candidate, prompt: RelayPrompt, found: Found, seed: int | None) -> Trace:
        """The candidate's answer up to its call, and the teacher's tokens."""
        trace = self._cut(candidate)
        left = self._relay_rules.max_completion_length - trace.num_tokens
        sampling = replace(self._relay_rules.teacher, seed=seed)
        await ask_teacher(trace, prompt, self._vocabulary, self._teacher, self._relay_rules, left, sampling)
        if trace.stop is StopReason.TEACHER_ERROR:
            raise EngineError(trace.error)
        found.teacher_written += trace.calls[-1].delivered
        found.teacher_read += (trace.teacher_read.tokens or 0) - (candidate.trace.teacher_read.tokens or 0)
        return trace

    def _cut(self, candidate: _Candidate) -> Trace:
        """The candidate's answer up to its call, with the call."""
        old = candidate.trace
        kept = old.spans[-1].ids[: candidate.place - sum(len(span.ids) for span in old.spans[:-1])]
        span = Span(Author.STUDENT, kept, "", kept_ids=kept)
        span.text = span.kept_text = self._vocabulary.decode_behind(open_ids(old.spans[:-1], self._vocabulary), kept)
        if self._is_caller:
            self._write(candidate.n, span)
        spans = [*old.spans[:-1], span]
        calls = [*map(replace, old.calls), Call(sum(len(s.ids) for s in spans), candidate.n)]
        return Trace(old.prompt_ids, spans, calls, None, None, replace(old.student_read), replace(old.teacher_read))

    def _write(self, n: int, span: Span):
        """Appends a command to a span."""
        command = command_ids(n, self._vocabulary, self._relay_rules.syntax)
        span.ids, span.text = span.ids + command, span.text + self._relay_rules.syntax.render(n)
        span.removed += len(command)

    def _with_commands(self, trace: Trace) -> Trace:
        """An answer with its calls inserted, for a student that did not see them."""
        asking = (k for k, span in enumerate(trace.spans[1:]) if span.author is Author.TEACHER)
        for k, call in zip(asking, trace.calls, strict=True):
            self._write(call.requested, trace.spans[k])
            call.position = sum(len(span.ids) for span in trace.spans[: k + 1])
        return trace

    async def _needs(self, trace: Trace, prompt: RelayPrompt, found: Found) -> list[tuple[int, int]]:
        """Places after the last call where another call may help, and how many tokens it needs."""
        if trace.spans[-1].author is not Author.STUDENT:
            return []
        span = trace.spans[-1]
        start = trace.num_tokens - len(span.ids)
        if span.logprobs is None:
            raise ValueError(
                f"The student {self._student.name!r} gives no probabilities of its tokens, and a search goes by them (doubt); "
                "load it with needs_logprobs=True."
            )
        own = [math.exp(p) for p in span.logprobs]
        scores = await self._scores(trace, prompt, found)
        if scores is None:
            return [(start + place, n) for place, n in self._guesses(span, own)]
        scores = scores[-len(span.ids) :]
        rules = self._rules
        is_needed = [
            theirs < rules.disagreement or mine < rules.doubt <= theirs
            for mine, theirs in zip(own, scores, strict=True)
        ]
        is_open = [need or mine < rules.doubt for need, mine in zip(is_needed, own, strict=True)]
        needs, behind = [], 0
        for k, need in enumerate(is_needed):
            if need and k >= behind:
                needs.append((start + k, _reach(is_open, k, rules.gap)))
                behind = k + needs[-1][1]
        return needs[::-1] if rules.every_place else needs[:1]

    def _guesses(self, span: Span, own: list[float]) -> list[tuple[int, int]]:
        """Places where help may be needed, judged by the student's probabilities and the steps of its answer."""
        is_open = [mine < self._rules.doubt for mine in own]
        starts = [k for k, doubt in enumerate(is_open) if doubt and (k == 0 or not is_open[k - 1])]
        guesses = {(k, _reach(is_open, k, self._rules.gap)) for k in starts}
        ends = [match.end() for match in re.finditer(self._rules.step_end or LINE_END, span.kept_text)]
        places = [tokens_until(span.kept_ids, span.kept_text, end, self._vocabulary) for end in ends]
        edges = sorted({0, *places, len(span.ids)})
        guesses |= {(a, b - a) for a, b in itertools.pairwise(edges)}
        return sorted(guesses)

    async def _scores(self, trace: Trace, prompt: RelayPrompt, found: Found) -> list[float] | None:
        """The teacher's probability of each token of the answer without commands; `None` if the teacher gives none.

        The student's end token is scored if both share a vocabulary; otherwise its probability is taken as 1.
        """
        if not self._gives_scores:
            return None
        tags = (self._relay_rules.syntax.open_tag, self._relay_rules.syntax.close_tag)
        context = teacher_context(prompt.teacher, trace, self._vocabulary, self._teacher, tags)
        teacher, theirs, start = self._teacher, self._teacher.vocabulary, prompt.teacher
        if isinstance(teacher, ScoringEngine) and theirs is not None and is_ids(context) and is_ids(start):
            is_shared = self._vocabulary.foreign_to(theirs, tags) is not None
            last = trace.spans[-1].ids[-1:] if trace.stop is StopReason.EOS and is_shared else []
            logprobs = await teacher.score(context + last, len(start))
            if logprobs is not None:
                found.teacher_read += len(context) + len(last)
                scores = [math.exp(p) for p in logprobs]
                kept = trace.kept_ids
                return (
                    scores if last else [*aligned(kept, self._vocabulary, context[len(start) :], scores, theirs), 1.0]
                )
        if self._gives_scores:  # another problem's search may have told meanwhile
            self._gives_scores = False
            logger.warning(
                f"{teacher.name} gives no probabilities of a text; calls are searched for by what comes out."
            )
        return None


def _reach(is_open: Sequence[bool], first: int, gap: int) -> int:
    """Number of tokens from `first` to the last open one, across gaps of at most `gap` closed tokens."""
    last = first
    for k in range(first + 1, len(is_open)):
        if is_open[k]:
            last = k
        elif k - last > gap:
            break
    return last - first + 1
