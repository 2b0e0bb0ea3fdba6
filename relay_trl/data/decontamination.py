"""Keeps benchmark problems out of training sets: the same text, or 13 words in a row in common.

Owns what counts as contamination. Words are runs of letters and digits, without regard to case: 13 of them in a row are the
usual measure (GPT-3, appendix C); a benchmark problem of fewer words can only be found as the same text.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

NGRAM = 13
_WORD = re.compile(r"[^\W_]+")


@dataclass
class Contamination:
    """What a check found.

    Args:
        rows (`int`): looked at.
        removed (`int`): of them with either kind of match.
        exact (`Counter[str]`), ngram (`Counter[str]`): rows by benchmark whose text is a problem of it, and rows with 13 words
            in a row of one but not its text. A row may match several.
        places (`list`): the `source_row` of those removed.
    """

    rows: int = 0
    removed: int = 0
    exact: Counter[str] = field(default_factory=Counter)
    ngram: Counter[str] = field(default_factory=Counter)
    places: list = field(default_factory=list)

    def __str__(self) -> str:
        found = [
            f"{name} {self.exact[name]} + {self.ngram[name]}"
            for name in sorted(self.exact | self.ngram)
            if name is not None
        ]
        by_benchmark = f" (same text + {NGRAM} words in a row: {', '.join(found)})" if found else ""
        return f"{self.removed} of {self.rows} rows share problems with the benchmarks{by_benchmark}"


def problem_text(prompt: str | list[dict]) -> str:
    """The text of a problem: of chat messages, all of them but the system's."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message["content"]) for message in prompt if message.get("role") != "system")


def _same(text: str) -> str:
    # Blanks, dollars and the case of letters are a matter of taste; everything else may be the point of a problem.
    return re.sub(r"[\s$]+|\\[,;:! ]", "", unicodedata.normalize("NFKC", text).casefold())


def _ngrams(text: str) -> set[int]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return {hash(tuple(words[i : i + NGRAM])) for i in range(len(words) - NGRAM + 1)}


class Decontaminator:
    """Knows the problems of benchmarks.

    Args:
        benchmarks (`Mapping[str, Iterable]`): by name, their problems as texts or chat messages.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[str | list[dict]]]):
        self._texts: dict[str, set[str]] = {}
        self._ngrams: dict[int, set[str]] = {}
        for name, prompts in benchmarks.items():
            for text in map(problem_text, prompts):
                self._texts.setdefault(_same(text), set()).add(name)
                for ngram in _ngrams(text):
                    self._ngrams.setdefault(ngram, set()).add(name)

    def matches(self, prompt: str | list[dict]) -> tuple[set[str], set[str]]:
        """The benchmarks that have this very problem, and the others that have 13 words in a row of it."""
        text = problem_text(prompt)
        exact = self._texts.get(_same(text), set())
        near = {name for ngram in _ngrams(text) for name in self._ngrams.get(ngram, ())}
        return set(exact), near - exact

    def clean(self, rows: list[dict]) -> tuple[list[dict], Contamination]:
        """`rows` without those that match, and what was found."""
        kept, report = [], Contamination(rows=len(rows))
        for i, row in enumerate(rows):
            exact, near = self.matches(row["prompt"])
            report.exact.update(exact)
            report.ngram.update(near)
            if exact or near:
                report.places.append(row.get("source_row", i))
            else:
                kept.append(row)
        report.removed = len(rows) - len(kept)
        return kept, report


def decontaminate(rows: list[dict], name: str, data_dir: str | None = None) -> list[dict]:
    """`rows` without those that share a problem with one of the reported benchmarks; the counts are a warning, or an info.

    Args:
        name (`str`): of the training set.
        data_dir (`str`, *optional*): folder with local copies of the benchmarks; `None` loads them from the Hub.

    Raises:
        FileNotFoundError: a benchmark's local copy is missing.
        ValueError: no row is left.
    """
    from .registry import PAPER_SIX
    from .sources import load_rows

    known = Decontaminator({b: [row["prompt"] for row in load_rows(b, data_dir)] for b in PAPER_SIX})
    kept, report = known.clean(rows)
    shown = ", ".join(map(str, report.places[:10])) + (", ..." if report.removed > 10 else "")
    logger.log(logging.WARNING if report.removed else logging.INFO, f"{name}: {report}; left out: {shown or 'none'}.")
    if not kept:
        raise ValueError(f"{name}: every row shares a problem with a benchmark, so nothing is left to train on.")
    return kept
