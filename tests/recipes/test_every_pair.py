"""Every pair that ships starts: its models are swapped for tiny random ones of the same architecture and kind of vocabulary, its data
for a handful of rows, and two steps of each of its stages are run from the YAML that it expands to.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers.openai_server import Server
from helpers.tokenizers import byte_level, gemma
from transformers import AutoConfig, AutoModelForCausalLM

from relay_trl.planning.memory import batches
from relay_trl.planning.models import known_models
from relay_trl.reproduction.check import processes_of
from relay_trl.reproduction.expand import expand
from relay_trl.reproduction.pair import load_pair, read
from relay_trl.reproduction.runs import Runs

ROOT = Path(__file__).parents[2]
PAIRS = sorted((ROOT / "recipes" / "pairs").glob("*.yaml"))
PROFILES = [(path, name) for path in PAIRS for name in read(path)["hardware"]]
EMBEDDED = ("arithmetic", "lookups")  # their models are tiny already; tests/reproduction runs them
WITHOUT_DATA = (
    "word_problems",
)  # its files are the user's, and random models have no right answer to search for calls in
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last %}{{ '|' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def stages_of(path, profile=None, baseline=None):
    """By section. Without a profile, those of the first that the pair has."""
    pair = load_pair(path, profile or next(iter(read(path)["hardware"])))
    layers = [(baseline, pair.baselines[baseline])] if baseline else []
    return pair, {stage.section: stage for stage in expand(pair, layers)}


def known(model):
    """The model that a tiny one stands in for."""
    return model if model in known_models() else "HuggingFaceTB/SmolLM2-135M-Instruct"


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


@pytest.fixture(scope="module")
def teacher_server():
    server = Server()
    yield server.url
    server.close()


@pytest.fixture
def start(recipe, tmp_path):
    """Runs a stage with options over its own, in this process, as a user would; returns the folder of its result."""

    def run(stage, **options):
        path = tmp_path / f"{stage.name}.yaml"
        path.write_text(stage.text())
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        name = Path(next(word for word in stage.words() if word.startswith("recipes/"))).stem
        status, _, error = recipe(name, "--config", path, *words)
        assert status == 0, f"{stage.name} cannot start: {error[-1500:]}"

    return run


CPU = {"use_cpu": "true", "bf16": "false", "disable_tqdm": "true", "max_steps": 2, "save_strategy": "no"}
CPU |= {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8, "resume_from_checkpoint": "none"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "baseline"),
    [
        *((path, None) for path in PAIRS if not path.stem.startswith((*EMBEDDED, *WITHOUT_DATA))),
        *((ROOT / "recipes/pairs/qwen3_0.6b.yaml", name) for name in ("baseline", "simple")),
    ],
    ids=lambda value: getattr(value, "stem", value) or "relay",
)
def test_two_steps_of_each_stage(path, baseline, start, tiny, data, tmp_path, teacher_server):
    pair, stages = stages_of(path, None, baseline)
    student, teacher = tiny(known(pair.student)), tiny(known(pair.teacher))
    is_chat = pair.task.get("teacher_api") == "chat"
    beside = {"teacher": teacher_server, "teacher_model": "tiny"} if is_chat else {"teacher": teacher}
    rows, sft, out = tmp_path / "rows.jsonl", tmp_path / "sft", tmp_path / "out"
    if "warmup" in stages:
        small = {"dataset_size": 24, "samples": 4, "max_completion_length": 64, "data_dir": data}
        start(stages["warmup"], student=student, student_backend="transformers", output=rows, **small)
        start(stages["sft"], model_name_or_path=student, warmup_data=rows, output_dir=sft, **CPU)
        assert (sft / "relay_config.json").is_file()
    if "filter" in stages:
        small = {"samples": 2, "max_completion_length": 8, "min_pass_rate": 0, "data_dir": data}
        small |= {} if is_chat else {"teacher_backend": "transformers"}
        start(stages["filter"], output_dir=tmp_path / "filtered", **small, **beside)
    changes = {"dataset": tmp_path / "filtered" / "train.jsonl"} if "filter" in stages else {}
    start(
        stages["grpo"],
        model_name_or_path=sft if "sft" in stages else student,
        output_dir=out,
        data_dir=data,
        validation_size=4,
        use_vllm="false",
        steps_per_generation=1,
        max_completion_length=12,
        eval_strategy="no",
        load_best_model_at_end="false",
        **changes,
        **(beside if "teacher" in stages["grpo"].settings else {}),
        **CPU,
    )
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2
    small = {"data_dir": data, "limit": 4, "samples": 1, "max_completion_length": 16}
    small |= {"student_backend": "transformers", "student_engine": "{}"}
    start(stages["evaluate"], student=out, output_dir=tmp_path / "evaluation", **small, **beside)
    for benchmark in stages["evaluate"].settings["benchmarks"]:
        assert (tmp_path / "evaluation" / f"answers.{benchmark}.jsonl").stat().st_size > 0


@pytest.mark.parametrize(("path", "profile"), PROFILES, ids=lambda value: getattr(value, "stem", value))
def test_batches_are_whole_groups_saves_lie_between_draws_and_answers_fit_into_contexts(path, profile):
    pair = load_pair(path, profile)
    for stage in Runs(pair, None, ["all"]).all_stages():
        given = stage.settings
        if stage.section == "grpo":
            accumulation = given.get("gradient_accumulation_steps", 1)
            steps = given.get("steps_per_generation", accumulation)
            batch, group = given["per_device_train_batch_size"], given["num_generations"]
            one = batches(batch, processes_of(stage), accumulation, steps, group, 1, 1, 0, 0)
            if given.get("save_strategy") == "steps":
                assert given["save_steps"] % one.updates == 0 or one.updates < 1
        if stage.section in ("filter", "evaluate") and (length := given.get("max_completion_length")):
            for model in {pair.teacher, pair.student if stage.section == "evaluate" else pair.teacher}:
                room = known_models().get(model, {}).get("max_position_embeddings", 10**6)  # SmolLM2's is short
                served = int((stage.serve or "").partition("--max-model-len ")[2].partition(" ")[0] or room)
                assert length < min(room, served)


def test_the_examples_that_are_left_are_of_recipes_that_are_there():
    for path in (ROOT / "recipes" / "configs").rglob("*.yaml"):
        first = path.read_text().splitlines()[0]
        assert first.startswith("# Launch:") and str(path.relative_to(ROOT)) in first
        assert yaml.safe_load(path.read_text())
