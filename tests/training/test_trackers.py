"""What trackers get, from real ones without a network: figures, a table of rollouts with each author's words, the pair file."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_trackio_and_tensorboard_get_figures_rollouts_and_the_pair_file(tmp_path):
    pytest.importorskip("trackio")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    example = yaml.safe_load((ROOT / "recipes/configs/arithmetic/grpo_relay.yaml").read_text())
    small = {"max_steps": 1, "per_device_train_batch_size": 16, "dataset_size": 16, "eval_strategy": "no"}
    given = {"model_name_or_path": "data/arithmetic/warmed_up", "output_dir": str(tmp_path / "run"), "seed": 1}
    told = {"report_to": ["tensorboard", "trackio"], "project": "sums", "run_name": "first"}
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump({**example, **small, **given, **told}))
    pair = ROOT / "recipes/pairs/arithmetic.yaml"
    places = {"TRACKIO_DIR": str(tmp_path / "trackio"), "RELAY_TRL_PAIR_FILE": str(pair)}
    command = [sys.executable, "recipes/grpo_relay.py", "--config", str(tmp_path / "grpo.yaml")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    (folder,) = (tmp_path / "run/runs").iterdir()
    board = accumulator.EventAccumulator(str(folder)).Reload()
    assert {"train/relay/accuracy", "train/relay/teacher_share", "train/relay/call_rate"} <= set(
        board.Tags()["scalars"]
    )

    def text(tag):
        return board.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()

    lines = text("relay/rollouts").splitlines()
    assert lines[0].startswith("| step | problem | gold | rollout | correct | reward |") and len(lines) == 2 + 8
    assert pair.read_text() in text("pair_file")

    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as stored:
        logs = [json.loads(row) for (row,) in stored.execute("select metrics from metrics")]
        (config,) = [json.loads(row) for (row,) in stored.execute("select config from configs")]
    assert config["pair_file"] == pair.read_text() and config["reward"] == "difficulty_aware"
    assert any("train/relay/accuracy" in entry for entry in logs)
    (rows,) = [entry["relay/rollouts"]["_value"] for entry in logs if "relay/rollouts" in entry]
    assert len(rows) == 8 and len({row["problem"] for row in rows}) == 1
    asked = [row for row in rows if row["teacher_tokens"]]
    assert asked and all("</call>\u27e6" in row["rollout"] and row["rollout"].count("\u27e7") for row in asked)
