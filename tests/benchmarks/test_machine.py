"""benchmarks/machine.py: every model is measured, the hours follow from what was measured, and too slow a machine is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
MODELS = ["data/arithmetic/student", "data/arithmetic/teacher"]


def measure(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/machine.py", "--models", *MODELS, "--backend", "transformers"]
    command += ["--dtype", "float32", "--requests", "4", "--tokens", "8", "--prompt_tokens", "4", "--rows", "2"]
    command += ["--output_dir", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_measures_both_models_and_refuses_hours_that_are_too_few(tmp_path):
    said = measure(tmp_path, "--hours", "1e-9")
    assert said.returncode == 1
    assert "error: No pair fits in 1e-09 hours on this machine: data/arithmetic/student with" in said.stderr
    assert "Traceback" not in said.stderr
    found = json.loads((tmp_path / "machine.json").read_text(encoding="utf-8"))
    assert [speed["model"] for speed in found["speeds"]] == MODELS  # the smaller one first
    assert all(speed[name] > 0 for speed in found["speeds"] for name in ("reads", "writes", "step_s", "memory"))
    (pair,) = found["pairs"]
    assert pair["total"] == pytest.approx(sum(pair["hours"].values()))
    student, arguments = found["speeds"][0], found["arguments"]
    learning_h = 2 * arguments["warmup_problems"] * student["step_s"] / student["step_rows"] / 3600
    assert pair["hours"]["warm-up"] == pytest.approx(learning_h)


def test_one_model_is_no_pair(tmp_path):
    command = [sys.executable, "benchmarks/machine.py", "--models", MODELS[0], "--output_dir", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert said.returncode == 1
    assert "name at least two different models" in said.stderr
