"""Several servers of one model as one engine: which server gets a request, and what happens when one fails.

Owns the choice of a server. `openai.py` sends the requests, `loading.py` makes the engines of the servers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

from .base import Context, EngineError, Generation, OnTokens, Sampling, Scores
from .openai import OpenAIEngine
from .replies import REQUESTS_FAULTS

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_CHECK_LIMIT_S = 10.0
_POLL_S = 0.05


@dataclass
class _Endpoint:
    engine: OpenAIEngine
    in_flight: int = 0
    failures: int = 0  # since it last answered
    is_out: bool = False
    is_being_checked: bool = False
    back_at: float = 0.0
    fault: str = ""


class EnginePool(Scores):
    """Asks several servers that serve the same model.

    A rollout is one task of the event loop. Its requests stay with the server that answered the last one, which has their
    context in its prefix cache; the first request goes to the server with the fewest requests under way. When a server fails,
    it is left out and its requests go to the others at once. After a pause, which doubles each time from 1 to 60 s, it is
    checked and used again if it passes. A request that every server would refuse (status 400, 413 or 422) does not count as a
    server's failure.

    Args:
        engines (`Sequence[OpenAIEngine]`): one per server, with one vocabulary among them, checked. Give them no retries
            of their own: the pool's are better spent on another server.
        max_retries (`int`, defaults to `4`): how often a request is tried again once every server has failed it. While
            every server has failed more often than that without an answer in between, requests fail at once.

    Attributes:
        name (`str`): the URLs.
        vocabulary ([`Vocabulary`], *optional*), api (`str`): of all servers.
        max_context (`int`, *optional*): the smallest of the servers'.

    Raises:
        EngineError: the servers do not serve the same model in the same way.
    """

    def __init__(self, engines: Sequence[OpenAIEngine], max_retries: int = 4):
        _refuse_differences(engines)
        self.name = " ".join(engine.name for engine in engines)
        self.vocabulary = engines[0].vocabulary
        self.api = engines[0].api
        self.max_context = min((e.max_context for e in engines if e.max_context is not None), default=None)
        self._endpoints = [_Endpoint(engine) for engine in engines]
        self._max_retries = max_retries
        self._homes: WeakKeyDictionary[asyncio.Task, _Endpoint] = WeakKeyDictionary()

    async def generate(
        self,
        context: Context,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = Sampling(),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Continue `context` by at most `max_tokens` tokens; see [`Engine.generate`]. An answer that breaks off when a
        listener has heard its beginning goes to no other server.

        Raises:
            EngineError: the request is wrong, or no server answered it.
        """
        return await self._ask(lambda engine: engine.generate(context, max_tokens, stop, sampling, on_tokens))

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        """Log-probabilities from one of the servers; see [`OpenAIEngine.alternatives`]."""
        return await self._ask(lambda engine: engine.alternatives(ids, start, top))

    async def _ask(self, ask: Callable[[OpenAIEngine], Awaitable[Answer]]) -> Answer:
        asking = asyncio.current_task()
        assert asking is not None  # a coroutine runs in a task
        for _ in range(len(self._endpoints) + self._max_retries):
            endpoint = await self._next(self._homes.get(asking))
            endpoint.in_flight += 1
            try:
                if endpoint.is_out:
                    await self._check(endpoint)
                answer = await ask(endpoint.engine)
            except EngineError as error:
                if getattr(error.__cause__, "status_code", None) in REQUESTS_FAULTS:
                    raise
                self._leave_out(endpoint, error)
                if error.written is not None:
                    raise
                continue
            finally:
                endpoint.in_flight -= 1
            endpoint.failures = 0
            self._homes[asking] = endpoint
            return answer
        raise self._given_up()

    async def aclose(self):
        """Closes the connections of the running event loop; the pool can be used again."""
        await asyncio.gather(*(endpoint.engine.aclose() for endpoint in self._endpoints))

    async def _next(self, home: _Endpoint | None) -> _Endpoint:
        """The server to ask, as soon as there is one; `home` answered last time."""
        while (endpoint := self._choose(home)) is None:
            if all(e.failures > self._max_retries and not e.is_being_checked for e in self._endpoints):
                raise self._given_up()
            await asyncio.sleep(_POLL_S)
        return endpoint

    def _choose(self, home: _Endpoint | None) -> _Endpoint | None:
        now = time.monotonic()
        for endpoint in self._endpoints:  # one request tries a server again; the others use those that are up
            if endpoint.is_out and not endpoint.is_being_checked and now >= endpoint.back_at:
                return endpoint
        if home is not None and not home.is_out:
            return home
        serving = (endpoint for endpoint in self._endpoints if not endpoint.is_out)
        return min(serving, key=lambda endpoint: endpoint.in_flight, default=None)

    async def _check(self, endpoint: _Endpoint):
        """Brings a server back if it is up and still serves the model; the request in hand goes there then."""
        endpoint.is_being_checked = True
        try:
            async with asyncio.timeout(_CHECK_LIMIT_S):
                await endpoint.engine.check()
        except TimeoutError as error:
            raise EngineError(f"{endpoint.engine.name} did not pass a check within {_CHECK_LIMIT_S:g} s.") from error
        finally:
            endpoint.is_being_checked = False
        endpoint.is_out = False
        logger.warning("%s answers again.", endpoint.engine.name)

    def _leave_out(self, endpoint: _Endpoint, error: EngineError):
        now = time.monotonic()
        if endpoint.is_out and now < endpoint.back_at:
            return  # the requests that were under way there fail too, which counts as one failure
        pause = min(_FIRST_PAUSE_S * 2**endpoint.failures, _LONGEST_PAUSE_S)
        endpoint.failures += 1
        endpoint.is_out, endpoint.back_at, endpoint.fault = True, now + pause, str(error)
        logger.warning("A server is left out for %.0f s: %s", pause, error)

    def _given_up(self) -> EngineError:
        last = max(self._endpoints, key=lambda endpoint: endpoint.back_at)
        return EngineError(
            f"None of the {len(self._endpoints)} servers of the pool answers. The last fault: {last.fault}"
        )


def _refuse_differences(engines: Sequence[OpenAIEngine]):
    for what, values in {
        "different models": [engine.model for engine in engines],
        "different APIs": [engine.api for engine in engines],
        "token ids here and text there": [engine.gives_ids for engine in engines],
    }.items():
        if len(set(values)) > 1:
            listed = ", ".join(f"{engine.name}: {value!r}" for engine, value in zip(engines, values, strict=True))
            raise EngineError(
                f"The servers of a pool must be alike, but they give {what} ({listed}); start them alike, with one "
                "--served-model-name, or name fewer."
            )
