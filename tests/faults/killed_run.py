"""A training run whose process is killed again and again, for `test_killed_trainer.py`; libraries are loaded only once.

    python tests/faults/killed_run.py FOLDER KILLS SEED

Every life is a fork of this process that trains the arithmetic student with its real teacher, from the newest whole
checkpoint on; SIGKILL comes at a random moment after it has begun. The last life is left alone. Prints a line of JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from trainers_for_tests import PAIR, grpo_config, grpo_trainer, rows

from relay_trl.engines.transformers import TransformersEngine

STEPS = 8
TRAIN = rows(32)


def live(folder: Path):
    """One life: what is left of the run, and then its weights and its log in files beside the checkpoints."""
    torch.set_num_threads(1)
    fields = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "max_zero_variance": 1.0,
    }
    args = grpo_config(folder, **fields, max_truncated=1.0, max_malformed=1.0, max_grad_norm=1.0)
    trainer = grpo_trainer(args, teacher=TransformersEngine.load(str(PAIR / "teacher")), train=TRAIN)
    trainer.train(resume_from_checkpoint="auto")
    torch.save(trainer.model.state_dict(), folder / "weights.tmp")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    os.replace(folder / "weights.tmp", folder / "weights")


def newest(folder: Path) -> int:
    return max((int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def main():
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    folder.mkdir(parents=True)
    killed, at = 0, []
    step_s = 1.0
    while not (folder / "weights").exists():
        reached = newest(folder)
        child = os.fork()
        if child == 0:
            try:
                live(folder)
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        began = time.monotonic()
        if killed < kills:
            # One more checkpoint than before now and then, or the run would never end; and then some part of a step
            goal = reached + (chance.random() < 0.4) if reached < STEPS - 1 else reached
            while os.waitpid(child, os.WNOHANG) == (0, 0) and newest(folder) < goal and time.monotonic() < began + 60:
                time.sleep(0.002)
            step_s = 0.5 * step_s + 0.5 * min(3.0, time.monotonic() - began)
            time.sleep(chance.uniform(0, step_s))
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
            at.append(newest(folder))
        try:
            _, status = os.waitpid(child, 0)
        except ChildProcessError:
            continue
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            sys.exit("A life ended by itself.")
    print(json.dumps({"killed": killed, "at": at}), flush=True)


if __name__ == "__main__":
    main()
