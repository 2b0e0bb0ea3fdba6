"""What a training takes of each process's memory, part by part, and what its batches amount to.

Owns the arithmetic. Activations are not guessed: the student runs forward once with shapes and without numbers, and what it
keeps for the backward pass is counted.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from .models import Shape, fake_model, load_config

_TILE_TOKENS, _TILE_WORDS = 4096, 32768
"""The tile of logits that TRL's fused head works on (`trl.kernels.chunked_logprob`); the whole width is set aside."""
_TILE_COPIES = 6
"""Copies of a tile in float32 while it is computed with torch's own operations; on a GPU one kernel does without."""


@dataclass(frozen=True)
class Training:
    """The options of a run that its memory depends on.

    Args:
        batch (`int`): sequences of one forward pass on one process.
        tokens (`int`): of the longest sequence, prompt and completion.
        processes (`int`, defaults to `1`), zero_stage (`int`, defaults to `0`): FSDP 2 counts as 3.
        is_deepspeed (`bool`): DeepSpeed computes in half precision with a float32 copy in its optimizer.
        offloads_optimizer, offloads_weights (`bool`): to main memory.
        is_half (`bool`): bf16 or fp16 computation.
        weight_bytes (`float`, defaults to `4`): of one parameter as loaded; 0.55 in 4 bit.
        has_checkpointing (`bool`): gradient checkpointing.
        has_reference (`bool`): a copy of the student for the KL term.
        peft (`PeftConfig`, *optional*): the adapter.
        optimizer_bytes (`float`, defaults to `8`): of one trained parameter; 2 for 8-bit Adam.
        engine_bytes (`float`, defaults to `0`): vLLM's share of the memory.
        is_engine_asleep (`bool`): whether it leaves its share to the update.
        is_on_cpu (`bool`, defaults to `False`).
        rollouts (`int`, defaults to `0`): drawn at a time on this process without vLLM, whose cache is counted.
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
    has_reference: bool = False
    peft: PeftConfig | None = None
    optimizer_bytes: float = 8.0
    engine_bytes: float = 0.0
    is_engine_asleep: bool = False
    is_on_cpu: bool = False
    rollouts: int = 0


@dataclass
class Memory:
    """Bytes on one process by part, and the two moments at which they peak."""

    parts: dict[str, float] = field(default_factory=dict)
    at_update: float = 0.0
    at_rollouts: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.at_update, self.at_rollouts)


def training_memory(student: str, run: Training) -> Memory:
    """What `run` takes of one process's memory."""
    shape = Shape.of(student)
    activations, trained = count_activations(student, run)
    shard = run.processes if run.zero_stage else 1
    parts: dict[str, float] = {}
    parts |= dict.fromkeys(
        ("weights", "gradients", "optimizer", "reference", "activations", "head", "engine", "cache"), 0.0
    )
    is_master_kept = run.is_deepspeed and run.is_half  # half-precision weights, their float32 copy is the optimizer's
    weight_bytes = 2.0 if is_master_kept else run.weight_bytes
    whole = shape.parameters * weight_bytes
    extra = trained * 4 if run.peft is not None else 0
    parts["weights"] = (whole + extra) / (shard if run.zero_stage == 3 else 1)
    parts["gradients"] = trained * (2 if is_master_kept else 4) / (shard if run.zero_stage >= 2 else 1)
    parts["optimizer"] = (
        trained * (run.optimizer_bytes + (4 if is_master_kept else 0)) / (shard if run.zero_stage else 1)
    )
    if run.has_reference and run.peft is None:
        parts["reference"] = whole / (shard if run.zero_stage == 3 else 1)
    parts["activations"] = activations
    parts["head"] = _head(shape, run)
    parts["engine"] = run.engine_bytes
    parts["cache"] = run.rollouts * run.tokens * shape.kv_elements * (2 if run.is_half else 4)
    if run.offloads_optimizer:
        parts["optimizer"] = 0.0
    if run.offloads_weights:
        parts["weights"] = whole / shape.layers  # the layer that is computed with
    resident = sum(parts[name] for name in ("weights", "optimizer", "reference"))
    gathered = whole - parts["weights"] if run.zero_stage == 3 and not run.engine_bytes else 0.0
    engine_at_update = 0.0 if run.is_engine_asleep else parts["engine"]
    memory = Memory(parts)
    memory.at_update = resident + parts["gradients"] + activations + parts["head"] + engine_at_update
    memory.at_rollouts = resident + parts["engine"] + parts["cache"] + gathered
    return memory


def _head(shape: Shape, run: Training) -> float:
    tokens, words = min(_TILE_TOKENS, run.batch * run.tokens), min(_TILE_WORDS, shape.vocabulary)
    tile = tokens * _TILE_WORDS * (2 if run.is_half else 4)
    copies = _TILE_COPIES * 4 * tokens * words if run.is_on_cpu else 0
    return tile + copies + 4 * shape.vocabulary * shape.hidden  # and the head's gradient in float32


def count_activations(student: str, run: Training) -> tuple[float, int]:
    """Bytes that one forward pass keeps for its backward pass, and how many parameters are trained.

    With checkpointing that is every layer's input, and all of one layer while it is computed again.
    """
    with FakeTensorMode():
        model = fake_model(load_config(student))
        trained = sum(p.numel() for p in model.parameters())
        layers = model.config.num_hidden_layers
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, tuple[int, object]] = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage.nbytes(), storage)
            return tensor

        ids = torch.zeros(run.batch, run.tokens, dtype=torch.long)
        model.train()
        backbone = model.model
        half = torch.autocast("cpu", torch.bfloat16, enabled=run.is_half)
        with half, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            last = backbone(input_ids=ids, use_cache=False).last_hidden_state
        total = sum(size for size, _ in kept.values())
        if run.has_checkpointing:
            total = total / layers + (layers + 1) * last.numel() * (2 if run.is_half else 4)
    if run.peft is not None:  # its layers keep the inputs that the frozen ones would have kept
        with torch.device("meta"):
            adapted = get_peft_model(fake_model(load_config(student)), run.peft)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return float(total), trained


@dataclass(frozen=True)
class Batches:
    """What one draw of rollouts amounts to, over all processes.

    Attributes:
        rollouts (`int`), prompts (`int`), updates (`int`): optimizer steps that a draw serves.
        rollouts_per_update (`int`).
        tokens (`float`): written in a draw if every completion is `mean_tokens` long.
        teacher_tokens (`float`): of these by the teacher, at the given share.
        teacher_reads (`float`), teacher_reads_cached (`float`): context tokens that the teacher reads for `calls` calls a
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
        ValueError: the batch splits no group evenly.
    """
    rollouts = per_device * processes * per_generation
    if rollouts % group:
        raise ValueError(
            f"{per_device} (per_device_train_batch_size) x {processes} (processes) x {per_generation} (steps_per_generation) = "
            f"{rollouts} rollouts are no whole groups of num_generations={group}; change one of them."
        )
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
