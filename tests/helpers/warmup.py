"""Rows and a config for a short warm-up."""

from datasets import Dataset

from helpers.trainers import SYNTAX
from relay_trl.data.arithmetic import problems
from relay_trl.data.random_calls import command_ids
from relay_trl.training import RelaySFTConfig
from relay_trl.vocabulary import Vocabulary


def warmup_rows(tokenizer, size=16):
    vocabulary = Vocabulary(tokenizer)
    rows = []
    for k, row in enumerate(problems("train", size)):
        command = command_ids(k % 9 + 1, vocabulary, SYNTAX)
        ids = [*vocabulary.encode(row["solution"][:3]), *command, *vocabulary.encode(row["solution"][3:])]
        rows.append(
            {
                "prompt": row["prompt"],
                "completion": vocabulary.decode(ids),
                "prompt_ids": vocabulary.encode(row["prompt"]),
                "completion_ids": [*ids, vocabulary.eos_id],
                "completion_mask": [1] * (len(ids) + 1),
                "answer": row["answer"],
                "calls": 1,
            }
        )
    return Dataset.from_list(rows)


def sft_config(folder, **fields):
    return RelaySFTConfig(
        **{
            "output_dir": str(folder),
            "warmup_data": "rows.jsonl",
            "add_call_tokens": True,
            "answer_marker": "#",
            "max_length": 80,
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
            **fields,
        }
    )
