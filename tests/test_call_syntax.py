"""The call syntax in texts and in token ids."""

import re

import pytest
from helpers import reference
from helpers import tokenizers as kinds
from hypothesis import given
from hypothesis import strategies as st

from relay_trl.call_syntax import MAX_REQUEST, CallSyntax, Command
from relay_trl.vocabulary import Vocabulary

SYNTAX = CallSyntax()
VOCABULARIES = {
    **{name: Vocabulary(build()) for name, build in kinds.KINDS.items()},
    "byte_level_tags": Vocabulary(kinds.byte_level(kinds.TAGS)),
    "llama2_tags": Vocabulary(kinds.llama2(kinds.TAGS)),
}
BYTES = {name: kinds.token_bytes(vocabulary.tokenizer) for name, vocabulary in VOCABULARIES.items()}


def numbers(text):
    return [command.n for command in SYNTAX.find(text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<call>7</call>", [7]),
        ("so <call>7</call>\nand", [7]),
        ("<call>1</call><call>22</call>", [1, 22]),
        ("<call> 7\n</call>", [7]),
        ("<call>\t\r\n 7 </call>", [7]),
        ("<call>007</call>", [7]),
        ("<call>100</call>", [100]),
        ("<call>999999999</call>", [999_999_999]),
        ("<call>1000000000</call>", [MAX_REQUEST]),
        ("<call>99999999999</call>", [MAX_REQUEST]),
        (f"<call>{'9' * 5000}</call>", [MAX_REQUEST]),
        (f"<call>{'0' * 5000}3</call>", [3]),
        ("<call><call>3</call>", [3]),
        ("<call>3</call></call>", [3]),
    ],
)
def test_find(text, expected):
    assert numbers(text) == expected


@pytest.mark.parametrize(
    "text, malformed",
    [
        ("", 0),
        ("</call>", 0),
        ("<call></call>", 1),
        ("<call> </call>", 1),
        ("<call>x</call>", 1),
        ("<call>0</call>", 1),
        ("<call>000</call>", 1),
        ("<call>3", 1),
        ("<call>3</call", 1),
        ("<call>3<call>", 2),
        ("<call>-3</call>", 1),
        ("<call>+3</call>", 1),
        ("<call>3.0</call>", 1),
        ("<call>3_0</call>", 1),
        ("<call>3 0</call>", 1),
        ("<call>1e3</call>", 1),
        ("<call>٣</call>", 1),  # ARABIC-INDIC DIGIT THREE
        ("<call>３</call>", 1),  # FULLWIDTH DIGIT THREE
        ("<call>²</call>", 1),
        ("<call>\u00a03</call>", 1),  # a no-break space is no blank
        ("<CALL>3</CALL>", 0),
        ("call>3</call>", 0),
    ],
)
def test_no_command(text, malformed):
    assert SYNTAX.find(text) == []
    assert SYNTAX.count_malformed(text) == malformed
    assert SYNTAX.remove(text) == text


def test_find_says_where():
    assert SYNTAX.find("a <call> 12</call>b") == [Command(start=2, end=18, n=12)]


def test_malformed_commands_beside_well_formed_ones_are_counted():
    assert SYNTAX.count_malformed("<call><call>2</call> <call>0</call> <call>3</call><call>") == 3


def test_remove_takes_commands_out_and_changes_nothing_else():
    assert SYNTAX.remove("1<call>3</call>2 \n<call>x</call>\n\n<call>1</call>\n") == "12 \n<call>x</call>\n\n\n"


def test_removing_is_done_once():
    # What closes up around a command may look like one; the student never wrote it in one go.
    text = "<call>1<call>2</call></call>"
    assert SYNTAX.remove(text) == "<call>1</call>"


@given(n=st.integers(1, 10**12))
def test_render_is_what_find_finds(n):
    assert numbers(SYNTAX.render(n)) == [min(n, MAX_REQUEST)]


@pytest.mark.parametrize("n", [0, -1])
def test_render_refuses_less_than_one_token(n):
    with pytest.raises(ValueError, match=f"at least 1 token, got n={n}"):
        SYNTAX.render(n)


def test_tags_can_be_chosen_and_are_taken_literally():
    syntax = CallSyntax("[[ask*", "(.)")
    assert syntax.render(4) == "[[ask*4(.)"
    assert [c.n for c in syntax.find("[[ask*4(.) [[ask*5(x) <call>6</call>")] == [4]
    assert syntax.count_malformed("[[ask*4(.) [[ask*5(x) <call>") == 1


@pytest.mark.parametrize("field", ["open_tag", "close_tag"])
@pytest.mark.parametrize("tag", ["", " ", "<a> ", "\n<a>", "7", "<a>7", "7<a>", "٣a", " ", None, 7, [None], {"a": 1}])
def test_tags_with_blank_or_digit_edges_are_refused(field, tag):
    with pytest.raises(ValueError, match=f"{field} is .*Choose something like"):
        CallSyntax(**{field: tag})


@pytest.mark.parametrize("tags", [("<a>", "<a>"), ("<a>", "x<a>"), ("<call>>", "<call>")])
def test_tags_that_contain_each_other_are_refused(tags):
    with pytest.raises(ValueError, match="must differ and neither may contain the other"):
        CallSyntax(*tags)


def spell(name, pieces):
    """Ids of `pieces`, token by token, each given as its text or bytes; a piece of its own goes before a byte token."""
    table = {piece: i for i, piece in enumerate(BYTES[name])}
    return [table[piece if isinstance(piece, bytes) else piece.encode()] for piece in pieces]


def split(text):
    return [bytes([byte]) for byte in text.encode()]


def removed(name, ids):
    vocabulary = VOCABULARIES[name]
    return SYNTAX.remove_from_ids(ids, vocabulary.decode(ids), vocabulary)


CALL = ["<", "call", ">", "1", "</", "call", ">"]


@pytest.mark.parametrize(
    "name, pieces, expected",
    [
        ("byte_level", ["a", *CALL], ["a"]),
        ("byte_level", ["a", "b", "the"], ["a", "b", "the"]),
        # The close tag ends inside a token, the open tag begins inside one.
        ("byte_level", ["a", *CALL[:-1], ">\n", "b"], ["a", "\n", "b"]),
        ("byte_level", ["a", " <", *CALL[1:-1], ">.", "b"], ["a", " ", ".", "b"]),
        ("byte_level", ["a", ".<", *CALL[1:-1], ">\n\n"], ["a", ".", "\n\n"]),
        # What two tokens leave behind side by side is encoded as one text.
        ("byte_level", ["a", "<", "call>", "10", "</", "call>", *CALL, "a", "b"], ["a", "a", "b"]),
        # Two commands share the token between them.
        ("byte_level", ["b", *CALL[:-1], "><", *CALL[1:], "b"], ["b", "b"]),
        ("byte_level", ["b", " <", *CALL[1:-1], "><", *CALL[1:-1], ">.", "b"], ["b", " ", ".", "b"]),
        # A character's bytes lie on both sides of the tag's end, and of its beginning.
        ("byte_level", [*CALL[:-1], b">\xe2", b"\x80", b"\x9c", "b", "a"], [*split("“"), "b", "a"]),
        ("byte_level", ["a", "b", b"\xc3", b"\xa9<", *CALL[1:], "b"], ["a", "b", "é", "b"]),
        # Multi-byte characters beside a command stay as sampled.
        ("byte_level", [*split("🙂"), *CALL, *split("🙂")], [*split("🙂🙂")]),
        ("byte_level", [*split("é"), " <", *CALL[1:-1], ">.", *split("é")], [*split("é"), " ", ".", *split("é")]),
        ("llama2", [*split("中"), " <", *CALL[1:-1], ">.", " the"], [*split("中"), " ", ".", " the"]),
        ("llama2", [" <", *CALL[1:], "the"], [" ", "the"]),
        ("llama2", [*split("文中"), *CALL, *split("中文文文文中")], split("文中中文文文文中")),
        ("gemma", ["a", " <", *CALL[1:], *split("中文")], ["a", " ", *split("中文")]),
        ("characters", [*"a<call>1</call>中"], ["a", "中"]),
        ("byte_level_tags", ["a", " ", "<call>", "1", "0", "</call>", "\n"], ["a", " ", "\n"]),
        ("llama2_tags", [" a", "<call>", " ", "1", "</call>", " a"], [" a", " a"]),
    ],
)
def test_remove_from_ids(name, pieces, expected):
    assert removed(name, spell(name, pieces)) == spell(name, expected)


@pytest.mark.parametrize("name", ["byte_level", "gemma"])
def test_ids_beside_commands_stay_however_many_bytes_stand_around(name):
    for before in range(6):
        for after in range(6):
            left = ["a", "b", *split("🙂") * before, "a", "b"]
            right = ["a", "b", *split("🙂") * after, "a", "b"]
            expected = spell(name, left + right)
            assert removed(name, spell(name, [*left, *CALL, *right])) == expected


@pytest.mark.parametrize("name", list(VOCABULARIES))
def test_number_tokens_are_those_that_hold_a_digit_of_n(name):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode("so 12 é <call> 305 </call>.\n中<call>x</call><call>0</call><call>7</call> 9")
    text = vocabulary.decode(ids)
    places = SYNTAX.number_tokens(ids, text, vocabulary)
    starts = [len(vocabulary.decode(ids[:place])) for place in places]
    pieces = [vocabulary.decode([ids[place]]) for place in places]
    assert "".join(re.findall("[0-9]", "".join(pieces))) == "3057"
    commands = SYNTAX.find(text)
    assert all(any(c.start < start < c.end for c in commands) for start in starts)


def test_remove_from_ids_that_do_not_fit_their_text_encodes_the_text():
    # Pieces of a character decoded apart: the text has replacement characters where the ids have a letter.
    vocabulary = VOCABULARIES["byte_level"]
    ids = spell("byte_level", [*split("中"), *CALL, *split("中"), *CALL, "a"])
    text = "中<call>1</call>\ufffd\ufffd<call>1</call>a"
    assert vocabulary.decode(SYNTAX.remove_from_ids(ids, text, vocabulary)) == "中\ufffd\ufffda"
    assert SYNTAX.remove_from_ids(ids, text + "!", vocabulary) == vocabulary.encode("中\ufffd\ufffda!")


@pytest.mark.parametrize("name", VOCABULARIES)
@given(data=st.data())
def test_removing_from_any_ids_leaves_what_the_reference_leaves(name, data):
    vocabulary, table = VOCABULARIES[name], BYTES[name]
    ids = data.draw(reference.spellings(table))
    text = reference.spelt(ids, table)
    assert vocabulary.decode(ids) == text.decode()
    kept = removed(name, ids)
    assert vocabulary.decode(kept).encode() == reference.COMMAND.sub(b"", text)
    assert SYNTAX.remove(text.decode()).encode() == reference.COMMAND.sub(b"", text)
    assert reference.fits(kept, reference.outside(ids, table), table)
