"""Which pair of models this machine is fit for: what each does in a second here, and the hours of a whole run.

    python benchmarks/machine.py --models Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-1.5B-Instruct
    python benchmarks/machine.py --models FOLDER FOLDER FOLDER --hours 2 --grpo_steps 30

Every model is measured in a process of its own: `--requests` answers at a time of `--tokens` tokens behind prompts of
`--prompt_tokens`, and a training step of `--rows` such rows. A run is warm-up data, warm-up, GRPO with and without a teacher,
and an evaluation; of every two models the smaller one is the student. Ends with an error where no pair fits in `--hours`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tables import add_output, machine, save, table

from relay_trl.cli.endings import run

CALLED = 0.5
"""Rollouts that call, of which the teacher reads prompt and answer once; what it writes is a tenth of the answers' tokens."""
WRITTEN = 0.1
STUDENT_METHODS, TEACHER_METHODS = 7, 2
"""Answers to a test problem, by methods whose words are mostly the student's (relays among them), and mostly the teacher's."""


@dataclass(frozen=True)
class Speed:
    """What a model does in a second.

    Args:
        model (`str`), parameters (`int`).
        reads (`float`), writes (`float`): tokens, of prompts and of answers.
        step_s (`float`), step_rows (`int`): seconds of forward, backward and optimizer over so many rows.
        memory (`float`): GiB at most, of the process that measured it.
        core_share (`float`): of a core, that the process had while it measured on a CPU: well below 1, others keep the machine
            busy, and it is as many times faster when it is idle.
    """

    model: str
    parameters: int
    reads: float
    writes: float
    step_s: float
    step_rows: int
    memory: float
    core_share: float


def hours(student: Speed, teacher: Speed, args) -> dict[str, float]:
    """Hours of every stage of a run of this pair."""
    whole = args.prompt_tokens + args.tokens
    alone = args.prompt_tokens / student.reads + args.tokens / student.writes
    asked = CALLED * whole / teacher.reads + WRITTEN * args.tokens / teacher.writes
    learns = student.step_s / student.step_rows
    taught = args.prompt_tokens / teacher.reads + args.tokens / teacher.writes
    rollouts = args.grpo_steps * args.rollouts
    seconds = {
        "warm-up data": args.warmup_problems * (2 * alone + whole / teacher.reads + asked),
        "warm-up": 2 * args.warmup_problems * learns,
        "GRPO": rollouts * (alone + asked + learns),
        "GRPO without teacher": rollouts * (alone + learns),
        "evaluation": args.test_problems * (STUDENT_METHODS * (alone + asked) + TEACHER_METHODS * taught),
    }
    return {stage: value / 3600 for stage, value in seconds.items()}


def measure(args) -> Speed:
    """Reads, writes and trains with one model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    started, busy = time.perf_counter(), time.process_time()
    reads, writes = generation(args)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model = AutoModelForCausalLM.from_pretrained(args.child, dtype=args.dtype).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    step_s = step(model, args, device)
    share = (time.process_time() - busy) / (time.perf_counter() - started)
    return Speed(args.child, parameters, reads, writes, step_s, args.rows, most_memory(), share)


def generation(args) -> tuple[float, float]:
    """Tokens of prompts and of answers a second, in an engine that is gone when this returns."""
    import torch

    from relay_trl.engines.base import Sampling
    from relay_trl.engines.loading import load_engine

    options = {}
    if args.backend == "vllm":
        options = {"max_model_len": args.prompt_tokens + args.tokens + 64, "gpu_memory_utilization": 0.5}
    engine = load_engine(args.child, args.backend, dtype=args.dtype, **options)
    assert engine.vocabulary is not None
    never_ends = {token: -float("inf") for token in engine.vocabulary.eos_ids}
    most = len(engine.vocabulary.tokenizer)

    async def ask(tokens: int) -> tuple[float, int]:
        prompts = [torch.randint(most, (args.prompt_tokens,)).tolist() for _ in range(args.requests)]
        sampling = Sampling(seed=0, logit_bias=never_ends)
        started = time.perf_counter()
        answers = await asyncio.gather(*(engine.generate(prompt, tokens, (), sampling) for prompt in prompts))
        return time.perf_counter() - started, sum(len(answer.ids or ()) for answer in answers)

    async def measured():
        await ask(2)
        return await ask(1), await ask(args.tokens)

    (reading, _), (whole, written) = asyncio.run(measured())
    return args.requests * args.prompt_tokens / reading, (written - args.requests) / max(whole - reading, 1e-9)


def step(model, args, device) -> float:
    """Seconds of a step after the first: forward and backward over `args.rows`, a few at a time, and the optimizer."""
    import torch
    from peft import LoraConfig, get_peft_model

    if not args.full:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    ids = torch.randint(model.config.vocab_size, (args.rows, args.prompt_tokens + args.tokens), device=device)
    labels = ids.clone()
    labels[:, : args.prompt_tokens] = -100
    model.train()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for part in range(0, args.rows, args.rows_at_once):
            rows = slice(part, part + args.rows_at_once)
            model(input_ids=ids[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[-1]


def most_memory() -> float:
    """GiB, of the GPU where there is one, else of this process."""
    import resource

    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def parse_arguments() -> argparse.Namespace:
    from importlib.util import find_spec

    from relay_trl.engines.precision import has_bfloat16

    has_vllm = find_spec("vllm") is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="two or more folders or Hub ids")
    parser.add_argument("--hours", type=float, default=6.0, help="that a run may take (default: %(default)s)")
    parser.add_argument(
        "--backend",
        choices=["vllm", "transformers"],
        default="vllm" if has_vllm else "transformers",
        help="(default: vllm where it is installed, here %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16" if has_bfloat16() else "float32",
        help="(default: bfloat16 where the machine computes it, here %(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="train all weights, not an adapter of rank 16")
    parser.add_argument("--requests", type=int, default=32, help="at a time (default: %(default)s)")
    parser.add_argument("--prompt_tokens", type=int, default=96, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="of the training step (default: %(default)s)")
    parser.add_argument("--rows_at_once", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--warmup_problems", type=int, default=1000, help="of the run (default: %(default)s)")
    parser.add_argument("--grpo_steps", type=int, default=100, help="of the run (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=64, help="of a step of the run (default: %(default)s)")
    parser.add_argument("--test_problems", type=int, default=300, help="of the run (default: %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--child_output", help=argparse.SUPPRESS)
    add_output(parser, "machine")
    args = parser.parse_args()
    if len(set(args.models)) < 2:
        raise ValueError(f"--models is {' '.join(args.models)}; name at least two different models, for a pair.")
    return args


def main():
    args = parse_arguments()
    if args.child:
        Path(args.child_output).write_text(json.dumps(vars(measure(args))), encoding="utf-8")
        return
    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "speed.json")
        for model in dict.fromkeys(args.models):
            command = [sys.executable, __file__, *sys.argv[1:], "--child", model, "--child_output", str(found)]
            said = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if said.returncode:
                raise RuntimeError(f"{model} could not be measured: {' '.join(said.stderr.split())[-400:]}")
            speeds.append(Speed(**json.loads(found.read_text(encoding="utf-8"))))
            print(speeds[-1], flush=True)
    speeds.sort(key=lambda speed: speed.parameters)
    pairs = [
        {"student": student.model, "teacher": teacher.model, "hours": hours(student, teacher, args)}
        for student, teacher in combinations(speeds, 2)
    ]
    for pair in pairs:
        pair["total"] = sum(pair["hours"].values())
    columns = {
        "model": lambda s: s.model,
        "parameters, M": lambda s: s.parameters / 1e6,
        "reads, tokens/s": lambda s: s.reads,
        "writes, tokens/s": lambda s: s.writes,
        f"training step of {args.rows} rows, s": lambda s: s.step_s,
        "memory, GiB": lambda s: s.memory,
        "share of a core": lambda s: s.core_share,
    }
    of_pair = {
        "student": lambda p: p["student"],
        "teacher": lambda p: p["teacher"],
        **{f"{stage}, h": lambda p, stage=stage: p["hours"][stage] for stage in pairs[0]["hours"]},
        "whole run, h": lambda p: p["total"],
        f"fits in {args.hours:g} h": lambda p: "yes" if p["total"] <= args.hours else "no",
    }
    how = "all weights" if args.full else "an adapter of rank 16"
    note = (
        f"{args.backend}, {args.dtype}, {args.requests} requests at a time, {args.prompt_tokens} + {args.tokens} tokens, "
        f"training of {how}; a run of {args.warmup_problems} warm-up problems, {args.grpo_steps} steps of {args.rollouts} "
        f"rollouts with a teacher and as many without, {args.test_problems} test problems. {machine()}"
    )
    text = "\n\n".join([table(columns, speeds), table(of_pair, pairs), note])
    data = {"speeds": [vars(speed) for speed in speeds], "pairs": pairs, "arguments": vars(args)}
    save(args.output_dir, "machine", data, text)
    fitting = [pair for pair in pairs if pair["total"] <= args.hours]
    if not fitting:
        least = min(pairs, key=lambda pair: pair["total"])
        raise ValueError(
            f"No pair fits in {args.hours:g} hours on this machine: {least['student']} with {least['teacher']} takes about "
            f"{least['total']:.1f}. Take smaller models, fewer --grpo_steps, or a longer run with --hours."
        )
    largest = max(fitting, key=lambda pair: pair["total"])
    print(f"The largest that fits: {largest['student']} with {largest['teacher']}, {largest['total']:.1f} hours.")


if __name__ == "__main__":
    run(main)
