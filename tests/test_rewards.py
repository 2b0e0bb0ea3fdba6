"""Group rewards: the paper's table cell by cell, the other built-in rewards, and finding a reward by its name."""

import math
import sys

import pytest

from relay_trl.rewards import (
    BUILT_IN,
    Difficulty,
    accuracy,
    check_options,
    difficulty,
    difficulty_aware,
    load_function,
    load_reward,
    simple,
)

# A rollout: (is it correct, has it called, its rho)
RIGHT_ALONE, RIGHT_CALLED = (True, False, 0.0), (True, True, 0.3)
WRONG_ALONE, WRONG_CALLED = (False, False, 0.0), (False, True, 0.2)


def reward_of(function, *rollouts, **kwargs):
    return function(*(list(column) for column in zip(*rollouts, strict=True)), **kwargs)


@pytest.mark.parametrize(
    ("rollout", "expected"), [(RIGHT_ALONE, 1.5), (RIGHT_CALLED, 0.7), (WRONG_ALONE, 0.0), (WRONG_CALLED, 0.0)]
)
def test_first_row_of_the_table_student_solvable(rollout, expected):
    assert reward_of(difficulty_aware, RIGHT_ALONE, rollout) == pytest.approx([1.5, expected])


@pytest.mark.parametrize(("rollout", "expected"), [(RIGHT_CALLED, 0.7), (WRONG_ALONE, -1.0), (WRONG_CALLED, 0.0)])
def test_second_row_of_the_table_teacher_dependent(rollout, expected):
    group = [(True, True, 0.5), rollout]
    assert reward_of(difficulty_aware, *group) == pytest.approx([0.5, expected])


@pytest.mark.parametrize(("rollout", "expected"), [(WRONG_ALONE, 0.0), (WRONG_CALLED, 0.2)])
def test_third_row_of_the_table_teacher_unsolvable(rollout, expected):
    assert reward_of(difficulty_aware, WRONG_ALONE, rollout) == pytest.approx([0.0, expected])


def test_a_whole_group_of_each_kind_in_one_look():
    every = [RIGHT_ALONE, RIGHT_CALLED, WRONG_ALONE, WRONG_CALLED]
    assert reward_of(difficulty_aware, *every) == pytest.approx([1.5, 0.7, 0.0, 0.0])
    assert reward_of(difficulty_aware, *every[1:]) == pytest.approx([0.7, -1.0, 0.0])
    assert reward_of(difficulty_aware, *every[2:]) == pytest.approx([0.0, 0.2])


def test_unsolvable_reward_replaces_rho_in_its_one_cell_only():
    every = [RIGHT_ALONE, RIGHT_CALLED, WRONG_ALONE, WRONG_CALLED]
    assert reward_of(difficulty_aware, *every[2:], unsolvable_reward=0.1) == pytest.approx([0.0, 0.1])
    assert reward_of(difficulty_aware, *every[2:], unsolvable_reward=0.0) == pytest.approx([0.0, 0.0])
    for group in (every, every[1:]):
        plain = reward_of(difficulty_aware, *group)
        assert reward_of(difficulty_aware, *group, unsolvable_reward=0.1) == plain


def test_a_price_is_paid_for_the_teachers_share_of_right_answers():
    every = [RIGHT_ALONE, RIGHT_CALLED, WRONG_ALONE, WRONG_CALLED]
    assert reward_of(difficulty_aware, *every, price=2.0) == pytest.approx([1.5, 0.4, 0.0, 0.0])
    assert reward_of(difficulty_aware, *every[1:], price=2.0) == pytest.approx([0.4, -1.0, 0.0])
    assert reward_of(difficulty_aware, *every[2:], price=2.0) == pytest.approx([0.0, 0.2])  # a reward, not a price
    assert reward_of(simple, *every, price=0.5) == pytest.approx([1.0, 0.85, 0.0, -0.1])
    for function in (difficulty_aware, simple):
        assert reward_of(function, *every, price=1.0) == reward_of(function, *every)
        free = reward_of(function, *every, price=0.0)
        assert free[1] == 1.0


@pytest.mark.parametrize("price", [-0.1, -1, float("nan")])
@pytest.mark.parametrize("name", ["difficulty_aware", "simple"])
def test_a_price_below_0_is_refused_before_a_run(name, price):
    with pytest.raises(ValueError, match="price is .*; it must be 0 .* or more"):
        check_options(load_reward(name), name, {"price": price})
    check_options(load_reward(name), name, {"price": 0})


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ([RIGHT_ALONE], Difficulty.STUDENT_SOLVABLE),
        ([WRONG_CALLED, RIGHT_CALLED, RIGHT_ALONE], Difficulty.STUDENT_SOLVABLE),
        ([RIGHT_CALLED, WRONG_ALONE], Difficulty.TEACHER_DEPENDENT),
        ([WRONG_ALONE, WRONG_CALLED], Difficulty.TEACHER_UNSOLVABLE),
        ([], Difficulty.TEACHER_UNSOLVABLE),
    ],
)
def test_difficulty(group, kind):
    assert difficulty([g[0] for g in group], [g[1] for g in group]) is kind


def test_simple_and_accuracy():
    every = [RIGHT_ALONE, RIGHT_CALLED, WRONG_ALONE, WRONG_CALLED]
    assert reward_of(simple, *every) == pytest.approx([1.0, 0.7, 0.0, -0.2])
    assert reward_of(accuracy, *every) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_rewards_give_one_finite_number_each(name):
    rewards = reward_of(load_reward(name), RIGHT_CALLED, WRONG_ALONE, WRONG_CALLED)
    assert len(rewards) == 3 and all(math.isfinite(reward) for reward in rewards)


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(correct, called, teacher_share):\n    return [None] * len(correct)\n\nNUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_rewards", None)


def test_a_dotted_path(my_rewards):
    assert reward_of(load_reward("my_rewards:length"), RIGHT_ALONE, WRONG_ALONE) == [None, None]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("difficulty", "it must be one of difficulty_aware, simple, accuracy, or a dotted path"),
        ("no_such_module:reward", "No module named 'no_such_module'"),
        ("my_rewards:nothing", "has no attribute 'nothing'"),
        ("my_rewards:NUMBER", "is a int, not a function"),
        (":length", "give a dotted path"),
        ("my_rewards:", "give a dotted path"),
        (["simple"], "or a dotted path"),
        ({"my_rewards:length": 1}, "or a dotted path"),
        (7, "or a dotted path"),
    ],
)
def test_what_is_no_reward(my_rewards, name, said):
    with pytest.raises(ValueError, match="^reward ") as caught:
        load_reward(name)
    assert said in str(caught.value) and repr(name) in str(caught.value)


def test_a_path_that_is_no_text():
    with pytest.raises(ValueError, match="extra_rewards is {'a:b': 1}; give a dotted path"):
        load_function({"a:b": 1}, "extra_rewards")


def test_a_module_that_breaks_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'broken_rewards:f' cannot be imported"):
        load_function("broken_rewards:f", "reward")
