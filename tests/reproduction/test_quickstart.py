"""The quickstart in short form: every stage through the real recipes and `accelerate launch`, and the report at the end."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def quickstart(out: Path, *more: str) -> subprocess.CompletedProcess:
    size = ["grpo.max_steps=3", "warmup.dataset_size=256", "evaluate.limit=24", "sft.max_steps=5"]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "relay_trl",
            "train",
            "recipes/pairs/arithmetic.yaml",
            f"output_dir={out}",
            *size,
            *more,
        ],
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
    assert labels[:2] == ["student", "GRPO without teacher"]
    # The methods of one evaluation stand in the order in which their first answers came
    assert sorted(labels[2:]) == ["fixed_16", "fixed_4", "relay", "relay_no_teacher", "teacher"]
    assert all(row["answers"] == 24 and row["failures"] == 0 for row in results)
    by_label = {row["label"]: row for row in results}
    assert by_label["teacher"]["accuracy"] > 0.9 > by_label["student"]["accuracy"]
    for name in ("results.md", "shares.png", "training.png", "rollouts.html"):
        assert (out / "report" / name).stat().st_size > 0
    history = json.loads((out / "grpo/trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if "relay/accuracy" in row] == [1, 2, 3]

    again = quickstart(out)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count(": kept ") == 7
    said = again.stdout
    assert said.startswith("recipes/pairs/arithmetic.yaml: ") and said.splitlines()[-1].startswith(
        "Next: relay-trl serve "
    )
    by_hand = (out / "configs/grpo.yaml").read_text().splitlines()[0]
    assert by_hand.startswith(
        "# Launch:  accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo_relay.py --config "
    )

    other = quickstart(out, "grpo.learning_rate=1")
    assert (
        other.returncode == 1
        and "holds a run of the stage grpo" in other.stderr
        and "learning_rate was" in other.stderr
    )
    (out / "warmup.jsonl").unlink()
    shutil.rmtree(out / "sft")
    lacking = quickstart(out, "--stages", "sft", "grpo")
    assert (
        lacking.returncode == 1
        and "The stage sft takes" in lacking.stderr
        and "add warmup to --stages" in lacking.stderr
    )


def reproduce(plan: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "recipes/reproduce.py", "--plan", str(plan), "--seeds", "1", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def small_plan(folder: Path) -> Path:
    """The shipped plan and configs with a candidate that stops beside the two, three runs and a handful of problems."""
    configs = folder / "configs"
    shutil.copytree(ROOT / "recipes/configs/arithmetic", configs)
    plan = yaml.safe_load((configs / "reproduce.yaml").read_text())
    assert {"relay", "grpo_alone", "simple_reward", "no_warmup", "fixed_4"} <= set(plan["runs"])
    plan |= {"output_dir": str(folder / "out"), "validation_size": 12, "test_size": 12}
    plan["warmups"] = {"random": {"build": {"dataset_size": 64}}}
    plan["runs"] = {name: plan["runs"][name] for name in ("relay", "grpo_alone", "citer")}
    citer = yaml.safe_load((configs / "train_citer.yaml").read_text())
    (configs / "train_citer.yaml").write_text(yaml.safe_dump({**citer, "dataset_size": 48, "max_epochs": 2}))
    plan["candidates"]["stops"] = {"warmup": "random", "grpo": {"max_zero_variance": 0.0, "guard_steps": 1}}
    (configs / "reproduce.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return configs / "reproduce.yaml"


@pytest.mark.slow
def test_a_reproduction_picks_on_validation_and_keeps_what_is_there(tmp_path):
    plan = small_plan(tmp_path)
    done = reproduce(plan, "--max_steps", "1", "--jobs", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    results = (tmp_path / "out/results.md").read_text()
    rows = [line.split("|")[1].strip() for line in results.splitlines() if line.startswith("| ")]
    ends = ["student", "teacher", "random_router_0.5", "random_tokens_0.3"]
    biased = [f"relay: call_bias_{bias}" for bias in (-4, -2, 2)]
    relay = ["relay", "relay_calls_off", "relay_no_teacher", *biased]
    citer = [f"citer_{t}" for t in ("0.2", "0.5", "0.8", "0.95", "0.99", "0.999")]
    assert rows == ["method", "---", *ends, *relay, "grpo_alone", *citer, "candidate", "paper", "constant", "stops"]
    assert "| stops | its training stopped | | |" in results
    assert "Picked on the validation split: " in results
    assert "The stage 'stops, seed 1' failed; its error is in" in done.stdout and "max_zero_variance" in done.stdout
    assert (tmp_path / "out/shares.svg").stat().st_size > 0 and "answers:" not in done.stderr
    assert done.stdout.count("== warm-up random, seed 1\n") == 1  # made once, though two stages waited for it
    lines = (tmp_path / "out/evaluation/paper_validation/answers.arithmetic.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["settings"]["split"] == "validation" and len(lines) == 13

    (tmp_path / "out/evaluation/grpo_alone_seed_1/results.json").unlink()
    again = reproduce(plan, "--max_steps", "1")
    assert again.returncode == 0 and again.stdout.count(": kept ") == again.stdout.count("== ") - 2
    assert (tmp_path / "out/results.md").read_text() == results


@pytest.fixture
def refused(monkeypatch, capsys):
    """Starts a reproduction in this process and returns what it says as it refuses."""

    def start(*options: str) -> str:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--plan", *options])
        with pytest.raises(SystemExit):
            runpy.run_path("recipes/reproduce.py", run_name="__main__")
        return capsys.readouterr().err

    return start


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["recipes/configs/arithmetic/reproduce.yaml", "--runs", "relay", "magic"],
            "no run magic; it has searched, searched_grpo, relay, ",
        ),
        (["none.yaml"], "the file none.yaml does not exist"),
        (["recipes/configs/arithmetic/reproduce.yaml", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
    ],
)
def test_a_reproduction_refuses_what_is_not_there(options, said, refused):
    assert said in refused(*options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": None, "ends": None}, "lacks ends, runs; see"),
        ({"run": {}}, "has an unknown run; see"),
        (
            {"runs": {"mine": {"recipe": "sft_warmup", "methods": ["relay"]}}},
            "mine names the recipe sft_warmup; beside",
        ),
        (
            {"candidates": {"mine": {"warmup": "none_such"}}},
            "mine names the warm-up none_such; the plan has searched, random, none",
        ),
        ({"runs": {"relay": {}}}, "run relay has no methods"),
        ({"runs": {"mine": {"grpo": None, "methods": ["relay"]}}}, "mine has neither GRPO nor a warm-up"),
        ({"warmups": {"random": {"data": "other"}}}, "random takes its data from other, which"),
    ],
)
def test_a_plan_with_a_hole_is_refused_at_once(change, said, tmp_path, refused):
    plan = yaml.safe_load((ROOT / "recipes/configs/arithmetic/reproduce.yaml").read_text()) | change
    plan["candidates"] = change.get("candidates", {"paper": {"warmup": "random"}})
    plan["runs"] = plan["runs"] and (plan["runs"] if "runs" in change else {"relay": {"methods": ["relay"]}})
    (tmp_path / "plan.yaml").write_text(
        yaml.safe_dump({key: value for key, value in plan.items() if value is not None}, sort_keys=False)
    )
    assert said in refused(str(tmp_path / "plan.yaml"))
