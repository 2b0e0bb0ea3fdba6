"""The embedded task `arithmetic`: problems, worked answers, pretraining corpora, character tokenizer.

A problem has three numbers and two operations, such as `67*7-37=`. Its worked answer has both steps and then the result after
a mark: `67*7=469;469-37=432;#432`. A hash of its text puts every question into one split, so that no corpus and no training
set can contain a test problem. `recipes/pretrain_pair.py` trains the models; the warm-up adds the call tokens.
"""

import random
import re
from typing import TYPE_CHECKING

from .embedded import character_tokenizer, draw_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


KINDS = ("no_product", "known_product", "hard_product")
MAX_VALUE = 999
MAX_ERROR = 30

_SYMBOLS = "0123456789+-*=;#"
_MULTIPLIERS = {"known_product": (2, 3, 5), "hard_product": (4, 6, 7, 8, 9)}
_QUESTION = re.compile(r"(\d+)([-+*])(\d+)([-+])(\d+)=")


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """
    Build the tokenizer of the arithmetic models: one token a character, 19 symbols in all.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Digits and `+ - * = ; #`; see
        [`~relay_trl.data.embedded.character_tokenizer`].
    """
    return character_tokenizer(_SYMBOLS)


def solve(prompt: str, error: int = 0) -> str | None:
    """
    Write the worked answer to a question.

    Args:
        prompt (`str`): A question such as `"67*7-37="`.
        error (`int`, *optional*, defaults to `0`): Added to the result of the first step; the second step follows from
            the shifted value.

    Returns:
        `str` or `None`: The steps and the marked result, such as `"67*7=469;469-37=432;#432"`, or `None` if a value
        leaves the range of 0 to 999.

    Raises:
        `ValueError`: If `prompt` is not such a question.
    """
    match = _QUESTION.fullmatch(prompt)
    if match is None:
        raise ValueError(f"'{prompt}' is not an arithmetic question; expected one such as '67*7-37=' or '67+37-12='.")
    a, first_sign, b, second_sign, c = match.groups()
    first = _apply(int(a), first_sign, int(b)) + error
    second = _apply(first, second_sign, int(c))
    if not (0 <= first <= MAX_VALUE and 0 <= second <= MAX_VALUE):
        return None
    return f"{a}{first_sign}{b}={first};{first}{second_sign}{c}={second};#{second}"


def answer_of(text: str) -> str | None:
    """
    Read the final answer out of a completion.

    Args:
        text (`str`): A worked answer, with or without the question before it.

    Returns:
        `str` or `None`: The digits after the last `#`; `None` if there are none or something follows them.
    """
    match = re.search(r"#(\d+)$", text)
    return match[1] if match else None


def problems(
    split: str, size: int, seed: int = 0, mix: tuple[float, float, float] = (0.25, 0.25, 0.5)
) -> list[dict[str, str]]:
    """
    Draw distinct problems from one split, in random order.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        size (`int`): Number of problems.
        seed (`int`, *optional*, defaults to `0`): Same seed, same problems.
        mix (`tuple[float, float, float]`, *optional*, defaults to `(0.25, 0.25, 0.5)`): Shares of the three `KINDS`,
            exact up to rounding.

    Returns:
        `list[dict[str, str]]`: Rows with `prompt` (`"67*7-37="`), `answer` (`"432"`), `kind` (one of `KINDS`) and
        `solution` (the worked answer, without the prompt).

    Raises:
        `ValueError`: If the split is unknown, the shares do not add up to 1, or the split has too few problems.
    """
    return draw_problems(split, size, seed, KINDS, mix, _draw)


def corpus(size: int, seed: int, is_student: bool) -> list[dict[str, str]]:
    """
    Write training texts from the train split, in the default mix of kinds.

    Args:
        size (`int`): Number of texts, each of a different problem.
        seed (`int`): Same seed, same texts.
        is_student (`bool`): Whether hard products are off by a random 1 to 30, up or down, within 0 to 999, and the
            step after them follows from the wrong value. `True` makes the student's corpus, `False` the teacher's.

    Returns:
        `list[dict[str, str]]`: Rows with `prompt` and `completion`. The trainer adds the end token.

    Raises:
        `ValueError`: If the train split has fewer problems than `size` asks for.
    """
    rng = random.Random(f"errors {seed}")
    rows = []
    for row in problems("train", size, seed):
        is_wrong = is_student and row["kind"] == "hard_product"
        completion = _solve_wrong(row["prompt"], rng) if is_wrong else row["solution"]
        rows.append({"prompt": row["prompt"], "completion": completion})
    return rows


def _apply(left: int, sign: str, right: int) -> int:
    if sign == "*":
        return left * right
    return left + right if sign == "+" else left - right


def _solve_wrong(prompt: str, rng: random.Random) -> str:
    # Some error always fits: the right value lies within 0 to 999, a range much wider than 30.
    while True:
        solution = solve(prompt, rng.choice((-1, 1)) * rng.randint(1, MAX_ERROR))
        if solution is not None:
            return solution


def _draw_prompt(kind: str, rng: random.Random) -> str:
    a, c = rng.randint(11, 99), rng.randint(11, 99)
    if kind == "no_product":
        return f"{a}{rng.choice('+-')}{rng.randint(11, 99)}{rng.choice('+-')}{c}="
    return f"{a}*{rng.choice(_MULTIPLIERS[kind])}{rng.choice('+-')}{c}="


def _draw(kind: str, rng: random.Random) -> dict[str, str] | None:
    prompt = _draw_prompt(kind, rng)
    solution = solve(prompt)
    if solution is None:
        return None
    return {"prompt": prompt, "answer": solution.rpartition("#")[2], "solution": solution}
