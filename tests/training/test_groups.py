"""Dynamic sampling: groups without spread give their place to other prompts, reproducibly, and a draw without any ends the run."""

import pytest
from helpers.trainers import grpo_config, grpo_trainer, rows, weights_of

from relay_trl.rollout_files import RolloutReader

EASY = {row["prompt"] for k, row in enumerate(rows(16)) if k % 4}  # three problems in four are always right


def some_teach(problem, seed):
    return "right" if problem in EASY or seed % 2 else "wrong"


def trained(folder, choose=some_teach, **fields):
    """A training of two steps of two groups, and the groups that it wrote down."""
    options = {"dynamic_sampling": True, "max_draws": 16, "learning_rate": 0.0, **fields}
    trainer = grpo_trainer(grpo_config(folder, **options), choose, train=rows(16))
    trainer.train()
    return trainer, RolloutReader(folder).poll()[1]


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_every_group_in_the_loss_has_spread_and_the_dropped_are_counted(tmp_path):
    trainer, groups = trained(tmp_path)
    assert len(groups) == 4
    for group in groups:
        assert group["prompt"] not in EASY
        assert len({rollout["reward"] for rollout in group["rollouts"]}) == 2
    assert all(entry["frac_reward_zero_std"] == 0 for entry in steps_of(trainer))
    assert sum(entry["relay/draws"] for entry in steps_of(trainer)) > 2.5
    # TRL's own log speaks of the prompts that took the others' places
    assert not EASY & set(trainer._logs["prompt"])


def test_a_draw_without_it_is_kept_where_it_has_spread(tmp_path):
    plain, before = trained(tmp_path / "plain", dynamic_sampling=False)
    _, after = trained(tmp_path / "dynamic")
    assert [entry["relay/draws"] for entry in steps_of(plain)] == [1, 1]
    kept = 0
    for ours, theirs in zip(after, before, strict=True):
        if theirs["prompt"] not in EASY:
            assert ours == theirs
            kept += 1
    assert 0 < kept < 4


def test_it_is_reproducible_and_the_same_in_micro_batches(tmp_path):
    fields = {"learning_rate": 1e-3}
    first, groups = trained(tmp_path / "a", **fields)
    _, again = trained(tmp_path / "b", **fields)
    cut, split = trained(tmp_path / "c", per_device_train_batch_size=4, gradient_accumulation_steps=2, **fields)
    assert groups == again
    assert [group["prompt"] for group in split] == [group["prompt"] for group in groups]
    ours, theirs = weights_of(cut), weights_of(first)
    assert max((ours[name] - theirs[name]).abs().mean() for name in ours) < 1e-6
    assert trained(tmp_path / "d", seed=2, **fields)[1] != groups


def test_a_place_is_drawn_no_more_often_than_allowed(tmp_path):
    taught = set()

    def one_teaches(problem, seed):  # the first problem that is asked for is the only one that can have spread
        taught.add(problem) if not taught else None
        return "right" if problem not in taught or seed % 2 else "wrong"

    trainer, groups = trained(tmp_path, one_teaches, max_draws=2, max_steps=1)
    spread = [len({rollout["reward"] for rollout in group["rollouts"]}) for group in groups]
    assert sorted(spread) == [1, 2]
    assert steps_of(trainer)[0]["relay/draws"] == 1.5


@pytest.mark.parametrize("plan, cause", [("right", "too easy"), ("wrong", "too hard")])
def test_a_draw_in_which_nothing_teaches_ends_the_run(tmp_path, plan, cause):
    with pytest.raises(RuntimeError, match=f"drew 6 groups for step 1, and in none did rewards differ.*{cause}"):
        trained(tmp_path, lambda problem, seed: plan, max_draws=3)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"max_draws": 1}, "max_draws is 1; it must be at least 2"),
        ({"num_generations": 16, "generation_batch_size": None, "per_device_train_batch_size": 24}, "whole"),
    ],
)
def test_options_that_do_not_fit(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        grpo_config(tmp_path, dynamic_sampling=True, **fields)
