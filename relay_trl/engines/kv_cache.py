"""Key/value caches of the transformers engine: of rows side by side, and of rollouts that a call interrupts.

All rows of a batch end at the right edge of its cache, with padding on their left or between two turns; a mask says where.
"""

from collections import OrderedDict
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache

RowCache: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one row, layer by layer, of shape (heads, tokens, size)."""

LEAST_TOKENS = 64
"""Shorter contexts are read anew: there is little to save."""


class KeptCaches:
    """What was computed for requests that have ended, for the next turn of their rollouts; the oldest go first.

    Args:
        most_bytes (`int`): room for them.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, ...], RowCache] = OrderedDict()

    def put(self, ids: list[int], cache: DynamicCache, row: int, mask: torch.Tensor):
        """Keeps a copy of what row number `row` of a batch has computed of `ids`."""
        columns = mask[row].nonzero()[:, 0]
        if not LEAST_TOKENS <= len(columns) == len(ids):
            return
        self._drop(tuple(ids))
        kept = [(layer.keys[row][:, columns], layer.values[row][:, columns]) for layer in layers(cache)]
        self._kept[tuple(ids)] = kept
        self._bytes += _size(kept)
        while self._bytes > self.most_bytes:
            self._drop(next(iter(self._kept)))

    def take(self, context: list[int]) -> RowCache | None:
        """The cache of the longest known beginning of `context`, which is kept no longer."""
        for length in sorted({len(ids) for ids in self._kept if len(ids) < len(context)}, reverse=True):
            if (known := tuple(context[:length])) in self._kept:
                return self._drop(known)
        return None

    def clear(self):
        """Forgets them all, as the weights have changed."""
        self._kept.clear()
        self._bytes = 0

    def _drop(self, ids: tuple[int, ...]) -> RowCache | None:
        kept = self._kept.pop(ids, None)
        self._bytes -= _size(kept or [])
        return kept


def _size(kept: RowCache) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in kept)


def layers(cache: DynamicCache) -> list[Any]:
    """Its layers, all of them plain ones with `keys` and `values` of shape (rows, heads, columns, size)."""
    return cache.layers


def length_of(kept: RowCache | None) -> int:
    """Tokens of a row's cache."""
    return kept[0][0].shape[1] if kept else 0


def batch_of(rows: list[RowCache]) -> DynamicCache:
    """The caches of rows as that of a batch, padded on the left."""
    cache, width = DynamicCache(), max(map(length_of, rows))
    for k in range(len(rows[0])):
        keys, values = (torch.stack([_padded(row[k][i], width) for row in rows]) for i in (0, 1))
        cache.update(keys, values, k)
    return cache


def join(old: DynamicCache, old_mask: torch.Tensor, new: DynamicCache, mask: torch.Tensor) -> torch.Tensor:
    """Puts the rows of `new` below those of `old`, in place. Returns the mask of both."""
    width = max(old_mask.shape[1], mask.shape[1])
    for upper, lower in zip(layers(old), layers(new), strict=True):
        upper.keys = torch.cat([_padded(upper.keys, width), _padded(lower.keys, width)])
        upper.values = torch.cat([_padded(upper.values, width), _padded(lower.values, width)])
    return torch.cat([torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in (old_mask, mask)])


def select(cache: DynamicCache, mask: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Leaves only these rows in a cache, and the columns that they reach back to. Returns their mask."""
    index = torch.tensor(rows, device=mask.device)
    mask = mask[index]
    unused = int((mask.cumsum(1).sum(0) == 0).sum())
    for layer in layers(cache):
        layer.keys, layer.values = layer.keys[index, :, unused:], layer.values[index, :, unused:]
    return mask[:, unused:]


def _padded(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Of shape (..., columns, size), padded on the left to `width` columns."""
    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[-2], 0))
