"""The progress bar of a GRPO run: accuracy, rho and calls live, instead of forty numbers a step.

The forty numbers are in trainer_state.json and wherever `report_to` sends them.
"""

from transformers import ProgressCallback

_SHOWN = {"accuracy": "relay/accuracy", "rho": "relay/teacher_share", "calls": "relay/call_rate", "reward": "reward"}


class RelayProgressCallback(ProgressCallback):
    """[`~transformers.ProgressCallback`] that shows the relay's figures beside the bar, and a line per evaluation."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        values = {name: logs.get(key) for name, key in _SHOWN.items()}
        if values["accuracy"] is not None:
            self.training_bar.set_postfix({k: f"{v:.2f}" for k, v in values.items() if v is not None}, refresh=False)
        elif logs.get("eval_relay/accuracy") is not None:
            self.training_bar.write(
                f"step {state.global_step}: validation accuracy {logs['eval_relay/accuracy']:.3f}, "
                f"teacher share {logs['eval_relay/teacher_share']:.3f}, call rate {logs['eval_relay/call_rate']:.2f}"
            )
        elif "train_runtime" in logs:
            self.training_bar.write(f"{state.global_step} steps in {logs['train_runtime']:.0f} s")
