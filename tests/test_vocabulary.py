"""Exact text of tokens, encoding that adds nothing and keeps special tokens as text, and comparing two vocabularies."""

import pytest
from helpers import tokenizers as kinds
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from relay_trl.vocabulary import Vocabulary

VOCABULARIES = {
    **{name: Vocabulary(build()) for name, build in kinds.KINDS.items()},
    **{f"{name}_tags": Vocabulary(build(kinds.TAGS)) for name, build in kinds.KINDS.items()},
}
BYTES = {name: kinds.token_bytes(vocabulary.tokenizer) for name, vocabulary in VOCABULARIES.items()}

texts = st.lists(
    st.sampled_from(
        ["<call>", "</call>", "7", " ", "\n", "<eos>", "é", "“", "中", "🙂", "the", "abab", ">.", "  ", "<"]
    )
    | st.sampled_from(kinds.ASCII),
    max_size=12,
).map("".join)
names = pytest.mark.parametrize("name", VOCABULARIES)


@names
@given(text=texts)
def test_decode_undoes_encode_and_nothing_is_added(name, text):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert b"".join(BYTES[name][token] for token in ids) == text.encode()
    assert not set(ids) & set(vocabulary.tokenizer.all_special_ids)


@names
def test_encode_spells_the_names_of_special_tokens(name):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode("so<eos><call>3</call>")
    assert not set(ids) & set(vocabulary.tokenizer.all_special_ids)
    assert vocabulary.decode(ids) == "so<eos><call>3</call>"


@names
@given(data=st.data())
def test_pieces_cut_between_characters_decode_to_the_whole(name, data):
    vocabulary, table = VOCABULARIES[name], BYTES[name]
    unknown = vocabulary.tokenizer.convert_tokens_to_ids("<unk>")
    whole = [i for i, piece in enumerate(table) if i != unknown and _is_whole(piece)]
    tokens = st.sampled_from(whole).map(lambda i: [i]) | texts.map(vocabulary.encode)
    pieces = data.draw(st.lists(tokens, max_size=8))
    text = vocabulary.decode([token for piece in pieces for token in piece])
    assert "".join(vocabulary.decode(piece) for piece in pieces) == text
    assert text.encode() == b"".join(table[token] for piece in pieces for token in piece)


def _is_whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_decode_spells_special_tokens_out():
    vocabulary = VOCABULARIES["byte_level_tags"]
    ids = vocabulary.tokenizer.convert_tokens_to_ids(["a", "<call>", "1", "</call>", "<eos>"])
    assert vocabulary.decode(ids) == "a<call>1</call><eos>"


def test_a_blank_in_front_survives_a_decoder_that_drops_it():
    vocabulary = VOCABULARIES["llama2"]
    ids = vocabulary.tokenizer.convert_tokens_to_ids(["▁the"])
    assert vocabulary.tokenizer.decode(ids) == "the"
    assert vocabulary.decode(ids) == " the"


def test_encode_puts_no_blank_in_front_where_the_encoder_would():
    vocabulary = VOCABULARIES["llama2"]
    assert vocabulary.tokenizer("the").tokens() == ["▁the"]
    assert vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.encode("the")) == ["the"]


def test_the_empty_text_and_no_ids():
    for vocabulary in VOCABULARIES.values():
        assert vocabulary.encode("") == []
        assert vocabulary.decode([]) == ""


def test_a_tokenizer_without_letters_and_digits_works():
    backend = Tokenizer(models.WordLevel({"中": 0, "<eos>": 1, "[": 2}, unk_token="["))
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))
    assert vocabulary.encode("中") == [0]
    assert vocabulary.decode([0]) == "中"


def test_eos_ids_hold_the_tokenizers_own_and_those_of_the_generation_config():
    tokenizer = kinds.characters()
    vocabulary = Vocabulary(tokenizer, eos_ids=[3, 4])
    assert vocabulary.eos_id == tokenizer.eos_token_id
    assert vocabulary.eos_ids == {3, 4, tokenizer.eos_token_id}
    assert Vocabulary(tokenizer).eos_ids == {tokenizer.eos_token_id}
    assert vocabulary.size == len(tokenizer)


def test_a_tokenizer_without_eos_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="no EOS token.*Set `eos_token`"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_foreign_to_the_same_vocabulary_is_nothing(kind):
    build = kinds.KINDS[kind]
    vocabulary = Vocabulary(build())
    assert vocabulary.foreign_to(vocabulary) == frozenset()
    assert vocabulary.foreign_to(Vocabulary(build())) == frozenset()
    with_tags = Vocabulary(build(kinds.TAGS))
    assert with_tags.foreign_to(Vocabulary(build(kinds.TAGS)), kinds.TAGS) == frozenset()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_foreign_to_a_vocabulary_without_the_tags_are_the_tags(kind):
    plain, tagged = VOCABULARIES[kind], VOCABULARIES[f"{kind}_tags"]
    tags = frozenset(tagged.tokenizer.convert_tokens_to_ids(list(kinds.TAGS)))
    assert tagged.foreign_to(plain, kinds.TAGS) == tags


def test_foreign_to_depends_on_the_tags_asked_for():
    tagged, plain = Vocabulary(kinds.gemma(kinds.TAGS)), Vocabulary(kinds.gemma())
    assert tagged.foreign_to(plain) is None
    assert tagged.foreign_to(plain, kinds.TAGS) is not None
    assert tagged.foreign_to(plain, kinds.TAGS[:1]) is None


def test_foreign_to_another_vocabulary_is_none():
    for mine, theirs in [("byte_level", "gemma"), ("characters", "byte_level"), ("gemma", "characters")]:
        assert VOCABULARIES[mine].foreign_to(VOCABULARIES[theirs], kinds.TAGS) is None


def test_foreign_to_a_teacher_with_tags_of_its_own_is_none():
    # Its tag ids would mean nothing, or something else, to the student.
    assert VOCABULARIES["gemma"].foreign_to(VOCABULARIES["gemma_tags"], kinds.TAGS) is None
    turned = Vocabulary(kinds.gemma(kinds.TAGS[::-1]))
    assert VOCABULARIES["gemma_tags"].foreign_to(turned, kinds.TAGS) is None


def test_foreign_to_never_takes_a_new_vocabulary_for_one_that_is_gone():
    # CPython puts an object where the last one of its size was, so addresses come back at once.
    mine = Vocabulary(kinds.characters())
    answers = [mine.foreign_to(Vocabulary(t)) for t in [kinds.characters(), kinds.gemma()] * 5]
    assert answers == [frozenset(), None] * 5
