"""vLLM in this process and behind HTTP, with a tiny random model: exact ids, seeds, stop strings, and a whole relay."""

import asyncio
import math
import os

import pytest
from helpers.calling import Calling

from relay_trl.call_syntax import CallSyntax
from relay_trl.engines.base import EngineError, FinishReason, Sampling
from relay_trl.engines.loading import load_engine
from relay_trl.engines.openai import OpenAIEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import Author, Outcome
from relay_trl.vocabulary import Vocabulary

pytestmark = pytest.mark.vllm

GREEDY = Sampling(temperature=0.0)
PROMPT = "so the call is 10 and "
CUT = "\ufffd"  # a server leaves out a character that its last tokens only begin


@pytest.fixture
def prompt_ids(vllm_engine):
    return vllm_engine.vocabulary.encode(PROMPT)


def run(engine, *coroutines):
    async def all_of_them():
        try:
            return await asyncio.gather(*coroutines)
        finally:
            if isinstance(engine, OpenAIEngine):
                await engine.aclose()

    return asyncio.run(all_of_them())


def sample(engine, context, seeds, max_tokens=24, stop=(), temperature=1.0):
    samplings = [Sampling(temperature=temperature, seed=seed) for seed in seeds]
    return run(engine, *(engine.generate(context, max_tokens, stop, sampling) for sampling in samplings))


@pytest.fixture(scope="module")
def ending_seed(vllm_engine):
    """A seed whose answer to the prompt ends by itself within 60 tokens."""
    answers = sample(vllm_engine, vllm_engine.vocabulary.encode(PROMPT), range(16), 60)
    return next(seed for seed, answer in enumerate(answers) if answer.finish is FinishReason.EOS)


def assert_stops_inside_a_token(engine, context):
    """The stop string is a piece of a token that the model is known to write; the token comes back whole."""
    vocabulary = engine.vocabulary
    [free] = sample(engine, context, [0])
    texts = [vocabulary.decode([token]) for token in free.ids]
    place = next(
        k
        for k, text in enumerate(texts)
        if len(text) > 1 and text.isascii() and text[0] not in vocabulary.decode(free.ids[:k])
    )
    [cut] = sample(engine, context, [0], stop=(texts[place][0],))
    assert cut.ids == free.ids[: place + 1]
    assert cut.finish is FinishReason.STOP
    assert cut.text.endswith(texts[place])


def test_the_same_seed_gives_the_same_tokens_in_any_batch(vllm_engine, prompt_ids):
    [alone] = sample(vllm_engine, prompt_ids, [3])
    crowd = sample(vllm_engine, prompt_ids, range(20))
    assert crowd[3].ids == alone.ids
    assert len({tuple(answer.ids) for answer in crowd}) == 20


def block_size(engine):
    return engine.llm.llm_engine.vllm_config.cache_config.block_size


def test_requests_join_while_others_run(vllm_engine, prompt_ids):
    async def staggered():
        first = asyncio.create_task(vllm_engine.generate(prompt_ids, 60, (), Sampling(seed=1)))
        for _ in range(10):
            await asyncio.sleep(0)
        second = await vllm_engine.generate(prompt_ids, 5, (), Sampling(seed=2))
        was_running = not first.done()
        await first
        return was_running, second

    was_running, second = asyncio.run(staggered())
    assert was_running
    assert second.ids == sample(vllm_engine, prompt_ids, [2], max_tokens=5)[0].ids


def long_contexts(engine):
    contexts = [engine.vocabulary.encode(f"{n}{n}" + " the sum of ab and 10" * 28) for n in range(16)]
    limit = engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert sum(map(len, contexts)) > limit
    return contexts


def test_seeded_contexts_that_are_too_long_to_be_read_together(vllm_engine):
    contexts = long_contexts(vllm_engine)

    def answers(contexts):
        return run(vllm_engine, *(vllm_engine.generate(c, 8, (), Sampling(seed=1)) for c in contexts))

    assert [answer.ids for answer in answers(contexts)[-2:]] == [answers([c])[0].ids for c in contexts[-2:]]


def test_an_answer_is_cut_at_max_tokens(vllm_engine, prompt_ids):
    [answer] = sample(vllm_engine, prompt_ids, [0], max_tokens=7)
    assert (len(answer.ids), len(answer.logprobs), answer.finish) == (7, 7, FinishReason.LENGTH)
    assert all(logprob <= 0 for logprob in answer.logprobs)


def test_the_end_token_is_kept(vllm_engine, prompt_ids, ending_seed):
    [answer] = sample(vllm_engine, prompt_ids, [ending_seed], max_tokens=60)
    assert answer.ids[-1] == vllm_engine.vocabulary.eos_id
    assert len(answer.logprobs) == len(answer.ids)
    assert "<eos>" not in answer.text


def test_every_end_token_ends(vllm_engine, tiny_tokenizer, prompt_ids):
    from relay_trl.engines.vllm import VLLMEngine

    [free] = sample(vllm_engine, prompt_ids, [0])
    other = free.ids[5]
    engine = VLLMEngine(vllm_engine.llm, Vocabulary(tiny_tokenizer, [other]))
    [answer] = sample(engine, prompt_ids, [0])
    assert answer.ids == free.ids[: free.ids.index(other) + 1]
    assert answer.finish is FinishReason.EOS


def test_a_stop_string_in_the_text_of_the_end_token_is_an_end(vllm_engine, prompt_ids, ending_seed):
    [free] = sample(vllm_engine, prompt_ids, [ending_seed], max_tokens=60)
    [stopped] = sample(vllm_engine, prompt_ids, [ending_seed], max_tokens=60, stop=("eos>",))
    assert (stopped.ids, stopped.finish) == (free.ids, FinishReason.EOS)


def test_a_stop_string_may_end_inside_a_token(vllm_engine, prompt_ids):
    assert_stops_inside_a_token(vllm_engine, prompt_ids)


@pytest.mark.parametrize("has_stop", [False, True])
def test_a_listener_hears_the_tokens_as_they_are_written(vllm_engine, prompt_ids, ending_seed, has_stop):
    [free] = sample(vllm_engine, prompt_ids, [ending_seed], 60)
    letters = [vllm_engine.vocabulary.decode([token]) for token in free.ids[:-1]]
    # As in a relay, a stop string that is not met: vLLM then holds back the text, but not the ids
    never = "<call>"
    met = next(text for text in letters[3:] if text.isascii() and text not in "".join(letters[:3]))
    for stop in ((met,), (never,)) if has_stop else ((),):
        told = []

        async def listened(stop=stop, told=told):
            sampling = Sampling(temperature=1.0, seed=ending_seed)
            heard = vllm_engine.generate(prompt_ids, 60, stop, sampling, told.append)
            silent = vllm_engine.generate(prompt_ids, 60, stop, sampling)
            return await asyncio.gather(heard, silent)

        heard, silent = asyncio.run(listened())
        assert [token for piece in told for token in piece] == heard.ids == silent.ids
        assert heard.finish is (FinishReason.STOP if stop == (met,) else FinishReason.EOS)
        assert len(told) > 1 and all(len(piece) == 1 for piece in told), "not told step by step"
    assert not vllm_engine._listeners


def test_an_abandoned_request_is_aborted(vllm_engine, prompt_ids):
    async def abandon():
        task = asyncio.create_task(vllm_engine.generate(prompt_ids, 400, (), Sampling(seed=1)))
        other = asyncio.create_task(vllm_engine.generate(prompt_ids, 30, (), Sampling(seed=2)))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await other

    assert asyncio.run(abandon()).ids == sample(vllm_engine, prompt_ids, [2], max_tokens=30)[0].ids
    assert vllm_engine.llm.llm_engine.get_num_unfinished_requests() == 0


def test_a_repeated_context_comes_from_the_cache(vllm_engine):
    context = vllm_engine.vocabulary.encode("the sum of ab and 10 is so " * 12)
    [first] = sample(vllm_engine, context, [0], max_tokens=2)
    [second] = sample(vllm_engine, context, [0], max_tokens=2)
    assert (first.prompt_tokens, first.cached_tokens) == (len(context), 0)
    assert second.prompt_tokens == len(context)
    assert len(context) - second.cached_tokens <= block_size(vllm_engine)


def test_a_context_that_is_too_long_is_one_sentence(vllm_engine, prompt_ids):
    with pytest.raises(EngineError, match="refuses a context of .* its limit is 512 tokens"):
        sample(vllm_engine, prompt_ids * 100, [0])
    assert vllm_engine.max_context == 512


def test_scores_are_those_of_the_drawn_tokens_here_and_behind_http(vllm_engine, teacher, prompt_ids):
    answers = sample(vllm_engine, prompt_ids, range(4))
    texts = [prompt_ids + answer.ids for answer in answers]
    for engine in (vllm_engine, teacher):
        scores = run(engine, *(engine.score(ids, len(prompt_ids)) for ids in texts))
        for answer, found in zip(answers, scores, strict=True):
            assert found == pytest.approx(answer.logprobs, abs=1e-3)
    with pytest.raises(EngineError, match="refuses a context of 600 tokens"):
        run(vllm_engine, vllm_engine.score([5] * 600, 1))


def test_text_is_refused(vllm_engine):
    with pytest.raises(ValueError, match="list of token ids, not str"):
        sample(vllm_engine, "so", [0])


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(EngineError, match="vLLM could not load"):
        load_engine(str(tmp_path / "nothing"), backend="vllm")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ


@pytest.fixture(scope="module")
def teacher(vllm_server, tiny_tokenizer):
    """The served model, found and checked through its URL alone."""
    engine = load_engine(vllm_server)
    assert engine.vocabulary.tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert (engine.model, engine.max_context, engine.gives_ids) == ("tiny", 512, True)
    return engine


def test_a_server_writes_what_the_engine_in_this_process_writes(teacher, vllm_engine, prompt_ids):
    [here] = sample(vllm_engine, prompt_ids, [0], temperature=0.0)
    [there] = sample(teacher, prompt_ids, [0], temperature=0.0)
    assert (there.ids, there.text, there.finish) == (here.ids, here.text, here.finish)
    [here] = sample(vllm_engine, prompt_ids, [5])
    [there] = sample(teacher, prompt_ids, [5])
    assert there.ids == here.ids


def test_a_server_keeps_the_end_token(teacher, vllm_engine, prompt_ids, ending_seed):
    [here] = sample(vllm_engine, prompt_ids, [ending_seed], max_tokens=60)
    [there] = sample(teacher, prompt_ids, [ending_seed], max_tokens=60)
    assert there.ids == here.ids
    assert there.ids[-1] == teacher.vocabulary.eos_id
    assert (there.finish, there.text) == (FinishReason.EOS, here.text)


def test_a_server_stops_inside_a_token(teacher, prompt_ids):
    assert_stops_inside_a_token(teacher, prompt_ids)


def test_a_server_gives_a_student_its_logprobs(vllm_server, tiny_tokenizer, vllm_engine, prompt_ids):
    student = load_engine(vllm_server, tokenizer=tiny_tokenizer, needs_logprobs=True)
    [here] = sample(vllm_engine, prompt_ids, [5], temperature=0.5)
    [there] = sample(student, prompt_ids, [5], temperature=0.5)
    assert there.ids == here.ids
    assert there.logprobs == pytest.approx(here.logprobs, abs=1e-3)


def test_a_bias_is_on_what_is_drawn_and_on_its_logprob(vllm_engine, vllm_server, tiny_tokenizer, prompt_ids):
    student = load_engine(vllm_server, tokenizer=tiny_tokenizer, needs_logprobs=True)
    [free] = sample(vllm_engine, prompt_ids, [0], max_tokens=1, temperature=0.0)
    favourite = free.ids[0]
    for engine in (vllm_engine, student):
        raised = Sampling(temperature=0.0, logit_bias={favourite: 5.0})
        barred = Sampling(seed=1, logit_bias={favourite: -math.inf})
        requests = [engine.generate(prompt_ids, 1, (), sampling) for sampling in (raised, *[barred] * 20)]
        first, *others = run(engine, *requests)
        # exp(5) times the odds: what the model gave to all other tokens together is left over.
        rest = (1 - math.exp(free.logprobs[0])) / math.exp(free.logprobs[0] + 5.0)
        assert first.ids == free.ids and first.logprobs[0] == pytest.approx(-math.log1p(rest), abs=1e-3)
        assert all(other.ids[0] != favourite for other in others)


def test_a_repetition_penalty_is_that_of_the_transformers_engine(
    vllm_engine, vllm_server, tiny_tokenizer, tiny_model_path, prompt_ids
):
    from relay_trl.engines.transformers import TransformersEngine

    student = load_engine(vllm_server, tokenizer=tiny_tokenizer, needs_logprobs=True)
    sampling = Sampling(temperature=0.0, repetition_penalty=1.5)
    engines = (TransformersEngine.load(str(tiny_model_path)), vllm_engine, student)
    [expected], *others = [run(engine, engine.generate(prompt_ids, 12, (), sampling)) for engine in engines]
    for [answer] in others:
        assert answer.ids == expected.ids and answer.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    [free] = sample(vllm_engine, prompt_ids, [0], max_tokens=12, temperature=0.0)
    assert free.logprobs != pytest.approx(expected.logprobs, abs=1e-3)


def test_a_server_reads_long_seeded_contexts(teacher, vllm_engine):
    contexts = long_contexts(vllm_engine)
    answers = run(teacher, *(teacher.generate(c, 8, (), Sampling(seed=1)) for c in contexts))
    assert all(answer.ids for answer in answers)


def test_a_server_takes_text(vllm_server, vllm_engine, prompt_ids):
    engine = OpenAIEngine(vllm_server, "tiny")
    [answer] = sample(engine, PROMPT, [0], temperature=0.0)
    [here] = sample(vllm_engine, prompt_ids, [0], temperature=0.0)
    assert answer.ids is None
    assert answer.text.rstrip(CUT) == here.text.rstrip(CUT)
    assert answer.num_tokens == len(here.ids)


def test_a_server_continues_a_chat(vllm_server, vllm_engine):
    engine = load_engine(vllm_server, api="chat")
    messages = [{"role": "user", "content": "17 + 25"}, {"role": "assistant", "content": "It is"}]
    [answer] = sample(engine, messages, [0], temperature=0.0)
    context = vllm_engine.vocabulary.encode("<user>17 + 25|<assistant>It is")
    [here] = sample(vllm_engine, context, [0], temperature=0.0)
    assert answer.text.rstrip(CUT) == here.text.rstrip(CUT)


def test_a_server_names_what_it_serves(vllm_server):
    with pytest.raises(EngineError, match="does not serve 'large' but 'tiny'"):
        load_engine(vllm_server, model="large")


def test_a_context_that_is_too_long_for_a_server_says_so(teacher, prompt_ids):
    with pytest.raises(EngineError, match="status 400 .*512"):
        sample(teacher, prompt_ids * 100, [0])


def test_a_relay_is_the_same_with_a_teacher_here_or_behind_http(vllm_engine, teacher, prompt_ids):
    config = RelayRules(max_completion_length=80, student=GREEDY, teacher=GREEDY, syntax=CallSyntax(), max_calls=3)
    student = Calling(vllm_engine, config.syntax)
    prompts = [prompt_ids + vllm_engine.vocabulary.encode(f"{n} ") for n in range(6)]

    def traces(engine):
        rollouts = [relay(RelayPrompt(ids, ids), student, engine, config, seed=k) for k, ids in enumerate(prompts)]
        return run(engine, *rollouts)

    here, there = traces(vllm_engine), traces(teacher)
    assert [trace.completion_ids for trace in there] == [trace.completion_ids for trace in here]
    assert [trace.stop for trace in there] == [trace.stop for trace in here]
    calls = [call for trace in there for call in trace.calls]
    assert any(call.outcome is Outcome.ANSWERED and call.delivered == 9 for call in calls)
    assert all(span.logprobs for trace in there for span in trace.spans if span.author is Author.STUDENT)


def test_a_turn_computes_what_is_new_and_at_most_one_block_more(vllm_engine, teacher, prompt_ids):
    config = RelayRules(max_completion_length=200, student=GREEDY, teacher=GREEDY, syntax=CallSyntax(), max_calls=3)
    prompt = prompt_ids + vllm_engine.vocabulary.encode("the sum of ab and 10 is so " * 12)
    turns = {"student": [], "teacher": []}

    class Counted(Calling):
        """Keeps what each request read anew, and where its answer ended."""

        def __init__(self, engine, who):
            super().__init__(engine, config.syntax)
            self.who = who

        async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
            ask = super().generate if self.who == "student" else self.engine.generate
            answer = await ask(context, max_tokens, stop, sampling)
            turns[self.who].append((len(context), answer.prompt_tokens - answer.cached_tokens, len(answer.ids)))
            return answer

    student, helper = Counted(vllm_engine, "student"), Counted(teacher, "teacher")
    run(teacher, relay(RelayPrompt(prompt, prompt), student, helper, config, seed=0))
    for who in turns:
        assert len(turns[who]) >= 3
        for (before, _, _), (length, computed, _) in zip(turns[who], turns[who][1:], strict=False):
            assert computed <= length - before + block_size(vllm_engine)


def test_a_search_asks_the_student_how_sure_it_was(vllm_server, tiny_model_path, recipe, tmp_path):
    """A random model is never right. That its answers were searched at all shows that its probabilities were there."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "so the call is 10 and ", "answer": "an answer that it never gives"}\n' * 8)
    options = {"calls": "searched", "student": vllm_server, "student_tokenizer": tiny_model_path}
    options |= {"teacher": vllm_server, "dataset": problems, "output": tmp_path / "rows.jsonl", "is_chat": False}
    options |= {"max_completion_length": 60, "tries": 4, "samples": 4, "max_in_flight": 8, "answer_marker": "#"}
    status, _, err = recipe("build_warmup", *(word for name, value in options.items() for word in (f"--{name}", value)))
    assert status == 1 and "None of 32 problems that the student got wrong came out right with help" in err
