"""Reading problems: files, registered sets in the Hub's schema, the rows that are left out, and the validation split."""

import csv
import json
import logging

import pytest

from relay_trl.data.config import DataConfig
from relay_trl.data.registry import REPORTED, SOURCES
from relay_trl.data.sources import drop_overlong, drop_ungradable, load_rows
from relay_trl.grading.grader import Grader
from relay_trl.grading.words import load_grader


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it has read: not in the user's own cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [{"problem": f"{i}+{i}=", "answer": f"{2 * i} apples", "level": i} for i in range(20)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_of_a_file(tmp_path, suffix):
    rows = load_rows(write(tmp_path / f"sums{suffix}", ROWS))
    assert rows[3] == {"prompt": "3+3=", "answer": "6 apples", "level": 3, "source_row": 3} and len(rows) == 20


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path / "sums.jsonl", [{"q": "1+1=", "gold": "2"}])
    (row,) = load_rows(path, problem_column="q", answer_column="gold")
    assert row == {"prompt": "1+1=", "gold": "2", "answer": "2", "source_row": 0}


def test_a_prompt_column_is_taken_where_there_is_no_problem(tmp_path):
    messages = [{"role": "user", "content": "1+1="}]
    assert load_rows(write(tmp_path / "chat.jsonl", [{"prompt": messages, "answer": "2"}]))[0]["prompt"] == messages


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_numbers_become_text_that_can_be_graded(tmp_path, suffix):
    rows = load_rows(
        write(tmp_path / f"sums{suffix}", [{"problem": "1+1=", "answer": 2}, {"problem": "1/2", "answer": 0.5}])
    )
    assert [float(row["answer"]) for row in rows] == [2, 0.5]
    with Grader() as grader:
        assert drop_ungradable(rows, grader, "sums") == rows


def test_missing_columns_are_named_with_those_that_are_there(tmp_path):
    path = write(tmp_path / "bare.jsonl", [{"question": "1+1=", "gold": "2"}])
    with pytest.raises(
        ValueError, match=r"has no column 'prompt' and no column 'answer'; it has \['question', 'gold'\]"
    ):
        load_rows(path)


def test_size_draws_by_seed(tmp_path):
    path = write(tmp_path / "sums.jsonl", ROWS)
    first, again, other = (load_rows(path, size=5, seed=seed) for seed in (0, 0, 1))
    assert first == again != other and len(first) == len(other) == 5


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        load_rows(str(path))


def test_a_csv_with_a_header_alone(tmp_path):
    (tmp_path / "empty.csv").write_text("problem,answer\n")
    with pytest.raises(ValueError, match=r"empty\.csv cannot be read as csv"):
        load_rows(str(tmp_path / "empty.csv"))


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"problem": "1+1="')
    with pytest.raises(ValueError, match=r"broken\.jsonl cannot be read"):
        load_rows(str(tmp_path / "broken.jsonl"))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl does not exist"):
        load_rows(str(tmp_path / "nowhere.jsonl"))


# One row of each registered set, with the columns that the Hub's copy has
HUB_ROWS = {
    "gsm8k": ({"question": "Q", "answer": "1+1=<<1+1=2>>2\n#### 1,002"}, "1,002"),
    "gsm8k_train": ({"question": "Q", "answer": "so\n#### 7"}, "7"),
    "math500": ({"problem": "Q", "solution": "...", "answer": r"\frac{1}{2}", "subject": "Algebra"}, r"\frac{1}{2}"),
    "minerva": ({"problem": "Q", "solution": r"Thus $\boxed{4.5e33}$.", "type": "Astronomy"}, "4.5e33"),
    "olympiadbench": ({"question": "Q", "final_answer": ["2", "3"], "subfield": "Algebra"}, ["2", "3"]),
    "aime2024": ({"problem": "Q", "answer": "204", "solution": "..."}, "204"),
    "aime2025": ({"problem": "Q", "answer": "70"}, "70"),
    "math_train": ({"problem": "Q", "solution": r"So $\boxed{\frac{1}{2}}$.", "level": "Level 1"}, r"\frac{1}{2}"),
    "mmlu_pro": (
        {"question": "Q", "options": ["one", "two", "3"], "answer": "B", "answer_index": 1, "category": "law"},
        ["B", "two"],
    ),
    "bbeh": ({"task": "boolean", "input": "Q", "target": "(C)", "mini": 0}, "(C)"),
    "supergpqa": (
        {"question": "Q", "options": ["x", "two", "two"], "answer_letter": "C", "difficulty": "hard"},
        "C",
    ),
    "gpqa_diamond": (
        {"Question": "Q", "Correct Answer": "yes \n", **{f"Incorrect Answer {k}": f"no {k}" for k in (1, 2, 3)}},
        ["D", "yes"],
    ),
    "dapo_math": ({"prompt": "Q", "solution": "34", "data_source": "math_dapo"}, "34"),
}


def test_the_rows_above_cover_the_registry():
    assert set(HUB_ROWS) == set(SOURCES) and set(REPORTED) < set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_registered_sets_from_local_copies(tmp_path, name):
    row, gold = HUB_ROWS[name]
    write(tmp_path / SOURCES[name].file, [row])
    (found,) = load_rows(name, data_dir=str(tmp_path))
    assert found["prompt"].split("\n")[0] == "Q" and found["answer"] == gold
    if SOURCES[name].grader == "choice":
        options = dict(line.split(". ", 1) for line in found["prompt"].split("\n\n")[1].splitlines())
        assert list(options) == ["A", "B", "C", "D"][: len(options)]
        assert gold == "C" or options[gold[0]] == gold[1]
    with load_grader(SOURCES[name].grader) as grader:
        right = rf"\boxed{{{gold if isinstance(gold, str) else gold[0]}}}"
        assert grader.is_gradable(found["answer"]) and grader.grade([right], [found["answer"]]) == [True]


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_without_a_gold_is_left_out_by_name(tmp_path, name, caplog):
    row, _ = HUB_ROWS[name]
    empty = {
        **row,
        **{key: None for key in ("answer", "answer_letter", "solution", "final_answer", "target") if key in row},
    }
    empty |= {"Correct Answer": None} if "Correct Answer" in row else {}
    write(tmp_path / SOURCES[name].file, [row, empty])
    with load_grader(SOURCES[name].grader) as grader, caplog.at_level(logging.WARNING):
        assert len(drop_ungradable(load_rows(name, data_dir=str(tmp_path)), grader, name)) == 1
    assert "skipping 1 of 2 rows with an empty or unreadable answer: 1." in caplog.text


def test_a_local_copy_in_another_schema(tmp_path):
    write(tmp_path / "math500.jsonl", [{"problem": "Q", "gold": "1"}])
    with pytest.raises(ValueError, match=r"math500 has no column 'answer'; it has \['problem', 'gold'"):
        load_rows("math500", data_dir=str(tmp_path))


def test_a_set_of_its_own_kinds(tmp_path):
    write(tmp_path / "math500.jsonl", [{"problem": "Q", "answer": "1", "level": 4}])
    assert load_rows("math500", data_dir=str(tmp_path))[0]["kind"] == "level 4"


def test_a_missing_local_copy_says_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="put a copy of openai/gsm8k there"):
        load_rows("gsm8k_train", data_dir=str(tmp_path))


def test_rows_without_a_gradable_answer_are_named_and_counted(caplog):
    golds = ["1", "", "x^2", None, "  ", r"\frac{", "2"]
    rows = [{"prompt": str(i), "answer": gold} for i, gold in enumerate(golds)]
    with Grader() as grader, caplog.at_level(logging.WARNING):
        kept = drop_ungradable(rows, grader, "mine")
    assert [row["answer"] for row in kept] == ["1", "x^2", "2"]
    assert "mine: skipping 4 of 7 rows with an empty or unreadable answer: 1, 3, 4, 5." in caplog.text


def test_rows_are_named_by_their_place_in_the_file(tmp_path, caplog):
    path = write(tmp_path / "sums.jsonl", [*ROWS[:13], {**ROWS[13], "answer": ""}, *ROWS[14:]])
    parts = DataConfig(path, validation_size=5).load_with_validation()
    with Grader() as grader:
        for part in parts:
            drop_ungradable(part, grader, "sums")
            with pytest.raises(ValueError, match="sums: 1 of") as caught:
                drop_overlong(part, [0] * (len(part) - 1) + [9], 4, "sums")
            assert f"rows {part[-1]['source_row']} (9 tokens)" in str(caught.value)
    assert "with an empty or unreadable answer: 13." in caplog.text


def test_only_ten_rows_are_named(caplog):
    rows = [{"answer": ""}] * 12 + [{"answer": "1"}]
    with Grader() as grader:
        drop_ungradable(rows, grader, "mine")
    assert "skipping 12 of 13" in caplog.text and "8, 9, ...." in caplog.text and "10" not in caplog.text.split(":")[-1]


def test_no_row_with_a_gradable_answer():
    with Grader() as grader, pytest.raises(ValueError, match="mine: none of its 1 rows"):
        drop_ungradable([{"answer": ""}], grader, "mine")


def test_prompts_over_the_budget(caplog):
    rows = [{"prompt": i} for i in range(4)]
    lengths = [3, 5, 4, 9]
    assert drop_overlong(rows, lengths, 9, "mine") == rows
    with pytest.raises(
        ValueError, match=r"2 of 4 prompts are longer than max_prompt_length=4: rows 1 \(5 tokens\), 3 \(9"
    ):
        drop_overlong(rows, lengths, 4, "mine")
    assert drop_overlong(rows, lengths, 4, "mine", skip_long_prompts=True) == [rows[0], rows[2]]
    assert "skipping 2 of 4" in caplog.text
    with pytest.raises(ValueError, match="4 of 4 prompts"):
        drop_overlong(rows, lengths, 2, "mine", skip_long_prompts=True)


def test_the_validation_split_has_no_row_of_the_training_set(tmp_path):
    path = write(tmp_path / "sums.jsonl", ROWS)
    training, validation = DataConfig(path, validation_size=5).load_with_validation()
    prompts = [{row["prompt"] for row in part} for part in (training, validation)]
    assert len(validation) == 5 and prompts[0] | prompts[1] == {row["problem"] for row in ROWS}
    assert not prompts[0] & prompts[1]


def test_a_prompt_that_occurs_twice_lies_on_one_side(tmp_path):
    path = write(tmp_path / "twice.jsonl", ROWS * 3)
    training, validation = DataConfig(path, validation_size=5).load_with_validation()
    assert len(validation) == 5 and training
    assert not {row["prompt"] for row in training} & {row["prompt"] for row in validation}


def test_the_validation_set_of_its_own_is_kept_out_of_training(tmp_path):
    path, other = write(tmp_path / "sums.jsonl", ROWS), write(tmp_path / "other.jsonl", ROWS[:4])
    training, validation = DataConfig(path, validation=other).load_with_validation()
    assert [row["prompt"] for row in validation] == [row["problem"] for row in ROWS[:4]]
    assert [row["prompt"] for row in training] == [row["problem"] for row in ROWS[4:]]


def test_nothing_left_to_train_on(tmp_path):
    path = write(tmp_path / "sums.jsonl", ROWS)
    with pytest.raises(ValueError, match="has no row left to train on beside its 20 validation rows"):
        DataConfig(path, validation_size=20).load_with_validation()
    with pytest.raises(ValueError, match="no row left to train on"):
        DataConfig(path, validation=path).load_with_validation()


@pytest.mark.parametrize("name", REPORTED)
def test_benchmarks_are_refused_for_training_and_for_validation(name):
    for fields in (
        {"dataset": name},
        {"dataset": name, "validation": "arithmetic"},
        {"dataset": "arithmetic", "validation": name},
    ):
        with pytest.raises(ValueError, match=f"'{name}' is a benchmark that results are reported on"):
            DataConfig(**fields)


def test_sizes_below_one_are_refused():
    for name in ("dataset_size", "validation_size"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            DataConfig("arithmetic", **{name: 0})
