"""What an answer costs: tokens that both models wrote and read, active parameters, FLOPs and money.

Owns the arithmetic and the YAML with parameters and prices. The counts come from the traces. For a model with N parameters,
a token that it reads or writes takes 2 N floating-point operations (without attention); a token from the prefix cache none.

    currency: USD
    student: {parameters: 1.7e9, read: 0.02, cached: 0.005, write: 0.06}    # prices of a million tokens
    teacher: {parameters: 8.2e9, read: 0.10, cached: 0.025, write: 0.30}
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors import safe_open

from .trace import Reading, Trace

_PRICES = ("read", "cached", "write")
_MILLION = 1_000_000


@dataclass(frozen=True)
class ModelCosts:
    """Size and prices of one model.

    Args:
        parameters (`float`, *optional*): active for a token; all parameters, except in a mixture of experts. `None`: unknown.
        read, write (`float`, *optional*): price of a million tokens; `None`: unknown.
        cached (`float`, *optional*): price of a million tokens from the prefix cache; `None`: as `read`.
    """

    parameters: float | None = None
    read: float | None = None
    cached: float | None = None
    write: float | None = None

    @property
    def cached_price(self) -> float | None:
        """Price of a million tokens from the prefix cache."""
        return self.read if self.cached is None else self.cached


@dataclass(frozen=True)
class PriceTable:
    """Both models' costs."""

    student: ModelCosts = ModelCosts()
    teacher: ModelCosts = ModelCosts()
    currency: str = "USD"


NO_PRICES = PriceTable()
"""Unknown sizes and prices."""


@dataclass(frozen=True)
class Usage:
    """Tokens that one model wrote and read, mean over answers.

    Args:
        written (`float`): tokens written.
        read (`float`, *optional*): tokens read over all requests; `None` if the engine does not report them.
        cached (`float`, *optional*): how many of `read` came from the prefix cache.
    """

    written: float
    read: float | None
    cached: float | None

    @property
    def computed(self) -> float | None:
        """Tokens read that did not come from the prefix cache."""
        return None if self.read is None or self.cached is None else self.read - self.cached


@dataclass(frozen=True)
class Costs:
    """What one answer costs, mean over answers. A figure is `None` if something it needs is unknown.

    Args:
        student, teacher ([`Usage`]).
        active_parameters (`float`, *optional*): parameters that are active for a written token, mean over tokens.
        flops (`float`, *optional*): of both models, reading included, with the prefix cache.
        flops_uncached (`float`, *optional*): the same without a prefix cache.
        money (`float`, *optional*): with the prefix cache.
        currency (`str`).
    """

    student: Usage
    teacher: Usage
    active_parameters: float | None = None
    flops: float | None = None
    flops_uncached: float | None = None
    money: float | None = None
    currency: str = "USD"


def usage_costs(traces: Sequence[Trace], prices: PriceTable = NO_PRICES) -> Costs:
    """The costs of an answer, from at least one trace."""
    teacher = _usage([trace.teacher_tokens for trace in traces], [trace.teacher_read for trace in traces])
    student = _usage(
        [sum(trace.loss_mask) for trace in traces],  # what the student sampled
        [trace.student_read for trace in traces],
    )
    return with_prices(student, teacher, prices)


def with_prices(student: Usage, teacher: Usage, prices: PriceTable) -> Costs:
    """Costs of given usages."""
    both = ((student, prices.student), (teacher, prices.teacher))
    written = student.written + teacher.written
    active = _sum(_times(usage.written, model.parameters) for usage, model in both)
    return Costs(
        student,
        teacher,
        active_parameters=None if active is None or written == 0 else active / written,
        flops=_sum(_flops(usage.written, usage.computed, model) for usage, model in both),
        flops_uncached=_sum(_flops(usage.written, usage.read, model) for usage, model in both),
        money=_sum(_money(usage, model) for usage, model in both),
        currency=prices.currency,
    )


def _usage(written: Sequence[int], read: Sequence[Reading]) -> Usage:
    def mean(values: Sequence[int | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(values) if len(known) == len(values) else None

    return Usage(sum(written) / len(written), mean([r.tokens for r in read]), mean([r.cached for r in read]))


def _times(count: float | None, factor: float | None) -> float | None:
    if count == 0:  # 0 times an unknown factor is 0
        return 0.0
    return None if count is None or factor is None else count * factor


def _sum(parts) -> float | None:
    parts = list(parts)
    return None if any(part is None for part in parts) else sum(parts)


def _flops(written: float, read: float | None, model: ModelCosts) -> float | None:
    return _times(None if read is None else 2 * (read + written), model.parameters)


def _money(usage: Usage, model: ModelCosts) -> float | None:
    parts = [
        _times(usage.computed, model.read),
        _times(usage.cached, model.cached_price),
        _times(usage.written, model.write),
    ]
    total = _sum(parts)
    return None if total is None else total / _MILLION


def load_costs(path: str | None) -> PriceTable:
    """Reads the YAML; an empty table without one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a YAML, a field is unknown, or a value is not a finite number of at least 0.
    """
    if path is None:
        return NO_PRICES
    if not Path(path).is_file():
        raise FileNotFoundError(f"costs: the file {path} does not exist.")
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    known = {"currency", "student", "teacher"}
    if not isinstance(data, dict) or not set(data) <= known:
        raise ValueError(f"{path} must have the fields {', '.join(sorted(known))} and no others; it has {list(data)}.")
    models = {}
    for name in ("student", "teacher"):
        fields = data.get(name) or {}
        unknown = sorted(set(fields) - {"parameters", *_PRICES}) if isinstance(fields, dict) else [str(fields)]
        if unknown:
            raise ValueError(f"{path}: {name} has {', '.join(unknown)}; known are parameters, {', '.join(_PRICES)}.")
        models[name] = ModelCosts(**{key: _number(value, f"{path}: {name}.{key}") for key, value in fields.items()})
    return PriceTable(**models, currency=str(data.get("currency", "USD")))


def _number(value, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)  # YAML reads 8.2e9 as a text
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < math.inf:
        raise ValueError(f"{where} is {value!r}; it must be a finite number of at least 0.")
    return number


def count_parameters(model: str | None) -> int | None:
    """The number of parameters of a model in a local folder, from the headers of its safetensors; `None` for anything else."""
    files = sorted(Path(model).glob("*.safetensors")) if model and Path(model).is_dir() else []
    total = 0
    for path in files:
        with safe_open(path, "numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total or None


def fill_parameters(prices: PriceTable, student: str | None, teacher: str | None) -> PriceTable:
    """`prices` with missing parameters counted, for models in local folders."""
    filled = {}
    for name, path in (("student", student), ("teacher", teacher)):
        model: ModelCosts = getattr(prices, name)
        counted = count_parameters(path) if model.parameters is None else model.parameters
        filled[name] = ModelCosts(counted, model.read, model.cached, model.write)
    return PriceTable(**filled, currency=prices.currency)
