"""Faults of a real teacher's server and of the network: `vllm serve` behind a proxy that fails on request.

Every test compares with a run without faults on the same server.
"""

import asyncio
import math
import random
import re
import threading

import pytest
import torch
from helpers.faults import ALTERED, FAULTS, HARMLESS, LASTING, PASSING, FaultProxy
from helpers.trainers import (
    PAIR,
    PLANS,
    PlannedStudent,
    grpo_config,
    grpo_trainer,
    in_turn,
    load_student,
    load_tokenizer,
    weights_of,
)
from transformers import TrainerCallback

from relay_trl.data.arithmetic import problems
from relay_trl.engines.base import Sampling
from relay_trl.engines.loading import load_engine, load_vocabulary
from relay_trl.prompts import PromptBuilder
from relay_trl.relay import RelayRules, relay
from relay_trl.rewards import difficulty_aware
from relay_trl.trace import Author, Outcome, StopReason
from relay_trl.vocabulary import Vocabulary

pytestmark = pytest.mark.vllm

RETRIES = 2
PROBLEMS = [row["prompt"] for row in problems("train", 8, seed=3)]
HIT = PROBLEMS[2:5]  # whose requests go wrong
VOCABULARY = load_vocabulary(str(PAIR / "teacher"))


def teacher_behind(proxy, retries=RETRIES, timeout_s=4.0):
    """The proxied server as a teacher; counting begins when it is found to be well."""
    teacher = load_engine(proxy.url, tokenizer=str(PAIR / "teacher"), timeout_s=timeout_s, max_retries=retries)
    proxy.seen.clear()
    return teacher


def problem_of(request):
    return VOCABULARY.decode(request.json["prompt"]).partition("=")[0] + "="


def roll_out(teacher):
    """A rollout of each problem, which calls for five tokens and then writes what is missing."""
    tokenizer = load_tokenizer()
    student = PlannedStudent(tokenizer, lambda problem, seed: "call, right")
    builder = PromptBuilder(tokenizer, teacher)
    config = RelayRules(max_completion_length=60, teacher=Sampling(temperature=0.0))

    async def all_of_them():
        try:
            return await asyncio.gather(
                *(relay(builder.build(problem), student, teacher, config, seed=1) for problem in PROBLEMS)
            )
        finally:
            await teacher.aclose()

    return asyncio.run(all_of_them())


def without_times(trace):
    data = trace.to_dict()
    for call in data["calls"]:
        call["wait_s"] = 0.0
    for span in data["spans"]:
        span["logprobs"] = None
    return data


@pytest.fixture(scope="module")
def quiet(teacher_server):
    proxy = FaultProxy(teacher_server.url)
    traces = roll_out(teacher_behind(proxy))
    proxy.close()
    assert all(trace.calls[0].delivered == 5 for trace in traces)
    return [without_times(trace) for trace in traces]


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_overcome(proxy, quiet, fault):
    teacher, met = teacher_behind(proxy, timeout_s=1.0 if fault == "hangs" else 4.0), set()

    def choose(request):
        problem = problem_of(request)
        is_first = problem in HIT and problem not in met
        met.add(problem)
        return fault if is_first else None

    proxy.choose = choose
    assert [without_times(trace) for trace in roll_out(teacher)] == quiet
    assert proxy.seen == {fault: len(HIT), "passed": len(PROBLEMS)}
    assert proxy.settle()


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_costs_its_rollouts_and_no_other(proxy, quiet, fault):
    teacher = teacher_behind(proxy, timeout_s=0.5 if fault == "hangs" else 4.0)
    proxy.choose = lambda request: fault if problem_of(request) in HIT else None
    traces = roll_out(teacher)
    for problem, trace, expected in zip(PROBLEMS, traces, quiet, strict=True):
        if problem not in HIT:
            assert without_times(trace) == expected
            continue
        assert trace.stop is StopReason.TEACHER_ERROR and trace.calls[0].outcome is Outcome.FAILED
        assert proxy.url.removesuffix("/v1") in trace.error or "teacher" in trace.error
        assert len(trace.error) < 500 and "\n" not in trace.error
        assert [span.author for span in trace.spans] == [Author.STUDENT] and trace.teacher_tokens == 0
        assert trace.text == "<call>5</call>" and trace.answer == ""
    tries = RETRIES + 1 if fault in PASSING else 1
    assert proxy.seen == {fault: tries * len(HIT), "passed": len(PROBLEMS) - len(HIT)}


@pytest.mark.parametrize("fault", [*HARMLESS, *ALTERED])
def test_an_odd_answer_stays_within_its_call(proxy, quiet, fault):
    teacher = teacher_behind(proxy)
    proxy.choose = lambda request: fault if problem_of(request) in HIT else None
    traces = roll_out(teacher)
    for problem, trace, expected in zip(PROBLEMS, traces, quiet, strict=True):
        if problem not in HIT or fault in HARMLESS:
            assert without_times(trace) == expected
            continue
        (call,) = trace.calls
        assert call.outcome is Outcome.ANSWERED
        assert (call.granted, call.delivered) == (5, {"too many tokens": 5, "empty text": 0}[fault])
        assert trace.stop is StopReason.EOS and not trace.error
        assert trace.loss_mask == [1] * 3 + [0] * call.delivered + [1] * (trace.num_tokens - 3 - call.delivered)
    assert proxy.seen == {fault: len(HIT), "passed": len(PROBLEMS) - len(HIT)}


# --- training ---


class Witness:
    """A reward of nothing that keeps the rollouts it was shown; and the gradient before each optimizer step."""

    __name__ = "witness"

    def __init__(self):
        self.traces, self.correct, self.gradients = [], [], []

    def __call__(self, prompts, relay_trace, relay_correct, **columns):
        self.traces.append(relay_trace)
        self.correct.append(relay_correct)
        return [0.0] * len(prompts)


class Gradients(TrainerCallback):
    def __init__(self, witness):
        self.witness = witness

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.witness.gradients.append([weight.grad.clone() for weight in model.parameters()])


def train(folder, teacher, choose, **fields):
    """Steps of two prompts x four rollouts."""
    witness = Witness()
    fields = {"teacher_temperature": 0.0, "max_teacher_failures": 0.5, "max_grad_norm": 0.0, **fields}
    trainer = grpo_trainer(
        grpo_config(folder, **fields), choose, teacher, extra_rewards=[witness], callbacks=[Gradients(witness)]
    )
    try:
        trainer.train()
    finally:
        trainer.rollouts.wait(teacher.aclose())
    return trainer, witness


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def gradient_by_hand(traces, rewards):
    """The gradient of a run that has these groups of rollouts and no others, from GRPO's formula."""
    model = load_student()
    total = sum(sum(trace.loss_mask) for group in traces for trace in group)
    for group, values in zip(traces, rewards, strict=True):
        values = torch.tensor(values)
        advantages = (values - values.mean()) / (values.std() + 1e-4)
        for trace, advantage in zip(group, advantages, strict=True):
            ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
            logits = model(ids).logits[0, len(trace.prompt_ids) - 1 : -1]
            logprobs = logits.log_softmax(-1).gather(1, ids[0, len(trace.prompt_ids) :, None])[:, 0]
            (-advantage * (logprobs * torch.tensor(trace.loss_mask)).sum() / total).backward()
    return [weight.grad for weight in model.parameters()]


def test_the_gradient_is_that_of_a_run_without_the_failed_rollouts(proxy, tmp_path, monkeypatch):
    monkeypatch.setitem(PLANS, "call for four", "1+1=2;<call>4</call>")
    teacher = teacher_behind(proxy, retries=0)
    faults = iter(["broken JSON", "ids beyond the vocabulary"])
    proxy.choose = lambda request: next(faults) if request.json["max_tokens"] == 4 else None
    trainer, witness = train(tmp_path, teacher, in_turn("right", "call for four", "wrong", "call, wrong"), max_steps=1)
    (entry,), (traces,), (correct,) = steps_of(trainer), witness.traces, witness.correct
    groups = [[i for i in range(start, start + 4) if not traces[i].has_failed] for start in (0, 4)]
    assert [len(group) for group in groups] == [3, 3] and entry["relay/teacher_failures"] == 0.25
    assert entry["relay/calls"] == entry["relay/call_rate"] == pytest.approx(1 / 3)
    assert entry["relay/delivered"] == 2 and entry["relay/accuracy"] == pytest.approx(1 / 3)
    rewards = [
        difficulty_aware(
            [correct[i] for i in group],
            [traces[i].has_called for i in group],
            [traces[i].teacher_share for i in group],
        )
        for group in groups
    ]
    expected = gradient_by_hand([[traces[i] for i in group] for group in groups], rewards)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for found, wanted in zip(witness.gradients[0], expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_every_fault_at_random_and_no_word_of_it_in_any_completion(proxy, tmp_path):
    chance = random.Random(5)
    names = [name for name in FAULTS if name not in ("hangs", "slow")]
    teacher = teacher_behind(proxy, retries=1)
    proxy.choose = lambda request: chance.choice(names) if chance.random() < 0.5 else None
    choose = in_turn("right", "call, right", "call, wrong", "wrong")
    trainer, witness = train(tmp_path, teacher, choose, max_steps=6, max_teacher_failures=1.0)
    vocabulary = Vocabulary(load_tokenizer())
    known = set(vocabulary.tokenizer.get_vocab().values())
    for entry, traces in zip(steps_of(trainer), witness.traces, strict=True):
        failed = [trace for trace in traces if trace.has_failed]
        assert entry["relay/teacher_failures"] == len(failed) / 8
        assert entry["relay/calls"] == pytest.approx(
            sum(len(t.calls) for t in traces if not t.has_failed) / (8 - len(failed))
        )
        assert math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"])
        for trace in traces:
            assert set(trace.completion_ids) <= known and re.fullmatch("[-0-9+*=;#<>/cal ]*", trace.text), trace.text
            assert trace.has_failed == (trace.error is not None)
    assert sum(trace.has_failed for traces in witness.traces for trace in traces) > 3
    assert sum(proxy.seen[name] for name in names) > 8 and proxy.settle()
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())


def test_a_teacher_that_is_killed_and_started_again_costs_time_only(teacher_server, proxy, tmp_path):
    """SIGKILL while the second step's calls are under way; the server is back a while later, on the same port."""

    def run(folder, is_killed):
        trainer_choice = in_turn("call, right", "right", "wrong", "call, wrong")
        starter = threading.Thread(target=teacher_server.start)
        asked = []

        def watch(request):
            asked.append(request)
            if is_killed and len(asked) == 6:
                teacher_server.kill()
                starter.start()
            return None

        teacher = teacher_behind(proxy, retries=30)
        proxy.choose = watch
        trainer, witness = train(folder, teacher, trainer_choice, max_steps=3, max_teacher_failures=0.0)
        if is_killed:
            starter.join()
        return trainer, witness, len(asked)

    quiet, expected, requests = run(tmp_path / "quiet", False)
    hit, found, tries = run(tmp_path / "hit", True)
    assert tries > requests
    assert [entry["relay/teacher_failures"] for entry in steps_of(hit)] == [0, 0, 0]
    for left, right in zip(found.traces, expected.traces, strict=True):
        assert [without_times(trace) for trace in left] == [without_times(trace) for trace in right]
    assert all(torch.equal(value, weights_of(quiet)[name]) for name, value in weights_of(hit).items())
