"""What an asynchronous run can be told: TRL's `AsyncGRPOConfig` and the relay's fields beside it.

Owns what asynchronous training does not have, and says so where it is asked for.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from trl.experimental.async_grpo import AsyncGRPOConfig

from ..redaction import RedactedArguments
from .checkpoints import find_checkpoint
from .config import FinishFields, RelayFields

_LACKING = ("beta", "loss_type", "num_iterations", "scale_rewards", "importance_sampling_level", "steps_per_generation")
_NOT_HERE = ("extra_rewards", "call_entropy_coef", "dynamic_sampling", "profile_steps", "max_tool_calling_iterations")
_NOT_HERE += ("fork_threshold_tokens", "log_completions", "num_completions_to_print", "request_timeout")


def _lacking() -> Any:
    return field(default=None, metadata={"help": "Not in asynchronous training: only recipes/grpo_relay.py has it."})


@dataclass(repr=False)
class RelayAsyncGRPOConfig(RedactedArguments, FinishFields, RelayFields, AsyncGRPOConfig):
    """[`~trl.experimental.async_grpo.AsyncGRPOConfig`] and the relay's fields; see [`~relay_trl.training.config.RelayFields`].

    The loss is TRL's: clipped, a mean over the tokens of a micro-batch, against the logprobs under which each token was
    drawn. There is no KL term and no other loss type.

    Args:
        token_budget (`int`, defaults to `0`): most tokens of a row of samples; 0 packs `per_device_train_batch_size` of them.
        beta, loss_type, num_iterations, scale_rewards, importance_sampling_level, steps_per_generation (*optional*): there
            is no such thing here; to set one is refused.

    Raises:
        ValueError: an option that asynchronous training does not have, or a `max_staleness` below 0.
    """

    _VALID_DICT_FIELDS = [*AsyncGRPOConfig._VALID_DICT_FIELDS, "reward_kwargs"]

    token_budget: int | None = field(default=0, metadata={"help": "Most tokens of a row of samples; 0 for no limit."})
    beta: str | None = _lacking()
    loss_type: str | None = _lacking()
    num_iterations: str | None = _lacking()
    scale_rewards: str | None = _lacking()
    importance_sampling_level: str | None = _lacking()
    steps_per_generation: str | None = _lacking()

    def __post_init__(self):
        super().__post_init__()
        self.check_relay()
        defaults = {one.name: one.default for one in fields(self)}
        asked = [name for name in _LACKING if getattr(self, name) is not None]
        asked += [name for name in _NOT_HERE if getattr(self, name) != defaults[name]]
        asked += ["eval_strategy"] if self.eval_strategy != "no" else []
        if asked:
            raise ValueError(
                f"{', '.join(asked)}: asynchronous training has no such option; leave it out, or train with "
                "recipes/grpo_relay.py. Checkpoints are evaluated by recipes/evaluate.py."
            )
        if self.max_staleness < 0:
            raise ValueError(
                f"max_staleness is {self.max_staleness}; it must be 0 (the newest weights only) or more updates of the weights."
            )
        if self.num_generations < 2:
            raise ValueError(f"num_generations is {self.num_generations}; a group needs at least 2 rollouts.")
        self.resume_from_checkpoint = find_checkpoint(self.resume_from_checkpoint, self.output_dir)

    @property
    def samples_per_step(self) -> int:
        """Rollouts that an optimizer step learns from."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
