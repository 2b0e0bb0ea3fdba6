"""The student on its own vLLM server: two processes train it, its weights are the trainer's, and a lost server ends the run in a sentence."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.served import free_port

from relay_trl.training.metrics import METRICS

pytestmark = pytest.mark.vllm
HERE = Path(__file__).parent
STEPS = 3  # before the one in which the server is killed


@pytest.fixture(scope="module")
def trained(tiny_model_path, serve, tmp_path_factory):
    """What the two processes wrote down and logged, and how they ended. Their server is paused at first, as a run that was killed
    in a weight sync leaves it, and killed in the last step.
    """
    folder = tmp_path_factory.mktemp("run")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    command = [sys.executable, str(HERE / "server_training.py"), str(tiny_model_path), str(folder)]
    processes = []
    for rank in ("0", "1"):
        with (folder / f"log_{rank}").open("w") as log:
            own = os.environ | place | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    options = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    options += ["--logprobs-mode", "processed_logprobs"]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_SERVER_DEV_MODE", "1")
            with serve(tiny_model_path, *options) as server:
                url = server.url
                urllib.request.urlopen(urllib.request.Request(url.removesuffix("/v1") + "/pause", method="POST"))
                (folder / "start.new").write_text(url)
                (folder / "start.new").rename(folder / "start")
                limit = time.monotonic() + 300
                while not all((folder / f"waits_{rank}").exists() for rank in (0, 1)):
                    is_running = all(process.poll() is None for process in processes)
                    assert is_running and time.monotonic() < limit, (folder / "log_0").read_text()[-3000:]
                    time.sleep(0.1)
                server.kill()
                (folder / "go").touch()
                ends = [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    ranks = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    return ranks, [(folder / f"log_{rank}").read_text() for rank in (0, 1)], ends


def test_it_trains_and_the_server_has_the_trainers_weights(trained):
    one, other = trained[0]
    assert one["weights"] == other["weights"] and len(one["metrics"]) == STEPS
    for row in one["metrics"]:
        assert {f"relay/{name}" for name in METRICS} <= set(row)
        assert row["grad_norm"] > 0 and row["relay/calls"] > 0 and row["relay/student_failures"] == 0
    for rank in (one, other):
        assert len(rank["differences"]) >= 8 * STEPS and max(rank["differences"]) < 1e-4


def test_no_request_meets_a_sync(trained):
    """A sync begins when the last process has drawn, whose teacher is late, and nobody asks before it has ended, though it is slow."""
    one, other = trained[0]
    for step in range(STEPS):
        for rank in (one, other):
            assert rank["begun"][step] > one["resumed"][step]
            assert rank["ended"][step] < one["paused"][step + 1]
    for before, after in pairwise(sorted([(t, 0) for t in one["paused"]] + [(t, 1) for t in one["resumed"]])):
        assert before[1] != after[1]


def test_a_group_reward_is_asked_in_one_process(trained):
    assert trained[0][0]["rewards"] == trained[0][1]["rewards"]


def test_a_server_that_is_killed_in_a_step_ends_both_processes_in_a_sentence(trained):
    _, logs, ends = trained
    assert ends == [1, 1]
    for said in logs:
        assert "error: The student's engine failed in" in said and f"of step {STEPS + 1}'s rollouts" in said
        assert "cannot be reached in 2 tries" in said and "Traceback" not in said
