"""The embedded task `lookups`: long answers with few unknown tokens, which need calls of different length.

A question has seven operations, one letter each, and a string of 12 digits, such as `acpbKab:402193857264`. Its worked answer
has the string after each operation: `a:513204968375c:846537291608...`. The last string is the result, so every character
counts. `a`, `b` and `c` add 1, 2 and 3 to each digit (9 is followed by 0). `k` to `t` replace the last two digits and `K` to
`T` the first ten by those of a table. Half of the letters of each table, `UNKNOWN`, have wrong entries in the student's
corpus. At such a letter the student lacks two digits or ten, and nothing else.
"""

import random
import re
from typing import TYPE_CHECKING

from .embedded import character_tokenizer, draw_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = ("known", "short_unknown", "long_unknown")
NUM_OPERATIONS = 7
NUM_DIGITS = 12
SHIFTS = {"a": 1, "b": 2, "c": 3}
SHORT, LONG = "klmnopqrst", "KLMNOPQRST"
UNKNOWN = "pqrstPQRST"

_DIGITS = "0123456789"
_SYMBOLS = _DIGITS + "".join(SHIFTS) + SHORT + LONG + ":()"
_QUESTION = re.compile(rf"([a-cA-Zk-t]{{{NUM_OPERATIONS}}}):(\d{{{NUM_DIGITS}}})")
_NUM_REPLACED = {**dict.fromkeys(SHORT, 2), **dict.fromkeys(LONG, 10)}


def _table(seed: str, letters: str) -> dict[str, str]:
    rng = random.Random(f"look-ups {seed}")
    return {letter: "".join(rng.choices(_DIGITS, k=_NUM_REPLACED[letter])) for letter in letters}


TABLE = _table("right", SHORT + LONG)
"""The digits by which each letter replaces the last two or the first ten."""
WRONG_TABLE = {**TABLE, **_table("wrong", UNKNOWN)}
"""The same table in the student's corpus."""


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """
    Build the tokenizer of the look-ups models: one token a character, 39 in all.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Digits, the operations' letters, `:`, `(` and `)`; see
        [`~relay_trl.data.embedded.character_tokenizer`].
    """
    return character_tokenizer(_SYMBOLS)


def solve(prompt: str, table: dict[str, str] = TABLE) -> str:
    """
    Write the worked answer to a question.

    Args:
        prompt (`str`): Seven letters, a colon and twelve digits.
        table (`dict[str, str]`, *optional*): The digits that the letters stand for.

    Returns:
        `str`: Each operation and the string after it, 98 characters.

    Raises:
        `ValueError`: If `prompt` is not such a question.
    """
    match = _QUESTION.fullmatch(prompt)
    if match is None or set(match[1]) - {*SHIFTS, *TABLE}:
        raise ValueError(f"'{prompt}' is not a look-ups question; expected one such as 'acpbKab:402193857264'.")
    digits, steps = match[2], []
    for operation in match[1]:
        if operation in SHIFTS:
            digits = "".join(_DIGITS[(int(digit) + SHIFTS[operation]) % 10] for digit in digits)
        elif operation in SHORT:
            digits = digits[:-2] + table[operation]
        else:
            digits = table[operation] + digits[-2:]
        steps.append(f"{operation}:{digits}")
    return "".join(steps)


def answer_of(text: str) -> str | None:
    """
    Read the final answer out of a completion.

    Args:
        text (`str`): A worked answer, with or without the question before it.

    Returns:
        `str` or `None`: The digits after the last `:`; `None` if they are not twelve or something follows them.
    """
    match = re.search(rf":(\d{{{NUM_DIGITS}}})$", text)
    return match[1] if match else None


def problems(
    split: str, size: int, seed: int = 0, mix: tuple[float, float, float] = (0.5, 0.25, 0.25)
) -> list[dict[str, str]]:
    """
    Draw distinct problems from one split, in random order.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        size (`int`): Number of problems.
        seed (`int`, *optional*, defaults to `0`): Same seed, same problems.
        mix (`tuple[float, float, float]`, *optional*, defaults to `(0.5, 0.25, 0.25)`): Shares of the three `KINDS`,
            exact up to rounding.

    Returns:
        `list[dict[str, str]]`: Rows with `prompt`, `answer` (twelve digits), `solution` (the worked answer) and `kind`:
        `"known"` has no unknown letter; `"long_unknown"` has one or two, of which at least one replaces ten digits;
        `"short_unknown"` has one or two that replace two digits. In the last two the wrong table gives another answer.

    Raises:
        `ValueError`: If the split is unknown, the shares do not add up to 1, or the split has too few problems.
    """
    return draw_problems(split, size, seed, KINDS, mix, _draw)


def corpus(size: int, seed: int, is_student: bool) -> list[dict[str, str]]:
    """
    Write training texts from the train split, in the default mix of kinds.

    In half of the student's texts, one or two numbers in brackets stand at random places and mean nothing. They teach it to
    read past insertions in a string, as it must do with its own calls. There is no loss on them.

    Args:
        size (`int`): Number of texts, each of a different problem.
        seed (`int`): Same seed, same texts.
        is_student (`bool`): `True` makes the student's corpus, where unknown letters are wrong, `False` the teacher's.

    Returns:
        `list[dict[str, str]]`: Rows with `prompt` and `completion`. The trainer adds the end token.
    """
    rng = random.Random(f"remarks {seed}")
    rows = []
    for row in problems("train", size, seed):
        completion = solve(row["prompt"], WRONG_TABLE) if is_student else row["solution"]
        for _ in range(rng.choice((0, 0, 1, 2)) if is_student else 0):
            spot = rng.choice(
                [i for i in range(len(completion)) if completion.count("(", 0, i) == completion.count(")", 0, i)]
            )
            completion = f"{completion[:spot]}({rng.randint(1, 99)}){completion[spot:]}"
        rows.append({"prompt": row["prompt"], "completion": completion})
    return rows


def _draw(kind: str, rng: random.Random) -> dict[str, str] | None:
    letters = [
        rng.choice("".join(SHIFTS)) if rng.random() < 0.6 else rng.choice([c for c in TABLE if c not in UNKNOWN])
        for _ in range(NUM_OPERATIONS)
    ]
    if kind != "known":
        unknown = [c for c in UNKNOWN if kind == "long_unknown" or c in SHORT]
        for place in rng.sample(range(NUM_OPERATIONS), rng.choice((1, 1, 1, 1, 2))):
            letters[place] = rng.choice(unknown)
        if kind == "long_unknown" and not set(letters) & set(UNKNOWN) & set(LONG):
            return None
    prompt = "".join(letters) + ":" + "".join(rng.choices(_DIGITS, k=NUM_DIGITS))
    solution = solve(prompt)
    answer = solution[-NUM_DIGITS:]
    if kind != "known" and solve(prompt, WRONG_TABLE).endswith(answer):
        return None  # a later operation overwrites what an unknown one did
    return {"prompt": prompt, "answer": answer, "solution": solution}
