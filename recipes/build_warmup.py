"""Builds warm-up data: the student answers problems, and calls are inserted into its answers.

python recipes/build_warmup.py --config recipes/configs/arithmetic/build_warmup.yaml
"""

import asyncio
from dataclasses import replace

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.cli.progress import Bar
from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_overlong
from relay_trl.data.warmup import WarmupConfig, warmup_rows, write_warmup
from relay_trl.engines.checks import check_model
from relay_trl.engines.loading import close_engines, load_engine
from relay_trl.prompts import PromptBuilder
from relay_trl.relay_config import load_record
from relay_trl.run_files import ResumableRows, read_shards
from relay_trl.training.call_tokens import add_call_tokens
from relay_trl.vocabulary import Vocabulary


def main():
    data, config = RecipeParser((DataConfig, WarmupConfig)).parse()
    if "://" not in config.student:
        check_model(config.student, "student")

    rows = data.load()
    is_url = "://" in config.student
    options = {"tokenizer": config.student_tokenizer, "model": config.student_model} if is_url else {}
    options["needs_logprobs"] = config.calls == "searched"  # which asks how sure the student was of its tokens
    student = load_engine(config.student, config.student_backend, max_concurrency=config.max_in_flight, **options)
    if student.vocabulary is None:
        raise ValueError(f"{student.name} gives text only, but a student's tokens are needed; set student_tokenizer.")
    tokenizer = student.vocabulary.tokenizer
    is_caller = set(tokenizer.get_added_vocab()) >= {config.open_tag, config.close_tag} or (
        not is_url and load_record(config.student) is not None
    )
    if config.add_call_tokens:
        add_call_tokens(tokenizer, config.syntax)
        student.vocabulary = Vocabulary(tokenizer, student.vocabulary.eos_ids)
    builder = PromptBuilder(tokenizer, **config.prompt_options())
    lengths = [len(builder.student_ids(row["prompt"])) for row in rows]
    rows = drop_overlong(rows, lengths, config.max_prompt_length, data.dataset, config.skip_long_prompts)

    teacher = None
    if config.calls == "searched":
        teacher = load_engine(config.teacher, **config.teacher_options())
        builder = replace(builder, teacher=teacher)

    async def make(answers: ResumableRows, total: int):
        try:
            with Bar("answers", total, len(answers)) as bar:
                async for number, entry in warmup_rows(rows, student, builder, config, answers, teacher, is_caller):
                    answers.add(number, entry)
                    bar.advance()
        finally:
            await close_engines(student, teacher)

    # A killed run resumes from these files. They are removed when the rows are written in order.
    total, settings = len(rows) * config.samples, config.settings(rows)
    paths = [config.progress_path(shard) for shard in range(config.num_shards)]
    with ResumableRows(paths[config.shard], settings) as answers:
        if len(answers):
            print(f"{answers.path} has {len(answers)} answers of an earlier run, which are kept.")
        asyncio.run(make(answers, len(range(config.shard, total, config.num_shards))))
    entries, missing = read_shards(paths, settings, total)
    if missing:
        print(f"Shard {config.shard} is done. No rows yet: answers are missing in the shards {', '.join(missing)}.")
        return
    for path in paths:
        path.unlink()
    print(write_warmup(entries, config))


if __name__ == "__main__":
    run(main)
