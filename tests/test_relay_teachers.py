"""The relay coroutine with all kinds of teachers: they end, fail, break the rules, or have another vocabulary."""

import asyncio

import pytest
from helpers import tokenizers as kinds
from helpers.scripted_relay import (
    BYTE_LEVEL,
    BYTE_LEVEL_TAGS,
    END,
    LETTERS,
    FixedEngine,
    one_each,
    run,
    scripted,
    shown,
    tokens,
)

from relay_trl.engines.base import EngineError, FinishReason, Generation
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import Author, Outcome, StopReason
from relay_trl.vocabulary import Vocabulary


def test_a_teacher_that_ends_its_answer_ends_the_rollout():
    student, teacher = scripted(LETTERS, "a<call>9</call>"), scripted(LETTERS, "xy" + END)
    trace = run(student, teacher)
    assert trace.stop is StopReason.TEACHER_EOS
    assert trace.completion_ids == tokens(LETTERS, "a<call>9</call>xy" + END)
    assert trace.loss_mask == [1] * 15 + [0, 0, 0]
    assert trace.logprobs == [-0.5] * 15 + [0.0] * 3
    assert trace.text == "a<call>9</call>xy" and trace.answer == "axy"
    assert trace.spans[-1].author is Author.CLOSING
    assert trace.teacher_tokens == trace.calls[0].delivered == 2
    assert trace.teacher_share == 2 / 4
    assert len(student.contexts) == 1


def test_the_students_end_token_closes_what_another_end_token_ended():
    other = LETTERS.encode("$")[0]
    teacher = scripted(Vocabulary(kinds.characters(), eos_ids=[other]), "xy$")
    trace = run(scripted(LETTERS, "<call>9</call>"), teacher)
    assert trace.completion_ids == tokens(LETTERS, "<call>9</call>xy" + END)


def test_the_students_further_end_tokens_end_the_teachers_answer_too():
    student = scripted(Vocabulary(kinds.characters(), eos_ids=LETTERS.encode("$")), "<call>9</call>")
    trace = run(student, scripted(LETTERS, "xy$zw"))
    assert trace.stop is StopReason.TEACHER_EOS
    assert trace.completion_ids == tokens(LETTERS, "<call>9</call>xy" + END)


@pytest.mark.parametrize("budget, stop, closing", [(18, StopReason.TEACHER_EOS, END), (17, StopReason.LENGTH, "")])
def test_the_closing_end_token_needs_room(budget, stop, closing):
    # This engine does not return the end token it stopped at, so its words alone may fill the budget.
    answer = Generation(LETTERS.encode("xy"), "xy", FinishReason.EOS)
    trace = run(scripted(LETTERS, "a<call>9</call>"), FixedEngine(LETTERS, answer), max_completion_length=budget)
    assert trace.stop is stop
    assert trace.completion_ids == tokens(LETTERS, "a<call>9</call>xy" + closing)


def test_by_option_the_student_goes_on_after_a_teacher_that_ended():
    student, teacher = scripted(LETTERS, "a<call>9</call>", "bc" + END), scripted(LETTERS, "xy" + END)
    trace = run(student, teacher, is_ended_by_teacher=False)
    assert trace.stop is StopReason.EOS
    assert trace.completion_ids == tokens(LETTERS, "a<call>9</call>xybc" + END)
    assert trace.completion_ids.count(LETTERS.eos_id) == 1


def test_a_teacher_that_ends_at_once():
    teacher = scripted(LETTERS, END)
    trace = run(scripted(LETTERS, "a<call>9</call>"), teacher)
    assert trace.stop is StopReason.TEACHER_EOS
    assert trace.completion_ids == tokens(LETTERS, "a<call>9</call>" + END)
    assert trace.loss_mask == [1] * 15 + [0]
    assert (trace.calls[0].granted, trace.calls[0].delivered) == (9, 0)
    assert trace.calls[0].outcome is Outcome.ANSWERED
    assert trace.teacher_share == 0


def test_a_teacher_that_says_nothing_leaves_the_students_run_whole():
    student = scripted(LETTERS, "a<call>9</call>", "b<call>1</call>", "c" + END)
    teacher = scripted(LETTERS, END, "x")
    trace = run(student, teacher, is_ended_by_teacher=False)
    assert trace.answer == "abxc"
    assert shown(teacher) == "T:ab"
    assert [(call.requested, call.delivered) for call in trace.calls] == [(9, 0), (1, 1)]
    assert len(trace.spans) == 3


def test_two_vocabularies_meet_in_text():
    student = scripted(BYTE_LEVEL, "the<call>9</call>", "so<call>2</call>", "b" + END)
    teacher = scripted(LETTERS, "abab“", "é" + END)
    trace = run(student, teacher)
    assert shown(teacher, 0) == "T:the" and shown(teacher, 1) == "T:theabab“so"
    assert teacher.contexts[1] == LETTERS.encode("T:theabab“so")
    assert trace.answer == "theabab“soé"
    assert trace.spans[1].ids == BYTE_LEVEL.encode("abab“")
    assert trace.completion_ids[-1] == BYTE_LEVEL.eos_id
    assert trace.stop is StopReason.TEACHER_EOS
    assert trace.calls[0].delivered == len(BYTE_LEVEL.encode("abab“"))


def test_an_end_token_of_another_vocabulary_is_not_spelt_into_the_answer():
    trace = run(scripted(BYTE_LEVEL, "<call>9</call>", "b" + END), scripted(LETTERS, "xy" + END), max_calls=1)
    assert trace.answer == "xy"


def test_a_teachers_leading_blank_survives_another_vocabulary():
    llama = Vocabulary(kinds.llama2())
    student, teacher = scripted(llama, "so<call>9</call>", "the<call>1</call>"), scripted(LETTERS, " xy", "z")
    trace = run(student, teacher)
    assert trace.answer == "so xythez"
    student, teacher = scripted(LETTERS, "so<call>9</call>", "the<call>2</call>"), scripted(llama, " the", "so")
    trace = run(student, teacher)
    assert trace.answer == "so thetheso"
    assert teacher.contexts[0] == llama.encode("T:") + llama.encode("so")


def test_an_answer_that_is_cut_does_not_end_the_rollout():
    # Two letters of the teacher's are six tokens of the student's: within what was granted, which counts the teacher's.
    used = len(BYTE_LEVEL.encode("<call>3</call>"))
    for left, answer, stop in ((5, "中", StopReason.LENGTH), (20, "中中", StopReason.TEACHER_EOS)):
        student, teacher = scripted(BYTE_LEVEL, "<call>3</call>"), scripted(LETTERS, "中中" + END)
        trace = run(student, teacher, max_completion_length=used + left)
        assert trace.stop is stop
        assert trace.answer.rstrip("\ufffd") == answer
    # A teacher that does not keep to the limit is cut at it, and then has not ended.
    teacher = FixedEngine(LETTERS, Generation(LETTERS.encode("中中中中") + [LETTERS.eos_id], "", FinishReason.EOS))
    trace = run(scripted(BYTE_LEVEL, "<call>3</call>", END), teacher)
    assert trace.answer == "中中中" and trace.stop is StopReason.EOS
    for left, stop in ((6, StopReason.LENGTH), (7, StopReason.TEACHER_EOS)):
        teacher = FixedEngine(None, Generation(None, "中中", FinishReason.EOS))
        trace = run(scripted(BYTE_LEVEL, "<call>6</call>"), teacher, max_completion_length=used + left)
        assert trace.stop is stop
        assert trace.num_tokens == used + left
    # Text is counted in the student's tokens, whatever its server says of their number, and cut at a whole character.
    for granted, said in ((3, "中"), (4, "中"), (5, "中"), (6, "中中"), (2, "")):
        teacher = FixedEngine(None, Generation(None, "中中文", FinishReason.EOS, num_tokens=1))
        trace = run(scripted(BYTE_LEVEL, f"<call>{granted}</call>", END), teacher)
        assert (trace.answer, trace.stop) == (said, StopReason.EOS)


def test_ids_of_a_shared_vocabulary_are_never_merged_anew():
    pieces = one_each(BYTE_LEVEL, "a", "b", "a", "b", "abab")
    assert BYTE_LEVEL.encode(BYTE_LEVEL.decode(pieces)) != pieces
    student = scripted(BYTE_LEVEL, [*pieces, *BYTE_LEVEL.encode("<call>5</call>")], "<call>1</call>", END)
    teacher = scripted(Vocabulary(kinds.byte_level()), pieces, "x")
    trace = run(student, teacher)
    assert teacher.contexts[1] == BYTE_LEVEL.encode("T:") + pieces + pieces
    assert trace.spans[1].ids == pieces


def test_the_teachers_text_is_encoded_once_and_kept_as_encoded():
    student = scripted(BYTE_LEVEL, [*one_each(BYTE_LEVEL, "a"), *BYTE_LEVEL.encode("<call>9</call>")], "b" + END)
    trace = run(student, scripted(LETTERS, "bab"))
    assert trace.answer == "ababb"
    assert trace.spans[1].ids == BYTE_LEVEL.encode("bab")  # not merged with the student's a


def test_a_text_only_teacher():
    student = scripted(BYTE_LEVEL, "a <call>9</call>", "so\n<call>1</call>", "b" + END)
    teacher = scripted(None, "the 中", "\ufffd")
    trace = run(student, teacher)
    assert teacher.contexts == ["T:a ", "T:a the 中so\n"]
    assert trace.answer == "a the 中so\nb"
    assert [call.delivered for call in trace.calls] == [len(BYTE_LEVEL.encode("the 中")), 0]


def test_half_a_character_at_the_end_of_a_text_is_left_out():
    trace = run(scripted(LETTERS, "a<call>2</call>", "b" + END), scripted(None, "so\ufffd\ufffd"))
    assert trace.answer == "asob"


def test_a_text_may_fill_the_budget_and_no_more():
    used = len(LETTERS.encode("<call>6</call>"))
    trace = run(scripted(LETTERS, "<call>6</call>"), scripted(None, "abcdef"), max_completion_length=used + 4)
    assert (trace.answer, trace.stop, trace.num_tokens) == ("abcd", StopReason.LENGTH, used + 4)


def test_a_chat_teacher_continues_the_assistants_turn():
    messages = [{"role": "user", "content": "Q"}]
    teacher = scripted(None, "xy", "z", max_context=10)
    student = scripted(LETTERS, "<call>2</call>", "a<call>1</call>", "b" + END)
    trace = run(student, teacher, teacher_prompt=messages)
    assert teacher.contexts == [messages, [*messages, {"role": "assistant", "content": "xya"}]]
    assert trace.answer == "xyazb"
    assert messages == [{"role": "user", "content": "Q"}]


def test_messages_are_not_counted_against_the_teachers_context():
    messages = [{"role": "user", "content": "Q"}] * 5
    teacher = scripted(None, "xy", max_context=4)
    trace = run(scripted(LETTERS, "<call>9</call>", "b" + END), teacher, teacher_prompt=messages)
    assert trace.calls[0].granted == 9


def test_a_teacher_that_fails_ends_the_rollout():
    student, teacher = scripted(LETTERS, "a<call>9</call>", "b"), scripted(LETTERS, EngineError("no route to host"))
    trace = run(student, teacher)
    assert trace.stop is StopReason.TEACHER_ERROR and trace.has_failed
    assert trace.error == "no route to host"
    assert trace.completion_ids == LETTERS.encode("a<call>9</call>")
    assert trace.text == "a<call>9</call>" and trace.answer == "a"
    assert trace.calls[0].outcome is Outcome.FAILED
    assert (trace.calls[0].granted, trace.calls[0].delivered) == (9, 0)


def test_by_option_the_student_goes_on_alone():
    student = scripted(LETTERS, "a<call>9</call>", "b<call>2</call>", "c" + END)
    teacher = scripted(LETTERS, EngineError("no route to host"), "xy")
    trace = run(student, teacher, is_stopped_by_failure=False)
    assert trace.stop is StopReason.EOS and not trace.has_failed
    assert trace.error == "no route to host"
    assert trace.text == "a<call>9</call>b<call>2</call>xyc"
    assert [call.outcome for call in trace.calls] == [Outcome.FAILED, Outcome.ANSWERED]


def test_failures_count_as_calls():
    student = scripted(LETTERS, "<call>9</call>", "<call>9</call>b" + END)
    teacher = scripted(LETTERS, EngineError("down"), EngineError("down"))
    trace = run(student, teacher, is_stopped_by_failure=False, max_calls=1)
    assert [call.outcome for call in trace.calls] == [Outcome.FAILED, Outcome.DENIED]
    assert len(teacher.contexts) == 1


def test_only_an_engines_own_error_is_a_teacher_that_fails():
    with pytest.raises(ZeroDivisionError):
        run(scripted(LETTERS, "<call>9</call>"), scripted(LETTERS, ZeroDivisionError()))


def test_a_student_that_fails_is_an_error():
    with pytest.raises(EngineError, match="out of memory"):
        run(scripted(LETTERS, EngineError("out of memory")), scripted(LETTERS))


@pytest.mark.parametrize("answer", [Generation(None, "a", FinishReason.EOS), Generation([], "", FinishReason.LENGTH)])
def test_a_student_without_ids_is_an_error(answer):
    with pytest.raises(EngineError, match="returned no token ids"):
        run(FixedEngine(LETTERS, answer))


def test_a_student_without_a_vocabulary_is_an_error():
    prompt = RelayPrompt(LETTERS.encode("Q:"))
    with pytest.raises(EngineError, match="student 'scripted' returns no token ids"):
        asyncio.run(relay(prompt, scripted(None, "a"), None, RelayRules()))


def test_a_teacher_that_writes_too_much_is_cut():
    answer = Generation(LETTERS.encode("uvwxyz"), "uvwxyz", FinishReason.EOS)
    trace = run(scripted(LETTERS, "<call>4</call>", "b" + END), FixedEngine(LETTERS, answer))
    assert trace.answer == "uvwxb"
    assert trace.calls[0].delivered == 4
    assert trace.stop is StopReason.EOS  # the end of its answer lies beyond the cut


@pytest.mark.parametrize("wrong", [LETTERS.size, 10**6, -1])
@pytest.mark.parametrize("student", [LETTERS, BYTE_LEVEL])
def test_ids_outside_the_teachers_vocabulary_are_a_failure(wrong, student):
    answer = Generation([*LETTERS.encode("a"), wrong], "ab", FinishReason.LENGTH)
    trace = run(scripted(student, "<call>9</call>"), FixedEngine(LETTERS, answer))
    assert trace.stop is StopReason.TEACHER_ERROR
    assert f"'fixed' returned token id {wrong}" in trace.error
    assert trace.answer == "" and trace.teacher_tokens == 0


def test_the_teachers_context_limit_is_kept():
    student = scripted(LETTERS, "abc<call>9</call>", "d" + END)
    teacher = scripted(LETTERS, "uvwxyz", max_context=len("T:abc") + 4)
    trace = run(student, teacher)
    assert (trace.calls[0].requested, trace.calls[0].granted) == (9, 4)
    assert trace.answer == "abcuvwxd"


@pytest.mark.parametrize("max_context", [3, 5])
def test_a_full_teacher_context_denies_the_call_and_drops_nothing(max_context):
    student = scripted(LETTERS, "abc<call>9</call>", "d" + END)
    teacher = scripted(LETTERS, max_context=max_context)
    trace = run(student, teacher)
    assert not teacher.contexts
    assert [(call.outcome, call.granted) for call in trace.calls] == [(Outcome.DENIED, 0)]
    assert trace.answer == "abcd" and trace.stop is StopReason.EOS


def test_tags_that_are_special_tokens_of_the_student_alone():
    open_tag, close_tag = BYTE_LEVEL_TAGS.tokenizer.convert_tokens_to_ids(list(kinds.TAGS))
    one, nine, a = (BYTE_LEVEL.encode(text)[0] for text in "19a")
    student = scripted(
        BYTE_LEVEL_TAGS, [a, open_tag, close_tag], [a, open_tag, one, close_tag], [open_tag, nine, close_tag]
    )
    teacher = scripted(BYTE_LEVEL, "the", "so")
    trace = run(student, teacher)
    # A malformed command stays, in tokens that the teacher has.
    assert teacher.contexts[0] == BYTE_LEVEL.encode("T:") + [
        a,
        *BYTE_LEVEL.encode("<call>"),
        *BYTE_LEVEL.encode("</call>"),
        a,
    ]
    assert shown(teacher, 1) == "T:a<call></call>athe"
    assert trace.answer == "a<call></call>atheso"
    assert trace.completion_ids[:7] == [a, open_tag, close_tag, a, open_tag, one, close_tag]


def test_a_prompt_without_a_rendering_for_the_teacher_is_an_error():
    with pytest.raises(ValueError, match="no rendering for the teacher"):
        run(scripted(LETTERS, "<call>3</call>"), scripted(LETTERS), teacher_prompt=None)


def test_ids_for_a_teacher_without_a_vocabulary_are_an_error():
    with pytest.raises(ValueError, match="no rendering for the teacher"):
        run(scripted(LETTERS, "<call>3</call>"), scripted(None, "x"), teacher_prompt=LETTERS.encode("T:"))
