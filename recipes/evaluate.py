"""Asks a benchmark of a student and its teacher by several methods, and writes tables, plots and a page of rollouts.

python recipes/evaluate.py --config recipes/configs/arithmetic/evaluate.yaml
"""

from pathlib import Path

from rich.console import Console

from relay_trl.citer.engine import with_router
from relay_trl.cli import RecipeParser, check_model, run
from relay_trl.data.sources import drop_ungradable, load_rows
from relay_trl.engines.loading import load_engine
from relay_trl.evaluation.answers import AnswerFile, read_run
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.evaluation.methods import load_methods
from relay_trl.evaluation.plots import find_logs
from relay_trl.evaluation.report import print_results, write_report
from relay_trl.evaluation.runner import build_problems, evaluate
from relay_trl.grading import Grader


def main():
    (config,) = RecipeParser((EvaluationConfig,)).parse()
    check_model(config.student, "student")
    config = config.with_student_defaults()
    methods = load_methods(config.methods)
    has_teacher = any(method.has_teacher for method in methods)
    if has_teacher and "://" not in config.teacher:
        check_model(config.teacher, "teacher")
    logs = find_logs(config.training_logs, config.student)

    rows = load_rows(
        config.benchmark,
        config.data_dir,
        config.split,
        config.size,
        config.seed,
        config.problem_column,
        config.answer_column,
    )
    path = Path(config.output_dir) / "answers.jsonl"
    with Grader(config.answer_marker, config.grading_time_limit_s) as grader:
        rows = drop_ungradable(rows, grader, config.benchmark)
        with AnswerFile(path, config.settings(rows)) as answers:
            # The teacher first: a server that is down is known before any model is loaded.
            teacher = load_engine(config.teacher, **config.teacher_options()) if has_teacher else None
            student = load_engine(config.student, **config.student_options())
            if config.citer_router is not None:
                student = with_router(student, config.citer_router)
            problems = build_problems(
                config.benchmark,
                rows,
                config.prompt_builder(student, teacher),
                student,
                config.max_prompt_length,
                config.max_completion_length,
                config.skip_long_prompts,
            )
            evaluate(
                methods,
                problems,
                student,
                teacher,
                config.relay_config(),
                grader,
                answers,
                config.samples,
                config.seed,
                config.max_in_flight,
            )

    summaries = write_report(
        [read_run(path)], config.output_dir, logs, f"{config.student} on {config.benchmark}", config.pages_answers
    )
    print_results(summaries)
    Console().print(f"Answers, tables, plots and the page rollouts.html are in {config.output_dir}.", highlight=False)


if __name__ == "__main__":
    run(main)
