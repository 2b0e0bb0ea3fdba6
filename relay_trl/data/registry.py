"""The registry of named sets: their place on the Hub, how a row becomes a problem and a gold answer, and their grader.

Owns facts about sets. `sources.py` reads and checks rows; `grading/` grades. A new set is one entry here;
docs/evaluation.md shows one.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..grading.grader import last_boxed
from ..prompts import BOXED_TEMPLATE

Gold = str | list[str] | None
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Source:
    """A named set of problems.

    Args:
        file (`str`): name of its local copy under `data_dir`, in the Hub's schema.
        hub_id (`str`): dataset on the Hub.
        config (`str`, *optional*): its configuration there.
        split (`str`): its split there.
        problem (`str` or `Callable[[dict], str]`): column of the problem, or a function that makes it from a row.
        gold (`Callable[[dict], Gold]`): reads the gold answer, or the list of gold answers, from a row.
        grader (`str`, defaults to `"math"`): `math`, `choice` (a letter) or `text` (words).
        samples (`int`, defaults to `1`): answers per problem that a report needs; many if there are few problems.
        kind (`str`, *optional*): column of each problem's kind or difficulty, for reports.
        licence (`str`, *optional*): licence of the data, as stated on its card or by its authors; `None` if none is stated.
        revision (`str`, *optional*): commit on the Hub; `None` takes the newest.
        template (`str`): prompt template, unless the student's relay config or the run has another.
        has_boxed_answers (`bool`, defaults to `True`): whether answers are asked for in `\\boxed{}`.
    """

    file: str
    hub_id: str
    config: str | None
    split: str
    problem: str | Callable[[dict], str]
    gold: Callable[[dict], Gold]
    grader: str = "math"
    samples: int = 1
    kind: str | None = None
    licence: str | None = None
    revision: str | None = None
    template: str = BOXED_TEMPLATE
    has_boxed_answers: bool = True


def column(name: str) -> Callable[[dict], Gold]:
    """Reads the gold answer from one column."""
    return lambda row: row[name]


def after_hashes(row: dict) -> Gold:
    """GSM8K's gold answer: what follows the last `####` of the worked answer."""
    return row["answer"].rpartition("####")[2].strip() if row["answer"] else None


def boxed_in(name: str) -> Callable[[dict], Gold]:
    """Reads the gold answer from the last box of a solution. Minerva's units follow the box, so its gold answers are plain
    numbers; the grader accepts an answer with a unit.
    """
    return lambda row: last_boxed(row[name]) if row[name] else None


def with_options(question: str, options: Sequence[str]) -> str:
    """A multiple-choice problem as text."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question.strip()}\n\n{listed}\n\nAnswer with the letter of the right option."


def choice_golds(options: Sequence[str], letter: str | None) -> Gold:
    """The letter, and the option's text if no other option has the same."""
    if not letter or letter not in LETTERS[: len(options)]:
        return None
    text = options[LETTERS.index(letter)].strip()
    is_telling = len(text) > 1 and sum(option.strip() == text for option in options) == 1
    return [letter, text] if is_telling else letter


def _gpqa_options(row: dict) -> tuple[list[str], str]:
    """The options in an order that depends on the row, because the data has the right one first, and the right letter."""
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {k}"] for k in (1, 2, 3))]
    order = list(range(4))
    random.Random(row["Question"]).shuffle(order)
    return [str(options[i]).strip() for i in order], LETTERS[order.index(0)]


SOURCES: dict[str, Source] = {
    "gsm8k": Source("gsm8k.jsonl", "openai/gsm8k", "main", "test", "question", after_hashes, licence="mit"),
    "math500": Source(
        *("math500.jsonl", "HuggingFaceH4/MATH-500", None, "test", "problem", column("answer")),
        kind="level",
        licence="mit",
    ),
    "minerva": Source("minerva.jsonl", "knoveleng/Minerva-Math", None, "train", "problem", boxed_in("solution")),
    "olympiadbench": Source(
        *("olympiadbench.jsonl", "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
        *("question", column("final_answer")),
        licence="apache-2.0",
    ),
    "aime2024": Source(
        *("aime2024.jsonl", "HuggingFaceH4/aime_2024", None, "train", "problem", column("answer")), samples=32
    ),
    "aime2025": Source(
        *("aime2025.jsonl", "yentinglin/aime_2025", None, "train", "problem", column("answer")), samples=32
    ),
    "mmlu_pro": Source(
        *("mmlu_pro.jsonl", "TIGER-Lab/MMLU-Pro", None, "test"),
        lambda row: with_options(row["question"], row["options"]),
        lambda row: choice_golds(row["options"], row["answer"]),
        grader="choice",
        kind="category",
        licence="mit",
    ),
    "bbeh": Source(
        *("bbeh.jsonl", "BBEH/bbeh", None, "train", "input", column("target")),
        grader="text",
        kind="task",
        licence="cc-by-4.0",
    ),
    "supergpqa": Source(
        *("supergpqa.jsonl", "m-a-p/SuperGPQA", None, "train"),
        lambda row: with_options(row["question"], row["options"]),
        lambda row: choice_golds(row["options"], row["answer_letter"]),
        grader="choice",
        kind="difficulty",
        licence="odc-by",
    ),
    "gpqa_diamond": Source(
        *("gpqa_diamond.jsonl", "Idavidrein/gpqa", "gpqa_diamond", "train"),
        lambda row: with_options(row["Question"], _gpqa_options(row)[0]),
        lambda row: choice_golds(*_gpqa_options(row)) if row["Correct Answer"] else None,
        grader="choice",
        kind="High-level domain",
        licence="cc-by-4.0",
    ),
    "gsm8k_train": Source(
        "gsm8k_train.jsonl", "openai/gsm8k", "main", "train", "question", after_hashes, licence="mit"
    ),
    "math_train": Source(
        *("math_train.jsonl", "DigitalLearningGmbH/MATH-lighteval", "default", "train", "problem"),
        boxed_in("solution"),
        licence="mit",
    ),
    "dapo_math": Source(
        *("dapo_math.jsonl", "open-r1/DAPO-Math-17k-Processed", "en", "train", "prompt", column("solution")),
        licence="apache-2.0",
    ),
}
"""Named sets: benchmarks first, training sets after them."""

PAPER_SIX = ("minerva", "math500", "gsm8k", "olympiadbench", "aime2024", "aime2025")
"""The six benchmarks that the paper averages over. Decontamination compares training sets with these."""

REPORTED = (*PAPER_SIX, "mmlu_pro", "bbeh", "supergpqa", "gpqa_diamond")
"""Benchmarks. They are refused as training sets and as validation sets."""
