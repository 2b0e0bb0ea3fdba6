"""Puts a dataset file on the Hub, with a card that says how it was made.

Owns the card's words and the upload.
"""

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..redaction import redact

_CARD = """---
tags: [relay-trl]
task_categories: [text-generation]
configs:
- config_name: default
  data_files: train.jsonl
---
# {name}

{rows} problems with answers, from {origin}, made with [relay_trl](https://arxiv.org/abs/2601.05167). {summary}

The licence is that of {origin}. Settings:

```json
{settings}
```
"""


def push_rows(
    path: str | Path, repo_id: str, origin: str, summary: str, settings: dict, is_private: bool = True
) -> str:
    """Uploads the `.jsonl` file at `path` as the `train` split of the dataset `repo_id`, in one commit with its card.

    Args:
        origin (`str`): what the rows come from.
        summary (`str`): sentences for the card.
        settings (`dict`): JSON-ready, for the card; credentials in it are masked.
        is_private (`bool`, defaults to `True`): of a dataset that does not exist yet.

    Returns:
        `str`: the commit's address.

    Raises:
        ConnectionError: the Hub cannot be reached, or refuses.
    """
    rows = sum(1 for _ in open(path, encoding="utf-8"))
    card = _CARD.format(
        name=repo_id.partition("/")[2],
        rows=rows,
        origin=redact(origin),
        summary=summary,
        settings=json.dumps(redact(settings), indent=2),
    )
    files = {"train.jsonl": Path(path), "README.md": card.encode()}
    try:
        api = HfApi()
        api.create_repo(repo_id, repo_type="dataset", private=is_private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo_id, operations, repo_type="dataset", commit_message=f"{rows} rows of {redact(origin)}"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise ConnectionError(
            f"The rows are in {path}, but could not be pushed to {repo_id} ({' '.join(str(error).split())[:300]}); log in with "
            "`hf auth login`, check that the name is yours, and run again."
        ) from error
    return str(commit.commit_url)
