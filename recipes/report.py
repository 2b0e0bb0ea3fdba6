"""Puts finished evaluations side by side: tables as Markdown, LaTeX and HTML, plots, and pages of rollouts to read.

    python recipes/report.py runs/arithmetic/evaluation/untrained GRPO=runs/arithmetic/evaluation/baseline \
        relay=runs/arithmetic/evaluation/relay --output_dir runs/report

RESULTS are output folders of recipes/evaluate.py or their answers*.jsonl, and .csv files of published figures. Name the run of
the untrained student first, because gap and cost are measured from it. NAME= before a path renames the run.
"""

import argparse
from pathlib import Path

from relay_trl.cli.endings import run
from relay_trl.costs import load_costs
from relay_trl.evaluation.answer_files import read_run
from relay_trl.evaluation.report.results import read_published
from relay_trl.evaluation.report.training_plots import read_log
from relay_trl.evaluation.report.write import print_results, write_report


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="[NAME=]FOLDER, answers file or .csv")
    parser.add_argument("--output_dir", default="runs/report", help="where the report goes (default: %(default)s)")
    parser.add_argument("--title", default="Relay evaluation", help="of the report (default: %(default)s)")
    parser.add_argument("--costs", help="YAML with parameters and prices of both models")
    parser.add_argument("--training_logs", nargs="*", default=[], help="trainers' output folders, [NAME=]FOLDER")
    parser.add_argument("--max_answers", type=int, default=1500, help="on the pages of rollouts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    return parser.parse_args()


def named(text: str) -> tuple[str | None, Path]:
    """The two parts of `NAME=path`; an existing path is not split."""
    name, found, path = text.partition("=")
    return (name, Path(path)) if found and not Path(text).exists() else (None, Path(text))


def main():
    args = parse_arguments()
    costs = load_costs(args.costs)
    runs, published = [], []
    for name, path in map(named, args.results):
        if path.suffix == ".csv":
            published += read_published(path, name)
            continue
        found = read_run(path, name)
        methods = {answer.method for answer in found.answers}
        if name and len(methods) == 1 and methods != {"teacher"} and (runs or published):
            found.labels = {methods.pop(): name}  # the only method of a baseline gets the run's name
        runs.append(found)
    logs = {name or path.name: read_log(path) for name, path in map(named, args.training_logs)}
    summaries = write_report(
        runs, args.output_dir, logs, args.title, args.max_answers, args.seed, costs=costs, published=published
    )
    print_results(summaries)
    print(f"Tables, plots and pages are in {args.output_dir}: open {Path(args.output_dir) / 'report.html'}.")


if __name__ == "__main__":
    run(main)
