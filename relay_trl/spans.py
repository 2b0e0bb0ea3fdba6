"""Adds what was written to a trace: spans, their texts, and the calls in them.

Owns the border of two spans. Texts are those of all tokens behind one another, so that a character whose tokens lie on both
sides is that character; it belongs to the span in which it ends. Where it does not go on, the earlier span ends in U+FFFD.
"""

from collections.abc import Sequence
from dataclasses import replace

from .call_syntax import CallSyntax, Command, tokens_until
from .engines.base import EngineError, FinishReason, Generation
from .trace import Author, Call, Span, Trace
from .vocabulary import UNFINISHED, Vocabulary


def open_ids(spans: Sequence[Span], vocabulary: Vocabulary) -> list[int]:
    """The last tokens of `spans`, those of a character that has not ended; empty where the text is whole."""
    last: list[int] = []
    for span in reversed(spans):
        last = span.ids[-vocabulary.PATIENCE :] + last
        if len(last) >= vocabulary.PATIENCE:
            break
    if not last or last[-1] in vocabulary.eos_ids or not vocabulary.decode(last).endswith(UNFINISHED):
        return []
    return vocabulary.open_end([token for span in spans for token in span.ids])


def add_words(
    trace: Trace,
    author: Author,
    ids: list[int],
    vocabulary: Vocabulary,
    logprobs: list[float] | None = None,
    is_ended: bool = False,
):
    """Appends what `author` wrote, in which a command is plain text.

    Args:
        ids (`list[int]`): in the student's vocabulary; the last one is an end token if `is_ended`.
    """
    if not ids:
        return
    words = ids[:-1] if is_ended else ids
    opened = open_ids(trace.spans, vocabulary)
    opened = opened if vocabulary.continues(opened, words) else []
    _give_up(trace.spans, opened, vocabulary)
    if not trace.spans or trace.spans[-1].author is not author:
        trace.spans.append(Span(author, [], "", logprobs=[] if author is Author.STUDENT else None))
    span = trace.spans[-1]
    text = vocabulary.decode_behind(opened, words)
    span.ids = span.ids + ids
    span.text += text
    span.kept_ids, span.kept_text = span.kept_ids + words, span.kept_text + text
    span.logprobs = None if span.logprobs is None or logprobs is None else span.logprobs + logprobs


def add_student(trace: Trace, written: Generation, vocabulary: Vocabulary, syntax: CallSyntax) -> Command | None:
    """Appends what the student wrote; returns the command that its last token completes, if any.

    Raises:
        EngineError: it wrote no ids.
    """
    if not written.ids:
        raise EngineError("The student's engine returned no token ids; a student's must, at least one per request.")
    ids = written.ids[:-1] if written.finish is FinishReason.EOS else written.ids
    if not trace.spans or trace.spans[-1].author is not Author.STUDENT:
        trace.spans.append(Span(Author.STUDENT, [], "", logprobs=[]))
    *earlier, span = trace.spans
    seen = len(syntax.find(span.text))
    span.ids = span.ids + written.ids
    if span.logprobs is not None and written.logprobs is not None:
        span.logprobs = span.logprobs + written.logprobs
    else:
        span.logprobs = None
    content = span.ids[: len(span.ids) - (len(written.ids) - len(ids))]
    opened = open_ids(earlier, vocabulary)
    opened = opened if vocabulary.continues(opened, content) else []
    _give_up(earlier, opened, vocabulary)
    trace.spans[:-1] = earlier
    span.text = vocabulary.decode_behind(opened, content)
    _keep(trace.spans, opened, content, vocabulary, syntax)
    span.malformed = syntax.count_malformed(span.text)
    commands = syntax.find(span.text)
    before = trace.num_tokens - len(span.ids)
    for command in commands[seen:]:
        trace.calls.append(Call(before + tokens_until(content, span.text, command.end, vocabulary), command.n))
    ends_in_last_token = commands[seen:] and commands[-1].end > len(span.text) - len(vocabulary.decode(ids[-1:]))
    return commands[-1] if ends_in_last_token else None


def _keep(spans: list[Span], opened: list[int], content: list[int], vocabulary: Vocabulary, syntax: CallSyntax):
    """Sets what is kept of the last span, a student's, whose ids without an end token are `content`."""
    span = spans[-1]
    span.kept_text = syntax.remove(span.text)
    whole = opened + content
    kept = syntax.remove_from_ids(whole, vocabulary.decode(whole), vocabulary)
    span.removed = len(whole) - len(kept)
    unfinished = vocabulary.open_end(content)
    if unfinished and kept[-len(unfinished) :] != unfinished:
        # Its first byte was in the command's last token, and goes with it: U+FFFD would be nobody's word
        spelt = vocabulary.encode(UNFINISHED)
        kept = kept[: -len(spelt)] if kept[-len(spelt) :] == spelt else kept
    if kept[: len(opened)] != opened:
        # The token that ends the character also begins a command, so that all of the character is encoded anew
        _drop_kept(spans, len(spans) - 1, len(opened))
        opened = []
    span.kept_ids = kept[len(opened) :]


def _drop_kept(spans: list[Span], end: int, count: int):
    for k in range(end - 1, -1, -1):
        kept = spans[k].kept_ids
        here = min(count, len(kept))
        spans[k] = replace(spans[k], kept_ids=kept[: len(kept) - here])  # spans may be shared with other traces
        count -= here


def _give_up(spans: list[Span], opened: list[int], vocabulary: Vocabulary):
    """Takes the end of a character that goes on off the texts that it stands in as U+FFFD."""
    count = len(vocabulary.unfinished(opened))
    for k in range(len(spans) - 1, -1, -1):
        span = spans[k]
        here = min(count, len(span.text) - len(span.text.rstrip(UNFINISHED)))
        if count == 0 or (here == 0 and span.text):
            return
        kept = span.kept_text.removesuffix(UNFINISHED * here)
        spans[k] = replace(span, text=span.text[: len(span.text) - here], kept_text=kept)
        count -= here
