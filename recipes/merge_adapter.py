"""Merges a LoRA adapter that a training saved into its base model.

python recipes/merge_adapter.py --adapter runs/lora --output_dir runs/merged
"""

from dataclasses import dataclass, field

from relay_trl.cli import RecipeParser, run
from relay_trl.hub import load_record, save_record
from relay_trl.training.checkpoints import check_output
from relay_trl.training.lora import save_merged


@dataclass
class MergeConfig:
    """What is merged.

    Args:
        adapter (`str`): the folder that a training with `use_peft` wrote.
        output_dir (`str`): where the whole model goes.
        dtype (`str`, defaults to `"bfloat16"`): of the merged weights.
    """

    adapter: str = field(metadata={"help": "Folder of the adapter."})
    output_dir: str = field(metadata={"help": "Where the whole model goes."})
    dtype: str = field(default="bfloat16", metadata={"help": "Of the merged weights."})


def main():
    (config,) = RecipeParser(MergeConfig).parse()
    check_output(config.output_dir)
    save_merged(config.adapter, config.output_dir, config.dtype)
    record = load_record(config.adapter)
    if record is not None:
        save_record(record, config.output_dir)
    print(f"The merged model is in {config.output_dir}.")


if __name__ == "__main__":
    run(main)
