"""Compares ways to run one workload: lockstep, continuous, each model alone, and TRL's own generation.

    python benchmarks/rollout.py --size small
    python benchmarks/rollout.py --size large --prompts 4 --latencies_ms 0 250
    python benchmarks/rollout.py --size gpu --prompts 32 --median_tokens 800      # on a GPU

The student is TRL's colocated vLLM engine; the teacher is a vLLM server on its own hardware (without a GPU, each has a core).
The ways take turns within every run, so that other work on the machine affects all of them. Ratios are of one run.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tables import add_output, machine, save, table
from workload import SIZES, SYNTAX, Instant, Plan, Scheduled, make_model, make_plans, own_core, serve, vocabulary_of

from relay_trl.cli.endings import run
from relay_trl.engines.base import Generation, Sampling
from relay_trl.engines.loading import load_engine
from relay_trl.engines.openai import OpenAIEngine
from relay_trl.engines.vllm import VLLMEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.training import RelayGRPOConfig

ROLLOUT: ContextVar[int] = ContextVar("rollout", default=-1)
"""Whose request it is, in the task that makes it."""


class Watched:
    """An engine that is `latency_s` further away, whose requests are written down: who asked what, from when to when."""

    def __init__(self, engine, latency_s: float = 0.0):
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context
        self.latency_s = latency_s
        self.requests: list[tuple[int, list[int], Generation, float, float]] = []
        self._engine = engine

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()) -> Generation:
        started = time.perf_counter()
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        answer = await self._engine.generate(context, max_tokens, stop, sampling)
        self.requests.append((ROLLOUT.get(), context, answer, started, time.perf_counter()))
        return answer


CONFIG = RelayRules(max_completion_length=10**6, syntax=SYNTAX, max_calls=3)


async def continuous(plans: list[Plan], student, teacher, seed: int):
    """Continuous: one coroutine for each rollout."""

    async def rollout(k: int, plan: Plan):
        ROLLOUT.set(k)
        prompt = RelayPrompt(plan.prompt, plan.prompt)
        return await relay(prompt, Scheduled(student, plan), teacher, CONFIG, seed + k)

    traces = await asyncio.gather(*(rollout(k, plan) for k, plan in enumerate(plans)))
    assert [trace.num_tokens for trace in traces] == [plan.tokens for plan in plans]
    return traces


async def lockstep(plans: list[Plan], student, teacher, seed: int):
    """The released code's loop: all rollouts write up to their next call, then all wait for one batch to the teacher, and so on."""
    students = [Scheduled(student, plan) for plan in plans]
    written: list[list[int]] = [[] for _ in plans]
    without_commands: list[list[int]] = [[] for _ in plans]

    async def student_turn(k: int, turn: int):
        ROLLOUT.set(k)
        stop = (SYNTAX.close_tag,) if turn < len(plans[k].calls) else ()
        answer = await students[k].generate(plans[k].prompt + written[k], 0, stop, Sampling(seed=seed + k))
        written[k] += answer.ids or []
        without_commands[k] += (answer.ids or [])[: plans[k].turns[turn]]

    async def teacher_turn(k: int, turn: int):
        ROLLOUT.set(k)
        sampling = Sampling(temperature=0.7, seed=seed + k)
        answer = await teacher.generate(plans[k].prompt + without_commands[k], plans[k].calls[turn], (), sampling)
        written[k] += answer.ids or []
        without_commands[k] += answer.ids or []

    for turn in range(4):
        await asyncio.gather(*(student_turn(k, turn) for k, plan in enumerate(plans) if turn < len(plan.turns)))
        await asyncio.gather(*(teacher_turn(k, turn) for k, plan in enumerate(plans) if turn < len(plan.calls)))
    assert [len(ids) for ids in written] == [plan.tokens for plan in plans]


async def teacher_alone(contexts: dict[int, list[tuple[list[int], int]]], teacher, seed: int):
    """The teacher's requests of a continuous run, without the student in between."""

    async def chain(requests):
        for context, n in requests:
            await teacher.generate(context, n, (), Sampling(temperature=0.7, seed=seed))

    await asyncio.gather(*(chain(requests) for requests in contexts.values()))


@contextmanager
def trl_generation(model_path: str, args, most: int):
    """TRL's own colocated engine, built as in training."""
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.generation.vllm_generation import VLLMGeneration

    from relay_trl.training.student_engine import engine_options

    with tempfile.TemporaryDirectory() as folder:
        config = RelayGRPOConfig(output_dir=folder, bf16=False, use_vllm=True, vllm_mode="colocate", report_to="none")
        model = AutoModelForCausalLM.from_pretrained(model_path)
        with engine_options(config, model):
            yield VLLMGeneration(
                model,
                Accelerator(),
                AutoTokenizer.from_pretrained(model_path),
                max_model_length=most,
                max_num_seqs=args.prompts * args.rollouts,
                gpu_memory_utilization=args.gpu_memory_utilization,
                max_completion_length=args.median_tokens,
            )


class Bench:
    """The engines of one benchmark and the ways to run them."""

    def __init__(self, plans: list[Plan], generation, teacher: OpenAIEngine, vocabulary, args):
        self.plans, self.generation, self.teacher, self.args = plans, generation, teacher, args
        self.student = VLLMEngine(generation.llm, vocabulary)
        self.vocabulary = vocabulary
        self.loop = asyncio.new_event_loop()
        self.seed = 0

    def timed(self, way: Callable[..., Awaitable], *given) -> float:
        """Seconds of one way, with the student's cache empty and numbers of its own."""
        self.generation.llm.reset_prefix_cache()
        self.seed += 10_000
        started = time.perf_counter()
        self.loop.run_until_complete(way(*given, self.seed))
        return time.perf_counter() - started

    def one_run(self, latencies_s: list[float]) -> dict:
        """Seconds of every way, and what the engines counted."""
        found: dict = {"lockstep": [], "continuous": []}
        found["student_alone"] = self.timed(continuous, self.plans, self.student, Instant(self.vocabulary))
        watched = Watched(self.teacher)
        self.timed(continuous, self.plans, self.student, watched)
        contexts: dict = {}
        for rollout, context, answer, _, _ in sorted(watched.requests, key=lambda request: request[3]):
            contexts.setdefault(rollout, []).append((context, len(answer.ids or ())))
        found["teacher_alone"] = self.timed(teacher_alone, contexts, self.teacher)
        for latency in latencies_s:
            self.watch = {}
            for name, way in (("lockstep", lockstep), ("continuous", continuous)):
                student, teacher = Watched(self.student), Watched(self.teacher, latency)
                found[name].append(self.timed(way, self.plans, student, teacher))
                self.watch[name] = (student.requests, teacher.requests)
        found["recomputed"] = recomputed(self.watch["continuous"][0], self.plans)
        return found

    def no_calls(self) -> tuple[float, float]:
        """Seconds of TRL's `generate` and of relays without calls, for the same prompts and number of tokens."""
        prompts = [plan.prompt for plan in self.plans]
        config = RelayRules(max_completion_length=self.args.median_tokens, syntax=SYNTAX, max_calls=0)

        async def ours(seed: int):
            jobs = [relay(RelayPrompt(ids), self.student, None, config, seed + k) for k, ids in enumerate(prompts)]
            await asyncio.gather(*jobs)

        async def theirs(seed: int):
            self.generation.generate(prompts, None, self.args.rollouts)

        return self.timed(theirs), self.timed(ours)


def chain_at_full_pace(plans: list[Plan], run: dict, latency_s: float) -> float:
    """Seconds of the longest rollout, if each of its tokens takes as long as it does in the full batch of its model alone."""
    student = run["student_alone"] / max(sum(plan.turns) for plan in plans)
    teacher = run["teacher_alone"] / max(sum(plan.calls) for plan in plans)
    return max(sum(p.turns) * student + sum(p.calls) * teacher + len(p.calls) * latency_s for p in plans)


def recomputed(requests, plans: list[Plan]) -> dict:
    """Context tokens that the student's later turns computed again, beyond those written since, by vLLM's count."""
    beyond, known = [], {}
    for rollout, context, answer, _, _ in sorted(requests, key=lambda request: request[3]):
        if rollout in known:
            new = len(context) - known[rollout]  # the command, the teacher's tokens, and its own last one
            beyond.append(answer.prompt_tokens - answer.cached_tokens - new)
        known[rollout] = len(context) + len(answer.ids)
    return {"turns": len(beyond), "most": max(beyond), "mean": sum(beyond) / len(beyond)}


def draw_timelines(path: Path, watch: dict, title: str):
    """Draws which model writes when: one line for each rollout, lockstep above, continuous below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    colours = {"student": "#3b6ea8", "teacher": "#d9822b", "waiting": "#dddddd"}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, sharex=True, layout="constrained")
    for axis, (way, (student, teacher)) in zip(axes, watch.items(), strict=True):
        begin = min(request[3] for request in student)
        ends: dict = {}
        for requests in (student, teacher):
            for rollout, _, _, _, ended in requests:
                ends[rollout] = max(ends.get(rollout, 0.0), ended)
        rows = {rollout: row for row, rollout in enumerate(sorted(ends, key=ends.__getitem__))}
        for rollout, row in rows.items():
            axis.broken_barh([(0, ends[rollout] - begin)], (row, 0.9), color=colours["waiting"])
        for name, requests in (("student", student), ("teacher", teacher)):
            for rollout, _, _, started, ended in requests:
                axis.broken_barh([(started - begin, ended - started)], (rows[rollout], 0.9), color=colours[name])
        axis.set(title=f"{way}: {max(ends.values()) - begin:.1f} s", xlabel="seconds")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("rollouts, by their end")
    figure.legend(handles=[Patch(color=c, label=n) for n, c in colours.items()], loc="outside upper right", ncols=3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="of the models (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=8, help="per prompt (default: %(default)s)")
    parser.add_argument("--median_tokens", type=int, default=140, help="of the student's (default: %(default)s)")
    parser.add_argument("--latencies_ms", type=float, nargs="+", default=[0, 50, 250], help="(default: 0 50 250)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--no_call_runs", type=int, default=6, help="pairs of TRL's way and ours (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the workload (default: %(default)s)")
    parser.add_argument("--gpu_memory_utilization", type=float, default=0.3)
    parser.add_argument("--picture", help="where the time lines of the last run go (.png or .svg)")
    add_output(parser, "rollout_<size>")
    args = parser.parse_args()
    own_core(0)
    longest = 4 * args.median_tokens
    most = 2 * longest + 3 * longest // 4 + 256
    plans = make_plans(args.prompts, args.rollouts, args.median_tokens, longest, args.seed)
    shapes = SIZES[args.size]
    with tempfile.TemporaryDirectory() as folder:
        student, teacher = (make_model(Path(folder, f"{k}"), *shapes[k], most=most, seed=k) for k in (0, 1))
        vocabulary = vocabulary_of(student)
        with serve(teacher, len(plans)) as url, trl_generation(student, args, most) as generation:
            engine = load_engine(url, tokenizer=vocabulary.tokenizer, max_concurrency=len(plans))
            bench = Bench(plans, generation, engine, vocabulary, args)
            latencies = [latency / 1000 for latency in args.latencies_ms]
            bench.one_run(latencies[:1])  # for compilation and caches
            runs = []
            for k in range(args.runs):
                runs.append(bench.one_run(latencies))
                print(f"run {k + 1} of {args.runs}: {runs[-1]}", flush=True)
                if args.picture:
                    title = f"{len(plans)} rollouts, {args.size} models, teacher {args.latencies_ms[-1]:g} ms away"
                    draw_timelines(Path(args.picture), bench.watch, title)
            pairs = [bench.no_calls() for _ in range(args.no_call_runs + 1)][1:]
            bench.loop.run_until_complete(engine.aclose())
    report(args, plans, runs, pairs)


def report(args, plans: list[Plan], runs: list[dict], pairs: list[tuple[float, float]]):
    """The table, its note, and the JSON of everything measured."""
    rows = []
    for k, latency in enumerate(args.latencies_ms):
        row = {
            "latency": f"{latency:g} ms",
            **{name: [r[name][k] for r in runs] for name in ("lockstep", "continuous")},
        }
        row["speedup"] = [r["lockstep"][k] / r["continuous"][k] for r in runs]
        for name in ("student_alone", "teacher_alone"):
            row[name] = [r[name] for r in runs]
        row["chain"] = [chain_at_full_pace(plans, r, latency / 1000) for r in runs]
        bounds = [
            max(r["student_alone"], r["teacher_alone"], chain) for r, chain in zip(runs, row["chain"], strict=True)
        ]
        for name, way in (("of_bound", "continuous"), ("most", "lockstep")):
            row[name] = [r[way][k] / bound for r, bound in zip(runs, bounds, strict=True)]
        rows.append(row)
    columns = {
        "teacher's latency": lambda row: row["latency"],
        "lockstep, s": lambda row: row["lockstep"],
        "continuous, s": lambda row: row["continuous"],
        "lockstep / continuous": lambda row: row["speedup"],
        "student alone, s": lambda row: row["student_alone"],
        "teacher alone, s": lambda row: row["teacher_alone"],
        "longest rollout at full pace, s": lambda row: row["chain"],
        "continuous / bound": lambda row: row["of_bound"],
        "lockstep / bound": lambda row: row["most"],
    }
    ratios = [ours / theirs for theirs, ours in pairs]
    no_calls = [{"theirs": [a for a, _ in pairs], "ours": [b for _, b in pairs], "ratio": ratios}]
    no_call_columns = {
        "no calls: TRL's generate, s": lambda row: row["theirs"],
        "relay, s": lambda row: row["ours"],
        "relay / TRL": lambda row: row["ratio"],
    }
    counts = (
        f"{len(plans)} rollouts of {args.prompts} prompts, {sum(sum(p.turns) for p in plans):,} student and "
        f"{sum(sum(p.calls) for p in plans):,} teacher tokens, {sum(len(p.calls) for p in plans)} calls; models `{args.size}`"
    )
    worst = max(r["recomputed"]["most"] for r in runs)
    mean = sum(r["recomputed"]["mean"] for r in runs) / len(runs)
    note = (
        f"{counts}; workload seed {args.seed}. Median [smallest, largest] of {args.runs} runs, {len(pairs)} of the no-call "
        f"case ({args.median_tokens} tokens a rollout). Context tokens that a later turn of the student computed beyond the "
        f"new ones, by vLLM's count: {mean:.1f} on average, at most {worst}. {machine()}"
    )
    text = "\n\n".join([table(columns, rows), table(no_call_columns, no_calls, digits=3), note])
    save(args.output_dir, f"rollout_{args.size}", {"runs": runs, "no_calls": pairs, "arguments": vars(args)}, text)


if __name__ == "__main__":
    run(main)
