"""Merges a LoRA adapter that a training saved into its base model.

python recipes/merge_adapter.py --adapter runs/lora --output_dir runs/merged
"""

from dataclasses import dataclass
from pathlib import Path

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.relay_config import load_record, save_record


@dataclass
class MergeConfig:
    """The options of a merge.

    Args:
        adapter (`str`): the folder that a training with `use_peft` wrote.
        output_dir (`str`): a new or empty folder for the merged model.
        dtype (`str`, defaults to `"bfloat16"`): of the merged weights, `bfloat16`, `float16` or `float32`.

    Raises:
        ValueError: the dtype is another one.
    """

    adapter: str
    output_dir: str
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"dtype is {self.dtype!r}; it must be bfloat16, float16 or float32.")


def main():
    (config,) = RecipeParser(MergeConfig).parse()
    from relay_trl.training.checkpoints import check_output  # these import torch
    from relay_trl.training.lora import save_merged

    check_output(config.output_dir)
    if any(Path(config.output_dir).iterdir()):
        raise ValueError(f"output_dir: {config.output_dir} is not empty; give a new folder, or empty this one first.")
    save_merged(config.adapter, config.output_dir, config.dtype)
    record = load_record(config.adapter)
    if record is not None:
        save_record(record, config.output_dir)
    print(f"The merged model is in {config.output_dir}.")


if __name__ == "__main__":
    run(main)
