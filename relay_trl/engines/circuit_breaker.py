"""A circuit breaker around a teacher: after a failure it is not asked for a while, so that no request waits in vain.

Owns when a teacher counts as down and which request tries it again. Retries of one request are the engine's own.
"""

import asyncio
import logging
import time
from typing import Any

from ..vocabulary import Vocabulary
from .base import Context, Engine, EngineError, Generation, OnTokens, Sampling
from .loading import close_engines

logger = logging.getLogger(__name__)

_PASSING = (408, 409, 429)


class GuardedTeacher:
    """Asks a teacher, unless it failed within the last `pause_s` seconds. After the pause, one request tries it.

    Args:
        engine ([`Engine`]): the teacher.
        pause_s (`float`, defaults to `5.0`): seconds without a request after a failure.

    Attributes:
        is_up (`bool`): whether the teacher answered the last request that shows it.
    """

    def __init__(self, engine: Engine, pause_s: float = 5.0):
        self.engine = engine
        self.name = engine.name
        self.api = getattr(engine, "api", "")
        self.is_up = True
        self._pause_s = pause_s
        self._next_try = 0.0

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
        now = time.monotonic()
        if not self.is_up:
            if now < self._next_try:
                raise EngineError(f"{self.name} failed less than {self._pause_s:g} s ago and is not asked yet.")
            self._next_try = now + self._pause_s  # this request tries it; the others do not wait for the result
        heard: dict[str, Any] = {} if on_tokens is None else {"on_tokens": on_tokens}
        try:
            written = await self.engine.generate(context, max_tokens, stop, sampling, **heard)
        except EngineError as error:
            if _is_outage(error):
                if self.is_up:
                    logger.warning("The teacher is down, answers go on without it: %s", error)
                self.is_up = False
                self._next_try = time.monotonic() + self._pause_s
            raise
        except asyncio.CancelledError:
            self._next_try = now  # cancelled, so nothing is known yet
            raise
        if not self.is_up:
            logger.warning("The teacher answers again.")
        self.is_up = True
        return written

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        """See [`ScoringEngine.alternatives`]; `None` if the engine has none."""
        ask = getattr(self.engine, "alternatives", None)
        return None if ask is None else await ask(ids, start, top)

    async def aclose(self):
        """Closes the engine's connections, if it has any."""
        await close_engines(self.engine)


def _is_outage(error: EngineError) -> bool:
    """Whether the next request would fail too. Not so if this one was refused for its content."""
    status = getattr(error.__cause__, "status_code", None)
    return status is None or not 400 <= status < 500 or status in (401, 403, 404, *_PASSING)
