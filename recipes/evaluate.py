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
from relay_trl.evaluation.processes import run_shards
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
    configs = [config.for_benchmark(name) for name in config.benchmarks]
    rows = {}
    for one in configs:  # all of them before any model is loaded
        with one.load_grader() as grader:
            rows[one.benchmark] = drop_ungradable(one.load_rows(), grader, one.benchmark)
    if config.num_processes > 1 and config.shard is None:
        total = sum(len(rows[one.benchmark]) * one.samples for one in configs) * len(methods)
        run_shards(sys.argv, config.num_processes, config.output_dir, total)
    else:
        answer_all(configs, rows, methods, has_teacher)
    if config.shard is not None:
        return
    judge_run(config.output_dir, judge, config)
    title = f"{config.student} on {', '.join(config.benchmarks)}"
    run = read_run(config.output_dir)
    summaries = write_report([run], config.output_dir, logs, title, config.pages_answers, costs=costs)
    print_results(summaries)
    Console().print(f"Answers, tables, plots and report.html are in {config.output_dir}.", highlight=False)


def answer_all(configs: list[EvaluationConfig], rows: dict[str, list[dict]], methods: list, has_teacher: bool):
    """Fills the run's files with what is missing in them."""
    first = configs[0]
    weights = first.weights()
    with ExitStack() as stack:
        files = []
        for config in configs:  # other settings are refused before any model is loaded
            path = answer_path(config.output_dir, config.benchmark, config.parsed_shard())
            file = AnswerFile(path, config.settings(rows[config.benchmark], weights))
            files.append(stack.enter_context(file))
        # The teacher first, so that a server that is down is noticed before a model is loaded.
        teacher = load_engine(first.teacher, **first.teacher_options()) if has_teacher else None
        student = load_engine(first.student, **first.student_options())
        if first.citer_router is not None:
            from relay_trl.citer.engine import with_router  # imports torch

            student = with_router(student, first.citer_router)
        for config, answers in zip(configs, files, strict=True):
            with config.load_grader() as grader:
                builder = config.prompt_builder(student, teacher)
                limits = (config.max_prompt_length, config.max_completion_length, config.skip_long_prompts)
                problems = build_problems(config.benchmark, rows[config.benchmark], builder, student, *limits)
                evaluate(
                    *(methods, problems, student, teacher, config.relay_config(), grader, answers),
                    samples=config.samples,
                    seed=config.seed,
                    max_in_flight=config.max_in_flight,
                    has_progress=config.shard is None,
                    shard=config.parsed_shard(),
                )


if __name__ == "__main__":
    run(main)
