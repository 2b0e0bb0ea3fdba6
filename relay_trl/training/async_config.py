"""What an asynchronous run can be told: TRL's `AsyncGRPOConfig` and the relay's fields beside it.

Owns what asynchronous training does not have, and says so where it is asked for.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, cast

from trl import ModelConfig

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # also in the rollouts' process; TRL is pinned
from trl.experimental.async_grpo import AsyncGRPOConfig

from ..cli.parser import model_kwargs
from ..engines.precision import warn_of_bfloat16
from ..options import given_options
from ..redaction import RedactedArguments, redact
from .checkpoints import find_checkpoint
from .config import FinishFields, RelayFields, RelayGRPOConfig
from .trl_options import BOTH, GRPO, refuse_unused

_LOSS = "the loss is TRL's clipped one, a mean over tokens without a KL term"
_WORKER = "relays draw the rollouts, and max_inflight_tasks bounds those that are under way or wait"
_WATCH = "relay-trl watch shows the rollouts"
_GPU = "vllm_server_base_url vllm_server_timeout request_timeout weight_sync_timeout".split()

REFUSED = {
    **BOTH,
    **{name: reason for name, reason in GRPO.items() if name in {item.name for item in fields(AsyncGRPOConfig)}},
    "extra_rewards": "the group reward alone is counted",
    "call_entropy_coef": _LOSS,
    "dynamic_sampling": "every group that is drawn is learnt from",
    "max_draws": "there is no dynamic sampling",
    "profile_steps": "the figures under perf/ in the log say where the time of a step goes",
    "eval_strategy": "it does not evaluate; recipes/evaluate.py evaluates its checkpoints",
    "fork_threshold_tokens": _WORKER,
    "queue_maxsize": _WORKER,
    "log_completions": _WATCH,
    "num_completions_to_print": _WATCH,
    "use_liger_kernel": _LOSS,
}
"""Options that are refused unless they are left at their default, with the reason."""


@dataclass(repr=False)
class RelayAsyncGRPOConfig(RedactedArguments, FinishFields, RelayFields, AsyncGRPOConfig):
    """[`~trl.experimental.async_grpo.AsyncGRPOConfig`] and the relay's fields; see [`~relay_trl.training.config.RelayFields`].

    The loss is TRL's: clipped, a mean over the tokens of a micro-batch, against the log-probabilities under which each token was
    drawn. There is no KL term and no other loss type.

    Args:
        scale_rewards (`str`, defaults to `"group"`): `group` divides advantages by the spread of their group, `none` does not.
        token_budget (`int`, defaults to `0`): most tokens of a row of samples; 0 packs `per_device_train_batch_size` of them.
        max_inflight_tasks (`int`, defaults to `-1`): rollouts that are under way or wait to be learnt from, at most; -1 is those of
            `max_staleness - 1` optimizer steps (at least one), which leaves a step for those that take longer than others.

    Raises:
        ValueError: an option that asynchronous training does not have, or one out of its range.
    """

    _VALID_DICT_FIELDS = [*AsyncGRPOConfig._VALID_DICT_FIELDS, "reward_kwargs"]

    scale_rewards: str = "group"
    token_budget: int | None = 0

    def __post_init__(self):
        refuse_unused(self, REFUSED, [])
        given = given_options(self)
        super().__post_init__()
        self.check_relay()
        if self.scale_rewards not in ("group", "none"):
            raise ValueError(
                f"scale_rewards is {self.scale_rewards!r}; in asynchronous training it must be group or none, as a group is handed on "
                "before the others of its batch are known."
            )
        if self.deepspeed_plugin is not None:
            raise ValueError("DeepSpeed is on, which TRL's asynchronous trainer has not; launch with DDP or FSDP 2.")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; rollouts of one problem must differ, so it must be above 0."
            )
        least = {"max_staleness": 0, "num_generations": 2, "weight_sync_steps": 1, "token_budget": 0}
        for name, value in least.items():
            if (getattr(self, name) or 0) < value:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {value}.")
        if self.max_inflight_tasks == -1:
            self.max_inflight_tasks = max(1, self.max_staleness - 1) * self.samples_per_step
        if self.max_inflight_tasks < self.samples_per_step:
            raise ValueError(
                f"max_inflight_tasks is {self.max_inflight_tasks}, but an optimizer step learns from {self.samples_per_step} rollouts; it "
                "must be at least that, or -1."
            )
        if self.device.type == "cpu":
            for name in _GPU:
                if name in given:
                    raise ValueError(
                        f"{name} is {given[name]!r}, but without a GPU the student of the rollouts is no server; leave it out."
                    )
            if self.bf16:
                warn_of_bfloat16("The training", "bf16: false, for float32")
        elif self.teacher and "://" not in self.teacher:
            raise ValueError(
                f"teacher is {self.teacher!r}, which would be computed on the CPU beside a training on a GPU; serve it, and give its URL."
            )
        self.resume_from_checkpoint = find_checkpoint(self.resume_from_checkpoint, self.output_dir)

    @classmethod
    def check_unknown(cls, names: Iterable[str]):
        """Refuses options that only synchronous training has.

        Raises:
            ValueError: naming the first.
        """
        for name in names:
            if name in {item.name for item in fields(RelayGRPOConfig)}:
                raise ValueError(
                    f"{name}: asynchronous training has no such option ({_LOSS}, and rollouts are drawn without pause); leave it out, "
                    "or train with recipes/grpo_relay.py."
                )

    @property
    def samples_per_step(self) -> int:
        """Rollouts that an optimizer step learns from."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size


@dataclass
class StudentConfig(ModelConfig):
    """[`~trl.ModelConfig`] without `dtype`, which TRL's asynchronous config has itself."""

    dtype: str | None = field(default=None, init=False)


def model_options(model_config: StudentConfig, config: RelayAsyncGRPOConfig) -> dict[str, Any]:
    """What `from_pretrained` takes for the student.

    Raises:
        ValueError: an option that asynchronous training does not have.
    """
    given = redact(given_options(model_config))
    for name in ("attn_implementation", "load_in_4bit", "load_in_8bit"):
        if name in given:
            raise ValueError(
                f"{name} is {given[name]!r}; asynchronous training packs rows, which has an attention of its own, and trains no quantized "
                "student. Leave it out."
            )
    own = cast(dict[str, Any], config.model_init_kwargs or {})  # TRL reads a string as a mapping
    options = {**model_kwargs(model_config, config), **own}
    del options["attn_implementation"]
    return {**options, "dtype": config.dtype}
