"""A tiny random model with its tokenizer on disk, engines over it, and a real vLLM server.

This folder must not have the name `vllm`: pytest puts its parent on the path, and Python would take it for the package.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.vllm_server import VLLMServer

for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
    os.environ.setdefault(name, value)

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last %}{{ '|' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}|<assistant>{% endif %}"
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="needs vLLM"))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE with `<eos>` and a chat template."""
    from helpers.tokenizers import byte_level

    tokenizer = byte_level()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer):
    """Writes a Qwen3-type model of random weights (float32) and 512 positions, which ends an answer now and then."""
    from helpers.models import new_model

    def write(path: Path, is_tied: bool = True) -> Path:
        size = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}  # vLLM's smallest head
        new_model(tiny_tokenizer, **size, tie_word_embeddings=is_tied, dtype="float32").float().save_pretrained(path)
        tiny_tokenizer.save_pretrained(path)
        return path

    return write


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory, tiny_model) -> Path:
    """The tiny model with a tied head."""
    return tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def vllm_engine(tiny_model_path):
    """A `VLLMEngine` over the tiny model."""
    from relay_trl.engines.vllm import VLLMEngine

    return VLLMEngine.load(str(tiny_model_path), dtype="float32", max_model_len=512, max_num_seqs=16)


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Starts a [`VLLMServer`] of a model with further options, which ends with the block."""
    return lambda model, *options: VLLMServer(model, tmp_path_factory.mktemp("vllm_server") / "log", *options)


@pytest.fixture(scope="session")
def vllm_server(tiny_model_path, serve):
    """The base URL of a `vllm serve` of the tiny model, under the name `tiny`."""
    options = ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    options += ["--logprobs-mode", "processed_logprobs", "--enable-prompt-tokens-details"]
    with serve(tiny_model_path, *options) as server:
        yield server.url
