"""Every YAML that ships starts: its models are swapped for tiny random ones of the same architecture and kind of vocabulary,
its data for a handful of rows, and two steps of it are run.

A YAML of a recipe that this file does not know fails, so that nobody forgets it; those with tests of their own are named.
"""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.openai_server import Server
from helpers.tokenizers import byte_level, gemma
from transformers import AutoConfig, AutoModelForCausalLM

from relay_trl.planning.memory import batches
from relay_trl.planning.models import known_models
from relay_trl.training import RelayGRPOConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.yaml"))
DAPO = ROOT / "recipes" / "configs" / "dapo_math"
PAIRS = ("arithmetic", "lookups")  # their models are tiny already, and ship or are made by pretrain_pair.py
CHAINED = ("dapo_math", "families")  # each GRPO YAML there names the stages before and after it
ELSEWHERE = ("pretrain_", "reproduce", "train_citer", "filter", "serve")
KINDS = ("build_warmup", "sft_warmup", "grpo_", "evaluate")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last %}{{ '|' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def kind_of(path):
    return next((kind for kind in (*KINDS, *ELSEWHERE) if kind in path.stem), None)


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def models_of(path):
    """The Hub ids of the student and the teacher that a YAML names, in its options or in its comments."""
    text = path.read_text()
    named = sorted((text.index(name), name) for name in known_models() if name in text)
    teacher = re.search(r"vllm serve (\S+)", text)
    student = next((name for _, name in named if teacher is None or name != teacher[1]), None)
    if student is None:  # what it starts from is another YAML's output, of the same folder's name
        words = path.stem.replace("qwen3", "Qwen/Qwen3").lower()
        student = next(
            (name for name in known_models() if name.lower().startswith("-".join(words.split("_")[:2]))), None
        )
    return student or "HuggingFaceTB/SmolLM2-135M-Instruct", teacher and teacher[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Writes a tiny random model that stands in for a known one, once; returns its folder."""
    made = {}

    def make(name):
        if name not in made:
            facts = dict(known_models()[name])
            tokenizer = gemma() if "gemma" in facts["model_type"] else byte_level()
            tokenizer.chat_template = TEMPLATE
            tokenizer.pad_token = tokenizer.eos_token  # or Qwen2's class adds one that the model has no row for
            small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
            small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
            config = AutoConfig.for_model(
                facts.pop("model_type"),
                **facts | small | {"max_position_embeddings": 16384, "initializer_range": 0.2},
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=tokenizer.eos_token_id,
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():  # so that a few dozen tokens are enough to see answers end
                model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 1.5
            folder = tmp_path_factory.mktemp("tiny")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a few rows of each set that the YAMLs name, under its own columns."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "dapo_math": {"prompt": "Add 1 to {}.", "solution": "{}"},  # no problem of a benchmark: it is decontaminated
        "gsm8k_train": {"question": "What is {} + 1?", "answer": "It is\n#### {}"},
        "gsm8k": {"question": "What is {} + 1?", "answer": "It is\n#### {}"},
        "minerva": {"problem": "What is {} + 1?", "solution": "It is \\boxed{{{}}}"},
        "olympiadbench": {"question": "What is {} + 1?", "final_answer": "{}"},
        **dict.fromkeys(("math500", "aime2024", "aime2025"), {"problem": "What is {} + 1?", "answer": "{}"}),
    }
    for name, row in rows.items():
        values = list(row.items())
        lines = [{values[0][0]: values[0][1].format(i), values[1][0]: values[1][1].format(i + 1)} for i in range(24)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def start(monkeypatch, capsys, tmp_path):
    """Runs a recipe on a YAML with options over it, in this process, as a user would."""

    def run(recipe, path, **options):
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--config", str(path), *words])
        try:
            runpy.run_path(f"recipes/{recipe}.py", run_name="__main__")
        except SystemExit as exit:
            pytest.fail(f"{path} cannot start: {capsys.readouterr().err[-1500:]} (status {exit.code})")

    return run


@pytest.fixture(scope="module")
def teacher_server():
    server = Server()
    yield server.url
    server.close()


@pytest.fixture(scope="module")
def filtered(tmp_path_factory, data):
    """Makes a filtered training set with the shipped YAML, once; keeps every problem, for the teacher is a random model."""
    made = []

    def make(start, teacher):
        if not made:
            folder = tmp_path_factory.mktemp("filtered")
            small = {"samples": 2, "max_completion_length": 8, "min_pass_rate": 0}
            small |= {"teacher_backend": "transformers", "data_dir": data, "output_dir": folder}
            start("filter_by_teacher", DAPO / "filter_by_teacher_1gpu.yaml", teacher=teacher, **small)
            made.append(folder / "train.jsonl")
        return made[0]

    return make


CPU = {"use_cpu": "true", "bf16": "false", "disable_tqdm": "true", "max_steps": 2, "save_strategy": "no"}
CPU |= {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}


def run_warmup(start, path, student, data, folder):
    rows = folder / "rows.jsonl"
    start(
        "build_warmup",
        path,
        student=student,
        student_backend="transformers",
        output=rows,
        dataset_size=24,
        samples=4,
        max_completion_length=64,
        **({} if path.parent.name in PAIRS else {"data_dir": data}),
    )
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if kind_of(p) in KINDS and p.parent.name not in PAIRS], ids=name_of
)
def test_two_steps(path, start, tiny, data, filtered, tmp_path, teacher_server):
    student, teacher = models_of(path)
    given, kind = yaml.safe_load(path.read_text()), kind_of(path)
    model = tiny(student)
    beside = tiny(teacher or student)
    if given.get("teacher_api") == "chat":
        beside = teacher_server
    if kind == "build_warmup":
        assert run_warmup(start, path, model, data, tmp_path).stat().st_size > 0
    elif kind == "sft_warmup":
        rows = run_warmup(start, path.with_name(path.name.replace("sft_", "build_")), model, data, tmp_path)
        out = tmp_path / "out"
        start("sft_warmup", path, model_name_or_path=model, warmup_data=rows, output_dir=out, **CPU)
        assert (out / "model.safetensors").is_file()
    elif kind == "evaluate":
        start(
            "evaluate",
            path,
            student=model,
            student_backend="transformers",
            teacher=beside,
            data_dir=data,
            limit=4,
            samples=1,
            max_completion_length=16,
            output_dir=tmp_path / "out",
        )
        for benchmark in given["benchmarks"]:
            assert (tmp_path / "out" / f"answers.{benchmark}.jsonl").stat().st_size > 0
    else:
        changes = {"teacher": beside} if "teacher" in given else {}
        changes |= {"teacher_model": "tiny"} if beside == teacher_server else {}
        if given["dataset"].endswith("/train.jsonl"):
            changes["dataset"] = filtered(start, tiny("Qwen/Qwen3-8B"))
        start(
            "grpo_relay",
            path,
            model_name_or_path=model,
            output_dir=tmp_path / "out",
            data_dir=data,
            validation_size=4,
            use_vllm="false",
            steps_per_generation=1,
            max_completion_length=12,
            eval_strategy="no",
            load_best_model_at_end="false",
            resume_from_checkpoint="none",
            **changes,
            **CPU,
        )
        assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2


def stages_of(path):
    """The lines to type before and after a YAML's own, from its header: recipe and what it will be told."""
    stages = []
    for line in re.findall(r"^#.*?(recipes/\w+\.py --config .*)$", path.read_text(), re.M):
        recipe, *words = shlex.split(re.split(r"   | \(|, then", line)[0])
        over = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
        config = over.pop("config")
        if recipe != "recipes/plan.py" and "{" not in config:
            given = yaml.safe_load((ROOT / config).read_text())
            stages.append((Path(recipe).stem, given | over))
    return stages


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if kind_of(p) == "grpo_" and p.parent.name in CHAINED], ids=name_of
)
def test_the_stages_of_its_header_hand_over_to_one_another(path):
    given, stages = yaml.safe_load(path.read_text()), dict(stages_of(path))
    assert given["dataset"] == stages["filter_by_teacher"]["output_dir"] + "/train.jsonl"
    assert stages["filter_by_teacher"]["decontaminate"] and stages["grpo_relay"] == given
    if "baseline" not in path.stem:
        assert list(stages) == ["grpo_relay", "build_warmup", "sft_warmup", "filter_by_teacher", "evaluate"]
        assert stages["sft_warmup"]["warmup_data"] == stages["build_warmup"]["output"]
        assert stages["sft_warmup"]["model_name_or_path"] == stages["build_warmup"]["student"]
        assert given["model_name_or_path"] == stages["sft_warmup"]["output_dir"]
        assert len({stages[name]["prompt_template"] for name in list(stages)[:4]}) == 1
    assert stages["evaluate"]["student"] == given["output_dir"]
    served = re.search(r"vllm serve (\S+)", path.read_text())
    assert stages["filter_by_teacher"]["teacher"] in (served and served[1], given.get("teacher"), "Qwen/Qwen3-8B")
    for stage, model in (
        ("filter_by_teacher", stages["filter_by_teacher"]["teacher"]),
        ("evaluate", models_of(path)[0]),
    ):
        room = known_models().get(model, {}).get("max_position_embeddings", 10**6)  # SmolLM2's is short
        assert int(stages[stage]["max_completion_length"]) < room


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_it_is_of_a_kind_that_is_known(path):
    assert kind_of(path) is not None, f"{path.name}: which recipe is it of? Add it to this file"


@pytest.mark.parametrize("path", [p for p in CONFIGS if kind_of(p) == "grpo_"], ids=name_of)
def test_its_batches_are_whole_groups_and_its_saves_lie_between_draws(path):
    given = yaml.safe_load(path.read_text())
    processes = int((re.search(r"--num_processes (\d+)", path.read_text()) or [0, 1])[1])
    accumulation = given.get("gradient_accumulation_steps", 1)
    one = batches(
        given["per_device_train_batch_size"],
        processes,
        accumulation,
        given.get("steps_per_generation", accumulation),
        given["num_generations"],
        1,
        1,
        0,
        0,
    )
    stated = re.search(r"= ([\d,]+) rollouts", path.read_text()) or re.search(
        r"([\d,]+) rollouts a step", path.read_text()
    )
    assert stated is None or int(stated[1].replace(",", "")) == one.rollouts
    if given.get("save_strategy") == "steps":
        assert given["save_steps"] % one.updates == 0 or one.updates < 1
    assert {key for key in given if key.startswith("vllm_")} <= set(RelayGRPOConfig.__dataclass_fields__)


PINNED = {
    "loss_type": "dapo",
    "epsilon": 0.2,
    "scale_rewards": "group",
    "use_bias_correction_kl": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "optim": "adamw_torch_fused",
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
}
"""What decides a run of thousands of tokens, and must not change with a release of TRL or transformers."""


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if kind_of(p) == "grpo_" and p.parent.name in CHAINED], ids=name_of
)
def test_what_a_run_of_the_papers_size_depends_on_is_written_down(path):
    given = yaml.safe_load(path.read_text())
    assert {key: given.get(key) for key in PINNED} == PINNED
    processes = int((re.search(r"--num_processes (\d+)", path.read_text()) or [0, 1])[1])
    at_once = given["per_device_eval_batch_size"] * processes
    assert -(-given["validation_size"] // at_once) * at_once <= 1.1 * given["validation_size"]
