"""Group rewards: numbers for all rollouts of one prompt, from what they have in common (paper, section 3.3).

Owns the built-in rewards and how a user's own is found. Which rollouts form a group, across processes and micro-batches,
is `training/`'s business; whether an answer is right is `grading/grader.py`'s.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

GroupReward = Callable[[Sequence[bool], Sequence[bool], Sequence[float]], Sequence[float | None]]
"""`reward(correct, called, teacher_share)`: three sequences of one length, one entry per rollout of the same prompt, to
one number each; `None` leaves a rollout unscored and out of its group's baseline."""


class Difficulty(StrEnum):
    """What a group shows about its prompt: solved without a call, solved only with one, or not solved."""

    STUDENT_SOLVABLE = "student_solvable"
    TEACHER_DEPENDENT = "teacher_dependent"
    TEACHER_UNSOLVABLE = "teacher_unsolvable"


def difficulty(correct: Sequence[bool], called: Sequence[bool]) -> Difficulty:
    """The kind of a group (paper, table of section 3.3)."""
    if any(c and not k for c, k in zip(correct, called, strict=True)):
        return Difficulty.STUDENT_SOLVABLE
    return Difficulty.TEACHER_DEPENDENT if any(correct) else Difficulty.TEACHER_UNSOLVABLE


def difficulty_aware(
    correct: Sequence[bool],
    called: Sequence[bool],
    teacher_share: Sequence[float],
    unsolvable_reward: float | None = None,
) -> list[float]:
    """The paper's reward, which prefers no call where one rollout shows that none was needed.

    | the group has | correct, no call | correct, call | wrong, no call | wrong, call |
    |---|---|---|---|---|
    | a correct rollout without a call | 1.5 | 1 - rho | 0 | 0 |
    | else a correct rollout with a call | - | 1 - rho | -1 | 0 |
    | else | - | - | 0 | rho |

    Args:
        correct, called, teacher_share (`Sequence`, shape (G,)): one prompt's rollouts.
        unsolvable_reward (`float`, *optional*): a constant in place of the last cell's rho, which, divided by the
            group's spread, rewards ever longer calls.
    """
    kind = difficulty(correct, called)
    rewards = []
    for is_correct, has_called, rho in zip(correct, called, teacher_share, strict=True):
        if is_correct:
            rewards.append(1.0 - rho if has_called else 1.5)
        elif kind is Difficulty.TEACHER_DEPENDENT:
            rewards.append(0.0 if has_called else -1.0)
        elif kind is Difficulty.TEACHER_UNSOLVABLE and has_called:
            rewards.append(rho if unsolvable_reward is None else unsolvable_reward)
        else:
            rewards.append(0.0)
    return rewards


def simple(correct: Sequence[bool], called: Sequence[bool], teacher_share: Sequence[float]) -> list[float]:
    """1[correct] - rho, without a look at the group (paper, section 3.3)."""
    return [float(is_correct) - rho for is_correct, rho in zip(correct, teacher_share, strict=True)]


def accuracy(correct: Sequence[bool], called: Sequence[bool], teacher_share: Sequence[float]) -> list[float]:
    """1[correct]: plain GRPO, where calls cost nothing."""
    return [float(is_correct) for is_correct in correct]


BUILT_IN: dict[str, Callable] = {"difficulty_aware": difficulty_aware, "simple": simple, "accuracy": accuracy}


def load_function(path: str, what: str) -> Callable:
    """The function at the dotted path `package.module:function`.

    Raises:
        ValueError: the path is not of this form, or leads nowhere.
    """
    module, _, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not module or not name:
        raise ValueError(f"{what} is {path!r}; give a dotted path such as 'my_package.my_module:my_function'.")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        raise ValueError(
            f"{what} {path!r} cannot be imported ({error}). Check the spelling, and that the module's folder is on "
            "PYTHONPATH."
        ) from error
    if not callable(function):
        raise ValueError(f"{what} {path!r} is a {type(function).__name__}, not a function.")
    return function


def load_reward(name: str) -> Callable:
    """A group reward by its built-in name or by a dotted path `package.module:function`.

    Raises:
        ValueError: neither leads to a function.
    """
    if isinstance(name, str) and name in BUILT_IN:
        return BUILT_IN[name]
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(
            f"reward is {name!r}; it must be one of {', '.join(BUILT_IN)}, or a dotted path 'package.module:function'."
        )
    return load_function(name, "reward")


def check_options(reward: Callable, name: str, options: Mapping[str, Any]):
    """Refuses options that a reward does not take, before a run comes to its first reward.

    Raises:
        ValueError: naming those that it takes.
    """
    try:
        signature = inspect.signature(reward)
    except ValueError:  # of a function without one, such as some written in C
        return
    try:
        signature.bind([], [], [], **options)
    except TypeError as error:
        raise ValueError(
            f"reward_kwargs is {dict(options)}, which the reward {name!r} cannot be called with ({error}); it is called "
            f"as {name}{signature}."
        ) from error
