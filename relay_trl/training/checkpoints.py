"""Checkpoints to resume from: which are whole, which fit this run, and whether the disk has room for them.

Owns the file that marks a checkpoint as whole and the meaning of `resume_from_checkpoint`. transformers writes weights,
optimizer and random state. The rollouts of a resumed run depend only on its seed and step (`rollout_seed` in `rollouts.py`).
"""

import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..run_files import write_atomically

logger = logging.getLogger(__name__)

MARK = "relay_checkpoint.json"
"""Written last into a checkpoint: the sizes of its files and the shapes of what the run trains."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


def find_checkpoint(resume: str | bool | None, output_dir: str) -> str | None:
    """The folder that a run resumes from.

    Args:
        resume (`str` or `bool`, *optional*): `"auto"` (or true) is the newest whole checkpoint in `output_dir`, if there is
            one. A folder is that checkpoint. `None`, false or `"none"` begins a new run.
        output_dir (`str`).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not a whole checkpoint.
    """
    word = str(resume).lower()
    if resume is None or word in ("false", "none", "no", ""):
        return None
    if word not in ("auto", "true"):
        folder = Path(str(resume))
        if not folder.is_dir():
            raise FileNotFoundError(
                f"resume_from_checkpoint: there is no folder {folder}; give a checkpoint-N folder, or auto for the newest "
                f"whole one in {output_dir}."
            )
        if fault := what_is_missing(folder):
            raise ValueError(
                f"resume_from_checkpoint: {folder} is not a whole checkpoint ({fault}); give another one, or auto."
            )
        return str(folder)
    found = [(int(m[1]), path) for path in Path(output_dir).glob("checkpoint-*") if (m := _CHECKPOINT.match(path.name))]
    for _, path in sorted(found, reverse=True):
        if fault := what_is_missing(path):
            logger.warning("%s is passed over, as it is not a whole checkpoint: %s.", path, fault)
            continue
        logger.info("Going on from %s.", path)
        return str(path)
    return None


def what_is_missing(folder: Path) -> str | None:
    """Why `folder` is not a whole checkpoint, in a few words; `None` if it is one."""
    try:
        files = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        for name, size in files.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                return f"{name} is missing" if found is None else f"{name} has {found} of {size} bytes"
    except FileNotFoundError:
        return f"it has no {MARK}, which is written last"
    except (ValueError, KeyError, AttributeError, OSError) as error:
        return f"its {MARK} cannot be read ({error})"
    return None


def mark_whole(folder: Path, model: torch.nn.Module, processes: int, is_sharded: bool):
    """Marks `folder` as a whole checkpoint. Call it when every process has written its part."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARK
    }
    mark = {"files": files, "trained": trained_shapes(model), "processes": processes, "is_sharded": is_sharded}
    write_atomically(folder / MARK, json.dumps(mark, indent=0))


def drop_old(newest: Path, limit: int | None, best: str | None):
    """Removes checkpoints beside `newest` until `limit` are left, the earliest steps first; `newest` and `best` stay.

    The order is that of their steps. transformers goes by time and removes a new checkpoint if the clock was set back.
    Checkpoints of later steps than `newest` belong to an abandoned run and are removed first.
    """
    found = [(int(m[1]), path) for path in newest.parent.glob("checkpoint-*") if (m := _CHECKPOINT.match(path.name))]
    step = int(newest.name.rpartition("-")[2])
    kept = {newest, *([Path(best)] if best else [])}
    order = [path for number, path in sorted(found, key=lambda one: (one[0] <= step, one)) if path not in kept]
    excess = len(found) - limit if limit and limit > 0 else 0
    for path in order[: max(0, excess)]:
        shutil.rmtree(path, ignore_errors=True)


def trained_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Names and shapes of the trained parameters; of sharded ones, the whole shape."""
    return {
        name.replace("_checkpoint_wrapped_module.", ""): list(getattr(p, "ds_shape", p.shape))
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def check_fits(folder: str, model: torch.nn.Module, processes: int):
    """Refuses a checkpoint of another model, of another LoRA shape, or sharded over another number of processes."""
    mark: dict[str, Any] = json.loads((Path(folder) / MARK).read_text(encoding="utf-8"))
    theirs, ours = mark["trained"], trained_shapes(model)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            there, here = (f"shape {s[name]}" if name in s else "nothing of that name" for s in (theirs, ours))
            raise ValueError(
                f"resume_from_checkpoint: {folder} was written by a run that trained another model or adapter: for {name} "
                f"it has {there}, this run has {here}; set the model and the lora_ options as they were, or start over."
            )
    if mark["is_sharded"] and mark["processes"] != processes:
        raise ValueError(
            f"resume_from_checkpoint: {folder} is sharded over {mark['processes']} processes, this run has {processes}; "
            f"launch with --num_processes {mark['processes']}."
        )


def check_output(output_dir: str, needed: int = 0):
    """Refuses a folder that cannot be written to, and a disk without room for `needed` bytes.

    Raises:
        OSError: with the folder, the free bytes and the needed bytes.
    """
    parent = Path(output_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=parent, prefix="_probe") as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise OSError(
            f"output_dir: nothing can be written to {output_dir} ({error.strerror or error}); give a folder that can be "
            "written to, on a disk with room."
        ) from error
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"output_dir: the disk of {output_dir} has {free / 2**30:.1f} GiB left, and the checkpoints of this run need "
            f"about {needed / 2**30:.1f} GiB; make room, lower save_total_limit, or set save_only_model: true."
        )


def bytes_of_checkpoints(student: str, args: Any) -> int:
    """About how many bytes a run's checkpoints and its final model take, from the size of the student's weights. 0 for a
    student that is not on this machine or is trained with an adapter.

    Beside the weights, a checkpoint has two moments of each weight in float32.
    """
    weights = sum(path.stat().st_size for path in Path(student).glob("*.safetensors")) if os.path.isdir(student) else 0
    if args.save_strategy == "no":
        return weights
    # A new checkpoint is written before an old one is removed, and the best one is kept beside the newest
    kept = 2 if args.save_total_limit is None else args.save_total_limit + 1
    return weights + kept * weights * (1 if args.save_only_model else 5 if args.bf16 else 3)
