"""A run that is killed with SIGKILL at any point and resumed ends with the weights and the history of an uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killed_runs import PLACES, STEPS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, "tests/faults/killed_runs.py", str(tmp_path_factory.mktemp("killed"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


@pytest.mark.parametrize("place", PLACES)
def test_it_ends_where_the_whole_run_ends(found, place):
    run = found[place]
    assert found["whole"] == 0 and found["steps"] == list(range(1, STEPS + 1))
    assert run["died"] == -9 and run["went on"] == 0
    assert run["differs"] < 1e-6 and run["history"]


def test_at_any_moment_too(found):
    assert len(found["moments"]) == 2 and min(found["gradients"]) > 0
    for run in found["moments"]:
        assert run["died"] == -9 and run["went on"] == 0
        assert run["differs"] < 1e-6 and run["history"], run


def test_they_were_killed_where_it_was_meant(found):
    assert found["before anything was saved"]["left"] == []
    assert found["in the middle of a step"]["left"] == ["checkpoint-2"]
    assert found["when a checkpoint was whole"]["left"][-1] == "checkpoint-4"
    # The half-written one is passed over, and the one before it is still there, though one is to be kept
    assert found["while a checkpoint was written"]["left"] == ["checkpoint-2", "checkpoint-4"]
    assert "checkpoint-4 is passed over, as it is not a whole checkpoint" in found["stderr"]
