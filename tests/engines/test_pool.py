"""Several real servers as one teacher: which server is asked, and what happens when one dies and comes back."""

import asyncio
import time
from collections import Counter

import pytest
import yaml
from helpers.openai_server import GREEDY, VOCABULARY, Server, reply, run
from helpers.scripted_relay import END, scripted
from helpers.tokenizers import byte_level

from relay_trl.cli.parser import RecipeParser
from relay_trl.engines import pool as pool_module
from relay_trl.engines.base import EngineError
from relay_trl.engines.loading import load_engine
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.training import RelayGRPOConfig

ROLLOUTS = 8


@pytest.fixture
def servers():
    servers = [Server(), Server()]
    yield servers
    for server in servers:
        server.close()


@pytest.fixture
def pool(servers):
    pool = load_engine(" ".join(server.url for server in servers), tokenizer=byte_level(), max_retries=1)
    forget(servers)
    return pool


def forget(servers):
    for server in servers:
        server.requests.clear()


def rollouts(pool, calls=3):
    """Relays that each call so often and have a teacher's prompt of their own."""
    jobs = []
    for k in range(ROLLOUTS):
        student = scripted(VOCABULARY, *["<call>2</call>"] * calls, END)
        prompt = RelayPrompt(VOCABULARY.encode("Q:"), VOCABULARY.encode(f"problem {k}:"))
        jobs.append(relay(prompt, student, pool, RelayRules(max_calls=calls), seed=k))
    return run(pool, *jobs)


def asked(server):
    """Requests per rollout that a server has seen."""
    texts = [VOCABULARY.decode(r["prompt"]) for r in server.requests if isinstance(r["prompt"], list)]
    return Counter(text.partition(":")[0] for text in texts if text.startswith("problem"))


def test_rollouts_share_the_servers_and_each_stays_with_one(servers, pool):
    for server in servers:
        server.delay_s = 0.02
    traces = rollouts(pool)
    assert all(trace.teacher_tokens == 2 * 3 for trace in traces)
    first, second = map(asked, servers)
    assert not first.keys() & second.keys()
    assert len(first) == len(second) == ROLLOUTS // 2
    assert set(first.values()) == set(second.values()) == {3}


def test_requests_of_no_rollout_go_where_least_is_under_way(servers, pool):
    servers[0].delay_s = 0.3
    context = VOCABULARY.encode("Q:")

    async def one_after_the_other():
        slow = asyncio.create_task(pool.generate(context, 2, (), GREEDY))
        await asyncio.sleep(0.05)
        for _ in range(3):
            await pool.generate(context, 2, (), GREEDY)
        await slow

    run(pool, one_after_the_other())
    assert [len(server.requests) for server in servers] == [1, 3]


def test_a_server_that_dies_is_left_out_and_comes_back(servers, pool):
    rollouts(pool)
    servers[0].close()
    forget(servers)
    started = time.monotonic()
    traces = rollouts(pool)
    assert not any(trace.has_failed for trace in traces)
    assert len(servers[1].requests) == 3 * ROLLOUTS

    servers[0] = Server(port=servers[0].port)
    time.sleep(max(0.0, started + 1.1 - time.monotonic()))
    assert not any(trace.has_failed for trace in rollouts(pool))
    forget(servers)
    rollouts(pool)
    assert [len(asked(server)) for server in servers] == [ROLLOUTS // 2] * 2


def test_a_rollout_whose_server_dies_goes_on_at_another(servers, pool):
    context = VOCABULARY.encode("Q:")

    async def ask(has_died):
        await pool.generate(context, 2, (), GREEDY)
        await has_died.wait()
        await pool.generate(context, 2, (), GREEDY)

    async def both():
        has_died = asyncio.Event()
        asking = asyncio.gather(ask(has_died), ask(has_died))
        while not all(server.requests for server in servers):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(servers[0].close)
        has_died.set()
        await asking
        servers[0] = Server(port=servers[0].port)

    run(pool, both())
    assert len(servers[1].requests) == 3


def test_a_server_that_comes_back_with_another_model_stays_out(servers, pool, caplog):
    servers[0].close()
    started = time.monotonic()
    rollouts(pool)
    servers[0] = Server(port=servers[0].port, models=("large",))
    time.sleep(max(0.0, started + 1.1 - time.monotonic()))
    assert not any(trace.has_failed for trace in rollouts(pool))
    assert not servers[0].requests
    assert "does not serve 'tiny' but 'large'" in caplog.text


def test_a_wrong_request_is_nobodys_failure(servers, pool):
    servers[0].faults = [reply(400, {"error": {"message": "too long"}})]
    with pytest.raises(EngineError, match="status 400"):
        run(pool, pool.generate(VOCABULARY.encode("Q:"), 2))
    run(pool, *(pool.generate(VOCABULARY.encode("Q:"), 2) for _ in range(4)))
    assert [len(server.requests) for server in servers] == [3, 2]


def test_a_listener_of_a_pool_hears_each_token_once(servers, pool):
    told = [[] for _ in range(6)]

    async def ask(heard):
        return await pool.generate(VOCABULARY.encode("Q:"), 16, (), GREEDY, heard.append)

    answers = run(pool, *map(ask, told))
    assert all(servers[k].requests for k in (0, 1))
    for answer, heard in zip(answers, told, strict=True):
        assert sum(heard, []) == answer.ids == [*VOCABULARY.encode(" 42"), VOCABULARY.eos_id]


def test_a_stream_whose_server_dies_before_its_first_token_goes_to_another(servers, pool):
    servers[0].break_off, told = 0, []
    answer = run(pool, pool.generate(VOCABULARY.encode("Q:"), 16, (), GREEDY, told.append))[0]
    assert sum(told, []) == answer.ids == [*VOCABULARY.encode(" 42"), VOCABULARY.eos_id]
    assert [len(server.requests) for server in servers] == [1, 1]


def test_a_stream_whose_server_dies_in_the_middle_is_not_told_twice(servers, pool):
    servers[0].break_off, told = 2, []

    async def ask():
        with pytest.raises(EngineError, match="broke off an answer") as caught:
            await pool.generate(VOCABULARY.encode("Q:"), 16, (), GREEDY, told.append)
        next_one = await pool.generate(VOCABULARY.encode("Q:"), 16, (), GREEDY)  # the dead one is left out
        return caught.value, next_one

    error, next_one = run(pool, ask())[0]
    assert sum(told, []) == error.written.ids == VOCABULARY.encode(" 42")[:2]
    assert next_one.text == " 42" and [len(server.requests) for server in servers] == [1, 1]


def test_when_all_are_down_it_is_one_sentence(servers, pool, monkeypatch):
    monkeypatch.setattr(pool_module, "_FIRST_PAUSE_S", 0.05)
    for k in (0, 1):
        servers[k].close()
    traces = rollouts(pool)
    assert all(trace.has_failed for trace in traces)
    assert "None of the 2 servers of the pool answers. The last fault: http://127.0.0.1:" in traces[0].error
    for k in (0, 1):
        servers[k] = Server(port=servers[k].port)
    time.sleep(0.3)
    assert not any(trace.has_failed for trace in rollouts(pool))


def test_a_pool_has_the_least_context(servers):
    get = servers[1]._http.RequestHandlerClass.do_GET

    def shorter(handler):
        handler.reply(200, {"data": [{"id": "tiny", "max_model_len": 256}]})

    servers[1]._http.RequestHandlerClass.do_GET = shorter
    assert load_engine(" ".join(server.url for server in servers), api="chat").max_context == 256
    servers[1]._http.RequestHandlerClass.do_GET = get


def test_servers_of_different_models_are_refused(servers):
    servers[1].models = ["large"]
    with pytest.raises(EngineError, match="different models .*'tiny', .*'large'"):
        load_engine(f"{servers[0].url} {servers[1].url}", tokenizer=byte_level())


def test_a_server_with_another_vocabulary_is_refused(servers):
    servers[1].edit = lambda answer: answer["choices"][0].update(prompt_token_ids=[1, 2])
    with pytest.raises(EngineError, match="give the tokenizer of the model it serves"):
        load_engine(f"{servers[0].url} {servers[1].url}", tokenizer=byte_level())


def test_ids_here_and_text_there_are_refused(servers):
    servers[1].has_ids = False
    with pytest.raises(EngineError, match="token ids here and text there"):
        load_engine(f"{servers[0].url} {servers[1].url}", tokenizer=byte_level())


def test_a_server_named_twice_is_refused(servers):
    with pytest.raises(ValueError, match="named 2 times"):
        load_engine(f"{servers[0].url} {servers[0].url}")


@pytest.mark.parametrize("config", [EvaluationConfig, RelayGRPOConfig])
def test_recipes_take_a_list_of_servers(config, tmp_path):
    urls = ["http://one:8001/v1", "http://two:8001/v1"]
    path = tmp_path / "config.yaml"
    needed = {"student": "s", "benchmarks": ["b"]} if config is EvaluationConfig else {"bf16": False}
    path.write_text(yaml.safe_dump({**needed, "teacher": urls}))
    (from_yaml,) = RecipeParser((config,)).parse(["--config", str(path)])
    (from_the_command_line,) = RecipeParser((config,)).parse(["--config", str(path), "--teacher", *reversed(urls)])
    assert from_yaml.teacher == " ".join(urls)
    assert from_the_command_line.teacher == " ".join(reversed(urls))
    with pytest.raises(ValueError, match="each must be a URL of a server; 'my/teacher' is none"):
        RecipeParser((config,)).parse(["--config", str(path), "--teacher", urls[0], "my/teacher"])


def test_a_pool_scores_with_whichever_server_answers(servers, pool):
    ids = VOCABULARY.encode("17 + 25 = 42")
    for server in servers:
        server.edit = lambda answer: answer["choices"][0].update(
            prompt_logprobs=[None, *({str(t): {"logprob": -1.0}} for t in ids[1:])]
        )
    servers[0].close()
    assert run(pool, pool.score(ids, 2))[0] == [-1.0] * (len(ids) - 2)
    assert len(servers[1].requests) == 1
