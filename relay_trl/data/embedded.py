"""What the embedded tasks share: a tokenizer of single characters, splits by hash, and drawing distinct problems.

A task is a module with `KINDS`, `build_tokenizer`, `problems`, `corpus` and `answer_of`: `arithmetic.py` and `lookups.py`.
`recipes/pretrain_pair.py` trains their models; the warm-up adds the call tokens.
"""

import hashlib
import importlib
import random
import re
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EMBEDDED = ("arithmetic", "lookups")
"""Names of the embedded tasks, and of their modules."""

SPLITS = ("train", "validation", "test")

_SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
# After so many draws without a new problem a split counts as used up: four times what the last hard product of an
# arithmetic split takes on average.
_MAX_MISSES = 320_000


def load_task(name: str) -> ModuleType:
    """
    Import an embedded task.

    Raises:
        `ValueError`: If there is no such task.
    """
    if name not in EMBEDDED:
        raise ValueError(f"task is {name!r}; it must be one of {', '.join(EMBEDDED)}.")
    return importlib.import_module(f".{name}", __package__)


def with_labels(row: dict[str, str], tokenizer: "PreTrainedTokenizerFast") -> dict[str, list[int]]:
    """
    Encode a text of a corpus and its end token. A token is a character.

    Returns:
        `dict[str, list[int]]`: `input_ids` and `labels`. Labels are -100 (no loss) for the question and for insertions in
        brackets.
    """
    start = len(row["prompt"])
    input_ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
    labels = [-100] * start + input_ids[start:]
    for remark in re.finditer(r"\(\d+\)", row["completion"]):
        for place in range(*remark.span()):
            labels[start + place] = -100
    return {"input_ids": input_ids, "labels": labels}


def character_tokenizer(symbols: str) -> "PreTrainedTokenizerFast":
    """
    Build a tokenizer with one token a character.

    Args:
        symbols (`str`): The characters that have a token, in the order of their ids.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: The symbols, `<pad>`, `<eos>` and `<unk>` (any other character).
        Encoding adds no special tokens, decoding adds no spaces, padding is on the left, and there is no chat template.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*_SPECIAL_TOKENS, *symbols))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    # Without a decoder, tokens would be joined with blanks.
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )


def split_of(prompt: str) -> str:
    """
    The split that a question belongs to: 90 % `"train"`, 2 % `"validation"`, 8 % `"test"`.

    Args:
        prompt (`str`): The question as the models see it, such as `"67*7-37="`.

    Returns:
        `str`: One of `SPLITS`, the same on every machine and in every run.
    """
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "validation" if bucket < 92 else "test"


def draw_problems(
    split: str,
    size: int,
    seed: int,
    kinds: tuple[str, ...],
    mix: tuple[float, ...],
    draw: Callable[[str, random.Random], dict[str, str] | None],
) -> list[dict[str, str]]:
    """
    Draw distinct problems from one split, in random order.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        size (`int`): Number of problems.
        seed (`int`): Same seed, same problems.
        kinds (`tuple[str, ...]`): The kinds of the task.
        mix (`tuple[float, ...]`): Shares of the kinds, exact up to rounding.
        draw (`Callable`): Draws a row of one kind with its `prompt`, or `None` if the draw gives no problem.

    Raises:
        `ValueError`: If the split is unknown, the shares do not add up to 1, or the split has too few problems.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split '{split}'; valid splits are {', '.join(SPLITS)}.")
    if len(mix) != len(kinds) or min(mix) < 0 or abs(sum(mix) - 1) > 1e-6:
        raise ValueError(f"mix is {mix}; it has to be three shares, for {', '.join(kinds)}, that sum to 1.")
    rng = random.Random(f"{split} {seed}")
    edges = [round(size * sum(mix[:i])) for i in range(len(kinds) + 1)]
    rows = []
    for kind, start, end in zip(kinds, edges, edges[1:], strict=False):
        rows += _draw_kind(kind, split, end - start, rng, draw)
    rng.shuffle(rows)
    return rows


def _draw_kind(kind: str, split: str, size: int, rng: random.Random, draw: Callable) -> list[dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    misses = 0
    while len(rows) < size:
        row = draw(kind, rng)
        if row is None or row["prompt"] in rows or split_of(row["prompt"]) != split:
            misses += 1
            if misses == _MAX_MISSES:
                raise ValueError(
                    f"The {split} split has no {size} problems of kind {kind}; {len(rows)} were found. Ask for fewer."
                )
            continue
        misses = 0
        rows[row["prompt"]] = {**row, "kind": kind}
    return list(rows.values())
