"""The reader gives the same result however a rollout's text is cut into pieces."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from relay_trl.call_syntax import CallSyntax
from relay_trl.serving.reader import Reader
from relay_trl.trace import Author

SYNTAX = CallSyntax()
FRAGMENTS = ["<call>", "</call>", "12", "0", "<", "</", "a", " ", "<call>3</call>", "é", "call>"]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
runs = st.lists(texts, min_size=1, max_size=4)


def read(turns, cuts, **options):
    """Reads runs of text, the student's first, each cut at random places."""
    heard, told = [], 0
    reader = Reader(SYNTAX, on_delta=lambda delta: heard.append((delta.author, delta.text, delta.tokens)), **options)
    for number, text in enumerate(turns):
        author = Author.TEACHER if number % 2 else Author.STUDENT
        done = 0
        while done < len(text):
            step = next(cuts)
            reader(author, text[done : done + step], 1)
            told += 1
            done += step
    reader.close()
    reader.told = told
    return reader, heard


cuts = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(itertools.cycle)


@given(runs, cuts)
def test_the_text_is_the_answer_without_commands(turns, cuts):
    reader, heard = read(turns, cuts)
    kept = [text if number % 2 else SYNTAX.remove(text) for number, text in enumerate(turns)]
    assert reader.text == "".join(text for _, text, _ in heard) == "".join(kept)


@given(runs, cuts)
def test_shown_commands_change_nothing(turns, cuts):
    assert read(turns, cuts, shows_commands=True)[0].text == "".join(turns)


@given(runs, st.lists(texts.filter(bool), min_size=1, max_size=2), cuts)
def test_nothing_behind_a_stop_string_and_nothing_missing_before(turns, stop, cuts):
    reader, heard = read(turns, cuts, stop=tuple(stop), shows_commands=True)
    text = "".join(turns)
    ends = [text.find(s) for s in stop if s in text]
    if not ends:
        assert not reader.is_stopped and reader.text == text
        return
    # The stop that is complete first ends it; one that begins earlier may be complete in the same piece.
    assert reader.is_stopped
    assert any(text.startswith(reader.text + s) for s in stop)
    assert reader.text == "".join(text for _, text, _ in heard)


@given(runs, cuts)
def test_every_token_is_counted_once(turns, cuts):
    reader, heard = read(turns, cuts)
    pieces = sum(tokens for _, _, tokens in heard)
    assert pieces == sum(span.tokens for span in reader.spans) == reader.told
