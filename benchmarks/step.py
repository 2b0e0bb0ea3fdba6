"""Where a GRPO step's time goes: plain TRL, and relays with and without calls, for completions of the same length.

    python benchmarks/step.py

A random model that cannot end an answer writes `--tokens` tokens in every rollout, in TRL's colocated vLLM engine. In the way
with calls, a schedule inserts commands and the teacher answers at once, so that only the relay's own work is added. Every way
runs in its own process; the ways take turns. `--profile_steps N` of recipes/grpo_relay.py prints the same table for your run.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tables import add_output, machine, save, table
from workload import SIZES, SYNTAX, Instant, Plan, Scheduled, make_model, vocabulary_of

from relay_trl.cli.endings import run
from relay_trl.training.profile import GRADING, RELAY, REST, SECTIONS, StepProfiler

WAYS = ("TRL", "relay, no calls", "relay, 2 calls each")
CALL_TOKENS = 8


class EveryRollout:
    """A student that calls twice in every rollout, at a third and at two thirds of its tokens."""

    def __init__(self, engine, tokens: int):
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context
        self._engine, self._tokens, self._rollouts = engine, tokens, {}

    async def generate(self, context, max_tokens, stop=(), sampling=None):
        rollout = asyncio.current_task()
        if rollout not in self._rollouts:
            commands = 2 * (len(SYNTAX.render(CALL_TOKENS)) + CALL_TOKENS)
            third = (self._tokens - commands) // 3
            turns = [third, third, self._tokens - commands - 2 * third]
            self._rollouts[rollout] = Scheduled(self._engine, Plan([], turns, [CALL_TOKENS] * 2))
        answer = await self._rollouts[rollout].generate(context, max_tokens, stop, sampling)
        return replace(answer)


def train(way: str, model: str, args):
    """One training of `args.steps` steps after the first; leaves `profile.json` in the output folder."""
    from datasets import Dataset
    from trl import GRPOTrainer

    from relay_trl.grading.grader import Grader
    from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer
    from relay_trl.training.student_engine import engine_options
    from relay_trl.training.vllm_weights import sync_weights_on_cpu

    draw = random.Random(0)
    problems = [f"{draw.randrange(10**6)} + {draw.randrange(10**6)} = " * 3 for _ in range(256)]
    rows = Dataset.from_list([{"prompt": problem, "answer": "42"} for problem in problems])
    config = RelayGRPOConfig(
        output_dir=args.child_dir,
        answer_marker="#",
        use_vllm=True,
        vllm_mode="colocate",
        num_generations=8,
        per_device_train_batch_size=args.batch,
        max_completion_length=args.tokens,
        vllm_max_model_length=args.tokens + 256,
        vllm_gpu_memory_utilization=0.3,
        max_steps=args.steps + 1,
        learning_rate=1e-6,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        rollouts_max_mb=0,
        max_truncated=1.0,  # no answer ends, and none is right
        max_zero_variance=1.0,
        dataloader_pin_memory=False,
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if way == "TRL":
        grader = Grader("#")

        def accuracy(completions, answer, **kwargs):
            return [float(verdict) for verdict in trainer.grader.grade(completions, answer)]

        with engine_options(config, model):
            trainer = GRPOTrainer(
                model=model, reward_funcs=accuracy, args=config, train_dataset=rows, processing_class=tokenizer
            )
        trainer.grader = grader
        if trainer.accelerator.device.type == "cpu":
            sync_weights_on_cpu(trainer)  # without it, the engine would keep its old weights
    else:
        vocabulary = vocabulary_of(model)
        teacher = Instant(vocabulary) if "calls each" in way else None
        config.teacher = teacher and "instant"
        trainer = RelayGRPOTrainer(
            model=model, args=config, train_dataset=rows, processing_class=tokenizer, teacher=teacher
        )
        if teacher:
            from relay_trl.engines.vllm import VLLMEngine

            engine = VLLMEngine(trainer.vllm_generation.llm, vocabulary)
            trainer._engines["student"] = EveryRollout(engine, args.tokens)
            trainer.add_callback(StepProfiler(trainer, args.steps, student=engine))
    if way != WAYS[2]:
        trainer.add_callback(StepProfiler(trainer, args.steps))
    trainer.train()
    trainer.grader.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large", help="of the student (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=160, help="of a completion (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="rollouts a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="timed in each run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--child_model", help=argparse.SUPPRESS)
    parser.add_argument("--child_dir", help=argparse.SUPPRESS)
    add_output(parser, "step")
    args = parser.parse_args()
    if args.child:
        train(args.child, args.child_model, args)
        return
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder, "model"), *SIZES[args.size][0], most=args.tokens + 512, seed=0)
        for _ in range(args.runs):
            for way in WAYS:
                command = [sys.executable, __file__, *sys.argv[1:], "--child", way, "--child_model", model]
                subprocess.run([*command, "--child_dir", folder], check=True, stdout=subprocess.DEVNULL)
                found[way].append(json.loads(Path(folder, "profile.json").read_text(encoding="utf-8")))
                print(f"{way}: {found[way][-1]}", flush=True)
    rows = [{"name": name, **{way: [p["sections_s"][name] for p in found[way]] for way in WAYS}} for name in SECTIONS]
    rows = [row for row in rows if any(max(row[way]) > 0 for way in WAYS)]
    rows.append({"name": "step", **{way: [p["step_s"] for p in found[way]] for way in WAYS}})
    own = {
        way: [sum(p["sections_s"][n] for n in (RELAY, GRADING, REST)) / p["step_s"] for p in found[way]] for way in WAYS
    }
    columns = {"seconds of a step": lambda row: row["name"], **{way: lambda row, way=way: row[way] for way in WAYS}}
    share = {"": lambda row: f"{', '.join((RELAY, GRADING, REST))}, % of the step"}
    share |= {way: lambda row, way=way: [100 * value for value in row[way]] for way in WAYS}
    note = (
        f"Median [smallest, largest] of {args.runs} runs of {args.steps} steps after the first; {args.batch} rollouts of "
        f"{args.tokens} tokens a step, student `{args.size}`. {machine()}"
    )
    text = "\n\n".join([table(columns, rows, digits=3), table(share, [own]), note])
    save(args.output_dir, "step", {"profiles": found, "arguments": vars(args)}, text)


if __name__ == "__main__":
    run(main)
