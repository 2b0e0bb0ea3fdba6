"""Service curves: how fast an engine serves a model, measured by `benchmarks/service_curves.py` or estimated.

An estimate is from a GPU's data sheet. Each curve says where its figures come from.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from .models import Shape

_FLOPS, _BANDWIDTH = 400e12, 2.0e12
"""About 40 % and 60 % of the data sheet of an H100 with 80 GB, which is reached in practice."""


@dataclass(frozen=True)
class Curve:
    """How fast one engine (a GPU or a group of them) serves.

    Args:
        name (`str`): the model.
        source (`str`): where the figures come from: hardware, and whether they were measured.
        batch (`list[int]`), step_s (`list[float]`): seconds of one decoding step for each number of requests; linear in
            between, and with the last slope beyond.
        prefill_tokens_per_s (`float`): context tokens read in a second.
        max_batch (`int`): most requests at a time.
    """

    name: str
    source: str
    batch: list[int]
    step_s: list[float]
    prefill_tokens_per_s: float
    max_batch: int

    def step(self, size: int) -> float:
        """Seconds of a decoding step of `size` requests."""
        place = min(max(1, bisect_left(self.batch, size)), len(self.batch) - 1)
        if len(self.batch) == 1 or size <= self.batch[0]:
            return self.step_s[0]
        (b0, b1), (s0, s1) = self.batch[place - 1 : place + 1], self.step_s[place - 1 : place + 1]
        return s0 + (s1 - s0) * (size - b0) / (b1 - b0)

    @classmethod
    def load(cls, path: str | Path) -> "Curve":
        """A curve that `benchmarks/service_curves.py` wrote."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is not a service curve ({error}); measure one with benchmarks/service_curves.py."
            ) from error

    @classmethod
    def estimate(cls, model: str, memory_gib: float = 80.0) -> "Curve":
        """A curve from a GPU's figures. A step reads all weights and caches once and computes 2 operations per parameter and
        token.
        """
        shape = Shape.of(model)
        context, sizes = 2048, [1, 8, 32, 64, 128, 256]
        room = 0.9 * memory_gib * 2**30 - 2 * shape.parameters
        if room <= 0:
            raise ValueError(
                f"{model} takes {2 * shape.parameters / 2**30:.0f} GiB, more than the {memory_gib:g} GiB given."
            )
        most = max(1, min(256, int(room / (context * 2 * shape.kv_elements))))
        step = [
            0.002
            + max(
                (2 * shape.parameters + n * context * 2 * shape.kv_elements) / _BANDWIDTH,
                2 * shape.parameters * n / _FLOPS,
            )
            for n in sizes
        ]
        source = f"estimated from {_FLOPS:.3g} FLOP/s and {_BANDWIDTH:.3g} bytes/s, not measured"
        return cls(model, source, sizes, step, _FLOPS / (2 * shape.parameters), most)
