"""Runs math-verify in child processes, each answer under a hard time and memory limit.

Owns both ends of the pipe: [`WorkerPool`] in the calling process and [`main`] in the child. The children are plain
`python -c` processes. Those of `multiprocessing` would import the caller's main script again, with torch and everything it
loads. `grader.py` decides what is judged here and what a verdict means.

The kernel enforces the limit: the child sets a timer whose default action ends the process. So neither a loop in C nor an
`except Exception` in a library can run longer, even if the calling process has died. The timer counts processor time, because
by the clock a right answer could be wrong on a busy machine. The calling process has a second, far longer limit by the clock,
for a child that is stopped or swapped out.
"""

import json
import math
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

CHUNK = 32  # pairs sent at once: enough to hide the pipe, few enough to spread a batch over the workers
PATIENCE = 10.0  # the calling process kills a child itself after so many limits by the clock,
GRACE_S = 2.0  # and so many seconds more
START_LIMIT_S = 120.0  # importing SymPy takes about a second, on a busy machine a minute
EXTRA_MEMORY = 1 << 30  # bytes that an answer may add to the child's address space

_READY, _RIGHT, _WRONG = b"r", b"1", b"0"
_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from relay_trl.grading.worker import main; main(float(sys.argv[2]))"
)


class _Worker:
    def __init__(self, time_limit_s: float):
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-c", _BOOT, json.dumps([*sys.path, root]), str(time_limit_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self._stdout = self.process.stdin, self.process.stdout
        self.output = self._stdout.fileno()
        self.is_ready = False
        self.tasks: deque[int] = deque()
        self.deadline = time.monotonic() + START_LIMIT_S

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.input, self._stdout):
            with suppress(OSError):  # the pipe breaks again if the child died with unread data
                pipe.close()


def _kill_all(workers: list[_Worker], owner: int) -> None:
    # A forked copy of the calling process must not end the workers of the original.
    if os.getpid() == owner:
        for worker in workers:
            worker.kill()
    workers.clear()


class WorkerPool:
    """
    Asks child processes whether answers equal gold answers.

    Args:
        time_limit_s (`float`):
            Processor time that one pair may take, in seconds.
        workers (`int`, *optional*):
            Number of child processes. `None`: one per usable processor, at most 4.

    Raises:
        `ValueError`: If the limit or the number is not positive.
    """

    def __init__(self, time_limit_s: float, workers: int | None = None):
        if not (time_limit_s > 0 and math.isfinite(time_limit_s)):
            raise ValueError(f"`time_limit_s` is {time_limit_s}, but must be a positive number of seconds.")
        if workers is not None and workers < 1:
            raise ValueError(f"`workers` is {workers}, but must be at least 1, or None for one per processor.")
        if workers is None:
            usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = min(4, usable)
        self.time_limit_s = time_limit_s
        self.size = workers
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._bind()

    def _bind(self) -> None:
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """
        Judges (answer, gold) pairs.

        Args:
            pairs (`Sequence[tuple[str, str]]`):
                Normalised answers and gold answers, (N,).

        Returns:
            `list[bool | None]`: Whether each answer equals its gold, (N,). `None`: it ran into the limit, or its
            worker died of it.

        Raises:
            `RuntimeError`: If the child processes do not start.
        """
        with self._lock:
            if os.getpid() != self._owner:
                self._workers = []
                self._bind()
            return self._judge(pairs)

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        verdicts: list[bool | None] = [None] * len(pairs)
        todo = deque(range(len(pairs)))
        size = max(1, min(CHUNK, len(pairs) // (2 * self.size)))
        failed_starts = 0
        while todo or any(worker.tasks for worker in self._workers):
            while len(self._workers) < min(self.size, math.ceil(len(todo) / size)):
                self._workers.append(_Worker(self.time_limit_s))
            for worker in list(self._workers):
                if worker.is_ready and not worker.tasks and todo:
                    self._send(worker, [todo.popleft() for _ in range(min(size, len(todo)))], pairs, todo)
            for worker, data in self._wait():
                if not data:
                    if not worker.is_ready:
                        failed_starts += 1
                        if failed_starts > 2:
                            raise RuntimeError(
                                "The grader's worker process ended 3 times before it was ready; its own message is on "
                                "the standard error above. Check that `python -c 'import math_verify'` works."
                            )
                    self._bury(worker, todo)
                    continue
                for byte in data:
                    if worker.is_ready:
                        verdicts[worker.tasks.popleft()] = byte == _RIGHT[0]
                    worker.is_ready, failed_starts = True, 0  # only starts that fail in a row count
                worker.deadline = self._deadline()  # the clock of one answer starts when the one before it is done
        return verdicts

    def _deadline(self) -> float:
        return time.monotonic() + PATIENCE * self.time_limit_s + GRACE_S

    def _wait(self) -> list[tuple[_Worker, bytes]]:
        """What the busy workers have written since the last call; no bytes from one that died or ran out of time."""
        busy = [worker for worker in self._workers if worker.tasks or not worker.is_ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            pause = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
            ready = [key.data for key, _ in selector.select(max(0.0, pause))]
        found = [(worker, os.read(worker.output, 65536)) for worker in ready]
        now = time.monotonic()
        return found + [(worker, b"") for worker in busy if worker not in ready and worker.deadline <= now]

    def _send(self, worker: _Worker, tasks: list[int], pairs: Sequence[tuple[str, str]], todo: deque[int]) -> None:
        # JSON in ASCII can carry null bytes and half surrogate pairs, which text encodings of a pipe cannot.
        line = json.dumps([pairs[task] for task in tasks]).encode() + b"\n"
        worker.deadline = self._deadline()
        try:
            worker.input.write(line)
            worker.input.flush()
            worker.tasks.extend(tasks)
        except OSError:
            # It died while idle, so no answer caused it.
            todo.extendleft(reversed(tasks))
            self._bury(worker, todo)

    def _bury(self, worker: _Worker, todo: deque[int]) -> None:
        """Removes a dead worker. The answer it was judging stays `None`; those after it go back to the queue."""
        worker.kill()
        self._workers.remove(worker)
        if worker.tasks:
            worker.tasks.popleft()
            todo.extendleft(reversed(worker.tasks))

    def close(self) -> None:
        """Ends the child processes. A later `judge` starts new ones."""
        with self._lock:
            _kill_all(self._workers, self._owner)


@lru_cache(maxsize=1024)
def _parse(answer: str):
    """A normalised answer as a SymPy object, or `None` if math-verify cannot read all of it."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    if "\\boxed" in answer or "\\fbox" in answer:  # of "1 \boxed{2}", math-verify would read the box only
        return None
    # `units` would drop trailing variables; "first_match" without a fallback keeps math-verify from settling for the
    # first fraction of an answer that it cannot parse as a whole.
    target = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
        ),
    )
    found = parse(
        f"\\boxed{{{answer}}}",
        extraction_config=[target],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  (None is what switches it off)
    )
    return found[0] if found else None


def _is_near(answer, gold) -> bool:
    """
    Rejects what math-verify takes for equal only because both are small: it compares floats to six decimals and drops
    differences below 1e-15, so that 1e-20 equals 1e-21, and 2**-100 equals 1/2 + 2**-100. Three digits have to agree.
    """
    from sympy import Expr, nan, zoo

    for one in (answer, gold):
        if one.has(zoo, nan):  # a misread formula; two of them can look alike
            return False
    if not all(isinstance(one, Expr) and not one.free_symbols for one in (answer, gold)):
        return True
    size, mine = abs(gold.evalf(15)), abs(answer.evalf(15))
    if not all(one.is_number and one.is_comparable for one in (size, mine)):
        return True
    difference = abs((answer - gold).evalf(30))
    return not difference.is_comparable or bool(difference <= size / 1000)


def judge(answer: str, gold: str) -> bool:
    """Whether a normalised answer equals a normalised gold answer by math-verify; `False` if it cannot read one of them."""
    from math_verify import verify

    mine, other = _parse(answer), _parse(gold)
    if mine is None or other is None or not _is_near(mine, other):
        return False
    return bool(verify(other, mine, allow_set_relation_comp=True, timeout_seconds=None))


def main(time_limit_s: float) -> None:
    """The child: reads lines of JSON pairs from standard input, writes one byte per pair to standard output."""
    import logging
    import signal

    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process handles Ctrl-C
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off
    judge("\\frac{1}{2}", "\\frac{2}{4}")  # loads SymPy and the grammar's tables before the timer is set
    _limit_memory()
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    # Libraries may print, but only verdicts belong in the pipe.
    output = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.write(output, _READY)
    for line in sys.stdin.buffer:
        for answer, gold in json.loads(line):
            signal.setitimer(signal.ITIMER_PROF, time_limit_s)
            try:
                verdict = judge(answer, gold)
            except Exception:  # whatever a parser raises, the answer is not right
                verdict = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(output, _RIGHT if verdict else _WRONG)


def _limit_memory() -> None:
    import resource

    # Without /proc (macOS), or with a lower limit already, the time limit still holds
    with suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, used + EXTRA_MEMORY))


def _follow(parent: int) -> None:
    # The end of standard input is not enough: a fork of the calling process may hold the pipe open. If one long operation
    # in C keeps this thread from running, the timer ends the orphan.
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)
