"""CITER on the arithmetic pair: trains a router per seed, sweeps its threshold on the test problems, prints a table.

    OMP_NUM_THREADS=1 python benchmarks/citer_arithmetic.py --seeds 1 2 3

The seed is that of the router and of the problems it is trained on; test problems and their sampling are the same for all,
and those of docs/results.md. Cells are the mean over seeds, smallest and largest in brackets. Runs in runs/citer/seed_<n>.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from relay_trl.cli import run

CONFIGS = Path("recipes/configs/arithmetic")
THRESHOLDS = ["0.2", "0.5", "0.8", "0.9", "0.95", "0.99", "0.999", "0.9999"]
COLUMNS = {
    "accuracy": "accuracy",
    "teacher_share": "teacher share (rho)",
    "call_rate": "answers with a teacher token",
    "gap_recovered": "gap recovered",
    "cost_reduction": "cost reduction",
}


def cell(values: list[float | None], scale: float = 100.0, digits: int = 1) -> str:
    """Mean [smallest, largest]; a dash where no seed has a value."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    low, mean, high = (f"{value:.{digits}f}" for value in (min(known), sum(known) / len(known), max(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"


def step(recipe: str, config: str, *options: str):
    command = [sys.executable, f"recipes/{recipe}.py", "--config", str(CONFIGS / f"{config}.yaml"), *options]
    if subprocess.run(command).returncode != 0:
        raise RuntimeError(f"{recipe} failed; its error is above.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--questions", type=int, default=4096, help="to label (default: %(default)s)")
    parser.add_argument("--size", type=int, default=600, help="test problems (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/citer", help="where everything goes (default: %(default)s)")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    rounds = []
    for seed in args.seeds:
        out = Path(args.output_dir, f"seed_{seed}")
        if not (out / "router/citer_router.json").exists():
            seeds = ("--seed", str(seed), "--dataset_seed", str(100 + seed))
            size = ("--dataset_size", str(args.questions))
            step("train_citer", "train_citer", "--output_dir", str(out / "router"), *seeds, *size)
        methods = ["student", *(f"citer_{threshold}" for threshold in THRESHOLDS), "teacher"]
        options = ("--student", "data/arithmetic/student", "--citer_router", str(out / "router"))
        step(
            *("evaluate", "evaluate", *options, "--output_dir", str(out / "evaluation"), "--limit", str(args.size)),
            *("--methods", *methods),
        )
        for row in json.loads((out / "evaluation/results.json").read_text(encoding="utf-8"))["results"]:
            results.setdefault(row["label"], []).append(row)
        rounds.append(json.loads((out / "router/citer_router.json").read_text(encoding="utf-8"))["rounds"][-1])
    lines = [
        "| method | " + " | ".join(f"{title} %" for title in COLUMNS.values()) + " | teacher tokens an answer |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for label, rows in results.items():
        cells = [cell([row[name] for row in rows]) for name in COLUMNS]
        calls = cell([row["calls_per_answer"] for row in rows], 1.0, 2)
        lines.append(f"| {label} | " + " | ".join([*cells, calls]) + " |")
    lines.append(f"\nSeeds {args.seeds}, last round of each: " + "; ".join(map(json.dumps, rounds)))
    print("\n".join(lines))
    Path(args.output_dir, "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
