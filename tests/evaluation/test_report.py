"""Tables, plots and pages: what they show, and that no text of a model can run as code."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.made_up_answers import answer, log, student, teacher
from rich.console import Console

from relay_trl.call_syntax import CallSyntax
from relay_trl.evaluation.answer_files import Run
from relay_trl.evaluation.report.call_plots import called_answers, plot_difficulty, plot_lengths, plot_places
from relay_trl.evaluation.report.plots import COLORS, pareto_front, plot_shares
from relay_trl.evaluation.report.results import evaluate_runs, read_published, summarize
from relay_trl.evaluation.report.tables import all_tables, results_tables
from relay_trl.evaluation.report.training_plots import find_logs, plot_training, read_log
from relay_trl.evaluation.report.verdict import sentences
from relay_trl.evaluation.report.write import print_results, to_json, to_latex, to_markdown, write_report
from relay_trl.pages.segments import segments
from relay_trl.trace import Call, Outcome, StopReason, Trace

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


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
    results = evaluate_runs([run])
    assert results_tables(results.summaries)[0].columns[-1] == "failed"
    assert "neither right nor wrong" in to_markdown(results)


def test_the_terminal_shows_everything_in_eighty_columns(run):
    run.labels = {"relay": "relay [red]not markup[/red]"}
    console = Console(width=80, file=io.StringIO())
    print_results(summarize([run]), console)
    text = console.file.getvalue()
    assert "25.0" in text and "83.3" in text and "[red]" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_markdown_and_json(run):
    run.labels = {"relay": "a|b\nc"}
    results = evaluate_runs([run])
    assert "| a\\|b c | 75.0 |" in to_markdown(results)
    data = json.loads(to_json(results, [run]))
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
    axes, strip = plot_shares(summarize([run])).axes
    assert strip.get_xlim()[1] < 0.2  # the relay takes 11 %
    line = next(line for line in axes.lines if line.get_label() == "random router")
    assert list(line.get_xdata()) == [0.0, 1.0] and list(line.get_ydata()) == [0.25, 1.0]
    assert plot_shares([]) is None


def test_no_axis_of_a_picture_is_written_in_tex(run, tmp_path):
    spans = (student("ab<call>900</call>", 16, "ab"), teacher("TT"))
    calls = [Call(3, n, n, max(1, n // 3), Outcome.ANSWERED) for n in (1, 40, 900)]
    run.answers.append(answer("relay_no_teacher", 0, True, *spans, calls=calls))
    write_report([run], tmp_path, {"relay": log()})
    pictures = sorted(tmp_path.glob("*.svg"))
    assert len(pictures) == 5
    for picture in pictures:
        words = re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text())
        assert words and not any("$" in word or "\\" in word or "_" in word for word in words), picture
    assert {"10", "100"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "lengths.svg").read_text()))
    assert "relay, teacher away" in (tmp_path / "report.html").read_text()


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
    plots = ("shares", "difficulty", "lengths", "places", "training")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.md", "results.tex", "results.json", "report.html", "rollouts.html"),
        *(f"{name}.{kind}" for name in plots for kind in ("png", "svg")),
    }
    report = Page((tmp_path / "report.html").read_text())
    assert sum(tag == "svg" for tag, _ in report.tags) == len(plots)
    assert "75.0" in report.words and any("undecided" in word for word in report.words)
    assert ("a", {"href": "rollouts.html"}) in report.tags
    page = Page((tmp_path / "rollouts.html").read_text())
    articles = [attrs for tag, attrs in page.tags if tag == "article"]
    assert len(articles) == 12 and sum(attrs["data-called"] == "yes" for attrs in articles) == 4
    assert sum(tag == "mark" and attrs.get("title") == "teacher, 2 tokens" for tag, attrs in page.tags) == 4
    chips = [attrs["title"] for tag, attrs in page.tags if attrs.get("class") == "chip answered" and "title" in attrs]
    assert "<call>9</call>: asked 9, granted 5, delivered 2 (answered)" in chips
    assert "gold" in page.words and ("a", {"href": "report.html"}) in page.tags


def test_the_page_asks_for_nothing_from_outside(run, tmp_path):
    write_report([run], tmp_path, {"relay": log()})
    for name in ("report.html", "rollouts.html"):
        page = Page((tmp_path / name).read_text())
        links = [
            value
            for _, attrs in page.tags
            for name, value in attrs.items()
            if name in ("src", "href", "xlink:href", "action", "data", "srcset")
        ]
        assert links and all(value.startswith("#") or (tmp_path / value).is_file() for value in links)
        assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
        policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
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
    for path in [*tmp_path.glob("*.svg"), tmp_path / "report.html"]:
        assert "<script" not in path.read_text()


def test_a_long_page_keeps_whole_problems(run, tmp_path):
    write_report([run], tmp_path, max_answers=6)
    page = Page((tmp_path / "rollouts.html").read_text())
    assert sum(tag == "article" for tag, _ in page.tags) == 6
    assert any("2 of 4 problems" in word for word in page.words)


def test_many_answers_are_spread_over_pages_that_lead_to_one_another(run, tmp_path):
    run.answers = [answer("relay", i, True, student("ab")) for i in range(700)]
    write_report([run], tmp_path)
    pages = [Page((tmp_path / name).read_text()) for name in ("rollouts.html", "rollouts-2.html", "rollouts-3.html")]
    assert [sum(tag == "article" for tag, _ in page.tags) for page in pages] == [300, 300, 100]
    assert ("a", {"href": "rollouts-3.html"}) in pages[1].tags and ("a", {"href": "rollouts-2.html"}) not in pages[
        1
    ].tags
    run.answers = run.answers[:1]
    write_report([run], tmp_path)
    assert [path.name for path in tmp_path.glob("rollouts*.html")] == ["rollouts.html"]


def test_an_answer_of_a_megabyte_does_not_blow_up_the_page(run, tmp_path):
    run.answers[0].trace.spans[0].text = "a" * 500_000 + "END"
    run.answers[0].prompt = "q" * 1_000_000
    write_report([run], tmp_path)
    text = (tmp_path / "rollouts.html").read_text()
    assert len(text) < 500_000 and "END" in text and "characters left out here" in text


# The published figures


def published(path, rows=None):
    rows = rows or ["average,student,42.50,", "average,grpo,44.06,", "average,citer,46.81,1.34"]
    rows += ["average,relay,49.52,1.07", "average,teacher,54.12,100"] if len(rows) == 3 else []
    path.write_text("\n".join(["benchmark,method,accuracy,teacher_tokens", *rows]) + "\n")
    return path


def test_the_authors_figures_give_back_their_headlines(tmp_path, recipe):
    csv = published(tmp_path / "published.csv")
    status, said, error = recipe("report", csv, "--output_dir", tmp_path / "out")
    assert status == 0, error
    row = next(line for line in said.splitlines() if line.startswith("relay"))
    assert row.split()[-2:] == ["60.4", "98.2"]
    markdown = (tmp_path / "out/results.md").read_text()
    assert "| relay | 49.5 | - | - | 1.07 |" in markdown and "without intervals" in markdown
    assert "relay & 49.5" in (tmp_path / "out/results.tex").read_text()
    assert not (tmp_path / "out/rollouts.html").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["average,student,142,"], "line 2 has '142', which is no percentage"),
        (["average,student,,"], "line 2 has '', which is no percentage"),
        (["average,student,1,x"], "line 2 has 'x'"),
    ],
)
def test_published_figures_that_are_none(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_published(published(tmp_path / "bad.csv", rows))


def test_other_csv_files_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have benchmark, method, accuracy, teacher_tokens"):
        read_published(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="nothing.csv does not exist"):
        read_published(tmp_path / "nothing.csv")


# Latex, averages, curves


def test_latex_escapes_and_has_a_row_per_method(run):
    run.labels = {"relay": "50% & _more_"}
    tex = to_latex(evaluate_runs([run]))
    assert r"50\% \& \_more\_ & 75.0" in tex and tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3


def test_several_benchmarks_have_a_macro_average(run):
    others = [replace(a, benchmark="other", correct=True, trace=a.trace) for a in run.answers]
    run.answers += others
    results = evaluate_runs([run])
    average = {s.method: s for s in results.summaries if s.benchmark == "average of 2"}
    assert average["student"].accuracy == pytest.approx((0.25 + 1) / 2)
    assert average["relay"].gap_recovered == pytest.approx((0.875 - 0.625) / (1 - 0.625))
    assert average["relay"].gap_interval[0] <= average["relay"].gap_recovered <= average["relay"].gap_interval[1]
    table = all_tables(results)[0]
    assert table.columns == ["method", "set", "other", "average of 2", "teacher tokens %"]
    assert table.rows[1] == ["relay", "75.0", "100.0", "87.5", "11.11"]


def test_a_sweep_is_a_curve_through_the_relay_itself(run):
    for bias, right in ((-2, 2), (3, 4)):
        for i in range(4):
            spans = (student("ab<call>9</call>", 14, "ab"), teacher("TT")) if bias > 0 else (student("abcd"),)
            run.answers.append(answer(f"call_bias_{bias}", i, i < right, *spans, calls=[called()] if bias > 0 else ()))
    figure = plot_shares(summarize([run]))
    curve = next(line for line in figure.axes[0].lines if list(line.get_ydata()) == [0.5, 0.75, 1.0])
    assert list(curve.get_xdata())[0] == 0.0
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"relay, call bias b", "random router", "Pareto front", "relay"} <= labels


def test_the_pareto_front_has_nobody_that_another_beats(run):
    assert [s.method for s in pareto_front(summarize([run]))] == ["student", "relay", "teacher"]
    for a in run.answers:
        a.correct = a.correct or a.method == "student"
    assert [s.method for s in pareto_front(summarize([run]))] == ["student"]


def test_plots_of_calls(run):
    called_by = called_answers([run], summarize([run]))
    assert list(called_by) == ["relay"]
    (asked, came) = plot_lengths(called_by).axes[0].collections[0].get_offsets()[0]
    assert (asked, came) == (9, 2)
    places = plot_places(called_by).axes[0].patches[0].get_data().values
    assert places.sum() == pytest.approx(1) and places[3] == 1  # behind 3 of 18 tokens
    bars = [bar.get_height() for bar in plot_difficulty(summarize([run])).axes[0].patches]
    assert bars[:2] == [1.0, 1.0]
    assert plot_lengths({}) is None and plot_places({}) is None and plot_difficulty([]) is None


def test_the_verdict_follows_the_intervals(run):
    def verdict(results):
        return sentences(results.summaries)[0]

    many = [replace(a, index=a.index + 4 * k, prompt=f"q{a.index + 4 * k}") for k in range(30) for a in run.answers]
    run.answers = many
    assert "set: yes, relaying pays" in verdict(evaluate_runs([run]))
    for a in run.answers:
        a.correct = a.method == "teacher" or (a.method == "student" and a.index % 2 == 0)
    assert "set: no, relaying does not pay" in verdict(evaluate_runs([run]))
    for a in run.answers:
        a.correct = a.method == "student"
    assert "no gap to recover" in verdict(evaluate_runs([run]))
