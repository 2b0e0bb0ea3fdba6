"""The `<call>n</call>` syntax: find it, write it, remove it from a text or from token ids.

Owns what a command looks like. `relay.py` decides who may call, how often, and what happens then. Works on text and token
ids only; imports no torch, no TRL and no vLLM.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

MAX_REQUEST = 10**9
"""Largest n that a command can ask for; longer digit strings are read as this number (every limit is far below it)."""

_BLANKS = r"[ \t\r\n]*"


class Codec(Protocol):
    """The part of a vocabulary that is needed to remove a command from token ids."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Command:
    """A well-formed command inside a text.

    Attributes:
        start (`int`): index of its first character.
        end (`int`): index after its last character.
        n (`int`): tokens asked for, at least 1.
    """

    start: int
    end: int
    n: int


@dataclass(frozen=True)
class CallSyntax:
    """How a student asks for its teacher: an open tag, a positive decimal integer, a close tag (paper, section 3.1).

    Args:
        open_tag (`str`, defaults to `"<call>"`): plain text or the text of an added special token.
        close_tag (`str`, defaults to `"</call>"`): likewise.

    Raises:
        ValueError: a tag is not a text, is empty, begins or ends with a blank or a digit, or contains the other tag.
    """

    open_tag: str = "<call>"
    close_tag: str = "</call>"

    def __post_init__(self):
        for name in ("open_tag", "close_tag"):
            tag = getattr(self, name)
            edges = (tag[:1], tag[-1:]) if isinstance(tag, str) else ()
            if not any(edges) or any(edge.isspace() or edge.isdigit() for edge in edges):
                raise ValueError(
                    f"{name} is {tag!r}; a tag is a text of at least one character and may neither begin nor end with a "
                    "blank or a digit. Choose something like '<call>' and '</call>'."
                )
        if self.open_tag in self.close_tag or self.close_tag in self.open_tag:
            raise ValueError(
                f"open_tag is {self.open_tag!r} and close_tag is {self.close_tag!r}; the two must differ and neither "
                "may contain the other. Choose something like '<call>' and '</call>'."
            )

    @cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile(f"{re.escape(self.open_tag)}{_BLANKS}([0-9]+){_BLANKS}{re.escape(self.close_tag)}")

    @cached_property
    def _beginning(self) -> re.Pattern:
        def prefix_of(tag: str) -> str:
            return "|".join(re.escape(tag[:length]) for length in range(1, len(tag)))

        open_tag, close = re.escape(self.open_tag), prefix_of(self.close_tag) or "(?!)"
        number = f"{_BLANKS}(?:[0-9]+(?:{_BLANKS}(?:{close})?)?)?"
        return re.compile(f"(?:{open_tag}{number}|{prefix_of(self.open_tag) or '(?!)'})\\Z")

    def render(self, n: int) -> str:
        """The command that asks for `n` tokens."""
        if n < 1:
            raise ValueError(f"A command asks for at least 1 token, got n={n}.")
        return f"{self.open_tag}{n}{self.close_tag}"

    def find(self, text: str) -> list[Command]:
        """All well-formed commands of `text`, in order. n = 0 is not well-formed."""
        commands = []
        for match in self._pattern.finditer(text):
            digits = match[1].lstrip("0")
            if digits:
                n = int(digits) if len(digits) < 10 else MAX_REQUEST
                commands.append(Command(match.start(), match.end(), n))
        return commands

    def settled(self, text: str) -> int:
        """How many characters of `text` cannot belong to a command that is still open at its end; the text may go on."""
        begun = self._beginning.search(text)
        return begun.start() if begun else len(text)

    def count_malformed(self, text: str) -> int:
        """How many open tags of `text` begin no well-formed command: empty, not a number, n = 0, or never closed."""
        return text.count(self.open_tag) - len(self.find(text))

    def remove(self, text: str) -> str:
        """`text` without its well-formed commands; nothing else is changed."""
        return _without(text, 0, self.find(text))

    def number_tokens(self, ids: list[int], text: str, codec: Codec) -> list[int]:
        """The places of those `ids` that hold a digit of a command's n, in order. `ids` must decode to `text`."""
        places: list[int] = []
        for command in self.find(text):
            digits = re.search("[0-9]+", text[command.start + len(self.open_tag) : command.end])
            assert digits is not None
            start = command.start + len(self.open_tag) + digits.start()
            first = tokens_until(ids, text, start + 1, codec) - 1
            places += range(first, tokens_until(ids, text, start + len(digits[0]), codec))
        return places

    def remove_from_ids(self, ids: list[int], text: str, codec: Codec) -> list[int]:
        """`ids` without the tokens of their commands.

        A token can hold a part of a command and other text: in many vocabularies `>\\n` ends a tag and ` <` begins one. It is
        replaced by the encoding of the other text.

        Args:
            ids (`list[int]`): tokens that the student wrote without interruption.
            text (`str`): what they decode to.
            codec ([`Codec`]): the vocabulary of `ids`.

        Returns:
            `list[int]`: ids that decode to `self.remove(text)`.
        """
        commands = self.find(text)
        if not commands:
            return list(ids)
        cuts: list[list[int]] = []  # each: first token, token after the last, first character, character after the last
        for command in commands:
            begin = _locate(ids, text, command.start, codec)
            end = _locate(ids, text, command.end, codec)
            if begin is None or end is None:
                return codec.encode(self.remove(text))
            (first, text_start), (last, text_end) = begin, end
            while text_end < command.end:  # include the following tokens up to the end of a character
                last += 1
                text_end = _start_of(last, ids, text, codec) or text_start
            if cuts and first < cuts[-1][1]:
                cuts[-1][1], cuts[-1][3] = last, text_end
            else:
                cuts.append([first, last, text_start, text_end])
        kept, done = [], 0
        for first, last, text_start, text_end in cuts:
            kept += ids[done:first]
            kept += codec.encode(_without(text[text_start:text_end], text_start, commands))
            done = last
        return kept + ids[done:]


def _without(piece: str, offset: int, commands: list[Command]) -> str:
    """`piece` without the commands that lie in it. It begins at character `offset` of the text that `commands` belong to."""
    kept, done = "", 0
    for command in commands:
        if offset <= command.start and command.end <= offset + len(piece):
            kept += piece[done : command.start - offset]
            done = command.end - offset
    return kept + piece[done:]


def tokens_until(ids: list[int], text: str, at: int, codec: Codec) -> int:
    """How many `ids` hold the first `at` characters of `text`, which `ids` decode to."""
    found = _locate(ids, text, at, codec)
    return len(ids) if found is None else found[0] + (found[1] < at)


def _start_of(token: int, ids: list[int], text: str, codec: Codec) -> int | None:
    """The character of `text` at which `ids[token:]` begin; `None` if they begin inside a character."""
    suffix = codec.decode(ids[token:])
    return len(text) - len(suffix) if text.endswith(suffix) else None


def _locate(ids: list[int], text: str, at: int, codec: Codec) -> tuple[int, int] | None:
    """The last token that begins at or before character `at` of `text` and not inside a character, and where it begins.

    Searches from the end, where commands usually are, in steps that double. `None` if ids and text do not fit together.
    """

    def probe(token: int) -> tuple[int, int] | None:
        for earlier in range(token, max(-1, token - 4), -1):  # a character has at most four bytes, hence tokens
            start = _start_of(earlier, ids, text, codec)
            if start is not None:
                return earlier, start
        return None

    low, high, step = len(ids), len(ids) + 1, 1
    best = probe(low)
    while best is None or best[1] > at:
        if low == 0:
            return None
        high = high if best is None else best[0]
        low, step = max(0, low - step), step * 2
        best = probe(low)
    while high - low > 1:
        middle = (low + high) // 2
        found = probe(middle)
        if found is not None and found[1] > at:
            high = found[0]
        else:
            low, best = middle, max(best, found or best)
    return best
