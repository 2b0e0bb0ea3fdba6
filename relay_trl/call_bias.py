"""A bias at decoding time on the tokens that begin a call. It makes a trained student call less or more often.

Owns which tokens these are and where in a text they are biased. `relay.py` asks for the bias, engines apply it. Inside a
command the bias would do damage: above 0 the student would repeat the tag, below 0 it could not write the `<` of the close
tag. So a biased student is asked piece by piece, with the bias up to where a call may begin and without it inside a command.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from .call_syntax import CallSyntax
from .vocabulary import Vocabulary

NEVER = -math.inf
"""The bias with which a student cannot call."""

_COMMAND_TOKENS = 24  # room for the rest of a command, one character a token; what is longer is no command
_PIECES: WeakKeyDictionary[Vocabulary, list[str]] = WeakKeyDictionary()
_TOKENS: WeakKeyDictionary[Vocabulary, dict[tuple, tuple[int, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Piece:
    """How to ask a biased student for its next piece of text.

    Args:
        stop (`tuple[str, ...]`): texts that end the piece.
        logit_bias (`Mapping[int, float]`, *optional*): what is added to the logits of single tokens.
        max_tokens (`int`, *optional*): most tokens of the piece; `None` sets no limit beside the completion's budget.
    """

    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] | None = None
    max_tokens: int | None = None


def next_piece(bias: float, text: str, syntax: CallSyntax, vocabulary: Vocabulary) -> Piece:
    """The piece that follows `text`, which the student has written since the teacher last wrote.

    Below 0 the bias applies to every token that can be the first of a call; if the tag is one token, only to that token. Above
    0 it also applies to tokens that continue a tag. Without this, tokens that begin other text too, such as a blank and `<`,
    would become frequent without a call. At [`NEVER`] all tokens that can begin a call have probability 0, also those that
    spell a tag in characters. With plain-text tags this excludes other uses of these tokens, such as a single less-than sign.
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
    """Every token in which `tag` can begin: its text contains the tag or ends in a beginning of it (`<`, ` <`, `.<`)."""

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
    """Whether `text` may follow an open tag; the `.` of the token `>.` may not."""
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
    """Length of the longest proper prefix of `tag` that `text` ends in."""
    return next((k for k in range(len(tag) - 1, 0, -1) if text.endswith(tag[:k])), 0)


def _is_in_command(text: str, syntax: CallSyntax) -> bool:
    """Whether `text` ends inside a command: after an open tag and with only what can still become a well-formed command."""
    _, found, rest = text.rpartition(syntax.open_tag)
    number = re.match(r"[ \t\r\n]*[0-9]*[ \t\r\n]*", rest)
    tail = rest[number.end() :] if number else rest
    return bool(found) and tail != syntax.close_tag and syntax.close_tag.startswith(tail)
