"""Groups of rollouts: what each rollout of one earns, and which groups are drawn again because they teach nothing.

Owns the group reward's call, and for `dynamic_sampling` which prompt comes next and when to stop asking. Each place of a draw
has a stream of prompts of its own, fixed by seed, step and place: a place goes on as soon as its own group is known to have
one reward for all, and the draw is the same however it is split over processes.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..engines.base import Engine
from ..rewards import difficulty
from ..rollout_files import Draw
from ..trace import Trace
from .config import RelayFields
from .guard import flat_groups
from .metrics import FACTS, facts, shares
from .rollouts import rollout_seed, together


def score_groups(
    rows: Sequence[Sequence[float]], size: int, args: RelayFields, reward: Callable
) -> tuple[list[float], list[str | None]]:
    """Rewards of rollouts, group by group, and the difficulty of every group.

    Args:
        rows (`Sequence` of shape (N, len(FACTS))): of each rollout, see `metrics.py`.
        size (`int`): rollouts of a group.
        args ([`~relay_trl.training.config.RelayFields`]): which reward it is, and what its rho is a share of.
        reward (`Callable`): the group reward, its options filled in.

    Returns:
        `tuple[list[float], list[str | None]]`: N numbers (NaN: not scored), and N / size kinds (`None` of a group that its
        teacher failed as a whole).
    """
    rewards, kinds = [float("nan")] * len(rows), []
    column = {name: i for i, name in enumerate(FACTS)}
    for start in range(0, len(rows), size):
        group = [i for i in range(start, start + size) if not rows[i][column["failed"]]]
        if not group:
            kinds.append(None)
            continue
        correct = [bool(rows[i][column["correct"]]) for i in group]
        called = [bool(rows[i][column["called"]]) for i in group]
        values = reward(correct, called, shares([rows[i] for i in group], args.rho_of))
        if not isinstance(values, Iterable) or len(values := list(values)) != len(group):
            returned = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
            raise ValueError(
                f"The reward {args.reward!r} returned {returned} for a group of {len(group)} rollouts; it must return one (or None) "
                "for each."
            )
        kinds.append(difficulty(correct, called))
        for i, value in zip(group, values, strict=True):
            rewards[i] = float("nan") if value is None else float(value)
    return rewards, kinds


async def draw_with_spread(trainer: Any, draw: Draw, student: Engine) -> list[Trace]:
    """This process's rollouts of a draw. Groups without any spread of the group reward are drawn again with other prompts,
    `max_draws` times at most; what the last of them gave is kept then.

    Args:
        trainer ([`RelayGRPOTrainer`]).
        draw ([`~relay_trl.rollout_files.Draw`]): gets the rows and verdicts of the groups that are kept, and how many were
            drawn.
        student ([`Engine`]).
    """
    size, rows = draw.size, list(draw.rows)
    places = range(0, len(rows), size)
    kept = await together([_draw_place(trainer, draw, student, rows[k], draw.first + k) for k in places])
    draw.drawn = sum(tries for _, _, _, tries in kept)
    draw.correct = [verdict for _, _, correct, _ in kept for verdict in correct]
    for k, (row, _, _, tries) in zip(places, kept, strict=True):
        if tries > 1:
            for i in range(k, k + size):
                draw.rows[i].clear()  # TRL goes on with these very dictionaries
                draw.rows[i].update(row)
    return [trace for _, traces, _, _ in kept for trace in traces]


async def _draw_place(
    trainer: Any, draw: Draw, student: Engine, row: dict[str, Any], place: int
) -> tuple[dict[str, Any], list[Trace], list[bool], int]:
    """The group at one place of the draw: its row, rollouts, verdicts, and the groups that were drawn for it."""
    args, where = trainer.args, ("train", draw.step - 1, draw.batch)
    for tries in range(args.max_draws):
        # The first is what would be drawn without dynamic sampling
        names = [(place + i, tries) if tries else (place + i,) for i in range(draw.size)]
        seeds = [rollout_seed(args.seed, *where, *name) for name in names]
        traces = await together(trainer.rollouts.jobs([row["prompt"]] * draw.size, seeds, student))
        correct = await asyncio.to_thread(trainer.grader.grade, traces, [row] * draw.size)
        found = [facts(trace, is_correct) for trace, is_correct in zip(traces, correct, strict=True)]
        # One that its teacher failed says nothing of the prompt, and is the guard's business
        rewards, _ = score_groups(found, draw.size, args, trainer.group_reward)
        if not flat_groups(rewards, draw.size)[0] or tries == args.max_draws - 1:
            return dict(row), traces, correct, tries + 1
        rows: Any = trainer.train_dataset
        row = rows[rollout_seed(args.seed, "further prompt", *where, place, tries) % len(rows)]
    raise AssertionError("max_draws is at least 2")


def reward_column(name: str) -> Callable:
    """A reward function that only reserves the first column of TRL's matrix. The group reward is known after the gather."""

    def column(prompts, **kwargs):
        return [0.0] * len(prompts)

    column.__name__ = name.rpartition(":")[2]
    return column
