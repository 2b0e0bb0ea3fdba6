"""`relay-trl train` in short form: candidates and seeds through the real recipes and `accelerate launch`, and the table at the end.

The other stages, without seeds, run in test_init.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from relay_trl.reproduction.command import train

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_candidates_and_seeds_run_and_are_kept(tmp_path, capsys, monkeypatch):
    out, path = tmp_path / "a run", tmp_path / "short.yaml"  # with a blank, as people's folders have
    stops = {"over": "kept", "grpo": {"temperature": 0.01, "max_zero_variance": 0.0, "guard_steps": 1}}
    given = {
        "base": str(ROOT / "recipes/pairs/arithmetic.yaml"),
        "student": "data/arithmetic/warmed_up",
        "output_dir": str(out),
        "seeds": [1, 2],
        "compare": [],
        **{"warmup": None, "sft": None},
        "grpo": {"max_steps": 1},
        "evaluate": {"methods": ["student", "relay"], "limit": 12},
        "choose_on": {"split": "validation"},
    }
    path.write_text(yaml.safe_dump({**given, "candidates": {"kept": {}, "stops": stops}}))
    command = [sys.executable, "-m", "relay_trl", "train", str(path), "--jobs", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    results = (out / "results.md").read_text()
    rows = [line.split("|")[1].strip() for line in results.splitlines() if line.startswith("| ")]
    assert rows == ["method", "---", "relay", "relay: student", "candidate", "kept", "stops"]
    assert "| relay | 2 | " in results and "| stops | its training stopped | | |" in results
    assert "Picked on the validation split: kept." in results and results in done.stdout
    assert "The stage grpo_stops_seed_1 failed; its error is in" in done.stdout
    assert "max_zero_variance" in done.stdout and "answers:" not in done.stderr
    assert (out / "shares.svg").stat().st_size > 0
    assert done.stdout.count("== grpo_seed_1: ") == 1  # made once, though the choice takes it too
    asked = (out / "evaluation/kept_validation_seed_1/answers.arithmetic.jsonl").read_text().splitlines()
    assert json.loads(asked[0])["settings"]["split"] == "validation" and len(asked) == 13
    history = json.loads((out / "seed_2/grpo/trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if "relay/accuracy" in row] == [1]
    assert done.stdout.startswith(f"{path}: ") and done.stdout.splitlines()[-1].startswith("Next: relay-trl serve ")
    assert (
        (out / "configs/grpo_seed_1.yaml")
        .read_text()
        .startswith(
            "# Launch:  accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo_relay.py --config "
        )
    )

    def again(*more):
        train([str(path), *more])
        return capsys.readouterr().out

    monkeypatch.chdir(ROOT)
    path.write_text(yaml.safe_dump(given))  # without the candidate that stops, which would be tried again
    said = again()
    assert said.count(": kept ") == said.count("== ") == 4
    with pytest.raises(ValueError, match=r"holds a run of the stage grpo_seed_1 .* learning_rate was .* and is now 1"):
        again("grpo.learning_rate=1")
    shutil.rmtree(out / "seed_1/grpo")
    shutil.rmtree(out / "evaluation/relay_seed_1")
    with pytest.raises(ValueError, match="The stage evaluate_relay_seed_1 takes .* add grpo to --stages"):
        again("--stages", "evaluate")
