"""The quickstart with several seeds, and one Markdown table: mean over seeds, smallest and largest in brackets.

    python benchmarks/arithmetic_seeds.py --seeds 1 2 3

Test problems are the same for all seeds; the seed is that of warm-up data, warm-up and GRPO. Runs in runs/seed_<n>.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

from relay_trl.cli import run

COLUMNS = {
    "accuracy": "accuracy",
    "teacher_share": "teacher share (rho)",
    "call_rate": "answers that call",
    "gap_recovered": "gap recovered",
    "cost_reduction": "cost reduction",
}


def cell(values: list[float | None]) -> str:
    """Mean [smallest, largest] of percentages; a dash where no seed has a value."""
    known = [100 * value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f} [{min(known):.1f}, {max(known):.1f}]" if known else "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_steps", type=int, default=180, help="GRPO steps (default: %(default)s)")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    for seed in args.seeds:
        out = f"runs/seed_{seed}"
        options = ["--output_dir", out, "--seed", str(seed), "--max_steps", str(args.max_steps)]
        if subprocess.run([sys.executable, "recipes/quickstart.py", *options]).returncode != 0:
            raise RuntimeError(f"The run with seed {seed} failed; its error is above.")
        for row in json.loads(Path(out, "report/results.json").read_text(encoding="utf-8"))["results"]:
            results.setdefault(row["label"], []).append(row)
    kinds = list(next(iter(results.values()))[0]["by_kind"])
    lines = [
        "| method | " + " | ".join(f"{title} %" for title in COLUMNS.values()) + " | calls % by kind |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for label, rows in results.items():
        cells = [cell([row[name] for row in rows]) for name in COLUMNS]
        calls = [cell([row["by_kind"][kind]["call_rate"] for row in rows]) for kind in kinds]
        lines.append(f"| {label} | " + " | ".join([*cells, "; ".join(calls)]) + " |")
    lines.append(f"\nSeeds {args.seeds}; calls by kind: {', '.join(kinds)}; {platform.machine()}, {platform.system()}.")
    print("\n".join(lines))
    Path("runs/seeds.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
