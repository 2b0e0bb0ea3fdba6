"""Tables, plots and the page: what they show, and that nothing a model wrote can run."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from relay_trl.command import CallSyntax
from relay_trl.evaluation.answers import Answer, Run
from relay_trl.evaluation.plots import COLORS, find_logs, plot_shares, plot_training, read_log
from relay_trl.evaluation.report import print_results, results_tables, to_json, to_markdown, write_report
from relay_trl.evaluation.statistics import summarize
from relay_trl.segments import segments
from relay_trl.trace import Author, Call, Outcome, Span, StopReason, Trace

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def student(text, removed=0, kept=None):
    ids = list(range(len(text)))
    return Span(Author.STUDENT, ids, text, None, ids[removed:], text if kept is None else kept, removed)


def teacher(text):
    ids = list(range(len(text)))
    return Span(Author.TEACHER, ids, text, None, ids, text)


def answer(method, index, correct, *spans, calls=(), kind=None, prompt=None, gold="1", stop=StopReason.EOS):
    trace = Trace([0], list(spans), list(calls), stop, "The teacher is away." if correct is None else None)
    return Answer(method, "set", index, 0, prompt or f"question {index}", gold, correct, kind, trace)


def called(outcome=Outcome.ANSWERED, delivered=2):
    return Call(3, 9, 5, delivered, outcome)


@pytest.fixture
def run():
    answers = [
        *(answer("student", i, i == 0, student("abcd"), kind="easy" if i == 0 else "hard") for i in range(4)),
        *(
            answer(
                "relay",
                i,
                i < 3,
                student("ab<call>9</call>", 14, "ab"),
                teacher("TT"),
                calls=[called()],
                kind="easy" if i == 0 else "hard",
            )
            for i in range(4)
        ),
        *(answer("teacher", i, True, teacher("TTTT"), stop=StopReason.TEACHER_EOS) for i in range(4)),
    ]
    return Run("mine", {"student": "small", "teacher": "big", "open_tag": "<call>", "close_tag": "</call>"}, answers)


def log(count=40):
    return [
        *(
            {"step": i, "relay/accuracy": i / count, "relay/teacher_share": 0.1, "relay/call_rate": 0.5}
            for i in range(count)
        ),
        {"step": count, "eval_relay/accuracy": 0.9, "eval_relay/teacher_share": 0.1},
        {"step": count, "train_runtime": 3.0},
    ]


class Page(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


# Tables


def test_tables_show_the_figures(run):
    main, kinds = results_tables(summarize([run]))
    by_name = {row[0]: dict(zip(main.columns, row, strict=True)) for row in main.rows}
    assert by_name["student"]["acc. %"] == "25.0" and by_name["student"]["gap rec. %"] == "-"
    assert by_name["relay"]["acc. %"] == "75.0" and by_name["relay"]["gap rec. %"] == "66.7"
    assert by_name["relay"]["teacher share %"] == "50.0"  # 2 of the 4 tokens that are no command
    assert by_name["relay"]["teacher tokens %"] == "11.1"  # 2 of 18
    assert by_name["relay"]["cost red. %"] == "83.3"
    assert ["relay", "100.0 / 100", "66.7 / 100"] in kinds.rows
    assert "failed" not in main.columns


def test_failures_get_a_column_and_a_note(run):
    run.answers.append(answer("relay", 9, None, student("ab"), stop=StopReason.TEACHER_ERROR))
    summaries = summarize([run])
    assert results_tables(summaries)[0].columns[-1] == "failed"
    assert "neither right nor wrong" in to_markdown(summaries)


def test_the_terminal_shows_everything_in_eighty_columns(run):
    run.labels = {"relay": "relay [red]not markup[/red]"}
    console = Console(width=80, file=io.StringIO())
    print_results(summarize([run]), console)
    text = console.file.getvalue()
    assert "25.0" in text and "83.3" in text and "[red]" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_markdown_and_json(run):
    run.labels = {"relay": "a|b\nc"}
    summaries = summarize([run])
    assert "| a\\|b c | 75.0 |" in to_markdown(summaries)
    data = json.loads(to_json(summaries, [run]))
    assert [row["accuracy"] for row in data["results"]] == [0.25, 0.75, 1.0]
    assert data["results"][1]["by_kind"]["hard"]["answers"] == 3 and data["settings"]["mine"]["student"] == "small"


# Plots


def test_training_curves_of_several_runs():
    figure = plot_training({"relay": log(), "GRPO, costs $5 and $6": log(10)})
    upper, lower = figure.axes
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["relay", "GRPO, costs $5 and $6"]
    assert any(line.get_marker() == "o" and list(line.get_ydata()) == [0.9] for line in upper.lines)
    assert {line.get_color() for line in lower.lines} == set(COLORS[:2])
    assert plot_training({}) is None and plot_training({"sft": [{"step": 1, "loss": 2.0}]}) is None


def test_the_random_router_goes_from_student_to_teacher(run):
    (axes,) = plot_shares(summarize([run])).axes
    line = next(line for line in axes.lines if line.get_label() == "random router")
    assert list(line.get_xdata()) == [0.0, 1.0] and list(line.get_ydata()) == [0.25, 1.0]
    assert plot_shares([]) is None


def test_logs_are_found(tmp_path):
    for name, steps in (("checkpoint-9", 9), ("checkpoint-10", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": log(steps)}))
    assert len(read_log(tmp_path)) == 12
    assert find_logs(None, str(tmp_path)) == {}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log(3)}))
    assert len(find_logs(None, str(tmp_path))[tmp_path.name]) == 5
    with pytest.raises(FileNotFoundError, match="no trainer_state.json"):
        read_log(_empty(tmp_path))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no log_history"):
        read_log(tmp_path / "other.json")


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


# Page


def test_segments_mark_who_wrote_what():
    trace = Trace(
        [0],
        [student("a<call>9</call>b<call>x</call>"), teacher("<call>2</call>"), student("c<call> 3 </call>")],
        [called(), called(Outcome.DENIED, 0)],
    )
    pieces = segments(trace, CallSyntax())
    assert [(piece.author, piece.text) for piece in pieces] == [
        ("student", "a"),
        ("call", "<call>9</call>"),
        ("student", "b<call>x</call>"),
        ("teacher", "<call>2</call>"),
        ("student", "c"),
        ("call", "<call> 3 </call>"),
    ]
    assert [piece.call.outcome for piece in pieces if piece.call] == [Outcome.ANSWERED, Outcome.DENIED]


def test_commands_are_plain_text_where_no_calls_were_looked_for():
    pieces = segments(Trace([0], [student("a<call>9</call>")]), CallSyntax())
    assert [(piece.author, piece.text) for piece in pieces] == [("student", "a<call>9</call>")]


def test_the_report_writes_all_its_files(run, tmp_path):
    summaries = write_report([run], tmp_path, {"relay": log()}, title="Results")
    assert [summary.label for summary in summaries] == ["student", "relay", "teacher"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.md", "results.json", "rollouts.html", "shares.png", "shares.svg", "training.png", "training.svg"),
    }
    text = (tmp_path / "rollouts.html").read_text()
    page = Page(text)
    articles = [attrs for tag, attrs in page.tags if tag == "article"]
    assert len(articles) == 12 and sum(attrs["data-called"] == "yes" for attrs in articles) == 4
    assert sum(tag == "mark" and attrs.get("title") == "teacher, 2 tokens" for tag, attrs in page.tags) == 4
    chips = [attrs["title"] for tag, attrs in page.tags if attrs.get("class") == "chip answered" and "title" in attrs]
    assert "<call>9</call>: asked 9, granted 5, delivered 2 (answered)" in chips
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert "75.0" in page.words and "gold" in page.words and len(ids) > 0


def test_the_page_asks_for_nothing_from_outside(run, tmp_path):
    write_report([run], tmp_path, {"relay": log()})
    page = Page((tmp_path / "rollouts.html").read_text())
    links = [
        (tag, name, value)
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action", "data", "srcset")
    ]
    assert all(value.startswith("#") for _, _, value in links)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_nothing_that_a_model_or_a_data_set_wrote_can_run(run, tmp_path):
    run.answers.append(
        answer("relay", 5, False, student(EVIL), teacher(EVIL), prompt=EVIL, gold=[EVIL, EVIL], kind=EVIL)
    )
    run.answers.append(answer("relay", 6, None, student("a"), prompt=[{"role": "user", "content": EVIL}]))
    run.answers[-1].trace.error = EVIL
    run.labels = {"relay": EVIL}
    run.name, run.settings = EVIL, {**run.settings, "student": EVIL}
    write_report([run], tmp_path, {EVIL: log()}, title=EVIL)
    text = (tmp_path / "rollouts.html").read_text()
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" or name.startswith("on") for tag, attrs in page.tags for name in attrs)
    assert "<script>alert" not in text and re.search(r"&lt;script&gt;alert\(1\)", text)
    for name in ("training.svg", "shares.svg"):
        assert "<script" not in (tmp_path / name).read_text()


def test_a_long_page_keeps_whole_problems(run, tmp_path):
    write_report([run], tmp_path, max_answers=6)
    page = Page((tmp_path / "rollouts.html").read_text())
    assert sum(tag == "article" for tag, _ in page.tags) == 6
    assert any("2 of 4 problems" in word for word in page.words)
