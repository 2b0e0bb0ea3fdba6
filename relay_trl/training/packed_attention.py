"""Attention over the packed rows of TRL's asynchronous trainer in plain torch: TRL has a kernel for it on GPUs only.

Can go when TRL's asynchronous trainer runs on a CPU. tests/training/test_async_grpo.py holds the layout of the rows.
"""

from typing import Any

import torch


def attend_in_rows(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask,
    *,
    tree_kv_index: torch.Tensor,
    tree_cu_seqlens_q: torch.Tensor,
    tree_cu_seqlens_k: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """TRL's `tree_attention`: the row is cut into segments, and each sees the tokens on its path, itself included, causally.

    Args:
        query, key, value (`torch.Tensor` of shape (1, heads, N, size)): of a packed row of N tokens.
        tree_kv_index (`torch.Tensor` of shape (K,)): the paths of all segments, one behind the other.
        tree_cu_seqlens_q, tree_cu_seqlens_k (`torch.Tensor` of shape (S + 1,)): where segments begin in the row, and their paths in
            `tree_kv_index`.

    Raises:
        ValueError: the model caps its attention.
    """
    if softcap:
        raise ValueError(f"{type(module).__name__} caps its attention, which asynchronous training has on a GPU only.")
    at, is_query = _spread(tree_cu_seqlens_q)
    on_path, is_key = _spread(tree_cu_seqlens_k)
    # A segment is the end of its path
    place = torch.arange(at.shape[1]) + (is_key.sum(1) - is_query.sum(1))[:, None]
    distance = place[:, :, None] - torch.arange(on_path.shape[1])
    mask = distance >= 0 if not sliding_window else (distance >= 0) & (distance < sliding_window)
    path = tree_kv_index.long()[on_path]
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # (N, heads, size)
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(part[index].transpose(1, 2) for part, index in ((query, at), (key, path), (value, path))),
        attn_mask=(mask & is_key[:, None])[:, None],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2)[is_query][None], None


def _spread(starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of stretches that begin at `starts`: every stretch's places, filled up to the longest with its last place, and which are its own."""
    sizes = starts.diff().long()[:, None]
    steps = torch.arange(int(sizes.max()))[None]
    return starts[:-1].long()[:, None] + torch.minimum(steps, sizes - 1), steps < sizes
