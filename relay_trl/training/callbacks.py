"""Callbacks of a training: rollouts and figures on disk, the progress bar, the limit on waiting.

Owns when the files of rollouts begin and which figures stand beside the progress bar. `rollout_files.py` owns the files; the
trainer passes the rollouts to them, because it knows their advantages.
"""

from collections.abc import Callable

from torch import distributed
from transformers import ProgressCallback, TrainerCallback

from ..cli.launch import limit_waiting
from ..cli.progress import Lines
from ..relay_config import RelayRecord
from ..rollout_files import RolloutWriter

_SHOWN = ("student_base", "teacher", "training_set", "reward", "seed", "max_calls", "max_completion_length", "stage")
_BAR = {"accuracy": "relay/accuracy", "rho": "relay/teacher_share", "calls": "relay/call_rate", "reward": "reward"}


class RecordingCallback(TrainerCallback):
    """Begins the files of rollouts with the training, and adds the figures of every log.

    Args:
        writer ([`RolloutWriter`]): of this process.
        about (`Callable`): gives the [`RelayRecord`] of the run.
    """

    def __init__(self, writer: RolloutWriter, about: Callable[[], RelayRecord]):
        self.writer = writer
        self.about = about
        self._is_training = False

    def on_train_begin(self, args, state, control, **kwargs):
        record = self.about()
        run = {name: getattr(record, name) for name in _SHOWN}
        self.writer.start(state.global_step, {**run, "max_steps": state.max_steps, "name": args.run_name})
        self._is_training = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The figures of an evaluation without a training do not belong to the run.
        if self._is_training and state.is_world_process_zero and logs:
            self.writer.log(state.global_step, logs)

    def on_train_end(self, args, state, control, **kwargs):
        self._is_training = False


class RelayProgressCallback(ProgressCallback):
    """[`~transformers.ProgressCallback`] that shows the relay's figures beside the bar, and one line for each evaluation."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        values = {name: logs.get(key) for name, key in _BAR.items()}
        if values["accuracy"] is not None:
            self.training_bar.set_postfix({k: f"{v:.2f}" for k, v in values.items() if v is not None}, refresh=False)
        elif logs.get("eval_relay/accuracy") is not None:
            self.training_bar.write(
                f"step {state.global_step}: validation accuracy {logs['eval_relay/accuracy']:.3f}, "
                f"teacher share {logs['eval_relay/teacher_share']:.3f}, call rate {logs['eval_relay/call_rate']:.2f}"
            )
        elif "train_runtime" in logs:
            self.training_bar.write(f"{state.global_step} steps in {logs['train_runtime']:.0f} s")


class ProgressLines(TrainerCallback):
    """Prints how far the training is, every 30 seconds, where no bar can be seen."""

    _lines: Lines | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._lines = Lines("steps", state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self._lines is not None:
            self._lines.advance()

    def on_log(self, args, state, control, logs=None, **kwargs):
        names = {**_BAR, "loss": "loss"} if logs and "relay/accuracy" not in logs else _BAR
        shown = [
            f"{name} {logs[key]:.3g}" for name, key in names.items() if logs and isinstance(logs.get(key), int | float)
        ]
        if self._lines is not None and shown:
            self._lines.note = ", ".join(shown)

    def on_train_end(self, args, state, control, **kwargs):
        if self._lines is not None:
            self._lines.close()


class LimitedWaiting(TrainerCallback):
    """Sets the limit on waiting for process groups that the training makes itself, as DeepSpeed does."""

    def on_train_begin(self, args, state, control, **kwargs):
        if distributed.is_available() and distributed.is_initialized():
            limit_waiting(args.ddp_timeout)
