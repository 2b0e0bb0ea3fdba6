"""Compares the peak main memory of trainings of tiny models, as the kernel counts it, with the plan.

    MALLOC_MMAP_THRESHOLD_=131072 MALLOC_TRIM_THRESHOLD_=131072 python tests/planning/measured_memory.py

With these two settings glibc returns freed memory at once. Without them it keeps pieces for later, which a plan cannot know.
"""

import ctypes
import gc
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from relay_trl.data.arithmetic import problems
from relay_trl.planning.memory import Training, training_memory
from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer, RelaySFTConfig, RelaySFTTrainer

TOKENIZER = Path(__file__).parents[2] / "data" / "arithmetic" / "student"
USUAL = {"vocabulary": 16000, "hidden": 320, "layers": 6, "batch": 4, "tokens": 184}
DEEP = {"vocabulary": 2000, "hidden": 512, "layers": 12}
CASES = [
    {},
    {"has_checkpointing": True},
    {"has_lora": True},
    {"has_lora": True, "has_checkpointing": True},
    {"vocabulary": 64000},
    {"vocabulary": 64000, "has_lora": True},
    {"vocabulary": 64000, "hidden": 512, "layers": 2, "batch": 1, "tokens": 64},
    DEEP,
    DEEP | {"batch": 1, "has_checkpointing": True},
    DEEP | {"batch": 8, "has_lora": True},
    {"is_grpo": True, "batch": 8, "tokens": 96},
    {"is_grpo": True, "batch": 8, "tokens": 96, "has_lora": True},
    DEEP | {"is_grpo": True, "tokens": 96, "has_checkpointing": True},
]
COMMON = {"max_steps": 2, "bf16": False, "save_strategy": "no", "report_to": "none", "use_cpu": True}
COMMON |= {"disable_tqdm": True, "dataloader_pin_memory": False, "logging_steps": 100}


def _now(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _warm_up(model, tokenizer, args: dict, batch: int, tokens: int, peft):
    words = tokenizer("1+" * tokens)["input_ids"][: tokens - 1]
    row = {"prompt_ids": words[:8], "completion_ids": [*words[8:], tokenizer.eos_token_id]}
    row["completion_mask"] = [1] * len(row["completion_ids"])
    rows = Dataset.from_list([row | {"completion": tokenizer.decode(words[8:])}] * (2 * batch))
    config = RelaySFTConfig(warmup_data="rows", max_length=1024, **args)
    return RelaySFTTrainer(model, config, rows, tokenizer, peft_config=peft)


def _grpo(model, tokenizer, args: dict, tokens: int, peft):
    limits = {"max_prompt_length": 16, "max_completion_length": tokens - 16}
    config = RelayGRPOConfig(answer_marker="#", num_generations=4, learning_rate=1e-4, **limits, **args)
    rows = Dataset.from_list(problems("train", 64, seed=0))
    return RelayGRPOTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=peft)


def measure(folder: str, case: dict) -> dict:
    """Bytes at the peak of two steps over what the process took before, and what is planned."""
    case = USUAL | {"has_checkpointing": False, "has_lora": False, "is_grpo": False} | case
    batch, tokens, heads = case["batch"], case["tokens"], case["hidden"] // 64
    config = LlamaConfig(
        vocab_size=case["vocabulary"],
        hidden_size=case["hidden"],
        intermediate_size=case["hidden"] * 27 // 10,
        num_hidden_layers=case["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    peft = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if case["has_lora"] else None
    args = COMMON | {"output_dir": f"{folder}/out", "per_device_train_batch_size": batch}
    args["gradient_checkpointing"] = case["has_checkpointing"]
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _now("VmRSS")
    model = AutoModelForCausalLM.from_config(config)
    if case["is_grpo"]:
        trainer = _grpo(model, tokenizer, args, tokens, peft)
    else:
        trainer = _warm_up(model, tokenizer, args, batch, tokens, peft)
    trainer.train()
    peak = _now("VmHWM") - before
    if case["is_grpo"]:
        trainer.grader.close()
    run = Training(
        batch=batch,
        tokens=tokens,
        has_checkpointing=case["has_checkpointing"],
        peft=peft,
        is_on_cpu=True,
        rollouts=batch if case["is_grpo"] else 0,
    )
    planned = training_memory(folder, run)
    return {"measured": peak, "planned": planned.peak, "parts": planned.parts}


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for case in ({"layers": 1}, {"layers": 1, "is_grpo": True, "tokens": 32}):
            measure(folder, case)  # what a first training leaves behind
        for case in CASES:
            print(json.dumps({"case": case} | measure(folder, case)), flush=True)


if __name__ == "__main__":
    main()
