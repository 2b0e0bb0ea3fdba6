"""`load_engine`: which engine a name stands for, and the tokenizer of a model behind a URL."""

import asyncio
import subprocess
import sys

import pytest
from helpers.openai_server import Server
from helpers.tokenizers import byte_level, characters
from transformers import GenerationConfig

from relay_trl.engines.base import EngineError
from relay_trl.engines.loading import load_engine


@pytest.fixture
def tokenizer_path(tmp_path):
    byte_level().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def test_a_url_with_a_tokenizer(server, tokenizer_path):
    engine = load_engine(server.url, tokenizer=tokenizer_path)
    assert (engine.name, engine.model, engine.max_context, engine.gives_ids) == (server.url, "tiny", 512, True)


def test_a_url_finds_the_tokenizer_of_what_it_serves(server, tokenizer_path):
    GenerationConfig(eos_token_id=[3, 4]).save_pretrained(tokenizer_path)
    server.models = [tokenizer_path]
    engine = load_engine(server.url)
    assert engine.vocabulary.encode("so 10") == byte_level()("so 10")["input_ids"]
    assert engine.vocabulary.eos_ids == {3, 4, engine.vocabulary.eos_id}


def test_a_url_without_any_tokenizer_exchanges_text(server, tmp_path, caplog):
    server.models = [str(tmp_path / "on_the_servers_machine")]
    engine = load_engine(server.url)
    assert engine.vocabulary is None
    assert "text is exchanged" in caplog.text
    with pytest.raises(EngineError, match="give its tokenizer"):
        load_engine(server.url, needs_logprobs=True)


def test_a_url_with_the_wrong_tokenizer(server):
    with pytest.raises(EngineError, match="give the tokenizer of the model it serves"):
        load_engine(server.url, tokenizer=characters())


def test_a_chat_server_needs_no_tokenizer(server):
    assert load_engine(server.url, api="chat").vocabulary is None


def test_a_url_may_be_loaded_inside_an_event_loop(server):
    async def load():
        return load_engine(server.url, tokenizer=byte_level())

    assert asyncio.run(load()).model == "tiny"


def test_a_server_that_is_down_is_found_at_once():
    with pytest.raises(EngineError, match="http://127.0.0.1:9/v1 cannot be reached"):
        load_engine("http://127.0.0.1:9", max_retries=0)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("models/teacher", {"backend": "sglang"}, "must be one of auto, transformers, vllm, openai"),
        ("models/teacher", {"backend": "openai"}, "no URL"),
        ("http://localhost:8000", {"backend": "vllm"}, "given as a URL"),
        ("models/teacher", {"tokenizer": "models/other"}, "brings its own"),
        ("http://localhost:8000", {"dtype": "float32"}, "dtype: a server has no such options"),
    ],
)
def test_options_that_do_not_fit_are_refused(spec, options, words):
    with pytest.raises(ValueError, match=words):
        load_engine(spec, **options)


def test_vllm_asked_for_and_not_installed_is_one_sentence():
    # A fresh interpreter that finds every package but vLLM.
    code = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "vllm" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from relay_trl.engines.loading import load_engine
try:
    load_engine("models/none", backend="vllm")
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "vLLM is not installed; install `relay_trl[vllm]`" in run.stdout, run.stderr
