"""Supervised warm-up: teaches the student the syntax of a call.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft_warmup.py \
        --config recipes/configs/arithmetic/sft_warmup.yaml
"""

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_quantization_config

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser, model_kwargs
from relay_trl.data.sources import read_file
from relay_trl.engines.checks import check_student
from relay_trl.options import check_file
from relay_trl.training import RelaySFTConfig
from relay_trl.training.call_tokens import add_call_tokens, grow_embeddings
from relay_trl.training.checkpoints import bytes_of_checkpoints, check_output
from relay_trl.training.lora import check_quantization, lora_config
from relay_trl.vocabulary import Vocabulary


def main():
    config, model_config = RecipeParser((RelaySFTConfig, ModelConfig)).parse()

    revision = model_config.model_revision
    student = check_student(model_config.model_name_or_path, revision)
    check_quantization(model_config, config.device.type == "cpu")
    check_output(config.output_dir, bytes_of_checkpoints(student, config))
    rows = read_file("json", check_file(config.warmup_data, "warmup_data"))
    tokenizer = AutoTokenizer.from_pretrained(student, revision=revision, trust_remote_code=config.trust_remote_code)
    num_new = add_call_tokens(tokenizer, config.syntax) if config.add_call_tokens else 0

    from relay_trl.training.sft import RelaySFTTrainer, check_rows  # takes seconds

    check_rows(rows, Vocabulary(tokenizer), config)

    model = AutoModelForCausalLM.from_pretrained(
        student, quantization_config=get_quantization_config(model_config), **model_kwargs(model_config, config)
    )
    grow_embeddings(model, tokenizer, num_new, config.seed)

    trainer = RelaySFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(model_config, tokenizer, config.syntax, student, revision),
    )
    trainer.training_set = config.warmup_data
    trainer.train()
    trainer.finish()


if __name__ == "__main__":
    run(main)
