r"""Brings answers into one written form, and decides the comparisons that need no mathematics.

Owns the normalisation before math-verify and the fast path that compares identical answers, plain numbers and words in the
calling process. It exists for speed, and for what math-verify 0.9 gets wrong or cannot read:

- identical normalised answers are equal, even if math-verify cannot parse them;
- scientific notation (`4.5e33` would be read as 4.5 times e times 33), `E_1` (e with an index), `np.arcsin`, `-3./2`,
  `1 1/2` (a product), unicode signs, `\approx 5`;
- units: math-verify drops any trailing `m`, `t` or `c` and so accepts `6` for `6m`. Here only units in `\text{}` or
  `\mathrm{}` and a closed list of unit words are dropped. Two different units are *not* told apart;
- a number in base 8 does not equal the same digits in base 9 (without a subscript it does);
- `62.5` for `62.5\%` is right, as it is for whole numbers in math-verify;
- gold answers in words (`\text{east}`) are compared as words: math-verify reads words as products of letters.

As in math-verify, letters are compared without regard to case, and `2x+3` is right for `y=2x+3`.
"""

import re
from decimal import Decimal
from functools import lru_cache

_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le "}
    | {"≥": r"\ge ", "∪": r"\cup ", "±": r"\pm ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "％": "%", "，": ","}
)
_UNIT_WORD = (
    r"(?:degrees?|dollars?|cents?|euros?|pounds?|inch(?:es)?|foot|feet|yards?|miles?|(?:centi|milli|kilo)?met(?:er|re)s?"
    r"|(?:kilo)?grams?|(?:milli)?lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|units?"
    r"|cm|mm|km|kg|mg|ml|ft|lbs?|mph|hrs?|mins?|secs?|rad(?:ian)?s?|people|students?|apples?|times|points?|eggs?|USD)"
)
_POWER = r"(?:\s*\^\s*(?:\{?-?\d\}?))?"
# A word that scales or changes the number is not a unit, nor is a letter that can be a variable or a constant.
_TEXT_UNIT = (
    r"\\(?:text|textrm|textbf|mbox|mathrm|rm)\s*\{"
    r"(?!\s*(?:[eijknxyz]|and|or|hundred|thousand|[mb]illion|trillion|dozen)\s*\})[^{}\d]*\}"
)
_UNITS = re.compile(
    rf"(?<![\s~/])(?:[\s~/]|\\cdot)*+(?:{_TEXT_UNIT}{_POWER}|(?<=[\d\s)}}])"
    rf"(?:(?:square|cubic|sq|cu)\.?\s+)?\b{_UNIT_WORD}\b{_POWER}(?:\s*(?:/|\bper\b)\s*[A-Za-z]+)?)\s*$"
)
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"\\!\s*", ""),
        (r"(?<=\d)(?:\\,|\{,\})(?=\d{3})", ","),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|(?<!\\)~", " "),
        (r"\\?\$|(?<!\\)\\[()\[\]]", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\?%|\\text\s*\{\s*(?:percent|per cent)\s*\}|\bper ?cent\b", r"\\%"),
        (r"\^\s*(?:\\circ|\\degree|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", ""),
        (r"(?<![A-Za-z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?!\.?\d|[A-Za-z])", r"\1\\times 10^{\2}"),
        (r"\bnp\.(?=[a-z])", r"\\"),
        (r"(?<=\d)\.(?![\d.])(?=\S)", ""),
        (r"(?<![\d./}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
        (r"\\(max|min)\s*(?=\})", r"\1"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"^\s*\\approx(?![a-zA-Z])", ""),
        (r"(?<==)\s*-?\d{1,3}(?:,\d{3})+\s*$", lambda match: match[0].replace(",", "")),
        (r"(?<![A-Za-z\\])E(?=_)", r"\\mathcal{E}"),
    )
)
_NAME = re.compile(r"^(?:[A-Za-z](?:_\{?\w+\}?)?|\\text\s*\{[^{}]*\})\s*=\s*")  # of "x = 5" and "\text{Total} = 5"
_WORDS = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mbox)\s*\{([^{}]*)\}")
_WORD = re.compile(r"\(?[A-Za-z][A-Za-z \-']*\)?")
_PLAIN = re.compile(
    r"([+-]?)\s*(\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(\.\d*)?"
    r"(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,4})\s*\}|(\d)))?(?:_\{?(\d+)\}?)?\s*(\\%)?"
)


@lru_cache(maxsize=4096)
def normalise(answer: str) -> str:
    """Rewrites an answer into the form that is compared and given to math-verify (see the module's docstring)."""
    answer = answer.strip().translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip().rstrip(".,;:").strip()
    for _ in range(4):  # "5 \text{m} \text{s}^{-2}"; bounded, since each round is linear in the answer
        shorter = _UNITS.sub("", answer)
        if shorter == answer or not any(c.isdigit() for c in shorter):
            break
        answer = shorter
    # "35" is not "3 5". All other blanks can go, except one after a command ("\pi x").
    return re.sub(r"\s+", " ", answer)


def _key(answer: str) -> str:
    return re.sub(r"(?<!\d) | (?!\d)", "", answer)


def _word(answer: str) -> str | None:
    """The letters of an answer that consists of words only, or `None`."""
    bare = _WORDS.sub(r"\1", answer).strip().rstrip(".")
    return bare.strip("() ").casefold() if _WORD.fullmatch(bare) else None


def _plain(answer: str) -> tuple[Decimal, str, bool] | None:
    """A plain decimal number as (value, base, is a percentage), or `None` if the answer is anything else."""
    match = _PLAIN.fullmatch(answer)
    if match is None:
        return None
    sign, whole, fraction, braced, single, base, percent = match.groups()
    digits = f"{sign}{whole.replace(',', '') or '0'}{fraction or ''}e{braced or single or 0}"
    return Decimal(digits), base or "", percent is not None


def compare_cheaply(answer: str, gold: str) -> bool | None:
    """
    Compares two normalised answers without math-verify.

    Args:
        answer (`str`), gold (`str`):
            Both as [`normalise`] returns them.

    Returns:
        `bool` or `None`: Whether the answer is right, for identical answers, two plain decimal numbers (compared exactly,
        never as floats) and gold answers in words. `None`: math-verify has to decide.
    """
    if not answer or not gold:
        return False
    if _key(answer) == _key(gold):
        return True
    other = _plain(gold)
    mine = _plain(_NAME.sub("", answer)) if other else None
    if mine and other:
        if mine[1] != other[1] and mine[1] not in ("", other[1] or "10"):
            return False
        if mine[0] == other[0]:
            return True
        return mine[2] != other[2] and (mine[0] / 100 if mine[2] else mine[0]) == (
            other[0] / 100 if other[2] else other[0]
        )
    word = _word(gold)
    if word and _WORDS.fullmatch(gold):
        return word == _word(answer)
    return True if word and len(word) > 1 and word == _word(answer) else None
