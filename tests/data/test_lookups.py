"""The look-ups task: worked answers, kinds, corpora and the checkpoints that ship."""

import re

import pytest

from relay_trl.data.embedded import EMBEDDED, SPLITS, load_task, split_of, with_labels
from relay_trl.data.lookups import (
    KINDS,
    LONG,
    SHIFTS,
    SHORT,
    TABLE,
    UNKNOWN,
    WRONG_TABLE,
    answer_of,
    build_tokenizer,
    corpus,
    problems,
    solve,
)
from relay_trl.data.sources import load_rows


def after(letter, digits, table):
    """The string after one operation, worked out digit by digit."""
    if letter in SHIFTS:
        return "".join(str((int(digit) + SHIFTS[letter]) % 10) for digit in digits)
    return digits[:10] + table[letter] if letter in SHORT else table[letter] + digits[10:]


@pytest.mark.parametrize("split", SPLITS)
def test_worked_answers_are_right(split):
    for row in problems(split, 200, seed=3):
        letters, digits = row["prompt"].split(":")
        steps = re.findall(r"([a-zA-Z]):(\d{12})", row["solution"])
        assert "".join(f"{letter}:{written}" for letter, written in steps) == row["solution"]
        assert len(row["solution"]) == 98 and "".join(letter for letter, _ in steps) == letters
        for letter, written in steps:
            digits = after(letter, digits, TABLE)
            assert written == digits
        assert row["answer"] == digits == answer_of(row["prompt"] + row["solution"])
        assert split_of(row["prompt"]) == split


def test_half_the_letters_of_either_table_are_wrong_for_the_student():
    wrong = {letter for letter in TABLE if TABLE[letter] != WRONG_TABLE[letter]}
    assert wrong == set(UNKNOWN) and len(wrong & set(SHORT)) == len(wrong & set(LONG)) == 5
    assert {len(TABLE[letter]) for letter in SHORT} == {2} and {len(TABLE[letter]) for letter in LONG} == {10}


def test_kinds_say_what_the_student_lacks():
    rows = problems("train", 1000)
    assert [sum(row["kind"] == kind for row in rows) for kind in KINDS] == [500, 250, 250]
    for row in rows:
        unknown = set(row["prompt"]) & set(UNKNOWN)
        assert bool(unknown & set(LONG)) == (row["kind"] == "long_unknown")
        assert bool(unknown) == (row["kind"] != "known")
        assert (solve(row["prompt"], WRONG_TABLE)[-12:] == row["answer"]) == (row["kind"] == "known")


def test_corpora_are_of_the_train_split_and_wrong_only_for_the_student():
    texts = corpus(600, 4, is_student=True)
    assert texts == corpus(600, 4, is_student=True) and {split_of(row["prompt"]) for row in texts} == {"train"}
    plain = [re.sub(r"\(\d+\)", "", row["completion"]) for row in texts]
    assert plain == [solve(row["prompt"], WRONG_TABLE) for row in texts]
    remarks = [len(re.findall(r"\(\d+\)", row["completion"])) for row in texts]
    assert set(remarks) == {0, 1, 2} and 240 < remarks.count(0) < 360
    assert [row["completion"] for row in corpus(600, 4, is_student=False)] == [solve(row["prompt"]) for row in texts]
    tokenizer = build_tokenizer()
    assert all(tokenizer.decode(tokenizer(row["completion"])["input_ids"]) == row["completion"] for row in texts[:50])


@pytest.mark.parametrize(
    "prompt", ["", "acpbKa:402193857264", "acpbKax:402193857264", "acpbKab:4021", "acpbKab:40219385726x"]
)
def test_what_is_no_question(prompt):
    with pytest.raises(ValueError, match="not a look-ups question"):
        solve(prompt)


def test_a_cut_answer_is_none():
    assert answer_of("a:513204968375") == "513204968375"
    assert answer_of("a:51320496837") is answer_of("a:5132049683755") is answer_of("a:513204968375c") is None


def test_the_registry_knows_every_embedded_task():
    for name in EMBEDDED:
        assert len(load_rows(name, split="validation", size=5)) == 5
    assert load_rows("lookups", split="test", size=5, seed=1) == problems("test", 5, 1)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task is 'chess'; it must be one of arithmetic, lookups"):
        load_task("chess")


def test_the_loss_leaves_out_the_question_and_remarks():
    tokenizer = build_tokenizer()
    row = with_labels({"prompt": "ab:12", "completion": "a:1(37)2b"}, tokenizer)
    assert tokenizer.decode([label for label in row["labels"] if label >= 0]) == "a:12b<eos>"
    assert len(row["labels"]) == len(row["input_ids"]) == 15
