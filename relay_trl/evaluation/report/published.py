"""Published figures without answers: a small CSV that a report shows like a run.

    benchmark,method,accuracy,teacher_tokens
    average,student,42.50,
    average,relay,49.52,1.07
    average,teacher,54.12,100

Owns reading them. Accuracy and the teacher's share of all tokens are in percent. There are no intervals without answers.
"""

import csv
from dataclasses import replace
from pathlib import Path

from .statistics import cost_reduction, gap_recovered
from .summaries import Summary

_COLUMNS = ("benchmark", "method", "accuracy", "teacher_tokens")


def read_published(path: str | Path, name: str | None = None) -> list[Summary]:
    """The rows of a CSV as summaries. Gap recovered and cost reduction are those between its own rows `student` and
    `teacher`.

    Args:
        path (`str` or `Path`).
        name (`str`, *optional*): name of the run in reports; `None`: the file's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns, or a value that is not a percentage.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The file of published figures {path} does not exist.")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != set(_COLUMNS):
            raise ValueError(f"{path} has the columns {reader.fieldnames}; it must have {', '.join(_COLUMNS)}.")
        rows = list(reader)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    summaries = [_summary(row, name or path.stem, f"{path}, line {k}") for k, row in enumerate(rows, start=2)]
    return [_with_headline(summary, summaries) for summary in summaries]


def _summary(row: dict, run: str, where: str) -> Summary:
    method = row["method"]
    share = _percent(row["teacher_tokens"], where) if row["teacher_tokens"] else 0.0
    accuracy = _percent(row["accuracy"], where)
    return Summary(run, row["benchmark"], method, method, 0, 0, 0, accuracy=accuracy, token_share=share)


def _percent(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"{where} has {text!r}, which is no percentage from 0 to 100.")
    return value / 100


def _with_headline(summary: Summary, summaries: list[Summary]) -> Summary:
    ends = {s.method: s.accuracy for s in summaries if s.benchmark == summary.benchmark}
    if summary.method in ("student", "teacher") or not {"student", "teacher"} <= set(ends):
        return summary
    gap = gap_recovered(summary.accuracy or 0.0, ends["student"] or 0.0, ends["teacher"] or 0.0)
    reduction = cost_reduction(summary.token_share, gap) if gap is not None and summary.token_share > 0 else None
    return replace(summary, gap_recovered=gap, cost_reduction=reduction)
