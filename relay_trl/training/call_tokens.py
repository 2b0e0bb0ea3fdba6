"""Adds the call tags as special tokens, to the tokenizer and to the embeddings."""

from ..call_syntax import CallSyntax


def add_call_tokens(tokenizer, syntax: CallSyntax) -> int:
    """Makes both tags special tokens of `tokenizer`, in place. Returns how many are new."""
    return tokenizer.add_special_tokens(
        {"extra_special_tokens": [syntax.open_tag, syntax.close_tag]}, replace_extra_special_tokens=False
    )


def grow_embeddings(model, tokenizer, num_new: int, seed: int = 0):
    """Gives `model` rows for the last `num_new` tokens of `tokenizer`.

    Each new row is the mean of the other rows plus noise with their spread. Rows without noise are nearly parallel, and with
    tied embeddings the warm-up could not tell the two tags apart.

    Args:
        model ([`~transformers.PreTrainedModel`]).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): with the tokens added.
        num_new (`int`): how many.
        seed (`int`, defaults to `0`): of the noise.
    """
    if num_new == 0:
        return
    size = len(tokenizer)
    old = size - num_new
    if model.get_input_embeddings().weight.shape[0] < size:
        model.resize_token_embeddings(size, mean_resizing=False)
    import torch

    generator = torch.Generator().manual_seed(seed)
    tables = {
        id(t.weight): t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t is not None
    }
    with torch.no_grad():
        for weight in tables.values():
            known = weight[:old].float()
            noise = torch.randn(num_new, known.shape[1], generator=generator).to(known.device)
            weight[old:size] = (known.mean(0) + noise * known.std(0)).to(weight.dtype)
