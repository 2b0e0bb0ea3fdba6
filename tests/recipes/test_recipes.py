"""The training recipes from their command lines: what is wrong is said in one sentence, before a model is loaded.

The student of the refused runs is a folder with a config and a tokenizer but no weights: loading it would be another
error. tests/evaluation/test_evaluate_recipe.py does the same for evaluation.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.openai_server import Server
from helpers.served import free_port

from relay_trl.cli.progress import EVERY
from relay_trl.data.arithmetic import problems
from relay_trl.data.warmup import insert_calls

ROOT = Path(__file__).parents[2]
PAIR = ROOT / "data" / "arithmetic"
RANDOM = {"calls": "random", **dict.fromkeys(("teacher", "doubt", "keep_lucky"))}  # None leaves an option out
CONFIGS = ROOT / "recipes" / "configs" / "arithmetic"


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(PAIR / "student", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


@pytest.fixture
def launch(recipe, tmp_path, student):
    """Runs a recipe in this process on its shipped YAML, with `changes` (`None` takes a key out)."""

    def call(name, **changes):
        options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        if name == "build_warmup":
            options |= {"student": student, "output": str(tmp_path / "rows.jsonl"), **changes}
        else:
            options |= {"model_name_or_path": student, "output_dir": str(tmp_path / "out"), **changes}
            options |= {"use_cpu": True, "disable_tqdm": True}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in options.items() if value is not None}))
        status, call.out, err = recipe(name, "--config", path)
        return status, err

    return call


@pytest.fixture
def refuse(launch):
    """Runs a recipe that has to fail; returns its one sentence."""

    def call(recipe, **changes):
        status, err = launch(recipe, **changes)
        assert status == 1 and "Traceback" not in err, err
        sentences = [line for line in err.splitlines() if "error:" in line]
        assert len(sentences) == 1 and sentences[0].startswith("error: ")
        return sentences[0].removeprefix("error: ")

    return call


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GRPO_REFUSALS = {
    "unknown key": ({"max_cals": 3}, r"Unknown option 'max_cals' \(did you mean 'max_calls'\?\)"),
    "two unknown keys": ({"max_cals": 3, "zzz": 1}, r"'max_cals' \(did you mean 'max_calls'\?\); 'zzz'\."),
    "not a number": ({"max_steps": "many"}, r"Argument --max_steps/--max-steps: invalid int value: 'many'"),
    "no data": ({"dataset": None}, r"following arguments are required: --dataset"),
    "no student": ({"model_name_or_path": None}, r"model_name_or_path is not set; give a folder"),
    "missing student": ({"model_name_or_path": "runs/no/model"}, r"model_name_or_path: 'runs/no/model' is neither"),
    "folder without a model": ({"model_name_or_path": "docs"}, r"model_name_or_path: "),
    "missing teacher": ({"teacher": "runs/no/model"}, r"teacher: 'runs/no/model' is neither a folder with a model"),
    "unknown backend": ({"teacher_backend": "sglang"}, r"backend is 'sglang'; it must be one of auto"),
    "missing data file": ({"dataset": "nothing.jsonl"}, r"The data file nothing\.jsonl does not exist"),
    "a benchmark": ({"dataset": "math500"}, r"'math500' is a benchmark that results are reported on"),
    "long prompts": (
        {"max_prompt_length": 8},
        r"training rows: \d+ of \d+ prompts are longer than max_prompt_length=8",
    ),
    "no room": ({"max_completion_length": 300}, r"has room for 256 tokens, but the longest prompt \(9 tokens\)"),
    "odd groups": (
        {"num_generations": 7},
        r"= 256 rollouts are no whole groups of num_generations=7; .*: 252 or 259 makes",
    ),
    "equal tags": ({"close_tag": "<call>"}, r"open_tag is '<call>' and close_tag is '<call>'; the two must differ"),
    "reward nowhere": ({"reward": "no_module:f"}, r"reward 'no_module:f' cannot be imported \(No module named"),
    "unknown reward": ({"reward": "nice"}, r"reward is 'nice'; it must be one of difficulty_aware, simple, accuracy"),
    "reward options": ({"reward_kwargs": {"bonus": 1}}, r"reward_kwargs is \{'bonus': 1\}, which the reward"),
    "tensor parallel": (
        {"use_vllm": True, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 2},
        r"vllm_tensor_parallel_size is 2 in colocate mode.*vllm_mode: server",
    ),
    "student on a server": (
        {"use_vllm": True, "vllm_mode": "server"},
        r"vllm_mode is server, but no server is named; set vllm_server_base_url",
    ),
    "saves between draws": (
        {"steps_per_generation": 4, "per_device_train_batch_size": 64, "save_steps": 45},
        r"save_steps is 45, but the rollouts of one draw serve 4 optimizer steps.*a multiple of 4",
    ),
    "quantized in an engine": (
        {"use_vllm": True, "load_in_4bit": True, "use_peft": True},
        r"load_in_4bit is true with use_vllm, but vLLM has no such engine on a CPU",
    ),
    "sharded generation": (
        {"ds3_gather_for_generation": False},
        r"ds3_gather_for_generation is false without use_vllm",
    ),
    "template": ({"prompt_template": "Solve this."}, r"'Solve this\.' has no '\{problem\}'"),
}


@pytest.mark.parametrize(("changes", "said"), GRPO_REFUSALS.values(), ids=GRPO_REFUSALS)
def test_grpo_refuses(refuse, changes, said):
    small = {"dataset_size": 64, "validation_size": 16, "teacher": str(PAIR / "teacher")}
    assert re.search(said, refuse("grpo_relay", **{**small, **changes}))


@pytest.mark.parametrize("changes", [{"use_vllm": True}, {"teacher": str(PAIR / "teacher"), "teacher_backend": "vllm"}])
def test_vllm_is_asked_for_and_not_installed(refuse, monkeypatch, changes):
    monkeypatch.setitem(sys.modules, "vllm", None)  # for which `find_spec` finds nothing
    said = refuse("grpo_relay", dataset_size=64, validation_size=16, **changes)
    assert "vLLM is not installed" in said and "relay_trl[vllm]" in said


def test_data_without_the_columns(refuse, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "11*4-12=", "gold": "32"}])
    said = refuse("grpo_relay", dataset=path, dataset_split=None)
    assert "has no column 'prompt' and no column 'answer'; it has ['question', 'gold']" in said


def test_rows_without_an_answer_are_named_and_skipped_and_a_teacher_that_is_down_is_known_before_the_student_loads(
    refuse, tmp_path, caplog
):
    rows = [{"problem": row["prompt"], "answer": row["answer"]} for row in problems("train", 20)]
    rows[4]["answer"], rows[9]["answer"] = "", "?"
    url = f"http://127.0.0.1:{free_port()}/v1"
    with caplog.at_level(logging.WARNING):
        said = refuse(
            "grpo_relay",
            dataset=write_rows(tmp_path / "rows.jsonl", rows),
            dataset_split=None,
            dataset_size=None,
            validation=None,
            validation_split=None,
            validation_size=8,
            teacher=url,
            teacher_retries=0,
        )
    assert url in said and said.count(". ") <= 2
    skipped = re.findall(
        r"rows\.jsonl: skipping (\d) of \d+ rows with an empty or unreadable answer: ([\d, ]+)\.", caplog.text
    )
    assert sum(int(count) for count, _ in skipped) == 2
    assert {row for _, rows in skipped for row in rows.split(", ")} == {"4", "9"}


def test_a_teacher_that_serves_another_model(refuse):
    server = Server()
    try:
        changes = {"teacher": server.url, "teacher_model": "large", "dataset_size": 64, "validation_size": 16}
        said = refuse("grpo_relay", **changes)
    finally:
        server.close()
    assert "large" in said and "tiny" in said


SFT_REFUSALS = {
    "unknown key": ({"warmup_dat": "x"}, r"Unknown option 'warmup_dat' \(did you mean 'warmup_data'\?\)"),
    "no data": ({"warmup_data": None}, r"warmup_data is not set; give it the \.jsonl file"),
    "missing data": ({"warmup_data": "nothing.jsonl"}, r"warmup_data: the file nothing\.jsonl does not exist"),
    "no student": ({"model_name_or_path": None}, r"model_name_or_path is not set"),
    "missing student": ({"model_name_or_path": "runs/no/model"}, r"model_name_or_path: 'runs/no/model' is neither"),
    "equal tags": ({"open_tag": "</call>"}, r"the two must differ"),
    "quantized without an adapter": ({"load_in_4bit": True}, r"load_in_4bit is true without use_peft"),
    "nothing to go on from": (
        {"resume_from_checkpoint": "runs/none"},
        r"there is no folder runs/none; give a checkpoint",
    ),
    "an output that is a file": (
        {"output_dir": "setup.cfg/out"},
        r"nothing can be written to setup\.cfg/out \(Not a dir",
    ),
}


@pytest.mark.parametrize(("changes", "said"), SFT_REFUSALS.values(), ids=SFT_REFUSALS)
def test_sft_refuses(refuse, changes, said):
    assert re.search(said, refuse("sft_warmup", **changes))


ROW = {
    "prompt_ids": [4, 4, 13, 7, 11, 4, 5, 16],
    "completion_ids": [18, 9, 1],
    "completion_mask": [1, 1, 1],
    "completion": "#6",
}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"rows\.jsonl has no rows"),
        (
            [{"prompt": "1+1=", "completion": "2"}],
            r"has no column completion_ids, completion_mask, prompt_ids; give warmup_data the file",
        ),
        ([{**ROW, "completion": "#7"}], r"Row 0 of .*rows\.jsonl does not fit the student's tokenizer"),
        ([{**ROW, "completion_ids": [18, 900, 1]}], r"Row 0 of .*rows\.jsonl does not fit the student's tokenizer"),
        ([{**ROW, "prompt_ids": [4] * 90}], r"The longest row of .*rows\.jsonl has 93 tokens, more than max_length=80"),
    ],
)
def test_sft_refuses_rows_that_the_student_cannot_have_written(refuse, tmp_path, rows, said):
    assert re.search(said, refuse("sft_warmup", warmup_data=write_rows(tmp_path / "rows.jsonl", rows)))


WARMUP_REFUSALS = {
    "unknown key": ({"call_weight": [1]}, r"Unknown option 'call_weight' \(did you mean 'call_weights'\?\)"),
    "no student": ({"student": None}, r"student is not set"),
    "missing student": ({"student": "runs/no/model"}, r"student: 'runs/no/model' is neither"),
    "no output": ({"output": None}, r"output is not set"),
    "no weights": ({"call_weights": [0.0]}, r"call_weights is \[0\.0\]"),
}


@pytest.mark.parametrize(("changes", "said"), WARMUP_REFUSALS.values(), ids=WARMUP_REFUSALS)
def test_build_warmup_refuses(refuse, changes, said):
    assert re.search(said, refuse("build_warmup", **{"dataset_size": 8, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"add_call_tokens": None}, r"no tokens that spell '<call>1</call>'; set add_call_tokens"),
        (
            {**RANDOM, "max_completion_length": 2},
            r"None of the 8 answers ended within max_completion_length=2; raise it",
        ),
        ({"max_prompt_length": 4}, r"arithmetic: 8 of 8 prompts are longer than max_prompt_length=4"),
    ],
)
def test_build_warmup_refuses_what_only_the_student_shows(refuse, tmp_path, changes, said):
    assert re.search(said, refuse("build_warmup", student=str(PAIR / "student"), dataset_size=8, **changes))
    assert not (tmp_path / "rows.jsonl").exists()


def test_build_warmup_searches_in_shards(launch, tmp_path):
    output = tmp_path / "rows.jsonl"
    options = {"dataset_size": 24, "calls": "searched", "teacher": str(PAIR / "teacher"), "num_shards": 2}
    options |= {"student": str(PAIR / "student"), "output": str(output)}
    assert launch("build_warmup", **options, shard=1)[0] == 0
    assert [path.name for path in tmp_path.glob("rows*")] == ["rows.jsonl-00001-of-00002.progress"]
    assert launch("build_warmup", **options, shard=0)[0] == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert any(0 in row["completion_mask"] for row in rows) and any(row["calls"] == 0 for row in rows)
    assert [path.name for path in tmp_path.glob("rows*")] == ["rows.jsonl"]
    whole = tmp_path / "whole.jsonl"
    assert launch("build_warmup", **options | {"num_shards": 1, "output": str(whole)})[0] == 0
    assert whole.read_text() == output.read_text()


def test_build_warmup_goes_on_where_it_was_stopped(launch, monkeypatch, tmp_path, capsys):
    options = {"student": str(PAIR / "student"), **RANDOM, "dataset_size": 24, "max_in_flight": 8}
    assert launch("build_warmup", **options)[0] == 0
    whole = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").unlink()
    asked = []

    def insert(*args, **kwargs):
        asked.append(args)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return insert_calls(*args, **kwargs)

    monkeypatch.setattr("relay_trl.data.warmup.insert_calls", insert)
    with pytest.raises(KeyboardInterrupt):
        launch("build_warmup", **options)
    progress = tmp_path / "rows.jsonl.progress"
    assert len(progress.read_text().splitlines()) == 10 and not (tmp_path / "rows.jsonl").exists()
    status, err = launch("build_warmup", **options | {"seed": 7})
    assert status == 1 and "seed was 42 and is now 7" in err
    assert launch("build_warmup", **options, max_prompt_length=17)[0] == 1
    assert launch("build_warmup", **options)[0] == 0
    assert (tmp_path / "rows.jsonl").read_text() == whole and not progress.exists()
    assert len(asked) <= 10 + 24 - 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"The config file .*config\.yaml does not exist"),
        ("max_steps: [1", r"The config file is not valid YAML"),
        ("- max_steps", r"must contain a YAML mapping"),
    ],
)
def test_config_files_that_are_none(recipe, tmp_path, text, said):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    status, _, err = recipe("grpo_relay", f"--config={path}")
    assert status == 1 and len(err.splitlines()) == 1 and re.match(f"error: .*{said}", err)


@pytest.mark.slow
def test_a_process_of_its_own_says_one_sentence_and_no_more(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("max_cals: 3\ndataset: arithmetic\noutput_dir: out\nbf16: false\n")
    command = [sys.executable, "recipes/grpo_relay.py", "--config", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    # bitsandbytes, where it is installed without a GPU, has a line of its own
    lines = [line for line in done.stderr.splitlines() if "kernels-community" not in line]
    assert lines == ["error: Unknown option 'max_cals' (did you mean 'max_calls'?). Run with --help for all options."]


def test_the_three_stages_run_one_after_the_other(launch, tmp_path, monkeypatch):
    monkeypatch.setenv(EVERY, "0.2")
    rows, sft = str(tmp_path / "rows.jsonl"), str(tmp_path / "sft")
    status, err = launch("build_warmup", student=str(PAIR / "student"), dataset_size=64)
    assert status == 0, err
    changes = {"model_name_or_path": str(PAIR / "student"), "warmup_data": rows, "output_dir": sft, "max_steps": 2}
    status, err = launch("sft_warmup", **changes, per_device_train_batch_size=16)
    assert status == 0, err
    status, err = launch(
        "grpo_relay",
        model_name_or_path=sft,
        teacher=str(PAIR / "teacher"),
        dataset_size=32,
        validation_size=8,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=8,
    )
    assert status == 0, err
    assert re.search(
        r"^progress: [12] of 2 steps, .*accuracy 0\.\d+, rho ", launch.out, re.M
    )  # standard output is no terminal
    record = json.loads((tmp_path / "out" / "relay_config.json").read_text())
    assert (record["stage"], record["steps"], record["training_set"]) == ("grpo", 2, "arithmetic")
    assert record["student_base"] == str(PAIR / "student")
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "relay/accuracy" in entry] == [1, 2]
    assert [entry["step"] for entry in log if "eval_relay/accuracy" in entry] == [1, 2]


def test_help_has_our_options_first_in_groups_with_their_defaults(recipe):
    _, shown, _ = recipe("grpo_relay", "--help")
    heads = re.findall(r"^(\w.*):$", shown, re.M)
    assert heads == [
        *("student", "teacher", "data", "calls", "reward", "rollouts and the rest"),
        *("TRL's options", "transformers' options"),
    ]
    parts = dict(zip(heads, re.split(r"^\w.*:$", shown, flags=re.M)[1:], strict=True))
    for option, group in {
        "--model_name_or_path": "student",
        "--teacher_timeout_s": "teacher",
        "--dataset": "data",
        "--max_calls": "calls",
        "--reward": "reward",
        "--rollouts_max_mb": "rollouts and the rest",
        "--num_generations": "TRL's options",
        "--weight_decay": "transformers' options",
    }.items():
        assert re.search(rf"^  {option}\b", parts[group], re.M)
    assert (
        re.search(r"--max_calls MAX_CALLS\s+Answered[^(]*\(default:\s+3\)", parts["calls"])
        and "--max-calls" not in shown
    )


@pytest.mark.slow
def test_without_options_the_embedded_pair_is_trained_and_the_first_line_says_so():
    folder = ROOT / "data" / "arithmetic" / "warmed_up"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20
    command = [sys.executable, "-m", "accelerate.commands.launch", "recipes/grpo_relay.py"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **streams)
    try:
        first = run.stdout.readline()
    finally:
        os.killpg(run.pid, signal.SIGKILL)  # the launcher's child with it
        run.wait()
    assert all(said in first for said in ("trains the embedded arithmetic pair", "arithmetic/warmed_up", "runs/first"))
