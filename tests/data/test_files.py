"""Data as people have it: odd columns, large numbers, packed and saved files, several sets, raw GSM8K answers."""

import gzip
import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_ungradable, final_gold, load_rows
from relay_trl.grading.grader import Grader

LONG = "123456789012345678901234567890"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it has read: not in the user's own cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "written", ["9007199254740993", LONG, "-" + LONG, "0.12345678901234567890", "2.50", "1e30", "7"]
)
@pytest.mark.parametrize("other", ['"x^2"', "0.5", "3", "null", "[1, 2]"])
def test_numbers_keep_their_digits(tmp_path, written, other):
    text = [f'{{"problem": "a", "answer": {written}}}', f'{{"problem": "b", "answer": {other}}}']
    rows = load_rows(lines(tmp_path / "a.jsonl", *text))
    assert rows[0]["answer"] == written
    (tmp_path / "list.json").write_text(f"[{text[1]}, {text[0]}]")
    assert load_rows(str(tmp_path / "list.json"))[1]["answer"] == written
    if "[" not in other:
        cell = other.strip('"').replace("null", "")
        (tmp_path / "a.csv").write_text(f"problem,answer\na,{written}\nb,{cell}\n")
        assert [row["answer"] for row in load_rows(str(tmp_path / "a.csv"))] == [written, cell or None]


def test_a_float_that_has_lost_its_digits_is_refused_by_row(tmp_path, caplog):
    Dataset.from_dict({"problem": ["a", "b"], "answer": [9007199254740992.0, 0.5]}).to_parquet(tmp_path / "a.parquet")
    with Grader() as grader, caplog.at_level(logging.WARNING):
        kept = drop_ungradable(load_rows(str(tmp_path / "a.parquet")), grader, "mine")
    assert [row["answer"] for row in kept] == ["0.5"] and "unreadable answer: 0." in caplog.text
    Dataset.from_dict({"problem": ["a"], "answer": [9007199254740993]}).to_parquet(tmp_path / "b.parquet")
    assert load_rows(str(tmp_path / "b.parquet"))[0]["answer"] == "9007199254740993"


def test_a_misspelt_column_is_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "1+1=", "question": "2+2=", "answer": "2"})
    assert load_rows(path)[0]["prompt"] == "1+1="
    with pytest.raises(ValueError, match=r"no column 'qustion'; it has \['prompt', 'question', 'answer'\]"):
        load_rows(path, problem_column="qustion")
    with pytest.raises(ValueError, match="no column 'extra.gold'"):
        load_rows(path, answer_column="extra.gold")


def test_nested_columns(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "1+1="}],
        "reward_model": {"ground_truth": 2, "style": "rule"},
        "extra_info": {"answer": "#### 2", "golds": ["2", "two"]},
        "a.b": "3",
    }
    path = lines(tmp_path / "a.jsonl", row, {**row, "reward_model": {"style": "rule"}})
    rows = load_rows(path, answer_column="reward_model.ground_truth")
    assert [row["answer"] for row in rows] == ["2", None] and rows[0]["prompt"] == row["prompt"]
    assert load_rows(path, answer_column="extra_info.answer")[0]["answer"] == "2"
    assert load_rows(path, answer_column="extra_info.golds.1")[0]["answer"] == "two"
    assert load_rows(path, answer_column="a.b", problem_column="prompt.0.content")[0]["prompt"] == "1+1="


def test_a_row_without_a_problem_is_named(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"problem": "1+1=", "answer": "2"}, {"problem": None, "answer": "2"})
    with pytest.raises(ValueError, match="Row 1 has no problem"):
        load_rows(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", ".csv.gz", ".tsv", ".ndjson"])
def test_packed_and_other_files(tmp_path, suffix):
    table = "csv" in suffix or "tsv" in suffix
    mark = "\t" if "tsv" in suffix else ","
    text = f'problem{mark}answer\n"1+1="{mark}2\n' if table else '{"problem": "1+1=", "answer": 2}\n'
    data = text.encode("utf-8-sig")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    assert [(row["prompt"], row["answer"]) for row in load_rows(str(path))] == [("1+1=", "2")]
    path.write_bytes(b"no such file" if suffix.endswith(".gz") else b'{"problem"')
    with pytest.raises(ValueError, match="cannot be read|has no"):
        load_rows(str(path))


def test_saved_folders(tmp_path):
    train = Dataset.from_dict({"problem": ["a", "b"], "answer": ["1", "2"]})
    train.save_to_disk(tmp_path / "one")
    DatasetDict({"train": train, "hard": train.select([1])}).save_to_disk(tmp_path / "two")
    DatasetDict({"only": train}).save_to_disk(tmp_path / "three")
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    assert [len(load_rows(path)) for path in (one, two, three)] == [2, 2, 2]
    assert load_rows(two, split="hard")[0]["prompt"] == "b"
    with pytest.raises(ValueError, match="has no split 'test', but 'train', 'hard'"):
        load_rows(two, split="test")
    with pytest.raises(ValueError, match="without splits"):
        load_rows(one, split="test")


def test_options_that_a_set_has_no_use_for_are_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"problem": "a", "answer": "1"})
    lines(tmp_path / "gsm8k_train.jsonl", {"question": "a", "answer": "#### 1"})
    for name, options, words in (
        (path, {"split": "test"}, "split 'test' was asked for, but .* is a file"),
        (path, {"config": "main"}, "config is 'main'"),
        ("gsm8k_train", {"config": "main", "data_dir": str(tmp_path)}, "registered set"),
        ("gsm8k_train", {"split": "test", "data_dir": str(tmp_path)}, "registered set"),
        ("arithmetic", {"config": "main"}, "embedded task"),
        (path, {"is_streamed": True}, "dataset_size"),
    ):
        with pytest.raises(ValueError, match=words):
            load_rows(name, **options)


def test_a_hub_set_gets_its_config(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_dict({"problem": ["a", "b"], "answer": ["1", "2"]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = DataConfig("user/name", dataset_config="main", dataset_split="test", dataset_size=1, dataset_streaming=True)
    assert [row["prompt"] for row in data.load()] == ["a"]
    assert asked == [(("user/name", "main"), {"split": "test", "streaming": True})]


def test_streaming_reads_no_further_than_it_takes(tmp_path):
    good = {"problem": "a", "answer": "1"}
    path = lines(tmp_path / "a.jsonl", good, good, "this is no JSON")
    assert len(DataConfig(path, dataset_size=2, dataset_streaming=True).load()) == 2
    with pytest.raises(ValueError, match="line 3"):
        load_rows(path, size=2)


def test_several_sets(tmp_path):
    one = lines(tmp_path / "a.jsonl", *({"problem": f"a{k}", "answer": "1", "level": k} for k in range(60)))
    two = lines(tmp_path / "b.jsonl", *({"problem": f"b{k}", "answer": "2"} for k in range(30)))

    def counts(**options):
        rows = DataConfig([one, two], **options).load()
        assert len({row["prompt"] for row in rows}) == len(rows)
        assert all(set(row) == {"prompt", "answer", "level", "source", "source_row"} for row in rows)
        return [sum(row["source"] == path for row in rows) for path in (one, two)]

    assert counts() == [60, 30] and sum(counts(dataset_size=20)) == 20
    assert counts(dataset_weights=[1, 1]) == [30, 30]
    assert counts(dataset_weights=[3, 1]) == [60, 20]
    assert counts(dataset_weights=[1, 3], dataset_size=20) == [5, 15]
    first, again = (DataConfig([one, two], dataset_weights=[1, 1]).load() for _ in range(2))
    assert first == again
    with pytest.raises(ValueError, match=r"b\.jsonl has 30 rows, .* lower dataset_size to 60"):
        DataConfig([one, two], dataset_weights=[1, 1], dataset_size=80).load()
    for weights in ([1], [1, 0], [1, 1, 1]):
        with pytest.raises(ValueError, match="one number above 0 for each"):
            DataConfig([one, two], dataset_weights=weights)
    with pytest.raises(ValueError, match="benchmark that results are reported on"):
        DataConfig([one, "gsm8k"])


@pytest.mark.parametrize(
    ("gold", "read"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,002\n", "1,002"),
        ("so ####  -3 ", "-3"),
        (r"Thus $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("x^2", "x^2"),
        ("####", "####"),
    ],
)
def test_a_whole_solution_as_a_gold_is_read(tmp_path, gold, read):
    assert final_gold(gold) == read
    path = lines(tmp_path / "a.jsonl", {"problem": "a", "answer": [gold, "7"]}, {"problem": "b", "answer": gold})
    rows = load_rows(path)
    assert rows[1]["answer"] == read
    if read[0] != "#":
        with Grader() as grader:
            assert grader.grade([rf"\boxed{{{read}}}"], [rows[1]["answer"]]) == [True]
