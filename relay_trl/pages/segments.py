"""A rollout as a reader sees it: the student's words, the teacher's words, and commands with what became of them.

Owns how a trace is cut into pieces; every page that shows a rollout draws these. It knows no page.
"""

from dataclasses import dataclass

from ..call_syntax import CallSyntax
from ..trace import Author, Call, Trace


@dataclass(frozen=True)
class Segment:
    """A piece of an answer.

    Args:
        author (`str`): `"student"`, `"teacher"` or `"call"`.
        text (`str`): its words; a call's command as it was written.
        tokens (`int`): of a teacher's turn.
        call ([`Call`], *optional*): what became of the command.
    """

    author: str
    text: str
    tokens: int = 0
    call: Call | None = None

    def to_dict(self) -> dict:
        """A JSON-ready form, for pages that draw it themselves; what is not set is left out."""
        found: dict[str, str | int] = {"author": self.author, "text": self.text}
        if self.tokens:
            found["tokens"] = self.tokens
        if self.call is not None:
            call = self.call
            found |= {"requested": call.requested, "granted": call.granted, "delivered": call.delivered}
            found["outcome"] = call.outcome.value
        return found


def segments(trace: Trace, syntax: CallSyntax) -> list[Segment]:
    """The completion in pieces: the student's words, the teacher's words, and commands with what became of them."""
    pieces = []
    calls = iter(trace.calls)
    for span in trace.spans:
        if span.author is Author.TEACHER:
            pieces.append(Segment("teacher", span.text, len(span.ids)))
            continue
        done = 0
        # A method that looks for no calls has none in its trace: its commands are plain text.
        for command, call in zip(syntax.find(span.text) if trace.calls else (), calls, strict=False):
            pieces.append(Segment("student", span.text[done : command.start]))
            pieces.append(Segment("call", span.text[command.start : command.end], call=call))
            done = command.end
        pieces.append(Segment("student", span.text[done:]))
    return [piece for piece in pieces if piece.text]
