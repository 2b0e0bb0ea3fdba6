"""Tells a listener the text of a rollout while it is written, with its author.

Owns the way from an engine's tokens to the listener's text: no half characters, nothing twice, nothing that is not in the
trace. The text includes commands; the listener may hide them.
"""

from collections.abc import Callable
from typing import TypeAlias

from .engines.base import Engine, EngineError
from .trace import Author
from .vocabulary import UNFINISHED, Vocabulary

Listener: TypeAlias = Callable[[Author, str, int], None]
"""`listener(author, text, tokens)`. All texts together are the trace's text; all numbers add up to its tokens."""


class Feed:
    """Tells a listener of one rollout, turn by turn.

    Args:
        listener ([`Listener`]).
        vocabulary ([`Vocabulary`]): the student's.
    """

    def __init__(self, listener: Listener, vocabulary: Vocabulary):
        self._listener = listener
        self._vocabulary = vocabulary
        self._author = Author.STUDENT
        self._left_open: tuple[Author, str] | None = None  # a character that no turn has ended yet

    def begin(self, author: Author, engine: Engine, limit: int, opened: list[int], is_shared: bool = True) -> "Feed":
        """A turn begins; this is its `on_tokens`.

        Args:
            author ([`Author`]), engine ([`Engine`]): who is asked.
            limit (`int`): most tokens that will be taken.
            opened (`list[int]`): the student's ids of an unfinished character that stands in front.
            is_shared (`bool`): whether the engine's ids are the student's.
        """
        self._author, self._engine, self._left = author, engine, limit
        # The student's own are one text; somebody else's tokens do not end the character
        self._undecided = self._left_open is not None and self._left_open[0] is not author
        self._opened = list(opened) if is_shared else []
        self._open_ids = list(self._opened)
        shown = self._vocabulary.decode(self._open_ids) if self._open_ids else ""
        self._known = len(shown.rstrip(UNFINISHED))  # characters in front of the unfinished one that were told before
        self._open_text = ""
        self._told = ""
        self._count = 0
        return self

    def __call__(self, piece: list[int] | str):
        vocabulary = self._engine.vocabulary
        if isinstance(piece, str) or vocabulary is None:
            # How many tokens it makes of the student's is known at the end; what may be cut off then is not told now
            self._left -= len(self._vocabulary.encode(str(piece)))
            text = self._open_text + str(piece)
            whole = text.rstrip(UNFINISHED) if self._left > 0 else ""
            self._open_text = text[len(whole) :]
            if whole:
                self._decide()
            self._tell(whole, 0)
            return
        ids = piece[: self._left]
        self._left -= len(ids)
        if not all(0 <= token < vocabulary.size for token in ids):
            raise EngineError(f"{self._engine.name!r} returned token ids {ids}; its vocabulary has {vocabulary.size}.")
        words = [token for token in ids if token not in vocabulary.eos_ids]
        self._open_ids += words
        text = vocabulary.decode(self._open_ids)[self._known :] if self._open_ids else ""
        if text.endswith(UNFINISHED) and len(self._open_ids) < vocabulary.PATIENCE:
            text = ""
        # A teacher's end is no token of the answer: the student's, which may close it, is set there without being heard
        if text and self._decide():
            text = text.removeprefix(vocabulary.unfinished(self._opened))
        if text:
            self._open_ids, self._known = [], 0
        self._tell(text, len(ids) if self._author is Author.STUDENT else len(words))

    @property
    def words(self) -> str:
        """What the engine itself was heard to write in this turn."""
        return self._told

    def close(self, text: str, count: int, opened: list[int]):
        """The turn has ended: tells what is still missing of the `text` and the `count` tokens that went into the trace.

        Args:
            opened (`list[int]`): the ids of an unfinished character at the end of the trace.
        """
        unfinished = self._vocabulary.unfinished(opened)
        whole = text[: len(text) - len(unfinished)] if text.endswith(unfinished) else text
        if text:
            self._decide()
            self._left_open = (self._author, text[len(whole) :]) if len(whole) < len(text) else None
        self._tell(whole[len(self._told) :], count - self._count)

    def end(self):
        """The rollout has ended: a character that is still unfinished remains so."""
        if self._left_open is not None:
            self._listener(*self._left_open, 0)
            self._left_open = None

    def _decide(self) -> bool:
        """Whether what was heard leaves the character in front broken, which is then told as the earlier author's."""
        own = self._open_ids[len(self._opened) :]
        is_broken = self._undecided and not (self._opened and self._vocabulary.continues(self._opened, own))
        self._undecided = False
        if is_broken:
            self.end()
        return is_broken

    def _tell(self, text: str, count: int):
        if text or count > 0:
            self._told += text
            self._count += count
            self._listener(self._author, text, count)
