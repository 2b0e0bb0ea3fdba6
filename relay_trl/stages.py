"""Recipes one after the other, as a user would run them: each in a process of its own, and not again if its result is there.

Owns how a recipe is started; which recipes make a whole is the business of `recipes/quickstart.py` and `reproduce.py`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

_LAUNCH = ("-m", "accelerate.commands.launch", "-q", "--config_file", "accelerate_configs/cpu.yaml")

_TRAINING = ("sft_warmup", "grpo_relay")
"""Recipes that accelerate launches."""


def stage(title: str, result: Path, recipe: str, configs: Path, config: str | None = None, **options: object):
    """Runs a recipe unless its `result` is there.

    Args:
        title (`str`): what is printed.
        result (`Path`): the file that the recipe writes last.
        recipe (`str`): its name in `recipes/`, without the ending.
        configs (`Path`): the folder of its YAML.
        config (`str`, *optional*): the name of its YAML, without the ending; `None` has the recipe's.
        options: over those of the YAML; `None` leaves one out.

    Raises:
        RuntimeError: the recipe failed.
    """
    if result.exists():
        print(f"== {title}: kept {result}", flush=True)
        return
    print(f"== {title}", flush=True)
    started = time.perf_counter()
    is_training = recipe in _TRAINING
    command = [sys.executable, *(_LAUNCH if is_training else ()), f"recipes/{recipe}.py"]
    command += ["--config", str(configs / f"{config or recipe}.yaml")]
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            command += [f"--{name}", *map(str, values)]
    # Threads that wait must not spin: beside other work on the machine that makes a step ten times as long. Decoding so
    # small a model is faster on one thread; training is not, and accelerate picks its threads itself
    env = {"OMP_WAIT_POLICY": "PASSIVE", **({} if is_training else {"OMP_NUM_THREADS": "1"}), **os.environ}
    if subprocess.run(command, env=env).returncode != 0:
        raise RuntimeError(f"The stage '{title}' failed; its error is above.")
    print(f"   {time.perf_counter() - started:.0f} s\n", flush=True)
