"""Evaluates a student and its teacher on benchmarks with several methods; writes tables, plots and pages of rollouts.

python recipes/evaluate.py --config recipes/configs/arithmetic/evaluate.yaml
"""

import sys
from contextlib import ExitStack

from rich.console import Console

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.costs import load_costs
from relay_trl.data.sources import drop_ungradable
from relay_trl.engines.checks import check_model
from relay_trl.engines.loading import load_engine
from relay_trl.evaluation.answer_files import AnswerFile, answer_path, read_run
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.evaluation.judging import judge_run
from relay_trl.evaluation.methods import load_methods
from relay_trl.evaluation.processes import run_parts
from relay_trl.evaluation.report.training_plots import find_logs
from relay_trl.evaluation.report.write import print_results, write_report
from relay_trl.evaluation.runner import build_problems, evaluate
from relay_trl.grading.judge import load_judge


def main():
    (config,) = RecipeParser((EvaluationConfig,)).parse()
    check_model(config.student, "student")
    config = config.with_student_defaults()
    methods = load_methods(config.methods)
    has_teacher = any(method.has_teacher for method in methods)
    if has_teacher and "://" not in config.teacher:
        check_model(config.teacher, "teacher")
    logs = find_logs(config.training_logs, config.student)
    costs = load_costs(config.costs)
    judge = None if config.shard else load_judge(config)
    parts = [config.for_benchmark(name) for name in config.benchmarks]
    rows = {}
    for part in parts:  # all of them before any model is loaded
        with part.load_grader() as grader:
            rows[part.benchmark] = drop_ungradable(part.load_rows(), grader, part.benchmark)
    if config.num_processes > 1 and config.shard is None:
        total = sum(len(rows[part.benchmark]) * part.samples for part in parts) * len(methods)
        run_parts(sys.argv, config.num_processes, config.output_dir, total)
    else:
        answer_all(parts, rows, methods, has_teacher)
    if config.shard is not None:
        return
    judge_run(config.output_dir, judge, config)
    title = f"{config.student} on {', '.join(config.benchmarks)}"
    run = read_run(config.output_dir)
    summaries = write_report([run], config.output_dir, logs, title, config.pages_answers, costs=costs)
    print_results(summaries)
    Console().print(f"Answers, tables, plots and report.html are in {config.output_dir}.", highlight=False)


def answer_all(parts: list[EvaluationConfig], rows: dict[str, list[dict]], methods: list, has_teacher: bool):
    """Fills the run's files with what is missing in them."""
    first = parts[0]
    weights = first.weights()
    with ExitStack() as stack:
        files = []
        for part in parts:  # other settings are refused before any model is loaded
            path = answer_path(part.output_dir, part.benchmark, part.part())
            file = AnswerFile(path, part.settings(rows[part.benchmark], weights))
            files.append(stack.enter_context(file))
        # The teacher first, so that a server that is down is noticed before a model is loaded.
        teacher = load_engine(first.teacher, **first.teacher_options()) if has_teacher else None
        student = load_engine(first.student, **first.student_options())
        if first.citer_router is not None:
            from relay_trl.citer.engine import with_router  # imports torch

            student = with_router(student, first.citer_router)
        for part, answers in zip(parts, files, strict=True):
            with part.load_grader() as grader:
                builder = part.prompt_builder(student, teacher)
                limits = (part.max_prompt_length, part.max_completion_length, part.skip_long_prompts)
                problems = build_problems(part.benchmark, rows[part.benchmark], builder, student, *limits)
                evaluate(
                    *(methods, problems, student, teacher, part.relay_config(), grader, answers),
                    samples=part.samples,
                    seed=part.seed,
                    max_in_flight=part.max_in_flight,
                    has_progress=part.shard is None,
                    part=part.part(),
                )


if __name__ == "__main__":
    run(main)
