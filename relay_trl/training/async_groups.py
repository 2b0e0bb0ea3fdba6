"""Finished groups of rollouts in asynchronous training: as samples for TRL's trainer, and many of them as one draw.

Owns which of a group's rollouts are learnt from, their advantages, and the version of the weights that wrote each token.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from ..rollout_files import Draw
from .metrics import GRADED, facts, summarize


@dataclass(slots=True)
class RelaySample(RolloutSample):
    """TRL's sample, with the version of the weights that wrote each token.

    Args:
        versions (`np.ndarray` of shape (T,)): -1 for what the student did not write.
    """

    versions: np.ndarray | None = None


@dataclass
class Group:
    """The finished rollouts of one prompt.

    Args:
        number (`int`): of the prompt in this run.
        draw ([`~relay_trl.rollout_files.Draw`]): all of them.
        samples (`list[RelaySample]`): those with a reward.
    """

    number: int
    draw: Draw
    samples: list[RelaySample]


def to_samples(draw: Draw, versions: Sequence[Sequence[int]], number: int) -> list[RelaySample]:
    """What TRL's trainer learns from: the scored rollouts of a group, the teacher's tokens out of the loss.

    Args:
        draw ([`~relay_trl.rollout_files.Draw`]): of one group.
        versions (`Sequence[Sequence[int]]`): of the weights that wrote each of the student's tokens, for every rollout.
        number (`int`): of the group.
    """
    samples = []
    for i, trace in enumerate(draw.traces):
        if trace.has_failed or draw.rewards[i] != draw.rewards[i]:
            continue
        if trace.logprobs is None:
            raise ValueError("The student's engine gives no log-probabilities, which asynchronous training needs.")
        before = len(trace.prompt_ids)
        mask = np.asarray([0] * before + trace.loss_mask, dtype=np.int64)
        wrote = np.full(len(mask), -1)
        wrote[mask == 1] = versions[i]
        samples.append(
            RelaySample(
                prompt=[{"role": "user", "content": str(draw.rows[i]["prompt"])}],
                completion=[{"role": "assistant", "content": trace.text}],
                input_ids=np.asarray(trace.prompt_ids + trace.completion_ids, dtype=np.int64),
                completion_mask=mask,
                old_log_probs=np.asarray([0.0] * before + trace.logprobs, dtype=np.float32),
                advantage=draw.advantages[i],
                model_version=min(versions[i]),
                group_id=number,
                metrics={"reward": draw.rewards[i]},
                enqueued_at=time.time(),
                versions=wrote,
            )
        )
    return samples


def advantages_of(rewards: Sequence[float], scale: str) -> list[float]:
    """How far each reward of a group lies above its mean, with `scale` `group` in standard deviations; 0 for one that is not scored
    (NaN).
    """
    scored = [reward for reward in rewards if reward == reward]
    if not scored:
        return [0.0] * len(rewards)
    mean, spread = statistics.fmean(scored), statistics.pstdev(scored) + 1e-4 if scale == "group" else 1.0
    return [(reward - mean) / spread if reward == reward else 0.0 for reward in rewards]


def merge(draws: Sequence[Draw], step: int, batch: int) -> Draw:
    """Groups that came one by one as one draw, with its metrics.

    Args:
        draws (`Sequence[Draw]`): of one group each.
        step (`int`): optimizer step that they are counted to.
        batch (`int`): which draw of this step.
    """
    names = ("rows", "traces", "correct", "advantages", "rewards", "kinds")
    every = {name: [item for draw in draws for item in getattr(draw, name)] for name in names}
    whole = Draw("train", step, 0, draws[0].size, batch=batch, **every)
    found = [facts(trace, is_correct) for trace, is_correct in zip(whole.traces, whole.correct, strict=True)]
    whole.metrics = summarize(found, [kind for kind in whole.kinds if kind is not None])
    whole.metrics |= {"rollout_s": max(draw.rollout_s for draw in draws), "draws": 1.0, "is_effective_share": 1.0}
    whole.metrics |= {name: sum(draw.metrics[name] for draw in draws) for name in ("grading_s", *GRADED)}
    return whole
