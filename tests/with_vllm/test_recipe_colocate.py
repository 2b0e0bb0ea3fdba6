"""The GRPO recipe on the arithmetic pair with the student in a colocated vLLM engine, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.trainers import PAIR, student_folder

from relay_trl.training.metrics import METRICS

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """The log of three steps."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
    command += ["--config_file", "accelerate_configs/cpu.yaml", "recipes/grpo_relay.py"]
    command += ["--config", "recipes/configs/arithmetic/grpo_relay.yaml"]
    options = {
        "model_name_or_path": student_folder(),
        "teacher": PAIR / "teacher",
        "output_dir": folder,
        "use_vllm": "true",
        "vllm_mode": "colocate",
        "vllm_max_model_length": 64,
        "max_steps": 3,
        "per_device_train_batch_size": 128,
        "dataset_size": 128,
        "validation_size": 16,
        "learning_rate": 0.003,
        "lr_scheduler_type": "constant",
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "model.safetensors").is_file()
    return [row for row in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in row]


def test_every_metric_is_logged_at_every_step(history):
    assert len(history) == 3
    for row in history:
        assert {f"relay/{name}" for name in METRICS} <= set(row)
        assert row["relay/teacher_failures"] == 0


def test_the_engine_keeps_up_with_the_training(history):
    assert all(row["grad_norm"] > 0 for row in history)  # so every step but the first follows an update
    assert max(row["sampling/sampling_logp_difference/max"] for row in history) < 1e-3
