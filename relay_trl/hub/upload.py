"""Pushes a folder or a file to the Hub in one commit: the choice of files, licences, and a scan for secrets.

Owns what is uploaded from this machine. `hub/model_card.py` and `hub/dataset_card.py` write the cards.
"""

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..redaction import mask_credentials

MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "relay_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.py",
)
"""Names of a model's files that are pushed. Pickles, optimizer states, checkpoints, logs and rollouts are not."""

_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_SECRETS = re.compile(rb"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}")
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")
_TEXTS = (".json", ".jsonl", ".md", ".txt", ".jinja", ".py", ".csv", ".yaml", ".yml")


@dataclass
class PushConfig:
    """What is pushed, and what its card says. The token is the one logged in with, or `HF_TOKEN`; there is no option for it.

    Args:
        repo_id (`str`): where to, `user/name`.
        model (`str`, *optional*): folder of a trained student or of its adapter.
        data (`str`, *optional*): `.jsonl`, `.csv` or `.parquet` file of warm-up or filtered problems, in place of `model`.
        private (`bool`, defaults to `False`): whether only you can see it. An existing repository keeps its own; where that
            differs, nothing is pushed.
        evaluations (`list[str]`, *optional*): folders that `recipes/evaluate.py` wrote, the untrained student's first, for the
            table of results.
        licence (`str`, *optional*): the Hub's identifier, such as `apache-2.0`; `None` takes that of the model it began as.
        base_model (`str`, *optional*): Hub id of what an adapter was trained on, where that was a folder.
        source_dataset (`str`, *optional*): of `data`: Hub id or name of the problems that it was made from.
        message (`str`, *optional*): of the commit.
        dry_run (`bool`, defaults to `False`): write the card, list the files, push nothing.
        card_dir (`str`, *optional*): folder to keep the card and its pictures in.
    """

    repo_id: str = ""
    model: str | None = None
    data: str | None = None
    private: bool = False
    evaluations: list[str] | None = None
    licence: str | None = None
    base_model: str | None = None
    source_dataset: str | None = None
    message: str | None = None
    dry_run: bool = False
    card_dir: str | None = None

    def __post_init__(self):
        if (self.model is None) == (self.data is None):
            raise ValueError("Give either model, the folder of a trained student, or data, a file of problems.")
        check_repo_id(self.repo_id, "repo_id")
        if self.base_model is not None:
            check_repo_id(self.base_model, "base_model")
        if self.data is not None and self.evaluations:
            raise ValueError("evaluations belong to a model; leave them out to push data.")


def check_repo_id(name: str, what: str):
    """Refuses a name that cannot be a repository on the Hub.

    Raises:
        ValueError: with the name of the option.
    """
    try:
        validate_repo_id(name)
        is_valid = name.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"{what} is {name!r}; give user/name, of letters, digits, '-', '_' and '.'.")


def model_files(folder: str | Path) -> dict[str, Path]:
    """The files of a model that are pushed, by their names in the repository.

    Raises:
        FileNotFoundError: there is no model in `folder`.
    """
    folder = Path(folder)
    found = {path.name: path for path in sorted(folder.glob("*")) if path.is_file() and not path.name.startswith("_")}
    kept = {name: path for name, path in found.items() if any(fnmatch.fnmatch(name, p) for p in MODEL_FILES)}
    has_weights = any(fnmatch.fnmatch(name, pattern) for name in kept for pattern in _WEIGHTS)
    if not has_weights or not {"config.json", "adapter_config.json"} & set(kept):
        raise FileNotFoundError(
            f"{folder} has no model to push: it needs config.json or adapter_config.json, and weights as .safetensors. "
            "Give the output_dir of a finished training, or a checkpoint in it."
        )
    return kept


def refuse_secrets(files: Mapping[str, Path]):
    """Looks for tokens in the texts that will be pushed.

    Raises:
        ValueError: with the file and the line, without the secret.
    """
    known = {os.environ.get(name, "") for name in _SECRET_VARIABLES} | {get_token() or ""}
    known_bytes = [value.encode() for value in known if len(value) >= 8]
    for path in files.values():
        if path.suffix not in _TEXTS:
            continue
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if _SECRETS.search(line) or any(value in line for value in known_bytes):
                    raise ValueError(
                        f"{path} has what looks like a token in line {number}; nothing was pushed. Take it out, and "
                        "withdraw that token if the file was shared."
                    )


def push(files: Mapping[str, Path], repo_id: str, kind: str, private: bool, message: str) -> str:
    """Uploads `files` in one commit, without files that have not changed.

    Args:
        files (`Mapping[str, Path]`): by their names in the repository.
        repo_id (`str`): created if it does not exist.
        kind (`str`): `"model"` or `"dataset"`.
        private (`bool`): visibility of a new repository; an existing one must have it already.
        message (`str`): of the commit.

    Returns:
        `str`: address of the commit.

    Raises:
        ValueError: nobody is logged in, the repository has another visibility, or the Hub refuses the push.
        ConnectionError: the Hub cannot be reached.
    """
    refuse_secrets(files)
    api = HfApi()
    if get_token() is None:
        raise ValueError("Nobody is logged in to the Hub; run `hf auth login` or set HF_TOKEN.")
    try:
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        is_private = bool(api.repo_info(repo_id, repo_type=kind).private)
        if is_private != private:
            seen, asked = ("private", "false") if is_private else ("public", "true")
            raise ValueError(
                f"{repo_id} exists and is {seen}, but private is {asked}; nothing was pushed. Change the repository's "
                "visibility on the Hub, or push to another one."
            )
        additions = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
        done = api.create_commit(repo_id, additions, commit_message=message, repo_type=kind)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        what = {401: "does not know this login", 403: "does not let this login write there"}.get(status, "refuses")
        reason = mask_credentials(" ".join(str(error).split()))
        raise ValueError(f"The Hub {what} ({kind} {repo_id}): {reason}") from error
    except httpx.TransportError as error:
        raise ConnectionError(f"The Hub cannot be reached ({error}); check the connection and HF_ENDPOINT.") from error
    return str(done.commit_url)


def licence_of(model: str | None) -> str | None:
    """The licence in a model's card, in its folder or on the Hub; `None` if there is none."""
    if not model or "://" in model:
        return None
    try:
        if Path(model).is_dir():
            card = Path(model) / "README.md"
            data = ModelCard.load(card).data if card.is_file() else None
        else:
            data = HfApi().model_info(model).card_data
    except (OSError, ValueError, httpx.TransportError):  # includes the Hub's own errors
        return None
    stated = getattr(data, "license", None)
    return stated if isinstance(stated, str) else None
