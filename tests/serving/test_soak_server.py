"""A short run of `benchmarks/soak_server.py`: the teacher fails in every way, and no stream is lost or mixed up."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_no_stream_is_lost_or_crossed_while_the_teacher_fails():
    # A period of each of the eight ways, and the process ends by itself
    command = [sys.executable, "benchmarks/soak_server.py", "--seconds", "8", "--streams", "16"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    report = done.stdout.splitlines()[0]
    assert report.startswith("16 streams, 8 s, ")
    seen = ast.literal_eval(report.partition("answers: ")[2])
    assert set(seen) <= {"helped", "partly helped", "alone"} and seen["helped"] >= 16 and seen["alone"] >= 16
