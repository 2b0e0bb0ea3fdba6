"""The files of accelerate_configs/ load with accelerate's own reader, and what a CPU can start really starts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
NAMES = {"cpu", "cpu_2", "single_gpu", "ddp", "zero1", "zero2", "zero3", "multi_node"}

has_deepspeed = importlib.util.find_spec("deepspeed") is not None

# Every process adds its number plus one; the sum shows that they know of each other.
ALL_REDUCE = """
import torch
from accelerate import Accelerator

accelerator = Accelerator()
total = accelerator.reduce(torch.tensor(accelerator.process_index + 1.0)).item()
print(f"[{accelerator.device.type} {accelerator.num_processes} {total}]", flush=True)
accelerator.end_training()  # as recipes do (`cli.run`): a gloo thread left to the end of the process may abort it
"""

# A DeepSpeed engine of one linear layer takes a step on different data in each process.
ZERO_STEP = """
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
rows = torch.full((1, 4), accelerator.process_index + 1.0, dtype=next(model.parameters()).dtype)
accelerator.backward(model(rows).float().pow(2).mean())
optimizer.step()
stage = model.zero_optimization_stage()
outputs = model(torch.ones_like(rows)).detach().float()
is_equal = bool(torch.equal(*accelerator.gather(outputs)))
print(f"[{accelerator.num_processes} {stage} {is_equal}]", flush=True)
accelerator.end_training()
"""


def launch(config: str, script: str, tmp_path: Path, *options: str, **environment: str) -> str:
    """What `accelerate launch` prints for a script under one of the shipped configs."""
    path = tmp_path / "script.py"
    path.write_text(script)
    # Port 0: accelerate takes a free one, so that two runs on one machine do not meet.
    port = [] if config == "cpu" else ["--main_process_port", "0"]
    config_file = str(ROOT / "accelerate_configs" / f"{config}.yaml")
    command = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config_file, *port, *options]
    # DeepSpeed compiles with ninja, which lies beside python.
    search_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(
        [sys.executable, *command, str(path)],
        env=os.environ | {"PATH": search_path} | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_every_situation_has_its_file():
    assert {path.stem for path in CONFIGS} == NAMES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.use_cpu == path.stem.startswith("cpu")
    assert config.num_processes % config.num_machines == 0
    # accelerate starts one process, and says nothing, when this name stands beside num_processes: 2.
    assert config.distributed_type != "MULTI_CPU"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_says_when_to_take_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith("# Change: ") for line in lines)


@pytest.mark.distributed
@pytest.mark.parametrize(("config", "line", "count"), [("cpu", "[cpu 1 1.0]", 1), ("cpu_2", "[cpu 2 3.0]", 2)])
def test_cpu_processes_know_each_other(config, line, count, tmp_path):
    assert launch(config, ALL_REDUCE, tmp_path, ACCELERATE_USE_CPU="true").count(line) == count


@pytest.mark.deepspeed
@pytest.mark.distributed
@pytest.mark.skipif(not has_deepspeed, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_takes_a_step_on_two_cpu_processes(stage, tmp_path):
    printed = launch(f"zero{stage}", ZERO_STEP, tmp_path, "--num_processes", "2", DS_ACCELERATOR="cpu")
    assert printed.count(f"[2 {stage} True]") == 2
