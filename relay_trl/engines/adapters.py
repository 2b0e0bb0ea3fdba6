"""Loading a model, or an adapter on its base: an adapter that trained rows of added tokens needs a base that has such rows.

Owns the order of these steps; peft breaks off over rows that are not there. `training/lora.py` merges.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils.peft_utils import find_adapter_config_file

from .base import EngineError


def load_model(path: str, vocabulary_size: int, revision: str | None = None, **options: Any) -> Any:
    """The model at `path`; if there is an adapter, its base with the adapter on it.

    Args:
        path (`str`): folder or Hub id.
        vocabulary_size (`int`): of its tokenizer. A base with fewer rows gets more; the adapter has their weights.
        revision (`str`, *optional*): of `path`.
        options (`Any`): of `from_pretrained`.

    Raises:
        EngineError: an adapter whose base cannot be had.
    """
    adapter = find_adapter_config_file(path, revision=revision)
    if adapter is None:
        return AutoModelForCausalLM.from_pretrained(path, revision=revision, **options)
    config = json.loads(Path(adapter).read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    try:
        model = AutoModelForCausalLM.from_pretrained(base, revision=config.get("revision"), **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise EngineError(
            f"{path} is an adapter of {base!r}, which is neither in a folder nor on the Hub ({reason}); put the model "
            f"there, or set base_model_name_or_path in {adapter}."
        ) from error
    if vocabulary_size > len(model.get_input_embeddings().get_parameter("weight")):
        model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
    from peft import PeftModel  # takes seconds to import

    return PeftModel.from_pretrained(model, path, revision=revision)
