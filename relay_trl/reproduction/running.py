"""Runs stages in order, each in its own process. A finished stage is not run again.

Owns the start and end of a stage's process, its log and its line of progress, and the refusal of a folder with a run of other
settings. `expand.py` makes the stages, `teacher_server.py` has the teacher's server.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import yaml

from ..cli.progress import EVERY, MARK
from ..redaction import redact
from .expand import ROWS, Stage
from .sections import SECTIONS
from .teacher_server import TeacherServer

_POLL_S = 0.2
_NO_SETTINGS = {"resume_from_checkpoint", "disable_tqdm"}


def check_stages(stages: Iterable[Stage], wanted: Iterable[str] | None = None):
    """Refuses stages whose input is missing, and a folder with a run of other settings, before anything runs.

    Args:
        stages (`Iterable[Stage]`): all stages, in order.
        wanted (`Iterable[str]`, *optional*): the sections that run; `None`: all.

    Raises:
        FileNotFoundError: with the file and the stage that makes it.
        ValueError: with the setting and both values.
    """
    by_name = {stage.name: stage for stage in stages}
    for stage in by_name.values():
        if wanted is not None and stage.section not in wanted:
            continue
        is_finished = stage.result is not None and stage.result.exists()
        for each in () if is_finished else stage.needs:
            maker = by_name[each]
            is_made = maker.result is None or maker.result.exists() or wanted is None or maker.section in wanted
            if not is_made:
                raise FileNotFoundError(
                    f"The stage {stage.name} takes {maker.result}, which is not there; the stage {each} makes it: add "
                    f"{maker.section} to --stages, or leave --stages out."
                )
        _check_settings(stage)


def _check_settings(stage: Stage):
    started = stage.result is not None and (stage.result.exists() or stage.result.parent.exists())
    if not (started and stage.config.is_file()):
        return
    old = yaml.safe_load(stage.config.read_text(encoding="utf-8")) or {}
    new = yaml.safe_load(stage.text())
    names = [name for name in {**old, **new} if name not in _NO_SETTINGS and old.get(name) != new.get(name)]
    if names:
        shown = "; ".join(
            f"{name} was {redact(old.get(name), name)!r} and is now {redact(new.get(name), name)!r}"
            for name in names[:3]
        )
        place = stage.written if stage.section in ROWS else stage.written.parent
        raise ValueError(
            f"{stage.folder} holds a run of the stage {stage.name} with other settings: {shown}. Give another output_dir, as "
            f"output_dir=runs/another, or remove {place} and what was made from it."
        )


def write_config(stage: Stage, server: str | None = None):
    """Writes the stage's YAML, which can also be run by hand."""
    stage.config.parent.mkdir(parents=True, exist_ok=True)
    stage.config.write_text(stage.text(server), encoding="utf-8")


class Runner:
    """Runs stages and prints a line for each.

    Args:
        server ([`TeacherServer`], *optional*): the teacher's server, for stages that need it.
        jobs (`int`, defaults to `1`): stages at the same time.
        say (`Callable`, defaults to `print`): gets the lines.
    """

    def __init__(self, server: TeacherServer | None = None, jobs: int = 1, say: Callable[[str], None] | None = None):
        self.server, self.jobs = server, jobs
        self._say = say or (lambda line: print(line, flush=True))
        self._started: dict[str, Future[bool]] = {}
        self._pool = ThreadPoolExecutor(jobs)
        self._is_live = jobs == 1 and sys.stdout.isatty()
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen] = set()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception):
        if kind is not None and not issubclass(kind, Exception):  # a signal to stop
            for child in list(self._children):
                child.terminate()
        self._pool.shutdown(cancel_futures=True)  # after a failure, stages that have begun are finished
        if self.server is not None:
            self.server.stop()

    def submit(self, stages: Iterable[Stage]) -> list["Future[bool]"]:
        """Starts the stages of a run that have not been started, each when the stages that it needs have ended."""
        futures = []
        with self._lock:
            for stage in stages:
                if stage.name not in self._started:
                    before = [self._started[name] for name in stage.needs if name in self._started]
                    self._started[stage.name] = self._pool.submit(self._after, before, stage)
                futures.append(self._started[stage.name])
        return futures

    def run(self, stages: Iterable[Stage]):
        """Runs stages to their end.

        Raises:
            RuntimeError: a stage failed.
        """
        for future in self.submit(stages):
            future.result()

    def _after(self, before: list["Future[bool]"], stage: Stage) -> bool:
        has_new_input = any([future.result() for future in before])
        return self._do(stage, has_new_input)

    def _do(self, stage: Stage, has_new_input: bool) -> bool:
        title = f"{stage.name}: {SECTIONS[stage.section].title}"
        if stage.result is not None and stage.result.exists():
            if has_new_input:
                raise ValueError(
                    f"{stage.result} was made from an earlier result of {' and '.join(stage.needs)}, which has just been made "
                    f"anew; remove {stage.result if stage.section in ROWS else stage.result.parent} to make it anew too."
                )
            self._say(f"== {title}: kept {stage.result}")
            return False
        self._say(f"== {title}")
        started = time.perf_counter()
        served = ""
        if stage.serve is not None and self.server is not None:
            served = self.server.line(stage.serve)
            self._say(f"   the teacher: {served}")
            self.server.start(stage.serve, stage.folder / "logs" / "teacher.log", stage.teacher_devices)
        write_config(stage, served or None)
        self._say(f"   {stage.line()}")
        log = stage.folder / "logs" / f"{stage.name}.log"
        code = self._wait(stage, log)
        if code != 0:
            gone = self.server.what_ended() if stage.serve is not None and self.server is not None else None
            said = gone or f"its error is in {log}: {_error_in(log)}"
            raise RuntimeError(f"The stage {stage.name} failed; {said}")
        where = f", see {stage.result}" if stage.result else ""
        self._say(f"   {stage.name}: {_duration(time.perf_counter() - started)}{where}")
        return True

    def _wait(self, stage: Stage, log: Path) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *stage.words()]
        every, told, begun = float(os.environ.get(EVERY, 30)), "", time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment(stage), stdout=file, stderr=subprocess.STDOUT)
        self._children.add(process)
        next_line = begun + every
        while process.poll() is None:
            time.sleep(_POLL_S)
            if (now := time.monotonic()) >= next_line or self._is_live:
                told = _progress_in(log) or told
                self._show(stage, told, now - begun)
                next_line = now + every
        self._children.discard(process)
        if self._is_live:
            print("\r\033[K", end="", flush=True)
        return process.returncode

    def _show(self, stage: Stage, told: str, seconds: float):
        line = f"   {stage.name}: {told or 'at work'} ({_duration(seconds)})"
        if self._is_live:
            width = os.get_terminal_size().columns
            print(f"\r\033[K{line[: width - 1]}", end="", flush=True)
        else:
            self._say(line)


def environment(stage: Stage) -> Mapping[str, str]:
    """The environment of a stage's process."""
    # Waiting threads must not spin: with other work on the machine, steps would take ten times as long. Small models decode faster
    # on one thread of a CPU. Training is not faster so, and accelerate chooses its threads itself
    env = {"OMP_WAIT_POLICY": "PASSIVE", **({} if stage.launch else {"OMP_NUM_THREADS": "1"}), **os.environ}
    env |= {EVERY: "2", "PYTHONUNBUFFERED": "1"}
    return env | ({"CUDA_VISIBLE_DEVICES": stage.devices} if stage.devices else {})


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 16)))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def _progress_in(log: Path) -> str:
    """The last line of progress. It may follow a progress bar on the same line."""
    return next((line.partition(MARK)[2] for line in reversed(_tail(log)) if MARK in line), "")


def _error_in(log: Path) -> str:
    """The recipe's one-sentence error, else the last line that is not empty."""
    lines = _tail(log)
    said = [line.partition("error: ")[2] for line in lines if line.startswith(("error: ", "[rank"))]
    return next((line for line in reversed(said) if line), lines[-1] if lines else "(nothing was printed)")
