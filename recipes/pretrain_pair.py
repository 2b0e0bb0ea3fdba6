"""Pretrain one model of an embedded pair from scratch, save it, and print its accuracy by kind."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)
from trl import TrlParser

from relay_trl.data.embedded import load_task, with_labels


@dataclass
class PretrainArguments:
    """
    The model and its corpus; all other options are those of [`~transformers.TrainingArguments`].

    Args:
        task (`str`): `"arithmetic"` or `"lookups"`.
        hidden_size (`int`): Width of the model.
        intermediate_size (`int`): Width of the feed-forward layers.
        is_student (`bool`): Whether the corpus is the student's, which has wrong parts, or the teacher's.
        corpus_size (`int`, *optional*, defaults to `140000`): Number of training texts.
        test_size (`int`, *optional*, defaults to `600`): Number of test problems for the table at the end.
        num_threads (`int`, *optional*, defaults to `1`): Torch threads; such small models are slower with more.
    """

    task: str
    hidden_size: int
    intermediate_size: int
    is_student: bool
    corpus_size: int = 140_000
    test_size: int = 600
    num_threads: int = 1


@torch.inference_mode()
def accuracy_by_kind(model, tokenizer, task, rows, temperature):
    """Answer `rows` once, greedily at temperature 0, and return the share of right answers overall and by kind."""
    inputs = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    outputs = model.generate(**inputs, max_new_tokens=120, **sampling)
    texts = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    is_right = [task.answer_of(text) == row["answer"] for text, row in zip(texts, rows, strict=True)]
    groups = {kind: [is_right[i] for i, row in enumerate(rows) if row["kind"] == kind] for kind in task.KINDS}
    return {name: sum(group) / len(group) for name, group in {"overall": is_right, **groups}.items()}


def main():
    """Parse, build the data and the model, train, save, report."""
    args, training_args = TrlParser((PretrainArguments, TrainingArguments)).parse_args_and_config()
    task = load_task(args.task)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(training_args.seed)
    tokenizer = task.build_tokenizer()
    dataset = Dataset.from_list(task.corpus(args.corpus_size, training_args.seed, args.is_student))
    dataset = dataset.map(with_labels, fn_kwargs={"tokenizer": tokenizer}, remove_columns=["prompt", "completion"])

    special_ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,  # the smallest for which vLLM has an attention kernel on a CPU
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        **special_ids,
    )
    model = Qwen3ForCausalLM(config)
    Trainer(model, training_args, DataCollatorForSeq2Seq(tokenizer), train_dataset=dataset).train()
    # The trainer has made the end token a list and switched the cache off.
    model.generation_config, model.config.use_cache = GenerationConfig(**special_ids), True
    model.save_pretrained(training_args.output_dir)
    tokenizer.save_pretrained(training_args.output_dir)

    print(f"{model.num_parameters():,} parameters, saved in {training_args.output_dir}")
    rows = task.problems("test", args.test_size)
    for temperature in (0.0, 1.0):
        shares = accuracy_by_kind(model.eval(), tokenizer, task, rows, temperature)
        print(f"temperature {temperature}: " + "  ".join(f"{name} {share:.3f}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
