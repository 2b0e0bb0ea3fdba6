"""Ends a training whose steps no longer teach or teach nonsense, before the last good weights are lost.

Owns the limits, for how many steps one may be passed, and the message at the end. `metrics.py` owns the facts of a rollout;
the trainer passes them on.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ..rollout_files import FOLDER, Draw
from ..trace import StopReason, Trace

logger = logging.getLogger(__name__)

_SHOWN = 5
_EQUAL = 1e-6  # rewards closer than this teach nothing


@dataclass(frozen=True)
class _Limit:
    """A limit: its options, and its message with places for `{share}` and `{step}`."""

    option: str
    steps_option: str
    said: str


LIMITS = {
    "teacher_failures": _Limit(
        "max_teacher_failures", "teacher_failure_steps", "The teacher failed in {share} of step {step}'s rollouts"
    ),
    "student_failures": _Limit(
        "max_student_failures",
        "teacher_failure_steps",
        "The student's engine failed in {share} of step {step}'s rollouts",
    ),
    "malformed": _Limit("max_malformed", "guard_steps", "A call was malformed in {share} of step {step}'s rollouts"),
    "truncated": _Limit(
        "max_truncated", "guard_steps", "The completion budget cut {share} of step {step}'s rollouts short"
    ),
    "zero_variance": _Limit(
        "max_zero_variance", "guard_steps", "All rewards were the same in {share} of step {step}'s groups"
    ),
}
"""All limits, in the order in which they are checked."""

LOSING = ("teacher_failures", "student_failures")
"""Limits on rollouts that were lost, which say nothing about the student."""

SPOILING = ("malformed", "truncated")
"""Limits that mean that the weights may be damaged; at the others a step only has no gradient."""


@dataclass(frozen=True)
class Suspect:
    """A rollout of this process, for messages.

    Args:
        index (`int`): its place in the global batch.
        problem (`str` or `list[dict]`), trace ([`Trace`]).
        is_flat (`bool`): whether all rewards of its group are the same.
    """

    index: int
    problem: str | list[dict]
    trace: Trace
    is_flat: bool

    def shows(self, name: str) -> bool:
        """Whether the limit `name` counts it."""
        return {
            "teacher_failures": self.trace.stop is StopReason.TEACHER_ERROR,
            "student_failures": self.trace.stop is StopReason.STUDENT_ERROR,
            "malformed": self.trace.malformed > 0 and not self.trace.has_failed,
            "truncated": self.trace.stop is StopReason.LENGTH,
            "zero_variance": self.is_flat and not self.trace.has_failed,
        }[name]


class Guard(TrainerCallback):
    """Counts for how many steps in a row each limit is passed, and ends the run when they are too many.

    While one of the [`SPOILING`] limits is passed, no checkpoint is saved, so that earlier ones are not rotated away. At the
    planned end of the run a checkpoint is always saved.

    Args:
        args ([`RelayGRPOConfig`]): with the limits.
    """

    def __init__(self, args):
        self._folder = args.output_dir
        self._rollouts = os.path.join(args.output_dir, FOLDER) if args.rollouts_max_mb else None
        self._limits = {name: getattr(args, limit.option) for name, limit in LIMITS.items()}
        self._patience = {name: getattr(args, limit.steps_option) for name, limit in LIMITS.items()}
        self._is_dynamic = args.dynamic_sampling
        self.streaks = dict.fromkeys(LIMITS, 0)
        self.begin_evaluation(0)
        self._has_warned = False

    def watch(self, step: int, shares: dict[str, float], suspects: Sequence[Suspect]):
        """Checks a training step. `shares` must be the same on every process.

        Args:
            step (`int`): the optimizer step that the rollouts were drawn for, counted from 1 as in the log.
            shares (`dict[str, float]`): a share for each name in [`LIMITS`]; NaN if there is nothing to count.
            suspects (`Sequence[Suspect]`): this process's rollouts.

        Raises:
            RuntimeError: a limit was passed for too many steps.
        """
        for name, share in shares.items():
            self.streaks[name] = self.streaks[name] + 1 if share > self._limits[name] else 0
            if self.streaks[name] >= self._patience[name]:
                raise RuntimeError(self._say(name, share, step, suspects))

    def look(self, draw: Draw):
        """Takes in a draw of a training or of an evaluation.

        Raises:
            RuntimeError: a limit has been passed for too long.
        """
        flat = flat_groups(draw.rewards, draw.size)
        suspects = [
            Suspect(draw.first + i, row["prompt"], trace, bool(flat[(draw.first + i) // draw.size]))
            for i, (row, trace) in enumerate(zip(draw.rows, draw.traces, strict=True))
        ]
        if draw.mode == "eval":
            self._evaluate(draw, suspects)
            return
        known = [is_flat for is_flat in flat if is_flat is not None]
        if self._is_dynamic and known and all(known):
            drawn = round(draw.metrics["draws"] * len(flat))
            raise RuntimeError(nothing_to_learn(draw.step, drawn, draw.metrics["accuracy"]))
        shares = {
            "teacher_failures": draw.metrics["teacher_failures"],
            "student_failures": draw.metrics["student_failures"],
            "malformed": draw.metrics["malformed_rate"],
            "truncated": draw.metrics["truncated"],
            "zero_variance": sum(known) / len(known) if known else float("nan"),
        }
        self.watch(draw.step, shares, suspects)

    def begin_evaluation(self, total: int):
        """Counts anew, for an evaluation of `total` rollouts."""
        self._evaluated, self._total, self._lost, self._lost_suspects = 0, total, dict.fromkeys(LOSING, 0), []

    def _evaluate(self, draw: Draw, suspects: Sequence[Suspect]):
        """Ends the run over an evaluation that has lost too many of all its rollouts, as soon as that is certain: its accuracy
        would be that of the others.
        """
        self._evaluated += len(draw.rewards)
        self._lost_suspects = [s for s in (*self._lost_suspects, *suspects) if s.trace.has_failed][:_SHOWN]
        for name in LOSING:
            self._lost[name] += round(draw.metrics[name] * len(draw.rewards))
            share = self._lost[name] / max(self._total, self._evaluated)
            if share > self._limits[name]:
                raise RuntimeError(self._say(name, share, draw.step, self._lost_suspects, "an evaluation at "))

    def on_step_end(self, args, state, control, **kwargs):
        """Saves no checkpoint while the weights may be damaged."""
        passed = [LIMITS[name].option for name in SPOILING if self.streaks[name]]
        self._has_warned = self._has_warned and bool(passed)
        if passed and control.should_save and state.global_step < state.max_steps:
            control.should_save = False
            if not self._has_warned:
                logger.warning(
                    f"Step {state.global_step}: no checkpoint is saved while {' and '.join(passed)} is passed, so that "
                    "those from before stay."
                )
            self._has_warned = True

    def _say(self, name: str, share: float, step: int, suspects: Sequence[Suspect], where: str = "") -> str:
        limit, streak = LIMITS[name], self.streaks[name]
        said = limit.said.format(share=f"{share:.0%}", step=f"{step}").replace("of step", f"of {where}step")
        for_long = f" for {streak} steps in a row" if streak > 1 else ""
        guilty = [suspect for suspect in suspects if suspect.shows(name)]
        parts = [
            f"{said}, more than {limit.option}={self._limits[name]:.0%}{for_long}; the run stops rather than train on what "
            "is left."
        ]
        if guilty:
            indices = f"rollout{'s' * (len(guilty) > 1)} " + ", ".join(str(one.index) for one in guilty[:_SHOWN])
            more = f" and {len(guilty) - _SHOWN} more" if len(guilty) > _SHOWN else ""
            place = f" in {self._rollouts}" if self._rollouts and not where else ""
            parts.append(f"Look at {indices}{more} of this step{place}: {_shown(guilty[0])}.")
            errors = [suspect.trace.error for suspect in guilty if suspect.trace.error]
            if errors:
                parts.append(f"The last fault: {errors[-1]}")
        last = get_last_checkpoint(self._folder)
        parts.append(f"The last checkpoint is {last}." if last else "No checkpoint was saved.")
        if name not in LOSING:
            parts.append(f"If this is meant, raise {limit.steps_option}, or {limit.option} (1 switches it off).")
        return " ".join(parts)


def _shown(suspect: Suspect) -> str:
    problem = suspect.problem if isinstance(suspect.problem, str) else str(suspect.problem[-1].get("content", ""))
    answer = suspect.trace.text
    return f"to {_short(problem)} it answered {_short(answer)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:60]} ... {text[-50:]}")


def flat_groups(rewards: Sequence[float], size: int) -> list[bool | None]:
    """Whether all rewards are the same, for every group of `size` rewards (NaN: not scored); `None` if none is scored."""
    found: list[bool | None] = []
    for start in range(0, len(rewards), size):
        scored = [reward for reward in rewards[start : start + size] if reward == reward]
        found.append(max(scored) - min(scored) <= _EQUAL if scored else None)
    return found


def nothing_to_learn(step: int, drawn: int, accuracy: float) -> str:
    """What to say of a draw without a single group that has spread."""
    cause = (
        "the problems are too hard, or answers are not where answer_marker says"
        if accuracy < 0.5
        else "the problems are too easy"
    )
    return (
        f"dynamic_sampling drew {drawn} groups for step {step}, and in none did rewards differ; {accuracy:.0%} of the kept "
        f"rollouts are right, so probably {cause}. Look at the rollouts, choose other problems, or set dynamic_sampling to "
        "false."
    )
