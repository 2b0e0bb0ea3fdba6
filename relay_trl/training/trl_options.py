"""Options of TRL and transformers that would have no effect here, and are therefore refused by name.

Owns these options with the reasons, and the words that an option accepts. docs/training.md has the table of all options;
tests/training/test_trl_options.py compares both with each other and with the installed TRL.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..options import given_options, refuse_without

logger = logging.getLogger(__name__)

_SCRIPTS = "the recipes train, and evaluate as eval_strategy says"
_PREDICTIONS = "an evaluation yields figures, and no predictions to work on"
_ENGINE = "rollouts are drawn by an engine of this package, in which each joins and leaves the batch by itself"
_TOKENS = "the rows are tokens already, which build_warmup.py wrote"

BOTH = {
    "do_train": _SCRIPTS,
    "do_predict": _SCRIPTS,
    "prediction_loss_only": _PREDICTIONS,
    "eval_accumulation_steps": _PREDICTIONS,
    "eval_do_concat_batches": _PREDICTIONS,
    "eval_use_gather_object": _PREDICTIONS,
    "include_for_metrics": _PREDICTIONS,
    "batch_eval_metrics": _PREDICTIONS,
    "save_on_each_node": "the first process says which checkpoints are whole; give an output_dir that all machines share",
}
GRPO = {
    **BOTH,
    "generation_kwargs": f"{_ENGINE}; it takes temperature, top_p, top_k, min_p and repetition_penalty",
    "cache_implementation": _ENGINE,
    "use_transformers_continuous_batching": _ENGINE,
    "transformers_continuous_batching_config": _ENGINE,
    "use_transformers_paged": _ENGINE,
    "vllm_structured_outputs_regex": "a rollout is drawn in pieces between its calls, and no pattern spans them",
    "max_tool_calling_iterations": "there are no tools; max_calls bounds the calls of the teacher",
    "log_multimodal": "there are no images",
    "remove_unused_columns": "rewards get the columns that they name, and no others, in any case",
    "data_seed": "the order of the prompts comes from seed",
    "train_sampling_strategy": "TRL orders the prompts by groups; shuffle_dataset: false keeps the order of the rows",
    "length_column_name": "TRL orders the prompts by groups, whatever their length",
    "average_tokens_across_devices": "loss_type says what the loss is averaged over",
    "include_num_input_tokens_seen": "num_tokens is logged in any case",
    "label_names": "there are no labels; rewards teach",
    "label_smoothing_factor": "there are no labels; rewards teach",
}
SFT = {
    **BOTH,
    "chat_template_path": f"{_TOKENS}, with the student's own template",
    "dataset_text_field": _TOKENS,
    "dataset_kwargs": _TOKENS,
    "eos_token": f"{_TOKENS}, with the student's own end token",
    "truncation_mode": "a row that is longer than max_length is refused, not cut",
    "completion_only_loss": "the loss is on the answers alone in any case",
    "assistant_only_loss": "the loss is on the answers alone in any case",
}
"""Options that are refused unless they are left at their default, with the reason."""


@dataclass(frozen=True)
class Needs:
    """Options that need another setting, and are refused without it.

    Args:
        names (`str`): the options, separated by blanks.
        setting (`str`): the setting that they need, for messages.
        is_met (`Callable`): whether a config has this setting.
        is_switch (`bool`, defaults to `False`): they are set aside with a warning and not refused, so that one YAML serves
            with and without it.
    """

    names: str
    setting: str
    is_met: Callable[[Any], bool]
    is_switch: bool = False


def _loss(*kinds: str) -> dict[str, Any]:
    return {"setting": f"loss_type: {' or '.join(kinds)}", "is_met": lambda config: config.loss_type in kinds}


def _vllm(setting: str, is_met: Callable[[Any], bool]) -> dict[str, Any]:
    return {"setting": setting, "is_met": lambda config: not config.use_vllm or is_met(config)}


_COLOCATE = "vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size vllm_enable_sleep_mode vllm_model_impl vllm_kwargs"
_SERVER = (
    "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_weights_folder "
    "student_timeout_s student_retries student_concurrency"
)
_CORRECTION = "vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min"
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_EVALUATION = Needs("do_eval", "eval_strategy", lambda config: config.eval_strategy != "no")
GRPO_NEEDS = [
    Needs("delta", **_loss(*_CLIPPED)),
    Needs("epsilon epsilon_high", **_loss(*_CLIPPED, "cispo")),
    Needs("sapo_temperature_neg sapo_temperature_pos", **_loss("sapo")),
    Needs("vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg", **_loss("vespo")),
    Needs("use_bias_correction_kl", "beta above 0", lambda config: config.beta != 0),
    Needs("ref_model_mixup_alpha ref_model_sync_steps", "sync_ref_model: true", lambda config: config.sync_ref_model),
    Needs(
        "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
        "use_adaptive_entropy: true",
        lambda config: config.use_adaptive_entropy,
    ),
    Needs(
        "scale_rewards",
        "multi_objective_aggregation: sum_then_normalize",
        lambda config: config.multi_objective_aggregation == "sum_then_normalize",
    ),
    Needs("num_completions_to_print", "log_completions: true", lambda config: config.log_completions),
    Needs(
        "log_unique_prompts",
        "log_completions: true and report_to: wandb or trackio",
        lambda config: (
            config.log_completions and any(name in (config.report_to or ()) for name in ("wandb", "trackio"))
        ),
    ),
    _EVALUATION,
    Needs(
        f"vllm_mode vllm_importance_sampling_correction vllm_importance_sampling_cap {_CORRECTION} {_COLOCATE} {_SERVER}",
        "use_vllm: true",
        lambda config: config.use_vllm,
        is_switch=True,
    ),
    Needs(
        f"vllm_importance_sampling_cap {_CORRECTION}",
        **_vllm("vllm_importance_sampling_correction: true", lambda config: config.vllm_importance_sampling_correction),
    ),
    Needs(_COLOCATE, **_vllm("vllm_mode: colocate", lambda config: config.vllm_mode == "colocate")),
    Needs(_SERVER, **_vllm("vllm_mode: server", lambda config: config.vllm_mode == "server")),
    Needs(
        "vllm_server_host vllm_server_port",
        **_vllm("vllm_server_base_url left out, which names both", lambda config: not config.vllm_server_base_url),
    ),
    Needs(
        "vllm_group_port",
        **_vllm("weights over NCCL, so without vllm_weights_folder,", lambda config: not config.vllm_weights_folder),
    ),
]
SFT_NEEDS = [
    _EVALUATION,
    Needs(
        "packing_strategy", "packing: true or eval_packing: true", lambda config: config.packing or config.eval_packing
    ),
]
"""Options that only work together with a setting."""


WORDS = {
    "vllm_mode": ("colocate", "server"),
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
"""Options of GRPO with a few allowed words. TRL checks them only after the run has begun."""


def check_words(config: Any):
    """Refuses values that TRL would only refuse at the first step, and turns a boolean `scale_rewards` into TRL's word.

    Raises:
        ValueError: with the option, its value, and the allowed values.
    """
    words = {"true": "group", "false": "none"}  # on a command line a boolean is a word
    config.scale_rewards = words.get(str(config.scale_rewards).lower(), config.scale_rewards)
    for name, known in WORDS.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} is {getattr(config, name)!r}; it must be one of {', '.join(known)}.")
    if not config.temperature > 0:
        raise ValueError(
            f"temperature is {config.temperature}; rollouts of one problem must differ, so it must be above 0 in training."
        )


def refuse_unused(config: Any, refused: dict[str, str], needs: list[Needs]):
    """Refuses options of `config` that are not at their default and would have no effect.

    Args:
        config (`TrainingArguments`): as it was given, before transformers fills in what was left out.
        refused (`dict[str, str]`): see [`GRPO`] and [`SFT`].
        needs (`list[Needs]`): see [`GRPO_NEEDS`] and [`SFT_NEEDS`].

    Raises:
        ValueError: with the first of them, its value, and the reason.
    """
    given = given_options(config)
    for name, reason in refused.items():
        if name in given:
            raise ValueError(f"{name} is {given[name]!r}, which would have no effect: {reason}. Leave it out.")
    for need in needs:
        unused = [name for name in need.names.split() if name in given]
        if not unused or need.is_met(config):
            continue
        if need.is_switch:
            logger.warning(
                f"Without {need.setting}, {', '.join(unused)} {'have' if len(unused) > 1 else 'has'} no effect."
            )
            continue
        refuse_without(config, unused, need.setting)
