"""Tells a listener the text of a rollout while it is written, with its author.

Owns the way from an engine's tokens to the listener's text: no half characters, nothing twice, nothing that is not in the
trace. The text includes commands; the listener may hide them.
"""

from collections.abc import Callable
from typing import TypeAlias

from .engines.base import Engine, EngineError
from .trace import Author

Listener: TypeAlias = Callable[[Author, str, int], None]
"""`listener(author, text, tokens)`. All texts together are the trace's text; all numbers add up to its tokens."""

_PATIENCE = 16
"""After so many tokens an unfinished character is told as it is; a model that writes only broken bytes would never be told."""


class Feed:
    """The `on_tokens` of one request: turns tokens into text for a listener.

    Args:
        listener ([`Listener`]).
        author ([`Author`]): whose request it is.
        engine ([`Engine`]): the engine that writes the tokens.
        limit (`int`): most tokens to tell.
    """

    def __init__(self, listener: Listener, author: Author, engine: Engine, limit: int):
        self._listener = listener
        self._author = author
        self._engine = engine
        self._left = limit
        self._open_ids: list[int] = []  # tokens of an unfinished character
        self._open_text = ""
        self._told: list[str] = []
        self._count = 0

    def __call__(self, piece: list[int] | str):
        vocabulary = self._engine.vocabulary
        if isinstance(piece, str) or vocabulary is None:
            text = self._open_text + str(piece)
            whole = text.rstrip("\ufffd")
            self._open_text = text[len(whole) :]
            self._tell(whole, 0)
            return
        ids = piece[: self._left]
        self._left -= len(ids)
        if not all(0 <= token < vocabulary.size for token in ids):
            raise EngineError(f"{self._engine.name!r} returned token ids {ids}; its vocabulary has {vocabulary.size}.")
        self._open_ids += [token for token in ids if token not in vocabulary.eos_ids]
        text = vocabulary.decode(self._open_ids) if self._open_ids else ""
        if text.endswith("\ufffd") and len(self._open_ids) < _PATIENCE:
            text = ""
        else:
            self._open_ids = []
        self._tell(text, len(ids))

    def close(self, text: str, count: int):
        """Tells the rest of `text` and of the `count` tokens that went into the trace."""
        told = sum(map(len, self._told))
        self._tell(text[told:], count - self._count)

    def _tell(self, text: str, count: int):
        if text or count > 0:
            self._told.append(text)
            self._count += count
            self._listener(self._author, text, count)
