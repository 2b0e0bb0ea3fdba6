"""A trainer that is killed at random moments, in the middle of a step or of a checkpoint, loses nothing but time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from soak import in_session

HERE = Path(__file__).parent
KILLS = 20 if os.environ.get("RELAY_TRL_FUZZ") == "1" else 5

pytestmark = pytest.mark.slow


def run(folder, kills, seed=0):
    """The run in a session of its own; returns what it says, its weights and its log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    command = [sys.executable, str(HERE / "killed_run.py"), str(folder), str(kills), str(seed)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-3000:]
    limit = time.monotonic() + 20
    while in_session(process.pid) and time.monotonic() < limit:  # graders notice within a second or two
        time.sleep(0.1)
    assert in_session(process.pid) == []
    return (
        json.loads(out),
        torch.load(folder / "weights", weights_only=True),
        json.loads((folder / "log.json").read_text()),
    )


def test_killed_at_random_moments_it_ends_with_the_weights_and_the_log_of_a_quiet_run(tmp_path):
    quiet, expected, log = run(tmp_path / "quiet", 0)
    hit, found, other = run(tmp_path / "hit", KILLS)
    assert quiet["killed"] == 0 and 1 <= hit["killed"] <= KILLS  # the run may end before its last killer comes
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    names = (
        "relay/accuracy",
        "relay/calls",
        "relay/delivered",
        "relay/teacher_failures",
        "reward",
        "loss",
        "learning_rate",
    )
    steps = [
        [{name: entry[name] for name in ("step", *names)} for entry in part if "loss" in entry] for part in (log, other)
    ]
    assert steps[0] == steps[1] and [entry["step"] for entry in steps[0]] == list(range(1, 9))
