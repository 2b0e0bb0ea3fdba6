"""One dial from never to often: a bias, at decoding time, on the tokens with which a student begins a call.

Owns which tokens those are and where in a text they are biased; `relay.py` asks, engines apply. A bias that stayed on
inside a command would break it (the tag again and again, or a close tag whose `<` is held back), so a biased student is
asked piece by piece: up to where a call may begin, then what is left of its command, and on.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from .call_syntax import CallSyntax
from .vocabulary import Vocabulary

NEVER = -math.inf
"""The bias of a student that cannot call."""

_COMMAND_TOKENS = 24  # room for the rest of a command, one character a token; what is longer is no command
_PIECES: WeakKeyDictionary[Vocabulary, list[str]] = WeakKeyDictionary()
_TOKENS: WeakKeyDictionary[Vocabulary, dict[tuple, tuple[int, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Piece:
    """How the next piece of a biased student's text is asked for.

    Args:
        stop (`tuple[str, ...]`): where it ends.
        logit_bias (`Mapping[int, float]`, *optional*): what is added to the logits of single tokens.
        max_tokens (`int`, *optional*): its longest; `None` leaves it to the completion's budget.
    """

    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] | None = None
    max_tokens: int | None = None


def next_piece(bias: float, text: str, syntax: CallSyntax, vocabulary: Vocabulary) -> Piece:
    """The piece behind `text`, the student's own words since the teacher last wrote.

    Below 0 the bias is on every token that may be the first of a call; where the tag is a token of its own, on that one
    alone. Above 0 it is on the tokens that go on with a begun tag too: a blank and `<`, which also begin other text, then
    become no more frequent without a call than they are by themselves, up to how often the student means a call by them.
    At [`NEVER`] all tokens that may begin a call have probability 0, a tag spelled by characters included. With
    plain-text tags that bars some other uses of these tokens, such as a lone less-than sign.
    """
    if bias == NEVER:
        return Piece(logit_bias=dict.fromkeys(starting_tokens(syntax.open_tag, vocabulary), NEVER))
    if _is_in_command(text, syntax):
        return Piece((syntax.close_tag,), max_tokens=_COMMAND_TOKENS)
    whole = _whole_tokens(syntax.open_tag, vocabulary)
    if bias < 0 or whole:
        tokens = whole or starting_tokens(syntax.open_tag, vocabulary)
        return Piece((syntax.open_tag,), dict.fromkeys(tokens, bias))
    begun = _begun(text, syntax.open_tag)
    if begun:
        tokens = _continuing_tokens(syntax.open_tag[begun:], vocabulary)
        return Piece(logit_bias=dict.fromkeys(tokens, bias), max_tokens=1)
    return Piece((syntax.open_tag[0],), dict.fromkeys(starting_tokens(syntax.open_tag, vocabulary), bias))


def starting_tokens(tag: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Every token that `tag` may begin in: its text holds the tag, or ends in a part of its beginning (`<`, ` <`, `.<`)."""

    def may_start(piece: str) -> bool:
        # Half a character of a tag beyond ASCII cannot be told from half of another one.
        is_half = not tag[0].isascii() and "\ufffd" in piece
        return is_half or tag in piece or _begun(piece, tag) > 0

    return _select(vocabulary, ("start", tag), may_start)


def _whole_tokens(tag: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    return _select(vocabulary, ("whole", tag), lambda piece: tag in piece and _is_number(piece.rpartition(tag)[2]))


def _continuing_tokens(rest: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    def goes_on(piece: str) -> bool:
        return piece != "" and (rest.startswith(piece) or (piece.startswith(rest) and _is_number(piece[len(rest) :])))

    return _select(vocabulary, ("rest", rest), goes_on)


def _is_number(text: str) -> bool:
    """Whether `text` may stand behind an open tag; `.` of the token `>.` may not."""
    return re.fullmatch(r"[ \t\r\n]*[0-9]*", text) is not None


def _select(vocabulary: Vocabulary, key: tuple, is_wanted) -> tuple[int, ...]:
    known = _TOKENS.setdefault(vocabulary, {})
    if key not in known:
        if vocabulary not in _PIECES:
            _PIECES[vocabulary] = [vocabulary.decode([token]) for token in range(vocabulary.size)]
        pieces: Iterable[tuple[int, str]] = enumerate(_PIECES[vocabulary])
        known[key] = tuple(token for token, piece in pieces if is_wanted(piece))
    return known[key]


def _begun(text: str, tag: str) -> int:
    """How many characters of `tag` the end of `text` has: the longest beginning of it, not the whole."""
    return next((k for k in range(len(tag) - 1, 0, -1) if text.endswith(tag[:k])), 0)


def _is_in_command(text: str, syntax: CallSyntax) -> bool:
    """Whether `text` ends inside a command: behind an open tag, with nothing but what may become a well-formed one."""
    _, found, rest = text.rpartition(syntax.open_tag)
    number = re.match(r"[ \t\r\n]*[0-9]*[ \t\r\n]*", rest)
    tail = rest[number.end() :] if number else rest
    return bool(found) and tail != syntax.close_tag and syntax.close_tag.startswith(tail)
