"""Measures where the time of a GRPO step goes: `--profile_steps N`. Does not change what is computed.

Measures the trainer's own methods, and those of TRL for which TRL has no event. The latter are in `_TRL_SECTIONS`;
tests/training/test_trl_contract.py checks each. Can go when TRL reports its profiling contexts to a callback.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

STUDENT = "student engine"
TEACHER = "teacher engine"
WAITING = "waiting for a server"
RELAY = "relay logic"
GRADING = "grading"
TRAINING = "forward, backward, optimizer"
SYNC = "weight sync"
REST = "rest"
SECTIONS = (STUDENT, TEACHER, WAITING, RELAY, GRADING, TRAINING, SYNC, REST)

_TRL_SECTIONS = {
    "training_step": TRAINING,
    "_prepare_inputs": REST,
    "_get_per_token_logps_and_entropies": TRAINING,
}


class SectionTimer:
    """Seconds per section. A section inside another one stops the clock of the outer one."""

    def __init__(self):
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.is_running = False
        self._open: list[str] = []
        self._since = 0.0

    def start(self):
        """Starts the clock. Time outside a section counts as `REST`."""
        self.is_running, self._open, self._since = True, [REST], time.perf_counter()

    def stop(self):
        """Stops the clock."""
        self._turn()
        self.is_running = False

    def _turn(self):
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Counts the time inside the block as `name`."""
        if not self.is_running:
            yield
            return
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            if self.is_running:
                self._turn()
                self._open.pop()

    def time(self, owner: Any, method: str, name: str | Callable[..., str]):
        """Counts the time of every call of `owner.method` as `name`, which may depend on the call's arguments."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args, **kwargs):
            with self.section(name if isinstance(name, str) else name(*args, **kwargs)):
                return original(*args, **kwargs)

        setattr(owner, method, timed)


class StepProfiler(TrainerCallback):
    """Measures some steps of a GRPO trainer, prints a table, and writes it to `profile.json` in the output folder.

    The first step is left out: it builds engines, fills caches and starts the grader's processes.

    Args:
        trainer ([`~trl.GRPOTrainer`]): ours, or TRL's own for comparison.
        steps (`int`): how many steps to measure.
        student (`Any`, *optional*): the student's engine; `None` takes the trainer's.
    """

    def __init__(self, trainer: Trainer, steps: int, student: Any = None):
        self.timer = SectionTimer()
        self._trainer: Any = trainer
        self._student = student
        self._left = steps
        self._steps = 0
        self._training = None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 or not self._left:
            return
        if not self._steps:
            self._install()
        self.timer.start()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.timer.is_running:
            self._training = self.timer.section(TRAINING)
            self._training.__enter__()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self._training is not None:
            self._training.__exit__(None, None, None)
            self._training = None

    def on_step_end(self, args, state, control, **kwargs):
        if not self.timer.is_running:
            return
        self.timer.stop()
        self._steps += 1
        self._left -= 1
        if not self._left and state.is_world_process_zero:
            self._report(Path(args.output_dir))

    def _install(self):
        trainer, timer = self._trainer, self.timer
        for method, section in _TRL_SECTIONS.items():
            timer.time(trainer, method, section)
        generation = getattr(trainer, "vllm_generation", None)
        if generation is not None:
            timer.time(generation, "sync_weights", SYNC)
        if hasattr(trainer, "grader"):
            timer.time(trainer.grader, "grade", GRADING)
        rollouts = getattr(trainer, "rollouts", None)
        if rollouts is None:  # TRL's own trainer
            timer.time(trainer, "_generate_single_turn", STUDENT)
            return
        timer.time(rollouts, "wait", RELAY)
        # If the event loop waits, only a server's reply is missing.
        timer.time(rollouts.selector, "select", lambda timeout=None: RELAY if timeout == 0 else WAITING)
        student = self._student or trainer._engines.get("student")
        for engine, section in ((student, STUDENT), (rollouts.teacher, TEACHER)):
            if hasattr(engine, "_step"):
                timer.time(engine, "_step", section)

    def _report(self, folder: Path):
        per_step = {name: seconds / self._steps for name, seconds in self.timer.seconds.items()}
        whole = sum(per_step.values())
        folder.mkdir(parents=True, exist_ok=True)
        profile = {"steps": self._steps, "step_s": whole, "sections_s": per_step}
        (folder / "profile.json").write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
        lines = [f"Where the time of a step goes (mean of {self._steps} steps after the first)"]
        lines += [f"  {name:<30} {s:9.4f} s  {s / whole:6.1%}" for name, s in per_step.items()]
        print("\n".join([*lines, f"  {'step':<30} {whole:9.4f} s"]), flush=True)
