"""The options of a training: TRL's configs with the relay's fields, checked before any model is loaded.

Owns names, defaults and limits of options. Models and data have no default; everything else has one that works.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, SFTConfig

from ..engines.base import Sampling
from ..engines.precision import warn_of_bfloat16
from ..grading.judge import JudgeFields
from ..options import PromptFields, TeacherFields, broken_groups
from ..redaction import RedactedArguments
from ..relay import RelayRules
from ..rewards import check_options, load_function, load_reward
from .checkpoints import find_checkpoint
from .guard import LIMITS
from .trl_options import GRPO, GRPO_NEEDS, SFT, SFT_NEEDS, check_words, refuse_unused


@dataclass
class RelayFields(JudgeFields, TeacherFields, PromptFields):
    """The rules of the relay, beside [`~relay_trl.options.TeacherFields`] and [`~relay_trl.options.PromptFields`].

    Args:
        teacher_temperature (`float`, defaults to `0.7`): sampling temperature of the teacher.
        max_teacher_failures (`float`, defaults to `0.1`): share of a step's rollouts that may lose their teacher before the
            run stops; an evaluation stops it at once. 1 switches this and each of the next three off.
        max_student_failures (`float`, defaults to `0.1`): likewise for rollouts whose student's engine failed.
        max_malformed (`float`, defaults to `0.5`): share of a step's rollouts that may have a malformed call.
        max_truncated (`float`, defaults to `0.95`): share of a step's rollouts that may be cut at the completion budget.
        max_zero_variance (`float`, defaults to `0.99`): share of a step's groups that may have one reward for all.
        teacher_failure_steps (`int`, defaults to `1`): steps in a row with more failures that stop the run.
        guard_steps (`int`, defaults to `20`): steps in a row past one of the other three limits that stop the run.
        max_calls (`int`, defaults to `3`): answered calls per rollout.
        max_call_tokens (`int`, *optional*): most tokens of one answer.
        fixed_call_tokens (`int`, *optional*): every call gets this many.
        is_ended_by_teacher (`bool`, defaults to `True`): whether a teacher that ends its answer ends the rollout.
        reward (`str`, defaults to `"difficulty_aware"`): `difficulty_aware`, `simple`, `accuracy` or a dotted path.
        reward_kwargs (`dict`, *optional*): options of the reward, such as the `price` of a teacher's share.
        rho_of (`str`, defaults to `"answer"`): the length that the reward's rho is a share of: the rollout's own `answer`, as in
            the paper, or the median answer of its `group`, so that a longer answer makes no teacher token cheaper.
        extra_rewards (`list[str]`, *optional*): dotted paths of TRL-style per-rollout rewards beside it; `reward_weights`
            weighs them all, the group reward first.
        dynamic_sampling (`bool`, defaults to `False`): whether a group whose rollouts all earn the same group reward gives its
            place to another prompt. The paper has none.
        max_draws (`int`, defaults to `4`): groups drawn at most for one place, with `dynamic_sampling`.
        call_entropy_coef (`float`, defaults to `0.0`): weight of a bonus on the entropy of n's digits, mean over those of a
            micro-batch, which keeps n from settling early; the paper has none.
        grading_time_limit_s (`float`, defaults to `5.0`): seconds for one answer.
        judge, judge_model, judge_sample: see [`~relay_trl.grading.judge.JudgeFields`]; what it says is counted in the metrics.
        judge_reward (`bool`, defaults to `False`): whether an answer that the rules call wrong and the judge right is trained on
            as a right one.
        rollouts_max_mb (`int`, defaults to `512`): MiB of rollouts that each process keeps under `output_dir/_rollouts`, for
            `relay-trl watch`; the oldest go first. 0 writes none.
        profile_steps (`int`, defaults to `0`): time so many steps after the first and print where their time goes.
    """

    teacher_temperature: float = 0.7
    max_teacher_failures: float = 0.1
    max_student_failures: float = 0.1
    max_malformed: float = 0.5
    max_truncated: float = 0.95
    max_zero_variance: float = 0.99
    teacher_failure_steps: int = 1
    guard_steps: int = 20
    max_calls: int = 3
    max_call_tokens: int | None = None
    fixed_call_tokens: int | None = None
    is_ended_by_teacher: bool = True
    reward: str = "difficulty_aware"
    reward_kwargs: dict[str, Any] | str | None = None
    rho_of: str = "answer"
    extra_rewards: list[str] | None = None
    dynamic_sampling: bool = False
    max_draws: int = 4
    call_entropy_coef: float = 0.0
    grading_time_limit_s: float = 5.0
    judge_reward: bool = False
    rollouts_max_mb: int = 512
    profile_steps: int = 0

    def check_relay(self):
        """Refuses limits, rewards and teachers that cannot work.

        Raises:
            ValueError: with the name of the field.
        """
        self.check_prompts()
        self.relay_config()
        check_options(load_reward(self.reward), self.reward, self.reward_kwargs or {})
        if self.rho_of not in ("answer", "group"):
            raise ValueError(f"rho_of is {self.rho_of!r}; it must be answer (the paper's) or group.")
        for path in self.extra_rewards or ():
            load_function(path, "extra_rewards")
        for name in [limit.option for limit in LIMITS.values()]:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share between 0 and 1 (1 switches it off).")
        for name in [limit.steps_option for limit in LIMITS.values()]:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1 step.")
        if self.max_draws < 2:
            raise ValueError(f"max_draws is {self.max_draws}; it must be at least 2, or no group could be drawn again.")
        if self.profile_steps < 0:
            raise ValueError(f"profile_steps is {self.profile_steps}; it is a number of steps, 0 for none.")
        if self.rollouts_max_mb < 0:
            raise ValueError(f"rollouts_max_mb is {self.rollouts_max_mb}; give the MiB to keep, or 0 for no rollouts.")
        if self.call_entropy_coef < 0:
            raise ValueError(f"call_entropy_coef is {self.call_entropy_coef}; it must be 0 (no bonus) or more.")
        if self.judge_reward and self.judge is None:
            raise ValueError("judge_reward is true, but there is no judge; set judge to a model or a server's URL.")
        self.check_judge()
        self.check_teacher()

    def relay_config(self) -> RelayRules:
        """The rules of this run's rollouts."""
        return RelayRules(
            max_completion_length=self.max_completion_length,
            syntax=self.syntax,
            max_calls=self.max_calls,
            max_call_tokens=self.max_call_tokens,
            fixed_call_tokens=self.fixed_call_tokens,
            is_ended_by_teacher=self.is_ended_by_teacher,
            student=Sampling(
                self.temperature,
                self.top_p,
                max(self.top_k, 0),
                self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty,
            ),
            teacher=Sampling(self.teacher_temperature, self.teacher_top_p),
        )


@dataclass
class FinishFields:
    """What is written at the end of a training.

    Args:
        merge_adapter (`bool`, defaults to `False`): with `use_peft`, write the student with its adapter merged into
            `output_dir` instead of the adapter; checkpoints keep adapters.
    """

    merge_adapter: bool = False


@dataclass(repr=False)  # a generated repr would show what RedactedArguments hides
class RelayGRPOConfig(RedactedArguments, FinishFields, RelayFields, GRPOConfig):
    """[`~trl.GRPOConfig`] and the relay's fields; see [`RelayFields`] and [`PromptFields`].

    Options of TRL that would have no effect are refused, see docs/training.md.

    Args:
        vllm_kwargs (`dict`, *optional*): further arguments of the colocated `vllm.LLM`, over TRL's own. Without a GPU
            the engine is eager and computes in the precision of the trainer, where vLLM would halve float32.
        vllm_weights_folder (`str`, *optional*): with `vllm_mode: server`, a folder that the server sees too, through which it gets
            its weights; `None` sends them over NCCL, which needs GPUs on both sides.
        student_timeout_s (`float`, defaults to `120`): seconds for an answer of the student's server.
        student_retries (`int`, defaults to `4`): retries of a failed request to it.
        student_concurrency (`int`, defaults to `64`): requests to it under way at once, per process.
        vllm_importance_sampling_mode (`str`, defaults to `"token_truncate"`): TRL's own default, `sequence_mask`, leaves
            little of a draw of thousands of tokens; see docs/training.md.
        metric_for_best_model: picks the best checkpoint, on the validation rows only.
    """

    # A dict that the command line and YAML give as text is parsed by TrainingArguments for the fields named here.
    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "reward_kwargs", "vllm_kwargs"]

    vllm_kwargs: dict[str, Any] | str | None = None
    vllm_weights_folder: str | None = None
    student_timeout_s: float = 120.0
    student_retries: int = 4
    student_concurrency: int = 64
    vllm_importance_sampling_mode: str = "token_truncate"
    metric_for_best_model: str | None = "eval_relay/accuracy"

    def __post_init__(self):
        refuse_unused(self, GRPO, GRPO_NEEDS)
        self._check_groups()
        check_words(self)
        super().__post_init__()
        self.check_relay()
        if self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                f"metric_for_best_model is {self.metric_for_best_model!r}, but an evaluation rolls out and grades only; name "
                "what it reports, such as eval_relay/accuracy."
            )
        if self.use_vllm and importlib.util.find_spec("vllm") is None:
            raise ImportError(
                "use_vllm is true, but vLLM is not installed. Install it with `pip install relay_trl[vllm]`, or set "
                "use_vllm: false to generate with transformers."
            )
        if not self.use_vllm and not self.ds3_gather_for_generation:
            raise ValueError(
                "ds3_gather_for_generation is false without use_vllm; ranks ask the sharded model as often as their "
                "rollouts need, which differs, so they would wait for one another for ever. Set it to true, or use_vllm."
            )
        if self.use_vllm and self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size > 1:
            raise ValueError(
                f"vllm_tensor_parallel_size is {self.vllm_tensor_parallel_size} in colocate mode; ranks that share a "
                "student would have to wait for one another's teachers. Set it to 1, or serve the student with "
                "vllm_mode: server."
            )
        self.check_student_server()
        self._check_saves()
        self.resume_from_checkpoint = find_checkpoint(self.resume_from_checkpoint, self.output_dir)
        if self.bf16 and self.device.type == "cpu":
            warn_of_bfloat16("The training", "bf16: false, for float32")

    def _check_groups(self):
        """Refuses a draw of rollouts that leaves a group incomplete."""
        if self.generation_batch_size is not None or not self.num_generations:
            return
        batch, processes = self.per_device_train_batch_size, int(os.environ.get("WORLD_SIZE", "1"))
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        if said := broken_groups(batch, processes, steps, self.num_generations):
            step = self.num_generations // math.gcd(self.num_generations, processes * steps)
            below = batch // step * step
            nearest = f"{below} or {below + step}" if below else step
            raise ValueError(f"{said}; per_device_train_batch_size: {nearest} makes whole ones.")
        if self.dynamic_sampling and batch * steps % self.num_generations:
            raise ValueError(
                f"dynamic_sampling needs whole groups on each process, but it draws {batch * steps} rollouts in groups of "
                f"{self.num_generations}; make per_device_train_batch_size * steps_per_generation a multiple of that."
            )

    def check_student_server(self):
        """Refuses a student behind a server that could not be reached or given new weights."""
        if not self.use_vllm or self.vllm_mode != "server":
            return
        if self.vllm_server_base_url is None and self.vllm_server_host == "0.0.0.0":
            raise ValueError(
                "vllm_mode is server, but no server is named; set vllm_server_base_url, such as http://127.0.0.1:8000 (0.0.0.0 is "
                "an address to listen on)."
            )
        if not (self.vllm_server_base_url or "http://").startswith(("http://", "https://")):
            raise ValueError(f"vllm_server_base_url is {self.vllm_server_base_url!r}; it must begin with http.")
        if self.vllm_weights_folder is None and self.device.type == "cpu":
            raise ValueError(
                "vllm_mode is server, but there is no GPU here, which weights over NCCL need on both sides; set vllm_weights_folder "
                "to a folder that the server sees too, or vllm_mode: colocate."
            )
        for name, least in (("student_timeout_s", 1), ("student_retries", 0), ("student_concurrency", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def _check_saves(self):
        # TRL keeps a draw's rollouts in memory only, so a run cannot resume within a draw
        assert self.steps_per_generation  # TRL has set it
        passes = self.steps_per_generation * self.num_iterations
        steps = passes // math.gcd(passes, self.gradient_accumulation_steps)  # updates between two that end a draw
        if steps == 1:
            return
        serve = (
            f"the rollouts of one draw serve {steps} optimizer steps, and a run can go on only from between two draws"
        )
        if self.enable_jit_checkpoint:
            raise ValueError(f"enable_jit_checkpoint saves at any step, but {serve}; leave it out.")
        name = {"steps": "save_steps", "best": "eval_steps"}.get(
            str(getattr(self.save_strategy, "value", self.save_strategy))
        )
        every = getattr(self, name) if name else None
        if every and (every < 1 or every % steps):
            raise ValueError(f"{name} is {every:g}, but {serve}; set {name} to a multiple of {steps}.")


@dataclass(repr=False)
class RelaySFTConfig(RedactedArguments, FinishFields, PromptFields, SFTConfig):
    """[`~trl.SFTConfig`] and the warm-up's fields.

    Args:
        warmup_data (`str`): the file that `build_warmup.py` wrote.
        add_call_tokens (`bool`, defaults to `False`): make the tags added special tokens of the student, as the builder
            was told.
        average_with_start (`bool`, defaults to `False`): the result has the mean of the weights before and after this training,
            for a student that has been trained on such rows already.
    """

    warmup_data: str = ""
    add_call_tokens: bool = False
    average_with_start: bool = False

    def __post_init__(self):
        refuse_unused(self, SFT, SFT_NEEDS)
        super().__post_init__()
        self.check_prompts()
        if not self.warmup_data:
            raise ValueError("warmup_data is not set; give it the .jsonl file that recipes/build_warmup.py wrote.")
        self.resume_from_checkpoint = find_checkpoint(self.resume_from_checkpoint, self.output_dir)
        if self.bf16 and self.device.type == "cpu":
            warn_of_bfloat16("The training", "bf16: false, for float32")
