"""The processes of a run: checks of the launch, and which processes hang or are gone.

Also owns what one process works out for all, the limit on waiting on CPUs, where transformers does not pass `ddp_timeout` on,
and which process is missing when a collective operation has failed. On GPUs NCCL has its own limit and its own messages.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import distributed
from torch.distributed import distributed_c10d
from transformers import TrainingArguments

from ..redaction import redact

_TIMEOUT, _CLOSED = "timeout", "closed"
_WORDS = ("gloo/transport", "application timeout caused pair closure")
"""Texts in gloo's errors: the file that they come from, or what it says when another thread's timeout closed the connection."""

_WAIT_S = 10.0
"""Seconds in which all living processes notice a broken operation after one of them has."""


def check_launch(configs: Iterable[object]):
    """Refuses a launch whose processes do not know of each other: each would train alone as rank 0, without an error."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    for config in configs:
        known = getattr(config, "world_size", launched)
        if known != launched:
            raise ValueError(
                f"{launched} processes were launched, but each sees {known}. On CPUs set use_cpu: true in the recipe's YAML "
                "(with DeepSpeed: ddp_backend: gloo instead), or launch with --num_processes 1."
            )
    if launched > 1 and distributed.is_available() and distributed.is_initialized():
        for config in configs:
            if isinstance(config, TrainingArguments):
                limit_waiting(config.ddp_timeout)
        _check_same_everywhere(configs)


def _check_same_everywhere(configs: Iterable[Any]):
    """Refuses options that differ between processes: they would train different models or wait for ever."""
    own = {
        item.name: repr(redact(getattr(config, item.name, None), item.name))
        for config in configs
        for item in fields(config)
        if item.name != "local_rank"
    }
    all_of_them: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(all_of_them, own)
    for name in own:
        values = [options[name] for options in all_of_them]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            raise ValueError(
                f"{name} is {values[0]} in process 0 and {values[other]} in process {other}; every process must be given "
                "the same options."
            )


def from_first_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """What `work` returns on the first process, on every process; they wait for it, and its error ends them all.

    Raises:
        RuntimeError: on the others, if `work` raised on the first process, which raises its own error.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except Exception as raised:
            error = raised
    told = [result, None if error is None else " ".join(str(error).split()) or type(error).__name__]
    broadcast_object_list(told)
    if error is not None:
        raise error
    if told[1] is not None:
        raise RuntimeError(told[1])
    return told[0]


def limit_waiting(seconds: float):
    """Sets the time limit of operations over gloo, in all process groups that exist."""
    for group, (backend, _) in list(distributed_c10d._world.pg_map.items()):
        if "gloo" in str(backend):
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def explain(error: BaseException) -> str | None:
    """The sentence for an operation between processes that failed over gloo; `None` for any other error.

    Every process that gets here writes into the shared store how its operation failed. Processes that do not write within ten
    seconds are named.
    """
    words = str(error).lower()
    if not any(word in words for word in _WORDS) or not distributed.is_initialized():
        return None
    own = _TIMEOUT if "timed out" in words or "timeout" in words else _CLOSED
    answers: dict[int, str] = {}
    # A store never answers if the process that keeps it hangs
    asking = threading.Thread(target=_ask, args=(own, answers), daemon=True)
    asking.start()
    asking.join(_WAIT_S + 5)
    missing = sorted(set(range(distributed.get_world_size())) - set(answers))
    if not answers:
        missing = [0]  # without a launcher, process 0 keeps the store
    if not missing:
        return None
    who = " and ".join(map(str, missing))
    if _TIMEOUT in (own, *answers.values()):  # the first process that times out closes its connections to the others
        what = f"No answer from process {who} within ddp_timeout: hung, or at work on one thing for longer than that."
    else:
        what = f"Lost process {who}, which ended first; its own words or the system's log say why."
    return f"{what} resume_from_checkpoint: auto goes on from the newest whole checkpoint."


def _ask(kind: str, answers: dict[int, str]):
    """Writes how this process's operation failed, and collects what the others wrote."""
    store, own, size = distributed_c10d._get_default_store(), distributed.get_rank(), distributed.get_world_size()
    store.set_timeout(timedelta(seconds=_WAIT_S))
    store.set(f"lost/{own}", kind)
    limit = time.monotonic() + _WAIT_S
    while len(answers) < size and time.monotonic() < limit:
        for rank in set(range(size)) - set(answers):
            if store.check([f"lost/{rank}"]):
                answers[rank] = store.get(f"lost/{rank}").decode()
        time.sleep(0.1)
