"""What `relay-trl train --dry-run` prints: the stages as commands, batches, memory, and the teacher's tokens and their price.

Owns the output. `planning/` has the arithmetic. Nothing is started and no model is loaded.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from ..costs import load_costs
from ..data.config import DataConfig
from ..planning import report
from ..training import RelayGRPOConfig, RelaySFTConfig
from .expand import Stage, server_words
from .pair import Pair
from .sections import SECTIONS


def print_plan(pair: Pair, stages: Sequence[Stage], wanted: Sequence[str] | None):
    """Prints what a run would do."""
    for number, stage in enumerate(stages, start=1):
        if wanted is not None and stage.section not in wanted:
            continue
        done = "   (finished, and kept)" if stage.result is not None and stage.result.exists() else ""
        print(f"{number}. {stage.name}: {SECTIONS[stage.section].title}{done}")
        if stage.serve is not None:
            devices = f"CUDA_VISIBLE_DEVICES={stage.teacher_devices} " if stage.teacher_devices else ""
            print(f"   the teacher: {devices}{' '.join(server_words(pair, stage.serve))}")
        print(f"   {stage.line()}")
        if stage.launch:
            _print_training(pair, stage)
        print()
    print("Nothing was started: leave --dry-run out to start it.")


def _print_training(pair: Pair, stage: Stage):
    words = list(stage.launch)
    processes = int(words[words.index("--num_processes") + 1]) if "--num_processes" in words else None
    memory = pair.profile.gpu_memory
    teacher = pair.teacher if "teacher" in stage.settings and "://" not in pair.teacher else None
    config = SimpleNamespace(
        accelerate_config=words[0],
        num_processes=processes,
        gpu_memory=memory,
        student=pair.student,
        teacher=teacher,
        mean_prompt=None,
        mean_tokens=None,
        rho=0.01,
        calls=1.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{stage.name}.yaml")
        path.write_text(stage.text(), encoding="utf-8")
        options = report.Options(str(path), [RelayGRPOConfig, DataConfig], [RelaySFTConfig])
        report.print_training(config, options)
    if stage.section == "grpo" and stage.settings.get("teacher"):
        _print_teacher(pair, stage, options, config, processes or 1)


def _print_teacher(pair: Pair, stage: Stage, options: report.Options, config: SimpleNamespace, processes: int):
    """Prints the teacher's tokens in the whole training, at the share and calls that the plan expects."""
    steps = _optimizer_steps(stage, options, processes)
    if steps is None:
        print(
            "The teacher's tokens in all: the number of problems is known only once they are read; multiply a draw's."
        )
        return
    rollouts = steps * options.per_device_train_batch_size * processes * (options.gradient_accumulation_steps or 1)
    rollouts /= options.num_iterations or 1
    mean_prompt, mean_tokens = options.max_prompt_length / 2, options.max_completion_length / 2
    writes = rollouts * mean_tokens * config.rho
    reads = rollouts * config.calls * (mean_prompt + mean_tokens / 2)
    print(
        f"The teacher in {steps} steps: about {writes:,.0f} tokens to write and {reads:,.0f} to read without a cache.",
        end=" ",
    )
    prices = load_costs(pair.sections.get("evaluate", {}).get("costs"))
    price = prices.teacher
    if price.read is None or price.write is None:
        print("Their price: name a YAML with prices as evaluate.costs.")
    else:
        print(f"At most {(writes * price.write + reads * price.read) / 1e6:,.2f} {prices.currency}.")


def _optimizer_steps(stage: Stage, options: report.Options, processes: int) -> int | None:
    if (steps := stage.settings.get("max_steps", -1)) > 0:
        return steps
    rows = stage.settings.get("dataset_size")
    path = Path(str(stage.settings.get("dataset")))
    if rows is None and path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            rows = sum(1 for _ in file)
    if rows is None:
        return None
    prompts = (
        options.per_device_train_batch_size
        * processes
        * (options.gradient_accumulation_steps or 1)
        / (options.num_generations or 8)
    )
    return max(1, round(rows * (options.num_train_epochs or 3) / prompts))
