"""Whether a machine with a GPU is fit for this package: one command, no downloads, at most fifteen minutes.

    make gpu-check
    python benchmarks/gpu_check.py --size tiny      # the same lines with tiny models, on a CPU

Models have random weights and, with `--size gpu`, the shapes of Qwen3-0.6B (the student) and Qwen3-1.7B (the teacher). Every
line is one thing that a training or a service needs: *good*; *look* (it ran, and the figure is not what is expected);
*failed*; or *skipped*, with what it lacks. Writes gpu_check.json and gpu_check.md. Ends with 1 where a line failed.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from servers import free_port, running
from serving import one_round
from tables import add_output, machine, save, table
from transformers import Qwen3Config
from workload import CHARACTERS, random_model

from relay_trl.cli.endings import run
from relay_trl.planning.models import known_models

ROOT = Path(__file__).parents[1]
MINUTES = 15.0
GOOD, LOOK, FAILED, SKIPPED = "good", "look", "failed", "skipped"


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Args:
        prompts, rollouts (`int`): of a draw; tokens (`int`): of a completion.
        clients (`int`): that stream from the server at once.
        limit_s (`float`): of one process that checks.
    """

    prompts: int
    rollouts: int
    tokens: int
    clients: int
    limit_s: float


SIZES = {"gpu": Size(8, 8, 256, 32, 300), "tiny": Size(2, 4, 64, 2, 600)}
LONGEST = 1024
"""Most tokens of prompt and completion, of either model."""


@dataclass(frozen=True)
class Part:
    """Lines that one process checks.

    Args:
        name (`str`): as gpu_check_lines.py knows it.
        lines (`tuple[str, ...]`): in the order in which it writes them.
        gib (`float`): memory of one card that it needs with `--size gpu`.
        cards (`int`, defaults to `1`).
        libraries (`tuple[str, ...]`): that it cannot do without.
        launch (`str`, *optional*): file of `accelerate_configs/` for two processes.
    """

    name: str
    lines: tuple[str, ...]
    gib: float
    cards: int = 1
    libraries: tuple[str, ...] = ()
    launch: str | None = None


PARTS = [
    Part("engines", ("engine up", "rollouts without calls, and TRL's generate", "continuous, and lockstep"), 18),
    Part("weights", ("weight sync, all weights", "a GRPO step's shares", "peak memory, and the plan's"), 30),
    Part("adapter", ("weight sync, LoRA on bfloat16",), 16),
    Part("reward", ("20 steps, a reward that rises",), 30),
    Part("zero2", ("ZeRO-2",), 24, cards=2, libraries=("deepspeed",), launch="zero2.yaml"),
    Part("zero3", ("ZeRO-3",), 24, cards=2, libraries=("deepspeed",), launch="zero3.yaml"),
    Part("fsdp2", ("FSDP 2",), 24, cards=2, launch="fsdp2.yaml"),
    Part("student_server", ("the student's server, weights over NCCL",), 24, cards=2, libraries=("vllm",)),
]
SERVING = Part("serving", ("serving: throughput and first token",), 16, libraries=("uvicorn",))


@dataclass
class Line:
    """What was found of one thing."""

    name: str
    verdict: str
    found: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def make_models(folder: Path, size: str) -> tuple[str, str]:
    """Writes the student and the teacher."""
    paths = []
    for seed, name in enumerate(("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B")):
        shape = dict(known_models()[name])
        if size == "tiny":
            small = {"hidden_size": 64 * (seed + 1), "intermediate_size": 128, "num_hidden_layers": 2}
            shape |= {"vocab_size": len(CHARACTERS) + 1, "num_attention_heads": 2, "num_key_value_heads": 1} | small
            shape["head_dim"] = 32
        shape.pop("model_type")
        shape["max_position_embeddings"] = LONGEST
        paths.append(random_model(folder / f"model_{seed}", Qwen3Config(**shape), seed))
    return paths[0], paths[1]


def lacks(part: Part, size: str) -> str | None:
    """What the machine lacks for a part, `None` where it has all."""
    if missing := [name for name in part.libraries if find_spec(name) is None]:
        return f"{', '.join(missing)} is not installed"
    cards = torch.cuda.device_count()
    if part.cards > 1 and cards < part.cards:
        return f"needs {part.cards} GPUs, {cards or 'none'} here"
    if size == "gpu":
        free = min(torch.cuda.mem_get_info(k)[0] for k in range(part.cards)) / 2**30
        if free < part.gib:
            return f"needs about {part.gib:g} GiB of a GPU's memory, {free:.1f} are free"
    return None


def ask_parts(parts: list[Part], args, models: tuple[str, str], folder: Path, limit_s: float) -> list[Line]:
    """Runs gpu_check_lines.py for parts that share a process; lines that it did not come to are failed, with its last words."""
    launch, name = parts[0].launch, parts[0].name
    found, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = [sys.executable]
    if launch:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--num_processes", "2"]
        command = [*launcher, "--config_file", str(ROOT / "accelerate_configs" / launch)]
    command += [str(ROOT / "benchmarks" / "gpu_check_lines.py"), *(part.name for part in parts), "--output", str(found)]
    command += ["--student", models[0], "--teacher", models[1], "--backend", args.backend, "--size", args.size]
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    own = os.environ if launch else {**os.environ, "CUDA_VISIBLE_DEVICES": cards[0]}  # several would be shared out
    command += ["--second_card", cards[-1]]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=own)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    written = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    lines = [Line(**json.loads(row)) for row in written]
    words = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    why = words[-1][-300:] if words else "no output"
    if process.returncode == -signal.SIGKILL:
        why = f"killed; not done within {limit_s:.0f} s, or out of main memory"
    return lines + [Line(name, FAILED, why) for part in parts for name in part.lines][len(lines) :]


def ask_server(args, models: tuple[str, str], folder: Path, limit_s: float) -> list[Line]:
    """Streams from a relay server of both models."""
    size, port = SIZES[args.size], free_port()
    engine = json.dumps({"gpu_memory_utilization": 0.3, "max_model_len": LONGEST} if args.backend == "vllm" else {})
    command = [sys.executable, "-m", "relay_trl", "serve", "--student", models[0], "--teacher", models[1]]
    command += ["--student_backend", args.backend, "--student_engine", engine, "--port", str(port)]
    command += ["--served_model_name", "student", "--max_completion_length", str(2 * size.tokens)]
    client = argparse.Namespace(clients=size.clients, requests=2, max_tokens=size.tokens)
    try:
        with running(command, f"http://127.0.0.1:{port}/ready", folder / "serving.log", limit_s):
            rounds = [asyncio.run(one_round(f"http://127.0.0.1:{port}/v1", client)) for _ in range(2)]
    except RuntimeError as error:
        return [Line(SERVING.lines[0], FAILED, str(error).strip().splitlines()[-1][-300:])]
    last = rounds[-1]
    said = f"{size.clients} clients: {last['tokens_per_s']:.0f} tokens/s, first token after {1e3 * last['first_token_s']:.0f} ms"
    return [Line(SERVING.lines[0], GOOD if last["tokens"] else LOOK, said, last)]


def check(args, folder: Path) -> list[Line]:
    """All lines, in order, within the minutes that there are."""
    models, started, lines = make_models(folder, args.size), time.monotonic(), []
    for parts in processes(args):
        before, left = time.monotonic(), 60 * args.minutes - (time.monotonic() - started)
        said = f"no time left of {args.minutes:g} minutes" if left < 5 else lacks(parts[0], args.size)
        limit_s = min(len(parts) * SIZES[args.size].limit_s, left)
        if said:
            found = [Line(name, SKIPPED, said) for part in parts for name in part.lines]
        elif parts == [SERVING]:
            found = ask_server(args, models, folder, limit_s)
        else:
            found = ask_parts(parts, args, models, folder, limit_s)
        for line in found:
            line.seconds = (time.monotonic() - before) / len(found)
            print(f"{line.verdict:8} {line.name}: {line.found}", flush=True)
        lines += found
    return lines


def processes(args) -> list[list[Part]]:
    """Parts that share a process. Tiny models take nothing that has to be given back, so all of one card share one."""
    if args.size == "gpu" or args.backend == "vllm":  # a process has one trainer with vLLM in its life
        return [[part] for part in [*PARTS, SERVING]]
    alone = [part for part in PARTS if part.cards == 1]
    return [alone, *([part] for part in [*PARTS, SERVING] if part not in alone)]


def main():
    has_vllm = find_spec("vllm") is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="gpu", help="of models and draws (default: %(default)s)")
    parser.add_argument(
        "--backend",
        choices=["vllm", "transformers"],
        default="vllm" if has_vllm else "transformers",
        help="the student's engine (default: vllm where it is installed, here %(default)s)",
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most (default: %(default)s)")
    add_output(parser, "gpu_check")
    args = parser.parse_args()
    if args.size == "gpu" and not torch.cuda.is_available():
        raise ValueError("There is no GPU here that torch can use; --size tiny runs the same lines on a CPU.")
    if args.backend == "vllm" and not has_vllm:
        raise ValueError("--backend is vllm, which is not installed; install relay_trl[vllm], or take transformers.")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines = check(args, Path(folder))
    minutes = (time.monotonic() - started) / 60
    columns = {"what": lambda line: line.name, "verdict": lambda line: line.verdict, "found": lambda line: line.found}
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in (GOOD, LOOK, FAILED, SKIPPED)}
    engine = args.backend if has_vllm else "transformers, as vllm is not installed"
    versions = f"torch {torch.__version__}" + (f", CUDA {torch.version.cuda}" if torch.version.cuda else "")
    text = (
        f"{table(columns, lines)}\n\n{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}; size "
        f"{args.size}, engine {engine}, {minutes:.1f} minutes; {versions}. {machine()}"
    )
    data = {"lines": [asdict(line) for line in lines], "counts": counts, "arguments": vars(args), "minutes": minutes}
    save(args.output_dir, "gpu_check", data, text)
    sys.exit(1 if counts[FAILED] else 0)


if __name__ == "__main__":
    run(main)
