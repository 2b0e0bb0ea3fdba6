"""Trains the router of CITER, the token-level baseline: it asks the teacher for single tokens.

python recipes/train_citer.py --config recipes/configs/arithmetic/train_citer.yaml
"""

import asyncio

from relay_trl.citer.config import CiterConfig
from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.cli.progress import Bar
from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_overlong, drop_ungradable
from relay_trl.engines.checks import check_model
from relay_trl.engines.loading import close_engines, load_engine
from relay_trl.grading.grader import Grader
from relay_trl.prompts import PromptBuilder


def main():
    data, config = RecipeParser((DataConfig, CiterConfig)).parse()
    from relay_trl.citer.engine import RoutedEngine  # these import torch
    from relay_trl.citer.router import save_router
    from relay_trl.citer.training import find_references, train_citer

    check_model(config.student, "student")
    if "://" not in config.teacher:
        check_model(config.teacher, "teacher")
    dtype = {"dtype": config.dtype} if config.dtype else {}

    with Grader(config.answer_marker) as grader:
        rows = drop_ungradable(data.load(), grader, data.dataset)
        teacher_options = config.teacher_options() | ({} if "://" in config.teacher else dtype)
        teacher = load_engine(config.teacher, **teacher_options)
        student = RoutedEngine.over(load_engine(config.student, "transformers", **dtype))
        builder = PromptBuilder(student.vocabulary.tokenizer, teacher, **config.prompt_options())
        lengths = [len(builder.student_ids(row["prompt"])) for row in rows]
        rows = drop_overlong(rows, lengths, config.max_prompt_length, data.dataset, config.skip_long_prompts)

        def show(figures: dict):
            bar.write(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()))

        async def train():
            try:
                references = await find_references(rows, student, teacher, builder, grader, config, bar.advance)
                bar.write(f"{len(references)} of {len(rows)} problems have a right solution.")
                return await train_citer(references, student, teacher, grader, config, bar.advance, show)
            finally:
                await close_engines(teacher)

        with Bar("requests") as bar:
            router, record = asyncio.run(train())

    save_router(router, record, config.output_dir)
    print(f"The router is in {config.output_dir}. Thresholds below which a share of held-out tokens lies:")
    print("\n".join(f"  {float(share):6.1%}  citer_{threshold}" for share, threshold in record.thresholds.items()))


if __name__ == "__main__":
    run(main)
