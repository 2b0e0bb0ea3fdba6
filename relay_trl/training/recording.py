"""What a GRPO run leaves on disk for whoever looks at it while it trains: when the files begin, and the figures in them.

The files are `rollouts.py`'s; the rollouts themselves are handed to it by the trainer, which knows their advantages.
"""

from collections.abc import Callable

from transformers import TrainerCallback

from ..record import RelayRecord
from ..rollouts import RolloutWriter

_SHOWN = ("student_base", "teacher", "training_set", "reward", "seed", "max_calls", "max_completion_length", "stage")


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
        # An evaluation without a training is none of the run's figures.
        if self._is_training and state.is_world_process_zero and logs:
            self.writer.log(state.global_step, logs)

    def on_train_end(self, args, state, control, **kwargs):
        self._is_training = False
