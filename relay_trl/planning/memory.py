"""The memory of a training on each process, part by part, and the size of its batches.

Owns the arithmetic. Activations are counted: the student runs forward once with shapes and without numbers, and what it keeps
for the backward pass is added up.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from ..options import broken_groups
from .models import Shape, fake_model, load_config

_TILE_TOKENS, _TILE_WORDS = 4096, 32768
"""Width of the tile of logits in TRL's fused head (`trl.kernels.chunked_logprob`); all of it is allocated."""
_TILE_COPIES = 7.25
"""Copies of a tile in float32 that exist at once when torch's own operations compute its gradient (`_backward_tile` there: y, z,
log p, p, the gradient, a mask of bytes and two intermediate ones). On a GPU, one kernel needs none of them."""


@dataclass(frozen=True)
class Training:
    """The options of a run that its memory depends on.

    Args:
        batch (`int`): sequences in one forward pass on one process.
        tokens (`int`): tokens of the longest sequence, with prompt and completion.
        processes (`int`, defaults to `1`), zero_stage (`int`, defaults to `0`): FSDP 2 counts as 3.
        is_deepspeed (`bool`): DeepSpeed computes in half precision with a float32 copy in its optimizer.
        offloads_optimizer, offloads_weights (`bool`): to main memory.
        is_half (`bool`): bf16 or fp16 computation.
        weight_bytes (`float`, defaults to `4`): of one parameter as loaded; 0.55 in 4 bit.
        has_checkpointing (`bool`): gradient checkpointing.
        accumulation (`int`, defaults to `1`): forward passes in an update.
        has_reference (`bool`): a copy of the student for the KL term.
        peft (`PeftConfig`, *optional*): the adapter.
        optimizer_bytes (`float`, defaults to `8`): of one trained parameter; 2 for 8-bit Adam.
        engine_bytes (`float`, defaults to `0`): vLLM's share of the memory.
        is_engine_asleep (`bool`): whether vLLM frees its share during the update.
        is_on_cpu (`bool`, defaults to `False`).
        rollouts (`int`, defaults to `0`): rollouts drawn at a time on this process without vLLM; their cache is counted.
    """

    batch: int
    tokens: int
    processes: int = 1
    zero_stage: int = 0
    is_deepspeed: bool = False
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    is_half: bool = False
    weight_bytes: float = 4.0
    has_checkpointing: bool = False
    accumulation: int = 1
    has_reference: bool = False
    peft: PeftConfig | None = None
    optimizer_bytes: float = 8.0
    engine_bytes: float = 0.0
    is_engine_asleep: bool = False
    is_on_cpu: bool = False
    rollouts: int = 0


@dataclass
class Memory:
    """Bytes on one process by part, and the two moments at which they have their peak."""

    parts: dict[str, float] = field(default_factory=dict)
    at_update: float = 0.0
    at_rollouts: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.at_update, self.at_rollouts)


def training_memory(student: str, run: Training) -> Memory:
    """The memory of one process for `run`."""
    shape = Shape.of(student)
    kept, layer, trained = count_activations(student, run)
    shard = run.processes if run.zero_stage else 1
    is_master_kept = run.is_deepspeed and run.is_half  # half-precision weights, their float32 copy is the optimizer's
    weight_bytes = 2.0 if is_master_kept else run.weight_bytes
    whole = shape.parameters * weight_bytes
    has_buckets = run.processes > 1 and run.zero_stage == 0 and not run.is_deepspeed
    adapter = trained * 4 if run.peft is not None else 0
    parts = {
        "weights": (whole + adapter) / (shard if run.zero_stage == 3 else 1),
        "gradients": trained * (2.0 if is_master_kept else 4.0) / (shard if run.zero_stage >= 2 else 1),
        "buckets": trained * 4.0 if has_buckets else 0.0,  # DDP exchanges gradients in buckets, beside the gradients
        "optimizer": trained * (run.optimizer_bytes + (4 if is_master_kept else 0)) / shard,
        "reference": whole / (shard if run.zero_stage == 3 else 1) if run.has_reference and run.peft is None else 0.0,
        "activations": kept + layer,
        "head": _head(shape, run),
        "engine": run.engine_bytes,
        "cache": run.rollouts * run.tokens * shape.kv_elements * (2.0 if run.is_half else 4.0),
    }
    if run.offloads_optimizer:
        parts["optimizer"] = 0.0
    if run.offloads_weights:
        parts["weights"] = whole / shape.layers  # the layer that is being computed
    resident = sum(parts[name] for name in ("weights", "buckets", "optimizer", "reference"))
    gathered = whole - parts["weights"] if run.zero_stage == 3 and not run.engine_bytes else 0.0
    engine_at_update = 0.0 if run.is_engine_asleep else run.engine_bytes
    # A layer's activations are freed as its gradients are made, so the peak is at one of the two ends of the backward pass
    are_gradients_there = run.is_deepspeed or run.accumulation > 1
    at_head = kept + parts["head"] + (parts["gradients"] if are_gradients_there else 0.0)
    # The gradient of a tied embedding comes in two parts
    twice = 4.0 * shape.vocabulary * shape.hidden if shape.is_tied and run.peft is None else 0.0
    at_end = (kept if run.has_checkpointing else 0.0) + layer + parts["gradients"] + twice
    memory = Memory(parts)
    memory.at_update = resident + engine_at_update + max(at_head, at_end)
    memory.at_rollouts = resident + run.engine_bytes + parts["cache"] + gathered
    return memory


def _head(shape: Shape, run: Training) -> float:
    tokens, words = min(_TILE_TOKENS, run.batch * run.tokens), min(_TILE_WORDS, shape.vocabulary)
    width = words if run.is_on_cpu else _TILE_WORDS  # main memory that is never written is not taken
    tile = tokens * width * (2 if run.is_half else 4)
    copies = _TILE_COPIES * 4 * tokens * words if run.is_on_cpu else 0
    of_inputs, of_weight = run.batch * run.tokens * shape.hidden, shape.vocabulary * shape.hidden
    return tile + copies + 4 * (of_inputs + (of_weight if run.peft is None else 0))  # with both gradients in float32


def count_activations(student: str, run: Training) -> tuple[float, float, int]:
    """Bytes that a forward pass keeps until the head is computed, bytes that one layer needs in addition later, and the number
    of trained parameters.

    With checkpointing, the first are the inputs of all layers, and the second what a layer keeps when it is computed again.
    """
    with torch.device("meta"):
        model = fake_model(load_config(student))
        layers, backbone = model.config.num_hidden_layers, model.model
        if run.peft is not None:
            model = get_peft_model(model, run.peft)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with FakeTensorMode():
        for module in backbone.modules():  # in this mode tensors can be made on a device but not moved to it
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(
                            tensor.requires_grad
                        )
        own = {p.untyped_storage()._cdata for p in backbone.parameters()}
        kept: dict[int, tuple[int, object]] = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage.nbytes(), storage)
            return tensor

        ids = torch.zeros(run.batch, run.tokens, dtype=torch.long)
        backbone.train()
        half = torch.autocast("cpu", torch.bfloat16, enabled=run.is_half)
        with half, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            last = backbone(input_ids=ids, use_cache=False).last_hidden_state
        total = sum(size for size, _ in kept.values())
    if run.has_checkpointing:
        return float((layers + 1) * last.numel() * (2 if run.is_half else 4)), total / layers, trained
    return float(total), 0.0, trained


@dataclass(frozen=True)
class Batches:
    """The size of one draw of rollouts, over all processes.

    Attributes:
        rollouts (`int`), prompts (`int`), updates (`int`): optimizer steps that a draw serves.
        rollouts_per_update (`int`).
        tokens (`float`): tokens written in a draw if completions have `mean_tokens` tokens.
        teacher_tokens (`float`): how many of them the teacher writes, at the given share.
        teacher_reads (`float`), teacher_reads_cached (`float`): context tokens that the teacher reads for `calls` calls in a
            rollout, without and with a prefix cache.
    """

    rollouts: int
    prompts: int
    updates: float
    rollouts_per_update: int
    tokens: float
    teacher_tokens: float
    teacher_reads: float
    teacher_reads_cached: float


def batches(
    per_device: int,
    processes: int,
    accumulation: int,
    per_generation: int,
    group: int,
    mean_prompt: float,
    mean_tokens: float,
    rho: float,
    calls: float,
) -> Batches:
    """The arithmetic of a draw.

    Raises:
        ValueError: the batch does not hold complete groups.
    """
    rollouts = per_device * processes * per_generation
    if said := broken_groups(per_device, processes, per_generation, group):
        raise ValueError(f"{said}; change one of them.")
    reads = calls * (mean_prompt + mean_tokens / 2)
    cached = mean_prompt + mean_tokens * calls / (calls + 1) if calls >= 1 else reads  # up to the last call, once
    tokens = rollouts * mean_tokens
    return Batches(
        rollouts,
        rollouts // group,
        per_generation / accumulation,
        per_device * processes * accumulation,
        tokens,
        rho * tokens,
        rollouts * reads,
        rollouts * cached,
    )
