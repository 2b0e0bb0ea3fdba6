"""Spans whose tokens share a character: the text is that of all tokens, and the character is the later span's."""

import asyncio

import pytest
from helpers import tokenizers as kinds
from helpers.scripted_relay import BYTE_LEVEL, END, LETTERS, scripted, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_trl.engines.base import EngineError, FinishReason, Generation
from relay_trl.evaluation.random_tokens import answer_by_lot
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import Author, Outcome, StopReason
from relay_trl.vocabulary import Vocabulary

VOCABULARIES = {
    "byte_level": BYTE_LEVEL,
    "byte_level_tags": Vocabulary(kinds.byte_level(kinds.TAGS)),
    "gemma": Vocabulary(kinds.gemma()),
    "llama2": Vocabulary(kinds.llama2()),
}
TEXTS = st.text(st.sampled_from("√≤∞🙂中é ab>“\n"), max_size=6)


def play(vocabulary, student, teacher, teacher_vocabulary=None, **config):
    """A rollout of two scripts with a listener: the trace, and the runs of text that the listener heard."""
    heard = []

    def listener(author, text, count):
        heard.append((author, text, count))

    prompt = RelayPrompt(vocabulary.encode("Q:"), "T:" if teacher_vocabulary is None else vocabulary.encode("T:"))
    engines = scripted(vocabulary, *student), scripted(teacher_vocabulary, *teacher)
    trace = asyncio.run(relay(prompt, *engines, RelayRules(**config), listener=listener))

    def merged(pieces):
        runs = []
        for author, text in pieces:
            if runs and runs[-1][0] is author:
                runs[-1] = (author, runs[-1][1] + text)
            elif text:
                runs.append((author, text))
        return runs

    assert sum(count for *_, count in heard) == trace.num_tokens - (trace.stop is StopReason.TEACHER_EOS)
    assert merged((author, text) for author, text, _ in heard) == merged((s.author, s.text) for s in trace.spans)
    return trace


def content(trace, vocabulary):
    return [i for i in trace.completion_ids if i not in vocabulary.eos_ids]


@pytest.mark.parametrize("text", ["[0,∞)", "√2", "x ≤ 3", "🙂", "中文"])
def test_a_character_that_a_hand_over_divides_is_whole(text):
    """Whatever the teacher's share of the character's tokens, answer, stream and text have it, in the student's span."""
    ids = BYTE_LEVEL.encode(text)
    for n in range(1, len(ids)):
        student = [f"<call>{n}</call>", [*ids[n:], BYTE_LEVEL.eos_id]]
        trace = play(BYTE_LEVEL, student, [ids], BYTE_LEVEL)
        assert trace.answer == text and trace.text == f"<call>{n}</call>{text}"
        assert trace.completion_ids == tokens(BYTE_LEVEL, f"<call>{n}</call>") + ids + [BYTE_LEVEL.eos_id]
        teacher = trace.spans[1]
        assert teacher.author is Author.TEACHER and teacher.ids == teacher.kept_ids == ids[:n]
        assert teacher.text == teacher.kept_text == BYTE_LEVEL.decode(ids[:n]).rstrip("\ufffd")
        assert trace.calls[0].delivered == n and trace.kept_ids == ids


def test_a_character_may_take_several_hand_overs():
    smile = BYTE_LEVEL.encode("🙂")
    assert len(smile) > 2
    trace = play(BYTE_LEVEL, ["so<call>1</call>", [*smile[1:], BYTE_LEVEL.eos_id]], [[smile[0]]], BYTE_LEVEL)
    assert trace.answer == "so🙂"
    assert [span.text for span in trace.spans] == ["so<call>1</call>", "", "🙂"]


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=30)
@given(data=st.data())
def test_the_text_is_that_of_all_tokens(name, data):
    vocabulary = VOCABULARIES[name]
    student, teacher, expected, rest = [], [], "", []
    for _ in range(data.draw(st.integers(1, 4))):
        own, others = data.draw(TEXTS), vocabulary.encode(data.draw(TEXTS.filter(bool)))
        n = data.draw(st.integers(1, len(others)))
        student.append([*rest, *vocabulary.encode(f"{own}<call>{n}</call>")])
        teacher.append(others)
        expected += own + vocabulary.decode(others)
        rest = others[n:]
    student.append([*rest, vocabulary.eos_id])
    trace = play(vocabulary, student, teacher, vocabulary, max_calls=9)
    assert "\ufffd" not in trace.text
    assert trace.text == vocabulary.decode(content(trace, vocabulary))
    assert trace.answer == expected == vocabulary.decode(trace.kept_ids)
    for span in trace.spans:
        assert "<call>" not in span.kept_text


@settings(max_examples=60)
@given(data=st.data())
def test_broken_bytes_are_neither_lost_nor_told_twice(data):
    """Any ids at all: what a listener hears is the trace's text, which is that of all tokens."""
    ordinary = [i for i in range(BYTE_LEVEL.size) if i not in BYTE_LEVEL.eos_ids]
    wild = st.lists(st.sampled_from(ordinary), max_size=6)
    student = [
        [*data.draw(wild), *BYTE_LEVEL.encode(data.draw(st.sampled_from(["<call>2</call>", "<call>4</call>."])))]
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    teacher = data.draw(st.lists(wild.filter(bool), max_size=3))
    student.append([*data.draw(wild), BYTE_LEVEL.eos_id])
    trace = play(BYTE_LEVEL, student, teacher, BYTE_LEVEL, max_calls=9, is_ended_by_teacher=data.draw(st.booleans()))
    assert trace.text == BYTE_LEVEL.decode(content(trace, BYTE_LEVEL))


def test_somebody_elses_words_do_not_end_a_character():
    """A teacher of another vocabulary is shown no half of one, and its answer stands behind what remains of it."""
    first = BYTE_LEVEL.encode("√")[:1]
    call = BYTE_LEVEL.encode("a<call>3</call>")
    for teacher_vocabulary in (None, Vocabulary(kinds.characters())):
        student = [[*first, *call], END]
        prompt = RelayPrompt(BYTE_LEVEL.encode("Q:"), "T:" if teacher_vocabulary is None else LETTERS.encode("T:"))
        engines = scripted(BYTE_LEVEL, *student), scripted(teacher_vocabulary, "xy")
        assert asyncio.run(relay(prompt, *engines, RelayRules())).answer == "\ufffdaxy"


@pytest.mark.parametrize("has_told", [0, 1, 2, 5])
def test_a_text_that_is_too_long_is_cut_in_the_stream_too(has_told):
    class Chatty:
        name, vocabulary, max_context = "chatty", None, None

        async def generate(self, context, max_tokens, stop=(), sampling=None, on_tokens=None):
            if on_tokens is not None:
                for piece in ("中文", "中", "a", "文文", "b")[:has_told]:
                    on_tokens(piece)
            return Generation(None, "中文中a文文b", FinishReason.EOS, num_tokens=1)

    for granted in range(1, 22, 3):
        heard: list[str] = []
        prompt = RelayPrompt(BYTE_LEVEL.encode("Q:"), "T:")
        student = scripted(BYTE_LEVEL, f"<call>{granted}</call>", "z" + END)
        listener = (lambda author, text, count, heard=heard: heard.append(text)) if has_told else None
        trace = asyncio.run(relay(prompt, student, Chatty(), RelayRules(), listener=listener))
        assert trace.calls[0].delivered <= granted and "\ufffd" not in trace.text
        assert trace.calls[0].outcome is Outcome.ANSWERED
        assert "中文中a文文b".startswith(trace.answer.removesuffix("z"))
        assert not has_told or "".join(heard) == trace.text


def test_a_broken_off_answer_keeps_what_was_told():
    class Broken:
        name, vocabulary, max_context = "broken", BYTE_LEVEL, None

        async def generate(self, context, max_tokens, stop=(), sampling=None, on_tokens=None):
            ids = BYTE_LEVEL.encode("√")[:1]
            on_tokens(ids)
            error = EngineError("down")
            error.written = Generation(ids, "\ufffd", FinishReason.LENGTH)
            raise error

    heard = []
    prompt = RelayPrompt(BYTE_LEVEL.encode("Q:"), BYTE_LEVEL.encode("T:"))
    student = scripted(BYTE_LEVEL, "<call>3</call>", [*BYTE_LEVEL.encode("√")[1:], BYTE_LEVEL.eos_id])
    rules = RelayRules(is_stopped_by_failure=False)
    trace = asyncio.run(relay(prompt, student, Broken(), rules, listener=lambda a, text, n: heard.append(text)))
    assert trace.answer == "√" and "".join(heard) == trace.text


def test_words_by_lot_share_characters_too():
    text = "∞🙂中√" * 3
    ids = BYTE_LEVEL.encode(text)

    def script(context):
        return [*ids[len(context) - len(BYTE_LEVEL.encode("Q:")) :], BYTE_LEVEL.eos_id]

    prompt = RelayPrompt(BYTE_LEVEL.encode("Q:"), BYTE_LEVEL.encode("T:"))
    for seed in range(5):
        engines = [scripted(BYTE_LEVEL) for _ in range(2)]
        for engine in engines:
            engine._script = engine.script = script
        trace = asyncio.run(answer_by_lot(prompt, *engines, RelayRules(max_completion_length=200), seed, 0.5))
        assert trace.answer == trace.text == text
