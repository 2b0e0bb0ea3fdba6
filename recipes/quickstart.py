"""The whole method on two cores: warm-up data, warm-up, GRPO with and without a teacher, evaluation, one table.

    python recipes/quickstart.py

Runs the recipes with recipes/configs/arithmetic/*.yaml one after the other, as a user would. A stage whose result exists is
not run again; delete runs/arithmetic to start over.
"""

import argparse
import time
from pathlib import Path

from relay_trl.cli import run
from relay_trl.reproduction.stages import stage

CONFIGS = Path("recipes/configs/arithmetic")
LABELS = {"student": {}, "grpo_baseline": {"student": "GRPO without teacher"}, "grpo": {}}
"""The evaluated runs, the untrained student first, and the names of their methods in the table."""
METHODS = ["relay", "relay_no_teacher", "fixed_4", "fixed_16", "teacher"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/arithmetic", help="where everything goes (default: %(default)s)")
    parser.add_argument("--max_steps", type=int, default=180, help="GRPO steps (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16384, help="warm-up problems (default: %(default)s)")
    parser.add_argument("--size", type=int, default=600, help="test problems (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="of the training stages (default: %(default)s)")
    return parser.parse_args()


def main():
    args = parse_arguments()
    out = Path(args.output_dir)
    started = time.perf_counter()

    warmup, sft, grpo, baseline = out / "warmup.jsonl", out / "sft", out / "grpo", out / "grpo_baseline"
    title = "warm-up data: the student's answers with the calls that they need"
    stage(title, warmup, "build_warmup", CONFIGS, output=warmup, dataset_size=args.rows, seed=args.seed)

    title = "warm-up: when to call, and for how much"
    options = {"warmup_data": warmup, "output_dir": sft, "seed": args.seed}
    stage(title, sft / "model.safetensors", "sft_warmup", CONFIGS, **options)

    title = "GRPO with the teacher: a short refinement"
    options = {"model_name_or_path": sft, "output_dir": grpo, "max_steps": min(30, args.max_steps), "seed": args.seed}
    options |= {"learning_rate": 1e-4, "scale_rewards": "batch", "rho_of": "group", "eval_strategy": "no"}
    stage(title, grpo / "trainer_state.json", "grpo_relay", CONFIGS, **options)

    title = "GRPO without a teacher"
    options = {"output_dir": baseline, "max_steps": args.max_steps, "seed": args.seed}
    stage(title, baseline / "trainer_state.json", "grpo_relay", CONFIGS, "grpo_baseline", **options)

    for name in LABELS:
        folder = out / "evaluation" / name
        options = {"output_dir": folder, "limit": args.size}
        options["student"] = "data/arithmetic/student" if name == "student" else out / name
        options["methods"] = METHODS if name == "grpo" else ["student"]
        stage(f"evaluation: {name}", folder / "results.json", "evaluate", CONFIGS, **options)

    report(out)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes.")


def report(out: Path):
    """One table over all runs, the plots and the page of rollouts."""
    from relay_trl.evaluation.answer_files import read_run
    from relay_trl.evaluation.report.training_plots import read_log
    from relay_trl.evaluation.report.write import print_results, write_report

    runs = [read_run(out / "evaluation" / name, name, labels) for name, labels in LABELS.items()]
    logs = {"relay": read_log(out / "grpo"), "GRPO without teacher": read_log(out / "grpo_baseline")}
    print_results(write_report(runs, out / "report", logs, "Relaying arithmetic: who wrote what"))
    print(f"\nTables, plots and pages of rollouts are in {out / 'report'}: open {out / 'report' / 'report.html'}.")


if __name__ == "__main__":
    run(main)
