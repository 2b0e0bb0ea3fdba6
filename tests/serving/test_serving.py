"""The server with a scripted pair and the real `openai` client over a real socket."""

import asyncio
import threading
import time

import openai
import pytest
from helpers.random_student import VOCABULARIES, RandomStudent
from helpers.scripted_relay import BYTE_LEVEL, END, LETTERS, scripted
from helpers.serving import chat, pair_of, pieces, post, serving

from relay_trl.engines.base import EngineError
from relay_trl.trace import Author


def turns(*texts, vocabulary=LETTERS, **kwargs):
    return scripted(vocabulary, *texts, **kwargs)


def answers(*texts, teacher=(), **options):
    """One question to a pair that says `texts` and whose teacher says `teacher`."""
    with serving(pair_of(turns(*texts), turns(*teacher) if teacher else None)) as server:
        return chat(server, **options)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def told(request):
    """Asks a pair, whole or streamed, and gives (spans, text, finish reason, relay field, usage) in one form."""

    def ask(server, **options):
        if not request.param:
            answer = chat(server, **options)
            choice = answer.choices[0]
            spans = [(s["author"], s["text"]) for s in choice.relay["spans"] if s["text"]]
            return spans, choice.message.content, choice.finish_reason, choice.relay, answer.usage
        chunks = chat(server, stream=True, stream_options={"include_usage": True}, **options)
        last = next(c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason)
        told = pieces(chunks)
        extras = [c.choices[0].model_extra.get("relay") or {} for c in chunks if c.choices]
        tokens = {a: sum(e["tokens"] for e in extras if e.get("author") == a) for a in ("student", "teacher")}
        usage = chunks[-1].usage
        assert (tokens["student"], tokens["teacher"]) == (usage.student_tokens, usage.teacher_tokens)
        return told, "".join(text for _, text in told), last.finish_reason, last.relay, usage

    return ask


def test_an_answer_with_a_call(told):
    with serving(pair_of(turns("ab<call>3</call>", "gh" + END), turns("def"))) as server:
        spans, text, finish, relay, usage = told(server)
    assert spans == [("student", "ab"), ("teacher", "def"), ("student", "gh")]
    assert text == "abdefgh" and finish == "stop" and relay["stop"] == "eos" and not relay["teacher_failed"]
    assert [(c["requested"], c["delivered"], c["outcome"]) for c in relay["calls"]] == [(3, 3, "answered")]
    command = len("ab<call>3</call>")
    assert (usage.student_tokens, usage.teacher_tokens, usage.calls) == (command + 3, 3, 1)
    assert usage.completion_tokens == usage.student_tokens + usage.teacher_tokens


def test_usage_says_what_both_models_read(told):
    with serving(pair_of(turns("ab<call>3</call>", "gh" + END), turns("def"))) as server:
        usage = told(server, text="Q:")[-1]
        first, second = len("Q:"), len("Q:ab<call>3</call>def")
        assert (usage.student_read_tokens, usage.teacher_read_tokens) == (first + second, len("Q:ab"))
        assert (usage.student_cached_tokens, usage.teacher_cached_tokens) == (0, 0)  # a scripted engine has no cache
        assert usage.prompt_tokens == len("Q:")


@pytest.mark.parametrize(("stop", "unknown"), [("b", "student"), ("e", "teacher")])
def test_what_a_turn_that_a_stop_string_cut_short_read_is_not_made_up(told, stop, unknown):
    with serving(pair_of(turns("ab<call>3</call>", "gh" * 9), turns("def"))) as server:
        usage = told(server, text="Q:", stop=[stop])[-1]
        read = {"student": usage.student_read_tokens, "teacher": usage.teacher_read_tokens}
        assert read.pop(unknown) is None and list(read.values()) == [0 if unknown == "student" else len("Q:")]


def test_what_an_engine_does_not_tell_is_null():
    with serving(pair_of(turns("a<call>1</call>", "b" + END), scripted(None, "t"))) as server:
        usage = chat(server).usage
        assert usage.teacher_tokens == 1 and usage.teacher_read_tokens is None and usage.teacher_cached_tokens is None


def test_commands_are_shown_when_asked_for(told):
    with serving(pair_of(turns("ab<call>3</call>", END), turns("def"))) as server:
        assert told(server, show_commands=True)[1] == "ab<call>3</call>def"


def test_a_malformed_command_is_text(told):
    with serving(pair_of(turns("a<call>x</call>", "b<call>" + END), turns("def"))) as server:
        assert told(server)[1] == "a<call>x</call>b<call>"


def test_a_stop_string_ends_the_answer_across_authors(told):
    with serving(pair_of(turns("ab<call>3</call>", "never" * 5), turns("cde"))) as server:
        spans, text, finish, relay, _ = told(server, stop=["bcd", "zz"])
    assert text == "a" and spans == [("student", "a")] and finish == "stop"
    assert relay["stop"] == "stop_string"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_calls": 0}, "ab" + "gh"),
        ({"max_calls": 1}, "abde" + "gh"),
        ({"max_call_tokens": 1}, "abd" + "gh"),
        ({"max_teacher_tokens": 1}, "abd" + "gh"),
        ({"max_teacher_tokens": 0}, "abgh"),
        ({"use_teacher": False}, "abgh"),
    ],
)
def test_limits_of_a_request(options, text):
    answer = answers("ab<call>2</call>gh" + END, "gh" + END, teacher=["def"], **options)
    assert answer.choices[0].message.content == text
    assert answer.usage.calls == 1


def test_the_dial_of_calls_is_the_requests_own():
    def calls(server, **options):
        return [chat(server, seed=seed, max_tokens=40, **options).usage.calls for seed in range(8)]

    vocabulary = VOCABULARIES["byte_level"]
    with serving(pair_of(RandomStudent(vocabulary), scripted(vocabulary, *["T"] * 999))) as server:
        trained, never, rarely = calls(server), calls(server, call_bias=-100), calls(server, call_bias=-8)
        often, always = calls(server, call_bias=8), calls(server, call_bias=100)
        assert calls(server, call_bias=0) == calls(server, call_bias=None) == calls(server) == trained
    assert sum(never) == 0 and sum(rarely) <= sum(trained) <= sum(often) <= sum(always)
    assert sum(rarely) < sum(often) and min(always) >= 1


def test_max_tokens_cuts(told):
    with serving(pair_of(turns("abcdef" + END))) as server:
        spans, text, finish, relay, usage = told(server, max_tokens=4)
    assert (text, finish, usage.completion_tokens) == ("abcd", "length", 4)


def test_a_half_character_is_never_sent():
    smile = "a🙂b"
    with serving(pair_of(turns(smile + END, vocabulary=BYTE_LEVEL))) as server:
        chunks = chat(server, stream=True)
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == smile and not any("\ufffd" in text for text in texts)


def test_n_answers_have_an_index_each():
    with serving(pair_of(scripted(LETTERS, *["a" + END] * 6))) as server:
        whole = chat(server, n=3)
        chunks = chat(server, n=3, stream=True)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert {c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason} == {0, 1, 2}


def test_a_teacher_that_fails_is_marked_and_counted(told):
    with serving(pair_of(turns("ab<call>3</call>", "gh" + END), turns(EngineError("out for lunch")))) as server:
        _, text, finish, relay, _ = told(server)
        assert text == "abgh" and finish == "stop" and relay["teacher_failed"]
        assert relay["calls"][0]["outcome"] == "failed"
        metrics = server.client._client.get(f"{server.url}/metrics").text
        ready = server.client._client.get(f"{server.url}/ready").json()
    assert 'relay_answers_total{is_degraded="true"} 1.0' in metrics
    assert 'relay_calls_total{outcome="failed"} 1.0' in metrics
    assert "relay_teacher_up 0.0" in metrics and ready["teacher"] == "down"


def test_a_student_that_fails_is_an_error_of_the_server(told):
    with serving(pair_of(turns(EngineError("secret detail")))) as server:
        with pytest.raises(openai.InternalServerError) as error:
            told(server)
    assert error.value.status_code == 503 and "secret" not in str(error.value)


def test_a_client_that_hangs_up_cancels_both_engines():
    class Endless:
        name, vocabulary, max_context = "endless", LETTERS, None

        def __init__(self, text):
            self.text, self.cancelled, self.started = text, threading.Event(), threading.Event()

        async def generate(self, context, max_tokens, stop=(), sampling=None, on_tokens=None):
            if self.text:  # the student, which calls
                return await turns(self.text).generate(context, max_tokens, stop, sampling, on_tokens)
            self.started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    teacher = Endless("")
    with serving(pair_of(Endless("a<call>3</call>"), teacher)) as server:
        stream = server.client.chat.completions.create(
            model="pair", messages=[{"role": "user", "content": "Q"}], stream=True
        )
        next(iter(stream))
        assert teacher.started.wait(5)
        stream.close()
        assert teacher.cancelled.wait(5)
        deadline = time.monotonic() + 5
        while server.places.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.places.in_flight == 0
        assert "relay_hang_ups_total 1.0" in server.client._client.get(f"{server.url}/metrics").text


def test_models_are_listed():
    with serving(pair_of(turns(END), turns(END))) as server:
        assert [model.id for model in server.client.models.list()] == ["pair"]
        assert server.client.models.retrieve("pair").relay["max_calls"] == 3
        with pytest.raises(openai.NotFoundError):
            server.client.models.retrieve("other")


def test_completions_take_text_and_ids():
    student = turns(*["xyz" + END] * 3)
    with serving(pair_of(student, turns("t"))) as server:
        text = server.client.completions.create(model="pair", prompt="abc")
        ids = server.client.completions.create(model="pair", prompt=LETTERS.encode("abc"))
        chunks = list(server.client.completions.create(model="pair", prompt="abc", stream=True))
    assert (
        text.choices[0].text == ids.choices[0].text == "".join(c.choices[0].text for c in chunks if c.choices) == "xyz"
    )
    assert student.contexts == [LETTERS.encode("abc")] * 3


def test_a_conversation_is_asked_as_in_training():
    student, teacher = turns("a<call>1</call>", END), turns("b")
    with serving(pair_of(student, teacher, prompt_template="Problem: {problem}")) as server:
        chat(server, "1+1")
    assert LETTERS.decode(student.contexts[0]) == "Problem: 1+1"
    assert LETTERS.decode(teacher.contexts[0]) == "Problem: 1+1a"


def test_authors_have_the_names_that_the_docs_give():
    assert (Author.STUDENT, Author.TEACHER) == ("student", "teacher")


def test_health(told):
    with serving(pair_of(turns(END))) as server:
        assert server.client._client.get(f"{server.url}/health").json() == {"status": "ok"}
        assert server.client._client.get(f"{server.url}/ready").json()["teacher"] == "none"
        assert post(server, {}, "/health").status_code == 405
