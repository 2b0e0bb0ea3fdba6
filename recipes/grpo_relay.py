"""GRPO with relayed rollouts: teaches the student when to call, and for how many tokens.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo_relay.py \
        --config recipes/configs/arithmetic/grpo_relay.yaml
"""

import os
import sys
from pathlib import Path

from transformers import AutoTokenizer
from trl import ModelConfig, get_quantization_config

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser, model_kwargs
from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_overlong, drop_ungradable
from relay_trl.engines.checks import check_context, check_model, check_student, check_teacher_context
from relay_trl.engines.loading import load_engine
from relay_trl.grading.grader import Grader
from relay_trl.prompts import RunPrompts
from relay_trl.training import RelayGRPOConfig
from relay_trl.training.checkpoints import bytes_of_checkpoints, check_output
from relay_trl.training.columns import to_dataset
from relay_trl.training.lora import check_quantization, lora_config

ROOT = Path(__file__).parents[1]
EMBEDDED = (
    "--config",
    "recipes/configs/arithmetic/grpo_relay.yaml",
    "--model_name_or_path",
    "data/arithmetic/warmed_up",
)
EMBEDDED += ("--output_dir", "runs/first")


def main():
    if is_first := len(sys.argv) == 1:
        os.chdir(ROOT)
        print(
            "Without options this trains the embedded arithmetic pair, the student after its warm-up (data/arithmetic/warmed_up) with "
            "data/arithmetic/teacher, for about a minute on two cores, into runs/first.",
            flush=True,
        )
    arguments = list(EMBEDDED) if is_first else None
    data, config, model_config = RecipeParser((DataConfig, RelayGRPOConfig, ModelConfig)).parse(arguments)
    revision = model_config.model_revision
    student = check_student(model_config.model_name_or_path, revision)
    check_quantization(model_config, config.device.type == "cpu", config.use_vllm)
    check_output(config.output_dir, bytes_of_checkpoints(student, config))
    if config.teacher and "://" not in config.teacher:
        check_model(config.teacher, "teacher")

    rows, validation = data.load_with_validation()
    with Grader(config.answer_marker, config.grading_time_limit_s) as grader:
        rows = drop_ungradable(rows, grader, data.dataset)
        validation = drop_ungradable(validation, grader, data.validation or data.dataset)
    tokenizer = AutoTokenizer.from_pretrained(student, revision=revision, trust_remote_code=config.trust_remote_code)
    prompts = RunPrompts(tokenizer, **config.prompt_options())
    for name, part in (("training rows", rows), ("validation rows", validation)):
        lengths = [len(prompts.student_ids(row["prompt"])) for row in part]
        part[:] = drop_overlong(part, lengths, config.max_prompt_length, name, config.skip_long_prompts)
        longest = max(length for length in lengths if length <= config.max_prompt_length)
        check_context(student, longest, config.max_completion_length, revision)

    teacher = load_engine(config.teacher, **config.teacher_options()) if config.teacher else None
    prompts.use_teacher(teacher)
    contexts = (prompts.teacher_context(row["prompt"]) for row in rows + validation)
    check_teacher_context(teacher, contexts, config.max_completion_length)

    from relay_trl.training import RelayGRPOTrainer  # takes seconds, so errors up to here come first

    config.model_init_kwargs = {**model_kwargs(model_config, config), **(config.model_init_kwargs or {})}
    trainer = RelayGRPOTrainer(
        model=student,
        args=config,
        train_dataset=to_dataset(rows, config.extra_rewards),
        eval_dataset=to_dataset(validation, config.extra_rewards) if config.eval_strategy != "no" else None,
        processing_class=tokenizer,
        teacher=teacher,
        prompts=prompts,
        peft_config=lora_config(model_config, tokenizer, config.syntax, student, revision),
        quantization_config=get_quantization_config(model_config),
    )
    trainer.training_set = data.dataset
    trainer.train()
    trainer.finish()
    if trainer.is_world_process_zero():
        print(
            f"The student is in {config.output_dir}. Next: relay-trl evaluate --config YAML --student {config.output_dir}"
        )


if __name__ == "__main__":
    run(main)
