"""A relay without calls gives, token for token, what vLLM itself writes with the same seeds."""

import asyncio

import pytest

from relay_trl.engines.base import Sampling
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.trace import StopReason

pytestmark = pytest.mark.vllm

PROMPTS = ["so the call is 10 and ", "ab", "the sum of ab and 10 is so the an", "10 10 so "] * 4
MAX_TOKENS = 60
SAMPLINGS = {"plain": Sampling(), "filtered": Sampling(temperature=1.2, top_p=0.97, top_k=200)}


def written_by_vllm(engine, contexts, sampling):
    """Ids and logprobs of `llm.generate`, one seed a prompt."""
    from vllm import SamplingParams

    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k, "logprobs": 0}
    params = [SamplingParams(max_tokens=MAX_TOKENS, seed=seed, **options) for seed in range(len(contexts))]
    inputs = [{"prompt_token_ids": context} for context in contexts]
    outputs = [output.outputs[0] for output in engine.llm.generate(inputs, params, use_tqdm=False)]
    logprobs = [[step[i].logprob for i, step in zip(o.token_ids, o.logprobs, strict=True)] for o in outputs]
    return [list(output.token_ids) for output in outputs], logprobs


@pytest.mark.parametrize("max_calls", [0, 3], ids=["calls_off", "no_call_made"])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_relay_without_calls_is_what_vllm_writes(vllm_engine, sampling, max_calls):
    config = RelayRules(max_completion_length=MAX_TOKENS, max_calls=max_calls, student=sampling)
    contexts = [vllm_engine.vocabulary.encode(prompt) for prompt in PROMPTS]

    async def rollouts():
        prompts = [RelayPrompt(context, context) for context in contexts]
        jobs = [relay(prompt, vllm_engine, vllm_engine, config, seed) for seed, prompt in enumerate(prompts)]
        return await asyncio.gather(*jobs)

    traces = asyncio.run(rollouts())
    ids, logprobs = written_by_vllm(vllm_engine, contexts, sampling)
    assert [trace.completion_ids for trace in traces] == ids
    for trace, expected in zip(traces, logprobs, strict=True):
        assert trace.logprobs == pytest.approx(expected, abs=1e-4)
    assert {trace.stop for trace in traces} == {StopReason.EOS, StopReason.LENGTH}
    assert len({tuple(trace.completion_ids) for trace in traces}) == len(PROMPTS)
