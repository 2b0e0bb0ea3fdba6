"""A small HTTP proxy between a trainer and its teacher's server that fails on request.

A fault is what a network, a load balancer or a broken server can do to one request. Other requests pass unchanged.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

LIMIT = 64 << 20


class Request:
    """A request as it came, and what may be done with it."""

    def __init__(self, head: bytes, body: bytes, reader, writer, upstream: tuple[str, int]):
        self.head, self.body = head, body
        self.reader: asyncio.StreamReader = reader
        self.writer: asyncio.StreamWriter = writer
        self.method, self.path = head.split(b" ", 2)[:2]
        self._upstream = upstream

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    async def forward(self) -> tuple[bytes, bytes]:
        """The server's answer: its head and its body, read to the end."""
        reader, writer = await asyncio.open_connection(*self._upstream, limit=LIMIT)
        try:
            lines = [
                line for line in self.head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"host:"))
            ]
            lines[1:1] = [b"Host: %s:%d" % (self._upstream[0].encode(), self._upstream[1]), b"Connection: close"]
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + self.body)
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return head, body

    async def answer(self, status: int, body: bytes, **headers: str):
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()


Fault = Callable[[Request], Awaitable[None]]


async def refuse(request: Request):
    request.writer.transport.abort()


async def hang(request: Request):
    await request.reader.read()  # until the other side gives up


async def cut_in_the_body(request: Request):
    head, body = await request.forward()
    request.writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
    await request.writer.drain()
    request.writer.transport.abort()


def status(code: int, retry_after: str | None = None) -> Fault:
    async def fault(request: Request):
        body = json.dumps({"error": {"message": f"[Info: teacher out of order, status {code}]"}}).encode()
        headers = {} if retry_after is None else {"Retry_After": retry_after}
        await request.answer(code, body, Content_Type="application/json", **headers)

    return fault


def slow(seconds: float) -> Fault:
    async def fault(request: Request):
        await asyncio.sleep(seconds)
        head, body = await request.forward()
        request.writer.write(head + b"\r\n\r\n" + body)
        await request.writer.drain()

    return fault


def garble(change: Callable[[bytes], bytes]) -> Fault:
    """The server's answer with its body changed."""

    async def fault(request: Request):
        _, body = await request.forward()
        await request.answer(200, change(body), Content_Type="application/json")

    return fault


def edit(change: Callable[[dict], None]) -> Fault:
    """The server's answer with the first choice of its JSON changed."""

    def changed(body: bytes) -> bytes:
        answer = json.loads(body)
        change(answer["choices"][0])
        return json.dumps(answer).encode()

    return garble(changed)


FAULTS: dict[str, Fault] = {
    "refused": refuse,
    "hangs": hang,
    "cut in the body": cut_in_the_body,
    "429": status(429),
    "429 with Retry-After": status(429, "1"),
    "429 with a date": status(429, "Wed, 21 Oct 2015 07:28:00 GMT"),
    "500": status(500),
    "503": status(503),
    "503 with Retry-After": status(503, "0.2"),
    "503 with a broken Retry-After": status(503, "soon"),
    "broken JSON": garble(lambda body: body[:-20]),
    "an empty body": garble(lambda body: b""),
    "a page of HTML": garble(lambda body: b"<html><body>[Info: welcome]</body></html>"),
    "invalid UTF-8": garble(lambda body: body.replace(b'"text":"', b'"text":"\xff\xfe\xc3')),
    "no choices": garble(lambda body: b'{"choices": []}'),
    "no finish reason": edit(lambda choice: choice.update(finish_reason=None)),
    "negative ids": edit(lambda choice: choice.update(token_ids=[-1] * 3)),
    "ids beyond the vocabulary": edit(lambda choice: choice.update(token_ids=[10**9])),
    "ids that are no numbers": edit(lambda choice: choice.update(token_ids=["1", None, True])),
    "too many tokens": edit(
        lambda choice: choice.update(token_ids=choice["token_ids"][:1] * 5000, finish_reason="length")
    ),
    "empty text": edit(lambda choice: choice.update(text="", token_ids=[], finish_reason="length")),
    "NaN logprobs": garble(
        lambda body: body.replace(b'"logprobs":null', b'"logprobs":{"token_logprobs":[NaN, Infinity]}')
    ),
    "slow": slow(1.5),
}
"""What may happen to a request, by name."""

PASSING = ["refused", "hangs", "cut in the body", "429", "429 with Retry-After", "429 with a date", "500", "503"]
PASSING += ["503 with Retry-After", "503 with a broken Retry-After"]
"""Faults that a client may try again after."""

HARMLESS = ["NaN logprobs", "slow"]
"""Oddities that change no answer."""

ALTERED = ["too many tokens", "empty text"]
"""Answers that are well-formed, so that they count, within the limits of the call."""

LASTING = [name for name in FAULTS if name not in (*HARMLESS, *ALTERED)]
"""Faults that, where they last, cost the rollout."""


class FaultProxy:
    """Passes requests on to `upstream`, but for those that `choose` names a fault for. Runs in a thread of its own.

    Attributes:
        choose (`Callable[[Request], str | None]`): a name in [`FAULTS`] for every POST, or `None`.
        seen (`Counter`): faults that were made, and `"passed"`.
        in_flight (`int`): requests that have come and are not answered.
    """

    def __init__(self, upstream: str):
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.choose: Callable[[Request], str | None] = lambda request: None
        self.seen: Counter[str] = Counter()
        self.in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.open()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def open(self):
        """Listens, on the same port as before."""

        async def listen():
            return await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=LIMIT)

        self._server = asyncio.run_coroutine_threadsafe(listen(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self):
        """Lets nobody in and drops who is in: the machine is gone."""

        async def stop():
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()

    def settle(self, limit_s: float = 5.0) -> bool:
        """Waits until no request is open; whether that came about."""
        limit = time.monotonic() + limit_s
        while self.in_flight and time.monotonic() < limit:
            time.sleep(0.01)
        return self.in_flight == 0

    def close(self):
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._writers.add(writer)
        try:
            while request := await self._read(reader, writer):
                self.in_flight += 1
                try:
                    await self._handle(request)
                finally:
                    self.in_flight -= 1
                break  # one request a connection: what follows a fault is another's
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._writers.discard(writer)
            with suppress(ConnectionError):
                writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)
        return Request(head[:-4], await reader.readexactly(length), reader, writer, self._upstream)

    async def _handle(self, request: Request):
        name = self.choose(request) if request.method == b"POST" else None
        self.seen[name or "passed"] += 1
        if name is not None:
            await FAULTS[name](request)
            return
        try:
            head, body = await request.forward()
        except OSError:  # the server behind is gone
            request.writer.transport.abort()
            return
        if not head:
            request.writer.transport.abort()
            return
        request.writer.write(head + b"\r\n\r\n" + body)
        await request.writer.drain()
