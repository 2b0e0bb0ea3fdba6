"""Two processes arrive at the rollouts, rewards, advantages, metrics and weights of one, wherever a group lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from group_rewards import GROUP, RUNS, run
from trainers_for_tests import student_folder

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes found, each, and what this one finds."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2.yaml"]
    command += ["--main_process_port", "0", "tests/distributed/group_rewards.py", str(folder), student_folder()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = [json.loads((folder / f"rank_{rank}_of_2.json").read_text()) for rank in (0, 1)]
    one = {name: run(tmp_path_factory.mktemp("one"), name, 1) for name in RUNS}
    return two, json.loads(json.dumps(one))


@pytest.fixture(params=RUNS)
def ranks_and_one(request, both):
    two, one = both
    return [rank[request.param] for rank in two], one[request.param]


def test_the_same_rollouts_whatever_process_runs_them(ranks_and_one):
    ranks, one = ranks_and_one
    assert len(one["rollouts"]) >= 3
    for first, second, whole in zip(*(rank["rollouts"] for rank in ranks), one["rollouts"], strict=True):
        assert first + second == whole
        assert len({tuple(ids) for _, ids in whole}) > 1


def test_a_group_lies_across_the_processes(both):
    two, _ = both
    prompts = [{prompt for prompt, _ in rank["a group across the processes"]["rollouts"][0]} for rank in two]
    assert prompts[0] == prompts[1] and len(prompts[0]) == 1
    prompts = [{prompt for prompt, _ in rank["two groups"]["rollouts"][0]} for rank in two]
    assert not prompts[0] & prompts[1]


def test_every_process_has_the_rewards_and_advantages_of_one(ranks_and_one):
    ranks, one = ranks_and_one
    for rank in ranks:
        assert rank["rewards"] == [[None if r is None else pytest.approx(r) for r in step] for step in one["rewards"]]
        assert rank["advantages"] == [pytest.approx(step, abs=1e-5) for step in one["advantages"]]


def test_the_planned_groups_have_every_kind_of_reward(both):
    _, one = both
    rewards = one["two groups"]["rewards"][-1]
    assert len(rewards) >= GROUP and None in rewards and 1.5 in rewards and 0.0 in rewards
    assert any(advantage for advantage in one["two groups"]["advantages"][0])


def test_every_process_logs_the_metrics_of_one(ranks_and_one):
    ranks, one = ranks_and_one
    assert sum(bool(entry) for entry in one["metrics"]) == 3  # two steps and an evaluation
    for rank in ranks:
        for found, expected in zip(rank["metrics"], one["metrics"], strict=True):
            assert found == {key: pytest.approx(value) for key, value in expected.items()}


def test_the_files_of_all_processes_hold_the_rollouts_of_one(ranks_and_one):
    ranks, one = ranks_and_one

    def comparable(groups):
        return [
            [
                rollout | {name: pytest.approx(rollout[name], abs=1e-5) for name in ("reward", "advantage")}
                for rollout in group["rollouts"]
            ]
            for group in groups
        ]

    assert {group["step"] for group in one["files"]} == {1, 2}
    for rank in ranks:
        assert [group["rollouts"] for group in rank["files"]] == comparable(one["files"])


def test_the_weights_are_those_of_one(ranks_and_one):
    ranks, one = ranks_and_one
    for rank in ranks:
        assert rank["weights"] == {key: pytest.approx(value, rel=1e-5) for key, value in one["weights"].items()}
