"""`OpenAIEngine` against a real HTTP server of ours that answers like OpenAI's API and can misbehave."""

import asyncio
import gc
import math
import ssl
import subprocess
import time
from base64 import b64encode
from email.utils import formatdate
from shutil import which

import pytest
from helpers.openai_server import GREEDY, VOCABULARY, Server, drop, reply, run
from helpers.tokenizers import characters

from relay_trl.engines.base import EngineError, FinishReason, Sampling
from relay_trl.engines.openai import OpenAIEngine
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import StopReason
from relay_trl.vocabulary import Vocabulary


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def drop_in_the_middle(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    drop(handler)


def ask(engine, context="17 + 25 =", max_tokens=16, stop=(), sampling=GREEDY):
    return run(engine, engine.generate(context, max_tokens, stop, sampling))[0]


def test_ids_go_out_and_come_back(server):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    context = VOCABULARY.encode("17 + 25 =")
    answer = ask(engine, context, sampling=Sampling(temperature=0.7, seed=5))
    assert answer.ids == [*VOCABULARY.encode(" 42"), VOCABULARY.eos_id]
    assert (answer.text, answer.finish, answer.logprobs) == (" 42", FinishReason.EOS, None)
    request = server.requests[0]
    assert request["prompt"] == context
    assert request["model"] == "tiny"
    assert (request["max_tokens"], request["seed"], request["temperature"]) == (16, 5, 0.7)
    assert "logprobs" not in request


def test_text_mode_sends_nothing_that_a_plain_server_lacks(server):
    engine = OpenAIEngine(server.url)
    answer = ask(engine)
    assert (answer.ids, answer.text, answer.finish, answer.num_tokens) == (None, " 42", FinishReason.EOS, 4)
    assert set(server.requests[0]) == {"model", "prompt", "max_tokens", "temperature", "top_p"}


def test_top_k_and_min_p_are_sent_when_set(server):
    ask(OpenAIEngine(server.url), sampling=Sampling(top_k=20, min_p=0.1, logit_bias={5: 2.5, 7: -math.inf, 9: 1e6}))
    assert (server.requests[0]["top_k"], server.requests[0]["min_p"]) == (20, 0.1)
    assert server.requests[0]["logit_bias"] == {"5": 2.5, "7": -100.0, "9": 100.0}


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_a_repetition_penalty_is_sent_when_set(server, vocabulary):
    context = "17 + 25 =" if vocabulary is None else vocabulary.encode("17 + 25 =")
    ask(OpenAIEngine(server.url, vocabulary=vocabulary), context, sampling=Sampling(repetition_penalty=1.2))
    assert server.requests[0]["repetition_penalty"] == 1.2


def test_a_cut_answer_ends_with_length(server):
    answer = ask(OpenAIEngine(server.url, vocabulary=VOCABULARY), VOCABULARY.encode("17"), max_tokens=2)
    assert (answer.ids, answer.finish) == (VOCABULARY.encode(" 42")[:2], FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 90, "prompt_tokens_details": {"cached_tokens": 64}}, (90, 64)),
        ({"prompt_tokens": 90, "prompt_tokens_details": None}, (90, None)),
        ({"prompt_tokens": "many", "prompt_tokens_details": {"cached_tokens": None}}, (None, None)),
        (None, (None, None)),
    ],
)
def test_what_a_server_says_of_the_context(server, usage, expected):
    server.edit = lambda answer: answer.update(usage=usage)
    for engine in (OpenAIEngine(server.url, vocabulary=VOCABULARY), OpenAIEngine(server.url)):
        answer = ask(engine)
        assert (answer.prompt_tokens, answer.cached_tokens) == expected


@pytest.mark.parametrize("fields", [{"stop_reason": "</call>"}, {"matched_stop": "</call>"}, {}])
def test_a_stop_string_is_told_from_an_end(server, fields):
    def edit(answer):
        choice = answer["choices"][0]
        del choice["stop_reason"], choice["token_ids"]
        choice.update(text="<call>3</call>", **fields)

    server.edit = edit
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    answer = ask(engine, VOCABULARY.encode("17"), stop=("</call>",))
    assert (answer.finish, answer.ids) == (FinishReason.STOP, None)
    assert server.requests[0]["stop"] == ["</call>"]
    assert server.requests[0]["include_stop_str_in_output"] is True


def test_a_stop_string_in_the_text_of_the_end_token_is_an_end(server):
    """vLLM names `<` where it stands in `<|im_end|>`."""
    server.edit = lambda answer: answer["choices"][0].update(stop_reason="<")
    answer = ask(OpenAIEngine(server.url, vocabulary=VOCABULARY), VOCABULARY.encode("17"), stop=("<",))
    assert (answer.finish, answer.text, answer.ids[-1]) == (FinishReason.EOS, " 42", VOCABULARY.eos_id)


def test_an_end_token_that_the_server_drops_is_put_back(server):
    server.edit = lambda answer: answer["choices"][0]["token_ids"].pop()
    answer = ask(OpenAIEngine(server.url, vocabulary=VOCABULARY), VOCABULARY.encode("17"))
    assert answer.ids == [*VOCABULARY.encode(" 42"), VOCABULARY.eos_id]


def test_another_end_token_is_kept_and_left_out_of_the_text(server):
    other = VOCABULARY.encode("so")[0]

    def edit(answer):
        answer["choices"][0]["token_ids"][-1] = answer["choices"][0]["stop_reason"] = other

    server.edit = edit
    answer = ask(OpenAIEngine(server.url, vocabulary=VOCABULARY), VOCABULARY.encode("17"))
    assert (answer.ids[-1], answer.text, answer.finish) == (other, " 42", FinishReason.EOS)


def test_logprobs_for_a_student(server):
    def edit(answer):
        answer["choices"][0]["logprobs"]["token_logprobs"][1] = None

    server.edit = edit
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY, needs_logprobs=True)
    answer = ask(engine, VOCABULARY.encode("17"))
    assert len(answer.logprobs) == len(answer.ids)
    assert answer.logprobs[0] == -0.25
    assert math.isnan(answer.logprobs[1])
    assert server.requests[0]["logprobs"] == 0


def test_retry_after_is_honoured(server):
    server.faults = [reply(429, {"error": {"message": "slow down"}}, Retry_After="1")]
    assert ask(OpenAIEngine(server.url)).text == " 42"
    assert server.times[1] - server.times[0] >= 0.95


@pytest.mark.parametrize("fault", [reply(500, b"oops"), reply(503, b""), drop, drop_in_the_middle])
def test_passing_faults_are_tried_again(server, fault):
    server.faults = [fault]
    assert ask(OpenAIEngine(server.url)).text == " 42"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (reply(500, b"out of memory"), "status 500 .*out of memory.*Gave up after 2 tries"),
        (reply(429, {"error": {"message": "slow down"}}), "status 429 .*slow down.*max_concurrency"),
        (drop, "cannot be reached in 2 tries"),
        (reply(400, {"error": {"message": "too long: 600 > 512"}}), "status 400 .*too long: 600 > 512"),
        (reply(401, {"error": {"message": "bad key sk-secret"}}), r"status 401 .*bad key \*\*\*.*OPENAI_API_KEY"),
        (reply(200, b'{"choices": ['), "broken JSON"),
        (reply(200, b"<html>Welcome</html>", Content_Type="text/html"), "broken JSON .*Welcome"),
        (reply(200, {"choices": []}), "without any choice"),
        (reply(200, {"error": {"message": "no credit"}}), "without any choice .*no credit"),
        (reply(200, ["choices"]), "without any choice"),
        (reply(200, {"choices": [{"text": 3, "finish_reason": "stop"}]}), "text '3'"),
        (reply(200, {"choices": [{"text": "", "finish_reason": "content_filter"}]}), "content_filter"),
        (reply(200, {"choices": [{"text": "", "token_ids": ["a"], "finish_reason": "stop"}]}), "token_ids"),
        (reply(200, {"choices": [{"text": "", "token_ids": [-1], "finish_reason": "stop"}]}), "token_ids"),
        (reply(200, {"choices": [{"text": "", "token_ids": [1 << 40], "finish_reason": "length"}]}), "token_ids"),
    ],
)
def test_a_lasting_fault_is_one_sentence_with_the_url(server, fault, words):
    server.faults = [fault] * 2
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY, max_retries=1, api_key="sk-secret")
    with pytest.raises(EngineError, match=words) as caught:
        ask(engine)
    message = str(caught.value)
    assert server.url in message
    assert "secret" not in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_date_to_wait_for_is_honoured(server):
    server.faults = [reply(503, b"", Retry_After=formatdate(time.time() + 2, usegmt=True))]
    assert ask(OpenAIEngine(server.url)).text == " 42"
    assert server.times[1] - server.times[0] >= 0.9


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1").replace("http://", "http://anna:pass@"))
    assert ask(OpenAIEngine("http://teacher.invalid/v1")).text == " 42"
    assert server.headers[0]["Host"] == "teacher.invalid"
    assert server.headers[0]["Proxy-Authorization"] == "Basic " + b64encode(b"anna:pass").decode()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ask(OpenAIEngine(server.url)).text == " 42" and "Proxy-Authorization" not in server.headers[1]


@pytest.mark.skipif(which("openssl") is None, reason="needs openssl")
def test_certificates_of_the_environment_are_trusted(server, monkeypatch, tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", *options, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(EngineError, match="cannot be reached in 1 try .*certificate verify failed"):
        ask(OpenAIEngine(url, max_retries=0))
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert ask(OpenAIEngine(url, max_retries=0)).text == " 42"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning", "error::RuntimeWarning")
def test_an_event_loop_that_is_never_closed_leaves_nothing_open(server, caplog):
    loop, engine = asyncio.new_event_loop(), OpenAIEngine(server.url)
    assert loop.run_until_complete(engine.generate("17", 8)).text == " 42"
    del engine
    gc.collect()
    loop.run_until_complete(asyncio.sleep(0))
    assert "Unclosed" not in caplog.text
    loop.close()


def test_a_time_out_says_so(server):
    server.delay_s = 0.5
    with pytest.raises(EngineError, match="no answer within 0.1 s in 1 try; raise timeout_s"):
        ask(OpenAIEngine(server.url, model="tiny", timeout_s=0.1, max_retries=0))


def test_a_server_that_is_down_says_so():
    engine = OpenAIEngine("http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(EngineError, match="http://127.0.0.1:9/v1 cannot be reached in 1 try.*start the server"):
        run(engine, engine.check())


def test_check_learns_what_the_server_serves(server):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    run(engine, engine.check())
    assert (engine.model, engine.max_context, engine.model_path, engine.gives_ids) == (
        "tiny",
        512,
        "/models/tiny",
        True,
    )


def test_check_names_the_served_models(server):
    server.models = ["tiny", "small"]
    engine = OpenAIEngine(server.url, model="large")
    with pytest.raises(EngineError, match="does not serve 'large' but 'tiny', 'small'"):
        run(engine, engine.check())
    engine = OpenAIEngine(server.url)
    with pytest.raises(EngineError, match="serves 2 models .*name one"):
        run(engine, engine.check())


def test_an_unknown_model_is_named_without_check_too(server):
    with pytest.raises(EngineError, match="status 404 .*serves 'large'"):
        ask(OpenAIEngine(server.url, model="large"))


def test_check_finds_a_server_without_ids(server, caplog):
    server.has_ids = False
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    run(engine, engine.check())
    assert engine.gives_ids is False
    assert "returns no token ids" in caplog.text
    student = OpenAIEngine(server.url, vocabulary=VOCABULARY, needs_logprobs=True)
    with pytest.raises(EngineError, match="no token ids, which a student needs"):
        run(student, student.check())


def test_check_finds_the_wrong_tokenizer(server):
    engine = OpenAIEngine(server.url, vocabulary=Vocabulary(characters()))
    with pytest.raises(EngineError, match="give the tokenizer of the model it serves"):
        run(engine, engine.check())


def test_no_more_requests_at_once_than_allowed(server):
    server.delay_s = 0.05
    engine = OpenAIEngine(server.url, max_concurrency=3)
    answers = run(engine, *(engine.generate("17", 8) for _ in range(12)))
    assert [answer.text for answer in answers] == [" 42"] * 12
    assert server.most_in_flight == 3


def test_one_engine_serves_several_loops(server):
    server.delay_s = 0.02
    engine = OpenAIEngine(server.url, max_concurrency=1)
    for _ in range(2):
        assert len(run(engine, *(engine.generate("17", 8) for _ in range(3)))) == 3


def test_the_key_is_sent_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    engine = OpenAIEngine(server.url)
    ask(engine)
    assert server.headers[0]["Authorization"] == "Bearer sk-environment"
    assert "sk-environment" not in f"{engine.name} {engine!r}"


def test_credentials_in_a_url_are_masked(server):
    url = server.url.replace("http://", "http://anna:pass@")
    engine = OpenAIEngine(url)
    assert ask(engine).text == " 42"
    assert engine.name == server.url.replace("http://", "http://***@")


def test_the_path_of_the_api_may_be_left_out(server):
    assert ask(OpenAIEngine(server.url.removesuffix("/v1"))).text == " 42"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base_url": "localhost:8000"}, "no URL of a server"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"api": "responses"}, "'completions', 'chat' or 'instruct'"),
        ({"needs_logprobs": True}, "needs a vocabulary"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        OpenAIEngine(**{"base_url": "http://localhost:8000", **arguments})


@pytest.mark.parametrize("context", [[1, 2], [{"role": "user", "content": "17"}]])
def test_a_context_of_the_wrong_kind_is_refused(server, context):
    with pytest.raises(ValueError, match="vocabulary|chat API|completions API"):
        ask(OpenAIEngine(server.url), context)


def told_scores(answer, ids, **changes):
    """Puts what vLLM says of a prompt's tokens into an answer: the token itself, and a likelier one."""
    scores = [None] + [{str(t): {"logprob": -0.1 * k}, "999": {"logprob": 0.0}} for k, t in enumerate(ids) if k]
    answer["choices"][0]["prompt_logprobs"] = scores


def test_a_server_scores_a_text(server):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    ids = VOCABULARY.encode("17 + 25 = 42")
    server.edit = lambda answer: told_scores(answer, ids)
    assert run(engine, engine.score(ids, 3))[0] == pytest.approx([-0.1 * k for k in range(3, len(ids))])
    assert (server.requests[0]["prompt"], server.requests[0]["prompt_logprobs"]) == (ids, 0)
    assert server.requests[0]["max_tokens"] == 1


@pytest.mark.parametrize("status", [None, 400, 422])
def test_a_server_that_cannot_score_is_asked_once(server, status):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    ids = VOCABULARY.encode("17 + 25 = 42")
    if status:
        server.faults = [reply(status, {"error": {"message": "prompt_logprobs: extra fields"}})]
    assert run(engine, engine.score(ids, 3))[0] is None
    assert run(engine, engine.score(ids, 3))[0] is None
    assert len(server.requests) == 1


@pytest.mark.parametrize("options", [{}, {"api": "chat", "vocabulary": VOCABULARY}])
def test_text_is_not_scored(server, options):
    engine = OpenAIEngine(server.url, **options)
    assert run(engine, engine.score([5, 6], 1))[0] is None and not server.requests


@pytest.mark.parametrize("scores", [[], "x", [None, {}, {}], [None, {"5": 1}, {"6": {"logprob": "x"}}]])
def test_unreadable_scores_are_one_sentence(server, scores):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    server.edit = lambda answer: answer["choices"][0].update(prompt_logprobs=scores)
    with pytest.raises(EngineError, match="returned unreadable prompt_logprobs"):
        run(engine, engine.score([4, 5, 6], 1))


def listen(engine, context="17 + 25 =", max_tokens=16, stop=()):
    """A streamed answer, and what its listener was told; in place of the answer the error, if there was one."""
    told = []

    async def heard():
        try:
            return await engine.generate(context, max_tokens, stop, GREEDY, told.append)
        except EngineError as error:
            return error

    return run(engine, heard())[0], told


ALL = [*VOCABULARY.encode(" 42"), VOCABULARY.eos_id]


def test_a_stream_tells_every_id_once_and_in_order(server):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    answer, told = listen(engine, VOCABULARY.encode("17"))
    assert len(ALL) > 2 and told == [[token] for token in ALL]
    assert (answer.ids, answer.text, answer.finish) == (ALL, " 42", FinishReason.EOS)
    assert server.requests[0]["stream"] is True
    assert answer == ask(engine, VOCABULARY.encode("17"))  # as if nobody had listened
    cut, told = listen(engine, VOCABULARY.encode("17"), max_tokens=2)
    assert (cut.ids, cut.finish) == (ALL[:2], FinishReason.LENGTH) and told == [[token] for token in ALL[:2]]


def test_a_stop_string_ends_a_stream(server):
    said = "<call>3</call>!"  # it may end inside a token: what ended the answer is the server's word
    words = VOCABULARY.encode(said)

    def edit(answer):
        answer["choices"][0].update(text=said, token_ids=words, stop_reason="</call>")

    server.edit = edit
    answer, told = listen(OpenAIEngine(server.url, vocabulary=VOCABULARY), VOCABULARY.encode("17"), stop=("</call>",))
    assert (answer.finish, answer.ids, sum(told, [])) == (FinishReason.STOP, words, words)
    assert server.requests[0]["stop"] == ["</call>"]


def test_logprobs_in_a_stream(server):
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY, needs_logprobs=True)

    def edit(answer):
        answer["choices"][0]["logprobs"]["token_logprobs"] = [-0.5 * k for k in range(len(ALL))]

    server.edit = edit
    answer, _ = listen(engine, VOCABULARY.encode("17"))
    assert answer.logprobs == [-0.5 * k for k in range(len(ALL))]


def test_a_line_of_a_stream_may_be_long(server):
    server.faults = [stream(b"data: [DONE]\n\n", {**FIRST, "padding": "x" * 300_000}, LAST)]
    answer, told = listen(OpenAIEngine(server.url), "17")
    assert (answer.text, told) == (" 42", [" 4", "2"])


def test_the_usage_of_a_stream_is_read(server):
    server.edit = lambda answer: answer["usage"].update(prompt_tokens=9, prompt_tokens_details={"cached_tokens": 4})
    answer, _ = listen(OpenAIEngine(server.url, vocabulary=VOCABULARY), VOCABULARY.encode("17"))
    assert (answer.num_tokens, answer.prompt_tokens, answer.cached_tokens) == (len(ALL), 9, 4)
    assert server.requests[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_stream_of_text(server, api):
    context = [{"role": "user", "content": "17 + 25"}] if api == "chat" else "17 + 25"
    answer, told = listen(OpenAIEngine(server.url, api=api), context)
    assert told == [" ", "4", "2"]
    assert (answer.ids, answer.text, answer.finish) == (None, " 42", FinishReason.EOS)


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_stream_that_breaks_off_says_what_was_told(server, has_ids):
    server.break_off = 2
    engine = OpenAIEngine(server.url, vocabulary=VOCABULARY if has_ids else None)
    error, told = listen(engine, VOCABULARY.encode("17") if has_ids else "17")
    assert isinstance(error, EngineError) and "broke off an answer" in str(error) and server.url in str(error)
    if has_ids:
        assert (told, error.written.ids) == ([[ALL[0]], [ALL[1]]], ALL[:2])
        assert error.written.text == VOCABULARY.decode(ALL[:2])
    else:
        assert (told, error.written.ids, error.written.text) == ([" ", "4"], None, " 4")
    assert len(server.requests) == 1  # what was told cannot be taken back, so it is not asked again


def stream(ending, *chunks):
    return lambda handler: handler.stream(chunks, ending)


FIRST = {"choices": [{"index": 0, "text": " 4", "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "text": "2", "finish_reason": "stop"}]}
OUT = b'data: {"error": {"message": "out of memory"}}\n\n'


@pytest.mark.parametrize(
    "fault", [reply(503, b""), drop, stream(b""), stream(OUT), stream(b"data: <html>\n\n")], ids=range(5)
)
def test_a_stream_that_fails_before_its_first_token_is_asked_for_again(server, fault):
    server.faults = [fault]
    answer, told = listen(OpenAIEngine(server.url), "17")
    assert answer.text == "".join(told) == " 42" and len(server.requests) == 2
    server.faults, server.requests[:] = [fault] * 2, []
    error, told = listen(OpenAIEngine(server.url, max_retries=1), "17")
    assert isinstance(error, EngineError) and error.written is None and not told
    assert len(server.requests) == 2 and server.url in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (b"data: [DONE]\n\n", "without a finish_reason"),
        (OUT, "out of memory"),
        (b"data: <html>\n\n", "broke off"),
        (b'data: {"choices": [{"text": 3}]}\n\n', "it sent"),
    ],
)
def test_a_stream_that_turns_into_nonsense_is_one_sentence(server, ending, words):
    server.faults = [stream(ending, FIRST)]
    error, told = listen(OpenAIEngine(server.url), "17")
    assert isinstance(error, EngineError) and words in str(error) and "\n" not in str(error)
    assert told == [" 4"] and error.written.text == " 4" and len(server.requests) == 1


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_relay_with_a_server_as_teacher(server, has_ids):
    server.has_ids = has_ids
    teacher = OpenAIEngine(server.url, vocabulary=VOCABULARY)
    student = ScriptedEngine(VOCABULARY, lambda context: VOCABULARY.encode("It is<call>9</call>"))
    prompt = RelayPrompt(VOCABULARY.encode("17 + 25"), VOCABULARY.encode("17 + 25"))
    trace = run(teacher, relay(prompt, student, teacher, RelayRules(), seed=1))[0]
    assert (trace.stop, trace.answer) == (StopReason.TEACHER_EOS, "It is 42")
    assert server.requests[0]["prompt"] == VOCABULARY.encode("17 + 25") + VOCABULARY.encode("It is")


def test_a_relay_outlives_a_failing_server(server):
    server.faults = [reply(400, {"error": {"message": "no"}})]
    teacher = OpenAIEngine(server.url)
    student = ScriptedEngine(VOCABULARY, lambda context: VOCABULARY.encode("It is<call>9</call>"))
    trace = run(teacher, relay(RelayPrompt([1], "17 + 25"), student, teacher, RelayRules()))[0]
    assert trace.stop is StopReason.TEACHER_ERROR
    assert server.url in trace.error
