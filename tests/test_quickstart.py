"""The quickstart in short form: every stage through the real recipes and `accelerate launch`, and the report at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def quickstart(out: Path) -> subprocess.CompletedProcess:
    size = ["--max_steps", "3", "--rows", "256", "--size", "24"]
    return subprocess.run(
        [sys.executable, "recipes/quickstart.py", "--output_dir", str(out), *size],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_all_stages_run_and_are_kept(tmp_path):
    out = tmp_path / "a run"  # with a blank, as people's folders have
    done = quickstart(out)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((out / "report/results.json").read_text())["results"]
    labels = [row["label"] for row in results]
    assert labels == ["student", "GRPO without teacher", "relay", "relay_no_teacher", "fixed_4", "fixed_16", "teacher"]
    assert all(row["answers"] == 24 and row["failures"] == 0 for row in results)
    by_label = {row["label"]: row for row in results}
    assert by_label["teacher"]["accuracy"] > 0.9 > by_label["student"]["accuracy"]
    for name in ("results.md", "shares.png", "training.png", "rollouts.html"):
        assert (out / "report" / name).stat().st_size > 0
    history = json.loads((out / "grpo/trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if "relay/accuracy" in row] == [1, 2, 3]

    again = quickstart(out)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("kept") == 7 and "answers" not in again.stderr
