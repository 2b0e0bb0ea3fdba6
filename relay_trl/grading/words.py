r"""Grades answers without mathematics: letters of options, and words.

Owns [`ChoiceGrader`] and [`TextGrader`], which have the interface of [`Grader`] in `grader.py`, and which of the three a set
of problems gets. The final answer is the last box, or what follows the marker; without one, what follows the last "answer
is", because models that were told to box their answer often end that way.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import TypeAlias

from .grader import MAX_ANSWER_CHARS, Grader, final_answer

_ANSWER_IS = re.compile(r"\banswer\s+is\b[:\s]*", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|texttt|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_OPTION = re.compile(r"(?:option\s+)?\(?([A-Z])\)?(?:[.:)\s].*)?", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def stated_answer(text: str, marker: str | None = None) -> str | None:
    """The final answer of a text: boxed or after `marker`, else the rest of the line after the last "answer is"."""
    answer = final_answer(text, marker)
    if answer is None and marker is None:
        *_, last = [None, *_ANSWER_IS.finditer(text)]
        answer = text[last.end() :].split("\n", 1)[0] if last else None
    return answer if answer is None or len(answer) <= MAX_ANSWER_CHARS else None


class _WordGrader:
    """Grades in this process, because it takes no time."""

    def __init__(self, marker: str | None = None):
        self.marker = marker
        self.timeouts = 0

    def grade(self, texts: Sequence[str], golds: Sequence[str | Sequence[str]]) -> list[bool]:
        """Whether each text's final answer is right, (N,); see [`Grader.grade`]."""
        verdicts = []
        for text, gold in zip(texts, golds, strict=True):
            answer = stated_answer(text, self.marker)
            alternatives = [gold] if isinstance(gold, str) else gold
            verdicts.append(answer is not None and any(self._is_same(answer, one) for one in alternatives))
        return verdicts

    def is_gradable(self, gold) -> bool:
        """Whether an answer can match: the gold answer is a text, or a list of texts, with a visible character."""
        golds = [gold] if isinstance(gold, str) else gold
        return (
            isinstance(golds, Sequence)
            and bool(golds)
            and all(isinstance(one, str) and one.strip() and len(one) <= MAX_ANSWER_CHARS for one in golds)
        )

    def _is_same(self, answer: str, gold: str) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Does nothing; [`Grader.close`] ends processes."""

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass


class ChoiceGrader(_WordGrader):
    r"""Multiple choice. The gold answer is a letter, or a letter and the option's text.

    Right are the letter in any form (`B`, `(B)`, `B. 5 m`, `\text{B}`) and the option's text alone. Of two letters the first
    one counts.

    Args:
        marker (`str`, *optional*): what announces the answer; `None`: the last box.
    """

    def _is_same(self, answer: str, gold: str) -> bool:
        answer = plain(answer)
        if len(gold) > 1:
            return words(answer) == words(gold)
        match = _OPTION.fullmatch(answer)
        return match is not None and match[1] == gold


class TextGrader(_WordGrader):
    """Free text. Case, quotes, brackets, blanks after commas and a full stop at the end do not matter; numbers are compared by
    value; `(A)` equals `A`.

    Args:
        marker (`str`, *optional*): what announces the answer; `None`: the last box.
    """

    def _is_same(self, answer: str, gold: str) -> bool:
        mine, other = words(plain(answer)), words(plain(gold))
        if mine == other:
            return True
        if _NUMBER.fullmatch(mine) and _NUMBER.fullmatch(other):
            return Decimal(mine.replace(",", "")) == Decimal(other.replace(",", ""))
        return False


def plain(answer: str) -> str:
    r"""An answer without `\text{}` and the like, dollar signs, asterisks and outer blanks."""
    answer = _WRAPPED.sub(r"\1", answer)
    return answer.replace("$", "").replace("**", "").replace("\\ ", " ").replace("\\%", "%").strip()


def words(answer: str) -> str:
    """The form in which two texts with the same meaning are equal."""
    answer = re.sub(r"\s+", " ", answer).casefold().strip()
    answer = re.sub(r"\s*,\s*", ",", answer) if not _NUMBER.fullmatch(answer) else answer
    answer = answer.rstrip(".?!").strip()
    for opening, closing in ("()", "[]", "{}", "''", '""', "``"):
        if len(answer) > 2 and answer.startswith(opening) and answer.endswith(closing):
            answer = answer[1:-1].strip()
    return answer


AnyGrader: TypeAlias = Grader | ChoiceGrader | TextGrader


def load_grader(kind: str, marker: str | None = None, time_limit_s: float = 5.0) -> AnyGrader:
    """The grader of a set of problems.

    Args:
        kind (`str`): `math`, `choice` or `text`; see [`~relay_trl.data.registry.Source`].
        marker (`str`, *optional*), time_limit_s (`float`, defaults to `5.0`): see [`Grader`].

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "math":
        return Grader(marker, time_limit_s)
    kinds = {"choice": ChoiceGrader, "text": TextGrader}
    if kind not in kinds:
        raise ValueError(f"The grader is {kind!r}; it must be math, choice or text.")
    return kinds[kind](marker)
