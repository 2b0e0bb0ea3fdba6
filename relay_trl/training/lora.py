"""Adapters: what LoRA trains, whether a quantized student is possible here, and merging an adapter into its base.

Owns the LoRA config of a run and the contents of an adapter's folder. TRL puts the adapter on the student.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils.other import TrainableTokensWrapper
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedConfig
from trl import ModelConfig, get_peft_config

from ..call_syntax import CallSyntax
from ..engines.adapters import load_model

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def lora_config(
    options: ModelConfig, tokenizer, syntax: CallSyntax, student: str, revision: str | None = None
) -> PeftConfig | None:
    """TRL's LoRA config for the run's options. Tags that are special tokens are trained too; an adapter alone would leave
    their embeddings at the noise that they were made from.

    Args:
        options ([`~trl.ModelConfig`]): `use_peft`, `lora_r` and so on.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the student's.
        syntax ([`CallSyntax`]): the tags.
        student (`str`): folder or Hub id; its config says whether head and embedding are tied.
        revision (`str`, *optional*): of a Hub id.
    """
    config = get_peft_config(options)
    if not isinstance(config, LoraConfig):
        return config
    added = tokenizer.get_added_vocab()
    rows = [added[tag] for tag in (syntax.open_tag, syntax.close_tag) if tag in added]
    if rows and "embed_tokens" not in (options.lora_modules_to_save or ()):
        facts = PreTrainedConfig.get_config_dict(student, revision=revision)[0]  # runs no code of its repository
        is_tied = (facts.get("text_config") or facts).get("tie_word_embeddings", True)
        config.trainable_token_indices = {"embed_tokens": rows} if is_tied else {"embed_tokens": rows, "lm_head": rows}
    return config


def check_quantization(options: ModelConfig, is_on_cpu: bool, use_vllm: bool = False):
    """Refuses a 4-bit or 8-bit student that cannot be loaded or trained here.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: quantized weights without an adapter, or in a vLLM engine on a CPU.
    """
    if not (options.load_in_4bit or options.load_in_8bit):
        return
    name = "load_in_4bit" if options.load_in_4bit else "load_in_8bit"
    if not options.use_peft:
        raise ValueError(f"{name} is true without use_peft: quantized weights cannot be trained; set use_peft: true.")
    if use_vllm and (is_on_cpu or options.load_in_8bit):
        where = "on a CPU" if is_on_cpu else "for 8-bit weights"
        raise ValueError(
            f"{name} is true with use_vllm, but vLLM has no such engine {where}; set use_vllm: false, or leave {name} out."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{name} is true, but bitsandbytes is not installed. Install it with `pip install relay_trl[qlora]`, or leave "
            f"{name} out to train a LoRA adapter on unquantized weights."
        )


def check_model_options(model: Any, args: Any, quantization_config: Any):
    """Refuses options for loading a model where the model is loaded already: TRL passes over them.

    Raises:
        ValueError: naming the option.
    """
    if isinstance(model, str):
        return
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value is not None:
            raise ValueError(
                f"{name} is set, but the model is loaded already; load it with that, or give its name instead."
            )


def check_sharding(config: PeftConfig | None, args: Any):
    """Refuses to train rows of an embedding that is split over processes: peft cannot do it."""
    is_fsdp = args.distributed_state is not None and args.distributed_state.distributed_type == DistributedType.FSDP
    is_split = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if getattr(config, "trainable_token_indices", None) and (is_split or is_fsdp):
        raise ValueError(
            f"The call tags are tokens of their own and use_peft is true, but {'FSDP' if is_fsdp else 'ZeRO-3'} splits the "
            "embedding whose rows for them have to be trained; use ZeRO-2 or DDP, or leave add_call_tokens out."
        )


def load_merged(folder: str | Path, dtype: str | torch.dtype = "float32", **kwargs: Any) -> tuple[Any, Any]:
    """The base model of an adapter with the adapter merged in, and its tokenizer. A quantized base is loaded unquantized.

    Args:
        folder (`str` or `Path`): where the adapter and its tokenizer were saved.
        dtype (`str` or `torch.dtype`, defaults to `"float32"`): dtype in which weights are merged and kept.
        kwargs (`Any`): of `from_pretrained`, such as `trust_remote_code`.

    Raises:
        FileNotFoundError: there is no adapter in `folder`.
        EngineError: its base does not exist.
        ValueError: the base is another model now.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {ADAPTER_CONFIG}, so there is no adapter in it to merge.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    try:
        adapted = load_model(str(folder), len(tokenizer), dtype=dtype, **kwargs)
        _check_names(adapted, Path(folder))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
        raise ValueError(
            f"{folder} was trained on another model than {base} is now ({reason}); put that model back, or set "
            f"base_model_name_or_path in {path}."
        ) from error
    return adapted.merge_and_unload(), tokenizer


def _check_names(adapted: PeftModel, folder: Path):
    """Refuses an adapter whose weights do not match its base. peft would ignore missing and additional ones."""
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        return
    with safe_open(file, "pt") as saved:
        odd = set(saved.keys()) ^ set(get_peft_model_state_dict(adapted))
    if odd:
        raise ValueError(f"{len(odd)} weights such as {min(odd)} are in one of them only")


def save_merged(folder: str | Path, output_dir: str | Path, dtype: str | torch.dtype = "float32", **kwargs: Any):
    """Writes the model and the tokenizer of [`load_merged`]."""
    model, tokenizer = load_merged(folder, dtype, **kwargs)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def give_bias(model: torch.nn.Module):
    """Gives TRL's fused head the bias of a head whose rows an adapter trains.

    peft's wrapper gives the merged weight but no bias. Can go when peft's `TrainableTokensWrapper` has a bias.
    """
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper) and isinstance(module.original_module, torch.nn.Linear):
            module.bias = module.original_module.bias
