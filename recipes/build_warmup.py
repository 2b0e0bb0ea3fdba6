"""Builds warm-up data: the student answers problems, and calls are put into its answers.

python recipes/build_warmup.py --config recipes/configs/arithmetic/build_warmup.yaml
"""

import asyncio

from tqdm import tqdm

from relay_trl.cli import RecipeParser, check_model, run
from relay_trl.data.sources import drop_overlong
from relay_trl.data.warmup import WarmupConfig, warmup_rows, write_jsonl
from relay_trl.engines.loading import load_engine
from relay_trl.options import DataConfig
from relay_trl.prompts import PromptBuilder
from relay_trl.training.call_tokens import add_call_tokens
from relay_trl.vocabulary import Vocabulary


def main():
    data, config = RecipeParser((DataConfig, WarmupConfig)).parse()
    if "://" not in config.student:
        check_model(config.student, "student")

    rows = data.load()
    student = load_engine(config.student, config.student_backend)
    tokenizer = student.vocabulary.tokenizer
    if config.add_call_tokens:
        add_call_tokens(tokenizer, config.syntax)
        student.vocabulary = Vocabulary(tokenizer, student.vocabulary.eos_ids)
    builder = PromptBuilder(tokenizer, **config.prompt_options())
    lengths = [len(builder.student_ids(row["prompt"])) for row in rows]
    rows = drop_overlong(rows, lengths, config.max_prompt_length, data.dataset, config.skip_long_prompts)

    async def collect() -> list[dict | None]:
        with tqdm(total=len(rows) * config.samples, desc="answers", unit="answer") as bar:
            made = []
            async for row in warmup_rows(rows, student, builder, config):
                made.append(row)
                bar.update()
            return made

    made = asyncio.run(collect())
    kept = [row for row in made if row is not None]
    if not kept:
        raise ValueError(
            f"None of the {len(made)} answers ended within max_completion_length={config.max_completion_length}; raise it."
        )
    write_jsonl(kept, config.output)
    calls = sum(row["calls"] for row in kept)
    print(
        f"{len(kept)} rows with {calls} calls ({calls / len(kept):.2f} a row) in {config.output}; "
        f"{len(made) - len(kept)} answers did not end and were left out."
    )


if __name__ == "__main__":
    run(main)
