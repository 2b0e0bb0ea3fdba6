"""The judge's verdicts on a run's answers, beside those of the rules: asked, kept in `judge.jsonl`, and compared.

Owns the file and the comparison. `grading/judge.py` has the judge; the answers and what counts as right stay as they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..grading.judge import Judge, JudgeFields
from ..run_files import fingerprint_rows
from .answer_files import Answer, read_run

Verdicts: TypeAlias = dict[tuple[str, str], bool | None]
"""By judge and by what it read; `None` of a reply without a verdict."""

FILE = "judge.jsonl"
_AT_ONCE = 64


@dataclass(frozen=True)
class Judged:
    """How the judge reads one method's answers to one benchmark.

    Args:
        benchmark (`str`), label (`str`): of the method.
        judge (`str`): its name.
        answers (`int`): of the method, without those whose teacher failed.
        accuracy (`float`): share of right answers by the rules.
        judged_accuracy (`float`, *optional*): the same by the judge, with the answers called right that it did not read taken
            as those that it did; `None` if it read none of either kind of verdict that there is.
        wrong_read, wrong_overruled (`int`): answers called wrong by the rules that it read, and that it calls right.
        right_read, right_overruled (`int`): answers called right that it read, and that it calls wrong.
        silent (`int`): replies without a verdict.
        agreement (`float`, *optional*): share of answers of which both say the same, weighted as `judged_accuracy`.
        kappa (`float`, *optional*): Cohen's: agreement beyond what the two accuracies give by chance, as a share of the
            most possible; `None` where chance gives all.
    """

    benchmark: str
    label: str
    judge: str
    answers: int
    accuracy: float
    judged_accuracy: float | None
    wrong_read: int
    wrong_overruled: int
    right_read: int
    right_overruled: int
    silent: int
    agreement: float | None
    kappa: float | None


def judge_run(folder: str | Path, judge: Judge | None, fields: JudgeFields) -> None:
    """Asks for the verdicts that a run lacks. Answers whose verdicts are there are not read again.

    Raises:
        EngineError: the judge fails. The verdicts before that are in the file.
    """
    if judge is None:
        return
    path, name = Path(folder) / FILE, judge.engine.name
    known = read_verdicts(path)
    answers = [answer for answer in read_run(folder).answers if answer.correct is not None]
    read = (answer for answer in answers if fields.is_reread(answer.trace.answer, bool(answer.correct)))
    missing = list({about: answer for answer in read if (name, about := _about(answer)) not in known}.values())
    with open(path, "a", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")  # a run that was killed left half a line
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            verdicts = judge.verdicts([(answer.prompt, answer.gold, answer.trace.answer) for answer in part])
            for answer, verdict in zip(part, verdicts, strict=True):
                if verdict is not None:
                    line = {"judge": name, "about": _about(answer), "answer": answer.key}
                    file.write(json.dumps({**line, "verdict": verdict.is_right, "reply": verdict.reply}) + "\n")
            file.flush()


def read_verdicts(path: Path) -> Verdicts:
    """The verdicts of a file. Broken lines, of a run that was killed, are left out."""
    found: Verdicts = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found[entry["judge"], entry["about"]] = entry["verdict"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _about(answer: Answer) -> str:
    """What a verdict is about: equal answers to a problem share one, whoever wrote them."""
    return fingerprint_rows([{"prompt": [answer.prompt, answer.gold], "answer": answer.trace.answer}])


def compare_with_rules(benchmark: str, label: str, answers: Sequence[Answer], verdicts: Verdicts) -> list[Judged]:
    """One line for each judge that has read answers of these."""
    lines = []
    about = [_about(answer) for answer in answers] if verdicts else []
    for judge in dict.fromkeys(name for name, _ in verdicts):
        pairs = [(bool(answer.correct), (judge, key)) for answer, key in zip(answers, about, strict=True)]
        said = [(is_right, verdicts[key]) for is_right, key in pairs if key in verdicts]
        right = [verdict for is_right, verdict in said if is_right and verdict is not None]
        wrong = [verdict for is_right, verdict in said if not is_right and verdict is not None]
        if not said:
            continue
        share = sum(bool(answer.correct) for answer in answers) / len(answers)
        agreement = kappa = judged = None
        if (right or share == 0) and (wrong or share == 1):
            both_right = share * (sum(right) / len(right) if right else 0.0)
            only_judge = (1 - share) * (sum(wrong) / len(wrong) if wrong else 0.0)
            judged, agreement = both_right + only_judge, both_right + (1 - share) - only_judge
            chance = share * judged + (1 - share) * (1 - judged)
            kappa = (agreement - chance) / (1 - chance) if chance < 1 else None
        counts = (len(wrong), sum(wrong), len(right), len(right) - sum(right), len(said) - len(wrong) - len(right))
        lines.append(Judged(benchmark, label, judge, len(answers), share, judged, *counts, agreement, kappa))
    return lines
