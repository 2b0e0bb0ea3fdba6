"""Asynchronous training against synchronous training, with a teacher that is slow to answer: seconds of as many steps.

    python benchmarks/async_training.py

The arithmetic pair after its warm-up, its teacher in process and every answer of it `--latencies_ms` late. Both ways take the same
problems, batch, reward, learning rate and loss (clipped, a mean over tokens, no KL term). Every training runs in a process of its own;
the ways take turns. What is timed is the training from its begin to its last step, without the imports of its processes. Afterwards
each student answers the validation problems.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tables import add_output, machine, save, table

from relay_trl.cli.endings import run

WAYS = ("synchronous", "asynchronous")
PAIR = Path(__file__).parents[1] / "data" / "arithmetic"


class Late:
    """An engine whose answers come some seconds later."""

    def __init__(self, engine, latency_s: float):
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context
        self._engine, self._latency_s = engine, latency_s

    async def generate(self, *args, **kwargs):
        await asyncio.sleep(self._latency_s)
        return await self._engine.generate(*args, **kwargs)


def late_teacher(latency_s: float) -> Late:
    from relay_trl.engines.loading import load_engine

    return Late(load_engine(str(PAIR / "teacher")), latency_s)


def late_engines(config, tokenizer, latency_s: float):
    """Student and teacher for the process of the rollouts."""
    from relay_trl.training.async_student import load_engines

    config.teacher = None
    return load_engines(config, str(PAIR / "warmed_up"), tokenizer, [tokenizer.eos_token_id])[0], late_teacher(
        latency_s
    )


def train(way: str, latency_s: float, args):
    """One training; leaves `result.json` in the output folder."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    from relay_trl.data.arithmetic import problems

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.took = time.perf_counter() - self.began

    student = str(PAIR / "warmed_up")
    options = dict(
        output_dir=args.child_dir,
        teacher=str(PAIR / "teacher"),
        answer_marker="#",
        num_generations=8,
        per_device_train_batch_size=args.rollouts,
        max_prompt_length=16,
        max_completion_length=48,
        max_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        scale_rewards="none",
        rho_of="group",
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=args.seed,
    )
    rows = [{name: row[name] for name in ("prompt", "answer")} for row in problems("train", 8192, 0)]
    given = {"train_dataset": Dataset.from_list(rows), "processing_class": AutoTokenizer.from_pretrained(student)}
    if way == "synchronous":
        from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer

        config = RelayGRPOConfig(**options, loss_type="bnpo", beta=0.0)
        trainer = RelayGRPOTrainer(student, config, teacher=late_teacher(latency_s), **given)
    else:
        from relay_trl.training import RelayAsyncGRPOConfig, RelayAsyncGRPOTrainer

        config = RelayAsyncGRPOConfig(**options, max_staleness=args.max_staleness)
        engines = partial(late_engines, config, given["processing_class"], latency_s)
        trainer = RelayAsyncGRPOTrainer(student, config, engines=engines, **given)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    trainer.save_model(args.child_dir)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "took_s": clock.took,
        "dropped": sum(entry.get("sample/dropped_stale_total") or 0 for entry in logs) / (args.rollouts * args.steps),
        "staleness": logs[-1].get("sample/token_staleness"),
        "trained_s": sum(entry.get("perf/fwd_bwd_s", 0) for entry in logs),
        "waited_s": sum(entry.get("perf/rollout_wait_s", 0) for entry in logs),
        **validate(args.child_dir, args.validation),
    }
    Path(args.child_dir, "result.json").write_text(json.dumps(found), encoding="utf-8")


def validate(student: str, count: int) -> dict[str, float]:
    """Accuracy and teacher share of a student on the validation problems, sampled as in training."""
    from relay_trl.data.arithmetic import problems
    from relay_trl.engines.transformers import TransformersEngine
    from relay_trl.grading.grader import Grader
    from relay_trl.prompts import RunPrompts
    from relay_trl.relay import RelayRules
    from relay_trl.training.rollouts import Rollouts, rollout_seed

    engine, teacher = TransformersEngine.load(student), late_teacher(0.0)
    rows = problems("validation", count, 0)
    prompts = RunPrompts(engine.vocabulary.tokenizer, teacher)
    seeds = [rollout_seed(0, "validation", k) for k in range(count)]
    traces = Rollouts(prompts, RelayRules(48), teacher).run([row["prompt"] for row in rows], seeds, engine)
    with Grader("#") as grader:
        correct = grader.grade([trace.answer for trace in traces], [row["answer"] for row in rows])
    return {"accuracy": sum(correct) / count, "rho": sum(trace.teacher_share for trace in traces) / count}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latencies_ms", type=int, nargs="+", default=[0, 250, 1000], help="(default: 0 250 1000)")
    parser.add_argument("--steps", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=256, help="of a step (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="(default: %(default)s)")
    parser.add_argument("--max_staleness", type=int, default=4, help="of the asynchronous way (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="each with a seed of its own (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=1024, help="problems (default: %(default)s)")
    for name in ("child", "child_dir"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--latency_ms", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    add_output(parser, "async_training")
    args = parser.parse_args()
    if args.child:
        train(args.child, args.latency_ms / 1000, args)
        return
    start = validate(str(PAIR / "warmed_up"), args.validation)
    rows = [{"latency_ms": latency, **{way: [] for way in WAYS}} for latency in args.latencies_ms]
    for seed in range(args.runs):
        for row in rows:
            for way in WAYS:
                with tempfile.TemporaryDirectory() as folder:
                    more = [
                        "--child",
                        way,
                        "--child_dir",
                        folder,
                        "--latency_ms",
                        str(row["latency_ms"]),
                        "--seed",
                        str(seed),
                    ]
                    command = [sys.executable, __file__, *sys.argv[1:], *more]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    row[way].append(json.loads(Path(folder, "result.json").read_text(encoding="utf-8")))
                print(f"{row['latency_ms']} ms, {way}: {row[way][-1]}", flush=True)

    def every(way: str, name: str, factor: float = 1.0):
        return lambda row: [found[name] * factor for found in row[way]]

    columns = {
        "ms": lambda row: f"{row['latency_ms']}",
        "synchronous, s": every(WAYS[0], "took_s"),
        "asynchronous, s": every(WAYS[1], "took_s"),
        "times faster": lambda row: [
            a["took_s"] / b["took_s"] for a, b in zip(row[WAYS[0]], row[WAYS[1]], strict=True)
        ],
        "accuracy, %": every(WAYS[0], "accuracy", 100),
        "asynchronous, %": every(WAYS[1], "accuracy", 100),
        "teacher share, %": every(WAYS[0], "rho", 100),
        "asynchronous share, %": every(WAYS[1], "rho", 100),
        "dropped, %": every(WAYS[1], "dropped", 100),
    }
    text = (
        f"{args.steps} steps of {args.rollouts} rollouts, {args.runs} seeds. Before: accuracy {start['accuracy']:.1%}, teacher share "
        f"{start['rho']:.1%}.\n\n{table(columns, rows)}\n\n{machine()}"
    )
    save(args.output_dir, "async_training", {"before": start, "rows": rows}, text)


if __name__ == "__main__":
    run(main)
