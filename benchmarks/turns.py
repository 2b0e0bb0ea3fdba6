"""A rollout's next turn in the transformers engine: its context read whole, or with the key/value cache of its last turn.

    python benchmarks/turns.py

Rollouts write a turn, get 16 more tokens from nobody, and write one token more: the time of that last request is that of reading its context.
Processor time is counted.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tables import add_output, machine, save, table
from workload import SIZES, make_model

from relay_trl.cli.endings import run
from relay_trl.engines import kv_cache
from relay_trl.engines.base import Sampling
from relay_trl.engines.transformers import TransformersEngine

LENGTHS = (64, 256, 1024)
ADDED = 16


def seconds(model: str, length: int, rollouts: int, is_kept: bool) -> float:
    """Of the last turns of `rollouts` with contexts of `length` tokens."""
    engine = TransformersEngine.load(model, dtype="float32", device="cpu", kept_cache_mb=4096 if is_kept else 0)
    draw = random.Random(length)

    def words(number: int) -> list[int]:
        return [draw.randrange(1, 60) for _ in range(number)]

    async def ask(contexts: list[list[int]]) -> list:
        greedy = Sampling(temperature=0.0)
        return await asyncio.gather(*(engine.generate(context, 1, sampling=greedy) for context in contexts))

    contexts = [words(length - ADDED) for _ in range(rollouts)]
    first = asyncio.run(ask(contexts))
    contexts = [c + (a.ids or []) + words(ADDED) for c, a in zip(contexts, first, strict=True)]
    started = time.process_time()
    last = asyncio.run(ask(contexts))
    ended = time.process_time()
    assert all((answer.cached_tokens > 0) == is_kept for answer in last)
    return ended - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large", help="of the student (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=8, help="in a batch (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    add_output(parser, "turns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kv_cache.LEAST_TOKENS = 1  # short contexts are measured too
    rows = [{"length": str(length), "whole": [], "kept": []} for length in LENGTHS]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder, "model"), *SIZES[args.size][0], most=2 * max(LENGTHS), seed=0)
        for _ in range(args.runs):
            for row in rows:
                for name in ("whole", "kept"):
                    row[name].append(seconds(model, int(row["length"]), args.rollouts, name == "kept"))
    columns = {
        "tokens of a context": lambda row: row["length"],
        "read whole, s": lambda row: row["whole"],
        "with the last turn's cache, s": lambda row: row["kept"],
    }
    note = (
        f"Processor time, median [smallest, largest] of {args.runs} runs; {args.rollouts} rollouts, student `{args.size}`, "
        f"{ADDED} new tokens each. {machine()}"
    )
    save(args.output_dir, "turns", {"rows": rows, "arguments": vars(args)}, table(columns, rows, 3) + "\n\n" + note)


if __name__ == "__main__":
    run(main)
