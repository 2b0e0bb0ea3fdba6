"""Rollouts, rewards, advantages, metrics and weights do not depend on how a run is split over processes. Every launch file that
works without a GPU is started here with two processes, as a user starts it.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.served import free_port
from helpers.trainers import student_folder
from safetensors.torch import load_file
from trainings import GROUP, KILLED, RESUMED, RUNS, STEPS, WARMUPS, train

from relay_trl.training.checkpoints import MARK

ROOT = Path(__file__).parents[2]
REFERENCE = "a group across the processes"

# What is run under each launch file; all of it in one launch, as most of the time goes into starting.
LAUNCHES = {
    "cpu_2": [*RUNS, *WARMUPS],
    "zero1": ["micro-batches", "warm-up"],
    "zero2": ["micro-batches", "the model's own words", *list(RUNS)[-2:], "warm-up", "warm-up of an adapter", KILLED],
    "zero3": ["micro-batches", "the model's own words", "an adapter", "warm-up", "warm-up of an adapter"],
    "zero3_offload": ["micro-batches", "warm-up"],
    "fsdp2": ["micro-batches", "the model's own words", "an adapter", "warm-up", "warm-up of an adapter"],
    "multi_node": ["micro-batches", "warm-up"],
}
TIME_LIMIT_S = 400

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def marks(name):
    is_deepspeed = name.startswith("zero") or name == "multi_node"
    return [pytest.mark.distributed, *([pytest.mark.deepspeed, needs_deepspeed] if is_deepspeed else [])]


def command(config, folder, names, *options):
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    launch += ["--num_processes", "2", "--mixed_precision", "no", *options]
    return [sys.executable, *launch, "tests/distributed/trainings.py", str(folder), student_folder(), *names]


def environment(config):
    # DeepSpeed compiles with ninja, which lies beside python; use_cpu would keep it out
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    is_deepspeed = config.startswith("zero") or config == "multi_node"
    where = {"DS_ACCELERATOR": "cpu"} if is_deepspeed else {"ACCELERATE_USE_CPU": "true"}
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | where


def launch(config, folder, names):
    """Runs two processes to their end; returns its exit status and what it wrote."""
    options = {
        "cwd": ROOT,
        "env": environment(config),
        "stderr": subprocess.STDOUT,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    if config != "multi_node":
        line = command(config, folder, names, "--main_process_port", "0")
        done = subprocess.run(line, **options, timeout=TIME_LIMIT_S)
        return done.returncode, done.stdout
    place = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    place.append("--machine_rank")
    machines = [subprocess.Popen(command(config, folder, names, *place, rank), **options) for rank in ("0", "1")]
    try:
        written = [machine.communicate(timeout=TIME_LIMIT_S)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return max(machine.returncode for machine in machines), "\n".join(written)


def ranks(folder, name):
    return [json.loads((folder / f"rank_{rank}.json").read_text())[name] for rank in (0, 1)]


def weights(folder):
    (path,) = [p for p in (folder / "model.safetensors", folder / "adapter_model.safetensors") if p.is_file()]
    return load_file(path)


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """What this process arrives at alone, by name, each run once."""
    folder, found = tmp_path_factory.mktemp("one"), {}

    def get(name):
        if name not in found:
            found[name] = json.loads(json.dumps(train(folder / name, name, 1)))
        return folder / name, found[name]

    return get


@pytest.fixture(scope="module", params=[pytest.param(name, marks=marks(name)) for name in LAUNCHES])
def split(request, tmp_path_factory):
    """The launch file's name and the folder of a finished launch."""
    folder = tmp_path_factory.mktemp(request.param)
    status, written = launch(request.param, folder, [name for name in LAUNCHES[request.param] if name != KILLED])
    assert status == 0, written[-4000:]
    return request.param, folder


def assert_same(theirs, ours, tolerance=5e-5):
    # DeepSpeed writes a head that is tied to the embedding down beside it
    extra = theirs.keys() ^ ours.keys()
    assert extra <= {"lm_head.weight"}
    apart = torch.cat([(theirs[n].double() - ours[n].double()).abs().flatten() for n in theirs.keys() & ours.keys()])
    # Adam makes a whole step of a gradient that is nothing but rounding: one weight in 10,000 may be such a one
    assert (apart > tolerance).double().mean() < 1e-4 and apart.mean() < tolerance / 100


def comparable(groups):
    """The rollouts of the files that a training writes, with room for rounding."""
    return [
        [r | {key: pytest.approx(r[key], abs=1e-4) for key in ("reward", "advantage")} for r in group["rollouts"]]
        for group in groups
    ]


def test_it_arrives_at_what_one_process_arrives_at(split, one):
    config, folder = split
    for name in LAUNCHES[config]:
        if name == KILLED:
            continue
        alone, expected = one(name)
        assert_same(weights(folder / name), weights(alone))
        for found in ranks(folder, name):
            if name in WARMUPS:
                assert found["losses"] == pytest.approx(expected["losses"], abs=2e-4)
                continue
            assert found["steps"] == STEPS
            assert found["rewards"] == [
                [None if r is None else pytest.approx(r) for r in s] for s in expected["rewards"]
            ]
            assert found["advantages"] == [pytest.approx(step, abs=1e-4) for step in expected["advantages"]]
            assert len(found["metrics"]) == len(expected["metrics"])
            for entry, ours in zip(found["metrics"], expected["metrics"], strict=True):
                assert entry == {key: pytest.approx(value, abs=1e-4) for key, value in ours.items()}
            assert {group["step"] for group in expected["files"]} == {1, 2, 3}
            assert [group["rollouts"] for group in found["files"]] == comparable(expected["files"])
        if name in RUNS:
            batches = [found["rollouts"] for found in ranks(folder, name)]
            for first, second, whole in zip(*batches, expected["rollouts"], strict=True):
                assert first + second == whole  # tied to their place in the global batch, not to the process
                assert len({tuple(ids) for _, ids in whole}) > 1


@pytest.mark.distributed
def test_the_runs_move_the_weights(one):
    """Or equal weights would say nothing."""
    before = load_file(Path(student_folder()) / "model.safetensors")
    for name in ("two groups", "warm-up"):
        after = weights(one(name)[0])
        assert max((after[k] - before[k]).abs().max() for k in after if k in before) > 1e-3


@pytest.mark.distributed
def test_gradient_accumulation_changes_nothing(one):
    (whole, rewards), (cut, again) = one("two groups"), one("micro-batches")
    assert_same(weights(cut), weights(whole))
    assert [sorted(map(str, step)) for step in rewards["rewards"][-1:]] == [
        sorted(map(str, step)) for step in again["rewards"][-1:]
    ]


@pytest.mark.distributed
def test_the_planned_groups_have_every_kind_of_reward(one):
    rewards = one("two groups")[1]["rewards"][-1]
    assert len(rewards) >= GROUP and None in rewards and 1.5 in rewards and 0.0 in rewards


@pytest.mark.deepspeed
@pytest.mark.distributed
@needs_deepspeed
def test_a_dead_process_is_named_and_its_run_goes_on_from_the_newest_whole_checkpoint(tmp_path, one):
    status, written = launch("zero2", tmp_path, [KILLED])
    assert status != 0 and "SIGKILL" in written and "rank      : 1" in written, written[-3000:]
    (newest,) = [path for path in sorted((tmp_path / KILLED).glob("checkpoint-*"))][-1:]
    half = tmp_path / KILLED / "checkpoint-3"
    half.mkdir(exist_ok=True)
    (half / "trainer_state.json").write_text("{")  # what a process leaves that dies while it writes
    status, written = launch("zero2", tmp_path, [RESUMED])
    assert status == 0, written[-3000:]
    assert f"{half} is passed over" in written and MARK in written
    alone, expected = one(REFERENCE)
    assert len(expected["gradients"]) == STEPS and min(expected["gradients"]) > 0
    assert_same(weights(tmp_path / KILLED), weights(alone))
    for found in ranks(tmp_path, RESUMED):
        assert found["steps"] == STEPS and found["rewards"][-1] == [
            None if r is None else pytest.approx(r) for r in expected["rewards"][-1]
        ]
        steps = [entry for entry in found["metrics"] if "relay/accuracy" in entry]
        assert len(steps) == STEPS  # those before the break are still there
    assert newest.is_dir()
