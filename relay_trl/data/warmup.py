"""Warm-up data: the student's own answers with calls put in at random tokens (paper, section 3.2).

Owns where a call may stand and what it asks for. Because the text is the student's own, its distribution does not shift. What
follows a call is the student's own continuation, so the warm-up teaches the syntax and not when a call pays.
"""

import random
import re
from collections.abc import AsyncIterator, Container
from dataclasses import asdict, dataclass, field

from ..call_syntax import CallSyntax, tokens_until
from ..engines.base import Engine, Sampling
from ..engines.in_flight import ask_all
from ..options import PromptFields
from ..prompts import PromptBuilder
from ..redaction import redact
from ..relay import RelayRules, relay
from ..run_files import fingerprint, fingerprint_rows
from ..trace import StopReason, Trace
from ..vocabulary import Vocabulary


@dataclass
class WarmupConfig(PromptFields):
    """How the warm-up data are made.

    Args:
        student (`str`): folder or Hub id of the model whose answers are used.
        output (`str`): the `.jsonl` file to write.
        student_backend (`str`, defaults to `"auto"`): `auto`, `transformers`, `vllm` or `openai`.
        student_tokenizer, student_model (`str`, *optional*): of a student behind a URL, see
            [`~relay_trl.engines.loading.load_engine`].
        max_in_flight (`int`, defaults to `512`): answers at a time.
        samples (`int`, defaults to `1`): answers per problem.
        temperature (`float`, defaults to `1.0`), top_p (`float`, defaults to `1.0`): of the student.
        max_completion_length (`int`, defaults to `1024`): most tokens of an answer; answers that do not end are left out.
        call_weights (`list[float]`): relative frequency of answers with 0, 1, 2, ... calls; the paper has 0 to 3.
        num_orders (`int`, defaults to `4`): n is a digit 1 to 9 times 10^0 .. 10^(num_orders - 1).
        step_share (`float`, defaults to `0.0`): share of calls whose n reaches to the end of the step that they stand in,
            instead; the paper has none. Long answers of many steps hold few calls that random lengths fit.
        step_start_share (`float`, defaults to `0.0`): share of calls that stand where a step begins; the others, and all of
            the paper's, may stand at any token.
        step_end (`str`, *optional*): regular expression of what ends a step, itself part of it, such as `;` or `\\n`.
        add_call_tokens (`bool`, defaults to `False`): write the tags as added special tokens.
        seed (`int`, defaults to `42`).
    """

    student: str = field(default="", metadata={"help": "Folder or Hub id of the student."})
    output: str = field(default="", metadata={"help": "The .jsonl file to write."})
    student_backend: str = field(default="auto", metadata={"help": "auto, transformers, vllm or openai."})
    student_tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of a student behind a URL."})
    student_model: str | None = field(default=None, metadata={"help": "The student's name on its server."})
    max_in_flight: int = field(default=512, metadata={"help": "Answers at a time."})
    samples: int = field(default=1, metadata={"help": "Answers per problem."})
    temperature: float = field(default=1.0, metadata={"help": "Of the student."})
    top_p: float = field(default=1.0, metadata={"help": "Of the student."})
    max_completion_length: int = field(default=1024, metadata={"help": "Most tokens of an answer."})
    call_weights: list[float] = field(
        default_factory=lambda: [1.0, 1.0, 1.0, 1.0], metadata={"help": "Frequency of 0, 1, 2, ... calls."}
    )
    num_orders: int = field(default=4, metadata={"help": "n is a digit times 10^0 .. 10^(num_orders - 1)."})
    step_share: float = field(default=0.0, metadata={"help": "Share of calls that reach to the end of their step."})
    step_start_share: float = field(default=0.0, metadata={"help": "Share of calls that stand where a step begins."})
    step_end: str | None = field(default=None, metadata={"help": "Regular expression of what ends a step."})
    add_call_tokens: bool = field(default=False, metadata={"help": "Write the tags as added special tokens."})
    chat_template_kwargs: dict | None = field(default=None, metadata={"help": "Passed to the chat template."})
    seed: int = field(default=42, metadata={"help": "Fixes answers and calls."})

    def __post_init__(self):
        self.check_prompts()
        Sampling(self.temperature, self.top_p)
        for name in ("student", "output"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; there is no default for it.")
        for name in ("samples", "max_completion_length", "num_orders", "max_in_flight"):
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
        try:
            re.compile(self.step_end or "")
        except re.error as error:
            raise ValueError(f"step_end is {self.step_end!r}, which is no regular expression: {error}.") from error

    def settings(self, rows: list[dict]) -> dict:
        """What the answers to `rows` depend on."""
        elsewhere = {"output", "max_in_flight", "student_backend"}
        kept = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        return redact({**kept, "student_weights": fingerprint(self.student), "problems": fingerprint_rows(rows)})


def call_spots_end(text: str, marker: str | None) -> tuple[int, list[tuple[int, int]]]:
    """Where calls may stand in an answer: before its final answer and not inside a box.

    Args:
        text (`str`): the answer.
        marker (`str`, *optional*): what precedes the final answer; `None`: it is the last `\\boxed{}`.

    Returns:
        `tuple[int, list[tuple[int, int]]]`: the last character position, and the (start, end) of boxes to stay out of.
    """
    if marker is not None:
        at = text.rfind(marker)
        return (len(text) if at < 0 else at), []
    boxes = []
    for match in re.finditer(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*", text):  # as the grader finds them
        end = match.end()
        if text[end : end + 1] == "{":
            depth = 0
            while end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 2 if text[end] == "\\" else 1
                if depth == 0:
                    break
        else:
            while end < len(text) and not text[end].isspace() and text[end] not in "{}$\\":
                end += 1
        boxes.append((match.start(), end))
    return (boxes[-1][0] if boxes else len(text)), boxes


def command_ids(n: int, vocabulary: Vocabulary, syntax: CallSyntax) -> list[int]:
    """The tokens of the command that asks for `n` tokens.

    Raises:
        ValueError: the vocabulary has no tokens for the tags.
    """
    added = vocabulary.tokenizer.get_added_vocab()
    if syntax.open_tag in added and syntax.close_tag in added:
        ids = [added[syntax.open_tag], *vocabulary.encode(str(n)), added[syntax.close_tag]]
    else:
        ids = vocabulary.encode(syntax.render(n))
    if vocabulary.decode(ids) != syntax.render(n):
        raise ValueError(
            f"The student's vocabulary has no tokens that spell {syntax.render(n)!r}; set add_call_tokens, or choose "
            "tags and digits that it has."
        )
    return ids


def insert_calls(
    ids: list[int],
    vocabulary: Vocabulary,
    syntax: CallSyntax,
    rng: random.Random,
    num_calls: int,
    num_orders: int = 4,
    marker: str | None = None,
    step_share: float = 0.0,
    step_end: str | None = None,
    step_start_share: float = 0.0,
) -> list[int]:
    """`ids` with up to `num_calls` commands put in between tokens; the tokens themselves stay as sampled.

    Fewer are put in where the answer has no room for them: before the final answer, outside boxes and the student's own
    commands, between whole characters, and not twice in one place.
    """
    text = vocabulary.decode(ids)
    end, closed = call_spots_end(text, marker)
    closed += [(command.start, command.end) for command in syntax.find(text)]
    step_ends = _step_ends(ids, text, vocabulary, step_end)
    spots: set[int] = set()
    for _ in range(20 * num_calls):
        if len(spots) == num_calls:
            break
        if step_start_share and rng.random() < step_start_share:
            spot = rng.choice([0, *step_ends[:-1]])
        else:
            spot = rng.randrange(len(ids) + 1)
        before = vocabulary.decode(ids[:spot])
        at = len(before)
        is_between_characters = before + vocabulary.decode(ids[spot:]) == text
        if at <= end and is_between_characters and not any(a < at < b for a, b in closed):
            spots.add(spot)
    written: list[int] = []
    for i in range(len(ids) + 1):
        if i in spots:
            if step_share and i < len(ids) and rng.random() < step_share:
                n = next(end for end in step_ends if end > i) - i
            else:
                n = rng.randint(1, 9) * 10 ** rng.randrange(num_orders)
            written += command_ids(n, vocabulary, syntax)
        written += ids[i : i + 1]
    return written


def _step_ends(ids: list[int], text: str, vocabulary: Vocabulary, step_end: str | None) -> list[int]:
    """How many of `ids` are written at the end of each step; the answer's end is the last one's."""
    ends = [match.end() for match in re.finditer(step_end, text)] if step_end else []
    return sorted({tokens_until(ids, text, end, vocabulary) for end in ends if 0 < end < len(text)} | {len(ids)})


async def warmup_rows(
    rows: list[dict],
    student: Engine,
    builder: PromptBuilder,
    config: WarmupConfig,
    done: Container[int] = (),
    max_in_flight: int = 512,
) -> AsyncIterator[tuple[int, dict | None]]:
    """Answers every problem and puts calls in. An answer and its calls depend on its number and the seed alone.

    Args:
        done (`Container[int]`): numbers of answers that are there already and are not asked for again.
        max_in_flight (`int`, defaults to `512`): answers at a time; no more than these are in memory.

    Yields:
        `tuple[int, dict | None]`, as answers are done: the number of the answer (row times `config.samples` plus sample), and
        `prompt`, `completion` (text), `prompt_ids`, `completion_ids`, `answer` and `calls`, or `None` for an answer that did
        not end within `config.max_completion_length`.
    """
    rules = RelayRules(
        max_completion_tokens=config.max_completion_length,
        syntax=config.syntax,
        max_calls=0,
        student=Sampling(config.temperature, config.top_p),
    )
    vocabulary = student.vocabulary
    if vocabulary is None:
        raise ValueError(f"The student {student.name!r} gives no token ids; warm-up data need a student that does.")
    command_ids(1, vocabulary, config.syntax)  # refuses a vocabulary without tags before anything is asked

    async def answer(number: int) -> Trace:
        prompt = builder.build(rows[number // config.samples]["prompt"])
        return await relay(prompt, student, None, rules, seed=config.seed * 1_000_003 + number)

    numbers = (number for number in range(len(rows) * config.samples) if number not in done)
    async for number, trace in ask_all(numbers, answer, max_in_flight):
        if trace.stop is not StopReason.EOS:
            yield number, None
            continue
        rng = random.Random(f"{config.seed}/{number}")
        num_calls = rng.choices(range(len(config.call_weights)), config.call_weights)[0]
        own = trace.completion_ids[:-1]
        ids = insert_calls(
            own,
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
        row = rows[number // config.samples]
        yield (
            number,
            {
                "prompt": row["prompt"],
                "completion": text,
                "prompt_ids": trace.prompt_ids,
                "completion_ids": [*ids, trace.completion_ids[-1]],
                "answer": row["answer"],
                "calls": len(config.syntax.find(text)),
            },
        )
