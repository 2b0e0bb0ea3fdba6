"""Calls that are searched for: where they stand, what they ask for, what is kept, and what a search cannot do."""

import asyncio
import logging
import math
from dataclasses import replace

import pytest
from helpers import tokenizers as kinds
from helpers.trainers import PAIR
from hypothesis import given
from hypothesis import strategies as st

from relay_trl.call_syntax import CallSyntax
from relay_trl.data.arithmetic import problems
from relay_trl.data.warmup import WarmupConfig, warmup_rows, write_warmup
from relay_trl.engines.base import EngineError
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.grading.grader import Grader
from relay_trl.prompts import PromptBuilder
from relay_trl.training.call_tokens import add_call_tokens
from relay_trl.translation import aligned
from relay_trl.vocabulary import Vocabulary

SYNTAX = CallSyntax()
LETTERS = Vocabulary(kinds.characters())
PROBLEM = "2*3+4="
RIGHT = "2*3=6;6+4=10;#10"
ROWS = [{"prompt": PROBLEM, "answer": "10"}]


def goes_on(text, vocabulary, solution=RIGHT):
    """Writes what is left of `solution` behind a text that has its prompt and any beginning, however wrong."""
    return [*vocabulary.encode(solution[len(text) - len(PROBLEM) :]), vocabulary.eos_id]


def wrong_student(wrong, vocabulary=LETTERS):
    """Writes `wrong` by itself; behind a right beginning that is longer than where it goes wrong, the right rest."""
    first = next(k for k, (a, b) in enumerate(zip(wrong, RIGHT, strict=False)) if a != b)

    def script(context):
        text = vocabulary.decode(context)
        so_far = SYNTAX.remove(text[len(PROBLEM) :])
        is_helped = len(so_far) > first and RIGHT.startswith(so_far)
        return goes_on(PROBLEM + so_far, vocabulary, RIGHT if is_helped else wrong)

    return ScriptedEngine(vocabulary, script, "student")


def honest_rest(text, vocabulary):
    """What is right behind a beginning that is right; behind a wrong one, what follows from it."""
    so_far = text[len(PROBLEM) :]
    return goes_on(text, vocabulary, RIGHT if RIGHT.startswith(so_far) else "2*3=7;7+4=11;#11")


def right_teacher(vocabulary=LETTERS, **options):
    """Writes the right rest, and finds certain what is right and impossible what is not."""

    def scores(ids, start):
        text = vocabulary.decode(ids[start:]).replace(vocabulary.decode([vocabulary.eos_id]), "")
        found, at = [], 0
        for token in ids[start:]:
            piece = vocabulary.decode([token])
            is_right = RIGHT.startswith(text[: at + len(piece)]) or token == vocabulary.eos_id
            found.append(0.0 if is_right else -9.0)
            at += len(piece)
        return found

    return ScriptedEngine(
        vocabulary,
        lambda context: honest_rest(vocabulary.decode(context), vocabulary),
        "teacher",
        scores=scores,
        **options,
    )


def search(student, teacher, rows=ROWS, is_caller=False, done=(), **fields):
    # A scripted engine gives each of its tokens 0.6
    fields = {"max_completion_length": 40, "teacher_temperature": 0.0, "doubt": 0.5, **fields}
    config = WarmupConfig(student="s", teacher="t", output="o", calls="searched", answer_marker="#", **fields)

    async def collect():
        builder = PromptBuilder(student.vocabulary.tokenizer, teacher)
        made = warmup_rows(rows, student, builder, config, done, teacher, is_caller)
        return {number: entry async for number, entry in made}

    return asyncio.run(collect())


def teacher_text(row, vocabulary=LETTERS):
    return vocabulary.decode(
        [i for i, own in zip(row["completion_ids"], row["completion_mask"], strict=True) if not own]
    )


def test_a_call_stands_where_the_teacher_would_not_have_written_the_students_token():
    entry = search(wrong_student("2*3=7;6+4=10;#10"), right_teacher(), disagreement=0.1, gap=0, keep_lucky=0)[0]
    # The right words behind the wrong 7 are no right answer to the teacher, so the first call reaches to the end
    row = entry["row"]
    assert entry["outcome"] == "helped" and entry["tries"] == 2
    assert SYNTAX.remove(row["completion"]) == RIGHT
    assert row["completion"].startswith("2*3=<call>") and row["calls"] == 1
    assert RIGHT[4:].startswith(teacher_text(row)) and entry["teacher_written"] == len(teacher_text(row))


class Local:
    """Teachers that judge each place for itself: only the characters at `places` are wrong."""

    def __init__(self, places, vocabulary=LETTERS, **options):
        def scores(ids, start):
            return [
                -9.0 if k in places and token != vocabulary.encode(RIGHT)[k] else 0.0
                for k, token in enumerate(ids[start:])
            ]

        self.engine = ScriptedEngine(
            vocabulary,
            lambda context: goes_on(vocabulary.decode(context), vocabulary),
            "teacher",
            scores=scores,
            **options,
        )


@pytest.mark.parametrize(
    ("wrong", "gap", "calls"),
    [
        ("2*3=7;6+4=10;#10", 0, ["2*3=<call>1</call>6"]),
        ("2*3=7;5+3=10;#10", 0, ["2*3=<call>1</call>6;6+4=10"]),  # once helped, it is right by itself
        ("2*3=7;5+4=10;#10", 3, ["2*3=<call>3</call>6;6"]),
    ],
)
def test_n_reaches_to_the_end_of_what_is_wrong(wrong, gap, calls):
    places = {k for k, (a, b) in enumerate(zip(wrong, RIGHT, strict=False)) if a != b}
    wrong_end = wrong[: max(places) + 1] + "0;#0"
    (entry,) = search(wrong_student(wrong_end[:40]), Local(places).engine, gap=gap).values()
    assert entry["outcome"] == "helped"
    assert all(call in entry["row"]["completion"] for call in calls), entry["row"]["completion"]
    assert entry["row"]["calls"] == len(calls)


def test_several_calls_where_one_is_not_enough():
    def script(context):
        text = LETTERS.decode(context)[len(PROBLEM) :]
        rest = {4: "7;6+4=19;#19", 5: ";6+4=19;#19", 10: "19;#19", 12: ";#10"}
        wrong = "2*3=7;6+4=19;#19"
        return [*LETTERS.encode(rest.get(len(text), wrong[len(text) :])), LETTERS.eos_id]

    (entry,) = search(ScriptedEngine(LETTERS, script, "student"), Local({4, 11}).engine, gap=0).values()
    assert entry["row"]["completion"] == "2*3=<call>1</call>6;6+4=1<call>1</call>0;#10" or entry["row"]["calls"] == 2
    assert SYNTAX.remove(entry["row"]["completion"]) == RIGHT
    (entry,) = search(ScriptedEngine(LETTERS, script, "student"), Local({4, 11}).engine, gap=0, max_calls=1).values()
    assert entry["outcome"] == "unsolved" and entry["row"] is None


def test_one_call_grows_where_two_would_stand_side_by_side():
    """The teacher finds the first wrong digit only; helped, the student goes wrong again two tokens later."""

    def script(context):
        so_far = LETTERS.decode(context)[len(PROBLEM) :]
        return goes_on(PROBLEM + so_far, LETTERS, RIGHT if len(so_far) > 6 else "2*3=7;7+4=11;#11")

    student = ScriptedEngine(LETTERS, script, "student")
    (entry,) = search(student, Local({4, 6}).engine, gap=2, max_calls=1).values()
    assert entry["row"]["completion"] == "2*3=<call>3</call>6;6+4=10;#10"
    (entry,) = search(student, Local({4, 6}).engine, gap=0, max_calls=2).values()
    assert entry["row"]["completion"] == "2*3=<call>1</call>6;<call>1</call>6+4=10;#10"


def test_a_call_never_parts_a_character():
    vocabulary = Vocabulary(kinds.byte_level())
    wrong, right = vocabulary.encode("so 🙂 #11"), vocabulary.encode("so 🙃 #10")
    inside = next(k for k, (a, b) in enumerate(zip(wrong, right, strict=True)) if a != b)
    assert vocabulary.decode(right[:inside]).endswith("\ufffd")
    start = len(vocabulary.encode(PROBLEM))

    def script(context):
        so_far = context[start:]
        rest = right if so_far[: inside + 1] == right[: len(so_far)][: inside + 1] and len(so_far) > inside else wrong
        return [*rest[len(so_far) :], vocabulary.eos_id]

    teacher = ScriptedEngine(
        vocabulary,
        lambda context: [*right[len(context) - start :], vocabulary.eos_id],
        "teacher",
        scores=lambda ids, begin: [
            -9.0 * (token != other) for token, other in zip(ids[begin:], [*right, vocabulary.eos_id], strict=True)
        ],
    )
    (entry,) = search(ScriptedEngine(vocabulary, script, "student"), teacher, gap=0).values()
    row = entry["row"]
    assert entry["outcome"] == "helped" and row["completion"].startswith("so <call>")
    assert vocabulary.decode(row["completion_ids"][:-1]) == row["completion"] and "\ufffd" not in row["completion"]
    assert row["completion"].endswith("#10")


def test_what_the_student_can_do_is_left_alone_and_costs_no_teacher_token():
    student = ScriptedEngine(LETTERS, lambda context: goes_on(LETTERS.decode(context), LETTERS), "student")
    (entry,) = search(student, right_teacher()).values()
    assert (entry["outcome"], entry["tries"], entry["teacher_written"]) == ("own", 1, 0)
    assert entry["row"]["completion"] == RIGHT and set(entry["row"]["completion_mask"]) == {1}
    assert entry["row"]["completion_ids"] == [*LETTERS.encode(RIGHT), LETTERS.eos_id]


def test_luck_is_searched_on_request():
    """The scripted student gives each of its tokens 0.6, the teacher finds all of them certain."""
    student = ScriptedEngine(LETTERS, lambda context: goes_on(LETTERS.decode(context), LETTERS), "student")
    (kept,) = search(student, right_teacher(), doubt=0.7).values()
    (called,) = search(student, right_teacher(), doubt=0.7, keep_lucky=0).values()
    assert kept["row"]["calls"] == 0 and called["row"]["calls"] == 1
    (sure,) = search(student, right_teacher(), doubt=0.5, keep_lucky=0).values()
    assert sure["row"]["calls"] == 0
    some = search(student, right_teacher(), ROWS * 60, doubt=0.7, keep_lucky=0.3).values()
    share = sum(entry["row"]["calls"] == 0 for entry in some) / 60
    assert 0.1 < share < 0.5  # three standard errors


def test_every_place_is_tried_from_the_last_one_and_a_call_has_a_smallest_n():
    """The teacher would not have written two tokens; only help at the second one decides the answer."""
    wrong, decisive = "3*2=7;6+4=10;#10", 4
    scores = [-9.0 if k in (0, decisive) else 0.0 for k in range(40)]

    def script(context):
        so_far = LETTERS.decode(context)[len(PROBLEM) :]
        is_right = so_far.startswith("3*2=6")
        return goes_on(PROBLEM + so_far, LETTERS, "3*2=6;6+4=10;#10" if is_right else wrong.replace("#10", "#11"))

    teacher = ScriptedEngine(
        LETTERS,
        lambda context: goes_on(LETTERS.decode(context), LETTERS, "3*2=6;6+4=10;#10"),
        "teacher",
        scores=lambda ids, start: scores[: len(ids) - start],
    )
    fields = {"gap": 0, "max_calls": 1, "temperature": 0.0}
    (first,) = search(ScriptedEngine(LETTERS, script, "student"), teacher, **fields).values()
    assert (first["outcome"], first["tries"]) == ("unsolved", 2)  # a greedy student is not asked the same thing again
    (every,) = search(ScriptedEngine(LETTERS, script, "student"), teacher, every_place=True, **fields).values()
    assert every["row"]["completion"] == "3*2=<call>1</call>6;6+4=10;#10" and every["tries"] == 2
    (long,) = search(
        ScriptedEngine(LETTERS, script, "student"), teacher, every_place=True, min_call_tokens=3, **fields
    ).values()
    assert long["row"]["completion"] == "3*2=<call>3</call>6;6+4=10;#10" and teacher_text(long["row"]) == "6;6"


def test_known_places_are_tried_before_another_answer_is_judged():
    judged = []
    teacher = Local({1, 4, 8}).engine
    scores = teacher._scores
    teacher._scores = lambda ids, start: judged.append(ids) or scores(ids, start)
    student = ScriptedEngine(
        LETTERS, lambda context: goes_on(LETTERS.decode(context), LETTERS, "2+3=7;6*4=24;#24"), "student"
    )
    search(student, teacher, gap=0, max_calls=1, every_place=True, temperature=0.0)
    assert len(judged) == 2  # the first answer, and what the last known place led to


def test_a_student_without_probabilities_is_refused():
    class Silent(ScriptedEngine):
        async def generate(self, *args, **kwargs):
            return replace(await super().generate(*args, **kwargs), logprobs=None)

    student = Silent(LETTERS, lambda context: goes_on(LETTERS.decode(context), LETTERS, "2*3=7;7+4=11;#11"), "student")
    with pytest.raises(ValueError, match="'student' gives no probabilities .* load it with needs_logprobs=True"):
        search(student, right_teacher())


@pytest.mark.parametrize("is_told", [True, False], ids=["no scores", "no method"])
def test_a_teacher_without_probabilities_is_searched_by_what_comes_out(caplog, is_told):
    teacher = right_teacher()
    teacher._scores = None
    if not is_told:
        plain = teacher

        class Plain:
            name, vocabulary, max_context, generate = "teacher", LETTERS, None, plain.generate

        teacher = Plain()
    student = wrong_student("2*3=7;7+4=11;#11")
    with caplog.at_level(logging.WARNING):
        entries = search(student, teacher, ROWS * 3, step_end=";", doubt=0.0)
    assert caplog.text.count("gives no probabilities") == 1
    for entry in entries.values():
        # The student does not doubt, so steps are tried, the shortest first, until one leads to a right answer
        assert entry["row"]["completion"] == "<call>6</call>2*3=6;6+4=10;#10"
        assert entry["tries"] == 3 and teacher_text(entry["row"]) == "2*3=6;"


def test_a_text_only_teacher_helps_too():
    teacher = ScriptedEngine(None, lambda context: LETTERS.decode(honest_rest(context, LETTERS)[:-1]), "text")
    student = wrong_student("2*3=7;7+4=11;#11")
    (entry,) = search(student, teacher, step_end=";", doubt=0.0).values()
    assert entry["outcome"] == "helped" and SYNTAX.remove(entry["row"]["completion"]) == RIGHT


def test_another_vocabulary_is_scored_by_its_text():
    theirs = Vocabulary(kinds.byte_level())
    (entry,) = search(wrong_student("2*3=7;6+4=19;#19"), right_teacher(theirs)).values()
    assert entry["outcome"] == "helped" and entry["row"]["completion"].startswith("2*3=<call>")
    assert SYNTAX.remove(entry["row"]["completion"]) == RIGHT


def test_a_student_that_has_learnt_to_call_sees_its_calls_and_makes_none_of_its_own():
    vocabulary = Vocabulary(kinds.characters(kinds.TAGS))
    student = wrong_student("2*3=7;6+4=19;#19", vocabulary)
    (entry,) = search(student, right_teacher(vocabulary), is_caller=True).values()
    assert entry["outcome"] == "helped"
    seen = [vocabulary.decode(context) for context in student.contexts]
    assert any("<call>" in text for text in seen)
    fresh = wrong_student("2*3=7;6+4=19;#19", vocabulary)
    (again,) = search(fresh, right_teacher(vocabulary)).values()
    assert again["row"] == entry["row"]
    assert not any("<call>" in vocabulary.decode(context) for context in fresh.contexts)


def test_a_failing_teacher_loses_its_problems_and_no_others():
    def script(context):
        return EngineError("The teacher is away.") if len(context) % 2 else goes_on(LETTERS.decode(context), LETTERS)

    teacher = right_teacher()
    teacher._script = lambda context: EngineError("The teacher is away.")
    student = wrong_student("2*3=7;6+4=19;#19")
    config = WarmupConfig(
        student="s", teacher="t", output="o", calls="searched", answer_marker="#", max_completion_length=40
    )
    right = {"prompt": PROBLEM, "answer": "19"}  # what the student says

    async def collect(rows, max_failures):
        made = {}
        config.max_teacher_failures = max_failures
        builder = PromptBuilder(LETTERS.tokenizer, teacher)
        with pytest.raises(
            EngineError, match=r"failed for 2 problems, the last time with: The teacher is away\. What is done"
        ):
            async for number, entry in warmup_rows(rows, student, builder, config, (), teacher):
                made[number] = entry
        return made

    assert set(asyncio.run(collect([ROWS[0], right, ROWS[0], right], 16))) == {1, 3}
    config.max_in_flight = 1
    assert set(asyncio.run(collect([ROWS[0], ROWS[0], right], 2))) == set()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"calls": "found"}, "calls is 'found'; it must be one of random, searched"),
        ({"teacher": None}, "teacher is not set; searched calls are tried out with a teacher"),
        ({"tries": 0}, "tries is 0; it must be at least 1"),
        ({"max_call_tokens": 0}, "max_call_tokens is 0; it must be at least 1"),
        ({"min_call_tokens": 8, "max_call_tokens": 4}, "min_call_tokens is 8 and max_call_tokens 4; the smallest n"),
        ({"doubt": 1.5}, "doubt is 1.5; it is a probability between 0 and 1"),
        ({"disagreement": -0.1}, "disagreement is -0.1; it is a probability"),
        ({"keep_lucky": -0.1}, "keep_lucky is -0.1; it is a share between 0 and 1"),
        ({"gap": -1}, "gap is -1; it must be 0 or more tokens"),
        ({"called_share": 1.0}, "called_share is 1.0; it is a share between 0 and 1, both left out"),
        ({"shard": 2, "num_shards": 2}, "shard is 2; with num_shards 2 it must be 0 to 1"),
        ({"teacher_backend": "x"}, "teacher_backend is 'x'"),
        (
            {"call_weights": [1, 1]},
            r"call_weights is \[1, 1\], which has an effect with calls: random only; leave it out",
        ),
        ({"num_orders": 2}, "num_orders is 2, which has an effect with calls: random only"),
        ({"step_end": ";", "step_share": 0.5}, "step_share is 0.5, which has an effect with calls: random only"),
        ({"teacher_temperature": -1.0}, "temperature must be >= 0"),
    ],
)
def test_what_no_search_can_go_by(fields, said):
    with pytest.raises(ValueError, match=said):
        WarmupConfig(**{"student": "s", "teacher": "t", "output": "o", "calls": "searched", **fields})


def entry_of(outcome, calls=None):
    row = None if calls is None else {"calls": calls, "completion": "x"}
    return {"outcome": outcome, "tries": 3, "teacher_written": 2, "teacher_read": 5, "row": row}


def test_what_a_search_came_to_is_one_sentence(tmp_path):
    config = WarmupConfig(student="s", teacher="t", output=str(tmp_path / "o"), calls="searched")
    entries = {0: entry_of("own", 0), 1: entry_of("own", 0)}
    with pytest.raises(
        ValueError, match="right by itself in all 2 problems, so there is no wrong answer to learn from"
    ):
        write_warmup(entries, config)
    entries = {0: entry_of("own", 0), 1: entry_of("unsolved")}
    with pytest.raises(ValueError, match="None of 1 problems .* came out right with help, in 6 tries of up to 3 calls"):
        write_warmup(entries, config)
    entries[2] = entry_of("helped", 1)
    said = write_warmup(entries, config)
    assert "2 rows" in said and "1 of them with calls" in said
    assert "in 1 no help led to a right answer. 9 tries; the teacher wrote 6 tokens and read 15." in said


@pytest.mark.parametrize(("share", "called", "plain"), [(0.5, 4, 4), (0.8, 8, 2), (0.2, 1, 4)])
def test_a_share_of_the_rows_has_calls(tmp_path, share, called, plain):
    config = WarmupConfig(student="s", output=str(tmp_path / "o"), called_share=share)
    entries = {k: entry_of("random", int(k % 3 > 0)) for k in range(12)}  # 8 with, 4 without
    write_warmup(entries, config)
    rows = (tmp_path / "o").read_text().splitlines()
    assert sum('"calls": 1' in row for row in rows) == called
    assert sum('"calls": 0' in row for row in rows) == plain


@given(data=st.data())
def test_scores_of_another_vocabulary_are_the_lowest_that_a_token_overlaps(data):
    kinds_of = list(kinds.KINDS)
    mine, theirs = (Vocabulary(kinds.KINDS[data.draw(st.sampled_from(kinds_of))](())) for _ in range(2))
    text = data.draw(st.text("so the answer is 10;=", max_size=30))
    ids, their_ids = mine.encode(text), theirs.encode(text)
    if mine.decode(ids) != text or theirs.decode(their_ids) != text:
        return
    scores = data.draw(st.lists(st.floats(0, 1), min_size=len(their_ids), max_size=len(their_ids)))
    found = aligned(ids, mine, their_ids, scores, theirs)
    pieces, their_pieces = ([v.decode([i]) for i in k] for v, k in ((mine, ids), (theirs, their_ids)))
    by_character = [score for piece, score in zip(their_pieces, scores, strict=True) for _ in piece]
    at = 0
    for piece, score in zip(pieces, found, strict=True):
        assert score == min(by_character[at : at + len(piece)], default=1.0)
        at += len(piece)


def test_the_embedded_pair_is_searched():
    student, teacher = (TransformersEngine.load(str(PAIR / name), device="cpu") for name in ("student", "teacher"))
    add_call_tokens(student.vocabulary.tokenizer, SYNTAX)
    student.vocabulary = Vocabulary(student.vocabulary.tokenizer, student.vocabulary.eos_ids)
    rows = problems("train", 48, seed=5)
    entries = search(student, teacher, rows, max_completion_length=48, teacher_temperature=0.7)
    vocabulary, grader = student.vocabulary, Grader("#")
    assert sum(entry["outcome"] != "unsolved" for entry in entries.values()) > 40
    for number, entry in entries.items():
        row = entry["row"]
        if row is None:
            continue
        assert vocabulary.decode(row["completion_ids"][:-1]) == row["completion"]
        assert len(row["completion_mask"]) == len(row["completion_ids"])
        assert grader.grade([SYNTAX.remove(row["completion"])], [rows[number]["answer"]]) == [True]
        asked = [command.n for command in SYNTAX.find(row["completion"])]
        assert row["completion_mask"].count(0) <= sum(asked) <= 6
        assert (entry["outcome"] == "own") <= (asked == [])
        if rows[number]["kind"] == "hard_product" and asked:
            command = SYNTAX.find(row["completion"])[0]
            assert "=" in row["completion"][: command.start]
    grader.close()
    by_kind = {
        kind: [bool(e["row"]["calls"]) for n, e in entries.items() if e["row"] and rows[n]["kind"] == kind]
        for kind in ("hard_product", "known_product")
    }
    assert sum(by_kind["hard_product"]) > 0.8 * len(by_kind["hard_product"])
    assert sum(by_kind["known_product"]) < 0.3 * len(by_kind["known_product"])
    assert math.isfinite(sum(entry["teacher_read"] for entry in entries.values()))
