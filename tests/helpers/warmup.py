"""Rows and a config for a short warm-up."""

from datasets import Dataset

from helpers.trainers import SMALL, SYNTAX
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
    own = {"warmup_data": "rows.jsonl", "add_call_tokens": True, "max_length": 80}
    return RelaySFTConfig(**{**SMALL, "output_dir": str(folder), **own, **fields})
