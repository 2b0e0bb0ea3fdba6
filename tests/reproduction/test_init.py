"""`relay-trl init`: a pair of another family with its own data file, from two models and a file to a report, without editing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tokenizers import byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from relay_trl.reproduction.check import problems
from relay_trl.reproduction.command import init
from relay_trl.reproduction.pair import load_pair, read
from relay_trl.reproduction.runs import Runs

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture
def model(tmp_path):
    """Writes a tiny random Llama."""

    def make(name, context=256, seed=0):
        tokenizer = byte_level()
        tokenizer.chat_template = TEMPLATE
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        end = tokenizer.eos_token_id
        ids = {"vocab_size": len(tokenizer), "eos_token_id": end, "pad_token_id": end, "bos_token_id": None}
        config = LlamaConfig(**sizes, **ids, max_position_embeddings=context, initializer_range=0.2)
        found = LlamaForCausalLM(config)
        with torch.no_grad():  # so that answers end
            found.get_output_embeddings().weight[end] *= 1.5
        found.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [
        {"question": f"{a}+{b}=", "gold": str(a + b), "solution": f"{a} and {b}: #{a + b}"}
        for a in range(8)
        for b in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write(model, data, tmp_path, *more):
    path = tmp_path / "mine.yaml"
    init(
        [
            "--student",
            model("student"),
            "--teacher",
            model("teacher", seed=1),
            "--dataset",
            data,
            "--output",
            str(path),
            *more,
        ]
    )
    return path


def test_each_choice_follows_from_what_was_looked_at(model, data, tmp_path, capsys):
    path = write(model, data, tmp_path)
    text, pair = path.read_text(), load_pair(path, "cpu")
    assert "one vocabulary: token ids go back and forth" in text and "contexts: student 256, teacher 256" in text
    assert pair.task["problem_column"] == "question" and pair.task["answer_column"] == "gold"
    assert pair.task["answer_marker"].endswith(": #") and pair.task["prompt_template"] == "{problem}"
    assert "add_call_tokens" not in pair.task  # bytes spell any tag
    assert 16 <= pair.task["max_completion_length"] < 256 - pair.task["max_prompt_length"]
    train, test = (
        {json.loads(line)["question"] for line in (tmp_path / f"mine.{part}.jsonl").read_text().splitlines()}
        for part in ("train", "test")
    )
    assert len(train) + len(test) == 64 and not train & test and len(test) == 6
    assert not problems(pair, Runs(pair).all_stages(), None, is_thorough=True)
    assert f"relay-trl train {os.path.relpath(path)}" in capsys.readouterr().out


def test_on_gpus_the_papers_settings_are_the_base(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("relay_trl.reproduction.init.count_gpus", lambda: 2)
    path = write(model, data, tmp_path)
    given = read(path)
    assert given["grpo"]["loss_type"] == "dapo" and set(given["hardware"]) == {"1gpu", "2gpu", "8gpu"}
    assert given["filter"] is None and given["evaluate"]["benchmarks"] == [
        os.path.relpath(tmp_path / "mine.test.jsonl")
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--dataset": "math500"}, "is a benchmark that results are reported on"),
        ({"--dataset": "none.jsonl"}, "none.jsonl does not exist"),
        ({"--student": "runs/none"}, "student: 'runs/none' is neither"),
        ({"--student": "http://host/v1"}, "student is a URL, but it is trained here"),
        (
            {"--teacher": str(ROOT / "data/lookups/teacher"), "--student": str(ROOT / "data/arithmetic/student")},
            "cannot work together",
        ),
    ],
)
def test_what_makes_no_pair_is_refused(change, said, model, data, tmp_path):
    options = {
        "--student": model("student"),
        "--teacher": model("teacher"),
        "--dataset": data,
        "--output": str(tmp_path / "x.yaml"),
    }
    with pytest.raises((ValueError, OSError)) as error:
        init([word for pair in {**options, **change}.items() for word in pair])
    assert said in str(error.value) and not (tmp_path / "x.yaml").exists()


def test_a_row_may_lack_its_answer(model, tmp_path):
    rows = [{"question": f"{k}+1=", **({} if k == 7 else {"gold": str(k + 1)})} for k in range(30)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(lambda name, seed=0: model(name, 1024, seed), str(tmp_path / "some.jsonl"), tmp_path)
    written = [(tmp_path / f"mine.{part}.jsonl").read_text().splitlines() for part in ("train", "test")]
    assert len([*written[0], *written[1]]) == 30 and '{"question": "7+1=", "gold": null}' in [*written[0], *written[1]]


def test_data_that_cannot_be_used_and_models_without_room_are_refused(model, data, tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"a": 1, "b": 2}\n' * 30)
    with pytest.raises(ValueError, match=r"has the columns \['a', 'b'\]; a problem"):
        write(model, str(tmp_path / "odd.jsonl"), tmp_path)
    with pytest.raises(ValueError, match="no room is left for an answer"):
        init(
            [
                "--student",
                model("s", 64),
                "--teacher",
                model("t"),
                "--dataset",
                data,
                "--output",
                str(tmp_path / "y.yaml"),
            ]
        )
    path = write(model, data, tmp_path)
    with pytest.raises(FileExistsError, match=r"is there already; give another --output"):
        init(["--student", model("s"), "--teacher", model("t"), "--dataset", data, "--output", str(path)])


@pytest.mark.slow
def test_from_two_models_and_a_file_to_a_report(model, data, tmp_path):
    path, out = write(model, data, tmp_path), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "relay_trl",
        "train",
        str(path),
        f"output_dir={out}",
        "grpo.max_steps=2",
        "warmup.samples=1",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((out / "report/results.json").read_text())["results"]
    assert sorted(row["label"] for row in results) == ["relay", "relay, teacher away", "student", "teacher"]
    assert all(row["answers"] == 6 for row in results)
