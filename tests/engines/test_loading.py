"""`load_engine`: which engine a name stands for, and the tokenizer of a model behind a URL."""

import asyncio
import json
import subprocess
import sys

import pytest
import torch
from helpers.openai_server import Server
from helpers.tokenizers import byte_level, characters
from helpers.trainers import PAIR, SYNTAX, load_tokenizer
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig
from trl import ModelConfig

from relay_trl.engines.base import EngineError
from relay_trl.engines.loading import load_engine
from relay_trl.serving.pipeline import RelayPipeline
from relay_trl.training.call_tokens import grow_embeddings
from relay_trl.training.lora import lora_config


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


def test_an_adapter_with_added_tokens_is_loaded_on_a_base_without_room_for_them(tmp_path):
    tokenizer, model = load_tokenizer(), AutoModelForCausalLM.from_pretrained(PAIR / "student", dtype=torch.float32)
    rows = model.get_input_embeddings().weight.shape[0]
    assert len(tokenizer) == rows + 2
    grow_embeddings(model, tokenizer, 2)
    options = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "down_proj"])
    config = lora_config(options, tokenizer, SYNTAX, str(PAIR / "student"))
    model = get_peft_model(model, config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    context = [*tokenizer("12*3=")["input_ids"], rows, rows + 1]
    loaded = load_engine(str(tmp_path)).model
    with torch.no_grad():
        own, again = (each.eval()(torch.tensor([context])).logits for each in (model, loaded))
    assert torch.equal(own, again)
    pipeline = RelayPipeline.from_pretrained(str(tmp_path), teacher=str(PAIR / "teacher"))
    assert pipeline("12*3=").text is not None
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(EngineError, match=r"is an adapter of '/nowhere', which is neither in a folder nor on the Hub"):
        load_engine(str(tmp_path))
