"""The relay coroutine, case by case: what is a call, what limits it, and how a rollout goes on and ends."""

import asyncio

import pytest
from helpers.scripted_relay import BYTE_LEVEL, END, LETTERS, FixedEngine, one_each, run, scripted, shown, tokens

from relay_trl.call_syntax import CallSyntax
from relay_trl.engines.base import FinishReason, Generation, Sampling
from relay_trl.relay import RelayPrompt, RelayRules, relay, turn_seed
from relay_trl.trace import Author, Outcome, Reading, StopReason


def test_a_call_is_answered_and_the_student_goes_on():
    student, teacher = scripted(LETTERS, "ab<call>3</call>!", "cd" + END), scripted(LETTERS, "xyzw")
    trace = run(student, teacher)
    assert trace.text == "ab<call>3</call>xyzcd"
    assert trace.answer == "abxyzcd"
    assert trace.prompt_ids == LETTERS.encode("Q:")
    assert trace.completion_ids == tokens(LETTERS, "ab<call>3</call>xyzcd" + END)
    assert trace.loss_mask == [1] * 16 + [0] * 3 + [1] * 3
    assert trace.logprobs == [-0.5] * 16 + [0.0] * 3 + [-0.5] * 3
    assert trace.stop is StopReason.EOS
    assert [span.author for span in trace.spans] == [Author.STUDENT, Author.TEACHER, Author.STUDENT]
    (call,) = trace.calls
    assert (call.position, call.requested, call.granted, call.delivered) == (16, 3, 3, 3)
    assert call.outcome is Outcome.ANSWERED
    assert shown(teacher) == "T:ab"
    assert [LETTERS.decode(context) for context in student.contexts] == ["Q:", "Q:ab<call>3</call>xyz"]
    assert trace.teacher_share == 3 / 8  # a b x y z c d and the end token; the command's 14 do not count


def test_what_both_were_given_to_read_is_counted():
    student = scripted(LETTERS, "so <call>2</call>", "no <call>3</call>", "end" + END)
    teacher = scripted(LETTERS, "yes", "yes")
    trace = run(student, teacher)
    assert trace.student_read == Reading(sum(map(len, student.contexts)), 0)
    assert trace.teacher_read == Reading(sum(map(len, teacher.contexts)), 0)
    assert trace.teacher_read.tokens > 0


def test_commands_do_not_dilute_the_teacher_share():
    teacher = scripted(LETTERS, "xy")
    trace = run(scripted(LETTERS, "a<call>2</call>", "<call>9</call><call>9</call>b" + END), teacher, max_calls=1)
    assert trace.teacher_share == 2 / 5  # a x y b and the end token


def test_every_call_shows_the_teacher_all_that_was_written_without_commands():
    student = scripted(LETTERS, "1\n<call>1</call>", " 2 <call>2</call>", "\n\n<call>1</call>", "3" + END)
    teacher = scripted(LETTERS, "x", "yz", "w")
    trace = run(student, teacher)
    assert [shown(teacher, k) for k in range(3)] == ["T:1\n", "T:1\nx 2 ", "T:1\nx 2 yz\n\n"]
    assert trace.answer == "1\nx 2 yz\n\nw3"


def test_a_close_tag_may_end_inside_a_token():
    turn = one_each(BYTE_LEVEL, "so", " <", "call", ">", "1", "</", "call", ">\n")
    student, teacher = scripted(BYTE_LEVEL, turn, "b" + END), scripted(BYTE_LEVEL, "the")
    trace = run(student, teacher)
    assert trace.completion_ids == [*turn, *BYTE_LEVEL.encode("the"), *tokens(BYTE_LEVEL, "b" + END)]
    assert trace.text == "so <call>1</call>\ntheb"
    assert trace.answer == "so \ntheb"
    assert teacher.contexts[0] == BYTE_LEVEL.encode("T:") + one_each(BYTE_LEVEL, "so", " ", "\n")
    assert trace.calls[0].position == len(turn)


def test_a_command_in_the_prompt_is_no_call():
    student, teacher = scripted(LETTERS, "ab" + END), scripted(LETTERS, "xyz")
    trace = run(student, teacher, prompt="write <call>3</call> or <call>")
    assert not teacher.contexts and not trace.calls
    student = scripted(LETTERS, "3</call>", "ab" + END)
    trace = run(student, teacher, prompt="so: <call>")
    assert trace.text == trace.answer == "3</call>ab"
    assert not teacher.contexts and not trace.calls and trace.malformed == 0


def test_a_command_in_the_teachers_words_is_plain_text():
    student = scripted(LETTERS, "<call>99</call>", "a<call>1</call>", "b" + END)
    teacher = scripted(LETTERS, "say <call>5</call>", "x")
    trace = run(student, teacher)
    assert len(teacher.contexts) == 2
    assert [call.requested for call in trace.calls] == [99, 1]
    assert trace.answer == "say <call>5</call>axb"
    assert shown(teacher) == "T:say <call>5</call>a"
    assert trace.malformed == 0


def test_an_open_tag_by_the_teacher_and_a_close_tag_by_the_student_are_no_call():
    student, teacher = (
        scripted(LETTERS, "<call>7</call>", "3</call>", "a<call>2</call>"),
        scripted(LETTERS, "<call>2", "x"),
    )
    trace = run(student, teacher)
    assert shown(teacher) == "T:<call>23</call>a"
    assert [call.requested for call in trace.calls] == [7, 2]
    assert trace.malformed == 0


def test_an_open_tag_by_the_student_and_a_close_tag_by_the_teacher_are_no_call():
    student, teacher = scripted(LETTERS, "<call><call>9</call>", "b<call>1</call>"), scripted(LETTERS, "5</call>", "x")
    trace = run(student, teacher)
    assert shown(teacher, 0) == "T:<call>"
    assert shown(teacher, 1) == "T:<call>5</call>b"
    assert [call.requested for call in trace.calls] == [9, 1]
    assert trace.malformed == 1


@pytest.mark.parametrize(
    "words", ["<call></call>", "<call>x</call>", "<call>0</call>", "<call>٣</call>", "<call>-1</call>"]
)
def test_a_malformed_command_is_no_call_and_the_student_writes_on(words):
    student, teacher = scripted(BYTE_LEVEL, words + "lost", "ab" + END), scripted(BYTE_LEVEL, "xyz")
    trace = run(student, teacher)
    assert not teacher.contexts and not trace.calls
    assert trace.malformed == 1
    assert trace.text == trace.answer == words + "ab"
    assert student.contexts[1] == BYTE_LEVEL.encode("Q:") + BYTE_LEVEL.encode(words)
    assert trace.completion_ids == [*BYTE_LEVEL.encode(words), *tokens(BYTE_LEVEL, "ab" + END)]
    assert len(trace.spans) == 1


@pytest.mark.parametrize("words", ["<call>3", "<call>", "<call>3</call"])
def test_an_unclosed_command_is_no_call(words):
    teacher = scripted(LETTERS, "xyz")
    trace = run(scripted(LETTERS, words + END), teacher)
    assert not teacher.contexts and not trace.calls
    assert trace.malformed == 1 and trace.stop is StopReason.EOS


def test_the_innermost_of_nested_tags_is_the_call():
    teacher = scripted(LETTERS, "xy")
    trace = run(scripted(LETTERS, "<call>4<call>2</call>", "</call>", "b" + END), teacher)
    assert [call.requested for call in trace.calls] == [2]
    assert trace.malformed == 1
    assert trace.answer == "<call>4xy</call>b"


@pytest.mark.parametrize("digits, requested", [("9" * 5000, 10**9), ("0" * 5000 + "2", 2), (" 3\n", 3)])
def test_what_a_command_asks_for(digits, requested):
    teacher = scripted(LETTERS, "x" * 9000)
    trace = run(scripted(LETTERS, f"<call>{digits}</call>"), teacher, max_completion_length=5100)
    (call,) = trace.calls
    left = 5100 - len(digits) - len("<call></call>")
    assert call.requested == requested
    assert call.granted == teacher.requests[0][0] == min(requested, left)


def test_calls_after_max_calls_get_no_answer():
    student = scripted(LETTERS, "a<call>1</call>", "b<call>1</call>", "c<call>1</call>d<call>0</call>e" + END)
    teacher = scripted(LETTERS, "x", "y", "z")
    trace = run(student, teacher, max_calls=2)
    assert trace.answer == "axbycd<call>0</call>e"
    assert [call.outcome for call in trace.calls] == [Outcome.ANSWERED, Outcome.ANSWERED, Outcome.DENIED]
    assert (trace.calls[2].granted, trace.calls[2].delivered) == (0, 0)
    assert [stop for _, stop, _ in student.requests] == [("</call>",), ("</call>",), ()]
    assert trace.stop is StopReason.EOS and trace.malformed == 1


def test_no_calls_are_answered_with_max_calls_0():
    student, teacher = scripted(LETTERS, "a<call>1</call>b" + END), scripted(LETTERS)
    trace = run(student, teacher, max_calls=0)
    assert trace.answer == "ab" and not teacher.contexts and len(student.contexts) == 1


def test_positions_are_those_of_the_commands_answered_or_not():
    trace = run(scripted(LETTERS, "a<call>1</call>bc<call>2</call>def" + END))
    assert [call.position for call in trace.calls] == [15, 31]
    student = scripted(LETTERS, "a<call>1</call>", "a<call>1</call>bc<call>2</call>def" + END)
    trace = run(student, scripted(LETTERS, "x"), max_calls=1)
    assert [call.position for call in trace.calls] == [15, 31, 47]


def test_limits_of_an_answer():
    def granted(n, max_context=None, **config):
        teacher = scripted(LETTERS, "x" * 99, max_context=max_context)
        trace = run(scripted(LETTERS, f"<call>{n}</call>"), teacher, **config)
        assert trace.calls[0].delivered == trace.calls[0].granted
        assert trace.calls[0].requested == n
        return trace.calls[0].granted

    assert granted(8) == 8
    assert granted(8, max_call_tokens=5) == 5
    assert granted(3, max_call_tokens=5) == 3
    assert granted(8, fixed_call_tokens=4) == 4
    assert granted(2, fixed_call_tokens=4) == 4
    assert granted(2, fixed_call_tokens=4, max_call_tokens=3) == 3
    assert granted(8, max_completion_length=20) == 6
    assert granted(8, fixed_call_tokens=30, max_completion_length=20) == 6
    assert granted(8, max_call_tokens=7, max_completion_length=20, max_context=999) == 6


def test_the_budget_is_met_in_the_middle_of_the_teachers_turn():
    student, teacher = scripted(LETTERS, "a<call>9</call>"), scripted(LETTERS, "uvwxyz")
    trace = run(student, teacher, max_completion_length=18)
    assert trace.stop is StopReason.LENGTH
    assert trace.answer == "auvw"
    assert trace.num_tokens == 18
    assert (trace.calls[0].granted, trace.calls[0].delivered) == (3, 3)
    assert len(student.contexts) == 1


def test_the_budget_is_met_exactly_at_a_command():
    teacher = scripted(LETTERS, "xyz")
    trace = run(scripted(LETTERS, "a<call>9</call>"), teacher, max_completion_length=15)
    assert trace.stop is StopReason.LENGTH
    assert trace.num_tokens == 15 and not teacher.contexts
    assert [call.outcome for call in trace.calls] == [Outcome.DENIED]


def test_the_budget_is_met_by_the_student():
    trace = run(scripted(LETTERS, "abcdef"), scripted(LETTERS), max_completion_length=4)
    assert (trace.answer, trace.stop) == ("abcd", StopReason.LENGTH)
    trace = run(scripted(LETTERS, "abc" + END), scripted(LETTERS), max_completion_length=4)
    assert (trace.answer, trace.stop, trace.num_tokens) == ("abc", StopReason.EOS, 4)


def test_without_a_teacher_a_rollout_is_one_request():
    student = scripted(LETTERS, "a<call>3</call>b<call>x</call>" + END)
    trace = run(student, teacher_prompt=None, seed=5)
    assert student.requests == [(1024, (), Sampling(seed=5))]
    assert trace.completion_ids == tokens(LETTERS, "a<call>3</call>b<call>x</call>" + END)
    assert [call.outcome for call in trace.calls] == [Outcome.DENIED]
    assert trace.malformed == 1


def test_tags_of_ones_own():
    syntax = CallSyntax("[ask:", "]")
    student, teacher = scripted(LETTERS, "a[ask:2]", "]", "<call>1</call>b" + END), scripted(LETTERS, "xyz")
    trace = run(student, teacher, syntax=syntax)
    assert trace.answer == "axy]<call>1</call>b"


def test_the_student_may_give_no_logprobs():
    answer = Generation(tokens(LETTERS, "ab" + END), "ab", FinishReason.EOS)
    trace = run(FixedEngine(LETTERS, answer))
    assert trace.logprobs is None and trace.loss_mask == [1, 1, 1]


def test_each_request_has_a_seed_of_its_own_and_the_first_is_the_rollouts():
    student, teacher = scripted(LETTERS, "<call>1</call>", "<call>1</call>", "b" + END), scripted(LETTERS, "x", "y")
    warm, cool = Sampling(temperature=0.9, top_p=0.8), Sampling(temperature=0.1)
    run(student, teacher, seed=11, student=warm, teacher=cool)
    seeds = [sampling.seed for engine in (student, teacher) for *_, sampling in engine.requests]
    assert seeds[0] == 11
    assert len(set(seeds)) == 5
    assert {(sampling.temperature, sampling.top_p) for *_, sampling in student.requests} == {(0.9, 0.8)}
    assert {(sampling.temperature, sampling.top_p) for *_, sampling in teacher.requests} == {(0.1, 1.0)}


def test_without_a_seed_the_engines_choose():
    student, teacher = scripted(LETTERS, "<call>1</call>", "b" + END), scripted(LETTERS, "x")
    run(student, teacher)
    assert {sampling.seed for engine in (student, teacher) for *_, sampling in engine.requests} == {None}


def test_turn_seeds_differ_between_turns_and_rollouts():
    assert turn_seed(None, 0) is turn_seed(None, 3) is None
    assert [turn_seed(seed, 0) for seed in (0, 1, 2**40)] == [0, 1, 2**40]
    seeds = [turn_seed(seed, turn) for seed in range(1000) for turn in range(11)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert turn_seed(7, 1) == turn_seed(7, 1) != turn_seed(71, 1)


@pytest.mark.parametrize("field", ["max_completion_length", "max_call_tokens", "fixed_call_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be at least 1"):
        RelayRules(**{field: value})


def test_negative_max_calls_is_refused():
    with pytest.raises(ValueError, match="max_calls is -1; it must be 0 .* or more"):
        RelayRules(max_calls=-1)


def test_rollouts_side_by_side_do_not_mix():
    async def both():
        config = RelayRules()
        prompt = RelayPrompt(LETTERS.encode("Q:"), LETTERS.encode("T:"))
        return await asyncio.gather(
            relay(
                prompt, scripted(LETTERS, "a<call>2</call>", "b" + END), scripted(LETTERS, "xx", delay_s=0.01), config
            ),
            relay(prompt, scripted(LETTERS, "c<call>2</call>", "d" + END), scripted(LETTERS, "yy"), config),
        )

    first, second = asyncio.run(both())
    assert (first.answer, second.answer) == ("axxb", "cyyd")
    assert first.calls[0].wait_s > 0
