"""Plans against what is known or measured: parameters, memory of tiny models on the CPU, batches, queues."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from relay_trl.planning.curves import Curve
from relay_trl.planning.memory import batches
from relay_trl.planning.models import Shape, known_models
from relay_trl.planning.serving import Demand, simulate, size_service

ROOT = Path(__file__).parents[1]
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
    config = ROOT / "recipes/configs/gsm8k/grpo_relay_1gpu.yaml"
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


# What a warm-up takes at its peak, over what the process took before, in the kernel's own count; largest last.
MEASURE = """
import ctypes, gc, json, sys
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from relay_trl.planning.memory import Training, training_memory
from relay_trl.training import RelaySFTConfig, RelaySFTTrainer

folder, tokenizer_folder = sys.argv[1:]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
LlamaConfig(vocab_size=16000, hidden_size=320, intermediate_size=864, num_hidden_layers=6, num_attention_heads=5,
            num_key_value_heads=5, tie_word_embeddings=True, max_position_embeddings=512,
            architectures=["LlamaForCausalLM"]).save_pretrained(folder)
config = LlamaConfig.from_pretrained(folder)
B, L = 4, 192
words = tokenizer("1+" * 200)["input_ids"][:L - 9]
rows = Dataset.from_list([{"prompt_ids": words[:8], "completion_ids": words[8:] + [tokenizer.eos_token_id],
                           "completion": tokenizer.decode(words[8:])}] * 8)

def now(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def measure(peft, has_checkpointing):
    gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = now("VmRSS")
    model = AutoModelForCausalLM.from_config(config)
    args = RelaySFTConfig(output_dir=folder + "/out", warmup_data="rows", max_length=512, max_steps=2, bf16=False,
        per_device_train_batch_size=B, gradient_checkpointing=has_checkpointing, save_strategy="no", report_to="none",
        use_cpu=True, disable_tqdm=True, logging_steps=100, dataloader_pin_memory=False)
    trainer = RelaySFTTrainer(model, args, rows, tokenizer, peft_config=peft)
    trainer.train()
    peak = now("VmHWM") - before
    plan = training_memory(folder, Training(batch=B, tokens=len(words) + 1, has_checkpointing=has_checkpointing, peft=peft, is_on_cpu=True))
    return {"measured": peak, "planned": plan.at_update, "parts": plan.parts}

measure(None, True)  # what a first training leaves behind
print(json.dumps([measure(None, True), measure(None, False)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which counts a process's peak")
def test_planned_memory_is_what_is_measured(tmp_path):
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    pair = ROOT / "data" / "arithmetic" / "student"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(pair)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found["planned"] == pytest.approx(found["measured"], rel=0.2), found
