"""Progress of a stage as lines in a log, for runs without a terminal (SLURM, nohup, CI).

Owns these lines, which are printed every 30 seconds. On a terminal the stages show their own progress bars.
"""

import os
import sys
import threading
import time

from tqdm import tqdm

EVERY = "RELAY_TRL_PROGRESS_S"
"""Environment variable: seconds between two lines (default: 30)."""

MARK = "progress: "
"""The beginning of such a line."""


def is_watched() -> bool:
    """Whether there is a terminal that can show a progress bar."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class Lines:
    """Prints the progress of a stage every 30 seconds until it is closed, however long one item takes. A context manager.

    Args:
        what (`str`): the items, such as `answers`.
        total (`int`, *optional*): number of items.
        done (`int`, defaults to `0`): items that an earlier run has done.
        is_shown (`bool`, *optional*): `None` prints if there is no terminal for a bar.
    """

    def __init__(self, what: str, total: int | None, done: int = 0, is_shown: bool | None = None):
        self.what, self.total, self.done, self._first = what, total, done, done
        self.note = ""
        self._begun = time.monotonic()
        self._ended = threading.Event()
        if not is_watched() if is_shown is None else is_shown:
            threading.Thread(target=self._keep_printing, daemon=True).start()

    def advance(self, count: int = 1, note: str | None = None):
        """Counts finished items. `note` is a text about all of them, such as their accuracy."""
        self.done += count
        self.note = self.note if note is None else note

    def text(self) -> str:
        """The line: items done, total, rate, time left, note."""
        spent, new = time.monotonic() - self._begun, self.done - self._first
        parts = [f"{self.done} {self.what}" if self.total is None else f"{self.done} of {self.total} {self.what}"]
        if new and spent > 0:
            rate = new / spent
            parts.append(
                f"{rate:.3g} a second"
                if rate >= 1
                else f"{60 * rate:.3g} a minute"
                if rate >= 1 / 60
                else f"{1 / rate:.0f} s each"
            )
            if self.total is not None:
                left = max(0, self.total - self.done) / rate
                parts.append(
                    f"{left:.0f} s left"
                    if left < 120
                    else f"{left / 60:.0f} min left"
                    if left < 7200
                    else f"{left / 3600:.1f} h left"
                )
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def _keep_printing(self):
        while not self._ended.wait(float(os.environ.get(EVERY, 30))):
            print(f"{MARK}{self.text()}", flush=True)

    def close(self):
        """Ends the lines."""
        self._ended.set()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exception):
        self.close()


class Bar(Lines):
    """A bar where it can be seen, and lines elsewhere; the arguments are those of [`Lines`]."""

    def __init__(self, what: str, total: int | None = None, done: int = 0):
        super().__init__(what, total, done)
        self._bar = tqdm(total=total, initial=done, desc=what, disable=not is_watched())

    def advance(self, count: int = 1, note: str | None = None):
        super().advance(count, note)
        self._bar.update(count)

    def write(self, line: str):
        """A line of its own, above the bar."""
        tqdm.write(line)

    def close(self):
        super().close()
        self._bar.close()
