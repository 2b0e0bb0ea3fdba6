"""What needs no model is said without waiting for the libraries that models need."""

import json
import subprocess
import sys

import pytest
from helpers.made_up_run import write_run

HEAVY = ("torch", "transformers", "trl", "peft", "vllm", "datasets", "accelerate")

_RUN = """
import json, runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_module("relay_trl", run_name="__main__")
except SystemExit as end:
    status = end.code or 0
else:
    status = 0
print(json.dumps([status, sorted(set({heavy!r}) & set(sys.modules))]))
"""


def opened(*argv):
    """The exit status of `relay-trl`, and which heavy modules it has imported."""
    program = _RUN.format(argv=["relay-trl", *argv], heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    return json.loads(ended.stdout.splitlines()[-1]), ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--help"], 0, "watch      show the rollouts"),
        (["watch", "--help"], 0, "--export FILE"),
        (["watch", "nowhere"], 1, "error: nowhere has no _rollouts/run.json"),
        (["train", "--help"], 0, "usage: relay-trl train"),
        (["train", "nothing.yaml"], 1, "nothing.yaml does not exist"),
        (["tain"], 1, "error: Unknown command 'tain'"),
    ],
    ids=["help", "watch --help", "watch nowhere", "train --help", "train nothing", "unknown"],
)
def test_help_and_refusals_import_nothing_heavy(argv, status, said):
    found, stdout, stderr = opened(*argv)
    assert found == [status, []] and said in stdout + stderr


def test_the_export_of_a_run_imports_nothing_heavy(tmp_path):
    write_run(tmp_path / "run")
    found, *_ = opened("watch", str(tmp_path / "run"), "--export", str(tmp_path / "page.html"))
    assert found == [0, []] and "<html" in (tmp_path / "page.html").read_text()
