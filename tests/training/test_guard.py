"""The guard: which limits end a run, after how many steps, with which message, and which checkpoint is left."""

import re

import pytest
from helpers.trainers import grpo_config, grpo_trainer, in_turn, rows
from transformers import TrainerCallback

from relay_trl.training.guard import flat_groups

GOOD = ("right", "wrong", "call, right", "wrong")
OFF = {"max_teacher_failures": 1.0, "max_malformed": 1.0, "max_truncated": 1.0, "max_zero_variance": 1.0}

# A limit, the plans that pass it, and what is said of them
BAD = {
    "max_teacher_failures": (("call, broken", "wrong", "right", "call, broken"), "The teacher failed in 50%"),
    "max_malformed": (("malformed, right", "wrong", "malformed, right", "wrong"), "A call was malformed in 50%"),
    "max_truncated": (("endless", "right", "wrong", "endless"), "The completion budget cut 50%"),
    "max_zero_variance": (("right",), "All rewards were the same in 100%"),
}
STEPS = {"max_teacher_failures": "teacher_failure_steps"}


class Clock(TrainerCallback):
    """Says how many steps are done."""

    step = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step


def run(folder, plans_of_step, **fields):
    """Trains on plans that depend on the step; returns the trainer and what ended it, if anything did."""
    clock, asked = Clock(), {}

    def choose(problem, seed):
        plans = plans_of_step(clock.step)
        key = (problem, clock.step)
        asked[key] = asked.get(key, -1) + 1
        return plans[asked[key] % len(plans)]

    args = grpo_config(folder, **{"max_steps": 8, "learning_rate": 1e-5, **OFF, **fields})
    trainer = grpo_trainer(args, choose, callbacks=[clock])
    try:
        trainer.train()
    except RuntimeError as error:
        return trainer, str(error)
    return trainer, None


@pytest.mark.parametrize("limit", BAD)
def test_a_limit_that_is_passed_for_long_ends_the_run_and_the_last_good_checkpoint_is_left(tmp_path, limit):
    bad, said = BAD[limit]
    steps = STEPS.get(limit, "guard_steps")
    fields = {limit: 0.4, steps: 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    # two good steps, two bad ones, a good one, and then bad ones only
    trainer, error = run(tmp_path, lambda step: GOOD if step in (0, 1, 4) else bad, **fields)
    assert error is not None and trainer.state.global_step == 7
    assert error.startswith(f"{said} of step 8's ") and f"more than {limit}=40% for 3 steps in a row" in error
    assert re.search(r"Look at rollouts? \d.* of this step in .*_rollouts: to '\d\d.*=' it answered '", error)
    # Malformed and endless answers may have spoilt the weights: what steps 3, 4, 6 and 7 left was never written
    last = {"max_malformed": (2, 5), "max_truncated": (2, 5)}.get(limit, (6, 7))
    assert f"The last checkpoint is {tmp_path}/checkpoint-{last[1]}." in error
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in last]


@pytest.mark.parametrize("limit", BAD)
def test_a_limit_is_off_by_choice_only(tmp_path, limit):
    trainer, error = run(tmp_path, lambda step: BAD[limit][0], max_steps=2, guard_steps=1)
    assert error is None and trainer.state.global_step == 2


def test_by_default_a_step_with_a_bad_teacher_is_enough_and_other_limits_take_twenty(tmp_path):
    args = grpo_config(tmp_path)
    assert (args.teacher_failure_steps, args.guard_steps) == (1, 20)
    assert (args.max_teacher_failures, args.max_malformed) == (0.1, 0.5)
    assert (args.max_truncated, args.max_zero_variance) == (0.95, 0.99)


def test_a_run_that_ends_as_planned_is_saved_whatever_its_last_steps_were(tmp_path):
    fields = {"max_malformed": 0.4, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    _, error = run(tmp_path, lambda step: BAD["max_malformed"][0], **fields)
    assert error is None
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_an_evaluation_that_loses_its_teacher_ends_the_run(tmp_path):
    args = grpo_config(tmp_path, max_teacher_failures=0.2, teacher_failure_steps=5)
    trainer = grpo_trainer(args, in_turn("right", "call, broken"), eval_dataset=rows(4, "validation"))
    with pytest.raises(RuntimeError, match=r"failed in 50% of an evaluation at step 0's rollouts.*out for lunch"):
        trainer.evaluate()


def test_nothing_was_saved(tmp_path):
    _, error = run(tmp_path, lambda step: BAD["max_truncated"][0], max_truncated=0.1, guard_steps=1)
    assert "No checkpoint was saved." in error and "raise guard_steps, or max_truncated (1 switches it off)" in error


def test_groups_of_one_reward():
    nan = float("nan")
    assert flat_groups([1, 1, 1, 0, nan, 2, nan, nan, 0.5, 0.5 + 1e-9], 2) == [True, False, True, None, True]
