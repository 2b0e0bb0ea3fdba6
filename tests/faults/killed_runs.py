"""Compares trainings of the arithmetic pair that are killed with SIGKILL and resumed with an uninterrupted one.

    python tests/faults/killed_runs.py FOLDER              # at four chosen places and two random moments
    python tests/faults/killed_runs.py FOLDER --random 20  # at 20 random moments only

Every training runs in a forked child, so that the libraries are imported only once. This process itself must not train before
it forks, because torch's autograd does not survive a fork.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from safetensors.torch import load_file
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.trainers import grpo_config, grpo_trainer, rows  # noqa: E402

STEPS = 7


class Death(TrainerCallback):
    """Kills the process when `place` comes."""

    def __init__(self, place, step):
        self.place, self.step = place, step

    def on_step_begin(self, args, state, control, **kwargs):
        self._die("begin", state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self._die("end", state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self._die("saved", state.global_step)

    def _die(self, place, step):
        if (place, step) == (self.place, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


PLACES = {
    "before anything was saved": ("end", 1),
    "in the middle of a step": ("begin", 3),
    "when a checkpoint was whole": ("saved", 4),
    "while a checkpoint was written": ("writing", 4),
}


def train(folder, place=None, step=None, resume=None):
    args = grpo_config(
        folder,
        max_steps=STEPS,
        num_generations=8,
        per_device_train_batch_size=64,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        temperature=1.8,
        lr_scheduler_type="linear",
        learning_rate=2e-4,
        eval_strategy="steps",
        eval_steps=2,
        weight_decay=0.01,
    )  # seven steps of eight prompts are more than one epoch of 32 rows, and some group of each has answers of both kinds
    trainer = grpo_trainer(args, train=rows(32), eval_dataset=rows(2, "validation"), callbacks=[Death(place, step)])
    if place == "writing":
        original = trainer._save_rng_state

        def save(output_dir):
            original(output_dir)
            if trainer.state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer._save_rng_state = save
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder))
    trainer.save_state()


def forked(*args, dies_after_s=None, **kwargs):
    """How a child that trains ended: 0, or minus the number of its signal."""
    child = os.fork()
    if child == 0:
        train(*args, **kwargs)
        os._exit(0)
    if dies_after_s is not None:
        time.sleep(dies_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def history(folder):
    """What was logged of each step, times left out."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    keys = (
        "loss",
        "relay/accuracy",
        "reward",
        "learning_rate",
        "eval_relay/accuracy",
        "step",
        "epoch",
        "num_tokens",
        "grad_norm",
    )
    return [{key: entry[key] for key in keys if key in entry} for entry in log if "train_runtime" not in entry]


def compared(whole, own, died):
    """What a run that died left behind, and how it ends beside the whole one."""
    left = sorted(path.name for path in own.glob("checkpoint-*"))
    went_on = forked(own, resume="auto")
    ours, theirs = (load_file(path / "model.safetensors") for path in (whole, own))
    differs = max((ours[key] - theirs[key]).abs().max().item() for key in ours)
    is_same = history(own) == history(whole)
    return {"died": died, "left": left, "went on": went_on, "differs": differs, "history": is_same}


def main(folder, moments, seed):
    whole, started = folder / "whole", time.monotonic()
    found = {"whole": forked(whole)}
    whole_s = time.monotonic() - started
    steps = [entry for entry in history(whole) if "loss" in entry]
    found["steps"], found["gradients"] = ([entry[key] for entry in steps] for key in ("step", "grad_norm"))
    for name, (place, step) in {} if moments > 2 else PLACES.items():
        found[name] = compared(whole, folder / name, forked(folder / name, place, step))
    chance, found["moments"] = random.Random(seed), []
    for k in range(moments):
        own, moment = folder / f"moment_{k}", chance.uniform(0.0, 0.95 * whole_s)
        while (died := forked(own, dies_after_s=moment)) == 0:  # it was quicker than the whole one
            shutil.rmtree(own)
            moment *= 0.7
        found["moments"].append({"after_s": moment, **compared(whole, own, died)})
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", type=int, default=2, help="random moments; above 2 the four places are left out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.folder, given.random, given.seed)
