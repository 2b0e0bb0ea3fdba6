"""Group rewards: one number for each rollout of a prompt, which may depend on the whole group (paper, section 3.3).

Owns the built-in rewards and how a user's own reward is found. `training/grpo.py` forms the groups, across processes and
micro-batches; `grading/` decides whether an answer is right.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

GroupReward = Callable[[Sequence[bool], Sequence[bool], Sequence[float]], Sequence[float | None]]
"""`reward(correct, called, teacher_share)`: gets three sequences with one entry per rollout of a prompt, returns one number
per rollout. `None` leaves a rollout without a reward and out of its group's baseline."""


class Difficulty(StrEnum):
    """How hard a prompt was for its group: solved without a call, solved only with a call, or not solved."""

    STUDENT_SOLVABLE = "student_solvable"
    TEACHER_DEPENDENT = "teacher_dependent"
    TEACHER_UNSOLVABLE = "teacher_unsolvable"


def difficulty(correct: Sequence[bool], called: Sequence[bool]) -> Difficulty:
    """The difficulty of a group (paper, table of section 3.3)."""
    if any(c and not k for c, k in zip(correct, called, strict=True)):
        return Difficulty.STUDENT_SOLVABLE
    return Difficulty.TEACHER_DEPENDENT if any(correct) else Difficulty.TEACHER_UNSOLVABLE


def difficulty_aware(
    correct: Sequence[bool],
    called: Sequence[bool],
    teacher_share: Sequence[float],
    unsolvable_reward: float | None = None,
    price: float = 1.0,
) -> list[float]:
    """The paper's reward. It prefers answers without a call if one rollout of the group shows that none was needed.

    | the group has | correct, no call | correct, call | wrong, no call | wrong, call |
    |---|---|---|---|---|
    | a correct rollout without a call | 1.5 | 1 - price * rho | 0 | 0 |
    | else a correct rollout with a call | - | 1 - price * rho | -1 | 0 |
    | else | - | - | 0 | rho |

    Args:
        correct, called, teacher_share (`Sequence`, shape (G,)): one prompt's rollouts.
        unsolvable_reward (`float`, *optional*): a constant instead of rho in the last cell. GRPO divides by the group's
            spread, so rho there rewards longer and longer calls.
        price (`float`, defaults to `1.0`, the paper's): what a right answer loses for a teacher share of 1. The last cell, where
            rho is a reward, has none.

    Raises:
        ValueError: `price` is below 0.
    """
    _check_price(price)
    kind = difficulty(correct, called)
    rewards = []
    for is_correct, has_called, rho in zip(correct, called, teacher_share, strict=True):
        if is_correct:
            rewards.append(1.0 - price * rho if has_called else 1.5)
        elif kind is Difficulty.TEACHER_DEPENDENT:
            rewards.append(0.0 if has_called else -1.0)
        elif kind is Difficulty.TEACHER_UNSOLVABLE and has_called:
            rewards.append(rho if unsolvable_reward is None else unsolvable_reward)
        else:
            rewards.append(0.0)
    return rewards


def simple(
    correct: Sequence[bool], called: Sequence[bool], teacher_share: Sequence[float], price: float = 1.0
) -> list[float]:
    """1[correct] - price * rho, independent of the group (paper, section 3.3, with a price of 1).

    Raises:
        ValueError: `price` is below 0.
    """
    _check_price(price)
    return [float(is_correct) - price * rho for is_correct, rho in zip(correct, teacher_share, strict=True)]


def _check_price(price: float):
    if not price >= 0:
        raise ValueError(
            f"price is {price}; it must be 0 (the teacher is free) or more. A price of 1 is the paper's; below 0 the student "
            "would be paid for calling."
        )


def accuracy(correct: Sequence[bool], called: Sequence[bool], teacher_share: Sequence[float]) -> list[float]:
    """1[correct]: plain GRPO; calls cost nothing."""
    return [float(is_correct) for is_correct in correct]


BUILT_IN: dict[str, GroupReward] = {"difficulty_aware": difficulty_aware, "simple": simple, "accuracy": accuracy}


def load_function(path: str, what: str) -> Callable:
    """The function at the dotted path `package.module:function`.

    Raises:
        ValueError: the path does not have this form, or there is no such function.
    """
    module, _, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not module or not name:
        raise ValueError(f"{what} is {path!r}; give a dotted path such as 'my_package.my_module:my_function'.")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # the import of a user's module can fail in any way
        raise ValueError(
            f"{what} {path!r} cannot be imported ({error}). Check the spelling, and that the module's folder is on "
            "PYTHONPATH."
        ) from error
    if not callable(function):
        raise ValueError(f"{what} {path!r} is a {type(function).__name__}, not a function.")
    return function


def load_reward(name: str) -> GroupReward:
    """A group reward by its built-in name or by a dotted path `package.module:function`.

    Raises:
        ValueError: there is no such reward.
    """
    if isinstance(name, str) and name in BUILT_IN:
        return BUILT_IN[name]
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(
            f"reward is {name!r}; it must be one of {', '.join(BUILT_IN)}, or a dotted path 'package.module:function'."
        )
    return load_function(name, "reward")


def check_options(reward: Callable, name: str, options: Mapping[str, Any]):
    """Refuses options that a reward does not take, before the run starts.

    Raises:
        ValueError: with the options that the reward takes.
    """
    try:
        signature = inspect.signature(reward)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind([], [], [], **options)
    except TypeError as error:
        raise ValueError(
            f"reward_kwargs is {dict(options)}, which the reward {name!r} cannot be called with ({error}); it is called "
            f"as {name}{signature}."
        ) from error
    if reward in BUILT_IN.values():
        reward([], [], [], **options)  # what the values of its options are checked with
