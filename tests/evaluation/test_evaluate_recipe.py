"""The evaluation recipe from its command line, on the shipped arithmetic pair."""

import logging
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
YAML = ROOT / "recipes/configs/arithmetic/evaluate.yaml"
PAIR = ("--student", "data/arithmetic/student", "--teacher", "data/arithmetic/teacher")


@pytest.fixture
def evaluate(recipe):
    return lambda *args, config=YAML: recipe("evaluate", "--config", config, *args)


def test_the_recipe_evaluates_and_resumes(evaluate, tmp_path, caplog):
    args = (*PAIR, "--limit", 12, "--output_dir", tmp_path, "--methods", "student", "teacher")
    status, first, _ = evaluate(*args)
    assert status == 0
    assert "arithmetic, 12 problems" in first and "hard_product" in first
    answers = (tmp_path / "answers.arithmetic.jsonl").read_text()
    assert len(answers.splitlines()) == 25
    assert (tmp_path / "rollouts.html").exists() and (tmp_path / "shares.png").exists()
    with caplog.at_level(logging.WARNING):
        assert evaluate(*args)[:2] == (0, first)
    assert "24 of 24 answers are there already" in caplog.text
    assert (tmp_path / "answers.arithmetic.jsonl").read_text() == answers
    status, _, error = evaluate(*args, "--temperature", "0.5")
    assert status == 1 and "temperature was 1.0 and is now 0.5" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--student", "runs/no/model"), "student: 'runs/no/model'"),
        ((*PAIR, "--teacher", "runs/no/model"), "teacher: 'runs/no/model'"),
        (("--methods", "relai"), "Unknown method 'relai'; known are student, teacher"),
        (("--samples", "0"), "samples is 0; it must be a whole number of at least 1."),
        ((*PAIR, "--benchmarks", "nothing.jsonl"), "nothing.jsonl does not exist"),
        (("--config", "nothing.yaml"), "nothing.yaml does not exist"),
    ],
)
def test_bad_input_ends_in_one_sentence(evaluate, args, message, tmp_path):
    status, _, error = evaluate(*args, "--output_dir", tmp_path)
    assert status == 1 and message in error
    assert error.splitlines()[-1].startswith("error: ")


def test_a_typo_in_the_yaml_ends_in_one_sentence(evaluate, tmp_path):
    typo = tmp_path / "typo.yaml"
    typo.write_text(YAML.read_text().replace("samples:", "sampels:"))
    status, _, error = evaluate(config=typo)
    assert (status, error.strip().count("\n")) == (1, 0)
    assert "'sampels' (did you mean 'samples'?)" in error
