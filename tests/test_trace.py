"""What follows from a trace's spans and calls."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_trl.trace import Author, Call, Outcome, Reading, Span, StopReason, Trace


def example():
    return Trace(
        prompt_ids=[9, 8],
        spans=[
            Span(Author.STUDENT, [1, 2, 3], "a<b>", [-0.1, -0.2, -0.3], [1], "a", removed=2, malformed=1),
            Span(Author.TEACHER, [4, 5], "cd", kept_ids=[4, 5], kept_text="cd"),
            Span(Author.STUDENT, [6], "e", [-0.6], [6], "e", malformed=2),
            Span(Author.CLOSING, [0], ""),
        ],
        calls=[Call(3, requested=7, granted=5, delivered=2, outcome=Outcome.ANSWERED, wait_s=0.5)],
        stop=StopReason.TEACHER_EOS,
    )


def test_what_follows_from_the_spans():
    trace = example()
    assert trace.completion_ids == [1, 2, 3, 4, 5, 6, 0]
    assert trace.loss_mask == [1, 1, 1, 0, 0, 1, 0]
    assert trace.logprobs == [-0.1, -0.2, -0.3, 0.0, 0.0, -0.6, 0.0]
    assert trace.text == "a<b>cde"
    assert trace.answer == "acde"
    assert trace.kept_ids == [1, 4, 5, 6]
    assert trace.num_tokens == 7
    assert trace.teacher_tokens == 2
    assert trace.teacher_share == 2 / 5
    assert trace.malformed == 3
    assert trace.has_called
    assert not trace.has_failed


def test_the_empty_trace():
    trace = Trace([1])
    assert trace.completion_ids == trace.loss_mask == trace.logprobs == trace.kept_ids == []
    assert trace.text == trace.answer == ""
    assert trace.num_tokens == trace.teacher_tokens == trace.teacher_share == trace.malformed == 0
    assert not trace.has_called and not trace.has_failed


def test_a_completion_of_commands_alone_has_no_teacher_share():
    assert Trace([1], [Span(Author.STUDENT, [2, 3], "", removed=2)]).teacher_share == 0.0


def test_logprobs_are_none_when_one_student_span_has_none():
    trace = example()
    trace.spans[2].logprobs = None
    assert trace.logprobs is None


def test_a_denied_call_is_a_call():
    assert Trace([1], calls=[Call(1, 2)]).has_called


@pytest.mark.parametrize("stop", StopReason)
def test_only_an_engine_that_failed_is_a_failure(stop):
    assert Trace([1], stop=stop).has_failed == stop.endswith("_error")


ids = st.lists(st.integers(0, 2**31), max_size=4)
finite = st.floats(-1e6, 1e6)
spans = st.builds(
    Span,
    author=st.sampled_from(Author),
    ids=ids,
    text=st.text(max_size=5),
    logprobs=st.none() | st.lists(finite, max_size=4),
    kept_ids=ids,
    kept_text=st.text(max_size=5),
    removed=st.integers(-3, 9),
    malformed=st.integers(0, 9),
)
counts = st.integers(0, 10**9)
readings = st.builds(Reading, st.none() | counts, st.none() | counts)
calls = st.builds(Call, counts, counts, counts, counts, st.sampled_from(Outcome), finite)
traces = st.builds(
    Trace,
    prompt_ids=ids,
    spans=st.lists(spans, max_size=4),
    calls=st.lists(calls, max_size=4),
    stop=st.none() | st.sampled_from(StopReason),
    error=st.none() | st.text(max_size=5),
    student_read=readings,
    teacher_read=readings,
)


@given(trace=traces)
def test_a_trace_survives_json(trace):
    back = Trace.from_dict(json.loads(json.dumps(trace.to_dict())))
    assert back == trace
    assert all(type(span.author) is Author for span in back.spans)
    assert all(type(call.outcome) is Outcome for call in back.calls)
    assert back.stop is None or type(back.stop) is StopReason


def test_a_file_of_before_contexts_were_counted_says_that_they_are_unknown():
    data = example().to_dict()
    del data["student_read"], data["teacher_read"]
    back = Trace.from_dict(data)
    assert back.student_read == back.teacher_read == Reading(None, None)
    assert back.completion_ids == example().completion_ids


def test_what_is_unknown_of_one_request_is_unknown_of_all():
    reading = Reading()
    reading.add(100, 0)
    reading.add(120, 96)
    assert reading == Reading(220, 96)
    reading.add(130, None)
    reading.add(140, 112)
    assert reading == Reading(490, None)
    reading.add(None, None)
    assert reading == Reading(None, None)


def test_from_dict_shares_no_list_with_what_it_reads():
    data = example().to_dict()
    Trace.from_dict(data).prompt_ids.append(1)
    assert data == example().to_dict()


def test_enums_are_written_as_their_values():
    data = example().to_dict()
    assert json.loads(json.dumps(data))["stop"] == "teacher_eos"
    assert [span["author"] for span in data["spans"]] == ["student", "teacher", "student", "closing"]
