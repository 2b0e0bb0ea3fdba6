"""Admits requests: API keys, places for answers under way, the queue, and the size of a body.

Owns the refusals with 401, 408, 413, 415 and 429. The parameters of a request are checked in `protocol.py`.
"""

import asyncio
import hashlib
import hmac
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from .protocol import ApiError


@dataclass(kw_only=True)
class Limits:
    """The limits of a server.

    Args:
        max_in_flight (`int`, defaults to `256`): answers under way at once.
        max_queue (`int`, defaults to `256`): requests that wait for a place; more are refused with 429.
        max_body_bytes (`int`, defaults to `1048576`): longest body of a request.
        max_prompt_length (`int`, *optional*): most tokens of a prompt; `None`: only the student's context limits it.
        body_timeout_s (`float`, defaults to `30.0`): seconds to receive a body.
        client_timeout_s (`float`, defaults to `60.0`): seconds that a client may wait before it reads on.
    """

    max_in_flight: int = 256
    max_queue: int = 256
    max_body_bytes: int = 1 << 20
    max_prompt_length: int | None = None
    body_timeout_s: float = 30.0
    client_timeout_s: float = 60.0


class Keys:
    """The accepted API keys. The comparison takes the same time for every wrong key.

    Args:
        keys (`Iterable[str]`): without any, everybody may ask.
    """

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    def check(self, request: Request):
        """Refuses a request without one of the keys.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        if not any([hmac.compare_digest(given, digest) for digest in self._digests]):
            raise ApiError(
                401, "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.", code="invalid_api_key"
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


class Admission:
    """Places for answers under way, and a queue for requests that wait for one, in order of arrival.

    Args:
        most (`int`): answers under way at once.
        queue (`int`): requests that may wait.

    Attributes:
        in_flight (`int`): answers under way.
    """

    def __init__(self, most: int, queue: int):
        self._most, self._queue = most, queue
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.in_flight = 0

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Waits for `count` places and holds them.

        Raises:
            ApiError: 429 if the queue is full, 400 if there are never so many places.
        """
        await self._enter(count)
        try:
            yield
        finally:
            self._leave(count)

    async def _enter(self, count: int):
        if count > self._most:
            raise ApiError(
                400, f"n is {count}; this server answers at most {self._most} at once.", "n", "invalid_value"
            )
        if not self._waiting and self.in_flight + count <= self._most:
            self.in_flight += count
            return
        if len(self._waiting) >= self._queue:
            raise ApiError(
                429,
                f"{self.in_flight} answers are under way and {len(self._waiting)} requests wait; try again later.",
                code="rate_limit_exceeded",
                retry_after_s=1 + len(self._waiting) // max(1, self._most),
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave(count)  # it got a place at the moment in which it was cancelled
            else:
                self._waiting.remove((count, place))
            raise

    def _leave(self, count: int):
        self.in_flight -= count
        while self._waiting and self.in_flight + self._waiting[0][0] <= self._most:
            wanted, place = self._waiting.popleft()
            if not place.done():
                self.in_flight += wanted
                place.set_result(None)


async def read_body(request: Request, most: int, limit_s: float) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 413 if it has more than `most` bytes, 408 if it takes longer than `limit_s`, 415 if its type is not JSON.
        ClientDisconnect: the client hung up.
    """
    # A browser lets pages of other sites send any type but this one without asking the server first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"The content type is {kind!r}; send 'application/json'.", code="invalid_content_type")
    too_large = ApiError(413, f"The body is larger than {most} bytes.", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limit_s):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"The body did not come within {limit_s:g} s.", code="request_timeout") from None
    return b"".join(parts)


async def has_gone(request: Request):
    """Returns when the client has hung up. Only for use after the body was read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


@asynccontextmanager
async def cancelled_by_hang_up(request: Request) -> AsyncIterator[None]:
    """Cancels the block when the client hangs up.

    Raises:
        ClientDisconnect: the client hung up.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch():
        nonlocal gone
        await has_gone(request)
        gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
        if gone:
            await asyncio.sleep(0)  # so that the cancellation arrives here and not later
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnect() from None
        raise
    finally:
        watcher.cancel()
