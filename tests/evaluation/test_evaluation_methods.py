"""The methods beside the relay itself: random routers, random tokens, `call_bias`; and several processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.evaluations import SETTINGS, of, run, vocabulary

from relay_trl.data.arithmetic import problems, solve
from relay_trl.evaluation.answer_files import AnswerFile, answer_path, read_run
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.evaluation.methods import family_of, load_method
from relay_trl.trace import Author

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    names = ["student", "teacher", "relay_calls_off", "random_router_0", "random_router_0.4", "random_router_1"]
    names += ["random_tokens_0", "random_tokens_0.3", "random_tokens_1", "call_bias_-3"]
    return run(tmp_path_factory.mktemp("run") / "answers.jsonl", names, problems("test", 40, 0))[0]


def texts(result, method):
    return [answer.trace.text for answer in of(result, method)]


def test_the_ends_of_a_router_and_of_a_lottery_are_student_and_teacher(finished):
    assert texts(finished, "random_router_0") == texts(finished, "student")
    assert texts(finished, "random_router_1") == texts(finished, "teacher")
    assert texts(finished, "random_tokens_0") == texts(finished, "student")
    assert texts(finished, "random_tokens_1") == texts(finished, "teacher")


def test_a_router_sends_whole_problems_and_its_share_of_them(finished):
    shares = [answer.trace.teacher_share for answer in of(finished, "random_router_0.4")]
    assert set(shares) == {0.0, 1.0} and 8 <= sum(shares) <= 24


def test_a_lottery_gives_its_share_of_tokens_to_the_teacher(finished):
    answers = of(finished, "random_tokens_0.3")
    share = sum(a.trace.teacher_tokens for a in answers) / sum(a.trace.num_tokens for a in answers)
    assert 0.2 < share < 0.4
    for answer in answers:
        authors = [span.author for span in answer.trace.spans if span.author is not Author.CLOSING]
        assert all(first is not second for first, second in zip(authors, authors[1:], strict=False))
        # Whoever writes, easy answers come out as one of the two would write them.
        assert answer.kind == "hard_product" or answer.trace.text == solve(answer.prompt)


def test_a_lottery_asks_the_teacher_for_runs_of_tokens(finished):
    calls = [call for answer in of(finished, "random_tokens_0.3") for call in answer.trace.calls]
    assert {call.requested for call in calls} > {1, 2} and all(c.delivered <= c.requested for c in calls)


def test_a_scripted_student_obeys_no_bias_but_is_asked_for_it(tmp_path):
    words = vocabulary()
    tag = words.tokenizer.convert_tokens_to_ids("<call>")
    for name, bias in (("relay_calls_off", float("-inf")), ("call_bias_-3", -3.0), ("call_bias_2.5", 2.5)):
        seen = []

        class Recorder:
            def __init__(self, engine):
                self.engine, self.name, self.vocabulary, self.max_context = engine, "s", engine.vocabulary, 200

            async def generate(self, context, max_tokens, stop=(), sampling=None, seen=seen):
                seen.append(sampling.logit_bias)
                return await self.engine.generate(context, max_tokens, stop, sampling)

        run(tmp_path / name / "a.jsonl", [name], words=words, wrap=Recorder)
        assert {biases[tag] for biases in seen if biases} == {bias}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("fixed_16", ("fixed", 16.0)),
        ("call_bias_-2", ("call_bias", -2.0)),
        ("call_bias_0.5", ("call_bias", 0.5)),
        ("random_router_1", ("random_router", 1.0)),
        ("random_tokens_.25", ("random_tokens", 0.25)),
        ("relay_no_teacher", None),
        ("relay", None),
    ],
)
def test_names_with_a_number(name, family):
    assert family_of(name) == family and load_method(name).name == name


@pytest.mark.parametrize(
    "name", ["random_router_1.5", "random_tokens_-0.1", "call_bias_nan", "call_bias_", "fixed_2.5"]
)
def test_numbers_that_are_none(name):
    with pytest.raises(ValueError, match=f"Unknown method '{name}'.*such as"):
        load_method(name)


# Files of one run


def test_a_file_is_written_by_one_process_at_a_time(tmp_path):
    path = tmp_path / "answers.arithmetic.jsonl"
    with AnswerFile(path, SETTINGS), pytest.raises(ValueError, match="being written by another process"):
        AnswerFile(path, SETTINGS)
    AnswerFile(path, SETTINGS).close()


def test_parts_of_a_benchmark_make_one_run_and_know_of_one_another(tmp_path):
    whole, *_ = run(tmp_path / "whole" / "answers.jsonl", ["student"])
    settings = {**SETTINGS, "benchmark": "arithmetic"}
    for k in range(3):
        path = answer_path(tmp_path / "parts", "arithmetic", (k, 3))
        _, student, _ = run(path, ["student"], settings=settings, shard=(k, 3))
        assert len(student.contexts) == 4
    merged = read_run(tmp_path / "parts")
    assert sorted(json.dumps(a.to_dict()) for a in merged.answers) == sorted(
        json.dumps(a.to_dict()) for a in whole.answers
    )
    # Another number of processes goes on with what is there
    with AnswerFile(answer_path(tmp_path / "parts", "arithmetic"), settings) as one:
        assert len(one.done) == 12


def test_one_folder_holds_one_run(tmp_path):
    settings = {**SETTINGS, "benchmark": "arithmetic", "temperature": 1.0, "samples": 1}
    run(answer_path(tmp_path, "arithmetic"), ["student"], settings=settings)
    other = {**settings, "benchmark": "sums", "samples": 32}
    AnswerFile(answer_path(tmp_path, "sums"), other).close()
    with pytest.raises(ValueError, match="answers.arithmetic.jsonl is of a run with other settings: temperature"):
        AnswerFile(answer_path(tmp_path, "sums"), {**other, "temperature": 0.5})
    with pytest.raises(ValueError, match="samples was 1 and is now 2"):
        AnswerFile(answer_path(tmp_path, "arithmetic", (0, 2)), {**settings, "samples": 2})


def test_a_benchmark_may_have_any_name(tmp_path):
    assert answer_path(tmp_path, "user/My set.jsonl").name == "answers.user-My-set.jsonl.jsonl"
    assert answer_path(tmp_path, "../x", (1, 4)).name == "answers.x.1of4.jsonl"


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "1/0", "-1/2"])
def test_shards_that_are_none(shard):
    with pytest.raises(ValueError, match="shard is .*0/4 to 3/4"):
        EvaluationConfig(student="s", benchmarks=["arithmetic"], shard=shard)


def test_a_benchmark_asks_for_its_own_samples_and_template():
    config = EvaluationConfig(student="s", benchmarks=["aime2024", "arithmetic", "aime2024"])
    assert config.benchmarks == ["aime2024", "arithmetic"]
    aime, arithmetic = (config.for_benchmark(name) for name in config.benchmarks)
    assert (aime.samples, arithmetic.samples) == (32, 1)
    assert "boxed" in aime.prompt_template and arithmetic.prompt_template == "{problem}"
    own = EvaluationConfig(student="s", benchmarks=["aime2024"], samples=2, prompt_template="Q: {problem}")
    assert (own.for_benchmark("aime2024").samples, own.for_benchmark("aime2024").prompt_template) == (2, "Q: {problem}")
    with pytest.raises(ValueError, match="benchmarks is empty; name at least one, such as minerva"):
        EvaluationConfig(student="s", benchmarks=[])


@pytest.mark.distributed
def test_two_processes_give_what_one_gives_on_two_benchmarks(tmp_path):
    sums = tmp_path / "sums.jsonl"
    rows = [{"problem": row["prompt"], "answer": row["answer"]} for row in problems("validation", 6, 1)]
    sums.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "recipes/evaluate.py", "--config", "recipes/configs/arithmetic/evaluate.yaml"]
    command += ["--student", "data/arithmetic/student", "--teacher", "data/arithmetic/teacher", "--limit", "8"]
    command += ["--methods", "student", "teacher", "--benchmarks", "arithmetic", str(sums)]
    for name, count in (("one", "1"), ("two", "2")):
        out = ["--output_dir", str(tmp_path / name), "--num_processes", count]
        done = subprocess.run([*command, *out], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (sorted(json.dumps(a.to_dict()) for a in read_run(tmp_path / name).answers) for name in ("one", "two"))
    assert one == two and len(one) == 2 * (8 + 6)
    assert len(list((tmp_path / "two").glob("answers.*of2.jsonl"))) == 4
    average = json.loads((tmp_path / "two" / "results.json").read_text())["results"][-1]
    assert average["benchmark"] == "average of 2" and average["problems"] == 14
    broken = [*command, "--output_dir", str(tmp_path / "three"), "--num_processes", "2", "--dtype", "float99"]
    done = subprocess.run(broken, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "did not end well" in done.stderr.splitlines()[-1]
