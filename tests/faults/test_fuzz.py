"""Any input gives a result or one clear error: call syntax, splice, replies, answers, rows, YAML.

In the suite each test draws a few cases; `make fuzz` (RELAY_TRL_FUZZ=1) draws the numbers in docs/reliability.md. A failure
that was found is kept as an `@example` or as a test beside the code.
"""

import asyncio
import json
import os
import random
import re
from collections import Counter
from types import SimpleNamespace

import httpx
import pytest
import yaml
from helpers import reference
from helpers import tokenizers as kinds
from helpers.scripted_relay import LETTERS, scripted
from helpers.serving import pair_of, serving
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trl import ModelConfig

from relay_trl.call_syntax import CallSyntax
from relay_trl.cli.endings import EXPECTED
from relay_trl.cli.parser import RecipeParser
from relay_trl.data.config import DataConfig
from relay_trl.data.sources import drop_ungradable, load_rows
from relay_trl.engines.base import EngineError, FinishReason, Generation
from relay_trl.engines.events import BrokenOff, stream_answer
from relay_trl.engines.replies import Replies
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.grading.grader import Grader, final_answer
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import Author, StopReason
from relay_trl.training import RelayGRPOConfig, RelaySFTConfig
from relay_trl.vocabulary import Vocabulary

IS_LONG = os.environ.get("RELAY_TRL_FUZZ") == "1"
SYNTAX = CallSyntax()
VOCABULARIES = {
    **{name: Vocabulary(build()) for name, build in kinds.KINDS.items()},
    "byte_level_tags": Vocabulary(kinds.byte_level(kinds.TAGS)),
    "llama2_tags": Vocabulary(kinds.llama2(kinds.TAGS)),
}
TABLES = {name: kinds.token_bytes(vocabulary.tokenizer) for name, vocabulary in VOCABULARIES.items()}


def cases(in_the_suite, in_the_long_run):
    return settings(max_examples=in_the_long_run if IS_LONG else in_the_suite)


def drawn(in_the_suite, in_the_long_run):
    """Generators of random numbers, one a case, so that a find is one number; draws that hypothesis would take long over."""
    for seed in range(in_the_long_run if IS_LONG else in_the_suite):
        yield seed, random.Random(seed)


PIECES = [
    "<call>",
    "</call>",
    "<",
    ">",
    "/",
    "call",
    "0",
    "1",
    "9" * 12,
    " ",
    "\n",
    "\t",
    "\u00a0",
    "３",
    "é",
    "\0",
    "\ud800",
]


def test_the_syntax_finds_what_the_reference_finds():
    for seed, chance in drawn(1_000, 100_000):
        text = "".join(
            chance.choice(PIECES) if chance.random() < 0.9 else chr(chance.randrange(0x110000))
            for _ in range(chance.randrange(14))
        )
        data = text.encode("utf-8", "surrogatepass")
        found, expected = SYNTAX.find(text), list(reference.COMMAND.finditer(data))
        numbers = [min(int(re.sub(rb"\D", b"", m[0])), 10**9) for m in expected]
        assert [command.n for command in found] == numbers, seed
        assert SYNTAX.remove(text).encode("utf-8", "surrogatepass") == reference.COMMAND.sub(b"", data), seed
        assert SYNTAX.count_malformed(text) == data.count(b"<call>") - len(expected) >= 0, seed
        assert all(text[c.start :].startswith("<call>") and text[: c.end].endswith("</call>") for c in found), seed


class Speller:
    """Any tokens that spell a text, as a model may sample them."""

    def __init__(self, table):
        self.by_bytes, self.table = {}, table
        for i, piece in enumerate(table):
            self.by_bytes.setdefault(piece, []).append(i)
        self.longest = max(map(len, table))

    def spell(self, text, chance):
        data, ids, at = text.encode(), [], 0
        while at < len(data):
            ends = range(at + 1, min(len(data), at + self.longest) + 1)
            ids.append(chance.choice([i for end in ends for i in self.by_bytes.get(data[at:end], ())]))
            at += len(self.table[ids[-1]])
        return ids


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_splice_takes_out_the_commands_and_nothing_else(name):
    vocabulary, table = VOCABULARIES[name], TABLES[name]
    speller = Speller(table)
    for seed, chance in drawn(100, 17_000):
        words = [chance.choice(reference.COMMANDS + reference.SNIPPETS) for _ in range(chance.randrange(8))]
        ids = speller.spell("".join(words), chance)
        text = reference.spelt(ids, table)
        kept = SYNTAX.remove_from_ids(ids, vocabulary.decode(ids), vocabulary)
        assert vocabulary.decode(kept).encode() == reference.COMMAND.sub(b"", text), seed
        assert reference.fits(kept, reference.outside(ids, table), table), seed


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_rollout_of_any_tokens_at_all_keeps_its_books(name):
    """Not texts but ids, so that characters are torn and tags come in pieces; end tokens stand anywhere."""
    vocabulary = VOCABULARIES[name]
    eos, call = vocabulary.eos_id, vocabulary.encode("<call>12</call>")

    def speaker(plans):
        plans = iter(plans)
        return ScriptedEngine(vocabulary, lambda context: next(plans, [eos]))

    for seed, chance in drawn(20, 4_000):
        turns = [[chance.randrange(vocabulary.size) for _ in range(chance.randrange(30))] for _ in range(4)]
        student = speaker([turn + call * chance.randrange(2) + [eos] for turn in turns])
        teacher = speaker([turn or [1] for turn in reversed(turns)])
        config = RelayRules(max_completion_length=60)
        trace = asyncio.run(relay(RelayPrompt([1, 2], [1, 2]), student, teacher, config, seed=seed))
        assert trace.num_tokens == len(trace.loss_mask) == len(trace.logprobs) == len(trace.completion_ids) <= 60, seed
        authors = [span.author is Author.STUDENT for span in trace.spans for _ in span.ids]
        assert [bool(mask) for mask in trace.loss_mask] == authors, seed
        assert all(p == 0.0 for p, mask in zip(trace.logprobs, trace.loss_mask, strict=True) if not mask), seed
        assert 0.0 <= trace.teacher_share <= 1.0 and trace.stop is not None, seed
        assert trace.completion_ids.count(eos) == (trace.stop in (StopReason.EOS, StopReason.TEACHER_EOS)), seed
        assert len(teacher.contexts) == sum(call.granted > 0 for call in trace.calls), seed


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3), max_leaves=6
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=9) | anything,
        "message": st.fixed_dictionaries({"content": st.text(max_size=9)}) | anything,
        "token_ids": st.lists(st.integers(-3, 400) | st.integers() | anything, max_size=4) | anything,
        "finish_reason": st.sampled_from(["stop", "length"]) | anything,
        "stop_reason": st.sampled_from(["</call>", 3]) | anything,
        "logprobs": st.fixed_dictionaries({"token_logprobs": st.lists(st.none() | st.floats(), max_size=4)}) | anything,
    },
)
answers = st.fixed_dictionaries({}, optional={"choices": st.lists(choices, max_size=2) | anything, "usage": anything})


@cases(100, 5_000)
@given(
    answer=answers | anything,
    api=st.sampled_from(["completions", "chat"]),
    flags=st.tuples(st.booleans(), st.booleans()),
)
@example({"choices": [{"message": True}]}, "completions", (False, False))
@example({"choices": [{"text": "", "token_ids": [-1], "finish_reason": "stop"}]}, "completions", (True, False))
@example({"choices": [{"text": "", "token_ids": [1 << 32], "finish_reason": "stop"}]}, "completions", (True, False))
def test_any_json_of_a_server_is_a_generation_or_an_engine_error(answer, api, flags):
    has_vocabulary, needs_logprobs = flags
    vocabulary = VOCABULARIES["byte_level"] if has_vocabulary or needs_logprobs else None
    replies = Replies("http://server/v1", api, ("sk-planted",), 9.0, 1)
    try:
        found = replies.read(answer, ("</call>",), vocabulary, needs_logprobs)
    except EngineError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    assert isinstance(found, Generation) and isinstance(found.text, str) and isinstance(found.finish, FinishReason)
    assert found.ids is None or all(type(i) is int and i >= 0 for i in found.ids)
    assert found.logprobs is None or len(found.logprobs) == len(found.ids)


# --- answers ---

MATH = [
    r"\frac{1}{2}",
    r"\sqrt{",
    "}",
    "{",
    "x",
    "y^2",
    "=",
    "9^{9^{9^9}}",
    r"\left(",
    r"\right)",
    ",",
    "1,000",
    "0.5",
    "-",
    "+",
    "/",
    "1e400",
]
MATH += [
    r"\text{east}",
    r"\%",
    "%",
    "$",
    r"\pi",
    r"\infty",
    "(1, 2)",
    "[0, 1)",
    r"\cup",
    r"\{1,2\}",
    "°",
    "²",
    "\0",
    "é",
    "\ud800",
    "!",
    "_{2}",
    "^",
]
MATH += [
    r"\begin{pmatrix}1&2\end{pmatrix}",
    r"\boxed{",
    r"\int_0^1",
    r"\sum",
    "factorial(9999)",
    "10!!!!",
    "**",
    "1" * 40,
    " ",
    "\n",
    "\\",
    r"\\",
]


def answer_of(chance):
    return "".join(chance.choice(MATH) for _ in range(chance.randrange(1, 9)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_grader_judges_whatever_it_is_given(seed):
    chance, count = random.Random(seed), 2000 if IS_LONG else 12
    golds = [answer_of(chance) for _ in range(count)]
    answers = [answer_of(chance) if chance.random() < 0.5 else gold for gold in golds]
    with Grader(time_limit_s=0.5) as grader:
        verdicts = grader.grade([rf"so \boxed{{{answer}}}" for answer in answers], golds)
        assert len(verdicts) == count and all(type(verdict) is bool for verdict in verdicts)
        for gold, answer, verdict in zip(golds, answers, verdicts, strict=True):
            if answer == gold and grader.is_gradable(gold):
                assert verdict, f"{gold!r} does not equal itself"
            if not grader.is_gradable(gold):
                assert not verdict, f"{gold!r} matches nothing, and {answer!r} passed"
        assert grader.grade([r"\boxed{\frac{1}{2}}"], ["0.5"]) == [True]  # it lives


@cases(100, 5_000)
@given(
    text=st.lists(st.sampled_from(MATH) | st.text(max_size=4), max_size=30).map("".join),
    marker=st.sampled_from([None, "#", "####"]),
)
def test_the_final_answer_of_any_text(text, marker):
    found = final_answer(text, marker)
    assert found is None or (found in text and found == found.strip())


# --- rows and YAML ---


@pytest.mark.slow
@cases(25, 500)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["problem", "answer", "prompt", "x", ""]), anything, max_size=4), max_size=4
    ),
    tail=st.binary(max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_any_file_of_rows_is_rows_or_one_sentence(tmp_path_factory, rows, tail):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass") + tail)
    try:
        loaded = load_rows(str(path))
        with Grader() as grader:
            loaded = drop_ungradable(loaded, grader, str(path))
    except EXPECTED as error:
        assert str(error).strip()
        return
    assert loaded and all({"prompt", "answer"} <= set(row) and grader.is_gradable(row["answer"]) for row in loaded)


OPTIONS = {RelayGRPOConfig: "grpo_relay", RelaySFTConfig: "sft_warmup"}
FIELDS = sorted(
    {*RelayGRPOConfig.__dataclass_fields__, *DataConfig.__dataclass_fields__}
    - {"env", "deepspeed", "fsdp", "fsdp_config", "parallelism_config"}
)


@pytest.mark.slow
@cases(25, 2_000)
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS) | st.text(min_size=1, max_size=8), anything, max_size=3),
    raw=st.none() | st.text(max_size=40),
)
@example({"open_tag": [None]}, None)
@example({"extra_rewards": [{"a": 1}]}, None)
def test_any_yaml_is_a_config_or_one_sentence(tmp_path_factory, changes, raw):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    base = {"dataset": "arithmetic", "output_dir": "runs/fuzz", "use_cpu": True, "bf16": False, "report_to": "none"}
    text = raw if raw is not None else yaml.safe_dump({**base, **changes})
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        RecipeParser((DataConfig, RelayGRPOConfig, ModelConfig)).parse(["--config", str(path)])
    except EXPECTED as error:
        assert str(error).strip()


@pytest.mark.parametrize("value", ["[]", "{a: 1}", "3"])
def test_a_text_option_that_is_no_text_is_one_sentence(tmp_path, value):
    path = tmp_path / "any.yaml"
    path.write_text(
        f"{{dataset: arithmetic, output_dir: runs/fuzz, use_cpu: true, bf16: false, metric_for_best_model: {value}}}"
    )
    with pytest.raises(ValueError, match="metric_for_best_model is .*; it must be a text"):
        RecipeParser((DataConfig, RelayGRPOConfig, ModelConfig)).parse(["--config", str(path)])


# --- streams and requests ---

chunk_parts = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=5) | anything,
        "delta": st.fixed_dictionaries({}, optional={"content": st.text(max_size=5) | anything}) | anything,
        "token_ids": st.lists(st.integers(-2, 300) | st.integers() | anything, max_size=3) | anything,
        "finish_reason": st.sampled_from(["stop", "length"]) | anything,
        "stop_reason": anything,
        "logprobs": st.fixed_dictionaries({"token_logprobs": anything, "content": anything}) | anything,
    },
)
chunks = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(chunk_parts, max_size=2) | anything, "usage": anything}
)
lines = (chunks | anything).map(lambda chunk: "data: " + json.dumps(chunk)) | st.text(max_size=20)
lines = lines | st.sampled_from(
    ["data: [DONE]", ": keep-alive", "", "event: x", 'data: {"error": "no"}', "data: {", "data:NaN"]
)


@cases(150, 10_000)
@given(sent=st.lists(lines, max_size=6), flags=st.tuples(st.booleans(), st.booleans()))
@example(['data: {"choices": [{"delta": 1}]}'], (False, False))
@example(['data: {"choices": [{"text": "a", "token_ids": [-1]}]}'], (True, False))
@example(['data: {"choices": [{"text": "a", "logprobs": 3}]}'], (True, True))
def test_any_stream_of_events_is_an_answer_or_an_engine_error(sent, flags):
    has_vocabulary, needs_logprobs = flags
    vocabulary = VOCABULARIES["byte_level"] if has_vocabulary or needs_logprobs else None
    replies, heard = Replies("http://server/v1", "completions", ("sk-planted",), 9.0, 1), []

    class Content:
        async def iter_any(self):
            yield "\n".join(sent).encode(errors="replace")

    response = SimpleNamespace(content=Content())

    def listen(tokens):
        heard.append(vocabulary.decode(tokens) if isinstance(tokens, list) else tokens)

    try:
        answer = asyncio.run(stream_answer(response, replies, vocabulary, listen))
        replies.read(answer, ("</call>",), vocabulary, needs_logprobs)
    except BrokenOff:
        assert not heard  # nothing came: the request is sent again
    except EngineError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    assert all(isinstance(text, str) for text in heard)


KNOWN = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "stream",
    "logprobs",
    "user",
]
KNOWN += [
    "max_calls",
    "max_teacher_tokens",
    "call_bias",
    "use_teacher",
    "show_commands",
    "stream_options",
    "tools",
    "logit_bias",
]
GOOD = {
    "/v1/chat/completions": {"model": "pair", "messages": [{"role": "user", "content": "Q:"}], "max_tokens": 8},
    "/v1/completions": {"model": "pair", "prompt": "Q:", "max_tokens": 8},
}


def value_of(chance, depth=0):
    kinds_of = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**40,
        -(2**70),
        0.5,
        float("nan"),
        float("inf"),
        "",
        "pair",
        "Q:",
        "<call>9</call>",
        "\ud800",
        "\0",
    ]
    if depth < 3 and chance.random() < 0.3:
        some = range(chance.randrange(4))
        if chance.random() < 0.5:
            return [value_of(chance, depth + 1) for _ in some]
        return {chance.choice(["role", "content", "type", "text", "x"]): value_of(chance, depth + 1) for _ in some}
    return chance.choice(kinds_of)


def request_of(chance):
    """Method, path, headers and body of a request that somebody may send."""
    path = chance.choice(
        [*GOOD] * 6 + ["/v1/models", "/health", "/", "/v1/nothing", "/metrics", "/../etc/passwd", "/v1/%00"]
    )
    body = dict(GOOD.get(path, {}))
    for _ in range(chance.randrange(4)):
        body[chance.choice(KNOWN) if chance.random() < 0.9 else "x"] = value_of(chance)
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    kind = chance.random()
    if kind < 0.1:
        data = data[: chance.randrange(len(data) + 1)]
    elif kind < 0.2:
        data = bytes(chance.randrange(256) for _ in range(chance.randrange(60)))
    elif kind < 0.23:
        data = b"[" * 5000
    headers = {
        "content-type": chance.choice(["application/json"] * 8 + ["text/plain", "", "application/json; charset=x"])
    }
    if chance.random() < 0.1:
        headers["authorization"] = chance.choice(["Bearer", "Bearer \xff", "Basic eDp5", "Bearer x y"])
    method = chance.choice(["POST"] * 12 + ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    return method, path, headers, data


def test_whatever_is_sent_to_the_server_gets_an_answer_and_the_server_lives():
    said = [("ab<call>3</call>", "gh\0"), ("def",)]
    pair = pair_of(scripted(LETTERS, *said[0] * 9), scripted(LETTERS, *said[1] * 9))
    statuses = Counter()
    with serving(pair) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        for seed, chance in drawn(120, 5_000):
            method, path, headers, data = request_of(chance)
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = client.request(method, path, headers=raw, content=data)
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, f"seed {seed}: {method} {path} {data[:300]!r} -> {answer.text[:300]}"
            if answer.status_code >= 400 and path.startswith("/v1/") and method == "POST":
                assert answer.json()["error"]["message"], f"seed {seed}"
        good = client.post("/v1/completions", json=GOOD["/v1/completions"])
        assert good.status_code == 200 and statuses[200] > 5 and statuses[400] > 5, statuses
    print(dict(statuses))
