"""The table over several seeds, against values worked out by hand on a few answers."""

from relay_trl.evaluation.answer_files import Answer, Run
from relay_trl.reproduction.seeds import cell, pooled, seeds_table, write_results
from relay_trl.trace import Author, Call, Outcome, Span, StopReason, Trace


def answer(method, index, correct, teacher_tokens=0, n=3):
    spans = [Span(Author.STUDENT, [1] * (10 - teacher_tokens), "s")]
    calls = []
    if teacher_tokens:
        spans.append(Span(Author.TEACHER, [1] * teacher_tokens, "t"))
        calls = [Call(1, n, n, teacher_tokens, Outcome.ANSWERED)]
    trace = Trace([0], spans, calls, StopReason.EOS)
    return Answer(method, "sums", index, 0, f"{index}", "1", correct, None, trace)


def run_of(method, correct, **fields):
    return Run(method, {}, [answer(method, i, is_right, **fields) for i, is_right in enumerate(correct)])


ENDS = [run_of("student", [True, False, False, False]), run_of("teacher", [True, True, True, True])]


def test_cells():
    assert cell([0.5, 0.25, 0.75]) == "50.0 [25.0, 75.0]"
    assert cell([0.5, None, 0.5]) == "50.0" and cell([None]) == cell([]) == "-"


def test_a_table_of_two_seeds():
    seeds = [
        run_of("relay", [True, True, True, False], teacher_tokens=1),
        run_of("relay", [True, True, False, False], teacher_tokens=1, n=5),
    ]
    lines = seeds_table({"ours": seeds}, ENDS)[0].splitlines()
    rows = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in lines[2:]}
    assert list(rows) == ["student", "teacher", "ours"]
    assert rows["student"][:2] == ["-", "25.0"] and rows["teacher"][1] == "100.0"
    ours = rows["ours"]
    assert ours[:3] == ["2", "62.5 [50.0, 75.0]", "10.0"]
    assert ours[5] == "50.0 [33.3, 66.7]"  # of the gap from 25 to 100
    assert ours[6] == "77.5 [70.0, 85.0]"  # 1 - 0.1 / 0.333 and 1 - 0.1 / 0.667
    assert ours[8] == "3, 5"
    low, high = map(float, ours[7].split("-"))
    assert low < 62.5 < high


def test_the_order_of_rows_is_not_that_of_the_answers():
    ends = Run("ends", {}, [answer("teacher", 0, True), answer("student", 0, False)])
    lines = seeds_table({}, [ends])[0].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["student", "teacher"]


def test_pooling_keeps_every_answer_as_a_sample_of_its_problem():
    whole = pooled([run_of("relay", [True, False]), run_of("relay", [False, False])])
    assert [(found.index, found.sample) for found in whole.answers] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_a_seed_without_a_method_is_left_out():
    seeds = [run_of("relay", [True, True, True, False]), run_of("student", [True, True, False, False])]
    lines = seeds_table({"ours": seeds}, ENDS)[0].splitlines()
    assert [line.split("|")[2].strip() for line in lines[-2:]] == ["1", "1"]


def test_rows_are_called_by_what_tells_them_apart_and_keep_the_pooled_figures():
    def with_methods(*methods):
        answers = [answer(method, i, i < 2) for method in methods for i in range(4)]
        return Run("run", {}, answers)

    groups = {
        "relay": [with_methods("relay", "relay_no_teacher", "call_bias_2", "call_bias_-4")],
        "simple": [with_methods("relay")],
        "fixed_10": [with_methods("fixed_10"), with_methods("fixed_10")],
    }
    table, rows = seeds_table(groups, ENDS)
    biased = ["relay, call bias -4", "relay, call bias 2"]
    names = ["student", "teacher", "relay", "relay, teacher away", *biased, "simple", "fixed_10"]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == names == [row.label for row in rows]
    assert rows[-1].answers == 8 and rows[-1].accuracy == 0.5


def test_the_files_hold_what_has_been_evaluated(tmp_path, monkeypatch):
    runs = {"ends": Run("ends", {}, ENDS[0].answers + ENDS[1].answers), "ours_seed_2": run_of("relay", [True] * 4)}
    for name in runs:
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        (tmp_path / "evaluation" / name / "results.json").touch()
    monkeypatch.setattr("relay_trl.reproduction.seeds.read_run", lambda path: runs[path.name])
    write_results(tmp_path, ["ours", "not_yet"], [1, 2], "A note.\n", [tmp_path / "evaluation/ends"])
    written = (tmp_path / "results.md").read_text()
    assert "| ours | 1 | 100.0 |" in written and "not_yet" not in written and written.endswith("\n\nA note.\n")
    assert ">ours</text>" in (tmp_path / "shares.svg").read_text()
