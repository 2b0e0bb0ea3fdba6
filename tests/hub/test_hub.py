"""The relay config and the card of a trained student, on disk and through a stand-in of the Hub."""

import copy
import json
import logging
import pickle
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from helpers.hub_server import HubServer, card_faults
from huggingface_hub import ModelCard

from relay_trl.hub.model_card import write_model_card
from relay_trl.redaction import RedactedArguments, mask_credentials
from relay_trl.relay_config import RELAY_CONFIG_NAME, RelayRecord, load_record, origin_of, save_record, working_commit

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "data" / "arithmetic"
TOKEN = "hf_plantedSecretNumberOne"
PASSWORD = "plantedSecretNumberTwo"

OTHER = RelayRecord(
    open_tag="[ask]",
    close_tag="[/ask]",
    max_calls=5,
    max_call_tokens=64,
    max_completion_length=48,
    is_ended_by_teacher=False,
    prompt_template="Q: {problem}\nA:",
    system_prompt="Étape par étape | `so`.",
    is_chat=False,
    chat_template_kwargs={"enable_thinking": True},
    answer_marker="#",
    teacher="Qwen/Qwen3-8B",
    teacher_revision="v2",
    teacher_temperature=0,
    student_base="Qwen/Qwen3-0.6B",
    stage="sft",
    reward="simple",
    training_set="dapo_math",
    seed=7,
    steps=100,
    versions={"trl": "1.16.0"},
    commit="abc",
)
RESULTS = [
    {"benchmark": "MATH-500", "method": "student", "label": "base", "accuracy": 0.478, "interval": [0.44, 0.52]},
    {
        "benchmark": "MATH-500",
        "dataset": "HuggingFaceH4/MATH-500",
        "method": "relay",
        "accuracy": 0.8425,
        "interval": (0.81, 0.87),
        "teacher_share": 0.091,
        "call_rate": 0.52,
    },
    {"benchmark": "sums|x", "method": "a|b", "accuracy": None, "interval": None, "teacher_share": float("nan")},
]


def test_a_record_comes_back_as_it_was(tmp_path):
    changed = [f.name for f in fields(RelayRecord) if getattr(OTHER, f.name) == getattr(RelayRecord(), f.name)]
    assert not changed, "the example must differ from the defaults in every field"
    path = save_record(OTHER, tmp_path / "model")
    assert path.name == RELAY_CONFIG_NAME
    assert load_record(tmp_path / "model") == load_record(str(tmp_path / "model")) == OTHER
    data = json.loads(path.read_text())
    assert data["format"] == 1 and list(data) == sorted(data)
    assert [entry.name for entry in path.parent.iterdir()] == [RELAY_CONFIG_NAME]


def test_a_record_says_what_relay_and_prompts_it_stands_for():
    config = OTHER.relay_config(max_calls=1)
    assert (config.syntax.open_tag, config.max_calls, config.max_completion_length) == ("[ask]", 1, 48)
    assert (config.max_call_tokens, config.is_ended_by_teacher, config.teacher.temperature) == (64, False, 0)
    builder = OTHER.prompt_builder(tokenizer=None)
    assert builder.text("1+1") == "Étape par étape | `so`.\n\nQ: 1+1\nA:"


def test_versions_and_commit_are_those_of_the_training(tmp_path):
    record = RelayRecord()
    assert record.versions["relay_trl"] and record.versions["torch"]
    assert record.commit is None or re.fullmatch("[0-9a-f]{40}", record.commit)
    (tmp_path / RELAY_CONFIG_NAME).write_text('{"format": 1}')
    loaded = load_record(tmp_path)
    assert (loaded.versions, loaded.commit) == ({}, None)


def test_no_commit_outside_a_repository(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert working_commit() is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        (f"http://user:{PASSWORD}@host:8000/v1", "http://***@host:8000/v1"),
        (f"https://{PASSWORD}@host/v1", "https://***@host/v1"),
        (f"http://host/v1?api_key={PASSWORD}", "http://host/v1?***"),
        (f"http://u:{PASSWORD}/x@host/v1", "http://***"),
        (f"http://u:{PASSWORD}?x@host/v1", "http://***"),
        (f"http://u:1@{PASSWORD}@[::1]:80/v1", "http://***@[::1]:80/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_credentials_in_a_url_are_masked(tmp_path, url, masked):
    record = RelayRecord(teacher=url)
    assert record.teacher == masked == mask_credentials(masked)
    record.teacher = url  # past the constructor
    text = save_record(record, tmp_path).read_text() + write_model_card(tmp_path, RelayRecord(teacher=url)).read_text()
    assert PASSWORD not in text
    assert load_record(tmp_path).teacher == masked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "max_ca', "not readable as JSON"),
        ("\udcff", "not readable as JSON"),
        ("[]", "not one that relay_trl wrote"),
        ('{"max_calls": 3}', "not one that relay_trl wrote"),
        ('{"format": "1"}', "not one that relay_trl wrote"),
        ('{"format": 2, "max_calls": {}}', "format 2.*upgrade relay_trl"),
        ('{"format": 1, "max_calls": "three"}', "broken: max_calls is 'three'"),
        ('{"format": 1, "max_calls": -1}', "broken: max_calls is -1"),
        ('{"format": 1, "open_tag": "</call>"}', "broken: open_tag"),
        ('{"format": 1, "stage": "dpo"}', "broken: stage is 'dpo'"),
        ('{"format": 1, "versions": null}', "broken: versions is None"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_sentence(tmp_path, text, message):
    (tmp_path / RELAY_CONFIG_NAME).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        load_record(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_settings_of_the_same_format_are_named_and_left_out(tmp_path, caplog):
    path = save_record(OTHER, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "zeal": 1}))
    with caplog.at_level(logging.WARNING):
        assert load_record(tmp_path) == OTHER
    assert "does not know: zeal" in caplog.text


def test_a_model_without_a_record_has_none(tmp_path):
    assert load_record(tmp_path) is None
    assert load_record(PAIR / "teacher") is None


def test_the_origin_of_a_warmed_up_student_is_what_the_warm_up_began_with(tmp_path):
    save_record(RelayRecord(student_base="Qwen/Qwen3-0.6B"), tmp_path)
    assert origin_of(str(tmp_path)) == "Qwen/Qwen3-0.6B"
    assert origin_of("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    assert origin_of(str(PAIR / "teacher")) == str(PAIR / "teacher")


def test_the_card_of_an_evaluated_model(tmp_path):
    record = RelayRecord(teacher="Qwen/Qwen3-8B", student_base="Qwen/Qwen3-0.6B", reward="simple", steps=10)
    path = write_model_card(
        tmp_path,
        record,
        "my-model",
        dataset_name="openai/gsm8k",
        results=RESULTS,
        licence="apache-2.0",
        tags=["trl", "mine"],
        repo_id="me/my-model",
    )
    assert load_record(tmp_path) == record
    text = path.read_text()
    assert card_faults(text) == []
    card = ModelCard(text)
    assert card.data.base_model == "Qwen/Qwen3-0.6B" and card.data.datasets == ["openai/gsm8k"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.license == "apache-2.0" and card.data.tags == ["relay-trl", "trl", "grpo", "mine"]
    assert [(r.dataset_type, r.metric_type, r.metric_value) for r in card.data.eval_results] == [
        ("HuggingFaceH4/MATH-500", "accuracy", 0.8425),
        ("HuggingFaceH4/MATH-500", "teacher_share", 0.091),
    ]
    assert "| MATH-500 | base | 47.8 % | 44.0-52.0 % | - | - |\n" in text
    assert "| MATH-500 | relay | 84.2 % | 81.0-87.0 % | 9.1 % | 52.0 % |\n" in text
    assert "| sums\\|x | a\\|b | - | - | - | - |" in text
    assert "2601.05167" in text and 'load_engine("me/my-model")' in text


def test_the_card_of_a_local_run_shows_training_figures_and_claims_nothing(tmp_path):
    history = [{"relay/accuracy": 0.1, "relay/teacher_share": 0.3}, {"relay/accuracy": 0.5, "loss": 1.0}, {"epoch": 1}]
    # A folder must not be taken for an id, though it looks like one.
    record = RelayRecord(student_base=str(PAIR / "student"), training_set="arithmetic")
    text = write_model_card(tmp_path / "run", record, log_history=history).read_text()
    assert card_faults(text) == []
    data = ModelCard(text).data
    assert (data.base_model, data.datasets, data.eval_results, data.license) == (None, None, None, None)
    assert "# run\n" in text and "(`relay/accuracy`) | 50.0 %" in text and "(`relay/teacher_share`) | 30.0 %" in text
    assert "## Results" not in text and "`loss`" not in text and "teacher = None" in text


def test_results_of_other_methods_are_not_claimed_for_the_model(tmp_path):
    text = write_model_card(
        tmp_path, RelayRecord(), results=[{"benchmark": "sums", "method": "teacher", "accuracy": 0.97}]
    ).read_text()
    assert "| sums | teacher | 97.0 % |" in text and ModelCard(text).data.eval_results is None


def test_the_card_of_a_warm_up(tmp_path):
    text = write_model_card(tmp_path, OTHER, log_history=[{"loss": 0.31234}]).read_text()
    assert card_faults(text) == []
    assert "Loss (`loss`) | 0.3123 |" in text and "but not yet when" in text
    assert "load_engine(record.teacher, revision=record.teacher_revision)" in text
    assert "| prompt | `Q: {problem}\\nA:` |" in text
    assert "| system prompt | `` Étape par étape \\| `so`. `` |" in text


def test_the_card_of_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert ModelCard(write_model_card(tmp_path, OTHER).read_text()).data.library_name == "peft"
    assert (
        ModelCard(write_model_card(tmp_path, OTHER, is_adapter=False).read_text()).data.library_name == "transformers"
    )


def example_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize("teacher", [None, "Qwen/Qwen3-8B", "http://localhost:8000/v1"])
def test_the_example_is_python(tmp_path, teacher):
    compile(example_of(write_model_card(tmp_path, RelayRecord(teacher=teacher)).read_text()), "card", "exec")


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(PAIR / "student").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(PAIR / "student").save_pretrained(tmp_path)
    record = RelayRecord(teacher=str(PAIR / "teacher"), training_set="arithmetic", max_completion_length=48)
    example = example_of(write_model_card(tmp_path, record).read_text())
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "of it by the teacher" in done.stdout


@dataclass
class Arguments:
    teacher: str
    hub_token: str
    eos_token: str = "<eos>"
    model_init_kwargs: dict | None = None

    def to_dict(self) -> dict:
        return dict(self.__dict__)


@dataclass(repr=False)
class SafeArguments(RedactedArguments, Arguments):
    pass


def test_arguments_are_written_without_secrets_and_copied_with_them():
    values = {
        "teacher": f"http://u:{PASSWORD}@host/v1",
        "hub_token": TOKEN,
        "model_init_kwargs": {"token": TOKEN, "dtype": "auto", "more": [{"api_key": TOKEN}]},
    }
    assert TOKEN.encode() in pickle.dumps(Arguments(**values)), "else the search below shows nothing"
    args = SafeArguments(**values)
    for written in (pickle.dumps(args).decode(errors="replace"), repr(args), str(args), json.dumps(args.to_dict())):
        assert TOKEN not in written and PASSWORD not in written
    assert pickle.loads(pickle.dumps(args)).eos_token == "<eos>"
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert type(copied) is SafeArguments and copied == args and copied.hub_token == TOKEN
    assert copy.deepcopy(args).model_init_kwargs is not args.model_init_kwargs


@pytest.fixture
def hub():
    with HubServer({TOKEN: "me", "hf_other": "you"}) as server:
        yield server


def run(script: str, environment: dict[str, str], **values: str) -> str:
    """What `script` prints, run in a process of its own."""
    source = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


LOAD = """
    from relay_trl.relay_config import load_record
    for name, revision in (("me/model", None), ("me/model", first), ("me/plain", None), ("me/none", None),
                           ("me/model", "gone"), ("/no/folder", None)):
        try:
            record = load_record(name, revision)
            print(name, revision and revision[:4], record and record.teacher)
        except (ValueError, ConnectionError) as error:
            print(name, revision, type(error).__name__, error)
"""


def test_through_the_hubs_client(hub, tmp_path):
    write_model_card(tmp_path / "model", RelayRecord(teacher="Qwen/Qwen3-8B"), "model", results=RESULTS)
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(100_000))
    (tmp_path / "model" / "_left_over.tmp").write_text("")
    push = """
        from huggingface_hub import HfApi, snapshot_download
        api = HfApi()
        for name, private in (("model", True), ("model", True), ("plain", False)):
            print(api.create_repo(f"me/{name}", private=private, exist_ok=True).repo_id)
        api.create_repo("me/data", repo_type="dataset")
        commit = api.upload_folder(repo_id="me/model", folder_path=folder, ignore_patterns=["_*"])
        api.upload_folder(repo_id="me/model", folder_path=folder, ignore_patterns=["_*"])  # nothing new: no commit
        api.upload_file(repo_id="me/data", repo_type="dataset", path_or_fileobj=b"{}", path_in_repo="a.jsonl")
        assert api.whoami()["name"] == "me"
        assert len(api.list_repo_files("me/model")) == 4
        assert open(snapshot_download("me/model") + "/model.safetensors", "rb").read() == bytes(100_000)
    """
    run(push, hub.environment(tmp_path / "home", TOKEN), folder=str(tmp_path / "model"))
    model = hub.repos["model/me/model"]
    assert model.is_private and not hub.repos["model/me/plain"].is_private
    assert set(model.files) == {".gitattributes", "README.md", RELAY_CONFIG_NAME, "model.safetensors"}
    assert len(model.commits) == 2 and hub.repos["dataset/me/data"].files["a.jsonl"] == b"{}"

    found = run(LOAD, hub.environment(tmp_path / "home", TOKEN), first=model.commits[0]).splitlines()
    assert found[0] == "me/model None Qwen/Qwen3-8B"
    assert found[1] == f"me/model {model.commits[0][:4]} None", "the first commit had no record yet"
    assert found[2] == "me/plain None None"
    for line, name in zip(found[3:], ("me/none", "me/model (revision 'gone')", "/no/folder"), strict=True):
        assert f"ValueError The model {name} is neither a folder nor a repository" in line
    for token in (None, "hf_other"):
        assert "ValueError The model me/model is neither" in run(
            LOAD, hub.environment(tmp_path / f"home of {token}", token), first="main"
        )

    offline = {"HF_HUB_OFFLINE": "1"}
    found = run(LOAD, hub.environment(tmp_path / "home") | offline, first=model.commits[0]).splitlines()
    assert found[0] == "me/model None Qwen/Qwen3-8B", "from the cache"
    assert found[2] == "me/plain None None", "the cache remembers that there was none"
    assert "ConnectionError The Hub cannot be reached and me/none is not in the local cache" in found[3]


TRAIN = """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.utils import logging
    from relay_trl.engines.openai import OpenAIEngine
    from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer, RelaySFTConfig, RelaySFTTrainer

    logging.set_verbosity_info()
    tokenizer = AutoTokenizer.from_pretrained(student)
    shared = dict(push_to_hub=True, hub_token=token, hub_private_repo=True, hub_always_push=True, hub_strategy=strategy,
                  max_steps=2, save_steps=1, logging_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False,
                  report_to="none", answer_marker="#")

    args = RelayGRPOConfig(output_dir=f"{folder}/full", hub_model_id="me/full", teacher=teacher, num_generations=2,
                           per_device_train_batch_size=4, max_completion_length=32, **shared)
    print(args, repr(args))
    rows = Dataset.from_list([{"prompt": "67+37-12=", "answer": "92"}] * 4)
    trainer = RelayGRPOTrainer(student, args, rows, processing_class=tokenizer,
                               teacher=OpenAIEngine(teacher, "a model"))
    trainer.training_set = "gsm8k_train"
    trainer.train()
    trainer.push_to_hub()

    args = RelaySFTConfig(output_dir=f"{folder}/lora", hub_model_id="me/lora", warmup_data="warmup.jsonl",
                          per_device_train_batch_size=2, **shared)
    print(args, repr(args))
    text = "67+37=104;104-12=92;#92"
    ids = {"prompt_ids": tokenizer("67+37-12=")["input_ids"],
           "completion_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id], "completion": text}
    ids["completion_mask"] = [1] * len(ids["completion_ids"])
    trainer = RelaySFTTrainer(student, args, Dataset.from_list([ids] * 8), tokenizer,
                              peft_config=LoraConfig(r=2, target_modules="all-linear"))
    trainer.train()
    trainer.save_model()
"""


@pytest.mark.slow
def test_a_trainer_pushes_the_record_and_no_secret(hub, tmp_path):
    printed = run(
        TRAIN,
        hub.environment(tmp_path / "home"),
        folder=str(tmp_path),
        student=str(PAIR / "student"),
        teacher=f"http://user:{PASSWORD}@host:8000/v1",
        token=TOKEN,
        strategy="checkpoint",
    )
    for name, weights in (("full", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        repo = hub.repos[f"model/me/{name}"]
        assert repo.is_private
        expected = {weights, "README.md", RELAY_CONFIG_NAME, "tokenizer.json", "training_args.bin"}
        expected |= {f"last-checkpoint/{path}" for path in (weights, RELAY_CONFIG_NAME, "optimizer.pt")}
        assert expected <= set(repo.files)
        assert json.loads(repo.files[RELAY_CONFIG_NAME])["steps"] == 2
        for commit, message in zip(repo.commits, repo.messages, strict=True):
            tree = repo.trees[commit]
            if weights in tree:
                assert RELAY_CONFIG_NAME in tree, f"{message!r} pushes weights without their relay config"
                assert "## Use the pair" in (card := tree["README.md"].decode()) and card_faults(card) == []
                assert ModelCard(card).data.library_name == ("peft" if name == "lora" else "transformers")
            for path, data in tree.items():
                assert TOKEN.encode() not in data and PASSWORD.encode() not in data, path
            assert not any(path.startswith(("_", "checkpoint-")) for path in tree)
        assert any("in progress, step 1" in message for message in repo.messages)
    full, lora = (ModelCard(hub.repos[f"model/me/{name}"].files["README.md"].decode()) for name in ("full", "lora"))
    assert full.data.datasets == ["openai/gsm8k"] and 'load_engine("me/lora")' in lora.text
    assert "relay/accuracy" in full.text
    assert TOKEN not in printed and PASSWORD not in printed

    load = """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from relay_trl.relay_config import load_record
        print(load_record("me/full").teacher, load_record("me/lora").stage)
        AutoTokenizer.from_pretrained("me/full"), AutoModelForCausalLM.from_pretrained("me/full")
    """
    assert "http://***@host:8000/v1 sft" in run(load, hub.environment(tmp_path / "home", TOKEN))
