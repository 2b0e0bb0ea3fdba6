"""Evaluation with scripted models: the methods, resuming a killed run, and the figures."""

import json
import logging

import numpy as np
import pytest
from helpers.evaluations import CONFIG, METHODS, SETTINGS, of, run, student_engine, teacher_engine, vocabulary

from relay_trl.call_syntax import CallSyntax
from relay_trl.data.arithmetic import problems, solve
from relay_trl.engines.base import EngineError, Sampling
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.evaluation.answer_files import AnswerFile, read_run
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.evaluation.methods import load_method, load_methods
from relay_trl.evaluation.report.results import summarize
from relay_trl.evaluation.report.statistics import bootstrap_interval, cost_reduction, gap_recovered
from relay_trl.evaluation.runner import answer_seed, build_problems, evaluate
from relay_trl.grading.grader import Grader
from relay_trl.prompts import PromptBuilder
from relay_trl.run_files import fingerprint
from relay_trl.trace import Author, Outcome, StopReason


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "answers.jsonl")[0]


# Methods


def test_every_method_answers_every_problem(finished):
    assert {method: len(of(finished, method)) for method in METHODS} == dict.fromkeys(METHODS, 12)


def test_who_is_right_where(finished):
    is_hard = [answer.kind == "hard_product" for answer in of(finished, "relay")]
    for method, is_right_when_hard in {
        "student": False,
        "relay_no_teacher": False,
        "relay": True,
        "teacher": True,
    }.items():
        for answer in of(finished, method):
            assert answer.correct == (answer.kind != "hard_product" or is_right_when_hard), (method, answer.prompt)
    assert any(is_hard) and not all(is_hard)


def test_student_alone_has_no_calls_and_keeps_its_commands_as_text(finished):
    for answer in of(finished, "student"):
        assert not answer.trace.has_called and answer.trace.teacher_tokens == 0
        assert answer.trace.answer == answer.trace.text
        assert ("<call>" in answer.trace.answer) == (answer.kind == "hard_product")


def test_teacher_alone_writes_everything_after_its_own_prompt(tmp_path):
    result, student, teacher = run(tmp_path / "a.jsonl", ["teacher"])
    assert student.contexts == []
    for answer in of(result, "teacher"):
        assert [span.author for span in answer.trace.spans] == [Author.TEACHER]
        assert answer.trace.teacher_share == 1.0
        assert answer.trace.text == solve(answer.prompt)
        assert answer.trace.stop is StopReason.TEACHER_EOS
    assert sorted(map(tuple, teacher.contexts)) == sorted(tuple(answer.trace.prompt_ids) for answer in result.answers)


def test_a_text_only_teacher_is_counted_in_the_students_tokens(tmp_path):
    words = vocabulary()
    teacher = ScriptedEngine(None, solve, name="text")
    result, _, _ = run(tmp_path / "a.jsonl", ["teacher"], teacher=teacher, words=words)
    for answer in result.answers:
        assert answer.correct and answer.trace.num_tokens == len(solve(answer.prompt))
        assert answer.trace.teacher_share == 1.0


def test_relay_calls_on_hard_products_only(finished):
    for answer in of(finished, "relay"):
        assert answer.trace.has_called == (answer.kind == "hard_product")
        assert [call.delivered for call in answer.trace.calls] == ([4] if answer.trace.has_called else [])


def test_calls_without_a_teacher_are_made_and_denied(finished):
    called = [answer for answer in of(finished, "relay_no_teacher") if answer.trace.calls]
    assert called and all(answer.kind == "hard_product" for answer in called)
    for answer in called:
        assert [call.outcome for call in answer.trace.calls] == [Outcome.DENIED]
        assert "<call>" not in answer.trace.answer and answer.trace.teacher_tokens == 0


def test_fixed_grants_its_own_number(finished):
    calls = [call for answer in of(finished, "fixed_2") for call in answer.trace.calls]
    assert calls and {(call.requested, call.granted) for call in calls} == {(4, 2)}


def test_fixed_is_not_cut_by_the_limit_on_asked_for_lengths(tmp_path):
    result, _, _ = run(tmp_path / "a.jsonl", ["fixed_9"])
    assert {call.granted for answer in result.answers for call in answer.trace.calls} == {9}


@pytest.mark.parametrize(
    "name",
    ["fixed", "fixed_", "fixed_0", "fixed_-1", "fixed_x", "citer_2", "citer_", "citer_0.5x", "Relay", "", "fixed_4 "],
)
def test_unknown_methods_are_refused_with_the_known(name):
    with pytest.raises(
        ValueError, match="known are student, teacher, relay, relay_no_teacher, relay_calls_off, citer, fixed_n"
    ):
        load_method(name)


def test_methods_without_a_teacher_say_so(tmp_path):
    with pytest.raises(ValueError, match="relay, fixed_2, teacher ask the teacher"):
        run(tmp_path / "a.jsonl", has_teacher=False)
    result, _, _ = run(tmp_path / "b.jsonl", ["student", "relay_no_teacher"], has_teacher=False)
    assert len(result.answers) == 24


# Seeds


def test_seeds_depend_on_problem_and_sample_only():
    seeds = {answer_seed(0, "b", index, sample) for index in range(20) for sample in range(20)}
    assert len(seeds) == 400
    assert answer_seed(0, "b", 1, 2) == answer_seed(0, "b", 1, 2) != answer_seed(1, "b", 1, 2)


def test_engines_get_these_seeds(tmp_path):
    class Recorder(ScriptedEngine):
        async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
            seen.append((self.vocabulary.decode(context), sampling.seed))
            return await super().generate(context, max_tokens, stop, sampling)

    seen = []
    words = vocabulary()
    rows = problems("test", 4, 0)
    scripted = student_engine(words)
    recorder = Recorder(words, scripted._script)
    asked = build_problems("arithmetic", rows, PromptBuilder(words.tokenizer), recorder)
    with AnswerFile(tmp_path / "a.jsonl", {}) as answers, Grader("#") as grader:
        methods = load_methods(["student", "relay_no_teacher"])
        evaluate(methods, asked, recorder, None, CONFIG, grader, answers, samples=2, seed=7, has_progress=False)
    wanted = [(row["prompt"], answer_seed(7, "arithmetic", i, k)) for k in range(2) for i, row in enumerate(rows)]
    assert sorted(seen) == sorted(wanted * 2)


# The file


def test_a_finished_run_asks_nothing_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    run(path)
    before = path.read_bytes()
    _, student, teacher = run(path)
    assert student.contexts == teacher.contexts == []
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_a_killed_run_goes_on_where_it_was(tmp_path, caplog, cut):
    whole, _, _ = run(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "killed.jsonl"
    path.write_bytes(b"".join(lines[:21]) + lines[21][:-cut])
    with caplog.at_level(logging.WARNING):
        resumed, _, _ = run(path)
    assert "half a line" in caplog.text and "20 of 60" in caplog.text
    assert sorted(a.key for a in resumed.answers) == sorted(a.key for a in whole.answers)
    assert len(path.read_bytes().splitlines()) == 61  # nothing twice
    assert path.read_bytes().startswith(b"".join(lines[:21]))


def test_a_run_killed_in_its_header_begins_anew(tmp_path, caplog):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"format": "relay_tr')
    result, _, _ = run(path, ["student"])
    assert len(result.answers) == 12 and "half a line" in caplog.text


def test_more_methods_can_be_added(tmp_path):
    path = tmp_path / "answers.jsonl"
    run(path, ["student"])
    result, _, _ = run(path, ["student", "teacher"])
    assert len(result.answers) == 24


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    run(path, ["student"], settings={**SETTINGS, "temperature": 1.0})
    with pytest.raises(ValueError, match="temperature was 1.0 and is now 0.5.*another output"):
        AnswerFile(path, {**SETTINGS, "temperature": 0.5})


def test_a_run_without_answers_binds_nobody(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, {"temperature": 1.0}):
        pass
    run(path, ["student"], problems("test", 4, 0))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with AnswerFile(path, {"temperature": 0.5}) as answers:
        assert answers.done == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"some": "other"}\n', "is no file of answers"),
        ("not json\n", "is no file of answers"),
        ('{"format": "relay_trl.answers", "version": 99, "settings": {}}\n', "version 99"),
        ('{"format": "relay_trl.answers", "version": 1, "settings": {}}\nbroken\n', "damaged in line 2"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, text, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        AnswerFile(path, {})
    with pytest.raises(ValueError, match=message):
        read_run(path)
    assert path.read_text() == text


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no answers"):
        read_run(tmp_path / "nothing")
    (tmp_path / "answers.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_run(tmp_path)


def test_a_student_that_fails_stops_the_run_and_keeps_the_answers(tmp_path):
    words = vocabulary()
    rows = problems("test", 12, 0)
    scripted = student_engine(words)
    bad = rows[-1]["prompt"]

    def script(context):
        return EngineError("Out of memory.") if words.decode(context) == bad else scripted._script(context)

    student = ScriptedEngine(words, script)
    asked = build_problems("arithmetic", rows, PromptBuilder(words.tokenizer), student)
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, SETTINGS) as answers, Grader("#") as grader:
        with pytest.raises(EngineError, match="Out of memory"):
            options = {"max_in_flight": 2, "has_progress": False}
            evaluate(load_methods(["student"]), asked, student, None, CONFIG, grader, answers, **options)
    assert len(read_run(path).answers) >= 10
    assert len(run(path, ["student"])[0].answers) == 12


def test_failures_are_apart_and_asked_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    words = vocabulary()
    rows = problems("test", 12, 0)
    hard = [row["prompt"] for row in rows if row["kind"] == "hard_product"]
    away = teacher_engine(words, fails_on=lambda text: text.startswith(hard[0]))
    result, _, _ = run(path, ["student", "relay", "teacher"], rows, teacher=away, words=words)
    failed = [answer for answer in result.answers if answer.correct is None]
    assert {(answer.method, answer.prompt) for answer in failed} == {("relay", hard[0]), ("teacher", hard[0])}
    assert all("away" in answer.trace.error and "away" not in answer.trace.text for answer in failed)
    summaries = {summary.method: summary for summary in summarize([result])}
    assert (summaries["relay"].failures, summaries["relay"].answers, summaries["relay"].accuracy) == (1, 11, 1.0)
    assert (summaries["teacher"].failures, summaries["teacher"].problems) == (1, 11)
    again, _, _ = run(path, ["student", "relay", "teacher"], rows)
    assert len(again.answers) == 36 and all(answer.correct is not None for answer in again.answers)


def test_all_failed_gives_no_accuracy(tmp_path):
    words = vocabulary()
    away = teacher_engine(words, fails_on=lambda text: True)
    result, _, _ = run(tmp_path / "a.jsonl", ["student", "teacher"], teacher=away, words=words)
    summary = summarize([result])[-1]
    assert (summary.failures, summary.answers, summary.accuracy, summary.low) == (12, 0, None, None)


def test_prompts_that_do_not_fit_are_refused_before_anything_is_asked():
    words = vocabulary()
    student = student_engine(words)
    rows = problems("test", 3, 0)
    with pytest.raises(ValueError, match="max_prompt_length=5"):
        build_problems("arithmetic", rows, PromptBuilder(words.tokenizer), student, 5, 60)
    with pytest.raises(ValueError, match="max_completion_length is 500.*room for 200"):
        build_problems("arithmetic", rows, PromptBuilder(words.tokenizer), student, None, 500)
    assert student.contexts == []


def test_fingerprints_tell_weights_apart(tmp_path):
    weights = bytearray(np.random.default_rng(0).bytes(3_000_000))
    (tmp_path / "model.safetensors").write_bytes(weights)
    first = fingerprint(str(tmp_path))
    assert first == fingerprint(str(tmp_path)) and fingerprint("no/folder") is None
    for place in (0, -1):
        changed = bytearray(weights)
        changed[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        assert fingerprint(str(tmp_path)) != first


# Statistics


def test_the_papers_headline_figures():
    gap = gap_recovered(49.52, 42.50, 54.12)
    assert f"{100 * gap:.1f}" == "60.4"
    assert f"{100 * cost_reduction(0.0107, gap):.1f}" == "98.2"


def test_headlines_at_the_edges():
    assert gap_recovered(0.5, 0.6, 0.6) is None
    assert gap_recovered(0.4, 0.5, 1.0) == pytest.approx(-0.2)
    assert cost_reduction(0.1, -0.2) is None and cost_reduction(0.1, 0.0) is None
    assert cost_reduction(0.1, 1.5) == pytest.approx(0.9)


def test_bootstrap_interval_agrees_with_the_normal_one():
    values = np.repeat([1.0, 0.0], [420, 180])
    low, high = bootstrap_interval(values)
    error = values.std(ddof=1) / len(values) ** 0.5
    assert low == pytest.approx(0.7 - 1.96 * error, abs=0.004)
    assert high == pytest.approx(0.7 + 1.96 * error, abs=0.004)
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval([1.0]) == (1.0, 1.0)


def test_figures_by_hand(finished):
    summaries = {summary.method: summary for summary in summarize([finished])}
    relay, student = summaries["relay"], summaries["student"]
    hard = [answer for answer in of(finished, "relay") if answer.kind == "hard_product"]
    assert len(hard) == 6
    assert student.accuracy == 0.5 and relay.accuracy == 1.0
    assert student.standard_error == pytest.approx((0.25 * 12 / 11 / 12) ** 0.5)
    assert relay.call_rate == relay.calls_per_answer == 0.5
    assert relay.requested == relay.delivered == 4
    # 4 tokens of the teacher in each hard answer; an end token in all, a command of 3 tokens in the hard ones.
    lengths = {answer.index: len(solve(answer.prompt)) + 1 for answer in of(finished, "relay")}
    assert relay.teacher_share == pytest.approx(sum(4 / lengths[answer.index] for answer in hard) / 12)
    assert relay.token_share == pytest.approx(6 * 4 / (sum(lengths.values()) + 6 * 3))
    assert relay.tokens_per_answer == pytest.approx((sum(lengths.values()) + 6 * 3) / 12)
    assert {kind: s.call_rate for kind, s in relay.by_kind.items()} == {
        "hard_product": 1.0,
        "known_product": 0.0,
        "no_product": 0.0,
    }
    assert student.by_kind["hard_product"].accuracy == 0.0
    assert relay.gap_recovered == 1.0
    assert relay.cost_reduction == pytest.approx(1 - relay.token_share)
    assert summaries["relay_no_teacher"].cost_reduction is None and summaries["relay_no_teacher"].denied == 6
    assert student.gap_recovered is None and summaries["teacher"].gap_recovered is None


def test_samples_are_averaged_within_problems(tmp_path):
    result, _, _ = run(tmp_path / "a.jsonl", ["student"], samples=3)
    for answer in result.answers:
        answer.correct = answer.sample == 0 or answer.index < 6
    (summary,) = summarize([result])
    assert (summary.problems, summary.answers) == (12, 36)
    assert summary.accuracy == pytest.approx((6 + 6 / 3) / 12)
    assert summary.standard_error == pytest.approx(np.std([1.0] * 6 + [1 / 3] * 6, ddof=1) / 12**0.5)


def test_several_runs_share_one_reference(finished, tmp_path):
    other, _, _ = run(tmp_path / "grpo" / "answers.jsonl", ["student"])
    for answer in other.answers[:9]:
        answer.correct = True
    other.labels = {"student": "GRPO, no teacher"}
    summaries = {summary.label: summary for summary in summarize([finished, other])}
    grpo = summaries["GRPO, no teacher"]
    assert grpo.gap_recovered == pytest.approx((grpo.accuracy - 0.5) / 0.5) and grpo.run == "grpo"
    other.labels = {}
    labels = [summary.label for summary in summarize([finished, other])]
    assert len(set(labels)) == len(labels) and "grpo: student" in labels


def test_runs_need_names_of_their_own(finished):
    with pytest.raises(ValueError, match="Two runs are called"):
        summarize([finished, finished])


# Config


def config(**changes):
    return EvaluationConfig(**{"student": "student", "benchmarks": ["arithmetic"], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["relay", "rely"]}, "Unknown method 'rely'"),
        ({"methods": []}, "methods is empty"),
        ({"samples": 0}, "samples is 0"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"open_tag": "<a>", "close_tag": "<a>"}, "must differ"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_calls": -1}, "max_calls is -1"),
        ({"teacher_backend": "sglang"}, "teacher_backend is 'sglang'; it must be one of auto"),
        ({"chat_template_kwargs": "{"}, "must be JSON"),
        ({"student_engine": "[1]"}, "must be a JSON object"),
        ({"student": "http://localhost"}, "student is a URL"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_students_relay_config_fills_what_is_unset(tmp_path):
    record = {"format": 1, "open_tag": "[", "close_tag": "]", "max_calls": 2, "answer_marker": "#", "teacher": "big"}
    (tmp_path / "relay_config.json").write_text(json.dumps(record))
    filled = config(student=str(tmp_path), max_calls=4).with_student_defaults()
    assert (filled.open_tag, filled.max_calls, filled.answer_marker, filled.teacher) == ("[", 4, "#", "big")
    assert filled.relay_config().syntax == CallSyntax("[", "]")


def test_a_student_without_relay_config_gets_the_defaults(tmp_path):
    filled = config(student=str(tmp_path), methods=["student"]).with_student_defaults()
    assert (filled.open_tag, filled.max_calls, filled.teacher) == ("<call>", 5, None)
    with pytest.raises(ValueError, match="teacher is not set"):
        config(student=str(tmp_path)).with_student_defaults()


def test_settings_hold_no_credentials_and_no_methods(tmp_path):
    filled = config(student=str(tmp_path), teacher="http://me:pass1@host/v1?key=pass2").with_student_defaults()
    settings = filled.settings(problems("test", 2, 0), filled.weights())
    assert "pass" not in json.dumps(settings["teacher"]) and "methods" not in settings
