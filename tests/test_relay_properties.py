"""Properties of every rollout, whatever the two models write.

The reference is the log of the engines: every request and answer in order, as bytes. The trace under test is compared with it
and never used to compute what is expected.
"""

import asyncio
import json
from dataclasses import dataclass, field

import pytest
from helpers import reference
from helpers import tokenizers as kinds
from hypothesis import event, given
from hypothesis import strategies as st

from relay_trl.engines.base import EngineError, FinishReason, Generation, Sampling
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import Author, Outcome, StopReason, Trace
from relay_trl.vocabulary import Vocabulary

VOCABULARIES = {
    **{name: Vocabulary(build()) for name, build in kinds.KINDS.items()},
    "byte_level_tags": Vocabulary(kinds.byte_level(kinds.TAGS)),
    "gemma_tags": Vocabulary(kinds.gemma(kinds.TAGS)),
}
TABLES = {name: kinds.token_bytes(vocabulary.tokenizer) for name, vocabulary in VOCABULARIES.items()}
MESSAGES = [{"role": "user", "content": "Q"}]
TROUBLE = "the teacher's server is down"


@dataclass
class Request:
    """One request and its answer; `answer` stays `None` when the engine failed."""

    who: str
    context: object
    max_tokens: int
    stop: tuple
    sampling: Sampling
    answer: Generation | None = None


class WitnessedEngine(ScriptedEngine):
    """Writes the next of its turns and then its end token. Logs what happens, with a logprob of its own per token."""

    def __init__(self, who, vocabulary, turns, log, max_context=None):
        self.who, self.log, self.turns = who, log, iter(turns)
        super().__init__(vocabulary, self.next_turn, name=who, max_context=max_context)

    def next_turn(self, context):
        return next(self.turns, [self.vocabulary.eos_id] if self.vocabulary else "")

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        request = Request(self.who, context, max_tokens, stop, sampling)
        self.log.append(request)
        request.answer = await super().generate(context, max_tokens, stop, sampling)
        if request.answer.ids is not None:
            request.answer.logprobs = [-(len(self.log) + k / 64) for k in range(len(request.answer.ids))]
        return request.answer


@dataclass
class World:
    """A rollout that has happened: its trace, the log, and what was set up."""

    student: str
    teacher: str
    config: RelayRules
    prompt: RelayPrompt
    max_context: int | None
    log: list[Request] = field(default_factory=list)
    trace: Trace = field(default_factory=lambda: Trace([]))

    @property
    def is_shared(self):
        """Whether ids go over as ids."""
        return self.teacher.removesuffix("_tags") == self.student.removesuffix("_tags")


def turns_of(name, texts, is_wild=False):
    """Turns of a model with the vocabulary `name` that say `texts`; one in four ends, some at the very start."""
    vocabulary, table = VOCABULARIES[name], TABLES[name]
    words = reference.spellings(table, texts)
    ends = st.sampled_from([[], [], [], [vocabulary.eos_id]])
    if is_wild:  # any ids in between, so that characters are left unfinished
        ordinary = [i for i in range(len(table)) if i not in vocabulary.eos_ids]
        words = st.tuples(st.lists(st.sampled_from(ordinary), max_size=3), words).map(lambda t: t[0] + t[1])
    return st.lists(st.tuples(words, ends).map(lambda t: t[0] + t[1]), max_size=6)


CALLS = st.sampled_from(["<call>1</call>", "<call>40</call>\n", " <call>2</call>.", "<call>3</call>", ""])
CALLING = st.tuples(reference.texts, CALLS).map("".join)


@st.composite
def worlds(draw, student, teacher):
    """Runs a rollout of drawn scripts under drawn limits."""
    vocabulary = VOCABULARIES[student]
    # The teacher of characters knows a hundred of them, and any ids may spell others.
    is_wild = student.startswith("byte_level") and teacher != "characters" and draw(st.booleans())
    # A real engine ends or fills its budget; it never just stops.
    turns = [turn + [vocabulary.eos_id] for turn in draw(turns_of(student, CALLING, is_wild))]
    if teacher in VOCABULARIES:
        answers = draw(turns_of(teacher, reference.texts))
        prompt = VOCABULARIES[teacher].encode("T: ")
    else:
        answers = draw(st.lists(reference.texts, max_size=5))
        prompt = MESSAGES if teacher == "chat" else "T: "
    if draw(st.sampled_from([False, False, False, True])):
        answers.insert(draw(st.integers(0, 3)), EngineError(TROUBLE))
    limits = st.sampled_from([None, None, 1, 2, 5])
    config = RelayRules(
        max_completion_length=draw(st.sampled_from([400, 200]) | st.integers(1, 120)),
        max_calls=draw(st.sampled_from([4, 3, 2, 1, 0])),
        max_call_tokens=draw(limits),
        fixed_call_tokens=draw(limits),
        is_ended_by_teacher=draw(st.booleans()),
        is_stopped_by_failure=draw(st.booleans()),
    )
    max_context = draw(st.sampled_from([None, None, None, 100, 20, 3]))
    world = World(student, teacher, config, RelayPrompt(vocabulary.encode("Q: "), prompt), max_context)
    engines = (
        WitnessedEngine("student", vocabulary, turns, world.log),
        WitnessedEngine("teacher", VOCABULARIES.get(teacher), answers, world.log, max_context),
    )
    world.trace = asyncio.run(relay(world.prompt, *engines, config, seed=7))
    return world


def runs_before(log, k, prompt):
    """What stood in the completion at the log's `k`-th request, as `[who, ids]` of each uninterrupted run."""
    runs, end = [], len(prompt)

    def add(who, ids):
        if ids and runs and runs[-1][0] == who:
            runs[-1] = (who, runs[-1][1] + ids)
        elif ids:
            runs.append((who, list(ids)))

    for request in log[:k]:
        if request.who == "student":
            add("teacher", request.context[end:])
            add("student", request.answer.ids)
            end = len(request.context) + len(request.answer.ids)
    if k < len(log) and log[k].who == "student":
        add("teacher", log[k].context[end:])
    return runs


def is_text(data):
    try:
        return bool(data.decode()) or True
    except UnicodeDecodeError:
        return False


def check_lengths_and_authors(world):
    trace = world.trace
    students = [request for request in world.log if request.who == "student"]
    T = len(trace.completion_ids)
    assert len(trace.loss_mask) == len(trace.logprobs) == trace.num_tokens == T <= world.config.max_completion_length
    marked = list(zip(trace.completion_ids, trace.loss_mask, trace.logprobs, strict=True))
    assert [i for i, mask, _ in marked if mask] == [i for r in students for i in r.answer.ids]
    assert [p for _, mask, p in marked if mask] == [p for r in students for p in r.answer.logprobs]
    assert all(p == 0.0 for _, mask, p in marked if not mask)
    assert [i for span in trace.spans for i in span.ids] == trace.completion_ids
    assert all(left.author != right.author for left, right in zip(trace.spans, trace.spans[1:], strict=False))


def check_student_contexts(world):
    whole = world.prompt.student + world.trace.completion_ids
    written = 0
    for request in world.log:
        if request.who == "student":
            # From the very first token of the prompt, and all of what has been written so far.
            assert request.context == whole[: len(request.context)]
            assert len(request.context) >= written
            assert request.max_tokens == world.config.max_completion_length - (
                len(request.context) - len(world.prompt.student)
            )
            written = len(request.context) + len(request.answer.ids)
    assert world.trace.prompt_ids == world.prompt.student


def check_teacher_contexts(world):
    """The teacher sees its prompt and all that was written, without the commands."""
    table, vocabulary = TABLES[world.student], VOCABULARIES[world.student]
    for k, request in enumerate(world.log):
        if request.who == "student":
            continue
        runs = runs_before(world.log, k, world.prompt.student)
        sampled = [r.answer.ids for r in world.log[:k] if r.who == "student"]
        if not all(is_text(reference.spelt(ids, table)) for ids in sampled):
            event("half a character by the student")
            continue
        if world.is_shared:
            theirs, teacher = TABLES[world.teacher], VOCABULARIES[world.teacher]
            expected = [
                piece for who, ids in runs for piece in (reference.outside(ids, table) if who == "student" else ids)
            ]
            # A tag that only the student has as a token is spelt in the teacher's.
            expected = [table[p] if isinstance(p, int) and p >= len(theirs) else p for p in expected]
            n = len(world.prompt.teacher)
            assert request.context[:n] == world.prompt.teacher
            assert reference.fits(request.context[n:], expected, theirs)
            assert all(0 <= token < teacher.size for token in request.context)
            continue
        expected = ""
        for who, ids in runs:
            said = reference.spelt(ids, table)
            expected += reference.COMMAND.sub(b"", said).decode() if who == "student" else vocabulary.decode(ids)
        if world.teacher == "text":
            assert request.context == world.prompt.teacher + expected
        elif world.teacher == "chat":
            turn = [{"role": "assistant", "content": expected}] if expected else []
            assert request.context == MESSAGES + turn
        else:
            n = len(world.prompt.teacher)
            assert request.context[:n] == world.prompt.teacher
            if "\ufffd" not in expected:
                assert reference.spelt(request.context[n:], TABLES[world.teacher]) == expected.encode()


def check_calls(world):
    """Who was asked when, for how many tokens, and what came of it."""
    table, config, trace = TABLES[world.student], world.config, world.trace
    limit = config.max_completion_length
    answered = [call for call in trace.calls if call.outcome is not Outcome.DENIED]
    asked = [request for request in world.log if request.who == "teacher"]
    assert len(asked) == len(answered) <= config.max_calls
    assert [call.granted for call in answered] == [request.max_tokens for request in asked]
    assert (
        sum(call.delivered for call in trace.calls)
        == trace.teacher_tokens
        == len(trace.loss_mask) - sum(trace.loss_mask) - (trace.stop is StopReason.TEACHER_EOS)
    )
    for call in trace.calls:
        left = limit - call.position
        n = config.fixed_call_tokens or call.requested
        assert call.granted <= min(n, config.max_call_tokens or n, max(left, 0))
        assert call.delivered <= (left if world.teacher in VOCABULARIES and not world.is_shared else call.granted)
        if call.outcome is Outcome.DENIED:
            assert call.granted == call.delivered == 0
    if world.max_context is not None and world.teacher in VOCABULARIES:
        assert all(len(request.context) + request.max_tokens <= world.max_context for request in asked)
    # Every command of the student's, and nothing else, is a call; a call that is asked ends in its turn's last token.
    runs = runs_before(world.log, len(world.log), world.prompt.student)
    own = [reference.spelt(ids, table) for who, ids in runs if who == "student"]
    if all(is_text(said) for said in own):
        found = [int(m[0][6:-7]) for said in own for m in reference.COMMAND.finditer(said)]
        assert [call.requested for call in trace.calls] == found
        assert trace.malformed == sum(said.count(b"<call>") for said in own) - len(found)
    for before, request in zip(world.log, world.log[1:], strict=False):
        if request.who == "teacher":
            assert before.who == "student" and before.answer.finish is FinishReason.STOP
            position = len(before.context) + len(before.answer.ids) - len(world.prompt.student)
            assert position in [call.position for call in answered]
    for k, request in enumerate(world.log):
        if request.who == "student":
            check_that_a_call_is_heard(world, k)
            earlier = sum(r.who == "teacher" for r in world.log[:k])
            assert request.stop == (("</call>",) if earlier < config.max_calls else ())


def check_that_a_call_is_heard(world, k):
    """After a command that ends in the last token comes the teacher, where limits allow it, and after nothing else."""
    request, table = world.log[k], TABLES[world.student]
    run = runs_before(world.log, k + 1, world.prompt.student)[-1][1]
    said = reference.spelt(run, table)
    left = request.max_tokens - len(request.answer.ids)
    if not is_text(said) or (world.max_context is not None and world.teacher in VOCABULARIES):
        return
    ends = [m.end() for m in reference.COMMAND.finditer(said)]
    is_call = bool(ends) and ends[-1] > len(said) - len(table[run[-1]]) and request.stop != () and left > 0
    assert is_call == (k + 1 < len(world.log) and world.log[k + 1].who == "teacher")


def check_end(world):
    trace, eos = world.trace, VOCABULARIES[world.student].eos_id
    last = world.log[-1]
    assert trace.stop is not None
    if trace.stop is StopReason.EOS:
        assert last.who == "student" and trace.completion_ids[-1] == eos
    elif trace.stop is StopReason.LENGTH:
        assert trace.num_tokens == world.config.max_completion_length
        assert trace.completion_ids[-1] != eos
    elif trace.stop is StopReason.TEACHER_EOS:
        assert last.who == "teacher" and world.config.is_ended_by_teacher
        assert last.answer.finish is FinishReason.EOS
        assert trace.completion_ids[-1] == eos and trace.spans[-1].author is Author.CLOSING
    else:
        assert last.who == "teacher" and last.answer is None and world.config.is_stopped_by_failure
    assert trace.completion_ids.count(eos) == (trace.stop in (StopReason.EOS, StopReason.TEACHER_EOS))
    assert trace.error == (TROUBLE if any(r.answer is None for r in world.log) else None)
    assert TROUBLE not in trace.text and TROUBLE not in trace.answer
    if trace.stop is not StopReason.TEACHER_ERROR and trace.error:
        assert not world.config.is_stopped_by_failure


def check_shares_and_texts(world):
    trace, table = world.trace, TABLES[world.student]
    vocabulary = VOCABULARIES[world.student]
    eos = vocabulary.eos_id
    runs = runs_before(world.log, len(world.log), world.prompt.student)
    own = [[i for i in ids if i != eos] for who, ids in runs if who == "student"]
    if all(is_text(reference.spelt(ids, table)) for ids in own):
        spans = [span for span in trace.spans if span.author is Author.STUDENT]
        for ids, span in zip(own, spans, strict=True):
            assert reference.fits(span.kept_ids, reference.outside(ids, table), table)
            assert span.kept_text.encode() == reference.COMMAND.sub(b"", reference.spelt(ids, table))
            assert span.text.encode() == reference.spelt(ids, table)
        removed = sum(len(ids) - len(span.kept_ids) for ids, span in zip(own, spans, strict=True))
        kept = trace.num_tokens - removed
        assert trace.teacher_share == (trace.teacher_tokens / kept if kept else 0.0)
    assert 0.0 <= trace.teacher_share <= 1.0
    assert trace.answer == "".join(span.kept_text for span in trace.spans)
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("byte_level", "byte_level"),
        ("byte_level_tags", "byte_level"),
        ("gemma_tags", "gemma"),
        ("llama2", "llama2"),
        ("characters", "characters"),
        ("byte_level", "characters"),
        ("characters", "llama2"),
        ("llama2", "byte_level"),
        ("byte_level", "text"),
        ("characters", "chat"),
    ],
)
@given(data=st.data())
def test_any_rollout_keeps_the_rules(student, teacher, data):
    world = data.draw(worlds(student, teacher))
    answered = sum(call.outcome is Outcome.ANSWERED for call in world.trace.calls)
    event(f"{min(answered, 3)} answered, {world.trace.stop}")
    check_lengths_and_authors(world)
    check_student_contexts(world)
    check_teacher_contexts(world)
    check_calls(world)
    check_end(world)
    check_shares_and_texts(world)


@pytest.mark.parametrize("name", VOCABULARIES)
@given(data=st.data())
def test_without_a_teacher_a_rollout_is_what_the_engine_alone_writes(name, data):
    vocabulary, log = VOCABULARIES[name], []
    turn = data.draw(reference.spellings(TABLES[name])) + [vocabulary.eos_id]
    config = RelayRules(max_completion_length=data.draw(st.integers(1, 60)), student=Sampling(temperature=0.3))
    prompt = RelayPrompt(vocabulary.encode("Q: "))
    student = WitnessedEngine("student", vocabulary, [turn], log)
    trace = asyncio.run(relay(prompt, student, None, config, seed=data.draw(st.none() | st.integers(0, 9))))
    (request,) = log
    alone = WitnessedEngine("student", vocabulary, [turn], [])
    written = asyncio.run(alone.generate(prompt.student, config.max_completion_length, sampling=request.sampling))
    assert request.stop == () and request.sampling.temperature == 0.3
    assert trace.completion_ids == written.ids
    assert trace.logprobs == written.logprobs
    assert trace.loss_mask == [1] * len(written.ids)
    assert all(call.outcome is Outcome.DENIED for call in trace.calls)
    assert trace.teacher_share == 0.0
