"""The teacher's server of a stage: starts it, waits for it, and ends it.

Owns that process. The pair's hardware profile says which stages need it, and with which options.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from shlex import join

_WAIT = "RELAY_TRL_SERVER_WAIT_S"
"""Environment variable: seconds in which a server must be up (default: 1800, enough to load a model from a slow disk)."""
_LEAVE_S = 30.0


class TeacherServer:
    """A server that is started when a stage needs it, and restarted when a stage needs other options.

    Args:
        words (`Callable[[str], list[str]]`): the whole command for the options of a stage.
        port (`int`).
    """

    def __init__(self, words: Callable[[str], list[str]], port: int):
        self._words, self.port = words, port
        self._process: subprocess.Popen | None = None
        self._options: str | None = None
        self._log: Path | None = None

    def line(self, options: str) -> str:
        """The command as one would type it."""
        return join(self._words(options))

    def start(self, options: str, log: Path, devices: str | None = None):
        """Runs the server with `options`, and waits until it answers.

        Raises:
            OSError: its port is in use.
            RuntimeError: it ended, or was not ready in time.
        """
        if self._process is not None and self._process.poll() is None and self._options == options:
            return
        self.stop()
        check_port(self.port)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = self._words(options)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        env = {**os.environ, **({"CUDA_VISIBLE_DEVICES": devices} if devices else {})}
        with log.open("wb") as file:
            try:
                self._process = subprocess.Popen(
                    words, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                raise RuntimeError(f"The teacher's server cannot be started: {words[0]} ({error.strerror}).") from error
        self._options, self._log = options, log
        limit = time.monotonic() + float(os.environ.get(_WAIT, 1800))
        while fault_at(f"http://127.0.0.1:{self.port}/v1/models", 5):
            if said := self.what_ended():
                raise RuntimeError(said)
            if time.monotonic() > limit:
                self.stop()
                raise RuntimeError(
                    f"The teacher's server was not up in time; see {log}, and {_WAIT} for the seconds it has."
                )
            time.sleep(0.5)

    def what_ended(self) -> str | None:
        """Why it ended, in a sentence; `None` while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        assert self._log is not None  # it was started
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = f" Its last line: {lines[-1]}" if lines else ""
        return f"the teacher's server {how}; its log is {self._log}. Run the command again to go on.{last}"

    def stop(self):
        """Ends the server and its processes."""
        if self._process is not None and self._process.poll() is None:
            group = os.getpgid(self._process.pid)
            os.killpg(group, signal.SIGTERM)
            try:
                self._process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                os.killpg(group, signal.SIGKILL)
                self._process.wait()
        self._process = None


def fault_at(url: str, limit_s: float) -> Exception | None:
    """Why no server answers at `url`; `None` where one does, be it with a refusal."""
    try:
        with urllib.request.urlopen(url, timeout=limit_s):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return error


def check_port(port: int):
    """Refuses a port that is in use.

    Raises:
        OSError: with the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"The teacher is to be served at port {port}, which is in use; end what listens there, or set another port in "
                "the hardware profile, or name that server as the teacher: --teacher "
                f"http://127.0.0.1:{port}/v1."
            ) from error
