"""Runs small GRPO trainings in as many processes as it is launched with, and writes down what each process arrived at.

    accelerate launch --config_file accelerate_configs/cpu_2.yaml tests/distributed/group_rewards.py FOLDER STUDENT

Rollouts follow plans chosen by their seeds, or are the model's own: in neither case do they know of processes.
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import trainers_for_tests  # noqa: E402
from trainers_for_tests import grpo_config, grpo_trainer, rows  # noqa: E402

from relay_trl.rollouts import RolloutReader  # noqa: E402

PLANS = ("right", "call, right", "wrong", "call, wrong", "call, broken")
GROUP = 8

# What differs between the runs; each is of two steps. The global batch is what counts, not its share per process.
RUNS = {
    "a group across the processes": {"batch": GROUP},
    "two groups": {"batch": 2 * GROUP},
    "micro-batches": {"batch": GROUP, "steps_per_generation": 2, "gradient_accumulation_steps": 2},
    "the model's own words": {"batch": GROUP, "is_planned": False},
}


def choose(problem, seed):
    return PLANS[seed % len(PLANS)]


class Recorder:
    """A per-rollout reward that keeps the completions of this process's share, batch by batch."""

    __name__ = "recorder"

    def __init__(self):
        self.batches = []

    def __call__(self, prompts, completion_ids, **columns):
        self.batches.append([[prompt, list(ids)] for prompt, ids in zip(prompts, completion_ids, strict=True)])
        return [0.0] * len(prompts)


def run(folder, name, num_processes):
    """One training; returns what this process holds at its end."""
    options = dict(RUNS[name])
    is_planned = options.pop("is_planned", True)
    recorder = Recorder()
    args = grpo_config(
        folder,
        num_generations=GROUP,
        per_device_train_batch_size=options.pop("batch") // num_processes,
        per_device_eval_batch_size=8 // num_processes,
        num_generations_eval=4,
        eval_strategy="steps",
        eval_steps=2,
        max_teacher_failures=1.0,
        temperature=1.3,
        reward_weights=[1.0, 0.0],
        **options,
    )
    trainer = grpo_trainer(
        args, choose if is_planned else None, eval_dataset=rows(4, "validation"), extra_rewards=[recorder]
    )
    seen, original = {"advantages": [], "rewards": []}, trainer.log

    def log(logs, *rest):
        # kept from step to step by TRL, the newest last
        seen["advantages"].append(list(trainer._logs["advantages"]))
        seen["rewards"].append([None if r != r else r for r in trainer._logs["rewards"]["difficulty_aware"]])
        return original(logs, *rest)

    trainer.log = log
    trainer.train()
    metrics = [
        {key: value for key, value in entry.items() if "relay/" in key and not key.endswith("_s")}
        for entry in trainer.state.log_history
    ]
    weights = {key: value.double().norm().item() for key, value in trainer.model.state_dict().items()}
    trainer.accelerator.wait_for_everyone()
    files = RolloutReader(folder).poll()[1]
    trainer.accelerator.wait_for_everyone()  # or the next run's files would begin already
    return {**seen, "metrics": metrics, "rollouts": recorder.batches, "weights": weights, "files": files}


def main(folder, student):
    # Only one of several processes would write the model, each into a folder of its own
    trainers_for_tests.student_folder = lambda: student
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    found = {name: run(folder, name, num_processes) for name in RUNS}
    (Path(folder) / f"rank_{rank}_of_{num_processes}.json").write_text(json.dumps(found))
    if num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
