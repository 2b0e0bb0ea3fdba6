"""What is right in a training: the rules' verdict on every rollout, and where there is a judge, its own beside it.

Owns which of the two is trained on, and the counts of a step. The rules and the judge are in `grading/`.
"""

from collections.abc import Sequence
from typing import Any

from ..grading.grader import Grader
from ..grading.judge import load_judge
from ..trace import Trace
from .config import RelayFields


class RolloutGrader:
    """The grader of a run, and its judge.

    Args:
        args ([`~relay_trl.training.config.RelayFields`]).

    Raises:
        EngineError: the judge cannot be asked.
    """

    def __init__(self, args: RelayFields):
        self.args = args
        self.judge = load_judge(args)
        self._rules = Grader(args.answer_marker, args.grading_time_limit_s)
        self._before = self._totals()

    def grade(self, traces: Sequence[Trace], rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether rollouts to the problems of `rows` are right: by the rules, or with `judge_reward` by one of both."""
        texts = [trace.answer for trace in traces]
        correct = self._rules.grade(texts, [row["answer"] for row in rows])
        if self.judge is not None:
            # A rollout that its teacher failed is in no figure
            kept = [k for k, trace in enumerate(traces) if not trace.has_failed]
            items = [(rows[k]["prompt"], rows[k]["answer"], texts[k]) for k in kept]
            judged = self.judge.reread(items, [correct[k] for k in kept], self.args)
            if self.args.judge_reward:
                for k, is_right in zip(kept, judged, strict=True):
                    correct[k] = is_right
        return correct

    def close(self):
        """Ends the processes of the rules."""
        self._rules.close()

    def counts(self) -> list[int]:
        """The [`~relay_trl.training.metrics.GRADED`] since this was last asked."""
        before, self._before = self._before, self._totals()
        return [now - then for now, then in zip(self._before, before, strict=True)]

    def _totals(self) -> list[int]:
        judge = self.judge
        return [self._rules.timeouts, *([judge.read, judge.overruled, judge.silent] if judge else [0, 0, 0])]
