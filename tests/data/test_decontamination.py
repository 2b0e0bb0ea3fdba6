"""Benchmark problems in training sets: what counts as the same problem, and the counts."""

import json
import logging

import pytest

from relay_trl.data.config import DataConfig
from relay_trl.data.decontamination import Decontaminator
from relay_trl.data.registry import PAPER_SIX, SOURCES

LONG = "A train travels 270 miles in 3 hours. At the same rate, how many additional hours would it take?"
SHORT = r"Compute $3-2$."
KNOWN = Decontaminator({"math500": [LONG, SHORT], "gsm8k": [[{"role": "user", "content": LONG + " Say it."}]]})


@pytest.mark.parametrize(
    ("prompt", "exact", "near"),
    [
        (LONG, {"math500"}, {"gsm8k"}),
        (LONG.upper().replace(" ", "\n "), {"math500"}, {"gsm8k"}),
        ("Think. " + LONG + " Explain.", set(), {"math500", "gsm8k"}),
        (LONG.replace("270", "360"), set(), {"math500", "gsm8k"}),  # 13 words in a row are left behind the number
        (LONG.replace("rate", "speed"), set(), set()),
        ("compute 3 - 2 .", {"math500"}, set()),
        (r"Compute $3\,-\,2$.", {"math500"}, set()),
        ("Compute $3+2$.", set(), set()),  # of few words, so that only the very text counts
        ("", set(), set()),
        ([{"role": "system", "content": LONG}, {"role": "user", "content": "hello"}], set(), set()),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}], {"math500"}, {"gsm8k"}),
    ],
)
def test_what_counts_as_the_same_problem(prompt, exact, near):
    assert KNOWN.matches(prompt) == (exact, near)


def test_the_counts():
    rows = [{"prompt": p, "source_row": 10 + i} for i, p in enumerate([LONG, "new", "1 " + LONG, SHORT])]
    kept, report = KNOWN.clean(rows)
    assert [row["prompt"] for row in kept] == ["new"]
    assert (report.rows, report.removed, report.places) == (4, 3, [10, 12, 13])
    assert report.exact == {"math500": 2} and report.ngram == {"gsm8k": 2, "math500": 1}
    assert str(report).endswith("(same text + 13 words in a row: gsm8k 0 + 2, math500 2 + 1)")


def write(folder, name, problem):
    source = SOURCES[name]
    row = {source.problem: problem, "answer": "1", "solution": r"\boxed{1}", "final_answer": ["1"]}
    (folder / source.file).write_text(json.dumps(row) + "\n")


def test_a_training_set_loses_what_the_benchmarks_have(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in PAPER_SIX:
        write(tmp_path, name, f"Problem of {name}.")
    path = tmp_path / "mine.jsonl"
    problems = ["mine", "problem of AIME2024.", "Problem of minerva."]
    path.write_text("".join(json.dumps({"problem": p, "answer": "1"}) + "\n" for p in problems))
    options = {"data_dir": str(tmp_path), "decontaminate": True}
    with caplog.at_level(logging.WARNING):
        assert [row["prompt"] for row in DataConfig(str(path), **options).load()] == ["mine"]
    assert "2 of 3 rows share problems with the benchmarks" in caplog.text and "left out: 1, 2." in caplog.text
    path.write_text(json.dumps({"problem": "Problem of minerva.", "answer": "1"}) + "\n")
    with pytest.raises(ValueError, match="every row shares a problem with a benchmark"):
        DataConfig(str(path), **options).load()
    assert len(DataConfig(str(path)).load()) == 1
