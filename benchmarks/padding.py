"""Tokens that a GRPO step reads for each token that there is, padded by draw as in TRL and by micro-batch as here.

    python benchmarks/padding.py

Counts over draws of log-normal lengths, with what ranks wait for one another counted as read, and times one real step:
forward and backward of the same draw, both ways in turn.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
from tables import add_output, machine, save, table
from workload import CHARACTERS, SIZES, make_model, vocabulary_of

from relay_trl.cli.endings import run
from relay_trl.engines.base import Sampling
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.training.batches import share_out, tighten

SPREAD = 0.6  # of the logarithm of a completion's length
PROMPTS = (40, 120)


def draw_lengths(draw: random.Random, groups: int, rollouts: int, budget: int) -> list[tuple[int, int]]:
    """Tokens of prompt and completion of each row: the median is a quarter of the budget, which cuts the longest."""
    rows = []
    for _ in range(groups):
        prompt = draw.randint(*PROMPTS)
        rows += [
            (prompt, max(8, min(budget, int(draw.lognormvariate(0.0, SPREAD) * budget / 4)))) for _ in range(rollouts)
        ]
    return rows


def per_real_token(budget: int, ranks: int, args) -> dict[str, list[float]]:
    """Tokens read for each real one, draw by draw."""
    found: dict[str, list[float]] = {"TRL": [], "tight": []}
    per_rank = args.rows * args.micro_batches
    for seed in range(args.draws):
        rows = draw_lengths(random.Random(seed), per_rank * ranks // args.rollouts, args.rollouts, budget)
        lengths = torch.tensor(rows)
        real = int(lengths.sum())
        # Every rank reads as much as the one with the longest row, or waits for it
        found["TRL"].append(len(rows) * int(widths(lengths.view(ranks, per_rank, 2)).max()) / real)
        parts = lengths[share_out(lengths.sum(1), args.micro_batches, ranks)]
        read = args.rows * ranks * int(widths(parts).max(1).values.sum())
        found["tight"].append(read / real)
    return found


def widths(lengths: torch.Tensor) -> torch.Tensor:
    """Columns of padded rows, shape (..., rows, 2) to (...)."""
    return lengths.max(-2).values.sum(-1)


def timed_step(args) -> dict[str, list[float]]:
    """Seconds of forward and backward of one draw, both ways in turn."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer, grpo

    made: list = []
    grpo.tighten = lambda batches, trainer: (made.append(batches), tighten(batches, trainer))[1]
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder, "model"), *SIZES[args.size][0], most=args.budget + 512, seed=0)
        config = RelayGRPOConfig(
            output_dir=folder,
            answer_marker="#",
            num_generations=args.rollouts,
            per_device_train_batch_size=args.rows,
            gradient_accumulation_steps=args.micro_batches,
            max_completion_length=args.budget,
            max_steps=1,
            learning_rate=0.0,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            rollouts_max_mb=0,
            dataloader_pin_memory=False,
        )
        draw = random.Random(0)
        problems = ["".join(draw.choices(CHARACTERS, k=draw.randint(*PROMPTS))) for _ in range(64)]
        rows = Dataset.from_list([{"prompt": problem, "answer": "42"} for problem in problems])
        trainer = RelayGRPOTrainer(path, config, rows, processing_class=AutoTokenizer.from_pretrained(path))
        lengths = iter(draw_lengths(draw, 10**4, args.rollouts, args.budget))
        vocabulary = vocabulary_of(path)
        trainer._engines["student"] = _Lengths(vocabulary, lambda _: [5] * next(lengths)[1] + [vocabulary.eos_id])
        trainer.train()
        trainer.model.train()
        ways = {"TRL": made[0], "tight": tighten(made[0], trainer)}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for k in range(args.runs + 1):
            for name, batches in ways.items():
                started = time.perf_counter()
                for batch in batches:
                    trainer._compute_loss(trainer.model, batch).backward()
                if k:
                    found[name].append(time.perf_counter() - started)
        trainer.grader.close()
    return found


class _Lengths(ScriptedEngine):
    async def generate(self, context, max_tokens, stop=(), sampling=Sampling(), on_tokens=None):
        return await super().generate(context, max_tokens, (), sampling)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 8192], help="(default: 2048 8192)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8], help="(default: 1 8)")
    parser.add_argument("--rows", type=int, default=4, help="of a micro-batch (default: %(default)s)")
    parser.add_argument("--micro_batches", type=int, default=16, help="of a rank (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=8, help="of a prompt (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=50, help="counted (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the timed model (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=1024, help="of the timed step (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="of the timed step (default: %(default)s)")
    add_output(parser, "padding")
    args = parser.parse_args()
    counted = [
        {"budget": f"{budget:,}", "ranks": str(ranks), **per_real_token(budget, ranks, args)}
        for budget in args.budgets
        for ranks in args.ranks
    ]
    step = timed_step(args)
    step["ratio"] = [a / b for a, b in zip(step["TRL"], step["tight"], strict=True)]
    columns = {
        "completion budget": lambda row: row["budget"],
        "ranks": lambda row: row["ranks"],
        "read per real token, TRL": lambda row: row["TRL"],
        "read per real token, tight": lambda row: row["tight"],
    }
    step_columns = {
        f"forward and backward, budget {args.budget:,}: TRL, s": lambda row: row["TRL"],
        "tight, s": lambda row: row["tight"],
        "TRL / tight": lambda row: row["ratio"],
    }
    note = (
        f"Median [smallest, largest] of {args.draws} draws, seeds 0 to {args.draws - 1}, and of {args.runs} timed steps; "
        f"{args.micro_batches} micro-batches of {args.rows} rows a rank, median length a quarter of the budget, spread "
        f"{SPREAD} of its logarithm, model `{args.size}`. {machine()}"
    )
    text = "\n\n".join([table(columns, counted), table(step_columns, [step]), note])
    save(args.output_dir, "padding", {"counted": counted, "step": step, "arguments": vars(args)}, text)


if __name__ == "__main__":
    run(main)
