"""The transformers engine: seeds in any batch, the sampled distribution, logprobs, stop strings and failures."""

import asyncio

import pytest
import torch
from helpers.models import new_model
from helpers.tokenizers import byte_level
from transformers import (
    DynamicCache,
    MinPLogitsWarper,
    Qwen3ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from relay_trl.engines.base import EngineError, FinishReason, Sampling, ScoringEngine
from relay_trl.engines.kv_cache import KeptCaches, length_of
from relay_trl.engines.sampling import draw
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import StopReason
from relay_trl.vocabulary import Vocabulary

GREEDY = Sampling(temperature=0.0)
LINE = "so <call>10</call>.\nthe an « 10 »\n"
PROMPTS = ["so the call is 10 and ", "ab", "the sum of ab and 10 is so the an so ab 10 10", "10 10 so "]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer):
    return new_model(tokenizer)


@pytest.fixture
def engine(model, tokenizer):
    return TransformersEngine(model, tokenizer, name="tiny")


@pytest.fixture(scope="module")
def reciter(tokenizer):
    """An engine whose model has learnt one line by heart."""
    model = new_model(tokenizer).train()
    ids = torch.tensor([tokenizer(LINE)["input_ids"] + [tokenizer.eos_token_id]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return TransformersEngine(model.eval(), tokenizer)


def run(*coroutines):
    async def all_of_them():
        return await asyncio.gather(*coroutines)

    return asyncio.run(all_of_them())


def sample(engine, prompts, samplings, max_tokens=24, stop=()):
    encode = engine.vocabulary.encode
    pairs = zip(prompts, samplings, strict=True)
    return run(*(engine.generate(encode(prompt), max_tokens, stop, sampling) for prompt, sampling in pairs))


def alone(engine, prompt, sampling, max_tokens=24, stop=()):
    [answer] = sample(engine, [prompt], [sampling], max_tokens, stop)
    return answer


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 3}, {"max_prefill_tokens": 40}])
def test_the_same_seed_gives_the_same_tokens_in_any_batch(model, tokenizer, options):
    engine = TransformersEngine(model, tokenizer, **options)
    prompts = PROMPTS * 2
    samplings = [Sampling(seed=seed) for seed in range(8)]
    crowd = sample(engine, prompts, samplings, max_tokens=40)
    assert [a.ids for a in crowd] == [alone(engine, p, s, 40).ids for p, s in zip(prompts, samplings, strict=True)]
    assert len({tuple(answer.ids) for answer in crowd}) == 8
    assert {answer.finish for answer in crowd} == {FinishReason.EOS, FinishReason.LENGTH}


def test_rows_that_join_late_or_leave_early_change_nothing(engine):
    encode = engine.vocabulary.encode
    lengths = [50, 3, 40, 7, 30, 1, 20, 12]

    async def staggered():
        tasks = []
        for seed, length in enumerate(lengths):
            context = encode(PROMPTS[seed % 4])
            tasks.append(asyncio.create_task(engine.generate(context, length, (), Sampling(seed=seed))))
            for _ in range(3):
                await asyncio.sleep(0)
        return [task.done() for task in tasks], await asyncio.gather(*tasks)

    was_done, answers = asyncio.run(staggered())
    assert True in was_done[:-1] and False in was_done[:-1]
    for seed, answer in enumerate(answers):
        assert answer.ids == alone(engine, PROMPTS[seed % 4], Sampling(seed=seed), lengths[seed]).ids


def test_no_more_rows_are_read_together_than_allowed(tokenizer):
    widths = []

    class Watched(Qwen3ForCausalLM):
        def forward(self, input_ids=None, **kwargs):
            widths.append(input_ids.shape[0])
            return super().forward(input_ids=input_ids, **kwargs)

    engine = TransformersEngine(new_model(tokenizer, Watched), tokenizer, max_batch_size=3)
    answers = sample(engine, PROMPTS * 2, [Sampling(seed=seed) for seed in range(8)], max_tokens=9)
    assert len(answers) == 8
    assert max(widths) == 3


def test_greedy_is_what_the_model_generates(engine, model, tokenizer):
    answers = sample(engine, PROMPTS, [GREEDY] * 4, max_tokens=30)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
        assert answer.ids == whole[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("varied", ["seed", "position"])
def test_tokens_are_drawn_from_the_softmax(varied):
    count, size = 20_000, 8
    logits = torch.randn(size, generator=torch.Generator().manual_seed(3))
    seeds = list(range(count)) if varied == "seed" else [7] * count
    positions = [5] * count if varied == "seed" else list(range(count))
    tokens, _ = draw(logits.expand(count, size), [Sampling()] * count, seeds, positions)
    expected = logits.softmax(0) * count
    seen = torch.tensor(tokens).bincount(minlength=size)
    assert ((seen - expected) ** 2 / expected).sum() < 29.9  # chi-square with 7 degrees of freedom, p = 1e-4


def test_neighbouring_draws_are_independent():
    count, size = 20_000, 8
    logits = torch.randn(size, generator=torch.Generator().manual_seed(4)).expand(count, size)
    seeds = list(range(count))
    now, later = (torch.tensor(draw(logits, [Sampling()] * count, seeds, [p] * count)[0]) for p in (10, 11))
    following = torch.cat([now[1:], now[:1]])
    probs = logits[0].softmax(0)
    expected = torch.outer(probs, probs).flatten() * count
    for other in (later, following):
        seen = (now * size + other).bincount(minlength=size**2)
        assert ((seen - expected) ** 2 / expected).sum() < 115  # chi-square with 63 degrees of freedom, p = 1e-4


FILTERS = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(top_k=5),
    Sampling(min_p=0.1),
    Sampling(temperature=0.9, top_k=6, top_p=0.7),
    Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.05),
]


def processed(logits, sampling):
    """The log-probabilities after transformers' own warpers, in the order of its `generate`."""
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_filters_are_those_of_transformers(sampling):
    count, size = 1_000, 40
    logits = 2 * torch.randn(10, size, generator=torch.Generator().manual_seed(5)).repeat_interleave(count // 10, 0)
    others = [FILTERS[0]] * count  # filters of other rows must not reach over
    tokens, logprobs = draw(
        torch.cat([logits] * 2), [sampling] * count + others, list(range(count)) * 2, [3] * 2 * count
    )
    for start, kind in ((0, sampling), (count, FILTERS[0])):
        part = slice(start, start + count)
        expected = processed(logits, kind)[torch.arange(count), tokens[part]]
        assert expected.isfinite().all()
        assert logprobs[part] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_repetition_penalty_is_that_of_transformers(engine, model):
    contexts, penalties = [engine.vocabulary.encode(prompt) for prompt in PROMPTS], [1.0, 1.4, 0.7, 1.4]
    samplings = [Sampling(seed=k, repetition_penalty=penalty) for k, penalty in enumerate(penalties)]
    answers = sample(engine, PROMPTS, samplings)
    for context, penalty, answer in zip(contexts, penalties, answers, strict=True):
        assert len(answer.ids) > 2
        for k in range(len(answer.ids)):  # each token under the penalty of all that was there before it
            so_far = torch.tensor([context + answer.ids[:k]])
            with torch.no_grad():
                logits = model(so_far).logits[:, -1]
            expected = RepetitionPenaltyLogitsProcessor(penalty)(so_far, logits.clone()).log_softmax(-1)
            assert answer.logprobs[k] == pytest.approx(expected[0, answer.ids[k]].item(), abs=1e-4)


def test_logprobs_are_those_of_a_full_forward(engine, model):
    answers = sample(engine, PROMPTS + PROMPTS[:2], FILTERS)
    for prompt, sampling, answer in zip(PROMPTS + PROMPTS[:2], FILTERS, answers, strict=True):
        context = engine.vocabulary.encode(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([context + answer.ids])).logits[0, len(context) - 1 : -1]
        expected = processed(logits, sampling)[torch.arange(len(answer.ids)), answer.ids]
        assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_end_token_is_kept_and_not_in_the_text(reciter, tokenizer):
    answer = alone(reciter, "so", GREEDY, 60)
    assert answer.finish is FinishReason.EOS
    assert answer.ids[-1] == tokenizer.eos_token_id
    assert "so" + answer.text == LINE


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("</call>",), " <call>10</call>."),  # `>.` is one token
        (("an «",), " <call>10</call>.\nthe an «"),  # `«` is two tokens, neither of them a character
        (("»", "l>10<"), " <call>10</"),  # `</` is one token
    ],
)
def test_a_stop_string_ends_with_the_token_that_completes_it(reciter, stop, text):
    answer = alone(reciter, "so", GREEDY, 60, stop)
    assert (answer.text, answer.finish) == (text, FinishReason.STOP)
    assert answer.ids == alone(reciter, "so", GREEDY, 60).ids[: len(answer.ids)]


def test_a_stop_string_that_does_not_come_stops_nothing(reciter):
    assert "so" + alone(reciter, "so", GREEDY, 60, ("</cell>", "»»")).text == LINE


def test_a_turn_reads_only_what_its_rollout_has_not_read(model, tokenizer, monkeypatch):
    """Rollouts of different lengths, beside new ones; what is drawn is what a whole reading gives."""
    monkeypatch.setattr("relay_trl.engines.kv_cache.LEAST_TOKENS", 8)
    vocabulary = Vocabulary(tokenizer)
    contexts = [vocabulary.encode(PROMPTS[2] + text) for text in ("", " so", " the an 10")]
    more = [vocabulary.encode(text) for text in (" 10 and so", " ab", " the sum")]

    def two_turns(engine):
        first = run(*(engine.generate(context, 9, sampling=GREEDY) for context in contexts))
        seconds = [c + a.ids + m for c, a, m in zip(contexts, first, more, strict=True)] + [contexts[0]]
        return first, run(*(engine.generate(context, 12, sampling=GREEDY) for context in seconds))

    engine = TransformersEngine(model, tokenizer)
    first, second = two_turns(engine)
    anew = two_turns(TransformersEngine(model, tokenizer, kept_cache_mb=0))[1]
    assert [a.ids for a in second] == [a.ids for a in anew]
    for one, other in zip(second, anew, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    known = [len(context) + len(a.ids) - 1 for context, a in zip(contexts, first, strict=True)]
    assert [a.finish for a in first] == [FinishReason.LENGTH] * 3
    assert [a.cached_tokens for a in second] == [*known, 0] and not any(a.cached_tokens for a in anew)
    [again] = run(engine.generate(contexts[0] + first[0].ids, 1, sampling=GREEDY))
    assert again.cached_tokens == 0  # a cache is for one turn
    engine.model = model  # its weights may be others
    [after] = run(engine.generate(contexts[0] + second[-1].ids + more[0], 1, sampling=GREEDY))
    assert after.cached_tokens == 0


def test_kept_caches_are_bounded():
    kept, cache = (
        KeptCaches(2 * 4 * 300 * 8 * 2),
        DynamicCache(),
    )  # two of them: 4 bytes, 300 tokens, 8 wide, keys and values
    cache.update(torch.zeros(3, 1, 300, 8), torch.zeros(3, 1, 300, 8), 0)
    for row in range(3):
        kept.put([row] * 300, cache, row, torch.ones(3, 300))
    assert kept.take([0] * 301) is None
    assert length_of(kept.take([2] * 301)) == length_of(kept.take([1] * 400)) == 300
    assert kept.take([1] * 301) is None and kept._bytes == 0
    kept.put([5] * 9, cache, 0, torch.ones(3, 300))  # the mask says another number
    assert kept.take([5] * 10) is None


def test_a_cancelled_request_leaves_the_others_alone(engine):
    encode = engine.vocabulary.encode

    async def abandon():
        doomed = asyncio.create_task(engine.generate(encode(PROMPTS[0]), 400, (), Sampling(seed=1)))
        other = asyncio.create_task(engine.generate(encode(PROMPTS[1]), 30, (), Sampling(seed=2)))
        for _ in range(5):
            await asyncio.sleep(0)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        return await other

    assert asyncio.run(abandon()).ids == alone(engine, PROMPTS[1], Sampling(seed=2), 30).ids


def test_a_fault_of_the_model_reaches_every_caller_and_is_over_with_it(engine, model, tokenizer):
    class Failing(Qwen3ForCausalLM):
        forwards = 0

        def forward(self, *args, **kwargs):
            self.forwards += 1
            if self.forwards == 4:
                raise RuntimeError("no memory left")
            return super().forward(*args, **kwargs)

    engine.model = new_model(tokenizer, Failing)
    encode = engine.vocabulary.encode

    async def both():
        jobs = (engine.generate(encode(prompt), 20, (), Sampling(seed=1)) for prompt in PROMPTS[:2])
        return await asyncio.gather(*jobs, return_exceptions=True)

    assert [str(error) for error in asyncio.run(both())] == ["no memory left"] * 2
    again = alone(engine, PROMPTS[2], Sampling(seed=3))
    engine.model = model
    assert again.ids == alone(engine, PROMPTS[2], Sampling(seed=3)).ids


def test_a_model_in_training_generates_without_dropout_and_trains_on(engine, tokenizer):
    expected = alone(engine, PROMPTS[0], GREEDY).ids
    engine.model = new_model(tokenizer, attention_dropout=0.5).train()
    assert alone(engine, PROMPTS[0], GREEDY).ids == expected
    assert engine.model.training


@pytest.mark.parametrize("context", ["so", [], [{"role": "user", "content": "so"}]])
def test_anything_but_token_ids_is_refused(engine, context):
    with pytest.raises(ValueError, match="'tiny' continues a non-empty list of token ids"):
        run(engine.generate(context, 5))


@pytest.mark.parametrize("max_calls", [0, 3])
def test_a_relay_without_calls_is_what_the_engine_alone_writes(engine, max_calls):
    config = RelayRules(max_completion_length=40, max_calls=max_calls)
    contexts = [engine.vocabulary.encode(prompt) for prompt in PROMPTS * 3]
    traces = run(*(relay(RelayPrompt(ids, ids), engine, engine, config, seed) for seed, ids in enumerate(contexts)))
    for seed, (context, trace) in enumerate(zip(contexts, traces, strict=True)):
        [answer] = run(engine.generate(context, 40, (), Sampling(seed=seed)))
        assert trace.completion_ids == answer.ids
        assert trace.logprobs == pytest.approx(answer.logprobs, abs=1e-4)
    assert {trace.stop for trace in traces} == {StopReason.EOS, StopReason.LENGTH}


# --- scores of a given text ---


def test_scores_are_the_models_log_probabilities_in_any_batch(model, tokenizer):
    encode = Vocabulary(tokenizer).encode
    texts = [encode(prompt) for prompt in PROMPTS]
    expected = []
    for ids in texts:
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append([float(logprobs[k - 1, ids[k]]) for k in range(1, len(ids))])
    for options in ({}, {"max_prefill_tokens": 20}):
        engine = TransformersEngine(model, tokenizer, **options)
        jobs = [engine.score(ids, start) for ids in texts for start in (1, (len(ids) + 1) // 2, len(ids))]
        answers = run(*jobs, engine.generate(texts[0], 20, (), Sampling(seed=1)))
        for k, found in enumerate(answers[:-1]):
            ids, start = texts[k // 3], (1, (len(texts[k // 3]) + 1) // 2, len(texts[k // 3]))[k % 3]
            assert found == pytest.approx(expected[k // 3][start - 1 :], abs=1e-5) and len(found) == len(ids) - start
        assert answers[-1].ids == alone(engine, PROMPTS[0], Sampling(seed=1), 20).ids
    assert isinstance(engine, ScoringEngine)


def test_what_cannot_be_scored_is_refused(engine):
    with pytest.raises(EngineError, match="cannot score 600 tokens; its context has 512"):
        run(engine.score([5] * 600, 1))
    with pytest.raises(ValueError, match="start is 0 for 3 ids; it must be 1 to their number"):
        run(engine.score([5] * 3, 0))
