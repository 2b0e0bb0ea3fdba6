"""Warm-up data: the student's own answers with calls in them, from which it learns to call.

Owns the options and the rows. `random_calls.py` (paper, section 3.2) and `searched_calls.py` choose places and n of calls.
"""

import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Container
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from ..call_bias import NEVER
from ..engines.base import Engine, Sampling
from ..engines.in_flight import ask_past_failures
from ..grading.grader import Grader
from ..options import PromptFields, refuse_without
from ..prompts import PromptBuilder
from ..redaction import redact
from ..relay import RelayRules, relay
from ..run_files import fingerprint, fingerprint_rows, write_jsonl
from ..trace import Author, Span, StopReason, Trace
from ..vocabulary import Vocabulary
from .random_calls import command_ids, insert_calls
from .search_fields import SearchFields
from .searched_calls import CallSearch

CALLS = ("random", "searched")

_ONLY = {
    "random": {"call_weights", "num_orders", "step_share", "step_start_share"},
    "searched": {f.name for f in fields(SearchFields)} - {"step_end"},
}
"""Options of one kind of calls that the other does not have."""

_ASKING = ("teacher_backend", "teacher_timeout_s", "teacher_retries", "teacher_concurrency", "max_teacher_failures")
"""Options of requests to the teacher, which do not change an answer."""


@dataclass
class WarmupConfig(PromptFields, SearchFields):
    """How the warm-up data are made; what a search goes by: [`~relay_trl.data.search_fields.SearchFields`].

    Args:
        student (`str`): folder or Hub id of the model whose answers are used.
        output (`str`): the `.jsonl` file to write.
        calls (`str`, defaults to `"random"`): where calls stand: `random`, the paper's, or `searched`, which asks `teacher`.
        student_backend (`str`, defaults to `"auto"`): `auto`, `transformers`, `vllm` or `openai`.
        student_tokenizer (`str`, *optional*): tokenizer of a student behind a URL.
        student_model (`str`, *optional*): the student's name on its server; of a student behind a URL, see
            [`~relay_trl.engines.loading.load_engine`].
        max_in_flight (`int`, defaults to `512`): answers at a time.
        samples (`int`, defaults to `1`): answers per problem.
        temperature (`float`, defaults to `1.0`): of the student.
        top_p (`float`, defaults to `1.0`): of the student.
        max_completion_length (`int`, defaults to `1024`): most tokens of an answer; answers that do not end are left out.
        call_weights (`list[float]`): relative frequency of answers with 0, 1, 2, ... calls; the paper has 0 to 3.
        num_orders (`int`, defaults to `4`): n is a digit 1 to 9 times 10^0 .. 10^(num_orders - 1).
        step_share (`float`, defaults to `0.0`): share of calls whose n reaches to the end of the step that they stand in,
            instead; the paper has none. Long answers of many steps hold few calls that random lengths fit.
        step_start_share (`float`, defaults to `0.0`): share of calls that stand where a step begins; the others, and all of
            the paper's, may stand at any token.
        called_share (`float`, *optional*): share of rows with calls; other rows are left out at random to reach it. `None`
            keeps all rows.
        shard (`int`, defaults to `0`): which share of the answers this process makes.
        num_shards (`int`, defaults to `1`): how many processes share the answers; this process makes every
            `num_shards`-th answer, beginning with number `shard`; the process that ends last writes the rows.
        add_call_tokens (`bool`, defaults to `False`): write the tags as added special tokens.
        seed (`int`, defaults to `42`): fixes answers and calls.
        chat_template_kwargs: passed to the chat template.
    """

    student: str = ""
    output: str = ""
    calls: str = "random"
    student_backend: str = "auto"
    student_tokenizer: str | None = None
    student_model: str | None = None
    max_in_flight: int = 512
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_completion_length: int = 1024
    call_weights: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0, 1.0])
    num_orders: int = 4
    step_share: float = 0.0
    step_start_share: float = 0.0
    called_share: float | None = None
    shard: int = 0
    num_shards: int = 1
    add_call_tokens: bool = False
    chat_template_kwargs: dict | None = None
    seed: int = 42

    def __post_init__(self):
        self.check_prompts()
        Sampling(self.temperature, self.top_p)
        for name in ("student", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; there is no default for it.")
        for name in ("samples", "max_completion_length", "num_orders", "max_in_flight", "num_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.call_weights or min(self.call_weights) < 0 or sum(self.call_weights) <= 0:
            raise ValueError(f"call_weights is {self.call_weights}; give non-negative numbers that are not all zero.")
        for name in ("step_share", "step_start_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it is a share between 0 and 1.")
            if share and not self.step_end:
                raise ValueError(f"{name} is {share}, but step_end is not set; say what ends a step, as ';'.")
        if self.calls not in CALLS:
            raise ValueError(f"calls is {self.calls!r}; it must be one of {', '.join(CALLS)}.")
        other = "searched" if self.calls == "random" else "random"
        refuse_without(self, _ONLY[other], f"calls: {other}")
        if self.calls == "random" and not (self.step_share or self.step_start_share):
            refuse_without(self, {"step_end"}, "step_share, step_start_share or calls: searched")
        if self.calls == "searched":
            self.check_search()
        if self.called_share is not None and not 0 < self.called_share < 1:
            raise ValueError(f"called_share is {self.called_share}; it is a share between 0 and 1, both left out.")
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(
                f"shard is {self.shard}; with num_shards {self.num_shards} it must be 0 to {self.num_shards - 1}."
            )
        try:
            re.compile(self.step_end or "")
        except re.error as error:
            raise ValueError(f"step_end is {self.step_end!r}, which is no regular expression: {error}.") from error

    def settings(self, rows: list[dict]) -> dict:
        """What the answers to `rows` depend on."""
        elsewhere = {*("output", "max_in_flight", "student_backend", "shard", "called_share"), *_ASKING}
        unused = _ONLY["searched"] if self.calls == "random" else set()
        kept = {name: value for name, value in asdict(self).items() if name not in elsewhere | unused}
        weights = {"student_weights": fingerprint(self.student), "teacher_weights": fingerprint(self.teacher or "")}
        return redact({**kept, **weights, "problems": fingerprint_rows(rows)})

    def progress_path(self, shard: int) -> Path:
        """The file with the finished answers of a shard."""
        name = "" if self.num_shards == 1 else f"-{shard:05d}-of-{self.num_shards:05d}"
        return Path(f"{self.output}{name}.progress")


async def warmup_rows(
    rows: list[dict],
    student: Engine,
    builder: PromptBuilder,
    config: WarmupConfig,
    done: Container[int] = (),
    teacher: Engine | None = None,
    is_caller: bool = False,
) -> AsyncIterator[tuple[int, dict]]:
    """Answers every problem and inserts calls. An answer and its calls depend only on its number and the seed.

    Args:
        done (`Container[int]`): numbers of answers that exist and are not made again.
        teacher ([`Engine`], *optional*): for searched calls.
        is_caller (`bool`, defaults to `False`): whether the student has learned to call; its own calls are then excluded.

    Yields:
        `tuple[int, dict]`, as answers are done: the number of the answer (row times `config.samples` plus sample), and a dict
        with its `outcome` (`OUTCOMES`), `tries`, `teacher_written` and `teacher_read` (tokens), and `row`, `None` for an answer
        that is left out. A row has `prompt`, `completion` (text), `prompt_ids`, `completion_ids`, `completion_mask` (1 for
        what the student wrote and its calls, 0 for the teacher's tokens), `answer` and `calls`.

    Raises:
        EngineError: the teacher failed. Answers that were finished before have been yielded.
    """
    rules = RelayRules(
        max_completion_length=config.max_completion_length,
        syntax=config.syntax,
        max_calls=0,
        student=Sampling(config.temperature, config.top_p),
        call_bias=NEVER if is_caller else 0.0,
    )
    vocabulary = student.vocabulary
    if vocabulary is None:
        raise ValueError(f"The student {student.name!r} gives no token ids; warm-up data need a student that does.")
    command_ids(1, vocabulary, config.syntax)  # refuses a vocabulary without tags before any request
    mine = range(config.shard, len(rows) * config.samples, config.num_shards)
    numbers = (number for number in mine if number not in done)
    with Grader(config.answer_marker, config.grading_time_limit_s) as grader:
        search = None
        if config.calls == "searched":
            if teacher is None:
                raise ValueError("Searched calls need a teacher; give its engine.")
            search_rules = replace(rules, teacher=Sampling(config.teacher_temperature, config.teacher_top_p))
            search = CallSearch(student, teacher, search_rules, config, grader, is_caller)

        async def answer(number: int) -> dict:
            row, seed = rows[number // config.samples], config.seed * 1_000_003 + number
            prompt = builder.build(row["prompt"])
            if search is None:
                trace = await relay(prompt, student, None, rules, seed)
                return _random_row(row, trace, vocabulary, config, random.Random(f"{config.seed}/{number}"))
            found = await search.search(prompt, row["answer"], seed)
            outcome = "unsolved" if found.trace is None else "own" if found.is_own else "helped"
            made = None if found.trace is None else _row(row, found.trace, vocabulary, config)
            counts = {
                "tries": found.tries,
                "teacher_written": found.teacher_written,
                "teacher_read": found.teacher_read,
            }
            return {"outcome": outcome, **counts, "row": made}

        from ..engines.transformers import TransformersEngine

        # This engine is fastest when answers begin together: each that joins copies the cache of all
        is_in_waves = isinstance(student, TransformersEngine)
        limits = config.max_in_flight, config.max_teacher_failures
        async for number, entry in ask_past_failures(
            numbers, answer, *limits, "Answers failed for {} problems", is_in_waves
        ):
            yield number, entry


def _random_row(row: dict, trace: Trace, vocabulary: Vocabulary, config: WarmupConfig, rng: random.Random) -> dict:
    entry = {"outcome": "cut", "tries": 0, "teacher_written": 0, "teacher_read": 0, "row": None}
    if trace.stop is not StopReason.EOS:
        return entry
    num_calls = rng.choices(range(len(config.call_weights)), config.call_weights)[0]
    ids = insert_calls(
        trace.completion_ids[:-1],
        vocabulary,
        config.syntax,
        rng,
        num_calls,
        config.num_orders,
        config.answer_marker,
        config.step_share,
        config.step_end,
        config.step_start_share,
    )
    text = vocabulary.decode(ids)
    span = Span(Author.STUDENT, [*ids, trace.completion_ids[-1]], text)
    return {**entry, "outcome": "random", "row": _row(row, Trace(trace.prompt_ids, [span]), vocabulary, config)}


def _row(row: dict, trace: Trace, vocabulary: Vocabulary, config: WarmupConfig) -> dict:
    text = vocabulary.decode(trace.completion_ids[:-1])
    return {
        "prompt": row["prompt"],
        "completion": text,
        "prompt_ids": trace.prompt_ids,
        "completion_ids": trace.completion_ids,
        "completion_mask": trace.loss_mask,
        "answer": row["answer"],
        "calls": len(config.syntax.find(text)),
    }


def write_warmup(entries: dict[int, dict], config: WarmupConfig) -> str:
    """Writes the rows of all answers to `config.output`, in order; returns a sentence about them.

    Args:
        entries (`dict[int, dict]`): the answers of [`warmup_rows`], by number.

    Raises:
        ValueError: there is no row, or a search found no row with a call.
    """
    outcomes, counts = Counter(), Counter()
    called, plain = [], []
    for number, entry in sorted(entries.items()):
        outcomes[entry["outcome"]] += 1
        counts.update({name: entry[name] for name in ("tries", "teacher_written", "teacher_read")})
        if entry["row"] is not None:
            (called if entry["row"]["calls"] else plain).append(number)
    if outcomes["cut"] == len(entries):
        raise ValueError(
            f"None of the {len(entries)} answers ended within max_completion_length={config.max_completion_length}; raise it."
        )
    if config.calls == "searched" and not called:
        raise ValueError(_nothing_found(outcomes, counts["tries"], config))
    rng, share = random.Random(f"{config.seed}/rows"), config.called_share
    if share is not None and called and plain:
        fitting = round(len(plain) * share / (1 - share)), round(len(called) * (1 - share) / share)
        called, plain = (rng.sample(k, min(len(k), n)) for k, n in zip((called, plain), fitting, strict=True))
    write_jsonl((entries[number]["row"] for number in sorted([*called, *plain])), config.output)
    said = f"{len(called) + len(plain)} rows in {config.output}, {len(called)} of them with calls. "
    if config.calls == "random":
        return f"{said}{outcomes['cut']} answers did not end and were left out."
    return (
        f"{said}The student was right alone in {outcomes['own']} of {len(entries)} problems, with help in "
        f"{outcomes['helped']}, and in {outcomes['unsolved']} no help led to a right answer. {counts['tries']} tries; the "
        f"teacher wrote {counts['teacher_written']} tokens and read {counts['teacher_read']}."
    )


def _nothing_found(outcomes: Counter, tries: int, config: WarmupConfig) -> str:
    if not outcomes["unsolved"]:
        return (
            f"The student {config.student!r} was right by itself in all {outcomes['own']} problems, so there is no wrong answer "
            "to learn from; give harder problems."
        )
    return (
        f"None of {outcomes['unsolved']} problems that the student got wrong came out right with help, in {tries} tries of up to "
        f"{config.max_calls} calls; check that the teacher solves them and that answers are found (answer_marker, "
        "max_completion_length), or raise tries or max_calls."
    )
