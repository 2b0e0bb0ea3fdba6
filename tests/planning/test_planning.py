"""Plans against known or measured values: parameters, memory of tiny models on the CPU, batches, queues."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from relay_trl.data.config import DataConfig
from relay_trl.planning import report
from relay_trl.planning.curves import Curve
from relay_trl.planning.memory import batches
from relay_trl.planning.models import Shape, known_models
from relay_trl.planning.service import Demand, simulate, size_service
from relay_trl.reproduction.expand import expand
from relay_trl.reproduction.pair import load_pair
from relay_trl.training import RelayGRPOConfig, RelaySFTConfig

ROOT = Path(__file__).parents[2]
FAST = Curve("student", "made up", [1, 64], [0.010, 0.020], 20_000.0, 64)
SLOW = Curve("teacher", "made up", [1, 64], [0.020, 0.040], 5_000.0, 64)
DEMAND = Demand(2.0, prompt_tokens=200, answer_tokens=160, calls=1.0, rho=0.1, spread=0.0)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("HuggingFaceTB/SmolLM2-135M-Instruct", 134.5), ("Qwen/Qwen2.5-0.5B-Instruct", 494.0), ("Qwen/Qwen3-0.6B", 596.0)],
)
def test_parameters_are_counted_from_the_config(name, millions):
    shape = Shape.of(name)
    assert shape.parameters / 1e6 == pytest.approx(millions, abs=0.1)  # as their cards say
    facts = known_models()[name]
    head_dim = facts.get("head_dim", facts["hidden_size"] // facts["num_attention_heads"])
    assert shape.kv_elements == 2 * facts["num_hidden_layers"] * facts["num_key_value_heads"] * head_dim


def test_the_arithmetic_of_a_draw():
    one = batches(8, 1, 32, 128, 8, 200, 1000, 0.01, 1.0)
    assert (one.rollouts, one.prompts, one.updates, one.rollouts_per_update) == (1024, 128, 4, 256)
    assert one.tokens == 1_024_000 and one.teacher_tokens == pytest.approx(10_240)
    assert one.teacher_reads == one.teacher_reads_cached == 1024 * 700
    three = batches(8, 1, 32, 128, 8, 200, 1000, 0.01, 3.0)
    assert three.teacher_reads == 3 * one.teacher_reads and three.teacher_reads_cached < three.teacher_reads / 2
    with pytest.raises(ValueError, match="= 21 rollouts are no whole groups of num_generations=8; change one of them"):
        batches(7, 3, 1, 1, 8, 1, 1, 0, 0)


def test_an_answer_alone_takes_what_its_tokens_take():
    found = simulate(replace(DEMAND, requests_per_s=1e-6), 1, 1, FAST, SLOW, 20)
    own, teacher = 144, 16
    reads = 200 / 20_000 + (200 + own / 2) / 5_000 + teacher / 20_000
    assert found.quantile(0.5) == pytest.approx(own * 0.010 + teacher * 0.020 + reads, rel=0.02)
    assert found.busy["student"] < 0.01


def test_every_request_is_answered_and_waiting_grows_with_the_load():
    slow = [simulate(replace(DEMAND, requests_per_s=rate), 1, 1, FAST, SLOW, 300) for rate in (0.2, 4.0, 12.0)]
    assert [len(found.answer_s) for found in slow] == [200] * 3  # the last two thirds
    assert slow[0].quantile(0.95) < slow[1].quantile(0.95) < slow[2].quantile(0.95)
    assert slow[0].busy["student"] < slow[1].busy["student"] <= 1.0001


def test_a_prefix_cache_saves_teachers():
    wide = replace(DEMAND, calls=3.0, prompt_tokens=4000, requests_per_s=5.0)
    kept, lost = (size_service(replace(wide, has_prefix_cache=has), FAST, SLOW) for has in (True, False))
    assert lost.teachers > kept.teachers and lost.students >= kept.students


@pytest.mark.slow
def test_a_larger_demand_needs_a_larger_service():
    sizes = [size_service(replace(DEMAND, requests_per_s=rate), FAST, SLOW) for rate in (1, 10, 10_000)]
    assert [s.students for s in sizes] == sorted(s.students for s in sizes)
    assert sizes[-1].students > 50 * sizes[1].students
    assert all(s.slow_s > s.median_s > 0 for s in sizes)
    assert size_service(replace(DEMAND, calls=0.0, rho=0.0), FAST, SLOW).teachers == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requests_per_s": 0}, "must be above 0"),
        ({"rho": 1.0}, "rho is 1.0 and calls is 1.0"),
        ({"calls": 0.0}, "both are 0 or neither is"),
    ],
)
def test_demands_that_make_no_sense(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(DEMAND, **changes)


def plan(*options):
    done = subprocess.run(
        [sys.executable, "recipes/plan.py", *map(str, options)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_warned_of(tmp_path):
    stages = expand(load_pair(ROOT / "recipes/pairs/gsm8k_qwen3_1.7b.yaml", "1gpu"))
    config = tmp_path / "grpo.yaml"
    config.write_text(next(stage.text() for stage in stages if stage.section == "grpo"))
    status, said = plan("--config", config, "--student", "Qwen/Qwen3-0.6B", "--teacher", "Qwen/Qwen3-8B")
    assert status == 0 and "128 prompts x 8 = 1024 rollouts" in said and "warning" not in said, said
    changed = yaml.safe_load(config.read_text()) | {
        "gradient_checkpointing": False,
        "vllm_gpu_memory_utilization": 0.01,
    }
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(changed))
    status, said = plan("--config", tmp_path / "large.yaml", "--student", "Qwen/Qwen3-0.6B", "--gpu_memory", 24)
    assert status == 1 and "do not fit into 24 GiB" in said and "leaves no cache for one rollout" in said
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(changed | {"num_generation": 8}))
    status, said = plan("--config", tmp_path / "odd.yaml")
    assert status == 1 and "Unknown option 'num_generation' (did you mean 'num_generations'?)" in said


def options_of(folder, **given):
    path = folder / "grpo.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "a", "dataset": "b", "eval_strategy": "steps", **given}))
    return report.Options(str(path), [RelayGRPOConfig, DataConfig], [RelaySFTConfig])


@pytest.mark.parametrize(
    ("batch", "processes", "samples", "drawn", "better"),
    [(42, 6, 1, 504, 43), (43, 6, 1, 258, None), (100, 1, 1, None, None), (8, 6, 1, 288, None), (250, 4, 5, 2000, 320)],
)
def test_an_evaluation_that_draws_more_than_it_counts_is_warned_of(tmp_path, batch, processes, samples, drawn, better):
    given = {"per_device_eval_batch_size": batch, "num_generations_eval": samples}
    _, warnings = report.evaluation(options_of(tmp_path, **given), processes)
    assert bool(warnings) == (better is not None)
    for said in warnings:
        assert f"draws {drawn} rollouts where {256 * samples}" in said and said.endswith(f"_size to {better}.")


def test_an_evaluation_larger_than_a_draw_takes_its_cache(tmp_path):
    rollouts = []
    for batch in (8, 256):
        options = options_of(tmp_path, per_device_eval_batch_size=batch, per_device_train_batch_size=16)
        rollouts.append(report.training_of(options, {}, 1, 80).rollouts)
    assert rollouts == [16, 256]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which counts a process's peak")
def test_planned_memory_is_what_is_measured():
    gives_back = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "tests/planning/measured_memory.py"],
        cwd=ROOT,
        env=os.environ | gives_back,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert len(found) == 13
    for one in found:
        assert one["planned"] == pytest.approx(one["measured"], rel=0.2), one
