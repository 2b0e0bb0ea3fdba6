"""When a process hangs or dies, the others end within `ddp_timeout` with one sentence that names it, without a launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.served import free_port
from helpers.trainers import load_tokenizer
from helpers.warmup import warmup_rows

ROOT = Path(__file__).parents[2]
LIMIT_S = 15

pytestmark = pytest.mark.distributed


def start(folder: Path, rank: int, size: int, place: dict[str, str]) -> subprocess.Popen:
    options = {
        "config": "recipes/configs/arithmetic/sft_warmup.yaml",
        "output_dir": folder / "out",
        "warmup_data": folder / "rows.jsonl",
        "per_device_train_batch_size": 2,
        "max_steps": 5000,
        "logging_steps": 1,
        "ddp_timeout": LIMIT_S,
        "use_cpu": "true",
    }
    command = [sys.executable, "recipes/sft_warmup.py", *(str(w) for k, v in options.items() for w in (f"--{k}", v))]
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    with (folder / f"rank_{rank}.log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | place | own, stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("what", "said"),
    [(signal.SIGSTOP, "No answer from process 1 within ddp_timeout"), (signal.SIGKILL, "Lost process 1, which ended")],
)
def test_the_others_end_and_name_it(tmp_path, what, said):
    warmup_rows(load_tokenizer()).to_json(tmp_path / "rows.jsonl")
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    processes = [start(tmp_path, rank, 3, place) for rank in range(3)]
    try:
        limit = time.monotonic() + 240
        while "'loss'" not in (tmp_path / "rank_0.log").read_text():
            assert time.monotonic() < limit and processes[0].poll() is None, (tmp_path / "rank_0.log").read_text()
            time.sleep(0.2)
        processes[1].send_signal(what)
        for rank in (0, 2):
            status = processes[rank].wait(timeout=LIMIT_S + 60)
            written = (tmp_path / f"rank_{rank}.log").read_text()
            assert status == 1 and f"error: {said}" in written and "Traceback" not in written, written[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


SCRIPT = """
import os, time
from torch import distributed
from relay_trl.cli.launch import explain

distributed.init_process_group("gloo")
said = {said}[int(os.environ["RANK"])]
if said is None:
    time.sleep(60)
print(explain(RuntimeError(said)), flush=True)
os._exit(0)
"""
CLOSED = "[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
TIMED_OUT = (
    "Application timeout caused pair closure",
    "[/x/gloo/transport/tcp/a.cc:78] Timed out waiting 5ms for recv",
)


@pytest.mark.parametrize(
    ("own", "others", "said"),
    [(TIMED_OUT[0], CLOSED, "No answer from"), (CLOSED, TIMED_OUT[1], "No answer from"), (CLOSED, CLOSED, "Lost")],
)
def test_whoever_has_timed_out_the_others_say_so_too(own, others, said):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT.format(said=[own, None, others])]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank)}, **options) for rank in range(3)
    ]
    try:
        written = [processes[rank].communicate(timeout=120)[0] for rank in (0, 2)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all(text.startswith(f"{said} process 1") for text in written), written
