"""The recipe that trains CITER's router, from its command line on the shipped arithmetic pair, and evaluation with it."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes/configs/arithmetic"
PAIR = ("--student", "data/arithmetic/student", "--teacher", "data/arithmetic/teacher")


@pytest.fixture
def launch(recipe):
    return lambda name, *args: recipe(name, "--config", CONFIGS / f"{name}.yaml", *args)


@pytest.mark.slow
def test_a_short_training_and_a_sweep(launch, tmp_path):
    router = tmp_path / "router"
    status, said, error = launch("train_citer", "--dataset_size", 192, "--output_dir", router)
    assert status == 0, error
    record = json.loads((router / "citer_router.json").read_text())
    assert [figures["round"] for figures in record["rounds"]] == [1, 2]
    last = record["rounds"][-1]
    assert last["teacher"] > 50 and last["student"] > 10 * last["teacher"] and last["ranking"] > 0.9
    assert f"citer_{record['thresholds']['0.05']}" in said

    options = (*PAIR, "--limit", 60, "--output_dir", tmp_path / "out", "--citer_router", router)
    methods = ("student", "citer_0", "citer_0.5", "citer", "teacher")
    status, said, error = launch("evaluate", *options, "--methods", *methods)
    assert status == 0, error
    results = {row["method"]: row for row in json.loads((tmp_path / "out/results.json").read_text())["results"]}
    assert results["citer_0"]["accuracy"] == results["student"]["accuracy"] < results["citer"]["accuracy"]
    shares = [results[name]["token_share"] for name in ("citer_0", "citer_0.5", "citer", "teacher")]
    assert shares == sorted(shares) and shares[0] == 0 and shares[2] < 0.3
    status, _, error = launch("evaluate", *options, "--methods", "citer", "--student_backend", "vllm")
    assert status == 1 and "student_backend was" in error


@pytest.mark.slow
def test_the_teachers_own_answers_may_be_the_solutions(launch, tmp_path):
    options = ("--solution_column", "", "--dataset_size", 96, "--rounds", 1, "--output_dir", tmp_path)
    status, said, error = launch("train_citer", *options)
    assert status == 0, error
    assert "problems have a right solution" in said and (tmp_path / "citer_router.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--student", "runs/no/model"), "student: 'runs/no/model' is neither"),
        (("--student", "http://127.0.0.1:9/v1"), "student is a URL, but the router reads hidden states"),
        (("--teacher", "runs/no/model"), "teacher: 'runs/no/model' is neither"),
        (("--threshold", 1.5), "threshold is 1.5; it must lie between 0 and 1"),
        (("--rounds", 0), "rounds is 0; it must be at least 1"),
        (("--batch_size", 1), "batch normalisation needs at least 2"),
        (("--solution_column", "worked", "--dataset_size", 4), "4 of 4 rows have no text in the column 'worked'"),
        (("--answer_marker", "@", "--dataset_size", 4), "None of the 4 problems has a right solution"),
        (("--dataset", "math500"), "'math500' is a benchmark"),
        (("--treshold", 0.9), "did you mean 'threshold'"),
    ],
)
def test_bad_input_ends_in_one_sentence(launch, tmp_path, args, said):
    status, _, error = launch("train_citer", "--output_dir", tmp_path, *args)
    assert status == 1 and said in error
    assert [line for line in error.splitlines() if "error:" in line][-1].startswith("error: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--methods", "citer"), "The methods citer need CITER's router; train one with recipes/train_citer.py"),
        (
            ("--methods", "citer_0.5", "--citer_router", "docs"),
            "docs has no citer_router.json with citer_router.safetensors",
        ),
        (("--methods", "citer_1.5"), "Unknown method 'citer_1.5'"),
    ],
)
def test_evaluation_without_a_router_ends_in_one_sentence(launch, tmp_path, args, said):
    status, _, error = launch("evaluate", *PAIR, "--limit", 2, "--output_dir", tmp_path, *args)
    assert status == 1 and said in error
