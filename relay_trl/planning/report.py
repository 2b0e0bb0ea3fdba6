"""Prints a plan: reads a training's YAML and its launch file, and says what fits and what does not.

Owns the output and the warnings. `memory.py` and `service.py` have the arithmetic.
"""

import difflib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from trl import ModelConfig, get_peft_config

from . import memory
from .curves import Curve
from .models import Shape
from .service import Demand, size_service

GIB = 2**30
RATES = [1, 10, 100, 1_000, 10_000, 100_000]

_console = Console(highlight=False, soft_wrap=True)


class Options:
    """A training's YAML with defaults for what is missing. No config object is made, so that a plan for GPUs is possible on a
    machine without GPUs.

    Args:
        path (`str`): the YAML.
        grpo, sft (`list[type]`): the config classes of the two trainings, beside [`~trl.ModelConfig`].
    """

    def __init__(self, path: str, grpo: list[type], sft: list[type]):
        if not Path(path).is_file():
            raise FileNotFoundError(f"The config file {path} does not exist.")
        self.given: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        self.is_sft = "warmup_data" in self.given
        if not (self.is_sft or "dataset" in self.given) or "model_name_or_path" not in self.given:
            raise ValueError(f"{path} is not a config of grpo_relay.py or sft_warmup.py; give one of these.")
        kinds = sft if self.is_sft else grpo
        self.defaults = {item.name: item.default for kind in [*kinds, ModelConfig] for item in fields(kind)}
        unknown = [key for key in self.given if key not in self.defaults]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.defaults, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"Unknown option {unknown[0]!r}{hint} in {path}.")

    def __getattr__(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        default = self.defaults[name]
        return None if default is MISSING else default

    def peft(self):
        """The adapter's config; `None` without an adapter."""
        keys = {item.name for item in fields(ModelConfig)}
        return get_peft_config(ModelConfig(**{k: v for k, v in self.given.items() if k in keys}))


def training_of(options: Options, launch: dict[str, Any], processes: int, gpu_memory: float) -> memory.Training:
    """What the memory of a launched training depends on."""
    deepspeed = launch.get("deepspeed_config") or {}
    stage = 3 if launch.get("fsdp_config") else deepspeed.get("zero_stage", 0)
    is_grpo = not options.is_sft
    tokens = options.max_prompt_length + options.max_completion_length if is_grpo else options.max_length
    has_engine = bool(is_grpo and options.use_vllm and options.vllm_mode == "colocate")
    is_drawn_here = bool(is_grpo and not options.use_vllm)
    bits = 0.55 if options.load_in_4bit else 1.0 if options.load_in_8bit else None
    dtype = options.dtype or "float32"
    return memory.Training(
        batch=options.per_device_train_batch_size,
        tokens=tokens,
        processes=processes,
        zero_stage=stage,
        is_deepspeed=bool(deepspeed),
        offloads_optimizer=deepspeed.get("offload_optimizer_device") == "cpu",
        offloads_weights=deepspeed.get("offload_param_device") == "cpu",
        is_half=bool(options.fp16) or options.bf16 is not False,
        weight_bytes=bits or (2.0 if dtype in ("bfloat16", "float16") else 4.0),
        has_checkpointing=options.gradient_checkpointing is not False,
        accumulation=options.gradient_accumulation_steps or 1,
        has_reference=bool(is_grpo and options.beta),
        peft=options.peft(),
        optimizer_bytes=2.0 if "8bit" in str(options.optim) else 8.0,
        engine_bytes=options.vllm_gpu_memory_utilization * gpu_memory * GIB if has_engine else 0.0,
        is_engine_asleep=bool(has_engine and options.vllm_enable_sleep_mode),
        is_on_cpu=bool(launch.get("use_cpu")),
        rollouts=max(options.per_device_train_batch_size * steps_per_generation(options), evaluated(options))
        if is_drawn_here
        else 0,
    )


def steps_per_generation(options: Options) -> int:
    """The value that TRL fills in."""
    return options.steps_per_generation or options.gradient_accumulation_steps or 1


def evaluated(options: Options) -> int:
    """Rollouts that an evaluation in training draws at a time on one process; it takes no forward pass beside them."""
    return options.per_device_eval_batch_size if options.eval_strategy not in (None, "no") else 0


def evaluation(options: Options, processes: int) -> tuple[str, list[str]]:
    """What an evaluation in training draws, in a line, and what is to be warned of."""
    samples = options.num_generations_eval or options.num_generations or 8
    needed, at_once = options.validation_size * samples, evaluated(options) * processes
    rounds = -(-needed // at_once)
    drawn = (
        rounds * at_once if processes > 1 else needed
    )  # each of several processes fills its last batch with rows again
    said = f"An evaluation: {needed} rollouts, {min(at_once, drawn)} at a time."
    if drawn <= 1.25 * needed:
        return said, []
    fitting = -(-needed // (processes * max(1, rounds - 1)))
    while fitting * processes % samples:
        fitting += 1
    return said, [
        f"An evaluation draws {drawn} rollouts where {needed} are wanted, as every process fills its last batch: set "
        f"per_device_eval_batch_size to {fitting}."
    ]


def print_training(config, options: Options) -> list[str]:
    """Prints the plan of a training; returns its warnings."""
    with open(config.accelerate_config, encoding="utf-8") as file:
        launch = yaml.safe_load(file)
    processes = config.num_processes or launch.get("num_processes", 1)
    name = config.student or options.model_name_or_path
    student = Shape.of(name)
    run = training_of(options, launch, processes, config.gpu_memory)
    found = memory.training_memory(name, run)
    _console.print(
        f"Student {name}: {student.parameters / 1e6:,.1f} M parameters, {processes} process(es), "
        f"sequences of {run.tokens} tokens, {run.batch} at a time"
    )
    table = Table("one process, by part", "GiB")
    for part, size in found.parts.items():
        if size:
            table.add_row(part, f"{size / GIB:.2f}")
    table.add_row("[bold]peak at the update", f"[bold]{found.at_update / GIB:.2f}")
    if not options.is_sft:
        table.add_row("[bold]peak at the rollouts", f"[bold]{found.at_rollouts / GIB:.2f}")
    _console.print(table)
    warnings = []
    if found.peak > 0.95 * config.gpu_memory * GIB:
        warnings.append(
            f"{found.peak / GIB:.1f} GiB do not fit into {config.gpu_memory:g} GiB: lower per_device_train_batch_size, set "
            "gradient_checkpointing: true, shard (zero2, zero3), or train an adapter (use_peft)."
        )
    if not options.is_sft:
        warnings += _print_rollouts(config, options, run, student, processes)
    for warning in warnings:
        _console.print(f"[bold red]warning:[/] {warning}")
    return warnings


def _print_rollouts(config, options: Options, run: memory.Training, student: Shape, processes: int) -> list[str]:
    warnings = []
    mean_prompt = config.mean_prompt or max(1, options.max_prompt_length // 2)
    mean_tokens = config.mean_tokens or max(1, options.max_completion_length // 2)
    has_teacher = bool(options.teacher)
    one = memory.batches(
        run.batch,
        processes,
        options.gradient_accumulation_steps or 1,
        steps_per_generation(options),
        options.num_generations or 8,
        mean_prompt,
        mean_tokens,
        config.rho * has_teacher,
        config.calls * has_teacher,
    )
    _console.print(
        f"A draw: {one.prompts} prompts x {options.num_generations or 8} = {one.rollouts} rollouts, about {one.tokens:,.0f} tokens at "
        f"{mean_tokens} each; it serves {one.updates:g} optimizer step(s) of {one.rollouts_per_update} rollouts."
    )
    if evaluated(options):
        said, more = evaluation(options, processes)
        _console.print(said)
        warnings += more
    if has_teacher:
        _console.print(
            f"Teacher a draw, at rho {config.rho:g} and {config.calls:g} call(s): {one.teacher_tokens:,.0f} tokens to write, "
            f"{one.teacher_reads_cached:,.0f} to read with its prefix cache, {one.teacher_reads:,.0f} without."
        )
    if run.engine_bytes:
        room = run.engine_bytes - 2 * student.parameters
        most = int(room / (2 * student.kv_elements * run.tokens))
        _console.print(
            f"vLLM: {2 * student.parameters / GIB:.2f} GiB of weights, {max(0.0, room) / GIB:.2f} GiB of cache: {max(0, most)} "
            f"full-length rollouts at a time of {one.rollouts // processes}."
        )
        if most < 1:
            warnings.append(
                f"vllm_gpu_memory_utilization={options.vllm_gpu_memory_utilization:g} leaves no cache for one rollout of "
                f"{run.tokens} tokens; raise it, or lower max_completion_length."
            )
    if student.context is not None and run.tokens > student.context:
        warnings.append(f"The student has room for {student.context} tokens, and a rollout may have {run.tokens}.")
    teacher = config.teacher or (options.teacher if has_teacher and "://" not in str(options.teacher) else None)
    if teacher:
        shape = Shape.of(teacher)
        _console.print(
            f"Teacher {teacher}: {2 * shape.parameters / GIB:.1f} GiB of weights in bf16, "
            f"{2 * shape.kv_elements * run.tokens / GIB:.2f} GiB of cache for each full-length rollout."
        )
        if shape.context is not None and run.tokens > shape.context:
            warnings.append(f"The teacher has room for {shape.context} tokens, and a rollout may have {run.tokens}.")
    return warnings


def print_service(config):
    """Prints the table of a service."""
    curves = [
        Curve.load(path) if path else Curve.estimate(name, config.gpu_memory)
        for path, name in ((config.student_curve, config.student), (config.teacher_curve, config.teacher))
    ]
    for who, curve in zip(("Student", "Teacher"), curves, strict=True):
        _console.print(
            f"{who} {curve.name}: {curve.source}; {1e3 * curve.step(1):.1f} ms a step alone, "
            f"{1e3 * curve.step(curve.max_batch):.1f} ms with {curve.max_batch}."
        )
    table = Table(
        "requests/s",
        "prefix cache",
        "students",
        "teachers",
        "median s",
        "95 % s",
        "busy, student",
        "busy, teacher",
    )
    for rate in sorted({*map(float, RATES), config.requests_per_s}):
        for has_cache in (True, False):
            demand = Demand(
                rate,
                config.mean_prompt or 200,
                config.mean_tokens or 800,
                config.calls,
                config.rho,
                has_prefix_cache=has_cache,
            )
            found = size_service(demand, *curves, slowdown=config.slowdown)
            busy = [f"{100 * found.busy[who]:.0f} %" for who in ("student", "teacher")]
            seconds = [f"{found.median_s:.1f}", f"{found.slow_s:.1f}"]
            table.add_row(
                f"{rate:,g}", "yes" if has_cache else "no", str(found.students), str(found.teachers), *seconds, *busy
            )
    _console.print(table)
