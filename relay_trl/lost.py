"""Processes of a run that hang or are gone: the others end within `ddp_timeout`, and say which ones they are.

Owns the limit on CPUs, where transformers hands `ddp_timeout` to nobody, and who is missing once a collective operation has
failed. On GPUs NCCL has the limit already, and its own words.
"""

import threading
import time
from datetime import timedelta

from torch import distributed
from torch.distributed import distributed_c10d
from transformers import TrainerCallback

_WAIT_S = 10.0
"""Seconds in which those that live find their own operation broken, once one of them has."""


def limit_waiting(seconds: float):
    """Ends every operation over gloo that takes longer, in all groups that there are by now."""
    for group, (backend, _) in list(distributed_c10d._world.pg_map.items()):
        if "gloo" in str(backend):
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


class LimitedWaiting(TrainerCallback):
    """Sets the limit on the groups that a training has made for itself, as DeepSpeed does."""

    def on_train_begin(self, args, state, control, **kwargs):
        if distributed.is_available() and distributed.is_initialized():
            limit_waiting(args.ddp_timeout)


def explain(error: BaseException) -> str | None:
    """The sentence for an operation between processes that failed over gloo, `None` for any other error.

    Every process that comes here says so in the store that all share; those that do not within ten seconds are named.
    """
    words = str(error).lower()
    if (
        "gloo/transport" not in words or not distributed.is_initialized()
    ):  # the file that each of gloo's errors begins with
        return None
    answers: set[int] = set()
    asking = threading.Thread(target=_ask, args=(answers,), daemon=True)  # a store whose keeper hangs never comes back
    asking.start()
    asking.join(_WAIT_S + 5)
    missing = sorted(set(range(distributed.get_world_size())) - answers)
    if not answers:
        missing = [0]  # it keeps the store where there is no launcher to do so
    if not missing:
        return None
    who = " and ".join(map(str, missing))
    if "timed out" in words:
        what = f"No answer from process {who} within ddp_timeout: hung, or at work on one thing for longer than that."
    else:
        what = f"Lost process {who}, which ended first; its own words or the system's log say why."
    return f"{what} resume_from_checkpoint: auto goes on from the newest whole checkpoint."


def _ask(answers: set[int]):
    store, own, size = distributed_c10d._get_default_store(), distributed.get_rank(), distributed.get_world_size()
    store.set_timeout(timedelta(seconds=_WAIT_S))
    store.set(f"lost/{own}", "here")
    limit = time.monotonic() + _WAIT_S
    while len(answers) < size and time.monotonic() < limit:
        answers.update(rank for rank in range(size) if store.check([f"lost/{rank}"]))
        time.sleep(0.1)
