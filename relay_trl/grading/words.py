r"""Grades answers that are no mathematics: letters of options, and words.

Owns [`ChoiceGrader`] and [`TextGrader`], which look like `grading/grader.py`'s [`Grader`], and which of the three a set of
problems gets. The final answer is the last box (or what follows the marker); without one, what follows the last "answer
is", as models that were told about boxes often end that way.
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
    """The final answer of a text: boxed (or behind `marker`), else the rest of the line behind the last "answer is"."""
    answer = final_answer(text, marker)
    if answer is None and marker is None:
        *_, last = [None, *_ANSWER_IS.finditer(text)]
        answer = text[last.end() :].split("\n", 1)[0] if last else None
    return answer if answer is None or len(answer) <= MAX_ANSWER_CHARS else None


class _WordGrader:
    """Grades in this process: nothing here takes long."""

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
        """Whether a gold can be matched at all: a text, or a list of texts, with something visible in it."""
        golds = [gold] if isinstance(gold, str) else gold
        return (
            isinstance(golds, Sequence)
            and bool(golds)
            and all(isinstance(one, str) and one.strip() and len(one) <= MAX_ANSWER_CHARS for one in golds)
        )

    def _is_same(self, answer: str, gold: str) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to end; as [`Grader.close`]."""

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass


class ChoiceGrader(_WordGrader):
    r"""Multiple choice. Golds are a letter and perhaps the option's words.

    Right are the letter in any dress (`B`, `(B)`, `B. 5 m`, `\text{B}`) and the option's words alone. An answer that names
    two letters is read by its first one.

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
    """Free text: equal words, whatever their case, quotes, brackets, blanks behind commas and closing full stop; numbers by
    their value; `(A)` as `A`.

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
    """What two answers that say the same have in common."""
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
        ValueError: an unknown kind.
    """
    if kind == "math":
        return Grader(marker, time_limit_s)
    kinds = {"choice": ChoiceGrader, "text": TextGrader}
    if kind not in kinds:
        raise ValueError(f"The grader is {kind!r}; it must be math, choice or text.")
    return kinds[kind](marker)
