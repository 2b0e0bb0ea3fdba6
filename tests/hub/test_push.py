"""recipes/push.py: pushes models, adapters and data sets to a stand-in of the Hub, with cards made from a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from helpers.hub_server import HubServer, card_data, card_faults
from huggingface_hub import DatasetCard, ModelCard

from relay_trl.costs import load_costs
from relay_trl.evaluation.answer_files import Answer, AnswerFile, read_run
from relay_trl.evaluation.report.for_card import card_contents
from relay_trl.evaluation.report.write import write_report
from relay_trl.hub.dataset_card import read_rows, write_dataset_card
from relay_trl.hub.model_card import write_model_card
from relay_trl.hub.upload import PushConfig, licence_of, model_files, push, refuse_secrets
from relay_trl.relay_config import RelayRecord, save_record
from relay_trl.run_files import write_jsonl
from relay_trl.trace import Author, Span, StopReason, Trace

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "data" / "arithmetic" / "student"
TOKEN = "hf_plantedSecretNumberOne"
WARMUP = [{"prompt": "1+1=", "completion": "2<call>3</call>", "completion_ids": list(range(20)), "calls": 1}] * 3


def trained(folder, **fields):
    """A folder as a training leaves it, with what must not be pushed in it."""
    shutil.copytree(STUDENT, folder)
    log = [{"step": step, "relay/accuracy": step / 4, "relay/teacher_share": 0.1} for step in (1, 2, 3)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    for path in (
        "training_args.bin",
        "optimizer.pt",
        "_rollouts/rank0000-000000.jsonl",
        "checkpoint-1/config.json",
        ".env",
    ):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("private")
    save_record(RelayRecord(**{"teacher": "me/teacher", "student_base": "me/base", "steps": 3, **fields}), folder)
    return folder


def evaluated(folder):
    def answer(method, index, author, is_correct):
        trace = Trace([0], [Span(author, [1, 2], "ab")], stop=StopReason.EOS)
        return Answer(method, "gsm8k", index, 0, "p", "2", is_correct, None, trace)

    with AnswerFile(folder / "answers.jsonl", {}) as file:
        for index in range(8):
            file.add(answer("student", index, Author.STUDENT, index < 2))
            file.add(answer("relay", index, Author.STUDENT, index < 5))
            file.add(answer("teacher", index, Author.TEACHER, index < 8))
    return folder


def test_only_the_models_own_files_go(tmp_path):
    expected = {"config.json", "generation_config.json", "model.safetensors", "relay_config.json"}
    expected |= {"tokenizer.json", "tokenizer_config.json"}
    assert set(model_files(trained(tmp_path / "run"))) == expected
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no model to push"):
            model_files(folder)


@pytest.mark.parametrize("secret", [TOKEN, "sk-" + "a1" * 20, "plantedInTheEnvironment"])
def test_a_secret_stops_the_push_and_is_not_shown(tmp_path, secret, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "plantedInTheEnvironment")
    path = tmp_path / "config.json"
    path.write_text('{\n"a": "hf_short",\n"b": 1}')
    refuse_secrets({"config.json": path})
    path.write_text(f'{{\n"a": "x{secret[:2]}",\n"b": "{secret}"}}')
    with pytest.raises(ValueError, match="in line 3; nothing was pushed") as caught:
        push({"config.json": path}, "me/model", "model", True, "message")
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"repo_id": "me/a", "model": "a", "data": "b"}, "either model"),
        ({"repo_id": "me/a"}, "either model"),
        ({"repo_id": "model", "model": "a"}, "repo_id is 'model'; give user/name"),
        ({"repo_id": "me/a b", "model": "a"}, "repo_id is 'me/a b'"),
        ({"repo_id": "me/a", "model": "a", "base_model": "runs/sft/x"}, "base_model is 'runs/sft/x'"),
        ({"repo_id": "me/a", "data": "a", "evaluations": ["b"]}, "evaluations belong to a model"),
    ],
)
def test_what_makes_no_push(fields, said):
    with pytest.raises(ValueError, match=said):
        PushConfig(**fields)


def test_a_card_made_from_a_run(tmp_path):
    run = trained(tmp_path / "run")
    contents = card_contents(str(run), [str(evaluated(tmp_path / "evaluation"))], tmp_path / "card")
    licences = {"me/base": "apache-2.0", "me/teacher": None}
    text = write_model_card(tmp_path / "card", RelayRecord(), "m", licences=licences, **contents).read_text()
    assert card_faults(text) == []
    assert "| gsm8k, 8 problems | relay | 62.5 % | 25.0-87.5 % | 0.0 % | 0.0 % |" in text
    assert "| gsm8k, 8 problems | teacher | 100.0 % | 100.0-100.0 % | 100.0 % | 0.0 % |" in text
    assert "recovers 50.0 % of the gap" in text and "cost of 1,000 answers" not in text
    assert "| me/base | apache-2.0 |\n| me/teacher | not stated in its card |" in text
    (accuracy, share) = ModelCard(text).data.eval_results
    assert (accuracy.dataset_type, accuracy.metric_value, share.metric_value) == ("openai/gsm8k", 0.625, 0.0)
    for name in ("images/training.png", "images/shares.png"):
        assert f"]({name})" in text and (tmp_path / "card" / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "card" / "images").iterdir()) == ["shares.png", "training.png"]


def test_a_card_has_the_money_of_a_priced_evaluation(tmp_path):
    folders = [evaluated(tmp_path / name) for name in ("one", "two")]
    prices = tmp_path / "prices.yaml"
    for folder, factor in zip(folders, (1, 2), strict=True):
        prices.write_text(
            f"currency: EUR\nstudent: {{read: 1, write: {3 * factor}}}\nteacher: {{read: 1, write: 300000}}\n"
        )
        write_report([read_run(folder)], folder, costs=load_costs(str(prices)))
    contents = card_contents(str(tmp_path), [str(folders[0])], tmp_path / "card")
    text = write_model_card(tmp_path / "card", RelayRecord(), "m", **contents).read_text()
    assert card_faults(text) == []
    header = next(line for line in text.splitlines() if line.startswith("| benchmark | method"))
    assert header.endswith("| cost of 1,000 answers |")
    # Two tokens an answer; nothing was read
    assert "| relay | 62.5 % | 25.0-87.5 % | 0.0 % | 0.0 % | 0.006 EUR |" in text
    assert "| teacher | 100.0 % | 100.0-100.0 % | 100.0 % | 0.0 % | 600 EUR |" in text
    with pytest.raises(ValueError, match="one and .*two were given different prices"):
        card_contents(str(tmp_path), list(map(str, folders)), tmp_path / "card")


def test_a_run_without_evaluation_shows_its_log(tmp_path):
    contents = card_contents(str(trained(tmp_path / "run")), [], tmp_path)
    assert list(contents["pictures"]) == ["images/training.png"] and not contents["results"]
    assert "(`relay/accuracy`) | 75.0 % |" in write_model_card(tmp_path, RelayRecord(), **contents).read_text()


def test_the_licence_in_a_folder(tmp_path):
    assert licence_of(None) is licence_of("http://host/v1") is licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of(str(tmp_path)) == "mit"


def test_the_card_of_a_data_set(tmp_path):
    write_jsonl(WARMUP, tmp_path / "warmup.jsonl")
    rows = read_rows(tmp_path / "warmup.jsonl")
    settings = {"seed": 1, "teacher": "http://u:secretword@host/v1", "hub_token": TOKEN}
    text = write_dataset_card(
        tmp_path, rows, "me/data", "data/train.jsonl", "mit", "openai/gsm8k", settings
    ).read_text()
    assert card_faults(text) == [] and "secretword" not in text and TOKEN not in text
    data = DatasetCard(text).data
    assert (data.license, data.size_categories, data.source_datasets) == ("mit", ["n<1K"], ["openai/gsm8k"])
    assert data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.jsonl"}]}]
    assert "3 rows, 3 calls" in text and "warm-up" in data.tags and '"... 20 in all"' in text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "a", "must be one of .jsonl"),
        ("a.jsonl", "", "no rows|cannot be read"),
        ("a.jsonl", "{", "cannot be read as json"),
    ],
)
def test_a_file_that_is_no_data_set(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / name)


COMMANDS = """
import os, sys
sys.path.insert(0, "recipes")
import push
for options, token in commands:
    os.environ["HF_TOKEN"] = token or ""
    sys.argv = ["push.py", *options]
    try:
        push.main()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    print("=" * 9)
"""


def recipe(hub, home, *commands):
    """What the recipe prints for each command (its options and a token), run in a process that knows the stand-in."""
    commands = [([str(option) for option in options], token) for options, token in commands]
    environment = hub.environment(home) | {"HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"commands = {commands!r}\n{COMMANDS}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not any(token and token in done.stdout + done.stderr for _, token in commands)
    return done.stdout.split("=" * 9 + "\n")[:-1]


@pytest.mark.slow
def test_pushing_to_the_hub(tmp_path):
    run, evaluation = trained(tmp_path / "run"), evaluated(tmp_path / "evaluation")
    adapter, rows = tmp_path / "adapter", tmp_path / "warmup.jsonl"
    adapter.mkdir()
    save_record(RelayRecord(stage="sft"), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"0")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(STUDENT), "r": 8}))
    write_jsonl(WARMUP, rows)
    model = ("--model", run, "--repo_id", "me/student")
    private = (*model, "--private", "true", "--evaluations", evaluation)
    lora = ("--model", adapter, "--repo_id", "me/adapter")
    data = ("--data", rows, "--repo_id", "me/warmup", "--private", "true", "--source_dataset", "openai/gsm8k")
    with HubServer({TOKEN: "me", "hf_other": "you"}) as hub:
        lonely, other, dry = recipe(
            hub, tmp_path, (private, None), (private, "hf_other"), ((*private, "--dry_run", "true"), TOKEN)
        )
        assert "ValueError: Nobody is logged in" in lonely
        assert "ValueError: The Hub does not let this login write there (model me/student)" in other
        assert "## Results" in dry and not hub.repos

        pushed, again, public, folder, named, data_set = recipe(
            hub,
            tmp_path,
            ((*private, "--licence", "mit"), TOKEN),
            ((*private, "--licence", "mit"), TOKEN),
            (model, TOKEN),
            (lora, TOKEN),
            ((*lora, "--base_model", "me/student"), TOKEN),
            (data, TOKEN),
        )
        student, files = hub.repos["model/me/student"], hub.repos["model/me/student"].files
        pictures = {"images/training.png", "images/shares.png"}
        assert set(files) == {".gitattributes", "README.md", *model_files(run), *pictures}
        assert not any(content == b"private" for content in files.values())
        assert card_data(files["README.md"].decode())["license"] == "mit"
        assert f"/me/student/commit/{student.commits[1]}" in pushed and "Pushed" in again
        # The same again is no new commit, and what is private does not become public
        assert student.is_private and len(student.commits) == 2
        assert "ValueError: me/student exists and is private, but private is false; nothing was pushed" in public

        assert "ValueError: The adapter was trained on the folder" in folder and "Pushed" in named
        files = hub.repos["model/me/adapter"].files
        assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "me/student", "r": 8}
        card = card_data(files["README.md"].decode())
        assert (card["base_model"], card["library_name"], card["license"]) == ("me/student", "peft", "mit")
        assert not hub.repos["model/me/adapter"].is_private
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(STUDENT)

        files = hub.repos["dataset/me/warmup"].files
        assert files["data/train.jsonl"] == rows.read_bytes() and "Pushed" in data_set
        assert card_data(files["README.md"].decode())["source_datasets"] == ["openai/gsm8k"]
        for repo in hub.repos.values():
            assert not any(TOKEN.encode() in content for content in repo.files.values())
    (gone,) = recipe(hub, tmp_path, (model, TOKEN))
    assert "ConnectionError: The Hub cannot be reached" in gone


@pytest.mark.parametrize(
    ("mask", "said"), [([1, 1], "inserted at random places"), ([1, 0], "written by the larger model")]
)
def test_the_card_of_warm_up_data_says_where_its_calls_come_from(tmp_path, mask, said):
    row = {"prompt": "1+1=", "completion": "2", "completion_ids": [2, 3], "completion_mask": mask}
    assert said in write_dataset_card(tmp_path, Dataset.from_list([row]), "me/rows", "rows.jsonl").read_text()
