"""Whether this machine computes bfloat16 by instructions of its own, and the warning where it has to imitate them."""

import logging

import torch

logger = logging.getLogger(__name__)


def has_bfloat16() -> bool:
    """Whether there is an accelerator, or a CPU with instructions for bfloat16 (AVX512-BF16, AMX-BF16, Arm's BF16)."""
    if torch.accelerator.is_available():
        return True
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def warn_of_bfloat16(what: str, remedy: str):
    """Warns that `what` is computed in bfloat16 where that is imitated; says nothing on a machine that is fit for it.

    Args:
        what (`str`): begins the sentence.
        remedy (`str`): the option to set, which names float32.
    """
    if not has_bfloat16():
        logger.warning(
            "%s computes in bfloat16, for which this CPU has no instructions, so that it may take many times as long as in "
            "float32; set %s.",
            what,
            remedy,
        )
