"""What all tests share: a recipe in the test's own process, a free port, and Hypothesis' profiles. The variable HYPOTHESIS_PROFILE
selects one; `thorough` draws many more cases.
"""

import os
import runpy
import sys
from pathlib import Path

import helpers.served
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# No deadline: on a busy machine it fails tests for reasons that are not in the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def recipe(monkeypatch, request):
    """Starts a recipe in this process as a user would: `recipe("evaluate", "--limit", 4)`. Gives its exit status, and what it
    printed on standard output and standard error.
    """
    captured = request.getfixturevalue("capfd" if "capfd" in request.fixturenames else "capsys")

    def start(name, *args):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        captured.readouterr()
        status = 0
        try:
            runpy.run_path(f"recipes/{name}.py", run_name="__main__")
        except SystemExit as exit:
            status = exit.code or 0
        return status, *captured.readouterr()

    return start


@pytest.fixture
def free_port():
    """A port that nobody listens at."""
    return helpers.served.free_port()
