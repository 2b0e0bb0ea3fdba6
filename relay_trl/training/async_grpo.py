"""Asynchronous GRPO over relayed rollouts: TRL's `AsyncGRPOTrainer`, fed by relays that run without pause beside it.

Owns what the trainer makes of the groups that reach it: samples, files of rollouts, figures and the guard. The rollouts are
`async_worker.py`'s, attention over packed rows is `packed_attention.py`'s. Uses what TRL does not document: the queue that its data
set reads and the groups that it counts, which tests/training/test_async_grpo.py holds.
"""

import queue
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AttentionInterface, ProgressCallback, TrainerCallback
from trl.experimental.async_grpo import AsyncGRPOTrainer, async_grpo_trainer
from trl.experimental.async_grpo.packing import TREE_ATTENTION

from ..cli.launch import from_first_process
from ..rollout_files import Draw, RolloutWriter
from .async_config import RelayAsyncGRPOConfig
from .async_groups import Group, RelaySample, merge
from .async_student import FileWeights, load_engines
from .async_worker import RelayRolloutWorker
from .callbacks import LimitedWaiting, ProgressLines, RecordingCallback, RelayProgressCallback
from .columns import used_columns
from .guard import Guard
from .lora import check_sharding, give_bias
from .packed_attention import attend_in_rows
from .saving import RelaySavingMixin
from .student_engine import replaced
from .trackers import TrackerTables
from .vllm_weights import base_names, base_weights_kept

_WAIT_S = 1.0  # between two looks at the worker's health


class RelayAsyncGRPOTrainer(RelaySavingMixin, AsyncGRPOTrainer):
    """[`~trl.experimental.async_grpo.AsyncGRPOTrainer`] whose rollouts may call a teacher.

    Without a GPU the rollouts' process has a student of its own and takes weights from a file in memory. With one, the student is a
    server (`vllm serve`) at `args.vllm_server_base_url`, which TRL sends the weights over NCCL; **that has not been run**.

    Args:
        model (`str`): the student, a folder or a Hub id.
        args ([`RelayAsyncGRPOConfig`]).
        train_dataset ([`~datasets.Dataset`]): columns `prompt` (the problem) and `answer` (the gold answer).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): the student's tokenizer.
        engines (`Callable`, *optional*): gives student and teacher in the other process, without arguments; must be picklable. `None`
            takes those that `args` names.
        callbacks, optimizers, peft_config: as [`~trl.experimental.async_grpo.AsyncGRPOTrainer`] takes them.

    Raises:
        ValueError: a dataset or an option that cannot be used.
        RuntimeError: the rollouts' process has failed, died or hangs, or one of the limits of `args` was passed.
    """

    _name = "RelayAsyncGRPO"
    _tag_names = ["trl", "async-grpo", "relay-trl"]
    args: RelayAsyncGRPOConfig

    def __init__(
        self,
        model: str,
        args: RelayAsyncGRPOConfig,
        train_dataset: Dataset,
        processing_class,
        engines: Callable | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ):
        train_dataset = used_columns(train_dataset, [], "train_dataset")
        check_sharding(peft_config, args)
        if getattr(peft_config, "trainable_token_indices", None) and args.device.type != "cpu":
            raise ValueError(
                "The call tags are tokens of their own and use_peft is true, but TRL's transfer to a server does not know the rows that are "
                "trained for them; leave add_call_tokens or use_peft out, or train with recipes/grpo_relay.py."
            )
        is_main, is_on_cpu = args.process_index == 0, args.device.type == "cpu"
        threads = max(1, torch.get_num_threads() // 2)  # half of the cores train, half roll out
        weights = FileWeights() if is_main and is_on_cpu else None
        worker = None
        if is_main:
            worker = RelayRolloutWorker(
                args=args,
                rows=[{"prompt": row["prompt"], "answer": row["answer"]} for row in train_dataset.to_list()],
                engines=engines,
                tokenizer=processing_class,
                weights=weights and weights.path,
                threads=threads,
            )
        # TRL asks a GPU for its peak, whether or not there is one
        no_peak = replaced(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: None)
        with no_peak if is_on_cpu else nullcontext():
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                processing_class=processing_class,
                rollout_worker=worker,
                weight_transfer=weights,
                callbacks=list(callbacks) if callbacks else None,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        give_bias(self.model)
        if is_on_cpu:
            AttentionInterface.register(TREE_ATTENTION, attend_in_rows)
            torch.set_num_threads(threads)
        if worker is not None:
            made = partial(load_engines, args, model, processing_class, self.eos_token_ids)
            worker._loop_kwargs["engines"] = engines or made
            self.rollout_queue = _Samples(self, worker.rollout_buffer)
        self._draw: Draw | None = None  # the last one
        self._received: list[Draw] = []
        self.writer = RolloutWriter(
            args.output_dir, args.syntax, args.process_index, args.world_size, args.rollouts_max_mb
        )
        self.guard = Guard(args)
        self.add_callback(LimitedWaiting)
        self.add_callback(ProgressLines)
        self.add_callback(RecordingCallback(self.writer, self.relay_record))
        self.add_callback(_EveryStep(self))
        self.add_callback(self.guard)
        self.add_callback(TrackerTables(lambda: self.callback_handler.callbacks, lambda: self._draw, args.syntax))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(RelayProgressCallback)

    def _sync_weight_merged(self, t0: float):
        with base_weights_kept(self.accelerator.unwrap_model(self.model)):
            return super()._sync_weight_merged(t0)

    def _streaming_iter(self):
        return base_names(super()._streaming_iter())

    def receive(self, group: Group):
        """Takes in a group. Where so many rollouts were lost that no step comes about, the guard sees them without one."""
        self._received.append(group.draw)
        if not group.samples:
            self._trained_groups.add(group.number)  # nothing of it will ever be learnt from
        lost = sum(trace.has_failed for draw in self._received for trace in draw.traces)
        if lost >= self.args.samples_per_step:
            self.look(self.state.global_step + 1)

    def note(self, sample: RelaySample):
        """Counts how old the tokens of a sample are that is about to be learnt from, or dropped by TRL."""
        assert sample.versions is not None
        written = sample.versions[sample.versions >= 0]
        lag = float((self.model_version - written).sum())
        self._metrics["train"]["sample/token_staleness"].append((lag, float(len(written))))
        if self.model_version - sample.model_version > self.args.max_staleness:
            self._trained_groups.add(sample.group_id)

    def look(self, step: int):
        """Writes the groups that came since the last look, logs their figures, and shows them to the guard.

        Args:
            step (`int`): that they are counted to.
        """
        if not self._received:
            return
        last = self._draw
        draw = merge(self._received, step, last.batch + 1 if last and last.step == step else 0)
        self._draw, self._received = draw, []
        for name, value in draw.metrics.items():
            self._metrics["train"][f"relay/{name}"].append(value)
        self.writer.add(draw)
        self.guard.look(draw)  # may end the run; its rollouts are on disk by then


class _Samples:
    """The worker's queue of groups as TRL's data set reads it: sample by sample."""

    def __init__(self, trainer: RelayAsyncGRPOTrainer, groups):
        self._trainer, self._queue = trainer, groups
        self._waiting: deque[RelaySample] = deque()

    def qsize(self) -> int:
        """Samples that wait."""
        return len(self._waiting) + self._queue.qsize() * self._trainer.args.num_generations

    def get(self, timeout: float) -> RelaySample:
        """The next sample; raises `queue.Empty` where there is none soon, and TRL looks whether the worker is well."""
        while not self._waiting:
            try:
                group = self._queue.get(timeout=min(timeout, _WAIT_S))
            except (EOFError, OSError) as ended:  # the process has died, perhaps in the middle of a group
                raise queue.Empty from ended
            self._waiting += group.samples
            self._trainer.receive(group)
        sample = self._waiting.popleft()
        self._trainer.note(sample)
        return sample


class _EveryStep(TrainerCallback):
    """Looks at the groups of every step. Only the first process has them, and all must agree on what the guard says of a checkpoint."""

    def __init__(self, trainer: RelayAsyncGRPOTrainer):
        self._trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        guard = self._trainer.guard

        def look() -> dict[str, int]:
            self._trainer.look(state.global_step)
            return guard.streaks

        guard.streaks = from_first_process(self._trainer.accelerator, look)
