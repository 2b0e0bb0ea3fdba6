"""The paper's comparisons on an embedded pair: trains every setting with several seeds, evaluates it, and prints one table.

    python recipes/reproduce.py --plan recipes/configs/arithmetic/reproduce.yaml

The relay's settings are picked among the plan's `candidates` on the validation split, with the first seed; then come its
`runs`, each over all seeds before the next. results.md is written anew after every run. What is there is not run again.
"""

import argparse
import json
from pathlib import Path

import yaml

from relay_trl.cli import check_file, run
from relay_trl.evaluation.seeds import table_of_folder
from relay_trl.stages import stage


def warm_up(plan: dict, name: str, seed: int) -> Path:
    """The student after the warm-up called `name`."""
    folder = Path(plan["output_dir"]) / f"seed_{seed}"
    build, sft = (plan["warmups"][name].get(part, {}) for part in ("build", "sft"))
    rows, out = folder / f"warmup_{name if build else 'random'}.jsonl", folder / f"sft_{name}"
    stage(f"warm-up data {name}, seed {seed}", rows, "build_warmup", plan["configs"], output=rows, seed=seed, **build)
    sft = {"warmup_data": rows, "output_dir": out, "seed": seed, **sft}
    stage(f"warm-up {name}, seed {seed}", out / "model.safetensors", "sft_warmup", plan["configs"], **sft)
    return out


def train(plan: dict, name: str, setting: dict, seed: int, max_steps: int | None) -> Path:
    """The student trained with a setting."""
    out = Path(plan["output_dir"]) / f"seed_{seed}" / name
    options = {"output_dir": out, "seed": seed, "max_steps": max_steps, **setting.get("grpo", {})}
    if setting.get("warmup"):
        options["model_name_or_path"] = warm_up(plan, setting["warmup"], seed)
    config = setting.get("config", "grpo_relay")
    stage(f"{name}, seed {seed}", out / "trainer_state.json", "grpo_relay", plan["configs"], config, **options)
    return out


def evaluate(plan: dict, student: str | Path, methods: list[str], name: str, split: str = "test") -> Path:
    """The folder with the answers of a student."""
    folder, size = Path(plan["output_dir"]) / "evaluation" / name, plan[f"{split}_size"]
    options = {"student": student, "methods": methods, "output_dir": folder, "split": split, "limit": size}
    stage(f"evaluation of {name}", folder / "results.json", "evaluate", plan["configs"], **options)
    return folder


def choose(plan: dict, seed: int, max_steps: int | None) -> tuple[str, str]:
    """The candidate with the largest accuracy - rho (the paper's simple reward) on the validation split, and a table."""
    scores, lines = {}, ["| candidate | accuracy % | rho % | median n |", "|---|---:|---:|---:|"]
    for name, setting in plan["candidates"].items():
        try:
            student = train(plan, name, setting, seed, max_steps)
        except RuntimeError:  # stopped by the guard, say; it has told why
            lines.append(f"| {name} | its training stopped | | |")
            continue
        folder = evaluate(plan, student, ["relay"], f"{name}_validation", "validation")
        (row,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
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
    args = parser.parse_args()
    path = Path(check_file(args.plan, "plan"))
    plan = yaml.safe_load(path.read_text(encoding="utf-8")) | {"configs": path.parent}
    if unknown := set(args.runs or ()) - set(plan["runs"]):
        raise ValueError(f"The plan has no run {', '.join(sorted(unknown))}; it has {', '.join(plan['runs'])}.")
    for name in ("student", "teacher"):
        result = Path(plan["pair"]) / name / "model.safetensors"
        stage(f"pretraining of the {name}", result, "pretrain_pair", path.parent, f"pretrain_{name}")
    evaluate(plan, Path(plan["pair"]) / "student", ["student", "teacher"], "ends")
    best, table = choose(plan, args.seeds[0], args.max_steps)
    chosen, results = plan["candidates"][best], Path(plan["output_dir"]) / "results.md"
    for name in args.runs or plan["runs"]:
        changed = plan["runs"][name]
        setting = {**chosen, **changed, "grpo": {**chosen.get("grpo", {}), **changed.get("grpo", {})}}
        for seed in args.seeds:
            own = best if set(changed) == {"methods"} else name  # what changes nothing is the candidate itself
            student = train(plan, own, setting, seed, args.max_steps)
            evaluate(plan, student, setting["methods"], f"{name}_seed_{seed}")
            found = table_of_folder(results.parent / "evaluation", plan["runs"], args.seeds)
            results.write_text(f"{found}\n{table}", encoding="utf-8")
    print(results.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
