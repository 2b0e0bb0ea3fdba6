"""Runs an engine of this process in its own thread, so that its steps do not block a server.

Owns the way between the two event loops: requests and cancellations go over, tokens and answers come back in order.
"""

import asyncio
import threading

from ..vocabulary import Vocabulary
from .base import Context, Engine, Generation, OnTokens, Sampling


class ThreadedEngine:
    """Runs an engine's coroutines on an event loop in another thread.

    Args:
        engine ([`Engine`]): must not be used elsewhere.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.name = engine.name
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"engine {engine.name}", daemon=True).start()

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self.engine.vocabulary

    @property
    def max_context(self) -> int | None:
        return self.engine.max_context

    async def generate(
        self,
        context: Context,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = Sampling(),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        loop = asyncio.get_running_loop()
        heard = {}
        if on_tokens is not None:

            def tell(piece: list[int] | str):
                loop.call_soon_threadsafe(on_tokens, piece)

            heard = {"on_tokens": tell}
        job = self.engine.generate(context, max_tokens, stop, sampling, **heard)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(job, self._loop))

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        ask = getattr(self.engine, "alternatives", None)
        job = None if ask is None else ask(ids, start, top)
        return job and await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(job, self._loop))

    def close(self):
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
