"""The metrics of a step: what is counted, what is not, and that the table in the docs has exactly these."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_trl.rewards import Difficulty
from relay_trl.trace import Author, Call, Outcome, Reading, Span, StopReason, Trace
from relay_trl.training.metrics import FACTS, GRADED, METRICS, facts, shares, summarize

TABLE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_docs_list_every_metric_with_its_meaning_and_how_to_read_it():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: meaning for name, meaning, _ in rows} == METRICS
    assert [name for name, *_ in rows] == list(METRICS)
    assert all(len(reading) > 20 for *_, reading in rows)


def trace_of(student=10, teacher=0, removed=0, calls=(), malformed=0, stop=StopReason.EOS):
    spans = [Span(Author.STUDENT, [1] * student, "", removed=removed, malformed=malformed)]
    if teacher:
        spans.append(Span(Author.TEACHER, [2] * teacher, ""))
    return Trace([0], spans, list(calls), stop)


ANSWERED = Call(3, requested=50_000, granted=20, delivered=6, outcome=Outcome.ANSWERED, wait_s=0.5)
DENIED = Call(8, requested=7)
FAILED = Call(3, requested=5, granted=5, outcome=Outcome.FAILED, wait_s=9.0)


def test_metrics_by_hand():
    traces = [
        trace_of(student=14, teacher=6, removed=8, calls=[ANSWERED, DENIED], malformed=1),
        trace_of(student=20, stop=StopReason.LENGTH),
        trace_of(calls=[FAILED], malformed=5, stop=StopReason.TEACHER_ERROR),
    ]
    traces[0].student_read, traces[0].teacher_read = Reading(40, 16), Reading(30, None)
    traces[1].student_read = Reading(60, 44)
    traces[2].student_read = Reading(900, 900)
    rows = [facts(trace, is_correct) for trace, is_correct in zip(traces, (True, False, True), strict=True)]
    assert all(len(row) == len(FACTS) for row in rows)
    found = summarize(rows, [Difficulty.TEACHER_DEPENDENT, Difficulty.STUDENT_SOLVABLE])
    assert math.isnan(found.pop("teacher_cached_share"))  # its server does not tell
    assert found == pytest.approx(
        {
            "accuracy": 0.5,
            "teacher_share": 0.5 / 2,  # 6 of 20 tokens less 8 of commands, and none
            "teacher_share_all": 6 / 40,
            "call_rate": 0.5,
            "calls": 1.0,
            "requested": (10_000 + 7) / 2,
            "granted": 10.0,
            "delivered": 3.0,
            "malformed": 0.5,
            "malformed_rate": 0.5,
            "denied": 0.5,
            "truncated": 0.5,
            "student_solvable": 0.5,
            "teacher_dependent": 0.5,
            "teacher_unsolvable": 0.0,
            "teacher_failures": 1 / 3,
            "student_failures": 0.0,
            "teacher_wait_s": 0.25,
            "student_cached_share": 0.6,
        }
    )
    timed_by_the_trainer = {"rollout_s", "grading_s", "draws", "is_effective_share", *GRADED}
    assert set(METRICS) - set(found) == timed_by_the_trainer | {"teacher_cached_share"}


def test_without_a_call_no_metric_is_missing():
    found = summarize([facts(trace_of(), True)], [Difficulty.STUDENT_SOLVABLE])
    assert found["requested"] == found["granted"] == found["delivered"] == found["teacher_share"] == 0.0


def test_without_a_scored_rollout_there_is_nothing_to_count():
    found = summarize([facts(trace_of(stop=StopReason.TEACHER_ERROR), False)], [])
    assert found["teacher_failures"] == 1.0
    assert math.isnan(found["accuracy"]) and math.isnan(found["student_solvable"])


@given(
    group=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=2, max_size=8),
    padding=st.integers(1, 100),
)
def test_padding_lowers_no_share_of_the_groups_length(group, padding):
    """`group`: teacher tokens and the student's tokens of each rollout. The longest answer grows."""

    def shares_of(group, rho_of):
        rows = [[0.0] * len(FACTS) for _ in group]
        for row, (teacher, own) in zip(rows, group, strict=True):
            row[FACTS.index("teacher_tokens")], row[FACTS.index("answer_tokens")] = teacher, teacher + own
            row[FACTS.index("teacher_share")] = teacher / (teacher + own) if teacher + own else 0.0
        return shares(rows, rho_of)

    longest = max(range(len(group)), key=lambda k: sum(group[k]))
    padded = [(t, own + padding * (k == longest)) for k, (t, own) in enumerate(group)]
    before, after = shares_of(group, "group"), shares_of(padded, "group")
    if len(group) > 2:
        assert before == after
    assert shares_of(padded, "answer")[longest] <= shares_of(group, "answer")[longest]
