"""The training of CITER's router, from problems to its file: references, rounds of labels and training, thresholds.

Owns the order of the steps. `labels.py` makes the labels, `router.py` has the network.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import cast

from ..engines.base import Context, Engine, FinishReason, Sampling
from ..engines.in_flight import ask_all
from ..grading.grader import Grader
from ..prompts import PromptBuilder
from ..relay import RelayRules
from .config import CiterConfig
from .engine import RoutedEngine
from .labels import Labeller, Reference
from .router import Router, RouterRecord, thresholds_for, train_router

logger = logging.getLogger(__name__)

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Shares of positions whose thresholds are written to a router's record."""


async def find_references(
    rows: list[dict],
    student: RoutedEngine,
    teacher: Engine,
    builder: PromptBuilder,
    grader: Grader,
    config: CiterConfig,
    on_done: Callable[[], object] = lambda: None,
) -> list[Reference]:
    """A right solution for each row that has one: from its `solution_column`, else the teacher's own answer if it is right.

    Raises:
        ValueError: rows without the column, or no right solution at all.
        EngineError: the teacher failed.
    """
    vocabulary, column = student.vocabulary, config.solution_column
    prompts = [builder.build(row["prompt"]) for row in rows]
    if column:
        missing = sum(not isinstance(row.get(column), str) for row in rows)
        if missing:
            raise ValueError(
                f"{missing} of {len(rows)} rows have no text in the column {column!r}; name the column of solutions as "
                "solution_column, or leave it empty to take the teacher's."
            )
        texts = [row[column] for row in rows]
    else:

        async def answer(i: int) -> str:
            greedy = Sampling(temperature=0.0)
            written = await teacher.generate(
                cast(Context, prompts[i].teacher), config.max_completion_length, sampling=greedy
            )
            return written.text if written.finish is FinishReason.EOS else ""

        texts = [""] * len(prompts)
        async for i, text in ask_all(range(len(prompts)), answer, config.max_in_flight):
            texts[i] = text
            on_done()
    verdicts = grader.grade(texts, [row["answer"] for row in rows])
    references = [
        Reference(prompt, [*vocabulary.encode(text), vocabulary.eos_id], row["answer"])
        for row, prompt, text, is_right in zip(rows, prompts, texts, verdicts, strict=True)
        if is_right
    ]
    room = student.max_context
    fitting = [r for r in references if room is None or len(r.prompt.student) + len(r.ids) <= room]
    if len(fitting) < len(rows):
        logger.warning(
            f"{len(rows) - len(fitting)} of {len(rows)} problems are left out: {verdicts.count(False)} have no solution with "
            f"the right answer, {len(references) - len(fitting)} a solution longer than the student's context."
        )
    if not fitting:
        raise ValueError(
            f"None of the {len(rows)} problems has a right solution; check answer_marker and solution_column."
        )
    return fitting


async def train_citer(
    references: list[Reference],
    student: RoutedEngine,
    teacher: Engine,
    grader: Grader,
    config: CiterConfig,
    on_done: Callable[[], object] = lambda: None,
    on_round: Callable[[dict], object] = lambda _: None,
) -> tuple[Router, RouterRecord]:
    """Rounds of labelling and training.

    Args:
        on_done (`Callable`): called after each request.
        on_round (`Callable[[dict], object]`): gets the figures of each round.

    Raises:
        EngineError: the teacher failed.
        ValueError: all labels are the same.
    """
    rules = RelayRules(max_completion_length=config.max_completion_length, syntax=config.syntax)
    labeller = Labeller(references, student, teacher, grader, rules, config.temperature, config.max_in_flight, on_done)
    size = student.model.config.get_text_config().hidden_size
    record = RouterRecord(config.student, size, config.threshold, config.teacher)
    for number in range(1, config.rounds + 1):
        if number == 1:
            await labeller.first_round(config.seed)
        else:
            await labeller.label_open(config.threshold, config.rollout_length, config.seed + number)
        router, fit, held_out = train_router(
            labeller.states,
            labeller.labels,
            labeller.questions,
            config.seed,
            config.learning_rate,
            config.batch_size,
            config.max_epochs,
            config.patience,
            config.held_out_share,
        )
        student.router = router.to(student.model.device)
        figures = {"round": number, **labeller.counts(), **asdict(fit)}
        record.rounds.append(figures)
        on_round(figures)
    record.thresholds = thresholds_for(router.score(labeller.states[held_out].to(student.model.device)), SHARES)
    return router, record
