"""benchmarks/gpu_check.py: every line that a CPU can run does, the others are skipped by name, and no GPU is said at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="looks at what a CPU lacks")]
ROOT = Path(__file__).parents[2]


def check(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/gpu_check.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)


def test_without_a_gpu_it_offers_the_tiny_size(tmp_path):
    said = check("--output_dir", str(tmp_path))
    assert said.returncode == 1
    assert "There is no GPU here" in said.stderr and "--size tiny" in said.stderr and "Traceback" not in said.stderr
    assert not list(tmp_path.iterdir())


def test_every_line_has_a_verdict_and_what_a_cpu_can_run_works(tmp_path):
    said = check("--size", "tiny", "--backend", "transformers", "--output_dir", str(tmp_path))
    assert said.returncode == 0, said.stdout + said.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    lines = {line["name"]: line for line in found["lines"]}
    skipped = {name: line["found"] for name, line in lines.items() if line["verdict"] == "skipped"}
    assert skipped.keys() == {
        *("peak memory, and the plan's", "ZeRO-2", "ZeRO-3", "FSDP 2", "the student's server, weights over NCCL"),
    }
    assert skipped["FSDP 2"] == "needs 2 GPUs, none here"
    # What is no matter of speed is good on any machine
    for name in (
        "engine up",
        "weight sync, all weights",
        "weight sync, LoRA on bfloat16",
        "20 steps, a reward that rises",
    ):
        assert lines[name]["verdict"] == "good", lines[name]
    assert lines["serving: throughput and first token"]["figures"]["tokens"] > 0
    profile = lines["a GRPO step's shares"]["figures"]
    assert sum(profile["sections_s"].values()) == pytest.approx(profile["step_s"])
    table = (tmp_path / "gpu_check.md").read_text(encoding="utf-8")
    assert all(f"| {name} | {line['verdict']} |" in table for name, line in lines.items())
