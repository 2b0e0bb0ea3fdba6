"""The student on its own vLLM server: two processes train it, its weights are the trainer's, and a lost server ends the run in a sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.served import free_port

pytestmark = pytest.mark.vllm
HERE = Path(__file__).parent
SERVER = [
    "--dtype",
    "float32",
    "--max-model-len",
    "512",
    "--max-num-seqs",
    "16",
    "--logprobs-mode",
    "processed_logprobs",
]


@pytest.fixture(scope="module")
def server(tiny_model_path, serve):
    before, os.environ["VLLM_SERVER_DEV_MODE"] = os.environ.get("VLLM_SERVER_DEV_MODE"), "1"
    try:
        with serve(tiny_model_path, *SERVER) as url:
            yield url
    finally:
        os.environ.pop("VLLM_SERVER_DEV_MODE") if before is None else os.environ.update(VLLM_SERVER_DEV_MODE=before)


def start(model, url, folder, *given):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    processes = []
    for rank in ("0", "1"):
        with (folder / f"log_{rank}").open("w") as log:
            command = [sys.executable, str(HERE / "server_training.py"), str(model), url, str(folder), *given]
            own = os.environ | place | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
    return processes


def found(folder):
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("given", [("SYNC_S=3",), ("DELAY=1:3",)], ids=["a slow sync", "a late process"])
def test_no_request_is_sent_before_the_weights_are_there(server, tiny_model_path, tmp_path, given):
    processes = start(tiny_model_path, server, tmp_path, *given)
    assert [process.wait(timeout=400) for process in processes] == [0, 0], (tmp_path / "log_0").read_text()[-3000:]
    one, other = found(tmp_path)
    assert len(one["metrics"]) == 3 and one["weights"] == other["weights"]
    for rank in (one, other):
        assert max(rank["differences"]) < 1e-4
    for step in range(
        3
    ):  # nobody asks before the first process has ended the sync; a tenth of a second for two clocks' reading
        assert other["sent"][step] > one["synced"][step] - 0.1


def test_a_server_that_is_killed_in_a_step_ends_both_processes_in_a_sentence(
    tiny_model_path, serve, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    with serve(tiny_model_path, *SERVER) as url:
        processes = start(tiny_model_path, url, tmp_path, "STOP=2")
        limit = time.monotonic() + 300
        while not all((tmp_path / f"waits_{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < limit, (tmp_path / "log_0").read_text()[-3000:]
            time.sleep(0.2)
        port = url.rpartition(":")[2].split("/")[0]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if port.encode() in words and b"vllm.entrypoints.openai.api_server" in words:
                os.killpg(os.getpgid(int(folder.name)), signal.SIGKILL)
        (tmp_path / "go").touch()
        assert [process.wait(timeout=200) for process in processes] == [1, 1]
    for rank in (0, 1):
        said = (tmp_path / f"log_{rank}").read_text()
        assert "error: The student's engine failed in 100% of step 2's rollouts" in said and "Traceback" not in said
