"""GRPO over relayed rollouts that run beside the training instead of before each step: for a teacher that is slow to answer.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo_relay_async.py \
        --config recipes/configs/arithmetic/grpo_relay_async.yaml
"""

from datasets import Dataset
from transformers import AutoTokenizer

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_overlong, drop_ungradable
from relay_trl.engines.checks import check_context, check_model, check_student
from relay_trl.grading.grader import Grader
from relay_trl.prompts import RunPrompts
from relay_trl.training.async_config import RelayAsyncGRPOConfig, StudentConfig, model_options
from relay_trl.training.checkpoints import bytes_of_checkpoints, check_output
from relay_trl.training.lora import lora_config


def main():
    data, config, model_config = RecipeParser((DataConfig, RelayAsyncGRPOConfig, StudentConfig)).parse()
    options = model_options(model_config, config)
    revision = model_config.model_revision
    student = check_student(model_config.model_name_or_path, revision)
    check_output(config.output_dir, bytes_of_checkpoints(student, config))
    if config.teacher and "://" not in config.teacher:
        check_model(config.teacher, "teacher")

    rows, _ = data.load_with_validation()  # as the synchronous recipe: never those that the students are compared on
    with Grader(config.answer_marker, config.grading_time_limit_s) as grader:
        rows = drop_ungradable(rows, grader, data.dataset)
    tokenizer = AutoTokenizer.from_pretrained(student, revision=revision, trust_remote_code=config.trust_remote_code)
    prompts = RunPrompts(tokenizer, **config.prompt_options())
    lengths = [len(prompts.student_ids(row["prompt"])) for row in rows]
    rows[:] = drop_overlong(rows, lengths, config.max_prompt_length, "training rows", config.skip_long_prompts)
    longest = max(length for length in lengths if length <= config.max_prompt_length)
    check_context(student, longest, config.max_completion_length, revision)

    from relay_trl.training.async_grpo import RelayAsyncGRPOTrainer  # takes seconds

    config.model_init_kwargs = options
    trainer = RelayAsyncGRPOTrainer(
        model=student,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(model_config, tokenizer, config.syntax, student, revision),
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
