"""The group reward of a global batch: worked out on the first process, so that every process has the same numbers.

Owns which rollouts form a group and what a reward function may return. The rewards themselves are in `rewards.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..rewards import Difficulty, difficulty
from .metrics import FACTS, shares

_COLUMN = {name: i for i, name in enumerate(FACTS)}


def score_groups(
    reward: Callable, name: str, rows: Sequence[Sequence[float]], size: int, rho_of: str
) -> tuple[list[float], list[Difficulty | None]]:
    """Rewards of all rollouts of the global batch, and the difficulty of every group.

    Args:
        reward (`Callable`): a group reward, see [`~relay_trl.rewards.GroupReward`].
        name (`str`): as people call it.
        rows (`Sequence` of shape (N, len(FACTS))): the facts of all rollouts, group after group.
        size (`int`): rollouts of a group.
        rho_of (`str`): which rho a reward sees, see [`~relay_trl.training.metrics.shares`].

    Returns:
        `tuple`: N rewards (NaN: not scored), and a difficulty for each group (`None` if all its rollouts failed).

    Raises:
        ValueError: the reward does not return one number (or `None`) for each rollout.
    """
    rewards, kinds = [float("nan")] * len(rows), []
    for start in range(0, len(rows), size):
        group = [i for i in range(start, start + size) if not rows[i][_COLUMN["failed"]]]
        if not group:
            kinds.append(None)
            continue
        correct = [bool(rows[i][_COLUMN["correct"]]) for i in group]
        called = [bool(rows[i][_COLUMN["called"]]) for i in group]
        values = reward(correct, called, shares([rows[i] for i in group], rho_of))
        if not isinstance(values, Iterable) or len(values := list(values)) != len(group):
            returned = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
            raise ValueError(
                f"The reward {name!r} returned {returned} for a group of {len(group)} rollouts; it must return one (or None) "
                "for each."
            )
        kinds.append(difficulty(correct, called))
        for i, value in zip(group, values, strict=True):
            rewards[i] = float("nan") if value is None else float(value)
    return rewards, kinds


def from_first_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """What `work` returns on the first process, on every process; they wait for it, and its error ends them all.

    Raises:
        RuntimeError: on the others, if `work` raised on the first process, which raises its own error.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except Exception as raised:
            error = raised
    told = [result, None if error is None else " ".join(str(error).split()) or type(error).__name__]
    broadcast_object_list(told)
    if error is not None:
        raise error
    if told[1] is not None:
        raise RuntimeError(told[1])
    return told[0]


def reward_column(name: str) -> Callable:
    """A reward function that only reserves the first column of TRL's matrix. The group reward is known after the gather."""

    def column(prompts, **kwargs):
        return [0.0] * len(prompts)

    column.__name__ = name.rpartition(":")[2]
    return column
