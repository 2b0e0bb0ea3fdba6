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
- colour, bold and currency commands, unicode's fractions, powers and roots, `2*pi*r`, and `Option E` for `E`;
- gold answers in words (`\text{east}`) are compared as words: math-verify reads words as products of letters.

As in math-verify, letters are compared without regard to case, and `2x+3` is right for `y=2x+3`.
"""

import re
from decimal import Decimal
from functools import lru_cache

# "1 234 567" with thin or unbreakable blanks; an ordinary blank may stand between two numbers
_THIN = re.compile("(?<=\\d)[\u00a0\u2006\u2007\u2008\u2009\u200a\u202f](?=\\d{3}(?!\\d))")
_FRACTIONS = dict(
    zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒", "12 13 23 14 34 15 25 35 45 16 56 17 18 38 58 78 19 1/10".split(), strict=True)
)
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le "}
    | {"≥": r"\ge ", "∪": r"\cup ", "±": r"\pm ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "％": "%", "，": ","}
    | {"θ": r"\theta ", "⁄": "/", "∕": "/", "∗": "*", "⋅": r"\cdot ", "∙": r"\cdot ", "≠": r"\ne ", "∩": r"\cap "}
    | {"∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "≈": r"\approx ", "“": '"', "”": '"', "\u2212": "-"}
)
_UNIT_WORD = (
    r"(?:degrees?|dollars?|cents?|euros?|pounds?|inch(?:es)?|foot|feet|yards?|miles?|(?:centi|milli|kilo)?met(?:er|re)s?"
    r"|(?:kilo)?grams?|(?:milli)?lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|units?"
    r"|cm|mm|km|kg|mg|ml|ft|lbs?|mph|hrs?|mins?|secs?|rad(?:ian)?s?|people|students?|apples?|times|points?|eggs?|rupees?|yen|yuan|pesos?|francs?|kron(?:er|or|a)|USD|EUR|GBP|JPY|INR|CNY|CHF)"
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
_COLOUR = r"\\(?:textcolor|colorbox|color)\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}"
_BOLD = (
    r"\\(?:(?:mathbf|textbf|bm|boldsymbol|pmb|textit|emph|underline|ensuremath|mathsf|textsf|texttt|mathtt)(?=\s*\{)"
    r"|(?:bf|bfseries|boldmath|it|itshape|em|Large|LARGE|large|huge|Huge)(?![a-zA-Z]))"
)
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (_COLOUR, ""),
        (r"\\(?:textbf|textit|emph|underline|mathbf)\s*\{(?=\s*\(?[A-Za-z][A-Za-z \-']+\)?\s*\})", r"\\text{"),
        (_BOLD, ""),
        (r"^\*\*(?=\S)(.*\S)\*\*$", r"\1"),
        (
            r"[€£¥₹₩₽₺₫₪¢]|\\(?:euro|pounds|textsterling|texteuro|yen|textyen|mathsterling)(?![a-zA-Z])|(?<![A-Za-z])Rs\.?(?=\s*\d)",
            "",
        ),
        (r"^(?:\\text\s*\{)?\s*(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s*:?\s*\(?([A-Z])\)?\s*\}?$", r"\1"),
        (r"(?<![A-Za-z\\])(pi|theta|alpha|beta)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z])\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<=[\w)}])\s*\*\*\s*(?=[\w({\-])", "^"),
        (r"(?<=[\w)}])\s*\*\s*(?=[\w({\\\-])", r" \\cdot "),
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


def _unicode_mathematics(answer: str) -> str:
    """Unicode's fractions, powers, indices and roots in LaTeX."""
    if answer.isascii():
        return answer
    for sign, digits in _FRACTIONS.items():
        top, bottom = digits.split("/") if "/" in digits else digits
        answer = answer.replace(sign, rf"\frac{{{top}}}{{{bottom}}}")
    for mark, table in (("^", _RAISED), ("_", _LOWERED)):
        run = f"[{''.join(table)}]+"
        answer = re.sub(
            run, lambda m, table=table, mark=mark: mark + "{" + "".join(table[c] for c in m[0]) + "}", answer
        )
    for sign, command in _ROOTS.items():
        if sign in answer:
            answer = re.sub(rf"{sign}\s*\(([^()]*)\)", lambda m, command=command: rf"{command}{{{m[1]}}}", answer)
            answer = re.sub(
                rf"{sign}\s*(\d+(?:\.\d+)?|[A-Za-z]|(?={{))",
                lambda m, command=command: rf"{command}{{{m[1]}}}" if m[1] else command,
                answer,
            )
    return answer


def _without_braces(answer: str) -> str:
    """`42` for `{42}` and `{\bf 42}`."""
    while answer.startswith("{") and answer.endswith("}") and not answer.endswith("\\}"):
        depth = 0
        for k, char in enumerate(answer):
            depth += (char == "{") - (char == "}")
            if depth == 0 and k < len(answer) - 1:
                return answer
        answer = answer[1:-1].strip()
    return answer


def parts(answer: str) -> list[str]:
    """A normalised answer of several values, one by one; itself where it is one value, an interval or a point."""
    inner = re.sub(r"^\\\{(.*)\\\}$", r"\1", answer)
    pieces, depth = [""], 0
    for char in re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}", ",", inner):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += char
    pieces = [piece.strip() for piece in pieces if piece.strip()]
    return [answer] if len(pieces) < 2 or _PLAIN.fullmatch(answer) else pieces


@lru_cache(maxsize=4096)
def normalise(answer: str) -> str:
    """Rewrites an answer into the form that is compared and given to math-verify (see the module's docstring)."""
    answer = _unicode_mathematics(_THIN.sub(",", answer.strip())).translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip().rstrip(".,;:").strip()
    for _ in range(4):  # "5 \text{m} \text{s}^{-2}"; bounded, since each round is linear in the answer
        shorter = _UNITS.sub("", answer)
        if shorter == answer or not any(c.isdigit() for c in shorter):
            break
        answer = shorter
    answer = _without_braces(answer)
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
