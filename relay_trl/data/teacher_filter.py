"""Keeps problems that the teacher can solve: it answers each one many times, and a range of pass rates is kept.

Owns the options, the asking and the choice (paper, section 3.2: the training set is what the teacher can solve). All rates
are kept in a file, so that another range needs no new answers.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Container
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..engines.base import Context, Engine, FinishReason, Sampling
from ..engines.in_flight import ask_past_failures
from ..grading.grader import Grader
from ..options import PromptFields, TeacherFields
from ..redaction import redact
from ..run_files import fingerprint, fingerprint_rows

logger = logging.getLogger(__name__)


@dataclass
class FilterConfig(PromptFields, TeacherFields):
    """How a training set is filtered.

    Args:
        output_dir (`str`): gets `rates-*.jsonl`, one a shard, and the dataset, `train.jsonl`.
        samples (`int`, defaults to `16`): answers of the teacher per problem.
        teacher_temperature (`float`, defaults to `0.7`): sampling temperature of the teacher.
        teacher_top_p (`float`, defaults to `0.95`): nucleus of the teacher.
        max_completion_length (`int`, defaults to `8192`): most tokens of an answer; one that is cut is wrong.
        min_pass_rate (`float`, *optional*): rows below it are dropped; `None`, as in the released script, drops those never
            solved.
        max_pass_rate (`float`, defaults to `1.0`): rows above it are dropped.
        shard (`int`, defaults to `0`): which share of the problems this process asks.
        num_shards (`int`, defaults to `1`): how many processes share the problems; this process asks every
            `num_shards`-th problem, the `shard`-th first; whichever process ends last writes the dataset.
        max_in_flight (`int`, defaults to `32`): problems at a time, each with all its samples.
        max_teacher_failures (`int`, defaults to `16`): problems in a row lost to a failing teacher at which the run stops.
        push_to (`str`, *optional*): dataset on the Hub to push to; is_private (`bool`, defaults to `True`): when it is made.
        dtype (`str`, *optional*): of a teacher in this process.
        grading_time_limit_s (`float`, defaults to `5.0`): seconds to grade one answer.
        chat_template_kwargs (`dict`, *optional*): passed to the chat template.
        seed (`int`, defaults to `42`): fixes the teacher's samples.
        is_private: whether a dataset made on the Hub is private.

    Raises:
        ValueError: a field is out of its range.
    """

    output_dir: str = ""
    samples: int = 16
    teacher_temperature: float = 0.7
    teacher_top_p: float = 0.95
    max_completion_length: int = 8192
    min_pass_rate: float | None = None
    max_pass_rate: float = 1.0
    shard: int = 0
    num_shards: int = 1
    max_in_flight: int = 32
    max_teacher_failures: int = 16
    push_to: str | None = None
    is_private: bool = True
    dtype: str | None = None
    grading_time_limit_s: float = 5.0
    chat_template_kwargs: dict | None = None
    seed: int = 42

    def __post_init__(self):
        self.check_prompts()
        self.check_teacher()
        Sampling(self.teacher_temperature, self.teacher_top_p)
        for name in ("teacher", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; there is no default for it.")
        for name in ("samples", "max_completion_length", "num_shards", "max_in_flight", "max_teacher_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(
                f"shard is {self.shard}; with num_shards {self.num_shards} it must be 0 to {self.num_shards - 1}."
            )
        if not 0 <= (self.min_pass_rate or 0) <= self.max_pass_rate <= 1:
            raise ValueError(
                f"min_pass_rate is {self.min_pass_rate} and max_pass_rate {self.max_pass_rate}; they must be shares from 0 to "
                "1, the first no more than the second."
            )
        if self.push_to is not None and self.push_to.count("/") != 1:
            raise ValueError(f"push_to is {self.push_to!r}; it must be the id of a dataset, such as 'user/name'.")

    def settings(self, rows: list[dict]) -> dict:
        """What the rates depend on. Not the range, so that another one needs no new answers."""
        elsewhere = {
            *("output_dir", "min_pass_rate", "max_pass_rate", "push_to", "is_private", "shard", "max_in_flight"),
            *("max_teacher_failures", "teacher_timeout_s", "teacher_retries", "teacher_concurrency", "teacher_backend"),
        }
        kept = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        weights = fingerprint(self.teacher or "")
        return redact({**kept, "teacher_weights": weights, "problems": fingerprint_rows(rows)})

    def rates_path(self, shard: int) -> Path:
        """The file with the rates of a shard."""
        return Path(self.output_dir) / f"rates-{shard:05d}-of-{self.num_shards:05d}.jsonl"

    def keeps(self, rate: float) -> bool:
        """Whether a pass rate is within the range."""
        return (rate > 0 if self.min_pass_rate is None else rate >= self.min_pass_rate) and rate <= self.max_pass_rate


async def pass_rates(
    contexts: list[Context | None],
    golds: list,
    teacher: Engine,
    grader: Grader,
    config: FilterConfig,
    done: Container[int] = (),
) -> AsyncIterator[tuple[int, dict]]:
    """Asks the teacher the problems of this shard.

    Args:
        contexts (`list[Context]`), golds (`list`): of all problems, of all shards; `None` for one that is too long to ask.
        done (`Container[int]`): numbers of problems that are not asked again.

    Yields:
        `tuple[int, dict]`, as problems are done: number, and `correct`, `samples`, `cut` (answers that did not end) and
        `is_asked`.

    Raises:
        EngineError: the teacher failed at `config.max_teacher_failures` problems in a row, or at any of them, once all
            others are done. A problem with a failure has no rate: it is asked again by the next run.
    """
    sampling = Sampling(config.teacher_temperature, config.teacher_top_p)

    async def ask(number: int) -> dict:
        context = contexts[number]
        if context is None:
            return {"correct": 0, "samples": config.samples, "cut": 0, "is_asked": False}
        seeds = ((config.seed * 1_000_003 + number) * config.samples + k for k in range(config.samples))
        asks = [
            teacher.generate(context, config.max_completion_length, sampling=replace(sampling, seed=seed))
            for seed in seeds
        ]
        results = await asyncio.gather(*asks, return_exceptions=True)  # nobody is left behind by another's failure
        for result in results:
            if isinstance(result, BaseException):
                raise result
        answers = [result for result in results if not isinstance(result, BaseException)]
        texts, ended = [answer.text for answer in answers], [answer.finish is FinishReason.EOS for answer in answers]
        verdicts = await asyncio.to_thread(grader.grade, texts, [golds[number]] * config.samples)
        correct = sum(is_right and has_ended for is_right, has_ended in zip(verdicts, ended, strict=True))
        return {"correct": correct, "samples": config.samples, "cut": ended.count(False), "is_asked": True}

    numbers = (n for n in range(config.shard, len(contexts), config.num_shards) if n not in done)
    what = "The teacher failed at {} problems"
    async for number, rate in ask_past_failures(numbers, ask, config.max_in_flight, config.max_teacher_failures, what):
        yield number, rate


def choose(rows: list[dict], rates: dict[int, dict], config: FilterConfig) -> list[dict]:
    """The rows within the range, each with `pass_rate` and `teacher_samples`.

    Raises:
        ValueError: none is.
    """
    kept = []
    for number, row in enumerate(rows):
        rate = rates[number]["correct"] / rates[number]["samples"]
        if rates[number]["is_asked"] and config.keeps(rate):
            kept.append({**row, "pass_rate": rate, "teacher_samples": rates[number]["samples"]})
    if not kept:
        raise ValueError(
            f"None of {len(rows)} problems has a pass rate within the range ({describe(rates)}); widen min_pass_rate and "
            "max_pass_rate, or check that answers are found (answer_marker, max_completion_length)."
        )
    return kept


def describe(rates: dict[int, dict]) -> str:
    """The distribution of pass rates, in words."""
    quarters = Counter()
    for rate in rates.values():
        if not rate["is_asked"]:
            continue
        share = rate["correct"] / rate["samples"]
        quarters[
            "never" if share == 0 else "always" if share == 1 else "up to half" if share <= 0.5 else "more than half"
        ] += 1
    shown = ", ".join(f"{name} {quarters[name]}" for name in ("never", "up to half", "more than half", "always"))
    unasked = sum(not rate["is_asked"] for rate in rates.values())
    too_long = f"; {unasked} problems were too long to ask" if unasked else ""
    return f"solved {shown}; {sum(rate['cut'] for rate in rates.values())} answers did not end{too_long}"
