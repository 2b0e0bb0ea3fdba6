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

_TIMEOUT, _CLOSED = "timeout", "closed"
_WORDS = ("gloo/transport", "application timeout caused pair closure")
"""What gloo's errors have in them: the file that they come from, or this, where another thread's timeout closed the connection."""

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

    Every process that comes here says in the store that all share how its operation failed; those that do not within ten
    seconds are named.
    """
    words = str(error).lower()
    if not any(word in words for word in _WORDS) or not distributed.is_initialized():
        return None
    own = _TIMEOUT if "timed out" in words or "timeout" in words else _CLOSED
    answers: dict[int, str] = {}
    # A store whose keeper hangs never comes back
    asking = threading.Thread(target=_ask, args=(own, answers), daemon=True)
    asking.start()
    asking.join(_WAIT_S + 5)
    missing = sorted(set(range(distributed.get_world_size())) - set(answers))
    if not answers:
        missing = [0]  # it keeps the store where there is no launcher to do so
    if not missing:
        return None
    who = " and ".join(map(str, missing))
    if _TIMEOUT in (own, *answers.values()):  # the first that times out closes its connections to the others
        what = f"No answer from process {who} within ddp_timeout: hung, or at work on one thing for longer than that."
    else:
        what = f"Lost process {who}, which ended first; its own words or the system's log say why."
    return f"{what} resume_from_checkpoint: auto goes on from the newest whole checkpoint."


def _ask(kind: str, answers: dict[int, str]):
    """Says how this process's operation failed, and collects what the others say of theirs."""
    store, own, size = distributed_c10d._get_default_store(), distributed.get_rank(), distributed.get_world_size()
    store.set_timeout(timedelta(seconds=_WAIT_S))
    store.set(f"lost/{own}", kind)
    limit = time.monotonic() + _WAIT_S
    while len(answers) < size and time.monotonic() < limit:
        for rank in set(range(size)) - set(answers):
            if store.check([f"lost/{rank}"]):
                answers[rank] = store.get(f"lost/{rank}").decode()
        time.sleep(0.1)
