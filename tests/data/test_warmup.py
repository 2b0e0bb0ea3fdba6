"""The warm-up data: where calls are put in, what they ask for, and that nothing of the student's answer is touched."""

import asyncio
import json
import random
from collections import Counter

import pytest
from helpers import tokenizers as kinds
from hypothesis import given
from hypothesis import strategies as st

from relay_trl.call_syntax import CallSyntax
from relay_trl.data.arithmetic import build_tokenizer
from relay_trl.data.random_calls import command_ids, insert_calls
from relay_trl.data.warmup import WarmupConfig, warmup_rows
from relay_trl.engines.base import FinishReason, Generation, SteppedEngine
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.grading.grader import last_boxed
from relay_trl.prompts import PromptBuilder
from relay_trl.run_files import write_jsonl
from relay_trl.training.call_tokens import add_call_tokens
from relay_trl.vocabulary import Vocabulary

SYNTAX = CallSyntax()
VOCABULARIES = {
    f"{name}{'-tags' if tags else ''}": Vocabulary(make(tags))
    for name, make in kinds.KINDS.items()
    for tags in ((), kinds.TAGS)
}

PIECES = [
    "the answer ",
    "1+1=2;",
    "\n",
    " so ",
    "é",
    "中",
    "🙂",
    "{x}",
    "<",
    ">",
    ">.",
    "</",
    "<call>",
    "call>",
    "10",
    "  ",
]
BOXES = [
    r"\boxed{2}",
    r"\boxed{\frac{1}{2}}",
    r"\fbox{10}",
    r"\boxed {1}",
    r"\boxed 5",
    r"\boxed{\{1\}}",
    r"\boxed{\boxed{3}}",
]


@st.composite
def answers(draw):
    """An answer in pieces, and which of them is the last box."""
    prose = st.lists(st.sampled_from(PIECES), max_size=6)
    pieces = draw(prose)
    for _ in range(draw(st.integers(0, 2))):
        pieces += [draw(st.sampled_from(BOXES)), ".", *draw(prose)]
    return pieces


def is_woven_of(written, ids, commands):
    """Whether `written` is `ids`, in order, with the token runs `commands`, in order, between them."""
    reached = {(0, 0)}
    while reached:
        if (len(ids), len(commands)) in reached:
            return True
        following = set()
        for i, k in reached:
            at = i + sum(map(len, commands[:k]))
            if i < len(ids) and written[at] == ids[i]:
                following.add((i + 1, k))
            if k < len(commands) and written[at : at + len(commands[k])] == commands[k]:
                following.add((i, k + 1))
        reached = following
    return False


@given(
    vocabulary=st.sampled_from(list(VOCABULARIES.values())),
    pieces=answers(),
    seed=st.integers(0, 2**32),
    num_calls=st.integers(0, 4),
    num_orders=st.integers(1, 4),
)
def test_calls_stand_before_the_final_box_and_change_nothing(vocabulary, pieces, seed, num_calls, num_orders):
    ids = vocabulary.encode("".join(pieces))
    text = vocabulary.decode(ids)
    written = insert_calls(ids, vocabulary, SYNTAX, random.Random(seed), num_calls, num_orders)
    result = vocabulary.decode(written)
    commands = SYNTAX.find(result)

    assert len(commands) <= num_calls
    assert SYNTAX.remove(result) == text
    assert is_woven_of(written, ids, [command_ids(command.n, vocabulary, SYNTAX) for command in commands])
    sizes = {digit * 10**order for digit in range(1, 10) for order in range(num_orders)}
    assert {command.n for command in commands} <= sizes

    # Where each call stands in the answer without calls, against where the pieces are known to lie
    spans, at = [], 0
    for piece in pieces:
        spans.append((piece, at, at + len(piece)))
        at += len(piece)
    boxes = [(start, end) for piece, start, end in spans if piece in BOXES]
    for k, command in enumerate(commands):
        place = command.start - sum(earlier.end - earlier.start for earlier in commands[:k])
        assert not any(start < place < end for start, end in boxes)
        assert not boxes or place <= boxes[-1][0]
    assert last_boxed(result) == last_boxed(text)


@given(
    vocabulary=st.sampled_from(list(VOCABULARIES.values())),
    steps=st.lists(st.sampled_from(PIECES), max_size=6),
    is_marked=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_calls_stand_before_the_marker(vocabulary, steps, is_marked, seed):
    ids = vocabulary.encode("".join(steps) + ("#### 42" if is_marked else ""))
    result = vocabulary.decode(insert_calls(ids, vocabulary, SYNTAX, random.Random(seed), 4, marker="####"))
    assert SYNTAX.remove(result) == vocabulary.decode(ids)
    assert not is_marked or result.endswith("#### 42")


@given(vocabulary=st.sampled_from(list(VOCABULARIES.values())), data=st.data(), seed=st.integers(0, 2**32))
def test_any_tokens_even_such_as_spell_no_text_stay_as_sampled(vocabulary, data, seed):
    ids = data.draw(st.lists(st.integers(0, vocabulary.size - 1), max_size=30))
    text = vocabulary.decode(ids)
    written = insert_calls(ids, vocabulary, SYNTAX, random.Random(seed), 3)
    result = vocabulary.decode(written)
    if "\ufffd" not in text:  # stray bytes between two commands may show as another number of replacement characters
        assert SYNTAX.remove(result) == SYNTAX.remove(text)
    assert len(SYNTAX.find(result)) >= len(SYNTAX.find(text))
    tokens = iter(written)
    assert all(token in tokens for token in ids)


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_every_number_of_the_range_is_drawn_and_no_other(vocabulary):
    ids = vocabulary.encode("so the answer is 10")
    rng = random.Random(0)
    drawn = Counter()
    for _ in range(300):
        drawn.update(c.n for c in SYNTAX.find(vocabulary.decode(insert_calls(ids, vocabulary, SYNTAX, rng, 3, 2))))
    assert set(drawn) == {*range(1, 10), *range(10, 100, 10)}
    assert sum(drawn.values()) == 900  # an answer of this length has room for three


def test_calls_reach_every_place_before_the_final_answer():
    vocabulary = VOCABULARIES["characters"]
    ids = vocabulary.encode(r"ab\boxed{1}c")
    places = {
        vocabulary.decode(insert_calls(ids, vocabulary, SYNTAX, random.Random(s), 1)).index("<") for s in range(200)
    }
    assert places == {0, 1, 2}


def test_an_answer_without_room_gets_fewer_calls():
    vocabulary = VOCABULARIES["characters"]
    ids = vocabulary.encode(r"\boxed{1} and more")
    result = vocabulary.decode(insert_calls(ids, vocabulary, SYNTAX, random.Random(0), 3))
    assert len(SYNTAX.find(result)) == 1 and result.endswith(r"\boxed{1} and more")


def test_a_vocabulary_that_cannot_spell_the_tags_is_refused():
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="no tokens that spell '<call>7</call>'; set add_call_tokens"):
        command_ids(7, Vocabulary(tokenizer), SYNTAX)
    add_call_tokens(tokenizer, SYNTAX)
    assert len(command_ids(70, Vocabulary(tokenizer), SYNTAX)) == 4


LETTERS = Vocabulary(kinds.characters())
SUMS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(30)]


def make_rows(config, rows=SUMS, done=()):
    def script(context):
        problem = LETTERS.decode(context)
        if problem == "3+3=":
            return LETTERS.encode("and so on without an end")
        return [*LETTERS.encode(f"{problem} sum #{2 * int(problem.split('+')[0])}"), LETTERS.eos_id]

    student = ScriptedEngine(LETTERS, script)

    async def collect():
        builder = PromptBuilder(LETTERS.tokenizer)
        return {number: e["row"] async for number, e in warmup_rows(rows, student, builder, config, done)}

    made = asyncio.run(collect())
    assert not made.keys() & set(done)
    return [made.get(number) for number in range(config.samples * len(rows))]


def config_of(**fields):
    given = {"max_completion_length": 20, "max_in_flight": 7, **fields}
    return WarmupConfig(student="s", output="o", answer_marker="#", **given)


def test_rows_of_the_students_own_answers():
    rows = make_rows(config_of(call_weights=[0, 0, 1], num_orders=2))
    assert rows[3] is None and all(row is not None for i, row in enumerate(rows) if i != 3)
    for problem, row in zip(SUMS, rows, strict=True):
        if row is None:
            continue
        assert (row["prompt"], row["answer"], row["calls"]) == (problem["prompt"], problem["answer"], 2)
        assert LETTERS.decode(row["prompt_ids"]) == problem["prompt"]
        assert row["completion_ids"][-1] == LETTERS.eos_id
        assert row["completion_mask"] == [1] * len(row["completion_ids"])
        assert LETTERS.decode(row["completion_ids"][:-1]) == row["completion"]
        assert SYNTAX.remove(row["completion"]) == f"{problem['prompt']} sum #{problem['answer']}"
        assert row["completion"].endswith(f"#{problem['answer']}")


def test_samples_follow_each_other_and_get_calls_of_their_own():
    rows = make_rows(config_of(samples=3, call_weights=[0, 1]))
    assert [row and row["prompt"] for row in rows[:12]] == [*["0+0="] * 3, *["1+1="] * 3, *["2+2="] * 3, *[None] * 3]
    assert len({row["completion"] for row in rows[:3]}) > 1


def test_a_seed_fixes_the_calls_whatever_else_is_asked():
    first, again, other = (make_rows(config_of(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    rest = make_rows(config_of(seed=1), done={0, 4, 11})
    assert rest == [None if number in (0, 4, 11) else row for number, row in enumerate(first)]


def test_weights_are_the_frequencies_of_calls():
    counts = Counter(
        row["calls"] for row in make_rows(config_of(call_weights=[1, 0, 3], samples=20)) if row is not None
    )
    assert set(counts) == {0, 2}
    assert 0.65 < counts[2] / sum(counts.values()) < 0.85  # 580 draws: the bounds are five standard errors away


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"student": ""}, "student is not set"),
        ({"output": ""}, "output is not set"),
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"num_orders": 0}, "num_orders is 0"),
        ({"call_weights": []}, "call_weights is"),
        ({"call_weights": [0.0, 0.0]}, "not all zero"),
        ({"call_weights": [1.0, -1.0]}, "non-negative"),
        ({"open_tag": "<x>", "close_tag": "<x>"}, "the two must differ"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"step_share": 1.5, "step_end": ";"}, "step_share is 1.5; it is a share between 0 and 1"),
        ({"step_share": 0.5}, "step_end is not set"),
        ({"step_start_share": -0.1, "step_end": ";"}, "step_start_share is -0.1; it is a share between 0 and 1"),
        ({"step_start_share": 0.5}, "step_start_share is 0.5, but step_end is not set"),
        ({"step_share": 0.5, "step_end": "("}, "no regular expression"),
        (
            {"step_end": ";"},
            "step_end is ';', which has an effect with step_share, step_start_share or calls: searched only",
        ),
        ({"tries": 4}, "tries is 4, which has an effect with calls: searched only; leave it out, or set that"),
        (
            {"teacher": "http://me:secret@t/v1"},
            r"teacher is 'http://\*\*\*@t/v1', which has an effect with calls: searched",
        ),
        ({"teacher_headers": '{"k": "secret"}'}, "teacher_headers is None, which"),
    ],
)
def test_what_makes_no_warmup(fields, said):
    with pytest.raises(ValueError, match=said):
        WarmupConfig(**{"student": "s", "output": "o", **fields})


def step_calls(step_end, step_share=1.0, size=40):
    """Calls put into a worked answer: what each asks for, and the answer from there on."""
    vocabulary = VOCABULARIES["characters-tags"]
    text = "12*3=36;36+4=40;#40"
    ids, found = vocabulary.encode(text), []
    for seed in range(size):
        rng = random.Random(seed)
        written = insert_calls(ids, vocabulary, SYNTAX, rng, 1, 4, "#", step_share, step_end)
        (command,) = SYNTAX.find(vocabulary.decode(written))
        found.append((command.n, vocabulary.encode(text[command.start :])))
    return vocabulary, found


@pytest.mark.parametrize(("step_end", "ends"), [(";", ";"), (r"(?=;)", ""), ("!", None)])
def test_calls_to_the_end_of_the_step(step_end, ends):
    vocabulary, found = step_calls(step_end)
    for n, rest in found:
        text = vocabulary.decode(rest)
        step = (
            text if ends is None else text[: text.find(";", not ends) + len(ends)] if ";" in text[not ends :] else text
        )
        assert vocabulary.decode(rest[:n]).startswith(step) and not vocabulary.decode(rest[: n - 1]).startswith(step)
    assert len({n for n, _ in found}) > 2


def test_a_share_of_calls_reaches_to_the_end_of_the_step():
    lengths = {share: [n for n, _ in step_calls(";", share, 200)[1]] for share in (0.0, 0.5)}
    assert sum(n > 19 for n in lengths[0.0]) > 100 > sum(n > 19 for n in lengths[0.5]) > 30


@pytest.mark.parametrize(("share", "bounds"), [(0.0, (20, 55)), (0.5, (100, 145)), (1.0, (200, 200))])
def test_a_share_of_calls_stands_where_a_step_begins(share, bounds):
    vocabulary = VOCABULARIES["characters-tags"]
    text = "12*3=36;36+4=40;#40"
    places = Counter()
    for seed in range(200):
        rng = random.Random(seed)
        ids = insert_calls(vocabulary.encode(text), vocabulary, SYNTAX, rng, 1, 1, "#", 0.0, ";", share)
        places[SYNTAX.find(vocabulary.decode(ids))[0].start] += 1
    starts = [0, 8, 16]  # three of the 17 places; the bounds are three standard errors away
    assert bounds[0] <= sum(places[start] for start in starts) <= bounds[1]
    assert min(places[start] for start in starts) > 0 and max(places) <= 16


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "warmup.jsonl"
    assert write_jsonl([{"a": "é"}, {"a": 2}], path) == 2
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [{"a": "é"}, {"a": 2}]

    def breaking():
        yield {"a": 3}
        raise KeyError("half way")

    with pytest.raises(KeyError):
        write_jsonl(breaking(), path)
    assert [json.loads(line)["a"] for line in path.read_text(encoding="utf-8").splitlines()] == ["é", 2]
    assert [file.name for file in path.parent.iterdir()] == ["warmup.jsonl"]


class LastInFirstOut(SteppedEngine):
    """Answers the newest request, so that the oldest one waits for as long as others come."""

    name, vocabulary, max_context = "student", LETTERS, None

    def __init__(self):
        super().__init__()
        self.begun, self.answered = [], []

    def _submit(self, context, max_tokens, stop, sampling, on_tokens):
        self.begun.append(LETTERS.decode(context))
        return self.begun[-1]

    def _step(self):
        newest = next(key for key in reversed(self.begun) if key not in self.answered)
        self.answered.append(newest)
        text = f"{newest}#{newest}"
        return [(newest, Generation([*LETTERS.encode(text), LETTERS.eos_id], text, FinishReason.EOS))]


def test_an_answer_that_takes_long_holds_up_no_other():
    student, config = LastInFirstOut(), config_of(max_in_flight=2, max_completion_length=40)

    async def make():
        return [number async for number, _ in warmup_rows(SUMS, student, PromptBuilder(LETTERS.tokenizer), config)]

    assert sorted(asyncio.run(make())) == list(range(len(SUMS)))
    assert student.answered[-1] == SUMS[0]["prompt"]
