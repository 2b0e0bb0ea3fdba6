"""Rollouts beside the training: weights between turns, samples of groups, attention over packed rows, and a whole run."""

import asyncio
import itertools
import multiprocessing
import os
import queue
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.trainers import PAIR, load_tokenizer, rows, student_folder
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.async_grpo.async_grpo_trainer import RolloutQueueDataset
from trl.experimental.async_grpo.packing import TREE_ATTENTION, TreeRow, register_tree_attention

from relay_trl.engines.base import FinishReason, Generation
from relay_trl.rollout_files import Draw, RolloutReader
from relay_trl.trace import Author, Span, StopReason, Trace
from relay_trl.training.async_config import RelayAsyncGRPOConfig
from relay_trl.training.async_groups import Group, advantages_of, merge, to_samples
from relay_trl.training.async_student import FileWeights, Student, Turns, load_engines, load_weights
from relay_trl.training.async_worker import RelayRolloutWorker, prompt_order
from relay_trl.training.metrics import METRICS

NAN = float("nan")


def config(folder, **fields):
    """Four groups of four rollouts a step, on the CPU."""
    return RelayAsyncGRPOConfig(
        **{
            "output_dir": str(folder),
            "teacher": str(PAIR / "teacher"),
            "answer_marker": "#",
            "num_generations": 4,
            "per_device_train_batch_size": 16,
            "max_prompt_length": 16,
            "max_completion_length": 40,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
            **fields,
        }
    )


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"max_staleness": -1}, "max_staleness is -1; it must be at least 0"),
        ({"num_generations": 1}, "num_generations is 1; it must be at least 2"),
        ({"max_inflight_tasks": 8}, "learns from 16 rollouts"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"scale_rewards": "batch"}, "must be group or none"),
        ({"dynamic_sampling": True}, "dynamic_sampling is True, which would have no effect"),
        ({"extra_rewards": ["os:getcwd"]}, "extra_rewards is .*the group reward alone"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy is 'steps'.*evaluate.py"),
        ({"vllm_server_base_url": "http://127.0.0.1:1"}, "without a GPU the student of the rollouts is no server"),
        ({"max_truncated": 2.0}, "max_truncated is 2.0; it is a share"),
    ],
)
def test_options_that_it_does_not_have(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        config(tmp_path, **fields)


@pytest.mark.parametrize("name", ["beta", "loss_type", "num_iterations", "use_vllm"])
def test_options_of_synchronous_training_are_refused_by_name(recipe, name):
    words = ("--config", "recipes/configs/arithmetic/grpo_relay_async.yaml", f"--{name}", "1")
    status, _, error = recipe("grpo_relay_async", *words)
    assert status == 1 and f"error: {name}: asynchronous training has no such option" in error
    assert "Traceback" not in error


class SlowEngine:
    """Writes the version of its weights, token after token."""

    name, vocabulary, max_context = "slow", None, None

    def __init__(self):
        self.version = 0

    async def generate(self, context, max_tokens, stop=(), sampling=None):
        ids = []
        for _ in range(max_tokens):
            await asyncio.sleep(0)
            ids.append(self.version)
        return Generation(ids, "", FinishReason.LENGTH)


@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=5), st.integers(1, 9))
def test_one_set_of_weights_writes_a_whole_turn_and_each_token_knows_it(rollouts, pause):
    engine, newest = SlowEngine(), [1]
    student = Student(engine, lambda: newest[0], "weights")

    async def rollout(lengths):
        turns = Turns(student)
        return [(await turns.generate([1], length)).ids for length in lengths], turns.versions

    async def training():
        while newest[0] < 6:
            for _ in range(pause):
                await asyncio.sleep(0)
            newest[0] += 1

    async def both():
        jobs = [asyncio.create_task(rollout(lengths)) for lengths in rollouts]
        await training()
        return await asyncio.gather(*jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "relay_trl.training.async_student.load_weights", lambda engine, path: setattr(engine, "version", newest[0])
        )
        found = asyncio.run(asyncio.wait_for(both(), 10))
    for turns, versions in found:
        assert all(len(set(ids)) == 1 for ids in turns)
        assert list(itertools.chain(*turns)) == versions == sorted(versions)


def test_weights_arrive_in_the_engine_of_the_other_process_and_it_forgets_its_caches(tmp_path):
    tokenizer = load_tokenizer()
    engine, teacher = load_engines(config(tmp_path), student_folder(), tokenizer, [tokenizer.eos_token_id])
    assert teacher is not None and teacher.name == str(PAIR / "teacher")
    asyncio.run(engine.generate([3] * 70, 2))
    assert engine._kept.take([3] * 71 + [0] * 9) is not None
    asyncio.run(engine.generate([3] * 70, 2))
    weights = FileWeights()
    named = [(name, torch.full_like(value, 0.5)) for name, value in engine.model.named_parameters()]
    weights.send_weights(iter(named))
    load_weights(engine, weights.path)
    assert all(bool((value == 0.5).all()) for value in engine.model.parameters())
    assert engine._kept.take([3] * 71 + [0] * 9) is None
    weights.destroy()
    assert not os.path.exists(weights.path)


def test_prompts_go_on_where_a_run_stopped():
    whole = list(itertools.islice(prompt_order(3, 5, 0), 20))
    assert all(sorted(whole[k : k + 5]) == list(range(5)) for k in range(0, 20, 5)) and whole[:5] != whole[5:10]
    for start in (1, 5, 12):
        assert list(itertools.islice(prompt_order(3, 5, start), 20 - start)) == whole[start:]


def test_advantages_leave_out_what_has_no_reward():
    assert advantages_of([1.0, NAN, 0.0], "group") == pytest.approx([1.0, 0.0, -1.0], abs=1e-3)
    assert advantages_of([1.0, NAN, 0.0], "none") == [0.5, 0.0, -0.5]
    assert advantages_of([NAN, NAN], "group") == [0.0, 0.0] and advantages_of([1.0, 1.0], "group") == [0.0, 0.0]


def trace(authors="SSTS", stop=StopReason.EOS):
    """A prompt of three tokens, and one span for each letter: two tokens of the student, or one of the teacher."""
    spans, token = [], 5
    for author in authors:
        if author == "S":
            spans.append(Span(Author.STUDENT, [token, token + 1], "ab", logprobs=[-0.1 * token, -0.2 * token]))
        else:
            spans.append(Span(Author.TEACHER, [token], "c"))
        token += 2
    return Trace([1, 2, 3], spans, stop=stop)


def draw_of(traces, rewards):
    row = {"prompt": "p", "answer": "a"}
    correct = [reward > 0 for reward in rewards]
    found = Draw("train", 0, 0, len(traces), [row] * len(traces), 0, traces, correct, rewards=rewards, kinds=[None])
    found.advantages = advantages_of(rewards, "none")
    found.metrics = dict.fromkeys(("grading_s", "grading_timeouts", "judge_read", "judge_overruled", "judge_silent"), 1)
    return found


@given(st.text("ST", min_size=1, max_size=6).filter(lambda text: "S" in text), st.data())
def test_the_loss_takes_the_student_s_tokens_alone_each_with_its_version(authors, data):
    one = trace(authors)
    written = [data.draw(st.integers(0, 9)) for _ in range(2 * authors.count("S"))]
    (sample,) = to_samples(draw_of([one], [1.0]), [written], 7)
    by_student = [False] * 3 + [a == "S" for a in authors for _ in range(2 if a == "S" else 1)]
    assert sample.input_ids.tolist() == one.prompt_ids + one.completion_ids
    assert sample.completion_mask.tolist() == by_student
    assert sample.versions[sample.completion_mask == 1].tolist() == written
    assert set(sample.versions[sample.completion_mask == 0].tolist()) == {-1}
    assert (sample.model_version, sample.group_id) == (min(written), 7)

    def packed(old_log_probs):
        row, names = TreeRow(), ("input_ids", "completion_mask", "advantage", "group_id")
        row.add({**{name: getattr(sample, name) for name in names}, "old_log_probs": old_log_probs})
        return row.pack()

    # Whatever stands at a masked place, nothing of it is in what TRL's loss is taken over
    loss, other = packed(sample.old_log_probs), packed(np.where(by_student, sample.old_log_probs, 123.0))
    assert all(torch.equal(loss[name], other[name]) for name in loss)
    assert loss["old_log_probs"].tolist() == pytest.approx([x for span in one.spans for x in span.logprobs or ()])


def test_a_rollout_that_was_lost_or_not_scored_is_no_sample_but_stays_in_the_files_and_figures():
    traces = [trace(), trace(stop=StopReason.TEACHER_ERROR), trace("S"), trace()]
    found = draw_of(traces, [1.0, NAN, NAN, 0.0])
    samples = to_samples(found, [[4] * 6, [2], [3] * 2, [3] * 6], 9)
    assert [(sample.advantage, sample.metrics["reward"]) for sample in samples] == [(0.5, 1.0), (-0.5, 0.0)]
    whole = merge([found, draw_of([trace()] * 4, [1.0] * 4)], step=5, batch=1)
    assert (whole.step, whole.batch, whole.size, len(whole.traces), len(whole.rewards)) == (5, 1, 4, 8, 8)
    assert set(whole.metrics) == set(METRICS)
    assert (whole.metrics["teacher_failures"], whole.metrics["grading_timeouts"]) == (1 / 8, 2)
    with pytest.raises(ValueError, match="gives no log-probabilities"):
        to_samples(draw_of([Trace([1], [Span(Author.STUDENT, [5], "a")], stop=StopReason.EOS)], [1.0]), [[0]], 0)


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_what_is_too_old_is_dropped_and_counted(max_staleness):
    from relay_trl.training.async_grpo import _Samples

    groups = [[6, 0, 5, 2], [], [1, 1], [0], [6, 6, 4, 3]]
    now, waiting, received, noted = 6, queue.Queue(), [], []
    args = SimpleNamespace(num_generations=4)
    reader = _Samples(SimpleNamespace(args=args, receive=received.append, note=noted.append), waiting)
    for number, versions in enumerate(groups):
        found = draw_of([trace("S")] * len(versions), [1.0] * len(versions))
        waiting.put(Group(number, found, to_samples(found, [[version + 1, version] for version in versions], number)))
    metrics = {name: [] for name in ("dropped_stale_total", "rollout_queue_size", "time_in_queue_s")}
    metrics = {f"sample/{name}": [] for name in (*metrics, "staleness_mean", "staleness_max")}

    def nothing_more(stale_after_s):
        raise StopIteration

    dataset = RolloutQueueDataset(reader, lambda: now, nothing_more, 1.0, metrics, max_staleness, poll_interval_s=0.01)
    dataset._trace_log_interval = 10**9
    taken = []
    with pytest.raises(RuntimeError):  # a generator's StopIteration
        for sample in dataset:
            taken.append(sample["group_id"])
    every = [(number, version) for number, versions in enumerate(groups) for version in versions]
    assert taken == [number for number, version in every if now - version <= max_staleness]
    assert len(metrics["sample/dropped_stale_total"]) == len(every) - len(taken)
    assert len(received) == len(groups) and len(noted) == len(every)


def test_attention_over_a_packed_row_is_that_of_each_sample():
    from transformers import AttentionInterface, AutoModelForCausalLM

    from relay_trl.training.packed_attention import attend_in_rows

    register_tree_attention()
    AttentionInterface.register(TREE_ATTENTION, attend_in_rows)
    plain = AutoModelForCausalLM.from_pretrained(student_folder(), dtype=torch.float32)
    packed = AutoModelForCausalLM.from_pretrained(
        student_folder(), dtype=torch.float32, attn_implementation=TREE_ATTENTION
    )
    row, samples = TreeRow(), [[3, 4, 5, 6, 7], [3, 4, 5, 9, 8, 2], [3, 4, 5, 6, 1], [7, 3]]
    for k, ids in enumerate(samples):
        mask = np.array([0] + [1] * (len(ids) - 1))
        row.add(
            {
                "input_ids": np.array(ids),
                "completion_mask": mask,
                "old_log_probs": mask * 0.0,
                "advantage": 0,
                "group_id": k,
            }
        )
    inputs = row.pack()
    tree = {name: inputs[name] for name in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")}
    longest = dict(zip(("tree_max_seqlen_q", "tree_max_seqlen_k"), inputs["tree_max_seqlens"].tolist(), strict=True))
    assert len(inputs["input_ids"]) < sum(map(len, samples))
    with torch.no_grad():
        together = packed(
            input_ids=inputs["input_ids"][None], position_ids=inputs["position_ids"][None], **tree, **longest
        ).logits[0]
        alone = torch.cat([plain(input_ids=torch.tensor([ids])).logits[0, :-1] for ids in samples])
    assert torch.allclose(together[inputs["token_index"]], alone, atol=1e-4)


def test_a_worker_that_fails_dies_or_hangs_is_one_sentence(tmp_path):
    worker = RelayRolloutWorker(args=config(tmp_path))
    worker._heartbeat_value.value = time.time()
    worker._process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker._process.start()
    worker.check_health(60)
    worker._heartbeat_value.value -= 61
    with pytest.raises(RuntimeError, match=r"has not moved for 60 s \(heartbeat_stale_after_s\), so it was ended"):
        worker.check_health(60)
    worker._process.join(10)
    with pytest.raises(RuntimeError, match=r"has died \(exit status -9\)"):
        worker.check_health(60)
    worker._exception_info_queue.put(("EngineError", "The teacher is out for lunch.", ""))
    worker._failed_event.set()
    with pytest.raises(RuntimeError, match="^The teacher is out for lunch.$"):
        worker.check_health(60)


class Watcher(TrainerCallback):
    """Notes the oldest and newest weights of what is learnt from, and kills the rollouts' process after a step."""

    def __init__(self, trainer, kills_after=None):
        self.trainer, self.kills_after = trainer, kills_after
        self.lags = []
        note = trainer.note

        def noting(sample):
            assert all((sample.versions >= 0) == (sample.completion_mask == 1))
            self.lags += (trainer.model_version - sample.versions[sample.versions >= 0]).tolist()
            note(sample)

        trainer.note = noting

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kills_after:
            os.kill(self.trainer.rollout_worker._process.pid, signal.SIGKILL)


def trainer(folder, **fields):
    from datasets import Dataset

    from relay_trl.training.async_grpo import RelayAsyncGRPOTrainer

    student = str(PAIR / "warmed_up")
    data = Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in rows(16)])
    return RelayAsyncGRPOTrainer(student, config(folder, **fields), data, AutoTokenizer.from_pretrained(student))


@pytest.mark.slow
def test_a_run_learns_writes_its_files_resumes_and_ends_with_its_worker(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, temperature=1.3)
    watcher = Watcher(run)
    before = run.model.model.embed_tokens.weight.detach().clone()
    run.train()
    assert not torch.equal(run.model.model.embed_tokens.weight, before)
    steps = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(steps) == 2 and all({f"relay/{name}" for name in METRICS} <= set(entry) for entry in steps)
    # The trainer reads the tokens as they were drawn: with fresh weights the ratio is 1
    assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert watcher.lags and min(watcher.lags) >= 0
    groups = RolloutReader(tmp_path).poll()[1]
    assert {group["step"] for group in groups} == {1, 2} and all(len(group["rollouts"]) == 4 for group in groups)
    weights = os.path.dirname(run.weight_transfer.path)
    assert not multiprocessing.active_children() and not os.path.exists(weights)

    again = trainer(tmp_path, max_steps=10**6, temperature=1.3, resume_from_checkpoint="auto")
    again.add_callback(Watcher(again, kills_after=4))
    with pytest.raises(RuntimeError, match=r"process of the rollouts has died \(exit status -9\)"):
        again.train()
    assert again.state.global_step >= 4 and again.model_version > run.model_version
    assert again.rollout_worker._loop_kwargs["dataset_start_index"] > 0
    written = {group["step"] for group in RolloutReader(tmp_path).poll()[1]}
    assert written >= {1, 2, 3, 4} and min(written) == 1
    assert not multiprocessing.active_children()
