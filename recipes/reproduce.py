"""The paper's comparisons on an embedded pair: trains every setting with several seeds, evaluates it, and prints one table.

    python recipes/reproduce.py --plan recipes/configs/arithmetic/reproduce.yaml --jobs 2

The relay's settings are picked among the plan's `candidates` on the validation split, with the first seed; then come its
`runs`, each over all seeds before the next. results.md and shares.svg are made anew after every run. What is there is not
run again.
"""

import argparse
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import yaml

from relay_trl.cli import check_file, run
from relay_trl.evaluation.seeds import write_results
from relay_trl.stages import stage

PASSED_ON = {"train_citer": "citer_router"}
"""Recipes beside grpo_relay that train something for the untrained student, and the option by which the evaluation takes it."""


def do(plan: dict, title: str, result: Path, recipe: str, config: str | None = None, **options: object) -> bool:
    """A stage with the plan's YAML files; where several run side by side, what each prints goes to a file."""
    log = (
        Path(plan["output_dir"], "logs", f"{title.replace(', ', '-').replace(' ', '-')}.log")
        if plan["jobs"] > 1
        else None
    )
    return stage(title, result, recipe, plan["configs"], config, log, **options)


def warm_up(plan: dict, name: str, seed: int) -> Path:
    """The student after the warm-up called `name`, on data of its own or of the warm-up that it names."""
    folder, setting = Path(plan["output_dir"]) / f"seed_{seed}", plan["warmups"][name]
    data = setting.get("data", name)
    rows, out = folder / f"warmup_{data}.jsonl", folder / f"sft_{name}"
    build = plan["warmups"][data].get("build", {})
    do(plan, f"warm-up data {data}, seed {seed}", rows, "build_warmup", output=rows, seed=seed, **build)
    options = {"warmup_data": rows, "output_dir": out, "seed": seed, **setting.get("sft", {})}
    do(plan, f"warm-up {name}, seed {seed}", out / "model.safetensors", "sft_warmup", **options)
    return out


def train(plan: dict, name: str, setting: dict, seed: int, max_steps: int | None) -> dict[str, object]:
    """Trains a setting; returns the options by which an evaluation takes it."""
    out = Path(plan["output_dir"]) / f"seed_{seed}" / name
    if (recipe := setting.get("recipe")) in PASSED_ON:
        options = {"output_dir": out, "seed": seed, "dataset_seed": 100 + seed}  # other problems for each
        do(plan, f"{name}, seed {seed}", out / f"{PASSED_ON[recipe]}.json", recipe, **options)
        return {"student": Path(plan["pair"]) / "student", PASSED_ON[recipe]: out}
    options = {"output_dir": out, "seed": seed, "max_steps": max_steps, **setting.get("grpo", {})}
    if setting.get("warmup"):
        options["model_name_or_path"] = warm_up(plan, setting["warmup"], seed)
    config = setting.get("config", "grpo_relay")
    do(plan, f"{name}, seed {seed}", out / "trainer_state.json", "grpo_relay", config, **options)
    return {"student": out}


def evaluate(plan: dict, taken: dict[str, object], methods: list[str], name: str, split: str = "test") -> bool:
    """Evaluates a student into `evaluation/<name>`; returns whether it had not been."""
    folder, size = Path(plan["output_dir"]) / "evaluation" / name, plan[f"{split}_size"]
    options = {**taken, "methods": methods, "output_dir": folder, "split": split, "limit": size}
    return do(plan, f"evaluation of {name}", folder / "results.json", "evaluate", **options)


def choose(plan: dict, pool: ThreadPoolExecutor, seed: int, max_steps: int | None) -> tuple[str, str]:
    """The candidate with the largest accuracy - rho (the paper's simple reward) on the validation split, and a table."""

    def judge(name: str) -> dict | None:
        try:
            taken = train(plan, name, plan["candidates"][name], seed, max_steps)
        except RuntimeError as error:  # stopped by the guard, say
            print(error, flush=True)
            return None
        evaluate(plan, taken, ["relay"], f"{name}_validation", "validation")
        found = Path(plan["output_dir"], "evaluation", f"{name}_validation", "results.json")
        (row,) = json.loads(found.read_text(encoding="utf-8"))["results"]
        return row

    scores, lines = {}, ["| candidate | accuracy % | rho % | median n |", "|---|---:|---:|---:|"]
    for name, row in zip(plan["candidates"], pool.map(judge, plan["candidates"]), strict=True):
        if row is None:
            lines.append(f"| {name} | its training stopped | | |")
            continue
        accuracy, rho = 100 * row["accuracy"], 100 * row["teacher_share"]
        scores[name] = accuracy - rho
        lines.append(f"| {name} | {accuracy:.1f} | {rho:.1f} | {row['requested'] or '-'} |")
    if not scores:
        raise RuntimeError("Every candidate stopped; their errors are above.")
    best = max(scores, key=scores.__getitem__)
    return best, "\n".join([*lines, f"\nPicked on the validation split: {best}.\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", required=True, help="recipes/configs/<task>/reproduce.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", nargs="+", help="only these runs of the plan")
    parser.add_argument("--max_steps", type=int, help="GRPO steps, over the YAML's")
    parser.add_argument(
        "--jobs", type=int, default=1, help="stages side by side, which share the cores (default: %(default)s)"
    )
    args = parser.parse_args()
    path = Path(check_file(args.plan, "plan"))
    plan = yaml.safe_load(path.read_text(encoding="utf-8")) | {"configs": path.parent, "jobs": args.jobs}
    if unknown := set(args.runs or ()) - set(plan["runs"]):
        raise ValueError(f"The plan has no run {', '.join(sorted(unknown))}; it has {', '.join(plan['runs'])}.")
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; it must be at least 1.")
    if args.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    for name in ("student", "teacher"):
        result = Path(plan["pair"]) / name / "model.safetensors"
        do(plan, f"pretraining of the {name}", result, "pretrain_pair", f"pretrain_{name}")

    pool = ThreadPoolExecutor(args.jobs)
    try:
        ends = pool.submit(evaluate, plan, {"student": Path(plan["pair"]) / "student"}, plan["ends"], "ends")
        best, table = choose(plan, pool, args.seeds[0], args.max_steps)
        ends.result()
        chosen, writing = plan["candidates"][best], threading.Lock()

        def go(name: str, seed: int):
            changed = plan["runs"][name]
            setting = {**chosen, **changed, "grpo": {**chosen.get("grpo", {}), **changed.get("grpo", {})}}
            own = best if set(changed) == {"methods"} else name  # what changes nothing is the candidate itself
            taken = train(plan, own, setting, seed, args.max_steps)
            if evaluate(plan, taken, setting["methods"], f"{name}_seed_{seed}"):
                with writing:
                    write_results(plan["output_dir"], plan["runs"], args.seeds, table)

        for done in [pool.submit(go, *each) for each in product(args.runs or plan["runs"], args.seeds)]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # where one failed, those that have begun are finished
    write_results(plan["output_dir"], plan["runs"], args.seeds, table)
    print(Path(plan["output_dir"], "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
