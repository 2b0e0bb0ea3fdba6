"""Builds warm-up data: the student answers problems, and calls are put into its answers.

python recipes/build_warmup.py --config recipes/configs/arithmetic/build_warmup.yaml
"""

import asyncio

from tqdm import tqdm

from relay_trl.cli import RecipeParser, run
from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_overlong
from relay_trl.data.warmup import WarmupConfig, warmup_rows
from relay_trl.engines.checks import check_model
from relay_trl.engines.loading import close_engines, load_engine
from relay_trl.prompts import PromptBuilder
from relay_trl.run_files import ResumableRows, write_jsonl
from relay_trl.training.call_tokens import add_call_tokens
from relay_trl.vocabulary import Vocabulary


def main():
    data, config = RecipeParser((DataConfig, WarmupConfig)).parse()
    if "://" not in config.student:
        check_model(config.student, "student")

    rows = data.load()
    is_url = "://" in config.student
    options = {"tokenizer": config.student_tokenizer, "model": config.student_model} if is_url else {}
    student = load_engine(config.student, config.student_backend, max_concurrency=config.max_in_flight, **options)
    if student.vocabulary is None:
        raise ValueError(f"{student.name} gives text only, but a student's tokens are needed; set student_tokenizer.")
    tokenizer = student.vocabulary.tokenizer
    if config.add_call_tokens:
        add_call_tokens(tokenizer, config.syntax)
        student.vocabulary = Vocabulary(tokenizer, student.vocabulary.eos_ids)
    builder = PromptBuilder(tokenizer, **config.prompt_options())
    lengths = [len(builder.student_ids(row["prompt"])) for row in rows]
    rows = drop_overlong(rows, lengths, config.max_prompt_length, data.dataset, config.skip_long_prompts)

    async def make(answers: ResumableRows):
        total = len(rows) * config.samples
        try:
            with tqdm(total=total, initial=len(answers), desc="answers", unit="answer") as bar:
                async for number, row in warmup_rows(rows, student, builder, config, answers, config.max_in_flight):
                    answers.add(number, row)
                    bar.update()
        finally:
            await close_engines(student)

    # A run that is killed goes on from this file; it is taken away when the rows are written, in order.
    with ResumableRows(f"{config.output}.progress", config.settings(rows)) as answers:
        if len(answers):
            print(f"{answers.path} has {len(answers)} answers of an earlier run, which are kept.")
        asyncio.run(make(answers))
        calls = [row["calls"] for _, row in answers.in_order() if row is not None]
        if calls:
            write_jsonl((row for _, row in answers.in_order() if row is not None), config.output)
    answers.path.unlink()
    if not calls:
        raise ValueError(
            f"None of the {len(answers)} answers ended within max_completion_length={config.max_completion_length}; raise it."
        )
    print(
        f"{len(calls)} rows with {sum(calls)} calls ({sum(calls) / len(calls):.2f} a row) in {config.output}; "
        f"{len(answers) - len(calls)} answers did not end and were left out."
    )


if __name__ == "__main__":
    run(main)
