"""What a server must refuse, with the right status and OpenAI's form of errors, and that it goes on."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
from helpers.scripted_relay import END, LETTERS, scripted
from helpers.serving import chat, pair_of, post, serving

from relay_trl.serving.config import ServingConfig

MESSAGES = [{"role": "user", "content": "Q"}]
GOOD = {"model": "pair", "messages": MESSAGES}


@pytest.fixture(scope="module")
def server():
    """One server for all of them: each must leave it well for the next."""
    student = scripted(LETTERS, max_context=64)  # says nothing but its end
    with serving(pair_of(student, scripted(LETTERS)), max_body_bytes=100_000, body_timeout_s=0.5) as running:
        yield running


def refused(response, status):
    """The error of a refusal of OpenAI's shape; the server answers the next request."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.fixture(autouse=True)
def lives_on(server):
    yield
    assert chat(server).choices[0].finish_reason == "stop"
    assert server.places.in_flight == 0


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"model": "pair", "messages": [{"role": "user", "content": "\xc3"}]}',
        b'{"temperature": NaN}',
        b'{"model": "pair", "messages": [{"role": "user", "content": "\\uD800"}]}',
        b"[" * 50_000,
    ],
)
def test_a_body_that_is_no_json_object(server, body):
    assert refused(post(server, body), 400)["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": "one"}, "seed"),
        ({"seed": 2**80}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"max_calls": -1}, "max_calls"),
        ({"max_call_tokens": 0}, "max_call_tokens"),
        ({"max_teacher_tokens": -1}, "max_teacher_tokens"),
        ({"call_bias": 101}, "call_bias"),
        ({"call_bias": -101}, "call_bias"),
        ({"call_bias": "never"}, "call_bias"),
        ({"use_teacher": "no"}, "use_teacher"),
    ],
)
def test_a_wrong_value_is_named(server, fields, param):
    body = json.dumps({**GOOD, **fields}).encode()
    assert refused(post(server, body), 400)["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0.5},
        {"presence_penalty": 1},
        {"logit_bias": {"5": 1}},
        {"logprobs": True},  # of an engine that scores no texts
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"best_of": 2},
        {"store": True},
        {"something_new": 1},
    ],
)
def test_what_is_not_supported_is_refused_by_name(server, fields):
    (name,) = fields
    error = refused(post(server, {**GOOD, **fields}), 400)
    assert error["param"] == name and name in error["message"]


def test_what_asks_for_nothing_is_taken(server):
    neutral = {
        "frequency_penalty": 0,
        "logprobs": False,
        "tools": [],
        "n": 1,
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    assert post(server, {**GOOD, **neutral, "response_format": {"type": "text"}, "stop": None}).status_code == 200


def test_an_unknown_model(server):
    assert refused(post(server, {**GOOD, "model": "gpt-4"}), 404)["code"] == "model_not_found"


def test_a_body_that_is_too_large(server):
    large = {**GOOD, "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    refused(post(server, large), 413)

    def parts():  # without a content-length
        for _ in range(200):
            yield b"x" * 1000

    response = httpx.post(
        f"{server.url}/v1/chat/completions", content=parts(), headers={"content-type": "application/json"}
    )
    refused(response, 413)


def test_a_body_that_another_site_could_send(server):
    refused(post(server, b"{}", **{"content-type": "text/plain"}), 415)


def test_what_does_not_fit_the_context(server):
    error = refused(post(server, {**GOOD, "messages": [{"role": "user", "content": "x" * 64}]}), 400)
    assert error["code"] == "context_length_exceeded" and "64" in error["message"]


@pytest.mark.parametrize("prompt", [[10**6], [-1], "", [], ["a", ""], [[1], []], 5])
def test_a_prompt_of_completions_that_is_none(server, prompt):
    refused(post(server, {"model": "pair", "prompt": prompt}, "/v1/completions"), 400)


def test_unknown_paths_and_methods(server):
    assert refused(httpx.get(f"{server.url}/v1/nothing"), 404)
    assert refused(httpx.get(f"{server.url}/v1/chat/completions"), 405)


def test_a_body_that_comes_too_slowly(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        raw.sendall(head)
        raw.settimeout(10)
        answer = b""
        while b"request_timeout" not in answer:
            part = raw.recv(4096)
            assert part
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_reads_one_byte_at_a_time_holds_nobody_up(server):
    body = json.dumps({**GOOD, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        raw.settimeout(10)
        assert raw.recv(1) == b"H"
        assert chat(server).choices[0].finish_reason == "stop"
        rest = b"H"
        while b"[DONE]" not in rest:
            rest += raw.recv(1)


def test_keys():
    with serving(pair_of(scripted(LETTERS)), keys=["right", "other"]) as server:
        assert chat(server).choices[0].finish_reason == "stop"
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic right"},
            {"authorization": "right"},
        ):
            assert refused(post(server, GOOD, **headers), 401)["code"] == "invalid_api_key"
        assert refused(httpx.get(f"{server.url}/v1/models"), 401)
        assert post(server, GOOD, authorization="Bearer other").status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_full_queue_says_when_to_come_back():
    class Slow:
        name, vocabulary, max_context = "slow", LETTERS, None
        go = threading.Event()

        async def generate(self, *args, **kwargs):
            while not self.go.is_set():
                await asyncio.sleep(0.01)
            return await scripted(LETTERS).generate(*args, **kwargs)

    engine = Slow()
    with serving(pair_of(engine), max_in_flight=2, max_queue=1) as server:
        results = []
        threads = [threading.Thread(target=lambda: results.append(post(server, GOOD))) for _ in range(3)]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 10
        while server.places.in_flight + server.places.queued < 3 and time.monotonic() < limit:
            time.sleep(0.01)
        for stream in (False, True):
            response = post(server, {**GOOD, "stream": stream})
            refused(response, 429)
            assert int(response.headers["retry-after"]) >= 1
        refused(post(server, {**GOOD, "n": 3}), 400)
        engine.go.set()
        for thread in threads:
            thread.join(10)
        assert [r.status_code for r in results] == [200] * 3 and server.places.in_flight == 0


def test_a_command_in_the_users_message_calls_nobody():
    teacher = scripted(LETTERS, "never")
    with serving(pair_of(scripted(LETTERS, "a" + END), teacher)) as server:
        answer = chat(server, "<call>5</call>")
    assert answer.usage.calls == 0 and teacher.contexts == [] and answer.choices[0].message.content == "a"


def test_a_command_of_the_teacher_is_text():
    words = "<call>5</call>"
    teacher = scripted(LETTERS, words, "never")
    with serving(pair_of(scripted(LETTERS, "a<call>14</call>", "b" + END), teacher)) as server:
        answer = chat(server)
    assert answer.choices[0].message.content == f"a{words}b" and len(teacher.contexts) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": "0.0.0.0"}, "there is no API key"),
        ({"port": 70000}, "port is 70000"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"student_backend": "magic"}, "student_backend"),
        ({"student_engine": "{"}, "must be JSON"),
    ],
)
def test_options_of_a_server_that_cannot_work(fields, words, monkeypatch):
    monkeypatch.delenv("RELAY_TRL_API_KEYS", raising=False)
    with pytest.raises(ValueError, match=words):
        ServingConfig(student="somewhere", **fields)


def test_keys_come_from_the_environment_and_a_file(monkeypatch, tmp_path):
    (tmp_path / "keys").write_text("one\n\ntwo\n")
    monkeypatch.setenv("RELAY_TRL_API_KEYS", "three, four")
    config = ServingConfig(student="somewhere", host="0.0.0.0", api_key_file=str(tmp_path / "keys"))
    assert sorted(config.keys()) == ["four", "one", "three", "two"]
