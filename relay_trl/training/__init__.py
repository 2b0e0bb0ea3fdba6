"""Training: TRL's trainers with relayed rollouts, group rewards on the global batch, and call tokens.

Names are imported on first use, because a trainer takes seconds to import and configs do not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_config import RelayAsyncGRPOConfig
    from .async_grpo import RelayAsyncGRPOTrainer
    from .config import RelayGRPOConfig, RelaySFTConfig
    from .grpo import RelayGRPOTrainer
    from .sft import RelaySFTTrainer

__all__ = [
    "RelayAsyncGRPOConfig",
    "RelayAsyncGRPOTrainer",
    "RelayGRPOConfig",
    "RelayGRPOTrainer",
    "RelaySFTConfig",
    "RelaySFTTrainer",
]

_MODULES = {
    "RelayAsyncGRPOConfig": "async_config",
    "RelayAsyncGRPOTrainer": "async_grpo",
    "RelayGRPOConfig": "config",
    "RelayGRPOTrainer": "grpo",
    "RelaySFTConfig": "config",
    "RelaySFTTrainer": "sft",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
