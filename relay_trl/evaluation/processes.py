"""Several processes share an evaluation: each asks its part of the problems and writes files of its own.

Owns starting them, their devices, one bar for all of them, and what happens when one fails. The answers are the same as
one process would give: every answer has a seed of its own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .answer_files import answer_files

_POLL_S = 0.5


def run_parts(command: Sequence[str], count: int, folder: str | Path, total: int) -> None:
    """Runs `command` in `count` processes, the k-th with `--shard k/count`, and waits for all of them.

    Args:
        command (`Sequence[str]`): a script of ours and its arguments.
        count (`int`): processes. Where there are GPUs, each sees one of them, in turn.
        folder (`str` or `Path`): the run's, for the bar.
        total (`int`): answers of the run.

    Raises:
        RuntimeError: one of them failed; the others are ended then, and a new run goes on with what is there.
    """
    devices = _devices()
    children = []
    try:
        for k in range(count):
            environment = dict(os.environ)
            if devices:
                environment["CUDA_VISIBLE_DEVICES"] = devices[k % len(devices)]
            part = [sys.executable, *command, "--shard", f"{k}/{count}"]
            children.append(subprocess.Popen(part, env=environment, stdout=subprocess.DEVNULL))
        _watch(children, Path(folder), total)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    failed = [k for k, child in enumerate(children) if child.returncode != 0]
    if failed:
        raise RuntimeError(
            f"The processes {', '.join(map(str, failed))} of {count} did not end well; their errors are above. Run again "
            "to go on with the answers that are there."
        )


def _watch(children: list[subprocess.Popen], folder: Path, total: int) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        while any(child.poll() is None for child in children):
            progress.update(task, completed=_count(folder))
            if any(child.poll() for child in children):
                return
            time.sleep(_POLL_S)
        progress.update(task, completed=_count(folder))


def _count(folder: Path) -> int:
    """Lines behind the headers."""
    lines = 0
    for path in answer_files(folder):
        with open(path, "rb") as file:
            lines += max(0, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1)
    return lines


def _devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, else the numbers of all GPUs; empty without any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device.strip()]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]
