"""What clients of OpenAI's API send beyond the common: logprobs, echo, several prompts, other endpoints, neutral fields.

The pair is real: the shipped arithmetic models, whose own forward pass gives the numbers that are expected.
"""

import json
from types import SimpleNamespace

import httpx
import pytest
import torch
from helpers.scripted_relay import BYTE_LEVEL, END, scripted
from helpers.serving import chat, pair_of, post, serving
from helpers.trainers import PAIR

from relay_trl.engines.circuit_breaker import GuardedTeacher
from relay_trl.engines.threaded import ThreadedEngine
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.relay_config import load_record
from relay_trl.serving.app import RelayServer
from relay_trl.serving.pair import Pair

STUDENT = str(PAIR / "warmed_up")
QUESTION = "78*6+49="


@pytest.fixture(scope="module")
def real():
    student, teacher = TransformersEngine.load(STUDENT), TransformersEngine.load(str(PAIR / "teacher"))
    pair = Pair(ThreadedEngine(student), GuardedTeacher(ThreadedEngine(teacher)), load_record(STUDENT))
    with serving(pair) as server:
        yield SimpleNamespace(server=server, student=student, teacher=teacher, client=server.client, url=server.url)


def by_hand(engine, ids):
    """The log-probabilities of a model at each place of `ids` but the first, shape (len(ids) - 1, V)."""
    with torch.no_grad():
        return engine.model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


def test_a_prompt_is_scored_as_harnesses_ask(real):
    """Several prompts as ids, `echo`, one token: the scores of the prompt, and whether it is greedy."""
    vocabulary = real.student.vocabulary
    prompts = [vocabulary.encode(text) for text in (QUESTION, "1+1=2;", "9*")]
    asked = {
        "model": "pair",
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
        "seed": -1,
    }
    reply = real.client.completions.create(**asked)
    assert [choice.index for choice in reply.choices] == [0, 1, 2] and reply.usage.prompt_tokens == sum(
        map(len, prompts)
    )
    for ids, choice in zip(prompts, reply.choices, strict=True):
        found = choice.logprobs
        scores = by_hand(real.student, [*ids, *vocabulary.encode(found.tokens[-1])])
        assert "".join(found.tokens) == choice.text and choice.text.startswith(vocabulary.decode(ids))
        assert found.text_offset == list(range(len(ids) + 1)) and found.token_logprobs[0] is None
        assert found.token_logprobs[1:-1] == pytest.approx(
            [float(row[token]) for row, token in zip(scores, ids[1:], strict=False)], abs=1e-4
        )
        best = [vocabulary.decode([int(row.argmax())]) for row in scores]
        assert [max(top, key=top.get) for top in found.top_logprobs[1:]] == best
    silent = real.client.completions.create(**{**asked, "prompt": QUESTION, "max_tokens": 0})
    assert silent.choices[0].text == QUESTION and len(silent.choices[0].logprobs.tokens) == len(prompts[0])
    assert silent.usage.completion_tokens == 0


def test_each_writers_tokens_have_its_own_logprobs(real):
    options = {"logprobs": True, "top_logprobs": 2, "seed": 1}
    asked = chat(real.server, QUESTION, call_bias=2, max_calls=1, max_call_tokens=4, **options)
    choice = asked.choices[0]
    relay, places = choice.model_extra["relay"], choice.logprobs.content
    assert relay["all_scored"] and [span["author"] for span in relay["spans"]] == ["student", "teacher", "student"]
    assert "".join(place.token for place in places).replace("<eos>", "") == choice.message.content
    assert not any("call" in place.token for place in places)
    teachers = relay["spans"][1]
    own, vocabulary = real.student.vocabulary, real.teacher.vocabulary
    before = sum(len(own.encode(span["text"])) for span in relay["spans"][:1])
    context = [*vocabulary.tokenizer(QUESTION)["input_ids"], *vocabulary.encode(relay["spans"][0]["text"])]
    ids = vocabulary.encode(teachers["text"])
    scores = by_hand(real.teacher, context + ids)[-len(ids) :]
    wanted = [float(row[token]) for row, token in zip(scores, ids, strict=True)]
    assert [p.logprob for p in places[before : before + len(ids)]] == pytest.approx(wanted, abs=1e-4)
    assert all(len(place.top_logprobs) == 2 and place.bytes == list(place.token.encode()) for place in places)
    *_, last = [c for c in chat(real.server, QUESTION, stream=True, **options) if c.choices]
    whole = chat(real.server, QUESTION, **options).choices[0].logprobs.content
    assert [p.token for p in last.choices[0].logprobs.content] == [p.token for p in whole]


def test_a_teacher_without_probabilities_leaves_its_tokens_unscored():
    scores = lambda ids, start: [-0.5] * (len(ids) - start)  # noqa: E731
    student = scripted(BYTE_LEVEL, "a<call>2</call>", "b" + END, scores=scores)
    with serving(pair_of(student, scripted(BYTE_LEVEL, "xy"))) as server:
        choice = chat(server, logprobs=True).choices[0]
    assert [(place.token, place.logprob) for place in choice.logprobs.content] == [
        *(("a", -0.5), ("x", None), ("y", None), ("b", -0.5), ("<eos>", -0.5))
    ]
    assert choice.model_extra["relay"]["all_scored"] is False


def test_the_responses_api(real):
    asked = {"model": "pair", "input": QUESTION, "temperature": 0, "max_output_tokens": 3}
    whole = real.client.responses.create(**asked)
    same = real.client.completions.create(model="pair", prompt=QUESTION, temperature=0, max_tokens=3)
    assert whole.output_text == same.choices[0].text and whole.status == "incomplete"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (len(QUESTION), 3)
    events = list(real.client.responses.create(**asked, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].response.output_text == whole.output_text
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    assert real.client.responses.create(**{**asked, "input": items}).output_text == whole.output_text
    refused = post(real.server, {**asked, "previous_response_id": "resp_1"}, "/v1/responses")
    assert refused.status_code == 400 and "previous_response_id is not supported" in refused.text


def test_tokens_as_vllm_gives_them(real):
    ids = real.student.vocabulary.encode(QUESTION)
    found = post(real.server, {"prompt": QUESTION, "return_token_strs": True}, "/tokenize").json()
    assert (found["count"], found["tokens"], found["max_model_len"]) == (len(ids), ids, real.student.max_context)
    assert found["token_strs"] == list(QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    assert post(real.server, {"model": "pair", "messages": messages}, "/tokenize").json()["tokens"] == ids
    assert post(real.server, {"tokens": ids}, "/detokenize").json() == {"prompt": QUESTION}
    for body, path in (({}, "/tokenize"), ({"tokens": [999]}, "/detokenize"), ({"prompt": "1", "n": 1}, "/tokenize")):
        assert post(real.server, body, path).status_code == 400


FROM_A_MODEL = {
    "role": "assistant",
    "content": None,
    "annotations": [],
    "tool_calls": None,
    "audio": None,
    "refusal": None,
}
MARKED = {"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [FROM_A_MODEL | {"reasoning_content": "Hm."}, {"role": "user", "content": QUESTION}]},
        {"messages": [{"role": "user", "content": [MARKED], "cache_control": {"type": "ephemeral"}, "name": ""}]},
        {"messages": [{"role": "user", "content": QUESTION, "unheard_of": []}], "also_unheard_of": None, "seed": -1},
        {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 10**9, "tools": None, "stop": None},
        {"messages": [{"role": "user", "content": QUESTION}], "chat_template_kwargs": {"enable_thinking": True}},
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "7"}]}
        | {"continue_final_message": True, "add_generation_prompt": False},
    ],
)
def test_what_asks_for_nothing_is_taken(real, body):
    reply = post(real.server, {"model": "pair", **body})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [{"role": "user", "content": "1", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template is no variable of a template"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"echo": True}, "echo is not supported"),
        ({"continue_final_message": True}, "continues the assistant's turn; the last one is the user's"),
        ({"messages": [{"role": "assistant", "content": "1"}]}, "set continue_final_message to true"),
        ({"unheard_of": 1}, "Unrecognized request argument supplied: unheard_of"),
    ],
)
def test_what_asks_for_more_is_refused_by_name(real, body, words):
    reply = post(real.server, {"model": "pair", "messages": [{"role": "user", "content": "1"}], **body})
    assert reply.status_code == 400 and words in json.loads(reply.text)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": "1", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "1", "logprobs": 21}, "logprobs"),
        ({"prompt": [[10**6]]}, "outside 0 to"),
    ],
)
def test_prompts_that_cannot_be_answered(real, body, words):
    reply = post(real.server, {"model": "pair", **body}, "/v1/completions")
    assert reply.status_code == 400 and words in reply.json()["error"]["message"]


def test_other_origins_may_ask_only_where_that_is_allowed(real):
    asked = {"Origin": "https://chat.example.com", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{real.url}/v1/models", headers=asked).headers
    server = RelayServer(pair_of(scripted(BYTE_LEVEL, END)), "pair", origins=["https://chat.example.com"])
    from starlette.testclient import TestClient

    client = TestClient(server.app())
    allowed = client.options("/v1/chat/completions", headers=asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
    other = client.get("/v1/models", headers={"Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers
