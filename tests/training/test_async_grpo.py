"""Rollouts beside the training: weights between turns, samples of groups, attention over packed rows, and a whole run."""

import asyncio
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from helpers.trainers import PAIR, load_tokenizer, rows, student_folder
from transformers import TrainerCallback
from trl.experimental.async_grpo.packing import TREE_ATTENTION, TreeRow, register_tree_attention

from relay_trl.engines.base import FinishReason, Generation
from relay_trl.rollout_files import Draw, RolloutReader
from relay_trl.trace import Author, Span, StopReason, Trace
from relay_trl.training.async_config import RelayAsyncGRPOConfig
from relay_trl.training.async_student import FileWeights, Student, Turns, load_engines, load_weights
from relay_trl.training.async_worker import advantages_of, prompt_order, to_samples


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
        ({"max_staleness": -1}, "max_staleness is -1; it must be 0"),
        ({"beta": "0.1"}, "beta: asynchronous training has no such option"),
        ({"loss_type": "grpo"}, "loss_type: asynchronous"),
        ({"dynamic_sampling": True, "profile_steps": 3}, "dynamic_sampling, profile_steps: asynchronous"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy: asynchronous"),
        ({"num_generations": 1}, "at least 2 rollouts"),
        ({"max_truncated": 2.0}, "max_truncated is 2.0; it is a share"),
    ],
)
def test_options_that_it_does_not_have(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        config(tmp_path, **fields)


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


def test_one_set_of_weights_writes_a_whole_turn(monkeypatch):
    engine, newest = SlowEngine(), [1]
    monkeypatch.setattr(
        "relay_trl.training.async_student.load_weights", lambda engine, path: setattr(engine, "version", newest[0])
    )
    student = Student(engine, lambda: newest[0], "weights")

    async def rollout(length):
        turns = Turns(student)
        return [(await turns.generate([1], length)).ids for _ in range(4)], turns.versions

    async def training():
        while newest[0] < 6:
            for _ in range(7):
                await asyncio.sleep(0)
            newest[0] += 1

    async def both():
        jobs = [asyncio.create_task(rollout(length)) for length in (3, 9, 20)]
        await training()
        return await asyncio.gather(*jobs)

    found = asyncio.run(asyncio.wait_for(both(), 10))
    for turns, versions in found:
        assert [set(ids) for ids in turns] == [{version} for version in versions]
    assert len(set(itertools.chain(*(versions for _, versions in found)))) > 2


def test_weights_arrive_in_the_engine_of_the_other_process(tmp_path):
    engine, teacher = load_engines(config(tmp_path), student_folder(), load_tokenizer())
    assert teacher is not None and teacher.name == str(PAIR / "teacher")
    weights = FileWeights()
    named = [(name, torch.full_like(value, 0.5)) for name, value in engine.model.named_parameters()]
    weights.send_weights(iter(named))
    load_weights(engine, weights.path)
    assert all(bool((value == 0.5).all()) for value in engine.model.parameters())
    weights.destroy()
    assert not os.path.exists(weights.path)


def test_prompts_go_on_where_a_run_stopped():
    whole = list(itertools.islice(prompt_order(3, 5, 0), 20))
    assert all(sorted(whole[k : k + 5]) == list(range(5)) for k in range(0, 20, 5)) and whole[:5] != whole[5:10]
    for start in (1, 5, 12):
        assert list(itertools.islice(prompt_order(3, 5, start), 20 - start)) == whole[start:]


def test_advantages_leave_out_what_has_no_reward():
    nan = float("nan")
    assert advantages_of([1.0, nan, 0.0]) == pytest.approx([1.0, 0.0, -1.0], abs=1e-3)
    assert advantages_of([nan, nan]) == [0.0, 0.0] and advantages_of([1.0, 1.0]) == [0.0, 0.0]


def trace(stop=StopReason.EOS):
    spans = [
        Span(Author.STUDENT, [5, 6], "ab", logprobs=[-0.1, -0.2]),
        Span(Author.TEACHER, [7], "c"),
        Span(Author.STUDENT, [8], "d", logprobs=[-0.3]),
    ]
    return Trace([1, 2, 3], spans, stop=stop)


def test_samples_of_a_group():
    traces = [trace(), trace(StopReason.TEACHER_ERROR), trace()]
    row = {"prompt": "p", "answer": "a"}
    draw = Draw(
        "train", 0, 0, 3, [row] * 3, 0, traces, [True, False, False], [1.0, 0.0, -1.0], [1.0, float("nan"), 0.0]
    )
    first, last = to_samples(draw, [4, 2, 3], group_id=9)
    assert first.draw is draw and last.draw is None
    assert (first.model_version, last.model_version, first.group_id) == (4, 3, 9)
    assert first.input_ids.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert first.completion_mask.tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert first.old_log_probs.tolist() == pytest.approx([0, 0, 0, -0.1, -0.2, 0, -0.3])
    assert (first.advantage, last.advantage, last.metrics["reward"]) == (1.0, -1.0, 0.0)


def test_attention_over_a_packed_row_is_that_of_each_sample():
    from transformers import AttentionInterface, AutoModelForCausalLM

    from relay_trl.training.async_grpo import attend_in_rows

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


class Killer(TrainerCallback):
    """Kills the process of the rollouts after the first step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(self.trainer.rollout_worker._process.pid, signal.SIGKILL)


def broken_engines():
    raise FileNotFoundError("The teacher's folder is gone.")


def trainer(folder, model=None, engines=None, **fields):
    from datasets import Dataset

    from relay_trl.training.async_grpo import RelayAsyncGRPOTrainer

    args = config(folder, **fields)
    data = Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in rows(16)])
    return RelayAsyncGRPOTrainer(model or student_folder(), args, data, load_tokenizer(), engines=engines)


@pytest.mark.slow
def test_a_run_learns_writes_its_files_resumes_and_leaves_no_process(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, temperature=1.3)
    before = run.model.model.embed_tokens.weight.detach().clone()
    run.train()
    assert not torch.equal(run.model.model.embed_tokens.weight, before)
    steps = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(steps) == 2 and all(0 <= entry["relay/accuracy"] <= 1 for entry in steps)
    # The trainer reads the tokens as they were drawn: with fresh weights the ratio is 1
    assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert all(entry["sample/staleness_max"] <= run.args.max_staleness for entry in steps)
    groups = RolloutReader(tmp_path).poll()[1]
    assert {group["step"] for group in groups} == {1, 2} and all(len(group["rollouts"]) == 4 for group in groups)
    assert not multiprocessing.active_children()

    again = trainer(tmp_path, max_steps=3, save_strategy="no", temperature=1.3, resume_from_checkpoint="auto")
    again.train()
    assert again.state.global_step == 3
    assert again.rollout_worker._loop_kwargs["dataset_start_index"] > 0
    assert {group["step"] for group in RolloutReader(tmp_path).poll()[1]} == {1, 2, 3}

    killed = trainer(tmp_path / "killed", max_steps=10**6, learning_rate=0.0)
    killed.add_callback(Killer(killed))
    with pytest.raises(RuntimeError, match=r"process of the rollouts has died \(exit status -9\)"):
        killed.train()
    assert not multiprocessing.active_children()

    broken = trainer(tmp_path / "broken", engines=broken_engines)
    with pytest.raises(RuntimeError, match="exited during init"):
        broken.train()
