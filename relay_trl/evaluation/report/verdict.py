"""Answers "does relaying pay with this pair?" in a sentence for each benchmark.

Owns the rule: relaying pays if it needs fewer teacher tokens than the random router of equal accuracy, by more than the choice
of problems can explain.
"""

from collections.abc import Sequence

from .summaries import Interval, Summary, percent
from .tables import interval

NO_GAP = "no gap"
YES, NO, UNDECIDED = "yes", "no", "undecided"


def verdict_of(relay: Summary) -> str:
    """`yes`, `no`, `undecided` or `no gap`, from a relay's summary with gap and cost."""
    if relay.gap_recovered is None:
        return NO_GAP
    gap, reduction = relay.gap_interval, relay.reduction_interval
    if gap is None:
        return UNDECIDED
    if gap[1] <= 0 or (reduction is not None and reduction[1] <= 0):
        return NO
    if gap[0] > 0 and reduction is not None and reduction[0] > 0:
        return YES
    return UNDECIDED


def sentences(summaries: Sequence[Summary]) -> list[str]:
    """A sentence for each benchmark with a student, a teacher and a relay."""
    found = []
    for benchmark in dict.fromkeys(summary.benchmark for summary in summaries):
        own = [s for s in summaries if s.benchmark == benchmark and s.accuracy is not None]
        firsts = {s.method: s for s in reversed(own)}
        if {"student", "teacher", "relay"} <= set(firsts):
            found.append(_sentence(benchmark, *(firsts[name] for name in ("student", "relay", "teacher"))))
    return found


def _sentence(benchmark: str, student: Summary, relay: Summary, teacher: Summary) -> str:
    verdict = verdict_of(relay)
    facts = (
        f"the student alone is right in {percent(student.accuracy)} %, relaying in {percent(relay.accuracy)} %, the "
        f"teacher alone in {percent(teacher.accuracy)} %"
    )
    if verdict == NO_GAP:
        return f"{benchmark}: no gap to recover; {facts}."
    router = max(0.0, min(1.0, relay.gap_recovered or 0.0))
    costs = (
        f"relaying takes {percent(relay.token_share)} % of the tokens from the teacher, a random router of equal accuracy "
        f"{percent(router)} %"
    )
    reduction = f"cost reduction {_with_interval(relay.cost_reduction, relay.reduction_interval)}"
    if relay.cost_reduction is None:
        reduction = "so there is no cost to reduce"
    gap = f"gap recovered {_with_interval(relay.gap_recovered, relay.gap_interval)}"
    words = {
        YES: "yes, relaying pays",
        NO: "no, relaying does not pay",
        UNDECIDED: "undecided, the intervals reach over zero",
    }
    if relay.gap_interval is None:
        words[UNDECIDED] = "published figures, without intervals"
    return f"{benchmark}: {words[verdict]}: {facts}; {gap}; {costs}: {reduction}."


def _with_interval(value: float | None, bounds: Interval | None) -> str:
    return f"{percent(value)} %" + (f" ({interval(bounds)})" if bounds else "")
