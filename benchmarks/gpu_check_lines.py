"""What gpu_check.py looks at, one function a part, each in a process of its own; writes a line as soon as it knows it.

python benchmarks/gpu_check_lines.py PART... --output FILE --student FOLDER --teacher FOLDER --backend vllm --size gpu
"""

import argparse
import asyncio
import json
import math
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_check import FAILED, GOOD, LONGEST, LOOK, PARTS, SIZES, SKIPPED, Line
from rollout import Watched, continuous, lockstep, trl_generation
from servers import free_port, running
from step import EveryRollout
from workload import Instant, make_plans, vocabulary_of

from relay_trl.cli.endings import end_process
from relay_trl.engines.base import Sampling
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.engines.vllm import VLLMEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay

SHARE = 0.3
"""Of a card's memory, for the student's engine."""
SLOWER, GAIN, FITS = 1.15, 1.0, 1.25
"""Most of TRL's time without calls, least of lockstep's over ours, most of the planned memory: beyond them, a line says *look*."""
HAS_GPU = torch.cuda.is_available()


def verdict(is_good: bool) -> str:
    return GOOD if is_good else LOOK


@contextmanager
def student_alone(args, size) -> Iterator[tuple]:
    """The student's engine as a training has it, and a function that generates as TRL does: `theirs(prompts)`."""
    if args.backend == "vllm":
        given = argparse.Namespace(**vars(size), median_tokens=size.tokens, gpu_memory_utilization=SHARE)
        with trl_generation(args.student, given, LONGEST) as generation:
            yield (
                VLLMEngine(generation.llm, vocabulary_of(args.student)),
                lambda prompts: generation.generate(prompts, None, size.rollouts),
            )
        return
    engine = TransformersEngine.load(args.student)

    def theirs(prompts: list[list[int]]):
        longest, device = max(map(len, prompts)), engine.model.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        engine.model.generate(input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=size.tokens)

    yield engine, theirs


def engines(args, size) -> Iterator[Line]:
    """The student's engine, alone and with a teacher that is 50 ms away."""
    started = time.perf_counter()
    with student_alone(args, size) as (student, theirs):
        plans = make_plans(size.prompts, size.rollouts, size.tokens, 2 * size.tokens, seed=0)
        prompts = [plan.prompt for plan in plans]
        answer = asyncio.run(student.generate(prompts[0], 8, (), Sampling(seed=0)))
        up_s = time.perf_counter() - started
        name = f"{args.backend} in the trainer's process, up and answering after {up_s:.1f} s"
        yield Line("engine up", verdict(len(answer.ids) == 8), name, {"seconds": up_s})

        rules = RelayRules(max_completion_length=size.tokens, max_calls=0)

        async def ours(seed: int):
            await asyncio.gather(
                *(relay(RelayPrompt(ids), student, None, rules, seed + k) for k, ids in enumerate(prompts))
            )

        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for k in range(3):
            before = time.perf_counter()
            theirs(prompts)
            between = time.perf_counter()
            asyncio.run(ours(1000 * k))
            if k:  # the first time fills caches
                seconds["theirs"].append(between - before)
                seconds["ours"].append(time.perf_counter() - between)
        ratio = min(seconds["ours"]) / min(seconds["theirs"])
        tokens = len(prompts) * size.tokens
        found = f"{tokens / min(seconds['ours']):.0f} tokens/s, {ratio:.2f} of the time that TRL's way takes"
        yield Line(PARTS[0].lines[1], verdict(ratio <= SLOWER), found, {**seconds, "ratio": ratio})

        teacher = Watched(TransformersEngine.load(args.teacher), 0.05)
        taken = {}
        for name, way in (("lockstep", lockstep), ("continuous", continuous)):
            before = time.perf_counter()
            asyncio.run(way(plans, student, teacher, 0))
            taken[name] = time.perf_counter() - before
        gain = taken["lockstep"] / taken["continuous"]
        found = f"{taken['continuous']:.1f} s, lockstep {taken['lockstep']:.1f} s: {gain:.2f} times as fast"
        yield Line(PARTS[0].lines[2], verdict(gain >= GAIN), found, taken)


def digits(relay_trace, **columns) -> list[float]:
    """The synthetic task: the share of an answer's characters that are digits."""
    return [sum(c.isdigit() for c in trace.answer) / max(1, len(trace.answer)) for trace in relay_trace]


def make_trainer(args, size, folder: str, steps: int, is_adapter: bool = False, **options):
    """A GRPO trainer over problems that no answer solves; its learning rate moves a logit by about a twentieth a step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoTokenizer

    from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer

    draw = random.Random(0)
    problems = [f"{draw.randrange(10**6)} + {draw.randrange(10**6)} = " * 3 for _ in range(256)]
    teacher = options.pop("teacher", None)
    rewards = options.pop("extra_rewards", None)
    config = RelayGRPOConfig(
        **{
            "output_dir": folder,
            "answer_marker": "#",
            "use_vllm": args.backend == "vllm",
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": SHARE,
            "vllm_max_model_length": LONGEST,
            "num_generations": size.rollouts,
            "per_device_train_batch_size": size.prompts * size.rollouts,
            "max_completion_length": size.tokens,
            "max_steps": steps,
            "learning_rate": 0.05 / AutoConfig.from_pretrained(args.student).hidden_size,
            "lr_scheduler_type": "constant",
            "bf16": HAS_GPU,
            "use_cpu": not HAS_GPU,
            "gradient_checkpointing": HAS_GPU,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "rollouts_max_mb": 0,
            "max_truncated": 1.0,
            "max_zero_variance": 1.0,
            "dataloader_pin_memory": False,
            "reward": "accuracy",
            "teacher": teacher and "instant",
            "model_init_kwargs": {"dtype": "bfloat16" if is_adapter else "float32"},
        }
        | options
    )
    return RelayGRPOTrainer(
        model=args.student,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": problem, "answer": "42"} for problem in problems]),
        processing_class=AutoTokenizer.from_pretrained(args.student),
        teacher=teacher,
        extra_rewards=rewards or [digits],
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if is_adapter else None,
    )


def differences(trainer, args, size):
    """A callback that keeps, before training and after every update, the largest difference between the engine's and the
    trainer's logprobs.
    """
    from transformers import TrainerCallback

    from relay_trl.training.student_engine import student_engine

    vocabulary = vocabulary_of(args.student)
    prompt = vocabulary.encode("so many digits: ")

    class Differences(TrainerCallback):
        def __init__(self):
            self.largest: list[float] = []

        def on_train_begin(self, *given, **kwargs):
            self._measure()

        def on_step_end(self, *given, **kwargs):
            self._measure()

        def _measure(self):
            if trainer.use_vllm:
                trainer.vllm_generation.sync_weights()
            with student_engine(trainer, dict(trainer._engines) if trainer.use_vllm else {}) as engine:
                engine = getattr(engine, "_engine", engine) if isinstance(engine, EveryRollout) else engine
                asked = [engine.generate(prompt, size.tokens, (), Sampling(seed=k)) for k in range(4)]

                async def answers():
                    return await asyncio.gather(*asked)

                written = trainer.rollouts.wait(answers())
            ids = torch.tensor([prompt + answer.ids for answer in written], device=trainer.accelerator.device)
            trainer.model.train()  # in an evaluation the trainer computes none
            with torch.no_grad():
                own, *_ = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, torch.ones_like(ids), size.tokens
                )
            theirs = torch.tensor([answer.logprobs for answer in written], device=ids.device)
            self.largest.append((own.float() - theirs).abs().max().item())

    return Differences()


def sync_line(name: str, largest: list[float], extra: str = "", is_good: bool = True) -> Line:
    """An engine whose weights stay old drifts away from the trainer, update by update."""
    is_near = max(largest[1:]) <= 2 * largest[0] + 0.02
    found = (
        f"largest logprob difference {largest[0]:.4f} before, {largest[-1]:.4f} after {len(largest) - 1} updates{extra}"
    )
    return Line(name, verdict(is_near and is_good), found, {"largest": largest})


def weights(args, size) -> Iterator[Line]:
    """All weights in float32, computed in bfloat16 on a GPU; every rollout calls twice."""
    from relay_trl.planning.memory import Training, training_memory
    from relay_trl.training.profile import StepProfiler

    lines = next(part for part in PARTS if part.name == "weights").lines
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, size, folder, steps=4, teacher=Instant(vocabulary_of(args.student)))
        if trainer.use_vllm:
            inner = VLLMEngine(trainer.vllm_generation.llm, vocabulary_of(args.student))
        else:
            inner = TransformersEngine(trainer.model, trainer.processing_class)
        trainer._engines["student"] = EveryRollout(inner, size.tokens)
        measured = differences(trainer, args, size)
        trainer.add_callback(measured)
        trainer.add_callback(StepProfiler(trainer, 3, student=inner))
        if HAS_GPU:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        trainer.grader.close()
        yield sync_line(lines[0], measured.largest[:4])

        profile = json.loads(Path(folder, "profile.json").read_text(encoding="utf-8"))
        shares = {name: s / profile["step_s"] for name, s in profile["sections_s"].items()}
        said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
        batch = size.prompts * size.rollouts
        said = f"{profile['step_s']:.2f} s a step of {batch} rollouts: {said}"
        yield Line(lines[1], GOOD, said, profile)

        longest = max(len(trainer.processing_class(row["prompt"])["input_ids"]) for row in trainer.train_dataset)
        total = torch.cuda.get_device_properties(0).total_memory if HAS_GPU else 0
        planned = training_memory(
            args.student,
            Training(
                batch=batch,
                tokens=longest + size.tokens,
                is_half=HAS_GPU,
                has_checkpointing=HAS_GPU,
                engine_bytes=SHARE * total if trainer.use_vllm else 0.0,
                is_on_cpu=not HAS_GPU,
                rollouts=0 if trainer.use_vllm else batch,
            ),
        ).peak
        if not HAS_GPU:
            yield Line(lines[2], SKIPPED, f"planned {planned / 2**30:.3f} GiB; only a GPU counts what it gives out")
            return
        peak = torch.cuda.max_memory_allocated()
        said = f"{peak / 2**30:.1f} GiB, planned {planned / 2**30:.1f}"
        yield Line(lines[2], verdict(peak <= FITS * planned), said, {"peak": peak, "planned": planned})


def adapter(args, size) -> Iterator[Line]:
    """An adapter on a bfloat16 base, which merging and taking out again must not move."""
    (name,) = next(part for part in PARTS if part.name == "adapter").lines
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, size, folder, steps=3, is_adapter=True)
        base = {n: w.detach().clone() for n, w in trainer.model.named_parameters() if ".base_layer." in n}
        measured = differences(trainer, args, size)
        trainer.add_callback(measured)
        trainer.train()
        trainer.grader.close()
        after = dict(trainer.model.named_parameters())
        drift = max((after[n].float() - w.float()).abs().max().item() for n, w in base.items())
        yield sync_line(name, measured.largest, f"; the base moved by {drift:.1e}", drift == 0.0)


def reward(args, size) -> Iterator[Line]:
    """Twenty steps towards answers of digits alone."""
    (name,) = next(part for part in PARTS if part.name == "reward").lines
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, size, folder, steps=20)
        trainer.train()
        trainer.grader.close()
        rewards = [log["rewards/digits/mean"] for log in trainer.state.log_history if "rewards/digits/mean" in log]
    first, last = (sum(part) / len(part) for part in (rewards[:5], rewards[-5:]))
    said = f"digits in the answers: {first:.1%} in the first five steps, {last:.1%} in the last five"
    yield Line(name, verdict(last > 1.2 * first), said, {"rewards": rewards})


def sharded(args, size) -> Iterator[Line]:
    """Three steps on two cards, with a student's engine on each."""
    (name,) = next(part for part in PARTS if part.name == args.part).lines
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, size, folder, steps=3)
        started = time.perf_counter()
        trainer.train()
        seconds = (time.perf_counter() - started) / 3
        trainer.grader.close()
        norms = [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log]
    said = f"{seconds:.1f} s a step, gradient norms {', '.join(f'{norm:.2g}' for norm in norms)}"
    is_good = len(norms) == 3 and all(math.isfinite(norm) and norm > 0 for norm in norms)
    yield Line(name, verdict(is_good), said, {"seconds": seconds, "grad_norms": norms})


def student_server(args, size) -> Iterator[Line]:
    """The student behind TRL's server on the second card, which gets the new weights over NCCL."""
    (name,) = next(part for part in PARTS if part.name == "student_server").lines
    port = free_port()
    command = [sys.executable, "-m", "trl.cli.main", "vllm-serve", "--model", args.student, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max_model_len", str(LONGEST), "--gpu_memory_utilization", "0.5"]
    url = f"http://127.0.0.1:{port}"
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CUDA_VISIBLE_DEVICES"] = args.second_card
        with running(command, f"{url}/health/", Path(folder, "log"), size.limit_s):
            os.environ["CUDA_VISIBLE_DEVICES"] = first
            given = {"vllm_mode": "server", "vllm_server_base_url": url}
            trainer = make_trainer(args, size, folder, steps=3, **given)
            measured = differences(trainer, args, size)
            trainer.add_callback(measured)
            trainer.train()
            trainer.grader.close()
    yield sync_line(name, measured.largest)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[part.name for part in PARTS])
    for name in ("output", "student", "teacher", "backend"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--second_card", default="1", help="of the student's own server (default: %(default)s)")
    args = parser.parse_args()
    looks = {look.__name__: look for look in (engines, weights, adapter, reward, student_server)}
    for part in args.parts:
        names = list(next(known for known in PARTS if known.name == part).lines)
        try:
            for line in looks.get(part, sharded)(argparse.Namespace(**vars(args), part=part), SIZES[args.size]):
                names.remove(line.name)
                write(line, args.output)
        except Exception as error:  # one part's error is no other's
            traceback.print_exc()
            has_room = not isinstance(error, torch.OutOfMemoryError)
            while isinstance(error, BaseExceptionGroup):  # rollouts that fail together have one cause
                error = error.exceptions[0]
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            for name in names:
                write(Line(name, FAILED if has_room else SKIPPED, words), args.output)


def write(line: Line, output: str):
    """Adds a line to the file, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        with open(output, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")


if __name__ == "__main__":
    main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end_process()
