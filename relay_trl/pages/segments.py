"""A rollout in segments for a page: the student's text, the teacher's text, and commands with their outcome.

Owns how a trace is divided. All pages that show a rollout draw these segments.
"""

from dataclasses import dataclass

from ..call_syntax import CallSyntax
from ..trace import Author, Call, Trace


@dataclass(frozen=True)
class Segment:
    """A segment of an answer.

    Args:
        author (`str`): `"student"`, `"teacher"` or `"call"`.
        text (`str`): its text; of a call, the command as written.
        tokens (`int`): tokens of a teacher's turn.
        call ([`Call`], *optional*): the outcome of the command.
    """

    author: str
    text: str
    tokens: int = 0
    call: Call | None = None

    def to_dict(self) -> dict:
        """A JSON-ready form for pages that draw it themselves, without fields that are not set."""
        found: dict[str, str | int] = {"author": self.author, "text": self.text}
        if self.tokens:
            found["tokens"] = self.tokens
        if self.call is not None:
            call = self.call
            found |= {"requested": call.requested, "granted": call.granted, "delivered": call.delivered}
            found["outcome"] = call.outcome.value
        return found


def segments(trace: Trace, syntax: CallSyntax) -> list[Segment]:
    """The completion in segments: the student's text, the teacher's text, and commands with their outcome."""
    pieces = []
    calls = iter(trace.calls)
    for span in trace.spans:
        if span.author is Author.TEACHER:
            pieces.append(Segment("teacher", span.text, len(span.ids)))
            continue
        done = 0
        # If a method looks for no calls, its trace has none, and its commands are plain text.
        for command, call in zip(syntax.find(span.text) if trace.calls else (), calls, strict=False):
            pieces.append(Segment("student", span.text[done : command.start]))
            pieces.append(Segment("call", span.text[command.start : command.end], call=call))
            done = command.end
        pieces.append(Segment("student", span.text[done:]))
    return [piece for piece in pieces if piece.text]
