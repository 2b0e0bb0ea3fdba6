"""Keeps benchmark problems out of training sets: the same text, or 13 words in a row in common.

Owns what counts as contamination. Words are runs of letters and digits, without regard to case. 13 words in a row are the
usual measure (GPT-3, appendix C); a benchmark problem with fewer words is only found by its whole text.
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
        rows (`int`): rows checked.
        removed (`int`): rows with a match of either kind.
        exact (`Counter[str]`), ngram (`Counter[str]`): by benchmark, the rows with the text of one of its problems, and the
            other rows with 13 words in a row of one. A row may match several benchmarks.
        places (`list`): the `source_row` of the removed rows.
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
    """The text of a problem; of chat messages, all but the system message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message["content"]) for message in prompt if message.get("role") != "system")


def _same(text: str) -> str:
    # Blanks, dollar signs and case do not matter; everything else can make another problem.
    return re.sub(r"[\s$]+|\\[,;:! ]", "", unicodedata.normalize("NFKC", text).casefold())


def _ngrams(text: str) -> set[int]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return {hash(tuple(words[i : i + NGRAM])) for i in range(len(words) - NGRAM + 1)}


class Decontaminator:
    """Finds the problems of benchmarks in training sets.

    Args:
        benchmarks (`Mapping[str, Iterable]`): name of each benchmark and its problems, as texts or chat messages.
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
        """The benchmarks that have the same problem, and the others that have 13 words in a row in common with it."""
        text = problem_text(prompt)
        exact = self._texts.get(_same(text), set())
        near = {name for ngram in _ngrams(text) for name in self._ngrams.get(ngram, ())}
        return set(exact), near - exact

    def clean(self, rows: list[dict]) -> tuple[list[dict], Contamination]:
        """The rows that do not match, and what was found."""
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
    """`rows` without those that share a problem with one of the paper's six benchmarks. Logs the counts.

    Args:
        name (`str`): name of the training set.
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
