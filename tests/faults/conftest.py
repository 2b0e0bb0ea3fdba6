"""A real `vllm serve` of the arithmetic teacher that can be killed and started again, and a fault proxy in front of it."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers.faults import FaultProxy
from helpers.served import free_port
from helpers.trainers import PAIR
from with_vllm.conftest import _end, _wait_until_healthy


class TeacherServer:
    """A server process in a session of its own, always on the same port."""

    def __init__(self, log_path):
        self.log_path = log_path
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(PAIR / "teacher")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--no-enable-chunked-prefill"]
        command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        _wait_until_healthy(self.process, f"http://127.0.0.1:{self.port}/health", self.log_path)

    def kill(self):
        """SIGKILL to the server and its engine, in the middle of whatever they do."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self):
        _end(self.process)


@pytest.fixture(scope="module")
def teacher_server(tmp_path_factory):
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM")
    server = TeacherServer(tmp_path_factory.mktemp("teacher") / "log")
    yield server
    server.close()


@pytest.fixture
def proxy(teacher_server):
    proxy = FaultProxy(teacher_server.url)
    yield proxy
    proxy.close()
