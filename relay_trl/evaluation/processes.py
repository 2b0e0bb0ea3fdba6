"""Shares an evaluation between processes: each asks a shard of the problems and writes its own files.

Owns how they are started, their devices, the common progress bar, and what happens when one fails. Every answer has its own
seed, so the answers are the same as with one process.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..cli.progress import Bar
from .answer_files import answer_files

_POLL_S = 0.5


def run_shards(command: Sequence[str], count: int, folder: str | Path, total: int) -> None:
    """Runs `command` in `count` processes, the k-th with `--shard k/count`, and waits for all of them.

    Args:
        command (`Sequence[str]`): a script of ours and its arguments.
        count (`int`): number of processes. If there are GPUs, each process sees one of them, in turn.
        folder (`str` or `Path`): the run's folder, for the bar.
        total (`int`): number of answers of the run.

    Raises:
        RuntimeError: one of them failed. The others are ended then; a new run resumes from their answers.
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
    with Bar("answers", total, _count(folder)) as bar:
        while True:
            is_over = all(child.poll() is not None for child in children)  # before the last count
            bar.advance(_count(folder) - bar.done)
            if is_over or any(child.poll() for child in children):
                return
            time.sleep(_POLL_S)


def _count(folder: Path) -> int:
    """Number of lines after the headers."""
    lines = 0
    for path in answer_files(folder):
        with open(path, "rb") as file:
            lines += max(0, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1)
    return lines


def _devices() -> list[str]:
    """The devices in CUDA_VISIBLE_DEVICES, else the numbers of all GPUs; empty without GPUs."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device.strip()]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]
