"""Turns a rollout into what a client sees while it is written: without commands, up to a stop string, with authors.

Owns which text is held back and for how long. It is the listener of a relay.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..call_syntax import CallSyntax
from ..trace import Author


@dataclass
class Delta:
    """A piece of an answer.

    Args:
        author ([`Author`]): who wrote it.
        text (`str`): as the client gets it; empty if only tokens are counted, such as those of a hidden command.
        tokens (`int`): tokens of the author since the last piece. All deltas together count every token once.
    """

    author: Author
    text: str
    tokens: int


@dataclass
class Reader:
    """Listens to a rollout.

    Args:
        syntax ([`CallSyntax`]): of the commands.
        stop (`tuple[str, ...]`): the answer ends before the first of these.
        shows_commands (`bool`, defaults to `False`): whether commands stay in the text.
        on_delta (`Callable[[Delta], None]`, *optional*): gets every piece as soon as it is certain.
        on_stop (`Callable[[], object]`, *optional*): called once when a stop string is complete.

    Attributes:
        spans (`list[Delta]`): the answer so far, one entry for each stretch of one author.
        is_stopped (`bool`): whether a stop string was found.
    """

    syntax: CallSyntax
    stop: tuple[str, ...] = ()
    shows_commands: bool = False
    on_delta: Callable[[Delta], None] | None = None
    on_stop: Callable[[], object] | None = None
    spans: list[Delta] = field(default_factory=list)
    is_stopped: bool = False
    _author: Author = Author.STUDENT
    _command: str = ""  # text that may become a command
    _held: list[Delta] = field(default_factory=list)  # text that may become a stop string
    _uncounted: int = 0  # tokens of `_author` that are in no delta yet

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(span.text for span in self.spans)

    def tokens_of(self, author: Author) -> int:
        """Tokens of `author` so far."""
        return sum(span.tokens for span in self.spans if span.author is author)

    def __call__(self, author: Author, text: str, tokens: int):
        if self.is_stopped:
            return
        if author is not self._author:
            self._end_run()
            self._author = author
        self._uncounted += tokens
        if author is Author.STUDENT and not self.shows_commands:
            begun = self._command + text
            settled = self.syntax.settled(begun)
            text, self._command = self.syntax.remove(begun[:settled]), begun[settled:]
        if text:
            self._pass(text)

    def close(self):
        """Call it at the end of the rollout: emits the text that was held back, because it is no command and no stop string."""
        if not self.is_stopped:
            self._end_run()
        held, self._held = self._held, []
        for delta in held:
            self._emit(delta)
        if self._uncounted:
            self._emit(Delta(self._author, "", self._uncounted))
            self._uncounted = 0

    def _end_run(self):
        command, self._command = self._command, ""
        if command:
            self._pass(command)
        if self._uncounted and not self.is_stopped:
            self._hold_or_emit(Delta(self._author, "", self._uncounted))
            self._uncounted = 0

    def _pass(self, text: str):
        delta = Delta(self._author, text, self._uncounted)
        self._uncounted = 0
        if self.stop:
            self._look_for_stop(delta)
        else:
            self._emit(delta)

    def _hold_or_emit(self, delta: Delta):
        if self._held:
            self._held.append(delta)
        else:
            self._emit(delta)

    def _look_for_stop(self, delta: Delta):
        pieces = [*self._held, delta]
        text = "".join(piece.text for piece in pieces)
        at = min((text.find(stop) for stop in self.stop if stop in text), default=None)
        self.is_stopped = at is not None
        keep = len(text) - self._longest_beginning(text) if at is None else at
        self._held = []
        for piece in pieces:
            whole, keep = piece.text[: max(keep, 0)], keep - len(piece.text)
            rest = piece.text[len(whole) :]
            if self._held:
                self._held.append(piece)
            elif not rest:
                self._emit(piece)
            else:
                if whole:
                    self._emit(Delta(piece.author, whole, 0))
                self._held.append(Delta(piece.author, rest, piece.tokens))
        if self.is_stopped:
            # Text after the stop string is not emitted, but its tokens are counted.
            self._held = [Delta(piece.author, "", piece.tokens) for piece in self._held if piece.tokens]
            if self.on_stop is not None:
                self.on_stop()

    def _longest_beginning(self, text: str) -> int:
        """How many characters at the end of `text` begin a stop string."""
        longest = max(map(len, self.stop)) - 1
        return next((k for k in range(longest, 0, -1) if any(s.startswith(text[-k:]) for s in self.stop)), 0)

    def _emit(self, delta: Delta):
        last = self.spans[-1] if self.spans else None
        if last is not None and last.author is delta.author:
            last.text += delta.text
            last.tokens += delta.tokens
        else:
            self.spans.append(Delta(delta.author, delta.text, delta.tokens))
        if self.on_delta is not None:
            self.on_delta(delta)
