"""RelayGRPOTrainer on the arithmetic pair: metrics, seeds, failing teachers, rewards, checkpoints and resuming."""

import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.judge_server import JudgeServer
from helpers.trainers import (
    PAIR,
    WRONG,
    PlannedTeacher,
    are_equal,
    grpo_config,
    grpo_trainer,
    in_turn,
    load_student,
    rows,
    weights_of,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from relay_trl.engines.transformers import TransformersEngine
from relay_trl.relay_config import RELAY_CONFIG_NAME, load_record
from relay_trl.trace import Author, Span, Trace
from relay_trl.training.groups import score_groups
from relay_trl.training.metrics import METRICS, facts

MIXED = ("right", "call, right", "wrong", "call, wrong")


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def evaluations_of(trainer):
    return [entry for entry in trainer.state.log_history if "eval_relay/accuracy" in entry]


def test_every_metric_is_logged_at_every_step_and_evaluation(tmp_path):
    args = grpo_config(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = grpo_trainer(args, in_turn(*MIXED), eval_dataset=rows(4, "validation"))
    trainer.train()
    assert len(steps_of(trainer)) == len(evaluations_of(trainer)) == 2
    for entries, prefix in ((steps_of(trainer), "relay/"), (evaluations_of(trainer), "eval_relay/")):
        for entry in entries:
            assert {key for key in entry if key.startswith(prefix)} == {prefix + name for name in METRICS}
            assert all(math.isfinite(entry[prefix + name]) for name in METRICS)


def test_metrics_of_a_step_worked_out_by_hand(tmp_path):
    trainer = grpo_trainer(
        grpo_config(tmp_path, max_steps=1), in_turn("wrong", "call, wrong", "malformed, right", "wrong")
    )
    trainer.train()
    (entry,) = steps_of(trainer)
    # "#1000" is 5 tokens and the end; the call asks for 2 tokens and is 3 tokens itself; "<call></call>" is 2
    right = [len(row["solution"]) for row in {row["prompt"]: row for row in rows()}.values()]
    found = {name: entry[f"relay/{name}"] for name in METRICS}
    assert found["accuracy"] == 0.25 and found["call_rate"] == 0.25 and found["calls"] == 0.25
    assert found["teacher_share"] == pytest.approx(2 / 8 / 4)
    assert found["requested"] == found["granted"] == found["delivered"] == 2
    assert found["malformed"] == 0.25 and found["denied"] == 0
    assert (found["student_solvable"], found["teacher_dependent"], found["teacher_unsolvable"]) == (1, 0, 0)
    assert found["teacher_failures"] == found["grading_timeouts"] == 0
    total = [4 / (2 * (6 + 11 + 6) + a + b + 2 * 3) for a in right for b in right]
    assert any(found["teacher_share_all"] == pytest.approx(share) for share in total)
    assert found["rollout_s"] > 0 and found["teacher_wait_s"] > 0


def test_a_judges_verdicts_are_trained_on_only_where_that_is_asked_for(tmp_path):
    server = JudgeServer()
    server.says = lambda asked: "Verdict: RIGHT" if WRONG in asked else server.think(asked)
    found = {}
    try:
        for judge_reward in (False, True):
            args = grpo_config(
                tmp_path,
                max_steps=1,
                judge=server.url,
                judge_sample=0.0,
                judge_reward=judge_reward,
                max_teacher_failures=1.0,
            )
            trainer = grpo_trainer(args, in_turn("right", "wrong", "wrong", "call, broken"))
            trainer.train()
            (found[judge_reward],) = steps_of(trainer)
    finally:
        server.close()
    assert [found[k]["relay/accuracy"] for k in (False, True)] == pytest.approx([1 / 3, 1.0])
    for entry in found.values():
        assert (entry["relay/judge_read"], entry["relay/judge_overruled"], entry["relay/judge_silent"]) == (4, 4, 0)
    assert found[True]["reward"] > found[False]["reward"]


def test_denied_calls_and_the_kinds_of_groups(tmp_path):
    plans = {True: ("call, right", "wrong"), False: ("call, wrong", "wrong")}
    first = {}

    def choose(problem, seed):
        kind = first.setdefault(problem, not first)
        return plans[kind][seed % 2]

    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1, num_generations=4), choose)
    trainer.train()
    (entry,) = steps_of(trainer)
    assert entry["relay/teacher_dependent"] == entry["relay/teacher_unsolvable"] == 0.5

    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1, max_calls=0), in_turn("call, wrong", "wrong"))
    trainer.train()
    (entry,) = steps_of(trainer)
    assert entry["relay/denied"] == entry["relay/calls"] == 0.5 and entry["relay/teacher_share"] == 0


class Recorder:
    """A per-rollout reward that keeps what it was shown, step by step."""

    __name__ = "recorder"

    def __init__(self):
        self.steps = []

    def __call__(self, completion_ids, **columns):
        self.steps.append([tuple(ids) for ids in completion_ids])
        return [0.0] * len(completion_ids)


def sampled(folder, **fields):
    """The completions of two steps on one and the same prompt, of a student that does not learn."""
    recorder = Recorder()
    args = grpo_config(folder, learning_rate=0.0, per_device_train_batch_size=4, temperature=1.5, **fields)
    grpo_trainer(args, train=rows(1), extra_rewards=[recorder]).train()
    return recorder.steps


def test_a_seed_fixes_the_rollouts_and_every_step_has_its_own(tmp_path):
    first, again, other = (sampled(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert not set(first[0]) & set(other[0]) and len(first) == 2
    assert set(first[0]) != set(first[1])
    assert len(set(first[0])) > 1


def test_rollouts_do_not_depend_on_how_a_step_is_cut_into_batches(tmp_path):
    whole = sampled(tmp_path, max_steps=1)
    cut = sampled(tmp_path, max_steps=1, steps_per_generation=1, gradient_accumulation_steps=1)
    assert whole == cut


def test_every_evaluation_draws_the_same_random_numbers(tmp_path):
    recorder = Recorder()
    args = grpo_config(tmp_path, learning_rate=0.0, eval_strategy="steps", eval_steps=1)
    trainer = grpo_trainer(args, eval_dataset=rows(6, "validation"), extra_rewards=[recorder])
    trainer.train()
    trainer.evaluate()
    trainer.evaluate()
    validation = [recorder.steps[start : start + 2] for start in (1, 4, 6, 8)]
    assert len(recorder.steps) == 10 and all(found == validation[0] for found in validation)
    assert validation[0][0] != validation[0][1] and len(set(validation[0][0])) > 1


def test_the_teacher_may_be_a_real_model(tmp_path):
    teacher = TransformersEngine.load(str(PAIR / "teacher"))
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn("call, right"), teacher=teacher)
    trainer.train()
    (entry,) = steps_of(trainer)
    assert entry["relay/delivered"] == 5 and entry["relay/teacher_failures"] == 0


def test_the_bonus_raises_the_entropy_of_n_and_without_it_nothing_is_learnt_from_equal_rewards(tmp_path):
    plain = grpo_trainer(grpo_config(tmp_path), in_turn("call, wrong"))
    before = weights_of(plain)
    plain.train()
    assert are_equal(before, weights_of(plain))

    args = grpo_config(tmp_path, call_entropy_coef=1.0, learning_rate=1e-5, max_steps=6, per_device_train_batch_size=4)
    trainer = grpo_trainer(args, in_turn("call, wrong"), train=rows(1))
    trainer.train()
    losses = [step["loss"] for step in steps_of(trainer)]  # all rewards are equal, so only the bonus is in them
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1.2 * losses[0] < 0


def test_the_bonus_is_a_mean_however_a_step_is_cut_into_batches(tmp_path):
    losses = []
    for cut in ({}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}):
        args = grpo_config(tmp_path, call_entropy_coef=1.0, max_steps=1, **cut)
        trainer = grpo_trainer(args, in_turn("call, wrong"))
        trainer.train()
        losses.append(steps_of(trainer)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] < -0.1


# --- a teacher that fails ---


def after_failures(folder, failing, **fields):
    plans = ("right", failing, "wrong", "call, wrong")
    args = grpo_config(folder, max_teacher_failures=0.5, beta=0.5, **fields)
    torch.manual_seed(0)
    trainer = grpo_trainer(args, in_turn(*plans))
    trainer.train()
    return trainer


def test_a_rollout_that_its_teacher_failed_moves_no_weight(tmp_path):
    short, long = (after_failures(tmp_path, plan) for plan in ("call, broken", "words, call, broken"))
    fresh = load_student().state_dict()
    assert not are_equal(weights_of(short), fresh)
    # The two runs differ in nothing but what the failed rollouts hold, KL and two steps included
    for name, value in weights_of(short).items():
        assert torch.allclose(value, weights_of(long)[name], atol=1e-6), name


def test_the_gradient_is_that_of_the_other_rollouts(tmp_path):
    trainer = after_failures(tmp_path, "words, call, broken", max_steps=1)
    inputs = trainer._buffered_inputs[0]
    alive = inputs["tool_mask"].mul(inputs["completion_mask"]).sum(1) > 0
    assert alive.tolist().count(False) == 2
    others = {key: value[alive] if value.dim() else value for key, value in inputs.items()}
    gradients = []
    for batch in (inputs, others):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model.train(), batch).backward()
        gradients.append([p.grad.clone() for p in trainer.model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])


def test_failures_are_in_no_figure_but_their_own(tmp_path):
    entries = steps_of(after_failures(tmp_path, "call, broken"))
    for entry in entries:
        assert entry["relay/teacher_failures"] == 0.25
        assert entry["relay/accuracy"] == entry["relay/call_rate"] == pytest.approx(1 / 3)
        assert entry["reward"] == pytest.approx(0.5)
        assert entry["relay/student_solvable"] == 1


def test_a_group_that_failed_as_a_whole(tmp_path):
    broken = []

    def choose(problem, seed):
        broken[:] = broken or [problem]
        return "call, broken" if problem == broken[0] else ("right", "wrong")[seed % 2]

    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1, max_teacher_failures=0.5), choose)
    trainer.train()
    (entry,) = steps_of(trainer)
    assert entry["relay/teacher_failures"] == 0.5 and math.isfinite(entry["loss"])
    assert all(torch.isfinite(value).all() for value in weights_of(trainer).values())
    assert entry["relay/student_solvable"] + entry["relay/teacher_unsolvable"] == 1


def test_a_run_in_which_everything_fails_can_be_allowed(tmp_path):
    args = grpo_config(tmp_path, max_teacher_failures=1.0, eval_strategy="steps", eval_steps=1, save_strategy="steps")
    args.save_steps = 1
    trainer = grpo_trainer(args, in_turn("call, broken"), eval_dataset=rows(2, "validation"))
    before = weights_of(trainer)
    trainer.train()
    assert are_equal(before, weights_of(trainer))
    assert [entry["relay/teacher_failures"] for entry in steps_of(trainer)] == [1, 1]
    assert {f"relay/{name}" for name in METRICS} <= set(steps_of(trainer)[0])


def test_too_many_failures_stop_the_run(tmp_path):
    args = grpo_config(tmp_path, max_teacher_failures=0.2)
    trainer = grpo_trainer(args, in_turn("right", "call, broken", "wrong", "wrong"))
    with pytest.raises(RuntimeError) as caught:
        trainer.train()
    said = str(caught.value)
    assert said.startswith(
        "The teacher failed in 25% of step 1's rollouts, more than max_teacher_failures=20%; the run stops rather than "
        "train on what is left. Look at rollouts 1, 5 of this step in "
        f"{tmp_path}/_rollouts: to '"
    )
    assert said.endswith(
        "=' it answered '<call>9</call>'. The last fault: The teacher is out for lunch. No checkpoint was saved."
    )
    assert trainer.state.global_step == 0


# --- rewards ---


@pytest.fixture
def my_rewards(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "trainer_rewards.py").write_text(
        "def halves(correct, called, teacher_share, scale=1.0):\n"
        "    return [scale * (0.5 if c else 0.25) for c in correct]\n"
        "def too_few(correct, called, teacher_share):\n"
        "    return [1.0]\n"
        "def nothing(correct, called, teacher_share):\n"
        "    pass\n"
        "def only_wrong(correct, called, teacher_share):\n"
        "    return [None if c else float(k) for c, k in zip(correct, called)]\n"
        "def of_columns(prompts, relay_trace, relay_correct, relay_teacher_share, kind, **kwargs):\n"
        "    return [10.0 * len(trace.calls) for trace in relay_trace]\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("trainer_rewards", None)


def rewards_of(trainer):
    return [[column[i] for column in trainer._logs["rewards"].values()] for i in range(8)]


def test_a_reward_of_ones_own_with_options(tmp_path, my_rewards):
    args = grpo_config(tmp_path, max_steps=1, reward="trainer_rewards:halves", reward_kwargs={"scale": 4.0})
    trainer = grpo_trainer(args, in_turn(*MIXED))
    trainer.train()
    assert rewards_of(trainer) == [[2.0], [2.0], [1.0], [1.0]] * 2
    assert steps_of(trainer)[0]["rewards/halves/mean"] == 1.5


def test_extra_rewards_with_weights(tmp_path, my_rewards):
    args = grpo_config(
        tmp_path,
        max_steps=1,
        reward="accuracy",
        extra_rewards=["trainer_rewards:of_columns"],
        reward_weights=[1.0, 0.1],
    )
    trainer = grpo_trainer(args, in_turn(*MIXED))
    trainer.train()
    assert rewards_of(trainer) == [[1.0, 0.0], [1.0, 10.0], [0.0, 0.0], [0.0, 10.0]] * 2
    assert steps_of(trainer)[0]["reward"] == pytest.approx((1 + 2 + 0 + 1) / 4)


def test_none_leaves_a_rollout_out_of_its_group_whatever_other_rewards_say(tmp_path, my_rewards):
    args = grpo_config(
        tmp_path, max_steps=1, reward="trainer_rewards:only_wrong", extra_rewards=["trainer_rewards:of_columns"]
    )
    trainer = grpo_trainer(args, in_turn(*MIXED))
    trainer.train()
    advantages = list(trainer._logs["advantages"])
    assert advantages[0] == advantages[1] == 0 and advantages[2] == pytest.approx(-advantages[3]) != 0


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("too_few", "returned 1 numbers for a group of 4 rollouts"),
        ("nothing", "returned None for a group of 4 rollouts"),
    ],
)
def test_a_reward_that_returns_the_wrong_number_of_values(tmp_path, my_rewards, reward, said):
    trainer = grpo_trainer(grpo_config(tmp_path, reward=f"trainer_rewards:{reward}"), in_turn(*MIXED))
    with pytest.raises(ValueError, match=f"The reward 'trainer_rewards:{reward}' {said}"):
        trainer.train()


@pytest.mark.parametrize(("rho_of", "expected"), [("answer", [0.5, 0.1, 0.0]), ("group", [0.5, 1.0, 0.0])])
def test_what_the_rewards_rho_is_a_share_of(rho_of, expected):
    """Three rollouts of one prompt, the second padded: 2, 4 and 0 teacher tokens in answers of 4, 40 and 4."""
    rows = []
    for teacher, length in ((2, 4), (4, 40), (0, 4)):
        trace = Trace(
            [0], [Span(Author.STUDENT, [1] * (length - teacher), ""), Span(Author.TEACHER, [2] * teacher, "")]
        )
        rows.append(facts(trace, True))
    args = SimpleNamespace(rho_of=rho_of, reward="mine")
    assert score_groups(rows, 3, args, lambda correct, called, rho: rho)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward": "nope"}, "reward is 'nope'; it must be one of difficulty_aware, simple, accuracy"),
        ({"extra_rewards": ["trainer_rewards:nope"]}, "extra_rewards 'trainer_rewards:nope' cannot be imported"),
        ({"reward_kwargs": {"unsolvable": 0.1}}, "reward_kwargs .*unsolvable"),
        ({"reward_kwargs": {"price": -1}}, "price is -1; it must be 0 .* or more"),
        ({"rho_of": "batch"}, "rho_of is 'batch'; it must be answer .* or group"),
        ({"max_teacher_failures": 1.5}, "max_teacher_failures is 1.5"),
        ({"call_entropy_coef": -0.1}, "call_entropy_coef is -0.1"),
        ({"max_malformed": -0.1}, "max_malformed is -0.1; it is a share between 0 and 1"),
        ({"guard_steps": 0}, "guard_steps is 0; it must be at least 1 step"),
        ({"teacher_api": "rest"}, "teacher_api is 'rest'"),
        ({"fixed_call_tokens": 0}, "fixed_call_tokens is 0"),
        ({"max_calls": -1}, "max_calls is -1"),
        ({"teacher_temperature": -1.0}, "temperature must be >= 0"),
        ({"open_tag": "<x>", "close_tag": "<x>"}, "the two must differ"),
        ({"prompt_template": "no place"}, "has no '{problem}'"),
        ({"num_generations": 3}, "rollouts are no whole groups of num_generations=3"),
    ],
)
def test_what_makes_no_run(tmp_path, my_rewards, fields, said):
    with pytest.raises(ValueError, match=said):
        grpo_config(tmp_path, **fields)


@pytest.mark.parametrize(
    ("batch", "steps", "said"),
    [
        (4, 1, "4 (per_device_train_batch_size) x 3 (processes) x 1 (steps_per_generation) = 12 rollouts are no whole"),
        (4, 1, "num_generations=8; per_device_train_batch_size: 8 makes whole ones."),
        (
            9,
            2,
            "= 54 rollouts are no whole groups of num_generations=8; per_device_train_batch_size: 8 or 12 makes whole ones.",
        ),
    ],
)
def test_three_processes_that_split_a_group(tmp_path, monkeypatch, batch, steps, said):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=re.escape(said)):
        grpo_config(tmp_path, num_generations=8, per_device_train_batch_size=batch, steps_per_generation=steps)


# --- checkpoints ---


def test_the_record_and_the_card_are_in_the_output_and_in_every_checkpoint(tmp_path):
    args = grpo_config(tmp_path, save_strategy="steps", save_steps=1, open_tag="<call>", max_calls=2)
    trainer = grpo_trainer(args, in_turn(*MIXED))
    trainer.training_set = "arithmetic"
    trainer.train()
    trainer.save_model(str(tmp_path))
    for folder, steps in ((tmp_path, 2), (tmp_path / "checkpoint-1", 1), (tmp_path / "checkpoint-2", 2)):
        record = load_record(folder)
        assert (record.max_calls, record.steps, record.stage, record.reward) == (2, steps, "grpo", "difficulty_aware")
        assert (
            record.training_set == "arithmetic" and record.answer_marker == "#" and record.max_completion_length == 40
        )
        assert "<call>" in (folder / "README.md").read_text()
        assert json.loads((folder / RELAY_CONFIG_NAME).read_text())["seed"] == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights_of(trainer).items())


def test_a_resumed_run_ends_where_the_whole_run_ends(tmp_path):
    def make(folder, **fields):
        args = grpo_config(folder, max_steps=4, save_strategy="steps", save_steps=2, temperature=1.2, **fields)
        return grpo_trainer(args, teacher=PlannedTeacher(), extra_rewards=[recorder])

    recorder = Recorder()
    whole = make(tmp_path)
    whole.train()
    expected = recorder.steps
    recorder = Recorder()
    rest = make(tmp_path)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rest.state.global_step == 4 and [entry["step"] for entry in steps_of(rest)] == [1, 2, 3, 4]
    assert recorder.steps == expected[2:]
    assert all(torch.allclose(value, weights_of(whole)[name], atol=1e-6) for name, value in weights_of(rest).items())


def test_the_best_checkpoint_is_the_one_with_the_highest_validation_accuracy(tmp_path):
    accuracies = {1: 0.0, 2: 1.0, 3: 0.5}
    step = 0

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            nonlocal step
            step = state.global_step

    counts = {}

    def choose(problem, seed):
        is_validation = problem in validation["prompt"]
        if not is_validation:
            return ("right", "wrong")[seed % 2]
        counts[step] = counts.get(step, -1) + 1
        return "right" if counts[step] % 2 < 2 * accuracies[step] else "wrong"

    validation = rows(4, "validation")
    args = grpo_config(
        tmp_path,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer = grpo_trainer(args, choose, eval_dataset=validation, callbacks=[Watch()])
    trainer.train()
    assert [entry["eval_relay/accuracy"] for entry in evaluations_of(trainer)] == [0.0, 1.0, 0.5]
    assert trainer.state.best_metric == 1.0 and trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(best[name], value) for name, value in weights_of(trainer).items())


def test_a_smaller_last_batch_of_the_evaluation_weighs_no_more_than_its_rollouts(tmp_path):
    args = grpo_config(tmp_path, num_generations_eval=1)
    validation = rows(10, "validation")  # batches of 8 and 2
    wrong = set(validation["prompt"][:3])
    trainer = grpo_trainer(args, lambda problem, _: "wrong" if problem in wrong else "right", eval_dataset=validation)
    assert trainer.evaluate()["eval_relay/accuracy"] == pytest.approx(0.7)
