"""Random models, small enough for a test."""

import torch
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
)


def new_model(tokenizer, kind=Qwen3ForCausalLM, **settings):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16, **settings}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.eos_token_id,
        **size,
    )
    model = kind(config).eval()
    with torch.no_grad():  # so that answers end now and then
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 1.4
    return model
