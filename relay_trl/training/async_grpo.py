"""Asynchronous GRPO over relayed rollouts: TRL's `AsyncGRPOTrainer`, fed by relays that run without pause beside it.

Owns what the trainer makes of the groups that reach it: files of rollouts and the guard. The rollouts are
`async_worker.py`'s. Touches what TRL does not document: the queue that its data set reads, and its attention over packed
rows, for which it has a kernel for GPUs only. tests/training/test_async_grpo.py holds both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AttentionInterface, ProgressCallback, TrainerCallback
from trl.experimental.async_grpo import AsyncGRPOTrainer, async_grpo_trainer
from trl.experimental.async_grpo.packing import TREE_ATTENTION

from ..rollout_files import Draw, RolloutWriter
from .async_config import RelayAsyncGRPOConfig
from .async_student import FileWeights, load_engines
from .async_worker import RelayRolloutWorker
from .callbacks import RecordingCallback, RelayProgressCallback
from .guard import Guard, Suspect, flat_groups
from .saving import RelaySavingMixin


class RelayAsyncGRPOTrainer(RelaySavingMixin, AsyncGRPOTrainer):
    """[`~trl.experimental.async_grpo.AsyncGRPOTrainer`] whose rollouts may call a teacher.

    Without a GPU the rollouts' process has a student of its own and takes weights from a file in memory. With one, the
    student is a server (`vllm serve`) at `args.vllm_server_base_url`, which TRL sends the weights over NCCL; **that was not
    run yet**.

    Args:
        model (`str`): the student, a folder or a Hub id.
        args ([`RelayAsyncGRPOConfig`]).
        train_dataset ([`~datasets.Dataset`]): columns `prompt` (the problem) and `answer` (the gold).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): the student's tokenizer.
        engines (`Callable`, *optional*): gives student and teacher in the other process, without arguments; must be
            picklable. `None` takes those that `args` names.
        kwargs: as [`~trl.experimental.async_grpo.AsyncGRPOTrainer`] takes them: `callbacks`, `optimizers`, `peft_config`.

    Raises:
        RuntimeError: the rollouts' process has failed, died or hangs, or one of the limits of `args` has been passed.
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
        **kwargs: Any,
    ):
        is_main, is_on_cpu = args.process_index == 0, args.device.type == "cpu"
        weights = FileWeights() if is_main and is_on_cpu else None
        worker = None
        if is_main:
            worker = RelayRolloutWorker(
                queue_maxsize=args.queue_maxsize,
                args=args,
                rows=[{"prompt": row["prompt"], "answer": row["answer"]} for row in train_dataset.to_list()],
                engines=engines or partial(load_engines, args, model, processing_class),
                tokenizer=processing_class,
                weights=weights and weights.path,
            )
        with _no_peak() if is_on_cpu else nullcontext():
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                processing_class=processing_class,
                rollout_worker=worker,
                weight_transfer=weights,
                **kwargs,
            )
        if is_on_cpu:
            AttentionInterface.register(TREE_ATTENTION, attend_in_rows)
        self.received: list[Draw] = []
        if worker is not None:
            self.rollout_queue = _Opened(worker.rollout_buffer, self.received)
        self.writer = RolloutWriter(
            args.output_dir, args.syntax, args.process_index, args.world_size, args.rollouts_max_mb
        )
        self.guard = Guard(args)
        for callback in (RecordingCallback(self.writer, self.relay_record), _Groups(self), self.guard):
            self.add_callback(callback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(RelayProgressCallback)


@contextmanager
def _no_peak() -> Iterator[None]:
    """TRL asks a GPU for its peak, whether or not there is one; `None` is its word for a device that it does not know."""
    asked, async_grpo_trainer.get_peak_flops_per_device = async_grpo_trainer.get_peak_flops_per_device, lambda *_: None
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device = asked


class _Opened:
    """The queue of samples as TRL's data set reads it; keeps the groups that come along with them."""

    def __init__(self, queue, received: list[Draw]):
        self._queue, self._received = queue, received
        self.qsize = queue.qsize

    def get(self, timeout: float):
        sample = self._queue.get(timeout=timeout)
        if sample.draw is not None:
            self._received.append(sample.draw)
            sample.draw = None
        return sample


class _Groups(TrainerCallback):
    """Writes the groups that a step was made of to the files of rollouts and shows them to the guard."""

    def __init__(self, trainer: RelayAsyncGRPOTrainer):
        self._trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        draws = list(self._trainer.received)
        self._trainer.received.clear()
        if not draws:
            return
        suspects = []
        for k, draw in enumerate(draws):
            draw.step, draw.batch = state.global_step, k
            self._trainer.writer.add(draw)
            is_flat = flat_groups(draw.rewards, draw.size)[0]
            for row, trace in zip(draw.rows, draw.traces, strict=True):
                suspects.append(Suspect(len(suspects), row["prompt"], trace, bool(is_flat)))
        names = {"teacher_failures": "teacher_failures", "malformed": "malformed_rate", "truncated": "truncated"}
        shares = {name: sum(draw.metrics[key] for draw in draws) / len(draws) for name, key in names.items()}
        flat = [flat_groups(draw.rewards, draw.size)[0] for draw in draws]
        self._trainer.guard.watch(
            state.global_step, {**shares, "zero_variance": sum(map(bool, flat)) / len(flat)}, suspects
        )


def attend_in_rows(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask,
    *,
    tree_kv_index: torch.Tensor,
    tree_cu_seqlens_q: torch.Tensor,
    tree_cu_seqlens_k: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """TRL's `tree_attention` in plain torch: each segment of a packed row sees the tokens on its path, and itself causally.

    Args:
        query, key, value (`torch.Tensor` of shape (1, heads, N, size)): of a packed row.
        tree_kv_index (`torch.Tensor`), tree_cu_seqlens_q, tree_cu_seqlens_k (`torch.Tensor`): as
            `trl.experimental.async_grpo.packing` lays them out.
    """
    if sliding_window or softcap:
        raise ValueError(
            f"{type(module).__name__} has windows or caps in its attention, which needs TRL's kernel on a GPU."
        )
    tokens = query.shape[2]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool, device=query.device)
    begins, paths = tree_cu_seqlens_q.tolist(), tree_cu_seqlens_k.tolist()
    for begin, end, first, last in zip(begins, begins[1:], paths, paths[1:], strict=False):
        mask[begin:end, tree_kv_index[first : last - (end - begin)]] = True
        mask[begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2), None
