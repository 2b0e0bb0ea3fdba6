"""What servers other than vLLM's do differently: how they continue an answer, which fields they refuse, how they end one."""

import asyncio
import gc
import json

import pytest
from helpers.llama_server import llama_url, needs_llama
from helpers.openai_server import GREEDY, VOCABULARY, Server, reply, run

from relay_trl.engines.base import EngineError, FinishReason, Sampling
from relay_trl.engines.loading import load_engine
from relay_trl.engines.openai import OpenAIEngine
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import StopReason

pytestmark = pytest.mark.slow  # many small servers

QUESTION = {"role": "user", "content": "17 + 25"}
BEGUN = [QUESTION, {"role": "assistant", "content": "It is"}]


class ChatServer(Server):
    """Answers " 42" to chat messages, as one kind of server does.

    Args:
        takes (`str`): which mark of an unfinished turn it goes by; others get a new turn, or status 400 if `is_strict`.
        echoes (`tuple[bool, bool]`): whether a whole reply and a streamed one repeat the turn that they continue.
    """

    def __init__(self, takes="", is_strict=False, echoes=(False, False), refused=(), counts=True):
        super().__init__()
        self.takes, self.is_strict, self.echoes, self.refused, self.counts = takes, is_strict, echoes, refused, counts

    def answer(self, body, is_chat):
        said = super().answer(
            {**body, "max_tokens": body.get("max_tokens", body.get("max_completion_tokens"))}, is_chat
        )
        last = body["messages"][-1]
        is_marked = (
            self.takes == "a last turn of the assistant" or body.get(self.takes) is True or last.get(self.takes) is True
        )
        is_continued = last["role"] == "assistant" and is_marked
        if is_continued and self.echoes[bool(body.get("stream"))]:
            message = said["choices"][0]["message"]
            message["content"] = last["content"] + message["content"]
        if self.counts:
            read = sum(4 + len(message["content"].split()) for message in body["messages"])
            said["usage"]["prompt_tokens"] = read - 4 if is_continued else read
        return said


@pytest.fixture
def serve():
    servers = []

    def start(**options):
        server = ChatServer(**options)
        refusal = {"error": {"message": "Unrecognized request argument supplied: {}", "type": "invalid_request_error"}}
        plain = server.answer

        class Refused(Exception):
            pass

        def answer(body, is_chat):
            last = body["messages"][-1]
            wrong = [name for name in server.refused if name in body]
            if (
                server.is_strict
                and last["role"] == "assistant"
                and not (server.takes == "a last turn of the assistant" or server.takes in {**body, **last})
            ):
                wrong = ["messages"]
            if wrong:
                raise Refused(wrong[0])
            return plain(body, is_chat)

        handler = server._http.RequestHandlerClass
        post = handler.do_POST

        def do_post(self):
            try:
                post(self)
            except Refused as error:
                said = {"error": {**refusal["error"], "param": str(error)}}
                said["error"]["message"] = said["error"]["message"].format(error)
                self.reply(400, said)

        handler.do_POST = do_post
        server.answer = answer
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def both(engine, context=BEGUN, max_tokens=16):
    """An answer, whole and streamed, and what a listener was told."""
    told = []

    async def ask():
        whole = await engine.generate(context, max_tokens, sampling=GREEDY)
        return whole, await engine.generate(context, max_tokens, sampling=GREEDY, on_tokens=told.append)

    whole, streamed = run(engine, ask())[0]
    return whole.text, streamed.text, "".join(told)


@pytest.mark.parametrize("echoes", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize("takes", ["continue_final_message", "a last turn of the assistant", "prefix", "partial"])
def test_an_answer_is_continued_whatever_marks_it(serve, takes, echoes):
    server = serve(takes=takes, echoes=echoes)
    engine = load_engine(server.url, api="chat")
    assert both(engine) == (" 42", " 42", " 42")
    assert both(engine, [QUESTION]) == (" 42", " 42", " 42")
    # A long one comes piece by piece, and an answer may begin like what it continues
    again = [QUESTION, {"role": "assistant", "content": " 4"}]
    assert both(engine, again) == (" 42", " 42", " 42")


@pytest.mark.parametrize("takes", ["continue_final_message", "prefix", "partial"])
def test_servers_that_refuse_other_marks(serve, takes):
    engine = load_engine(serve(takes=takes, is_strict=True).url, api="chat")
    assert both(engine) == (" 42", " 42", " 42")


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_server_that_continues_nothing_is_refused_by_name(serve, is_strict):
    server = serve(takes="nothing at all", is_strict=is_strict)
    with pytest.raises(EngineError, match="does not continue an answer.*teacher_api: instruct") as caught:
        load_engine(server.url, api="chat")
    assert server.url in str(caught.value) and ("refused" if is_strict else "new turn") in str(caught.value)
    with pytest.raises(EngineError, match="does not continue"):  # nor without a check
        both(OpenAIEngine(server.url, api="chat"))


def test_a_server_that_does_not_count_is_taken_with_a_warning(serve, caplog):
    engine = load_engine(serve(takes="prefix", counts=False).url, api="chat")
    assert both(engine) == (" 42", " 42", " 42")
    assert "nobody knows whether it continues" in caplog.text


def test_an_echo_that_is_changed_is_no_answer(serve):
    server = serve(takes="continue_final_message", echoes=(True, True))
    engine = load_engine(server.url, api="chat")
    server.edit = lambda answer: answer["choices"][0]["message"].update(content="It Is 42")
    with pytest.raises(EngineError, match="repeats what it continues, but changed it"):
        run(engine, engine.generate(BEGUN, 16))


def test_a_continuation_is_asked_for_in_words_by_name(serve, caplog):
    server = serve(takes="nothing at all")
    engine = load_engine(server.url, api="instruct")
    assert "asked in words" in caplog.text
    assert both(engine) == (" 42", " 42", " 42")
    *before, asked = server.requests[-1]["messages"]
    assert before == BEGUN and asked["role"] == "user" and "exactly where it stops" in asked["content"]
    for said, words in {"It is 42": " 42", "42": " 42", ", 42": ", 42", "": ""}.items():
        server.edit = lambda answer, said=said: answer["choices"][0]["message"].update(content=said)
        assert both(engine) == (words, words, words)
    server.edit = lambda answer: None
    both(engine, [QUESTION])
    assert server.requests[-1]["messages"] == [QUESTION]


FIELDS = ["temperature", "top_p", "seed", "chat_template_kwargs", "stream_options", "max_tokens", "top_k", "min_p"]


@pytest.mark.parametrize("refused", [[name] for name in FIELDS] + [FIELDS])
def test_fields_that_a_server_refuses_are_left_out(serve, refused, caplog):
    server = serve(takes="continue_final_message", refused=refused)
    engine = load_engine(server.url, api="chat", chat_template_kwargs={"enable_thinking": False})
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=3)
    run(engine, engine.generate(BEGUN, 16, sampling=sampling), engine.generate(BEGUN, 16, on_tokens=lambda piece: None))
    engine_requests = len(server.requests)
    answer = run(engine, engine.generate(BEGUN, 16, sampling=sampling))[0]
    assert answer.text == " 42" and len(server.requests) == engine_requests + 1  # once learnt, it is not tried again
    sent = server.requests[-1]
    assert not set(refused) & set(sent)
    assert sent["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] == 16
    lost = [name for name in ("temperature", "top_p", "seed", "top_k", "min_p") if name in refused]
    assert all(f"takes no {name}" in caplog.text for name in lost) and caplog.text.count("takes no") == len(lost)


@pytest.mark.parametrize(
    "said",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        {
            "detail": [
                {"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}
            ]
        },
    ],
)
def test_max_tokens_has_a_newer_name(serve, said):
    server = serve(takes="continue_final_message")
    body = {"error": {"message": said}} if isinstance(said, str) else said
    server.faults = [reply(422 if isinstance(said, dict) else 400, body)]
    engine = load_engine(server.url, api="chat")
    assert server.requests[-1]["max_completion_tokens"] and "max_tokens" not in server.requests[-1]
    assert both(engine) == (" 42", " 42", " 42")


@pytest.mark.parametrize("said", ["max_tokens is too large: 5000 > 4096", "temperature must be at most 1", "too long"])
def test_a_value_that_is_refused_is_no_field_that_is_refused(serve, said):
    server = serve(takes="continue_final_message")
    engine = load_engine(server.url, api="chat")
    server.faults = [reply(400, {"error": {"message": said}})]
    with pytest.raises(EngineError, match=said[:10]):
        run(engine, engine.generate(BEGUN, 16))


def test_stop_strings_and_fields_of_ones_own_are_never_left_out(serve):
    server = serve(takes="continue_final_message", refused=["stop", "reasoning_effort"])
    engine = load_engine(server.url, api="chat")
    with pytest.raises(EngineError, match="Unrecognized request argument supplied: stop"):
        run(engine, engine.generate(BEGUN, 16, ("</call>",)))
    with pytest.raises(EngineError, match="reasoning_effort"):
        load_engine(server.url, api="chat", extra_body={"reasoning_effort": "none"})


def test_template_arguments_fields_and_headers_reach_a_chat_server(serve):
    server = serve(takes="continue_final_message")
    engine = load_engine(
        server.url,
        api="chat",
        chat_template_kwargs={"enable_thinking": False},
        extra_body={"reasoning_effort": "none", "top_p": None, "temperature": 0.3},
        headers={"X-Team": "anna-secret"},
    )
    run(engine, engine.generate(BEGUN, 16))
    sent = server.requests[-1]
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert (sent["reasoning_effort"], sent["temperature"], "top_p" in sent) == ("none", 0.3, False)
    assert server.headers[-1]["X-Team"] == "anna-secret"
    server.faults = [reply(400, {"error": {"message": "X-Team anna-secret is unknown"}})]
    with pytest.raises(EngineError, match=r"\*\*\*") as caught:
        run(engine, engine.generate(BEGUN, 16))
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="header 'X-Team' has a value that is no text"):
        OpenAIEngine(server.url, headers={"X-Team": 7})


def test_a_template_of_a_completions_server_is_ours():
    server = Server()
    engine = load_engine(server.url, chat_template_kwargs={"enable_thinking": False})
    run(engine, engine.generate("17", 4))
    assert "chat_template_kwargs" not in server.requests[-1]
    server.close()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("reason", "finish"),
    [(name, FinishReason.EOS) for name in ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "STOP", "")]
    + [(name, FinishReason.LENGTH) for name in ("length", "max_tokens", "MAX_TOKENS", "model_length")],
)
def test_what_servers_call_the_end(reason, finish, is_stream):
    server = Server()
    server.edit = lambda answer: answer["choices"][0].update(finish_reason=reason)
    engine = OpenAIEngine(server.url)
    listener = (lambda piece: None) if is_stream else None
    answer = run(engine, engine.generate("17", 16, on_tokens=listener))[0]
    assert (answer.text, answer.finish) == (" 42", finish)
    if reason == "":  # which says nothing, so that the count has to
        assert run(engine, engine.generate("17", 4, on_tokens=listener))[0].finish is FinishReason.LENGTH
    server.close()


def test_a_stream_that_breaks_off_with_empty_reasons_has_not_ended():
    server = Server()
    chunk = {"choices": [{"index": 0, "text": " 4", "finish_reason": ""}]}
    server.faults = [lambda handler: handler.stream([chunk], b"")]
    engine = OpenAIEngine(server.url)
    with pytest.raises(EngineError, match="without a finish_reason"):
        run(engine, engine.generate("17", 4, on_tokens=lambda piece: None))
    server.close()


def test_messages_without_text(serve):
    server = serve(takes="continue_final_message")
    engine = load_engine(server.url, api="chat")

    def said(**message):
        server.edit = lambda answer: answer["choices"][0].update(message={"role": "assistant", **message})
        return run(engine, engine.generate(BEGUN, 16))[0].text

    assert said(content=None) == said() == said(content="", reasoning_content="") == ""
    with pytest.raises(EngineError, match="tool_calls in place of text"):
        said(content=None, tool_calls=[{"id": "1"}])
    for name in ("reasoning_content", "reasoning"):
        with pytest.raises(EngineError, match="wrote nothing.*thinking off"):
            said(content=None, **{name: "Let me see"})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_beside_the_text_are_left_out(serve, caplog, name):
    server = serve(takes="continue_final_message")
    engine = load_engine(server.url, api="chat")
    server.edit = lambda answer: answer["choices"][0]["message"].update({name: "Let me see"})
    for _ in range(2):
        assert run(engine, engine.generate(BEGUN, 16))[0].text == " 42"
    assert caplog.text.count("thinks apart from its text") == 1


def test_an_engine_that_nobody_closes_ends_with_its_event_loop():
    server, faults = Server(), []
    engine = OpenAIEngine(server.url)

    async def ask(engine):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        return (await engine.generate("17", 16)).text

    for _ in range(3):
        assert asyncio.run(ask(engine)) == " 42"
    del engine

    async def collect():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        gc.collect()
        await asyncio.sleep(0.05)

    asyncio.run(collect())
    assert not faults
    # Nothing is left open on the server's side either
    assert all(connection.recv(1) == b"" for connection in server._connections if connection.fileno() >= 0)
    server.close()


@pytest.mark.parametrize(
    ("name", "is_asked"),
    [
        ("coder0.5b.gguf", False),
        ("llama3:8b", False),
        ("gpt-4.1-mini", False),
        ("models/org/name", False),
        ("org/name.gguf", False),
        ("/models/qwen", False),
        ("C:\\models\\qwen", False),
        ("org/name", True),
    ],
)
def test_only_names_of_the_hub_are_looked_up_there_and_once(name, is_asked, monkeypatch, caplog):
    import huggingface_hub

    asked = []

    def head(url, timeout=None, **options):
        asked.append((url, timeout))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)
    server = Server(models=(name,))
    assert load_engine(server.url).vocabulary is None
    server.close()
    assert len(asked) == is_asked and all(timeout <= 5 for _, timeout in asked)
    assert len(caplog.records) == 1 and "text is exchanged" in caplog.text


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize("api", ["completions", "chat", "instruct"])
def test_llama_cpp(api):
    engine = load_engine(llama_url(), api=api)
    count = "A B C A B C A"
    context = (
        count
        if api == "completions"
        else [
            {"role": "user", "content": "Write A B C again and again."},
            {"role": "assistant", "content": count},
        ]
    )
    whole, streamed, told = both(engine, context, 8)
    assert streamed.startswith(told) and (whole == streamed or api == "instruct")
    if api != "instruct":
        assert whole and told == streamed
    if api == "chat":
        assert whole.startswith(" B C")


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize("is_heard", [False, True])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_relay_with_llama_cpp_as_teacher(api, is_heard):
    """Calls deliver at most what they ask for, and nothing stands twice in the answer."""
    teacher = load_engine(llama_url(), api=api)
    turns = iter(["One, two, three,<call>12</call>", " and then<call>3</call>", " so."])
    student = ScriptedEngine(VOCABULARY, lambda context: [*VOCABULARY.encode(next(turns)), VOCABULARY.eos_id])
    context = "Count in words." if api == "completions" else [{"role": "user", "content": "Count in words."}]
    prompt = RelayPrompt(VOCABULARY.encode("Count in words."), context)
    heard = []
    listener = (lambda author, text, count: heard.append(text)) if is_heard else None
    rules = RelayRules(teacher=Sampling(0.0), is_ended_by_teacher=False)
    trace = run(teacher, relay(prompt, student, teacher, rules, listener=listener))[0]
    assert trace.error is None and trace.stop is StopReason.EOS
    assert [call.granted for call in trace.calls] == [12, 3]
    assert all(0 < call.delivered <= call.granted for call in trace.calls)
    assert trace.answer.count("One, two, three,") == 1 and trace.answer.count(" and then") == 1
    if is_heard:
        assert "".join(heard) == trace.text
    json.dumps(trace.to_dict())
