"""What needs no model is said without waiting for the libraries that models need."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.made_up_run import write_run

from relay_trl.citer.config import CiterConfig
from relay_trl.cli.help_text import owner_of, texts_of
from relay_trl.data.config import DataConfig
from relay_trl.data.teacher_filter import FilterConfig
from relay_trl.data.warmup import WarmupConfig
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.hub.upload import PushConfig
from relay_trl.serving.config import ServingConfig
from relay_trl.training.config import RelayGRPOConfig, RelaySFTConfig

CONFIGS = (CiterConfig, DataConfig, FilterConfig, WarmupConfig, EvaluationConfig, PushConfig, ServingConfig)
CONFIGS += (RelayGRPOConfig, RelaySFTConfig)

ROOT = Path(__file__).parents[2]
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
        (["init", "--help"], 0, "usage: relay-trl init"),
        (["check", "nothing.yaml"], 1, "nothing.yaml does not exist"),
        (["tain"], 1, "error: Unknown command 'tain'"),
    ],
    ids=[
        "help",
        "watch --help",
        "watch nowhere",
        "train --help",
        "train nothing",
        "init --help",
        "check nothing",
        "unknown",
    ],
)
def test_help_and_refusals_import_nothing_heavy(argv, status, said):
    found, stdout, stderr = opened(*argv)
    assert found == [status, []] and said in stdout + stderr


def test_the_export_of_a_run_imports_nothing_heavy(tmp_path):
    write_run(tmp_path / "run")
    found, *_ = opened("watch", str(tmp_path / "run"), "--export", str(tmp_path / "page.html"))
    assert found == [0, []] and "<html" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_the_help_of_recipes_imports_nothing_heavy():
    """All in one process: each but those whose options are in part transformers' or TRL's, and the serving command."""
    recipes = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    light = [
        name
        for name in recipes
        if name not in ("grpo_relay", "grpo_relay_async", "sft_warmup", "pretrain_pair", "plan")
    ]
    program = _HELP.format(recipes=str(ROOT / "recipes"), light=light, heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert set(found) == {*light, "serve"} and not any(heavy for heavy, _ in found.values()), found
    assert all("--" in told for _, told in found.values())
    assert "  --max_in_flight" in found["serve"][1] and "Answers under way at once" in found["serve"][1]


_HELP = """
import contextlib, io, json, runpy, sys
found = {{}}
for name in [*{light!r}, "serve"]:
    sys.argv = [name, "--help"] if name != "serve" else ["relay-trl", "serve", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
        if name == "serve":
            runpy.run_module("relay_trl", run_name="__main__")
        else:
            runpy.run_path({recipes!r} + "/" + name + ".py", run_name="__main__")
    # The parser is TRL's, whose package imports its modules when they are used
    found[name] = [sorted(set({heavy!r}) & set(sys.modules) - {{"trl"}}), told.getvalue()]
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_option_has_a_text_in_its_docstring(kind):
    own = {
        item.name for item in fields(kind) if owner_of(kind, item.name) == "relay_trl" and not item.metadata.get("help")
    }
    assert own and not own - set(texts_of(kind))
