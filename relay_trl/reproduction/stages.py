"""Runs recipes as a user would: each in its own process, and only if its result does not exist.

Owns how a recipe is started. `recipes/reproduce.py` chooses the recipes.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

_LAUNCH = ("-m", "accelerate.commands.launch", "-q", "--config_file", "accelerate_configs/cpu.yaml")

_TRAINING = ("sft_warmup", "grpo_relay")
"""Recipes that are started with accelerate."""

_running: dict[Path, threading.Lock] = {}
"""Held while a result is made, so that two threads that need the same warm-up make it once."""


def stage(
    title: str,
    result: Path,
    recipe: str,
    configs: Path,
    config: str | None = None,
    log: Path | None = None,
    **options: object,
) -> bool:
    """Runs a recipe unless its `result` exists. Several threads may do this at the same time.

    Args:
        title (`str`): the text to print.
        result (`Path`): the file that the recipe writes last.
        recipe (`str`): its name in `recipes/`, without suffix.
        configs (`Path`): the folder of its YAML.
        config (`str`, *optional*): the name of its YAML, without suffix; `None`: the recipe's name.
        log (`Path`, *optional*): file for the recipe's output; `None`: the terminal.
        options: override those of the YAML; an option that is `None` is left out.

    Returns:
        `bool`: whether it ran.

    Raises:
        RuntimeError: the recipe failed.
    """
    with _running.setdefault(result, threading.Lock()):
        if result.exists():
            print(f"== {title}: kept {result}", flush=True)
            return False
        print(f"== {title}", flush=True)
        started = time.perf_counter()
        code = _launch(recipe, configs / f"{config or recipe}.yaml", options, log)
        if code != 0:
            told = f"its error is in {log}: {_end_of(log)}" if log else "its error is above."
            raise RuntimeError(f"The stage '{title}' failed; {told}")
        print(f"   {f'{title}: ' if log else ''}{time.perf_counter() - started:.0f} s\n", flush=True)
        return True


def _launch(recipe: str, config: Path, options: dict[str, object], log: Path | None) -> int:
    """Runs a recipe to its end and returns its exit code."""
    is_training = recipe in _TRAINING
    command = [sys.executable, *(_LAUNCH if is_training else ()), f"recipes/{recipe}.py", "--config", str(config)]
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            command += [f"--{name}", *map(str, values)]
    # Waiting threads must not spin: with other work on the machine, steps would take ten times as long. Decoding with such
    # small models is faster on one thread. Training is not, and accelerate chooses its threads itself
    env = {"OMP_WAIT_POLICY": "PASSIVE", **({} if is_training else {"OMP_NUM_THREADS": "1"}), **os.environ}
    if log is None:
        return subprocess.run(command, env=env).returncode
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT).returncode


def _end_of(log: Path) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "(nothing was printed)")
