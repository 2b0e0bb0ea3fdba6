"""Pushes a trained student, or a file of warm-up or filtered problems, to the Hub with a card made from the run.

    python recipes/push.py --model runs/arithmetic/grpo --repo_id me/my-student --private true \
        --evaluations runs/arithmetic/evaluation/untrained runs/arithmetic/evaluation/relay
"""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from relay_trl.cli.endings import run
from relay_trl.cli.parser import RecipeParser
from relay_trl.data.registry import SOURCES
from relay_trl.evaluation.report.for_card import card_contents
from relay_trl.hub.dataset_card import read_rows, write_dataset_card
from relay_trl.hub.model_card import write_model_card
from relay_trl.hub.upload import PushConfig, licence_of, model_files, push
from relay_trl.relay_config import RELAY_CONFIG_NAME, load_record


def model_with_card(config: PushConfig, folder: Path) -> dict[str, Path]:
    """The model's files, and the card and pictures, which are written into `folder`."""
    files = model_files(config.model)
    record = load_record(config.model)
    if record is None:
        raise ValueError(
            f"{config.model} has no relay_config.json: it was not trained to call. Push what a recipe trained."
        )
    is_adapter = "adapter_config.json" in files
    base = config.base_model or record.student_base
    if is_adapter:
        adapter = json.loads(files["adapter_config.json"].read_text(encoding="utf-8"))
        trained_on = config.base_model or adapter["base_model_name_or_path"]
        if config.base_model is None and Path(trained_on).exists():
            raise ValueError(
                f"The adapter was trained on the folder {trained_on}, which others do not have; push that model first and "
                "name it as base_model."
            )
        files["adapter_config.json"] = folder / "adapter_config.json"
        text = json.dumps(adapter | {"base_model_name_or_path": trained_on}, indent=2)
        files["adapter_config.json"].write_text(text + "\n", encoding="utf-8")
    source = SOURCES.get(record.training_set or "")
    licences = {name: licence_of(name) for name in (base, record.teacher) if name}
    contents = card_contents(config.model, config.evaluations or [], folder)
    write_model_card(
        folder,
        record,
        config.repo_id.partition("/")[2],
        base,
        source.hub_id if source else record.training_set,
        licence=config.licence or licences.get(base or ""),
        repo_id=config.repo_id,
        is_adapter=is_adapter,
        licences=licences,
        **contents,
    )
    return files | {name: folder / name for name in ("README.md", RELAY_CONFIG_NAME, *contents["pictures"])}


def data_with_card(config: PushConfig, folder: Path) -> dict[str, Path]:
    """The file of rows, and its card, which is written into `folder`."""
    path, rows = Path(config.data), read_rows(config.data)
    name = f"data/train{path.suffix}"
    card = write_dataset_card(folder, rows, config.repo_id, name, config.licence, config.source_dataset)
    return {name: path, "README.md": card}


def main():
    (config,) = RecipeParser((PushConfig,)).parse()
    kind = "model" if config.model else "dataset"
    with ExitStack() as stack:
        folder = Path(config.card_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        files = model_with_card(config, folder) if config.model else data_with_card(config, folder)
        print(f"{len(files)} files for the {kind} {config.repo_id}: {', '.join(sorted(files))}")
        if config.dry_run:
            print((folder / "README.md").read_text(encoding="utf-8"))
        else:
            message = config.message or f"Push {kind} and card with relay_trl"
            print(f"Pushed: {push(files, config.repo_id, kind, config.private, message)}")


if __name__ == "__main__":
    run(main)
