"""Servers for a benchmark. Each has its own process group and ends with the block, also after SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import httpx


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(
    command: list[str], url: str, log: Path, limit_s: float = 600, preexec_fn: Callable[[], None] | None = None
):
    """A server in its own process group. Waits until `url` answers, at most `limit_s`; ends the server after the block."""
    signal.signal(signal.SIGTERM, _end_in_order)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, preexec_fn=preexec_fn)
    try:
        limit = time.monotonic() + limit_s
        while True:
            try:
                httpx.get(url, timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError(
                        f"A server did not come up:\n{log.read_text(errors='replace')[-3000:]}"
                    ) from None
                time.sleep(0.5)
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def _end_in_order(number, frame):
    """Turns SIGTERM into an exit, so that the servers are ended too. A second SIGTERM is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)
