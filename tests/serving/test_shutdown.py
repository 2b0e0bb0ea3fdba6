"""A real server process gets a signal to stop: requests under way end, no new ones are taken, and it exits with status 0."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from helpers.made_up_run import write_run

ROOT = Path(__file__).parents[2]
PAIR = ROOT / "data" / "arithmetic"
STREAMS, CHOICES = 32, 16  # as many as make the answers last for a while
LIMIT_S = 30

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    """The process, with its `url`."""
    command = [sys.executable, "-m", "relay_trl", "serve", "--student", str(PAIR / "student")]
    command += ["--teacher", str(PAIR / "teacher"), "--port", "0", "--shutdown_s", str(LIMIT_S)]
    command += ["--max_in_flight", str(STREAMS * CHOICES)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline()
        assert " is served at " in said, (tmp_path / "log").read_text()[-3000:]
        process.url = said.partition(" is served at ")[2].partition(",")[0]
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Stream(threading.Thread):
    """Reads one streamed answer of several choices."""

    def __init__(self, url, has_begun):
        super().__init__(daemon=True)
        self.url, self.has_begun = url, has_begun
        self.status, self.reasons, self.is_done, self.ended = None, {}, False, None

    def run(self):
        body = {"model": "student", "prompt": "78*6+49=", "stream": True, "n": CHOICES, "temperature": 1.5}
        with httpx.stream("POST", f"{self.url}/completions", json=body, timeout=60) as response:
            self.status = response.status_code
            for line in response.iter_lines():
                self.is_done = self.is_done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        self.reasons[choice["index"]] = choice["finish_reason"]
                        if choice["text"]:
                            self.has_begun.set()
        self.ended = time.monotonic()


def test_sigterm_while_answers_are_streamed(server):
    has_begun = threading.Event()
    streams = [Stream(server.url, has_begun) for _ in range(STREAMS)]
    for stream in streams:
        stream.start()
    assert has_begun.wait(60)
    while any(stream.status is None for stream in streams):  # each is under way
        time.sleep(0.001)
    told = time.monotonic()
    server.send_signal(signal.SIGTERM)
    refused = None
    while refused is None and time.monotonic() < told + 10:
        try:
            httpx.get(f"{server.url}/models", timeout=10)
        except httpx.TransportError:
            refused = time.monotonic()
    assert server.wait(LIMIT_S + 10) == 0
    for stream in streams:
        stream.join(10)
    assert refused is not None and refused < max(stream.ended for stream in streams)
    for stream in streams:
        assert stream.status == 200 and stream.is_done
        assert list(stream.reasons.values()) == ["stop"] * CHOICES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_leaves_at_once(server, number):
    assert httpx.get(f"{server.url}/models").status_code == 200
    server.send_signal(number)
    assert server.wait(LIMIT_S / 2) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_viewer_leaves_at_once(tmp_path, number):
    write_run(tmp_path, rollouts=16)
    command = [sys.executable, "-m", "relay_trl", "watch", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().partition(" is shown at ")[2].strip()
            assert httpx.get(url).status_code == 200
            process.send_signal(number)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_connection_stays_open_for_longer_than_clients_keep_theirs(server):
    place = server.url.removeprefix("http://").partition("/")[0]
    connection = http.client.HTTPConnection(place, timeout=20)
    sockets = set()
    for pause_s in (0, 6):  # httpx gives one up after 5 s
        time.sleep(pause_s)
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
        sockets.add(connection.sock)
    assert len(sockets) == 1 and None not in sockets
    connection.close()
