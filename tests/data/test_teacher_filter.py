"""The training set that the teacher can solve: rates, range, shards, what survives a killed run, and the Hub."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.hub_server import HubServer

from relay_trl.data.arithmetic import build_tokenizer, problems
from relay_trl.data.teacher_filter import FilterConfig, choose, pass_rates
from relay_trl.engines.base import EngineError
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.grading.grader import Grader
from relay_trl.run_files import ResumableRows
from relay_trl.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
YAML = ROOT / "recipes/configs/arithmetic/filter_by_teacher.yaml"
WEAK = ("--teacher", "data/arithmetic/student")  # hard products are beyond it
WORDS = Vocabulary(build_tokenizer())


@pytest.fixture
def run_filter(recipe, tmp_path):
    given = ("--output_dir", tmp_path / "out", "--dataset_size", 16, "--samples", 4)
    return lambda *args, config=YAML: recipe("filter_by_teacher", "--config", config, *given, *args)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rates_are_kept_and_another_range_needs_no_new_answers(run_filter, tmp_path):
    status, said, error = run_filter(*WEAK)
    assert status == 0, error
    rates = {entry["number"]: entry["row"] for entry in read(tmp_path / "out/rates-00000-of-00001.jsonl")[1:]}
    rows = problems("train", 16)
    assert sorted(rates) == list(range(16)) and all(rate["samples"] == 4 for rate in rates.values())
    kept = read(tmp_path / "out/train.jsonl")
    expected = {row["prompt"]: rates[i]["correct"] / 4 for i, row in enumerate(rows) if rates[i]["correct"]}
    assert {row["prompt"]: row["pass_rate"] for row in kept} == expected and 0 < len(kept) < 16
    assert all(row["teacher_samples"] == 4 and {"answer", "kind", "solution"} <= set(row) for row in kept)
    assert f"{len(kept)} of 16 problems kept by pass rate: solved never {16 - len(kept)}," in said

    status, said, _ = run_filter(*WEAK, "--min_pass_rate", 1)
    assert status == 0 and "has all rates of this shard already" in said
    assert {row["prompt"] for row in read(tmp_path / "out/train.jsonl")} == {p for p, r in expected.items() if r == 1}
    status, _, error = run_filter(*WEAK, "--samples", 5)
    assert status == 1 and "samples was 4 and is now 5" in error


def test_shards_add_up_to_the_whole(run_filter, tmp_path):
    assert run_filter(*WEAK, "--output_dir", tmp_path / "whole")[0] == 0
    status, said, _ = run_filter(*WEAK, "--num_shards", 3, "--shard", 2)
    assert status == 0 and "rates are missing in the shards 0 (6 problems), 1 (5 problems)" in said
    assert not (tmp_path / "out/train.jsonl").exists()
    for shard in (0, 1):
        assert run_filter(*WEAK, "--num_shards", 3, "--shard", shard)[0] == 0
    assert (tmp_path / "out/train.jsonl").read_text() == (tmp_path / "whole/train.jsonl").read_text()


def config_of(**fields):
    given = {"teacher": "t", "output_dir": "o", "answer_marker": "#", "samples": 2, "max_completion_length": 20}
    return FilterConfig(**given | fields)


def rate_all(script, config, done=(), count=9):
    """Rates of problems whose prompt is their number, and the error at the end."""
    teacher = ScriptedEngine(WORDS, lambda context: script(int(WORDS.decode(context))))
    contexts = [WORDS.encode(str(i)) for i in range(count)]
    rates, error = {}, None

    async def run():
        async for number, rate in pass_rates(contexts, [str(i) for i in range(count)], teacher, grader, config, done):
            rates[number] = rate

    with Grader(config.answer_marker) as grader:
        try:
            asyncio.run(run())
        except EngineError as raised:
            error = str(raised)
    return rates, error, [int(WORDS.decode(context)) for context in teacher.contexts]


def right(i):
    return [*WORDS.encode(f"#{i}"), WORDS.eos_id]


def test_a_failing_teacher_gives_no_rate_and_is_asked_again():
    away = EngineError("The teacher is away.")
    rates, error, _ = rate_all(lambda i: away if i in (2, 5) else right(i), config_of())
    assert set(rates) == {0, 1, 3, 4, 6, 7, 8} and all(rate["correct"] == 2 for rate in rates.values())
    assert error is not None and "failed at 2 problems, the last time with: The teacher is away." in error
    again, error, asked = rate_all(right, config_of(), done=rates)
    assert (set(again), error, set(asked)) == ({2, 5}, None, {2, 5})


def test_a_teacher_that_is_gone_stops_the_run():
    config = config_of(max_teacher_failures=3, max_in_flight=1)
    rates, error, asked = rate_all(lambda i: EngineError("gone") if i >= 2 else right(i), config)
    assert set(rates) == {0, 1} and error is not None and max(asked) == 4


def test_an_answer_that_does_not_end_is_cut_and_wrong():
    rates, _, _ = rate_all(lambda i: right(i) if i else WORDS.encode("#0"), config_of(), count=2)
    assert rates[0] == {"correct": 0, "samples": 2, "cut": 2, "is_asked": True}
    assert rates[1] == {"correct": 2, "samples": 2, "cut": 0, "is_asked": True}


def test_samples_have_seeds_of_their_own_and_the_range_is_inclusive():
    rates = {i: {"correct": i, "samples": 4, "cut": 0, "is_asked": True} for i in range(5)}
    rates[5] = {"correct": 0, "samples": 4, "cut": 0, "is_asked": False}
    rows = [{"prompt": str(i)} for i in range(6)]

    def kept(**fields):
        return [int(row["prompt"]) for row in choose(rows, rates, config_of(**fields))]

    assert kept() == [1, 2, 3, 4]
    assert kept(min_pass_rate=0.5, max_pass_rate=0.75) == [2, 3]
    assert kept(min_pass_rate=0.0, max_pass_rate=0.0) == [0]  # what was not asked is not what was not solved
    with pytest.raises(
        ValueError, match=r"None of 6 problems has a pass rate within the range \(solved never 1, up to"
    ):
        kept(min_pass_rate=0.9, max_pass_rate=0.95)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--teacher", "runs/no/model"), "teacher: 'runs/no/model' is neither"),
        (("--samples", 0), "samples is 0; it must be at least 1"),
        (("--shard", 3, "--num_shards", 3), "shard is 3; with num_shards 3 it must be 0 to 2"),
        (("--min_pass_rate", 0.5, "--max_pass_rate", 0.2), "min_pass_rate is 0.5 and max_pass_rate 0.2"),
        (("--push_to", "name"), "push_to is 'name'; it must be the id of a dataset"),
        (("--dataset", "gsm8k"), "'gsm8k' is a benchmark that results are reported on"),
        (("--max_prompt_length", 8), "are longer than max_prompt_length=8"),
        (("--max_completion_length", 999), "has room for 256 tokens"),
        (("--min_pas_rate", 1), "did you mean 'min_pass_rate'"),
    ],
)
def test_bad_input_ends_in_one_sentence(run_filter, args, said):
    status, _, error = run_filter(*args)
    assert status == 1 and said in error
    assert error.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("*/filter_by_teacher*.yaml")), ids=str)
def test_the_shipped_configs_are_valid(path):
    options = yaml.safe_load(path.read_text())
    known = {name: value for name, value in options.items() if name in FilterConfig.__dataclass_fields__}
    FilterConfig(**known)


@pytest.mark.slow
def test_from_file_to_hub_and_back(tmp_path):
    rates = tmp_path / "out/rates-00000-of-00001.jsonl"
    with HubServer({"hf_me": "me"}) as hub:
        env = hub.environment(tmp_path / "home", "hf_me") | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        options = ["--output_dir", tmp_path / "out", "--dataset_size", 16, "--samples", 2, "--push_to", "me/filtered"]
        command = [sys.executable, "recipes/filter_by_teacher.py", "--config", YAML, *WEAK, *options]
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        repo = hub.repos["dataset/me/filtered"]
        assert repo.is_private and repo.files["train.jsonl"] == (tmp_path / "out/train.jsonl").read_bytes()
        card = repo.files["README.md"].decode()
        assert "# filtered" in card and "problems kept by pass rate" in card and "| samples | `2` |" in card
        script = (
            "from relay_trl.data.sources import load_rows; rows = load_rows('me/filtered'); "
            "print(len(rows), rows[0]['prompt'], rows[0]['answer'], rows[0]['pass_rate'])"
        )
        found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-2000:]
        first = read(tmp_path / "out/train.jsonl")[0]
        count = len(read(tmp_path / "out/train.jsonl"))
        shown = f"{count} {first['prompt']} {first['answer']} {first['pass_rate']}"
        assert found.stdout.strip().splitlines()[-1] == shown
        stranger = subprocess.run(
            [*map(str, command), "--push_to", "you/filtered"], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert (
            stranger.returncode == 1 and "does not let this login write there (dataset you/filtered)" in stranger.stderr
        )
    with ResumableRows(rates, json.loads(rates.read_text().splitlines()[0])["settings"]) as kept:
        assert len(kept) == 16
