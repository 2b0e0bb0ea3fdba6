"""The page of rollouts: one HTML file that opens from disk, with the tables, the plots and answers to read.

Owns which answers are shown; how a trace becomes pieces is `segments.py`'s business, looks are the template's,
`rollouts.html.j2`, with its style and script beside it. Everything that a model or a data set wrote is escaped by the
template engine, and the page's content security policy lets no script run but its own.
"""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..command import CallSyntax
from ..page import THEME, read_texts, script_hash
from ..segments import segments
from ..trace import StopReason
from .answers import Answer, Run
from .statistics import Summary

_HERE = Path(__file__).parent

STOPS = {
    StopReason.LENGTH: "cut at the length limit",
    StopReason.TEACHER_EOS: "ended by the teacher",
    StopReason.TEACHER_ERROR: "teacher failed",
}
"""What is said of an answer that did not simply end."""


def render_page(
    runs: Sequence[Run],
    tables: Sequence,
    notes: Sequence[str],
    drawings: Sequence[tuple[str, str]],
    summaries: Sequence[Summary],
    title: str,
    max_answers: int,
) -> str:
    """The page as one HTML text.

    Args:
        runs (`Sequence[Run]`): whose answers are shown, grouped by problem.
        tables (`Sequence[Table]`), notes (`Sequence[str]`): on top, see `report.py`.
        drawings (`Sequence[tuple[str, str]]`): SVG elements of our own making and their captions.
        summaries (`Sequence[Summary]`): for the methods' labels.
        title (`str`).
        max_answers (`int`): problems are left out beyond it, so that those shown are evenly spaced.
    """
    labels = {(summary.run, summary.benchmark, summary.method): summary.label for summary in summaries}
    problems: dict[tuple, dict] = {}
    for run in runs:
        syntax = CallSyntax(run.settings.get("open_tag") or "<call>", run.settings.get("close_tag") or "</call>")
        for answer in run.answers:
            question = _question(answer.prompt)
            problem = problems.setdefault(
                (answer.benchmark, question),
                {"question": question, "gold": _gold(answer.gold), "kind": answer.kind, "answers": []},
            )
            label = labels[run.name, answer.benchmark, answer.method]
            problem["answers"].append(_view(answer, label, syntax))
    shown = _evenly(list(problems.values()), max_answers)
    order = list(dict.fromkeys(labels.values()))
    for problem in shown:
        problem["answers"].sort(key=lambda view: (order.index(view["method"]), view["sample"]))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = read_texts(THEME, _HERE / "rollouts.css"), read_texts(_HERE / "rollouts.js")
    return environment.get_template("rollouts.html.j2").render(
        title=title,
        settings=[(run.name, _settings(run.settings)) for run in runs],
        tables=tables,
        notes=notes,
        drawings=[(Markup(svg), caption) for svg, caption in drawings],
        problems=shown,
        total=len(problems),
        methods=order,
        kinds=sorted({problem["kind"] for problem in problems.values() if problem["kind"]}),
        style=Markup(style),
        script=Markup(script),
        script_hash=Markup(script_hash(script)),
    )


def _question(prompt: str | list[dict]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(str(message.get("content", "")) for message in prompt)


def _gold(gold: str | list[str]) -> str:
    return gold if isinstance(gold, str) else " or ".join(map(str, gold))


def _view(answer: Answer, label: str, syntax: CallSyntax) -> dict:
    trace = answer.trace
    return {
        "method": label,
        "sample": answer.sample,
        "verdict": {True: "right", False: "wrong", None: "failed"}[answer.correct],
        "has_called": trace.has_called,
        "tokens": trace.num_tokens,
        "share": trace.teacher_share,
        "stop": _stop(answer),
        "error": trace.error,
        "segments": segments(trace, syntax),
    }


def _stop(answer: Answer) -> str | None:
    # That the teacher ended what it wrote alone needs no mention.
    is_plain = answer.method == "teacher" and answer.trace.stop is StopReason.TEACHER_EOS
    return None if is_plain or answer.trace.stop is None else STOPS.get(answer.trace.stop)


def _evenly(problems: list[dict], max_answers: int) -> list[dict]:
    """As many problems, evenly spaced, as keep within `max_answers` answers; at least one."""
    answers = sum(len(problem["answers"]) for problem in problems)
    if answers <= max_answers:
        return problems
    count = max(1, len(problems) * max_answers // answers)
    return [problems[i * len(problems) // count] for i in range(count)]


def _settings(settings: dict) -> list[tuple[str, str]]:
    shown = (
        "student",
        "teacher",
        "benchmark",
        "split",
        "size",
        "samples",
        "seed",
        "temperature",
        "teacher_temperature",
    )
    return [(name.replace("_", " "), str(settings[name])) for name in shown if settings.get(name) is not None]
