"""How a program of this package ends: an expected error as one sentence, and the exit status.

Imports neither torch nor transformers: what needs no model is said without waiting for them. What an operation between processes
failed of is `launch.py`'s to say.
"""

import atexit
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType

from safetensors import SafetensorError

from ..engines.base import EngineError

EXPECTED = (ValueError, TypeError, ImportError, OSError, EngineError, RuntimeError, SafetensorError)
"""Errors that a user can fix; they are shown as one sentence."""


def run(main: Callable[[], None]):
    """Runs a recipe's `main`; an expected error becomes one sentence on stderr and exit status 1.

    Set RELAY_TRL_TRACEBACK=1 to see where it came from.
    """
    status = 0
    try:
        main()
    except Exception as raised:
        error = first_of(raised)
        jinja = sys.modules.get("jinja2")  # not imported for this
        if not isinstance(error, (*EXPECTED, *((jinja.TemplateError,) if jinja else ()))):
            raise
        if os.environ.get("RELAY_TRL_TRACEBACK") == "1":
            _print_frames(error)
        rank = os.environ.get("RANK", "0")
        where = f"[rank {rank}] " if rank != "0" else ""
        words = _explained(error) or " ".join(str(error).split()) or type(error).__name__
        print(f"{where}error: {words}", file=sys.stderr, flush=True)
        status = 1
    if (group := _process_group()) and group.get_world_size() > 1:
        end_process(status)
    if status:
        sys.exit(status)


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, of which tasks that run side by side raise one; any other error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _process_group() -> ModuleType | None:
    """`torch.distributed`, if this program has loaded it and is one of several processes."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def _explained(error: BaseException) -> str | None:
    if not _process_group():
        return None
    from .launch import explain

    return explain(error)


def _print_frames(error: BaseException | None):
    """Prints where an error and its causes came from, without their messages: a server may have repeated a key in them."""
    while error is not None:
        print(f"{type(error).__name__}, from:", file=sys.stderr)
        traceback.print_tb(error.__traceback__)
        error = error.__cause__ or error.__context__


def end_in_order():
    """Exits with status 0 after SIGTERM or SIGINT: uvicorn raises the signal again when it has shut down."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))


def end_process(status: int = 0):
    """Ends one of several processes, after the functions that are registered with `atexit`.

    If the process group were destroyed, by hand or with the interpreter, gloo's running threads would sometimes abort the process.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
