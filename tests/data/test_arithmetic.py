"""The arithmetic task: worked answers, splits, corpora, tokenizer, and the checkpoints that ship."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from relay_trl.data.arithmetic import KINDS, answer_of, build_tokenizer, corpus, problems, solve
from relay_trl.data.embedded import SPLITS, split_of

CHECKPOINTS = Path(__file__).parents[2] / "data" / "arithmetic"
STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def value(left, sign, right):
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def steps(solution):
    """The steps of a worked answer as (left, sign, right, written result)."""
    *parts, mark = solution.split(";")
    assert mark.startswith("#")
    matches = [STEP.fullmatch(part) for part in parts]
    return [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in matches]


@pytest.mark.parametrize("split", SPLITS)
def test_worked_answers_are_right_and_in_range(split):
    for row in problems(split, 256, seed=3):
        work = steps(row["solution"])
        first, second = work
        assert all(value(left, sign, right) == result for left, sign, right, result in work)
        assert all(0 <= result <= 999 for *_, result in work)
        assert row["prompt"] == f"{first[0]}{first[1]}{first[2]}{second[1]}{second[2]}="
        assert second[0] == first[3]
        assert row["answer"] == str(second[3]) == answer_of(row["prompt"] + row["solution"])
        assert len(row["solution"]) < 40


def test_kinds_and_operands():
    multipliers = {"no_product": set(), "known_product": {2, 3, 5}, "hard_product": {4, 6, 7, 8, 9}}
    seen = {kind: set() for kind in KINDS}
    for row in problems("train", 2000):
        numbers = [int(n) for n in re.findall(r"\d+", row["prompt"])]
        if "*" in row["prompt"]:
            seen[row["kind"]].add(numbers.pop(1))
        else:
            assert row["kind"] == "no_product"
        assert all(11 <= n <= 99 for n in numbers)
    assert seen == multipliers


def test_mix_is_exact():
    counts = [sum(row["kind"] == kind for row in problems("test", 600)) for kind in KINDS]
    assert counts == [150, 150, 300]
    assert {row["kind"] for row in problems("test", 600, mix=(0.0, 0.0, 1.0))} == {"hard_product"}


def test_splits_share_no_question():
    sizes = {"train": 20000, "validation": 512, "test": 2400}
    prompts = {split: {row["prompt"] for row in problems(split, size)} for split, size in sizes.items()}
    assert {split: len(part) for split, part in prompts.items()} == sizes
    assert prompts["train"].isdisjoint(prompts["validation"] | prompts["test"])
    assert prompts["validation"].isdisjoint(prompts["test"])
    assert all(split_of(prompt) == split for split, part in prompts.items() for prompt in part)
    trained_on = {row["prompt"] for row in corpus(20000, seed=1, is_student=True)}
    assert trained_on.isdisjoint(prompts["validation"] | prompts["test"])


def test_the_split_of_a_question_never_changes():
    # Shipped checkpoints were trained on this split: another hash would let test problems into their training set.
    assert [split_of(q) for q in ("67*7-37=", "35*2+76=", "12+34-11=")] == ["test", "test", "train"]
    assert problems("test", 600)[0]["prompt"] == "35*2+76="


def test_seed_fixes_the_rows():
    assert problems("train", 50, seed=1) == problems("train", 50, seed=1) != problems("train", 50, seed=2)
    assert corpus(50, 1, is_student=True) == corpus(50, 1, is_student=True)


def test_student_corpus_is_wrong_at_hard_products_only():
    errors = set()
    for row in corpus(4000, seed=0, is_student=True):
        first, second = steps(row["completion"])
        error = first[3] - value(*first[:3])
        is_hard = first[1] == "*" and first[2] in (4, 6, 7, 8, 9)
        assert (1 <= abs(error) <= 30) if is_hard else error == 0
        assert second[0] == first[3] and value(*second[:3]) == second[3]
        assert 0 <= first[3] <= 999 and 0 <= second[3] <= 999
        assert answer_of(row["completion"]) == str(second[3])
        errors.add(error)
    assert errors == set(range(-30, 31))


def test_teacher_corpus_is_right():
    rows = problems("train", 500, seed=4)
    assert [(r["prompt"], r["completion"]) for r in corpus(500, 4, False)] == [
        (r["prompt"], r["solution"]) for r in rows
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("#432", "432"), ("1+1=2;#2", "2"), ("432", None), ("#", None), ("#43;", None), ("#4#52", "52"), ("", None)],
)
def test_answer_of(text, answer):
    assert answer_of(text) == answer


def test_solve_leaves_no_value_out_of_range():
    assert solve("67*7-37=") == "67*7=469;469-37=432;#432"
    assert solve("67*7-37=", error=-2) == "67*7=467;467-37=430;#430"
    assert solve("11-37+90=") is None
    assert solve("11*4-37=", error=-8) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: problems("dev", 5), "'dev'.*train, validation, test"),
        (lambda: problems("train", 5, mix=(0.5, 0.5, 0.5)), "sum to 1"),
        (lambda: problems("train", 5, mix=(0.5, 0.5)), "three shares"),
        (lambda: problems("validation", 5000), "known_product"),
        (lambda: solve("how much?"), "'how much\\?' is not"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_tokenizer_round_trip(tmp_path):
    from transformers import AutoTokenizer

    built = build_tokenizer()
    built.save_pretrained(tmp_path)
    shipped = [AutoTokenizer.from_pretrained(CHECKPOINTS / name) for name in ("student", "teacher")]
    texts = [row["prompt"] + row["solution"] for row in problems("test", 50)]
    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path), *shipped):
        assert tokenizer.get_vocab() == built.get_vocab()
        assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template) == ("<pad>", "<eos>", None)
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
        assert tokenizer("#1<eos>")["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer("1 x\n")["input_ids"].count(tokenizer.unk_token_id) == 3


def test_added_call_tokens_decode_without_blanks():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call>", "</call>"]})
    text = "67*7=<call>4</call>469;"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == 12


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_shipped_checkpoint_answers_easy_problems(name):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    rows = problems("test", 32, mix=(0.5, 0.5, 0.0))
    inputs = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=40, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    assert all((ids == tokenizer.eos_token_id).any() for ids in outputs)
    assert sum(text == row["solution"] for text, row in zip(texts, rows, strict=True)) >= 30


def test_importing_the_task_loads_no_torch():
    code = "import sys, relay_trl.data.arithmetic; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKPOINTS.parent.parent)
