"""The pages of a report: HTML files that open from disk, one with tables and plots, others with answers to read.

Owns which answers are shown. `pages/segments.py` divides a trace into segments; the looks are in `report.html.j2` and
`rollouts.html.j2` and the style and script beside them. The template engine escapes everything that a model or a data set
wrote, and a page's content security policy allows only its own script.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from ...call_syntax import CallSyntax
from ...pages.render import render_page
from ...pages.segments import segments
from ...trace import StopReason
from ..answer_files import Answer, Run
from .results import Results
from .summaries import Summary
from .tables import Table, notes
from .verdict import sentences

_HERE = Path(__file__).parent
_ANSWERS_A_PAGE = 300
_LONGEST = 20_000  # characters of one piece of text

STOPS = {
    StopReason.LENGTH: "cut at the length limit",
    StopReason.TEACHER_EOS: "ended by the teacher",
    StopReason.TEACHER_ERROR: "teacher failed",
}
"""How an answer is marked that did not end by itself."""


def write_pages(
    folder: Path,
    runs: Sequence[Run],
    results: Results,
    tables: Sequence[Table],
    drawings: Sequence[tuple[str, str]],
    title: str,
    max_answers: int,
) -> list[Path]:
    """Writes `report.html` with the tables and plots, and the pages of rollouts `rollouts.html`, `rollouts-2.html`, ...

    Args:
        folder (`Path`).
        runs (`Sequence[Run]`): their answers are shown, grouped by problem; without runs there are no pages of rollouts.
        results ([`Results`]), tables (`Sequence[Table]`): see `results.py` and `tables.py`.
        drawings (`Sequence[tuple[str, str]]`): SVG elements made by this package, and their captions.
        title (`str`).
        max_answers (`int`): most answers; problems are left out evenly.
    """
    for old in folder.glob("rollouts*.html"):  # an earlier report may have had more pages
        old.unlink()
    problems = _problems(runs, results.summaries)
    shown = _evenly(problems, max_answers)
    pages = _in_pages(shown)
    names = [f"rollouts{f'-{k}' if k > 1 else ''}.html" for k in range(1, len(pages) + 1)]
    common = {
        "title": title,
        "settings": [(run.name, _settings(run.settings)) for run in runs],
        "pages": names,
    }
    report = _render(
        "report.html.j2",
        **common,
        verdicts=sentences(results.summaries),
        tables=tables,
        notes=notes(results.summaries),
        drawings=[(Markup(svg), caption) for svg, caption in drawings],
    )
    written = [folder / "report.html"]
    written[0].write_text(report, encoding="utf-8")
    order = list(dict.fromkeys(summary.label for summary in results.summaries))
    for k, (name, page) in enumerate(zip(names, pages, strict=True)):
        text = _render(
            "rollouts.html.j2",
            **common,
            number=k,
            problems=page,
            shown=len(shown),
            total=len(problems),
            methods=[label for label in order if any(a["method"] == label for p in page for a in p["answers"])],
            benchmarks=list(dict.fromkeys(problem["benchmark"] for problem in page)),
            kinds=sorted({problem["kind"] for problem in page if problem["kind"]}),
        )
        written.append(folder / name)
        written[-1].write_text(text, encoding="utf-8")
    return written


def _render(template: str, **values) -> str:
    return render_page(_HERE / template, _HERE / "rollouts.css", [_HERE / "rollouts.js"], **values)


def _problems(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[dict]:
    """Every problem with its answers, in the order of the methods in the table."""
    labels = {(summary.run, summary.benchmark, summary.method): summary.label for summary in summaries}
    order = list(dict.fromkeys(summary.label for summary in summaries))
    problems: dict[tuple, dict] = {}
    for run in runs:
        syntax = CallSyntax(run.settings.get("open_tag") or "<call>", run.settings.get("close_tag") or "</call>")
        for answer in run.answers:
            question = _question(answer.prompt)
            problem = problems.setdefault(
                (answer.benchmark, question),
                {
                    "benchmark": answer.benchmark,
                    "question": _cut(question),
                    "gold": _gold(answer.gold),
                    "kind": answer.kind,
                    "answers": [],
                },
            )
            label = labels[run.name, answer.benchmark, answer.method]
            problem["answers"].append(_view(answer, label, syntax))
    for problem in problems.values():
        problem["answers"].sort(key=lambda view: (order.index(view["method"]), view["sample"]))
    return list(problems.values())


def _in_pages(problems: list[dict]) -> list[list[dict]]:
    """Problems by page, few enough for a page to open quickly."""
    pages: list[list[dict]] = []
    answers = _ANSWERS_A_PAGE
    for problem in problems:
        if answers + len(problem["answers"]) > _ANSWERS_A_PAGE:
            pages.append([])
            answers = 0
        pages[-1].append(problem)
        answers += len(problem["answers"])
    return pages


def _cut(text: str) -> str:
    """A text short enough for a browser: the middle of a very long one is left out."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out here ...]\n{text[-half:]}"


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
        "segments": [replace(piece, text=_cut(piece.text)) for piece in segments(trace, syntax)],
    }


def _stop(answer: Answer) -> str | None:
    # The end of the teacher's own answer needs no mark.
    is_plain = answer.method == "teacher" and answer.trace.stop is StopReason.TEACHER_EOS
    return None if is_plain or answer.trace.stop is None else STOPS.get(answer.trace.stop)


def _evenly(problems: list[dict], max_answers: int) -> list[dict]:
    """Evenly spaced problems with at most `max_answers` answers together; at least one problem."""
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
        "limit",
        "samples",
        "seed",
        "temperature",
        "teacher_temperature",
    )
    return [(name.replace("_", " "), str(settings[name])) for name in shown if settings.get(name) is not None]
