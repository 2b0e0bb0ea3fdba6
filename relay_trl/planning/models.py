"""The size of a model from its config, without its weights.

Owns where a config comes from without a network (`known_models.json`) and how parameters are counted.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Configs of the models in the shipped YAMLs, by Hub id, so that a plan needs no network."""
    return json.loads((Path(__file__).parent / "known_models.json").read_text(encoding="utf-8"))


def load_config(name: str) -> PreTrainedConfig:
    """The config of a model, from a folder, the known models, or the Hub.

    Raises:
        OSError: there is none.
    """
    if not Path(name).is_dir() and name in known_models():
        facts = dict(known_models()[name])
        return AutoConfig.for_model(facts.pop("model_type"), **facts).get_text_config()
    try:
        return AutoConfig.from_pretrained(name).get_text_config()
    except (OSError, ValueError) as error:
        raise OSError(
            f"The config of {name!r} is neither in a folder nor known here nor on the Hub; name the model it "
            f"is made from with --student, a folder with a config.json, or one of {', '.join(known_models())}."
        ) from error


def fake_model(config: PreTrainedConfig):
    """The model with shapes and without weights. Use it only inside a `FakeTensorMode` or on the meta device."""
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


@dataclass(frozen=True)
class Shape:
    """The size of a model, from its config.

    Attributes:
        name (`str`), parameters (`int`), layers (`int`), hidden (`int`), vocabulary (`int`).
        kv_elements (`int`): elements of the keys and values of one token, all layers together.
        context (`int`, *optional*): most tokens of prompt and completion.
        is_tied (`bool`): whether the head is the embedding.
    """

    name: str
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    kv_elements: int
    context: int | None
    is_tied: bool

    @classmethod
    def of(cls, name: str) -> "Shape":
        """The shape of a model, by folder, known name or Hub id."""
        config = load_config(name)
        with FakeTensorMode():
            parameters = sum(p.numel() for p in fake_model(config).parameters())
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            name,
            parameters,
            config.num_hidden_layers,
            config.hidden_size,
            config.vocab_size,
            2 * config.num_hidden_layers * kv_heads * head_dim,
            getattr(config, "max_position_embeddings", None),
            bool(config.tie_word_embeddings),
        )
