"""Asks every problem with every method, many at the same time, grades the answers and writes each at once.

Owns seeds, concurrency, progress, and what is asked again after a run was killed. `methods.py` has the methods,
`answer_files.py` the files; engines batch the requests under way.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ..cli.progress import Lines, is_watched
from ..data.sources import drop_overlong
from ..engines.base import Engine
from ..engines.loading import close_engines
from ..grading.grader import Grader
from ..prompts import PromptBuilder
from ..relay import RelayPrompt, RelayRules
from .answer_files import Answer, AnswerFile
from .methods import Method, readable

logger = logging.getLogger(__name__)

_GRADED_AT_ONCE = 64


@dataclass(frozen=True)
class Problems:
    """The rows of a benchmark with both models' prompts.

    Args:
        benchmark (`str`): its name in the answers.
        rows (`list[dict]`): with `prompt`, `answer` and optionally `kind`.
        prompts (`list[RelayPrompt]`): one per row.
    """

    benchmark: str
    rows: list[dict]
    prompts: list[RelayPrompt]


def build_problems(
    benchmark: str,
    rows: list[dict],
    builder: PromptBuilder,
    student: Engine,
    max_prompt_tokens: int | None = None,
    max_completion_length: int = 0,
    skip_long_prompts: bool = False,
) -> Problems:
    """Renders the prompts and refuses those that do not fit, before any request.

    Args:
        max_prompt_tokens (`int`, *optional*): budget of both models' prompts; `None`: only the contexts limit them.
        max_completion_length (`int`, defaults to `0`): tokens that a prompt must leave free in a model's context.
        skip_long_prompts (`bool`, defaults to `False`): whether rows that do not fit are left out instead of refused.

    Raises:
        ValueError: a prompt does not fit.
    """
    rows = [{**row, "_prompt": builder.build(row["prompt"])} for row in rows]
    for engine, ids_of in ((student, _student_ids), (builder.teacher, _teacher_ids)):
        if engine is None:
            continue
        room = None if engine.max_context is None else engine.max_context - max_completion_length
        if room is not None and room < 1:
            raise ValueError(
                f"max_completion_length is {max_completion_length}, but {engine.name} has room for {engine.max_context} "
                "tokens of prompt and completion together; lower max_completion_length."
            )
        budget = min((limit for limit in (max_prompt_tokens, room) if limit is not None), default=None)
        if budget is not None:
            rows = drop_overlong(
                rows, [len(ids_of(row["_prompt"])) for row in rows], budget, benchmark, skip_long_prompts
            )
    return Problems(benchmark, rows, [row.pop("_prompt") for row in rows])


def _student_ids(prompt: RelayPrompt) -> list[int]:
    return prompt.student


def _teacher_ids(prompt: RelayPrompt) -> list[int]:
    # The length of a text or a chat is not known here; the teacher's server refuses what is too long.
    context = prompt.teacher if isinstance(prompt.teacher, list) else []
    return [token for token in context if isinstance(token, int)]


def answer_seed(seed: int, benchmark: str, index: int, sample: int) -> int:
    """The seed of one answer. It is the same for every method and whatever else is asked, so that methods are compared with
    the same random numbers.
    """
    text = f"{seed}/{benchmark}/{index}/{sample}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def evaluate(
    methods: Sequence[Method],
    problems: Problems,
    student: Engine,
    teacher: Engine | None,
    config: RelayRules,
    grader: Grader,
    answers: AnswerFile,
    samples: int = 1,
    seed: int = 0,
    max_in_flight: int = 256,
    has_progress: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Fills `answers` with the answers that are missing in it.

    Args:
        methods (`Sequence[Method]`): asked one after the other; their rollouts overlap.
        problems ([`Problems`]).
        student ([`Engine`]), teacher ([`Engine`], *optional*).
        config ([`RelayRules`]): the rules for all methods.
        grader ([`Grader`]).
        answers ([`AnswerFile`]): its answers are not asked again, except rollouts whose teacher failed.
        samples (`int`, defaults to `1`): answers per problem and method.
        seed (`int`, defaults to `0`).
        max_in_flight (`int`, defaults to `256`): rollouts at a time.
        has_progress (`bool`, defaults to `True`): whether to show a bar per method on standard error.
        shard (`tuple[int, int]`, defaults to `(0, 1)`): `(k, n)` asks the k-th of n shards of the answers.

    Raises:
        EngineError: the student failed. The answers before that are in the file.
        ValueError: a method asks the teacher, but there is none.
    """
    lonely = [method.name for method in methods if method.has_teacher and teacher is None]
    if lonely:
        raise ValueError(f"The methods {', '.join(lonely)} ask the teacher, but there is none; set `teacher`.")
    mine = [
        _Job(method, index, sample)
        for method in methods
        for sample in range(samples)
        for index in range(len(problems.rows))
        if (sample * len(problems.rows) + index) % shard[1] == shard[0]
    ]
    jobs = [job for job in mine if (job.method.name, problems.benchmark, job.index, job.sample) not in answers.done]
    if len(jobs) < len(mine):
        logger.warning(
            f"{answers.path}: {len(mine) - len(jobs)} of {len(mine)} answers are there already and are kept."
        )
    if not jobs:
        return
    board = _Board(methods, len(mine) // len(methods), jobs, is_shown=has_progress)

    def take(batch: list[Answer]):
        """Grades answers and writes them. Rollouts whose teacher failed are not graded."""
        graded = [answer for answer in batch if not answer.trace.has_failed]
        verdicts = grader.grade([answer.trace.answer for answer in graded], [answer.gold for answer in graded])
        for answer, verdict in zip(graded, verdicts, strict=True):
            answer.correct = verdict
        for answer in batch:
            answers.add(answer)
            board.count(answer)

    async def ask(job: _Job) -> Answer:
        row = problems.rows[job.index]
        rollout_seed = answer_seed(seed, problems.benchmark, job.index, job.sample)
        trace = await job.method.answer(problems.prompts[job.index], student, teacher, config, rollout_seed)
        place = (job.method.name, problems.benchmark, job.index, job.sample)
        return Answer(*place, row["prompt"], row["answer"], None, row.get("kind"), trace)

    async def ask_all():
        try:
            await _ask_all(iter(jobs), ask, take, min(max_in_flight, len(jobs)))
        finally:
            await close_engines(student, teacher)

    with board:
        asyncio.run(ask_all())


@dataclass(frozen=True)
class _Job:
    method: Method
    index: int
    sample: int


async def _ask_all(jobs: Iterator[_Job], ask, take: Callable[[list[Answer]], None], workers: int) -> None:
    finished: asyncio.Queue[Answer | None] = asyncio.Queue()

    async def work():
        for job in jobs:
            finished.put_nowait(await ask(job))

    async def write():
        is_open = True
        while is_open:
            batch = [await finished.get()]
            while not finished.empty() and len(batch) < _GRADED_AT_ONCE:
                batch.append(finished.get_nowait())
            is_open = None not in batch
            # In a thread, so that grading does not block the engines' loop.
            await asyncio.to_thread(take, [answer for answer in batch if answer is not None])

    writer = asyncio.create_task(write())
    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    try:
        # The writer is watched too, so that the workers stop if the disk is full.
        waiting = {*tasks}
        while waiting:
            done, waiting = await asyncio.wait({*waiting, writer}, return_when=asyncio.FIRST_COMPLETED)
            waiting.discard(writer)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        finished.put_nowait(None)
        await writer


@dataclass
class _Tally:
    bar: tqdm
    answers: int = 0
    correct: int = 0
    teacher_share: float = 0.0
    failures: int = 0


class _Board:
    """A bar for each method, with accuracy and rho of the answers of this run; lines where no bar can be seen."""

    def __init__(self, methods: Sequence[Method], total: int, jobs: list[_Job], is_shown: bool):
        has_bars = is_shown and is_watched()
        self._tallies = {}
        for method in methods:
            done = total - sum(job.method is method for job in jobs)
            self._tallies[method.name] = _Tally(
                tqdm(total=total, initial=done, desc=readable(method.name), disable=not has_bars)
            )
        total *= len(methods)
        self._lines = Lines("answers", total, total - len(jobs), is_shown and not has_bars)

    def count(self, answer: Answer) -> None:
        tally = self._tallies[answer.method]
        if answer.correct is None:
            tally.failures += 1
        else:
            tally.answers += 1
            tally.correct += answer.correct
            tally.teacher_share += answer.trace.teacher_share
        shares = (tally.correct / tally.answers, tally.teacher_share / tally.answers) if tally.answers else (0.0, 0.0)
        failed = f", {tally.failures} teacher failures" if tally.failures else ""
        note = f"accuracy {shares[0]:.3f}, teacher {shares[1]:.3f}{failed}"
        tally.bar.set_postfix_str(note, refresh=False)
        tally.bar.update()
        self._lines.advance(1, f"{readable(answer.method)}: {note}")

    def __enter__(self) -> "_Board":
        return self

    def __exit__(self, *exception) -> None:
        self._lines.close()
        for tally in self._tallies.values():
            tally.bar.close()
