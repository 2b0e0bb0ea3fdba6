"""GRPO over relayed rollouts: TRL's trainer with our rollouts, group rewards on the global batch, and our metrics.

Owns what happens between a batch of prompts and TRL's advantages. Uses methods of TRL's trainer that are not documented;
tests/training/test_trl_contract.py checks them.
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from transformers import ProgressCallback, TrainerCallback, set_seed
from trl import GRPOTrainer

from ..cli.launch import from_first_process
from ..engines.base import Engine
from ..prompts import PromptBuilder, RunPrompts
from ..redaction import mask_credentials
from ..rewards import load_function, load_reward
from ..rollout_files import Draw, RolloutWriter
from ..vocabulary import Vocabulary
from .batches import tight_forward, tighten, why_not_sorted
from .call_entropy import mean_entropy, number_mask
from .callbacks import LimitedWaiting, ProgressLines, RecordingCallback, RelayProgressCallback
from .columns import used_columns
from .config import RelayGRPOConfig
from .grading import RolloutGrader
from .groups import draw_with_spread, reward_column, score_groups
from .guard import Guard
from .lora import check_model_options, check_sharding, give_bias
from .metrics import GRADED, effective_share, facts, log_columns, summarize, weight_sums
from .profile import StepProfiler
from .rollouts import TRACE_COLUMN, EpochSampler, Rollouts, rollout_seed, to_trl
from .saving import RelaySavingMixin
from .student_engine import check_student_server, engine_options, student_engine
from .student_server import check_same_server, sync_through_server
from .trackers import TrackerTables
from .vllm_weights import sync_weights_on_cpu, vllm_names

logger = logging.getLogger(__name__)

# TRL warns that this may change. It is pinned, and tests/training/test_trl_contract.py checks what is used of it.
warnings.filterwarnings("ignore", message="You are using 'rollout_func'")


class RelayGRPOTrainer(RelaySavingMixin, GRPOTrainer):
    """[`~trl.GRPOTrainer`] whose rollouts may call a teacher.

    The rewards of a group are computed when all rollouts of the global batch are known, so they do not depend on how a group
    is split over processes and micro-batches. A rollout whose teacher failed is in no group, in no gradient, and in no metric
    except `relay/teacher_failures`.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): the student.
        args ([`RelayGRPOConfig`]).
        train_dataset ([`~datasets.Dataset`]): columns `prompt` (the problem) and `answer` (the gold answer); of the others,
            those are used that a per-rollout reward names in its signature.
        eval_dataset ([`~datasets.Dataset`] or a `dict` of them, *optional*): validation rows with the same columns.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): the student's tokenizer.
        teacher ([`Engine`], *optional*): `None` trains the student alone. Without `args.teacher`, its name is recorded.
        prompts ([`~relay_trl.prompts.PromptBuilder`], *optional*): renders the problems; `None` does it as `args` say.
        extra_rewards (`list[Callable]`, *optional*): per-rollout rewards in TRL's style, beside the group reward and those
            in `args.extra_rewards`. They get the columns `relay_trace`, `relay_correct` and `relay_teacher_share`.
        callbacks, optimizers, peft_config, quantization_config: as [`~trl.GRPOTrainer`] takes them. Its `tools`,
            `environment_factory`, `rollout_func` and `reward_funcs` have no place here.

    Raises:
        ValueError: `args.teacher` without `teacher`, or a dataset that cannot be used.
        RuntimeError: a limit of `args`, such as `max_teacher_failures`, was passed for too many steps.
    """

    _name = "RelayGRPO"
    _tag_names = ["trl", "grpo", "relay-trl"]
    args: RelayGRPOConfig

    def __init__(
        self,
        model,
        args: RelayGRPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class=None,
        teacher: Engine | None = None,
        prompts: PromptBuilder | None = None,
        extra_rewards: list[Callable] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ):
        if teacher is None and args.teacher:
            raise ValueError(
                f"args.teacher is {mask_credentials(args.teacher)!r}, but no engine was given for it; pass "
                "teacher=load_engine(args.teacher, **args.teacher_options()), or leave args.teacher out."
            )
        args.teacher = args.teacher or (None if teacher is None else teacher.name)
        self.group_reward = partial(load_reward(args.reward), **(args.reward_kwargs or {}))
        named = [load_function(path, "extra_rewards") for path in args.extra_rewards or ()]
        own_rewards = self._own_rewards = [*named, *(extra_rewards or ())]
        self._engines: dict[str, Engine] = {}
        self._draw: Draw | None = None  # the last one
        self._entropies: torch.Tensor | None = None  # of the last forward pass
        check_sharding(peft_config, args)
        check_model_options(model, args, quantization_config)
        train_dataset = used_columns(train_dataset, own_rewards, "train_dataset")
        eval_dataset = eval_dataset and used_columns(eval_dataset, own_rewards, "eval_dataset")
        set_seed(args.seed)  # a new adapter is drawn before transformers sets the seed
        with engine_options(args, model):
            super().__init__(
                model=model,
                reward_funcs=[reward_column(args.reward), *own_rewards],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                rollout_func=self._roll_out,
                callbacks=list(callbacks) if callbacks else None,
                optimizers=optimizers,
                peft_config=peft_config,
                quantization_config=quantization_config,
            )
        give_bias(self.model)
        if self.use_vllm:
            vllm_names(self.vllm_generation)
        prompts = prompts or RunPrompts(self._tokenizer, teacher, **args.prompt_options())
        self.rollouts = Rollouts(prompts, args.relay_config(), teacher)
        self._vocabulary = Vocabulary(self._tokenizer)
        self.grader = RolloutGrader(args)
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.writer = RolloutWriter(args.output_dir, args.syntax, *ranks, max_mb=args.rollouts_max_mb)
        self.add_callback(LimitedWaiting)
        self.add_callback(ProgressLines)
        self.add_callback(RecordingCallback(self.writer, self.relay_record))
        if (args.steps_per_generation or 1) > 1 and (local := why_not_sorted(self)):
            logger.warning(f"{local} is a mean over each micro-batch, so rows of like length are not put together.")
        self.add_callback(TrackerTables(lambda: self.callback_handler.callbacks, lambda: self._draw, args.syntax))
        self.guard = Guard(args)
        self.add_callback(self.guard)
        if args.profile_steps:
            self.add_callback(StepProfiler(self, args.profile_steps))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(RelayProgressCallback)
        if self.use_vllm and self.vllm_mode == "server":
            check_student_server(self, self._engines, self.rollouts.wait)
            sync_through_server(self)
        elif self.use_vllm and self.accelerator.device.type == "cpu":
            sync_weights_on_cpu(self)

    @property
    def _mode(self) -> str:
        return "train" if self.model is not None and self.model.training else "eval"  # as TRL distinguishes them

    def _roll_out(self, prompts: list, trainer: GRPOTrainer) -> dict[str, list]:
        """TRL's `rollout_func`: this process's share of the global batch, with every prompt repeated for each of its rollouts."""
        draw = self._draw
        place = (draw.mode, draw.step - 1 if draw.mode == "train" else 0, draw.batch)
        seeds = [rollout_seed(self.args.seed, *place, draw.first + i) for i in range(len(prompts))]
        started = time.perf_counter()
        with student_engine(self, self._engines) as student:
            if self.args.dynamic_sampling and draw.mode == "train":
                traces = self.rollouts.wait(draw_with_spread(self, draw, student))
            else:
                traces = self.rollouts.run(prompts, seeds, student)
        draw.rollout_s = time.perf_counter() - started
        if self.use_vllm and self.vllm_mode == "server":
            check_same_server(self)
        return to_trl(traces, has_logprobs=self.use_vllm)

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _generate_and_score_completions(self, inputs):
        is_train = self._mode == "train"
        draw = Draw(
            mode=self._mode,
            step=self.state.global_step + is_train,
            first=self.accelerator.process_index * len(inputs),
            size=self.num_generations if is_train else self.num_generations_eval,
            rows=inputs,
        )
        if self._draw and (self._draw.mode, self._draw.step) == (draw.mode, draw.step):
            draw.batch = self._draw.batch + 1
        self._draw = draw  # TRL calls `_roll_out` and `_calculate_rewards`, which fill it in
        output = super()._generate_and_score_completions(inputs)
        draw.advantages = output["advantages"].tolist()
        self._metrics[draw.mode]["relay/is_effective_share"] += [self._effective_share(output)] * len(draw.rewards)
        if is_train:
            self.writer.add(draw)
        self.guard.look(draw)  # may end the run; its rollouts are on disk by then
        return output

    def _effective_share(self, output: dict[str, torch.Tensor]) -> float:
        ratio = output.get("importance_sampling_ratio")
        if ratio is None:
            return 1.0
        mask = (output["completion_mask"] * output["tool_mask"]).bool()
        sums = weight_sums(ratio[mask] if ratio.shape[1] > 1 else ratio[mask.any(1)])
        return effective_share(*self.accelerator.reduce(sums, reduction="sum").tolist())

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._mode == "train" and self._buffered_inputs is not before:
            self._buffered_inputs = tighten(self._buffered_inputs, self)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kw
    ):
        if self._mode == "eval":  # nothing that is reported needs a forward pass
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        forward = partial(super()._get_per_token_logps_and_entropies, model)
        given = (input_ids, attention_mask, logits_to_keep)
        if batch_size is not None and len(input_ids) > batch_size:
            return tight_forward(lambda *part: forward(*part)[0], *given, batch_size), None, None
        found = forward(*given, batch_size, **kw)
        self._entropies = found[1] if self.args.call_entropy_coef else None
        return found

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if not self.args.call_entropy_coef:
            return loss
        entropies, self._entropies = self._entropies, None
        entropy = mean_entropy(entropies, number_mask(inputs, self._vocabulary, self.args.syntax))
        # Scaled as TRL scales its own bonus
        return loss - self.args.call_entropy_coef * entropy / self.current_gradient_accumulation_steps

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Rolls out and grades, which is all that an evaluation reports: no forward pass, and no loss."""
        is_corrected, self.vllm_importance_sampling_correction = self.vllm_importance_sampling_correction, False
        try:
            self._prepare_inputs(inputs)
        finally:
            self.vllm_importance_sampling_correction = is_corrected
        return None, None, None

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        self._draw = None  # every evaluation draws the same random numbers
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = used_columns(eval_dataset, self._own_rewards, "eval_dataset")
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = self.eval_dataset[rows] if self.eval_dataset else None
        if isinstance(rows, Dataset):
            self.guard.begin_evaluation(len(rows) * self.num_generations_eval)
        found = super().evaluate(eval_dataset, *args, **kwargs)
        # Without a scored rollout there is no accuracy, but transformers compares it with the best one so far
        return {name: float("nan") if value is None else value for name, value in found.items()}

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """TRL's matrix of rewards, shape (rollouts of the global batch, reward functions). The first column is the group
        reward. Rollouts whose teacher failed are NaN.
        """
        draw, traces = self._draw, [row[TRACE_COLUMN] for row in inputs]
        started = time.perf_counter()
        prompts[:] = [row["prompt"] for row in inputs]  # dynamic sampling may have put others in
        correct = draw.correct or self.grader.grade(traces, inputs)
        for row, trace, is_correct in zip(inputs, traces, correct, strict=True):
            row["relay_correct"], row["relay_teacher_share"] = is_correct, trace.teacher_share
        groups = len(traces) / draw.size
        # TRL leaves special tokens out of its texts, the tags of calls among them; its logs take this list
        completions[:] = [
            [{"role": "assistant", "content": trace.answer}] if isinstance(said, list) else trace.answer
            for trace, said in zip(traces, completions, strict=True)
        ]
        own_s = [draw.rollout_s, time.perf_counter() - started, draw.drawn or groups, *self.grader.counts()]
        matrix = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        device = self.accelerator.device
        rows = [facts(trace, is_correct) for trace, is_correct in zip(traces, correct, strict=True)]
        rows = gather(torch.tensor(rows, dtype=torch.float32, device=device)).tolist()
        timings = gather(torch.tensor([own_s], dtype=torch.float32, device=device))
        score = partial(score_groups, rows, draw.size, self.args, self.group_reward)
        rewards, kinds = from_first_process(self.accelerator, score)
        matrix[:, 0] = torch.tensor(rewards, device=device)
        matrix[matrix[:, 0].isnan()] = torch.nan  # no group reward: out of its group, whatever other rewards say
        total = (matrix * self.reward_weights.to(device)).nansum(1).masked_fill(matrix[:, 0].isnan(), torch.nan)
        metrics = summarize(rows, [kind for kind in kinds if kind is not None])
        metrics["rollout_s"], metrics["grading_s"] = timings.max(0).values[:2].tolist()
        metrics["draws"] = timings[:, 2].mean().item() / groups
        metrics |= zip(GRADED, timings[:, 3:].sum(0).tolist(), strict=True)
        for name, value in metrics.items():
            # TRL logs the mean; so a smaller last batch of an evaluation gets the weight of its rollouts
            self._metrics[self._mode][f"relay/{name}"] += [value] * len(rows)
        draw.traces, draw.correct, draw.kinds, draw.metrics = traces, correct, kinds, metrics
        draw.rewards = total.tolist()
        own = draw.rewards[draw.first : draw.first + len(traces)]
        for column, values in log_columns(traces, own).items() if self.args.log_completions else ():
            self._log_completion_extra(column, values)
        return matrix
