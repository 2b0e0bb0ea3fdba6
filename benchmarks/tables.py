"""What the benchmarks share: a description of the machine, Markdown tables of medians and spreads, and output files."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def add_output(parser: argparse.ArgumentParser, name: str):
    """Adds the option for the folder of `name`.json and `name`.md."""
    parser.add_argument(
        "--output_dir", default="runs/benchmarks", help=f"gets {name}.json and {name}.md (default: %(default)s)"
    )


def machine() -> str:
    """The hardware and its load, in one sentence."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    load = f", load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return f"{len(CORES)} {platform.machine()} cores, {', '.join(gpus) or 'no GPU'}{load}."


def cell(value: Any, digits: int = 2) -> str:
    """A text unchanged, or the median of a list of numbers with the smallest and the largest."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"{statistics.median(value):.{digits}f} [{min(value):.{digits}f}, {max(value):.{digits}f}]"
    return "-" if value is None else f"{value:.{digits}f}"


def table(columns: dict[str, Callable[[Any], Any]], rows: list, digits: int = 2) -> str:
    """A Markdown table: one column per title, whose function gives a row's cell."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(column(row), digits) for column in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def save(folder: str, name: str, data: dict, text: str):
    """Writes and prints a benchmark's results."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (path / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nwritten to {path}/{name}.md and .json", flush=True)
