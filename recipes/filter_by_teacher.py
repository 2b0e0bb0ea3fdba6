"""Keeps the problems of a training set that the teacher can solve: it answers each of them many times.

python recipes/filter_by_teacher.py --config recipes/configs/arithmetic/filter_by_teacher.yaml
"""

import asyncio
import tempfile
from pathlib import Path

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.cli.progress import Bar
from relay_trl.data.config import DataConfig
from relay_trl.data.registry import SOURCES
from relay_trl.data.sources import drop_overlong, drop_ungradable
from relay_trl.data.teacher_filter import FilterConfig, choose, describe, pass_rates
from relay_trl.engines.checks import check_context, check_model
from relay_trl.engines.loading import close_engines, load_engine
from relay_trl.grading.grader import Grader
from relay_trl.hub.dataset_card import read_rows, write_dataset_card
from relay_trl.hub.upload import push
from relay_trl.prompts import PromptBuilder
from relay_trl.run_files import ResumableRows, read_shards, write_jsonl


def main():
    data, config = RecipeParser((DataConfig, FilterConfig)).parse()
    is_url = "://" in config.teacher
    if not is_url:
        check_model(config.teacher, "teacher")

    with Grader(config.answer_marker, config.grading_time_limit_s) as grader:
        rows = drop_ungradable(data.load(), grader, data.dataset)
        settings = config.settings(rows)
        with ResumableRows(config.rates_path(config.shard), settings) as rates:
            mine = range(config.shard, len(rows), config.num_shards)
            if len(rates) < len(mine):
                options = config.teacher_options() | ({"dtype": config.dtype} if config.dtype and not is_url else {})
                ask(rows, load_engine(config.teacher, **options), grader, rates, len(mine), data.dataset, config)
            else:
                print(f"{rates.path} has all rates of this shard already.")

    paths = [config.rates_path(shard) for shard in range(config.num_shards)]
    found, missing = read_shards(paths, settings, len(rows))
    if missing:
        print(f"Shard {config.shard} is done. No dataset yet: rates are missing in the shards {', '.join(missing)}.")
        return
    kept = choose(rows, found, config)
    path = Path(config.output_dir) / "train.jsonl"
    write_jsonl(kept, path)
    summary = f"{len(kept)} of {len(rows)} problems kept by pass rate: {describe(found)}."
    print(f"{summary} They are in {path}.")
    if config.push_to is not None:
        origin = SOURCES[data.dataset].hub_id if data.dataset in SOURCES else data.dataset
        settings = {**settings, "kept": summary}
        with tempfile.TemporaryDirectory() as folder:
            card = write_dataset_card(folder, read_rows(path), config.push_to, path.name, None, origin, settings)
            files = {path.name: path, "README.md": card}
            print(f"Pushed: {push(files, config.push_to, 'dataset', config.is_private, 'Problems by pass rate')}")


def ask(rows: list[dict], teacher, grader: Grader, rates: ResumableRows, total: int, name: str, config: FilterConfig):
    """Fills `rates`, with a progress bar."""
    tokenizer = teacher.vocabulary.tokenizer if teacher.vocabulary else None
    builder = PromptBuilder(tokenizer, teacher, **config.prompt_options())
    contexts = [builder.teacher_context(row["prompt"]) for row in rows]
    # If there is no tokenizer here, the teacher's server refuses prompts that are too long.
    lengths = [len(context) if isinstance(context, list) and tokenizer else 0 for context in contexts]
    drop_overlong(rows, lengths, config.max_prompt_length, name, config.skip_long_prompts)
    contexts = [c if n <= config.max_prompt_length else None for c, n in zip(contexts, lengths, strict=True)]
    if "://" not in config.teacher:
        longest = max(n for n in lengths if n <= config.max_prompt_length)
        check_context(config.teacher, longest, config.max_completion_length)

    async def run_all():
        golds = [row["answer"] for row in rows]
        try:
            with Bar("problems", total, len(rates)) as bar:
                async for number, rate in pass_rates(contexts, golds, teacher, grader, config, rates):
                    rates.add(number, rate)
                    bar.advance()
        finally:
            await close_engines(teacher)

    asyncio.run(run_all())


if __name__ == "__main__":
    run(main)
