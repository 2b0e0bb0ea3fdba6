"""Measures how fast an engine serves a model: seconds of a decoding step by batch size, and tokens read per second.

    python benchmarks/service_curves.py --model runs/smollm2 --output runs/curve.json

`recipes/plan.py --student_curve` plans a service with it. Every figure is the median of `--repeats` runs.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import time

from relay_trl.engines.base import Sampling
from relay_trl.engines.loading import load_engine
from relay_trl.planning.curves import Curve


async def spend(engine, contexts, max_tokens) -> tuple[float, int]:
    """Seconds that the requests take together, and tokens written."""
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(engine.generate(c, max_tokens, sampling=Sampling(seed=i)) for i, c in enumerate(contexts))
    )
    return time.perf_counter() - started, max(len(answer.ids or ()) for answer in answers)


async def measure(engine, args) -> Curve:
    rng = random.Random(args.seed)
    size = engine.vocabulary.size

    def contexts(count, length):
        return [[rng.randrange(size // 2) for _ in range(length)] for _ in range(count)]

    await spend(engine, contexts(2, 8), 8)  # the first requests include compilation
    step_s = []
    for batch in args.batches:
        found = []
        for _ in range(args.repeats):
            seconds, written = await spend(engine, contexts(batch, 8), args.tokens)
            found.append(seconds / max(1, written))
        step_s.append(statistics.median(found))
        print(f"{batch:4d} requests: {1e3 * step_s[-1]:8.2f} ms a step, {batch / step_s[-1]:8.0f} tokens/s", flush=True)
    reads = []
    for _ in range(args.repeats):
        seconds, _ = await spend(engine, contexts(4, args.prefill), 1)
        reads.append(4 * args.prefill / seconds)
    print(f"{statistics.median(reads):.0f} tokens read a second")
    source = f"measured on {args.hardware}, {args.repeats} runs each, backend {args.backend}"
    return Curve(args.model, source, args.batches, step_s, statistics.median(reads), args.batches[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", default="vllm")
    parser.add_argument("--output", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max_model_len", type=int, help="most tokens of a request, where the cache is small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hardware", default=platform.processor() or platform.machine())
    args = parser.parse_args()
    options = {} if args.max_model_len is None else {"max_model_len": args.max_model_len}
    curve = asyncio.run(measure(load_engine(args.model, args.backend, **options), args))
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(vars(curve), file, indent=1)


if __name__ == "__main__":
    main()
