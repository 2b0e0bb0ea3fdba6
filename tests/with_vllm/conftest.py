"""A tiny random model with its tokenizer on disk, engines over it, and a real vLLM server.

This folder must not have the name `vllm`: pytest puts its parent on the path, and Python would take it for the package.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.served import free_port

for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
    os.environ.setdefault(name, value)

START_LIMIT_S = 240
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last %}{{ '|' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}|<assistant>{% endif %}"
)


class Served(str):
    """The base URL of a server, which also knows the process group that it runs in."""

    def __new__(cls, url, group):
        served = super().__new__(cls, url)
        served.group = group
        return served


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
    """Starts a `vllm serve` of a model with further options; a context manager that gives its base URL."""

    @contextmanager
    def running(model, *options):
        port = free_port()
        log_path = tmp_path_factory.mktemp("vllm_server") / "log"
        # The command `vllm serve` looks its version up under a name that vllm-cpu does not have; the module serves.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *options]
        # On a CPU it would break down over a seeded request whose context is read in several parts
        command += ["--no-enable-chunked-prefill", "--block-size", "32"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log_path)
            yield Served(f"http://127.0.0.1:{port}/v1", process.pid)
        finally:
            _end(process)

    return running


@pytest.fixture(scope="session")
def vllm_server(tiny_model_path, serve):
    """The base URL of a `vllm serve` of the tiny model, under the name `tiny`."""
    options = ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    options += ["--logprobs-mode", "processed_logprobs", "--enable-prompt-tokens-details"]
    with serve(tiny_model_path, *options) as url:
        yield url


def _wait_until_healthy(process, url, log_path):
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    tail = log_path.read_text(errors="replace")[-4000:]
    pytest.fail(f"The vLLM server did not come up within {START_LIMIT_S} s:\n{tail}")


def _end(process):
    """Ends the server and what it started: its engine is a process of its own, in the same group."""
    import signal

    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=20)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
