"""Processes with different options are refused, with the name of the option and both values."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.served import free_port

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.distributed

SCRIPT = """
import os
from torch import distributed
from relay_trl.cli.launch import check_launch
from relay_trl.cli.endings import run
from relay_trl.data.config import DataConfig

def main():
    distributed.init_process_group("gloo")
    config = DataConfig("gsm8k_train", dataset_seed={seed})
    check_launch([config])
    print("agreed")

run(main)
"""


@pytest.mark.parametrize(("seed", "is_refused"), [("int(os.environ['RANK'])", True), ("3", False)])
def test_options_that_depend_on_the_process(seed, is_refused):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(seed=seed)],
            cwd=ROOT,
            env=os.environ | place | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        written = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, written, strict=True):
        assert process.returncode == is_refused, err
        assert (
            "dataset_seed is 0 in process 0 and 1 in process 1; every process must be given the same" in err
        ) == is_refused
        assert ("agreed" in out) != is_refused
