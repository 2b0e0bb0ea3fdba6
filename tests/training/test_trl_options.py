"""No option of TRL is accepted and ignored: each works, is passed on, needs another one, or is refused by name; the docs say which."""

import inspect
import logging
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from helpers.trainers import PAIR, grpo_config, grpo_trainer, in_turn
from helpers.warmup import sft_config
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig
from trl.trainer import callbacks as callbacks_module
from trl.trainer import grpo_config as grpo_config_module
from trl.trainer import grpo_trainer as grpo_trainer_module
from trl.trainer import sft_config as sft_config_module
from trl.trainer import sft_trainer as sft_trainer_module

from relay_trl.cli.parser import RecipeParser
from relay_trl.engines.base import Sampling
from relay_trl.training import RelayGRPOConfig
from relay_trl.training.trl_options import GRPO, GRPO_NEEDS, SFT, SFT_NEEDS

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
OF_TRANSFORMERS = {item.name for item in fields(TrainingArguments)}
KINDS = {"GRPOConfig": (GRPOConfig, GRPO, GRPO_NEEDS), "SFTConfig": (SFTConfig, SFT, SFT_NEEDS)}
SOURCES = {
    "GRPOConfig": "".join(map(inspect.getsource, (grpo_trainer_module, grpo_config_module, callbacks_module))),
    "SFTConfig": "".join(map(inspect.getsource, (sft_trainer_module, sft_config_module))),
}

# A value that is not the default, where one cannot be made up from the default
OTHER = {
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "generation_kwargs": {"presence_penalty": 0.5},
    "transformers_continuous_batching_config": {"block_size": 16},
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "truncation_mode": "keep_end",
    "completion_only_loss": False,
    "packing_strategy": "wrapped",
    "vllm_weights_folder": "/shared/weights",
    "scale_rewards": "batch",
    "use_transformers_paged": True,
    "report_to": "wandb",
    "vllm_mode": "server",
    "vllm_importance_sampling_mode": "token_mask",
    "vllm_kwargs": {"max_num_seqs": 4},
    "eval_accumulation_steps": 2,
    "data_seed": 3,
    "max_tool_calling_iterations": 2,
    "log_unique_prompts": True,
}


def rows_of(kind):
    """The table of the docs: by option, what is said to become of it."""
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index(f"| of `{kind}` |") :].split("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, said = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`(\w+)`", names):
            assert name not in found, f"{name} is in two rows"
            found[name] = said
    return found


def other(config, name):
    """A value of the option that is not its default."""
    if name in OTHER:
        return OTHER[name]
    item = next(item for item in fields(config) if item.name == name)
    default = item.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return 1 if default is not MISSING and "int" in str(item.type) else "other"


@pytest.mark.parametrize("kind", KINDS)
def test_the_docs_name_every_option_of_trl_and_what_is_refused(kind):
    config, refused, needs = KINDS[kind]
    said = rows_of(kind)
    names = {item.name for item in fields(config)}
    assert set(said) <= names
    assert names - OF_TRANSFORMERS <= set(said)
    assert {name for name, words in said.items() if words.startswith("refused: ")} == set(refused)
    needed = {name for need in needs for name in need.names.split()} & names
    assert {name for name, words in said.items() if words.startswith("with ")} == needed
    assert all(re.match("works|passed on: |with |refused: ", words) for words in said.values())


@pytest.mark.parametrize("kind", KINDS)
def test_trl_reads_what_is_said_to_work(kind):
    for name, words in rows_of(kind).items():
        if name not in OF_TRANSFORMERS and not words.startswith(("refused", "passed on")):
            assert re.search(rf"(args|self)\.{name}\b", SOURCES[kind]), f"TRL no longer reads {name}"


def make(kind, folder, **fields):
    return (grpo_config if kind == "GRPOConfig" else sft_config)(folder, **fields)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind][1]])
def test_what_is_refused_is_refused_by_name(tmp_path, kind, name):
    value = other(KINDS[kind][0], name)
    with pytest.raises(
        ValueError, match=rf"^{name} is {re.escape(repr(value))}, which would have no effect: .*Leave it"
    ):
        make(kind, tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("kind", "need", "name"),
    [
        (kind, need, name)
        for kind, (_, _, needs) in KINDS.items()
        for need in needs
        if not need.is_switch
        for name in need.names.split()
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_another_option_is_refused_without_it(tmp_path, kind, need, name):
    config = RelayGRPOConfig if kind == "GRPOConfig" else KINDS[kind][0]
    without = {
        "loss_type: grpo or bnpo": {"loss_type": "vespo"},
        "loss_type: sapo": {},
        "multi_objective": {"multi_objective_aggregation": "normalize_then_sum"},
        "vllm_importance_sampling_correction": {"use_vllm": True, "vllm_importance_sampling_correction": False},
        "vllm_mode: colocate": {"use_vllm": True, "vllm_mode": "server"},
        "vllm_mode: server": {"use_vllm": True},
        "vllm_server_base_url": {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://a:1"},
        "weights over NCCL": {"use_vllm": True, "vllm_mode": "server", "vllm_weights_folder": "/a"},
    }
    fields = next((given for start, given in without.items() if need.setting.startswith(start)), {})
    with pytest.raises(ValueError, match=f"^{name} is .*, which has an effect with {re.escape(need.setting)} only"):
        make(kind, tmp_path, **fields, **{name: other(config, name)})


def test_one_yaml_serves_with_and_without_vllm(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        args = grpo_config(tmp_path, vllm_gpu_memory_utilization=0.7, vllm_server_port=1)
    assert "Without use_vllm: true, vllm_gpu_memory_utilization, vllm_server_port have no effect." in caplog.text
    assert not args.use_vllm


def test_a_config_of_defaults_is_refused_nothing_and_warned_of_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        grpo_config(tmp_path, eval_strategy="steps", eval_steps=1)
        sft_config(tmp_path)
    assert "no effect" not in caplog.text


# --- what is passed on ---


def test_how_tokens_are_drawn_is_passed_on(tmp_path):
    drawn = {"temperature": 0.9, "top_p": 0.8, "top_k": 7, "min_p": 0.05, "repetition_penalty": 1.1}
    assert grpo_config(tmp_path, **drawn).relay_config().student == Sampling(**drawn)
    assert grpo_config(tmp_path).relay_config().student == Sampling()


def test_a_repetition_penalty_reaches_the_engine(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1, repetition_penalty=1.3), in_turn("right", "wrong"))
    seen, original = [], trainer._engines["student"].generate

    async def generate(context, max_tokens, stop, sampling):
        seen.append(sampling.repetition_penalty)
        return await original(context, max_tokens, stop, sampling)

    trainer._engines["student"].generate = generate
    trainer.train()
    assert set(seen) == {1.3}


def test_the_chat_templates_options_are_passed_on(tmp_path):
    args = grpo_config(tmp_path, chat_template_kwargs={"enable_thinking": True, "mine": 1})
    assert args.prompt_options()["chat_template_kwargs"] == {"enable_thinking": True, "mine": 1}


# --- words and numbers that a YAML and a command line write in several ways ---


@pytest.mark.parametrize(
    ("given", "kept"), [(False, "none"), (True, "group"), ("false", "none"), ("True", "group"), ("batch", "batch")]
)
def test_scale_rewards_takes_what_trl_documents(tmp_path, given, kept):
    assert grpo_config(tmp_path, scale_rewards=given).scale_rewards == kept


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scale_rewards": "std"}, "scale_rewards is 'std'; it must be one of group, batch, none"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo'; it must be one of grpo, bnpo"),
        ({"vllm_mode": "remote"}, "vllm_mode is 'remote'; it must be one of colocate, server"),
        ({"temperature": 0.0}, "temperature is 0.0; rollouts of one problem must differ"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"top_k": -3}, None),  # TRL and vLLM take what is below 1 for all tokens
    ],
)
def test_values_that_trl_would_find_at_the_first_step(tmp_path, fields, said):
    if said is None:
        assert grpo_config(tmp_path, **fields).relay_config().student.top_k == 0
        return
    with pytest.raises(ValueError, match=said):
        grpo_config(tmp_path, **fields)


def parsed(folder, **given):
    path = folder / "run.yaml"
    text = {"output_dir": str(folder / "out"), "teacher": str(PAIR / "teacher"), "bf16": False, "use_cpu": True}
    path.write_text(yaml.safe_dump(text | {"num_generations": 2, "per_device_train_batch_size": 4}))
    with path.open("a") as file:
        file.writelines(f"{key}: {value}\n" for key, value in given.items())
    (args,) = RecipeParser((RelayGRPOConfig,)).parse(["--config", str(path)])
    return args


def test_numbers_of_a_yaml_are_numbers_however_they_are_written(tmp_path):
    args = parsed(
        tmp_path,
        learning_rate="1e-6",
        reward_weights="[1e0, 5e-1]",
        extra_rewards='["math:floor"]',
        scale_rewards="false",
        reward_kwargs="{unsolvable_reward: 1e-1}",
    )
    assert args.learning_rate == 1e-6 and args.reward_weights == [1.0, 0.5] and args.scale_rewards == "none"
    assert args.reward_kwargs == {"unsolvable_reward": 0.1}
    assert parsed(tmp_path, run_name='"1e-6"').run_name == "1e-6"
