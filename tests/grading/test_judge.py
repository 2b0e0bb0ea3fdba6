"""The judge: what it is asked, which verdicts are read, and what becomes of them in an evaluation."""

import json
from contextlib import closing

import pytest
from helpers.evaluations import SETTINGS
from helpers.judge_server import JudgeServer
from helpers.made_up_answers import answer, student, teacher
from hypothesis import given
from hypothesis import strategies as st

from relay_trl.engines.base import EngineError
from relay_trl.engines.openai import OpenAIEngine
from relay_trl.evaluation.answer_files import AnswerFile, read_run
from relay_trl.evaluation.judging import judge_run
from relay_trl.evaluation.report.results import evaluate_runs
from relay_trl.evaluation.report.write import to_markdown
from relay_trl.grading.judge import Judge, JudgeFields, load_judge, question, read_verdict


@pytest.fixture
def server():
    with closing(JudgeServer()) as server:
        yield server


def test_a_judge_is_tried_before_it_is_believed(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "the teacher's")
    monkeypatch.setenv("JUDGE_API_KEY", "the judge's")
    load_judge(JudgeFields(judge=server.url))
    assert len(server.requests) == 2 and server.requests[0]["temperature"] == 0
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer the judge's"}
    for says in ("Verdict: RIGHT", "It is right.", "Verdict: maybe", ""):
        server.says = lambda asked, says=says: says
        with pytest.raises(EngineError, match="Take a model that follows this"):
            load_judge(JudgeFields(judge=server.url))
    server.close()
    with pytest.raises(EngineError, match="reached"):
        load_judge(JudgeFields(judge=server.url))
    assert load_judge(JudgeFields()) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge_sample": 1.5}, "judge_sample is 1.5; it is a share between 0 and 1"),
        ({"judge_model": "x"}, "judge_model is 'x', but there is no judge"),
    ],
)
def test_options_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        JudgeFields(**fields).check_judge()


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("Both are 3.\nVerdict: RIGHT", True),
        ("**Verdict: WRONG.**\n", False),
        ("verdict: right", True),
        ("Verdict: RIGHT\nNo, wait.\nVerdict: WRONG", False),
        ("Verdict: RIGHT or WRONG?", None),
        ("The verdict is: RIGHT", None),
        ("RIGHT", None),
    ],
)
def test_a_verdict_has_one_form(reply, is_right):
    assert read_verdict(reply).is_right is is_right


@given(text=st.text(max_size=200), problem=st.text(max_size=50))
def test_an_answer_stands_between_marks_that_it_does_not_hold(text, problem):
    asked = question(problem, ["3", "4"], text)
    mark = next(line for line in asked.splitlines()[::-1] if line.startswith("----- "))
    assert asked.count(f"\n{mark}\n") == 2 and mark not in text
    assert "Reference answer: 3 or 4" in asked and asked.split(f"\n{mark}\n")[1] == text
    assert question(problem, "3", "x" * 9_000 + text).count("x") < 9_000


def write_run(folder, answers):
    with AnswerFile(folder / "answers.set.jsonl", SETTINGS) as file:
        for one in answers:
            file.add(one)


def test_verdicts_stand_beside_the_rules(server, tmp_path):
    """Ten answers to each: the rules call four of the student's right, and do not know that three is 3."""
    texts = ["#3"] * 4 + ["#three"] * 3 + ["#4"] * 3
    write_run(tmp_path, [answer("student", k, k < 4, student(text), gold="3") for k, text in enumerate(texts)])
    write_run(tmp_path, [answer("relay", k, None, student("#"), teacher("3"), gold="3") for k in range(2)])
    judge, fields = load_judge(JudgeFields(judge=server.url)), JudgeFields(judge=server.url, judge_sample=1.0)
    before = [(one.key, one.correct) for one in read_run(tmp_path).answers]
    judge_run(tmp_path, judge, fields)
    asked = [request["messages"][0]["content"] for request in server.requests[2:]]
    assert len(asked) == 10 and not any(word in text for text in asked for word in ("student", "teacher", "relay"))
    assert [(one.key, one.correct) for one in read_run(tmp_path).answers] == before
    results = evaluate_runs([read_run(tmp_path)])
    (line,) = results.judged
    assert (line.accuracy, line.judged_accuracy, line.agreement) == pytest.approx((0.4, 0.7, 0.7))
    assert (line.wrong_read, line.wrong_overruled, line.right_read, line.right_overruled, line.silent) == (
        6,
        3,
        4,
        0,
        0,
    )
    assert line.kappa == pytest.approx((0.7 - 0.46) / (1 - 0.46))
    assert results.summaries[0].accuracy == 0.4
    assert f"the rules beside a judge ({server.url})" in to_markdown(results)
    assert "| student | 40.0 | 70.0 | 3 of 6 | 0 of 4 | 0 | 70.0 | 0.44 |" in to_markdown(results)

    judge_run(tmp_path, judge, fields)  # nothing is read twice
    assert len(server.requests) == 12
    file = tmp_path / "judge.jsonl"
    file.write_bytes(file.read_bytes()[:-5])  # killed while it wrote
    judge_run(tmp_path, judge, fields)
    assert len(server.requests) == 13 and evaluate_runs([read_run(tmp_path)]).judged == [line]


def test_a_sample_of_the_right_ones_is_weighed(server, tmp_path):
    texts = [f"step {k} #3" for k in range(60)] + [f"step {k} #4" for k in range(40)]
    write_run(tmp_path, [answer("student", k, k < 60, student(text), gold="3") for k, text in enumerate(texts)])
    fields = JudgeFields(judge=server.url, judge_sample=0.2)
    judge_run(tmp_path, load_judge(fields), fields)
    (line,) = evaluate_runs([read_run(tmp_path)]).judged
    assert line.wrong_read == 40 and 4 <= line.right_read <= 22
    assert (line.judged_accuracy, line.agreement, line.kappa) == pytest.approx((0.6, 1.0, 1.0))


def test_a_judge_that_fails_or_is_silent_is_counted_and_asked_again(server, tmp_path, caplog):
    write_run(tmp_path, [answer("student", k, False, student(f"#{k}"), gold="3") for k in range(4)])
    fields = JudgeFields(judge=server.url)
    judge = Judge(OpenAIEngine(server.url, api="instruct", max_retries=0))
    broken = lambda handler: handler.reply(500, {"error": {"message": "out of memory"}})  # noqa: E731
    server.faults = [broken]
    server.says = lambda asked: "I would rather not say."
    judge_run(tmp_path, judge, fields)
    assert "The judge failed at 1 of 4 answers" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == [None] * 3
    (line,) = evaluate_runs([read_run(tmp_path)]).judged
    assert (line.silent, line.wrong_read, line.judged_accuracy, line.agreement, line.kappa) == (3, 0, None, None, None)
    server.faults = [broken]
    with pytest.raises(EngineError, match="failed at all of 1 answers: .*out of memory"):
        judge_run(tmp_path, judge, fields)
