"""Random calls in warm-up answers: random places and random n (paper, section 3.2).

Owns where a call may stand and the tokens of a command. Such calls teach the syntax but not when help pays; for that, see
`searched_calls.py`.
"""

import random
import re

from ..call_syntax import CallSyntax, tokens_until
from ..vocabulary import Vocabulary


def call_spots_end(text: str, marker: str | None) -> tuple[int, list[tuple[int, int]]]:
    """Where calls may stand in an answer: before its final answer and not inside a box.

    Args:
        text (`str`): the answer.
        marker (`str`, *optional*): text before the final answer; `None`: the answer is the last `\\boxed{}`.

    Returns:
        `tuple[int, list[tuple[int, int]]]`: the last position of a call, and the (start, end) of boxes, which must not have
            calls.
    """
    if marker is not None:
        at = text.rfind(marker)
        return (len(text) if at < 0 else at), []
    boxes = []
    for match in re.finditer(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*", text):  # as the grader finds them
        end = match.end()
        if text[end : end + 1] == "{":
            depth = 0
            while end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 2 if text[end] == "\\" else 1
                if depth == 0:
                    break
        else:
            while end < len(text) and not text[end].isspace() and text[end] not in "{}$\\":
                end += 1
        boxes.append((match.start(), end))
    return (boxes[-1][0] if boxes else len(text)), boxes


def command_ids(n: int, vocabulary: Vocabulary, syntax: CallSyntax) -> list[int]:
    """The tokens of the command that asks for `n` tokens.

    Raises:
        ValueError: the vocabulary has no tokens for the tags.
    """
    added = vocabulary.tokenizer.get_added_vocab()
    if syntax.open_tag in added and syntax.close_tag in added:
        ids = [added[syntax.open_tag], *vocabulary.encode(str(n)), added[syntax.close_tag]]
    else:
        ids = vocabulary.encode(syntax.render(n))
    if vocabulary.decode(ids) != syntax.render(n):
        raise ValueError(
            f"The student's vocabulary has no tokens that spell {syntax.render(n)!r}; set add_call_tokens, or choose "
            "tags and digits that it has."
        )
    return ids


def insert_calls(
    ids: list[int],
    vocabulary: Vocabulary,
    syntax: CallSyntax,
    rng: random.Random,
    num_calls: int,
    num_orders: int = 4,
    marker: str | None = None,
    step_share: float = 0.0,
    step_end: str | None = None,
    step_start_share: float = 0.0,
) -> list[int]:
    """`ids` with up to `num_calls` commands between tokens. The tokens themselves stay as sampled.

    Commands stand before the final answer, outside boxes and the student's own commands, between whole characters, and at
    most one in each place. There are fewer of them if the answer has no room.
    """
    text = vocabulary.decode(ids)
    end, closed = call_spots_end(text, marker)
    closed += [(command.start, command.end) for command in syntax.find(text)]
    step_ends = _step_ends(ids, text, vocabulary, step_end)
    spots: set[int] = set()
    for _ in range(20 * num_calls):
        if len(spots) == num_calls:
            break
        if step_start_share and rng.random() < step_start_share:
            spot = rng.choice([0, *step_ends[:-1]])
        else:
            spot = rng.randrange(len(ids) + 1)
        before = vocabulary.decode(ids[:spot])
        at = len(before)
        is_between_characters = before + vocabulary.decode(ids[spot:]) == text
        if at <= end and is_between_characters and not any(a < at < b for a, b in closed):
            spots.add(spot)
    written: list[int] = []
    for i in range(len(ids) + 1):
        if i in spots:
            if step_share and i < len(ids) and rng.random() < step_share:
                n = next(end for end in step_ends if end > i) - i
            else:
                n = rng.randint(1, 9) * 10 ** rng.randrange(num_orders)
            written += command_ids(n, vocabulary, syntax)
        written += ids[i : i + 1]
    return written


def _step_ends(ids: list[int], text: str, vocabulary: Vocabulary, step_end: str | None) -> list[int]:
    """For each step, how many of `ids` are written at its end. The last step ends with the answer."""
    ends = [match.end() for match in re.finditer(step_end, text)] if step_end else []
    return sorted({tokens_until(ids, text, end, vocabulary) for end in ends if 0 < end < len(text)} | {len(ids)})
