"""A real `vllm serve` of the arithmetic teacher that can be killed and started again, and a fault proxy in front of it."""

from importlib.util import find_spec

import pytest
from helpers.faults import FaultProxy
from helpers.trainers import PAIR
from helpers.vllm_server import VLLMServer


@pytest.fixture(scope="module")
def teacher_server(tmp_path_factory):
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM")
    options = ("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16")
    with VLLMServer(PAIR / "teacher", tmp_path_factory.mktemp("teacher") / "log", *options) as server:
        yield server


@pytest.fixture
def proxy(teacher_server):
    proxy = FaultProxy(teacher_server.url)
    yield proxy
    proxy.close()
