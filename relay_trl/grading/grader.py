"""Decides whether an answer is right: finds the final answer in a text and compares it with the gold answer.

Owns the extraction of the final answer and the [`Grader`]. `forms.py` compares text and plain numbers in the calling
process; everything else goes to math-verify in the worker processes of `worker.py`. `rewards.py` decides what a right answer
is worth.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from relay_trl.grading.forms import compare_cheaply, normalise, parts
from relay_trl.grading.worker import WorkerPool

# No benchmark has a gold answer of more than a few hundred characters, so longer answers are not parsed.
MAX_ANSWER_CHARS = 2_000

_BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(?:(\{)|([^\s{}$\\]+))|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> list[str]:
    r"""The contents of the complete `\boxed{...}` and `\fbox{...}` of a text, and of `\boxed 5`, in the order in which they begin."""
    # One pass with a stack; a search per box would be quadratic in a text of unclosed boxes.
    stack: list[tuple[int, int]] = []
    found: list[tuple[int, str]] = []
    for token in _BOX_TOKENS.finditer(text):
        if token[2] is not None:
            found.append((token.start(), token[2]))
        elif token[1] is not None:
            stack.append((token.start(), token.end()))
        elif token[0] == "{":
            stack.append((-1, -1))
        elif token[0] == "}" and stack:
            start, inside = stack.pop()
            if start >= 0:
                found.append((start, text[inside : token.start()].strip()))
    return [content for _, content in sorted(found)]


def last_boxed(text: str) -> str | None:
    r"""
    Finds the last complete box of a text.

    Args:
        text (`str`):
            Any text, with or without boxes.

    Returns:
        `str` or `None`: The content of the box that *begins* last among those with balanced braces (so the inner one of two
        nested boxes) and with something in them; `""` if all are empty, `None` without a box.
    """
    contents = boxed(text)
    return next((content for content in reversed(contents) if content), "" if contents else None)


def final_answer(text: str, marker: str | None = None) -> str | None:
    r"""
    Finds the final answer of a text.

    Args:
        text (`str`):
            What the model wrote.
        marker (`str`, *optional*):
            Text before the answer, for instance `"####"`. `None`: the answer is the last box.

    Returns:
        `str` or `None`: The last box ([`last_boxed`]), or the first line with something in it behind the last `marker`,
        without a colon in front of it and without emphasis; a box in that line is the answer if no number stands before it. `None` if the text has no box or
        no marker.
    """
    if marker is None:
        return last_boxed(text)
    before, found, rest = text.rpartition(marker)
    if not found:
        return None
    rest = rest.lstrip(" \t:*_" if rest.lstrip(" \t*_").startswith(":") else " \t").lstrip()
    line = rest.split("\n", 1)[0].strip()
    head, box, _ = line.partition("\\boxed") if "\\boxed" in line else line.partition("\\fbox")
    if box and not re.search(r"\d", head):  # with a number in front of the box there are two answers
        return last_boxed(rest if last_boxed(line) is None else line)
    # "**#### 42**": what closes an emphasis that was opened in front of the marker
    opened = re.search(r"(\*\*|__|\*|_)\s*$", before)
    if opened and (line.endswith(opened[1]) or line.startswith(opened[1])):
        line = line.removesuffix(opened[1]).removeprefix(opened[1]).strip()
    if whole := re.fullmatch(r"(\*\*|__|\*|_|`)(?!\s)(.*?\S)\1[.,;:]?", line):
        line = whole[2]
    return line.strip()


class Grader:
    r"""
    Compares answers with gold answers, using math-verify if text and plain numbers are not enough.

    Args:
        marker (`str`, *optional*):
            Text before the final answer. `None`: the answer is the last `\boxed{}`.
        time_limit_s (`float`, *optional*, defaults to `5.0`):
            Processor time that one answer may take, in seconds. An answer that takes longer, or that kills its worker
            process, is wrong.
        workers (`int`, *optional*):
            Number of worker processes. `None`: one per usable processor, at most 4. They start with the first answer
            that needs one, and end with [`~Grader.close`] or with this process, at most the time limit later.

    Attributes:
        timeouts (`int`):
            Answers so far that ran into the limit; each counts as wrong.

    Raises:
        `ValueError`: If `marker` is empty or has a line break, or a limit or number of workers is not positive.

    Example:
        ```python
        with Grader() as grader:
            grader.grade([r"so \boxed{\frac{1}{2}}", r"\boxed{3}"], ["0.5", r"3\sqrt{13}"])  # [True, False]
        ```
    """

    def __init__(self, marker: str | None = None, time_limit_s: float = 5.0, workers: int | None = None):
        if marker is not None and (not marker.strip() or "\n" in marker):
            raise ValueError(f"`marker` is {marker!r}, but must be None (the last box) or visible text on one line.")
        self.marker = marker
        self.timeouts = 0
        self._pool = WorkerPool(time_limit_s, workers)

    def grade(self, texts: Sequence[str], golds: Sequence[str | Sequence[str]]) -> list[bool]:
        """
        Grades one text per gold.

        Args:
            texts (`Sequence[str]`):
                What the model wrote, (N,).
            golds (`Sequence[str | Sequence[str]]`):
                The right answer of each, (N,). In a list of alternatives, any one suffices. A gold answer that is not
                gradable matches nothing.

        Returns:
            `list[bool]`: Whether each text's final answer is right, (N,).

        Raises:
            `ValueError`: If there are not as many texts as golds.
        """
        if len(texts) != len(golds):
            raise ValueError(f"Got {len(texts)} texts and {len(golds)} golds, but each text needs exactly one gold.")
        verdicts: list[bool] = []
        # Rollouts of one prompt often agree, so equal pairs are judged once.
        open_pairs: dict[tuple[str, str], bool | None] = {}
        unsettled: list[tuple[int, list[tuple[str, str]]]] = []
        for row, (text, gold) in enumerate(zip(texts, golds, strict=True)):
            verdict, pairs = False, []
            for alternative in self._alternatives(gold):
                for answer in self._answers(text, alternative):
                    settled = compare_cheaply(answer, alternative)
                    verdict = verdict or settled is True
                    if settled is None:
                        pairs.append((answer, alternative))
            verdicts.append(verdict)
            if pairs and not verdict:
                unsettled.append((row, pairs))
                open_pairs.update(dict.fromkeys(pairs))
        if unsettled:
            outcome = dict(zip(open_pairs, self._pool.judge(list(open_pairs)), strict=True))
            for row, pairs in unsettled:
                verdicts[row] = any(outcome[pair] for pair in pairs)
                self.timeouts += not verdicts[row] and any(outcome[pair] is None for pair in pairs)
        return verdicts

    def _answers(self, text: str, gold: str) -> list[str]:
        """The normalised final answer, and, for a gold of several values, as many last boxes as it has values, as a set."""
        answer = final_answer(text, self.marker)
        count = len(parts(gold)) if self.marker is None else 1
        boxes = [box for box in boxed(text) if box][-count:] if count > 1 else []
        together = ", ".join(boxes) if len(set(boxes)) == count else None
        found = [one for one in (answer, together) if one and len(one) <= MAX_ANSWER_CHARS]
        return [normalise(one) for one in dict.fromkeys(found)]

    def is_gradable(self, gold) -> bool:
        r"""
        Whether any answer can match a gold answer. Needs no worker.

        Args:
            gold (`Any`):
                The answer of a row in a data set.

        Returns:
            `bool`: `False` for anything but a string or a list of strings, and if no alternative matches itself: it is
            empty, has no letter or digit, is too long, or breaks when written as a final answer (unbalanced braces in a
            box, a line break after a marker).
        """
        return bool(self._alternatives(gold))

    def _alternatives(self, gold) -> list[str]:
        """The normalised, gradable alternatives of a gold answer."""
        golds = [gold] if isinstance(gold, str) else gold
        if not isinstance(golds, Sequence) or not all(isinstance(one, str) for one in golds):
            return []
        return [normalise(one) for one in golds if _survives(one, self.marker)]

    def close(self) -> None:
        """Ends the worker processes. A later `grade` starts new ones."""
        self._pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


@lru_cache(maxsize=4096)
def _survives(gold: str, marker: str | None) -> bool:
    """Whether a gold answer, written as a final answer, is found again and equals itself."""
    if len(gold) > MAX_ANSWER_CHARS or not any(c.isalnum() for c in gold):
        return False
    answer = final_answer(rf"\boxed{{{gold}}}" if marker is None else f"{marker} {gold}", marker)
    return answer is not None and compare_cheaply(normalise(answer), normalise(gold)) is True
