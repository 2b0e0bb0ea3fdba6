"""Short hashes by which a run knows that models and problems are still those that it began with."""

import hashlib
import json
from pathlib import Path

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_SAMPLED_BLOCKS = 16
_BLOCK = 65536


def fingerprint(model: str) -> str | None:
    """A short hash of a local model's weights, so that answers of an earlier training of the same folder are not taken
    for this one's. Reads the ends and a sample of blocks of every file, not all of it. `None` for what is no folder.
    """
    folder = Path(model)
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for block in range(_SAMPLED_BLOCKS + 1):
                file.seek(max(0, size - _BLOCK) * block // _SAMPLED_BLOCKS)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def fingerprint_rows(rows: list[dict]) -> str:
    """A short hash of the problems and golds of a run, in order."""
    text = json.dumps([[row["prompt"], row["answer"]] for row in rows])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
