"""The short form of `make soak-server`: many streams while the teacher fails in every way."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_no_stream_is_lost_or_crossed_while_the_teacher_fails():
    command = [sys.executable, "benchmarks/soak_server.py", "--seconds", "20", "--streams", "256"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert "256 streams" in run.stdout
