"""Trains the arithmetic pair whole, and again and again with a SIGKILL somewhere and `auto` afterwards; prints what became of it.

    python tests/killed_runs.py FOLDER

Every training runs in a forked child, so that the libraries are imported once. No child is forked once this process has
trained: torch's autograd does not survive that.
"""

import json
import os
import signal
import sys
from pathlib import Path

from safetensors.torch import load_file
from trainers_for_tests import grpo_config, grpo_trainer, rows
from transformers import TrainerCallback

STEPS = 5


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
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        temperature=1.2,
        lr_scheduler_type="linear",
        learning_rate=2e-4,
        eval_strategy="steps",
        eval_steps=2,
        weight_decay=0.01,
    )  # five steps of two prompts are more than one epoch of eight rows
    trainer = grpo_trainer(args, train=rows(8), eval_dataset=rows(2, "validation"), callbacks=[Death(place, step)])
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


def forked(*args, **kwargs):
    """How a child that trains ended: 0, or minus the number of its signal."""
    child = os.fork()
    if child == 0:
        train(*args, **kwargs)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def history(folder):
    """What was logged of each step, times left out."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    keys = ("loss", "relay/accuracy", "reward", "learning_rate", "eval_relay/accuracy", "step", "epoch", "num_tokens")
    return [{key: entry[key] for key in keys if key in entry} for entry in log if "train_runtime" not in entry]


def main(folder):
    whole = folder / "whole"
    found = {"whole": forked(whole)}
    for name, (place, step) in PLACES.items():
        own = folder / name
        died = forked(own, place, step)
        left = sorted(path.name for path in own.glob("checkpoint-*"))
        went_on = forked(own, resume="auto")
        ours, theirs = (load_file(path / "model.safetensors") for path in (whole, own))
        differs = max((ours[key] - theirs[key]).abs().max().item() for key in ours)
        is_same = history(own) == history(whole)
        found[name] = {"died": died, "left": left, "went on": went_on, "differs": differs, "history": is_same}
    found["steps"] = [entry["step"] for entry in history(whole) if "loss" in entry]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
