"""The way to one server: its URL and credentials, the connections of the event loops that ask it, and when a request is sent again.

Owns what is secret of a server, how many requests are under way at once, and that connections close with their event loop.
aiohttp sends the requests: one costs an eighth of the processor time that the `openai` client takes (`benchmarks/clients.py`).
"""

import asyncio
import json
import os
import random
import ssl
import time
import weakref
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from itertools import count
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from yarl import URL

from ..redaction import mask_credentials

_CONNECT_TIMEOUT_S = 10.0
_KEEP_S = 4.0
"""Seconds that an idle connection is kept: less than the 5 after which uvicorn closes it."""

_DELAY_S, _LONGEST_DELAY_S, _LONGEST_ASKED_S = 0.5, 8.0, 60.0
_jitter = random.Random()  # not the generator whose seed a training sets


class RequestError(Exception):
    """A request that failed after all tries.

    Args:
        said (`str`): the server's words, or those of the failure.
        status_code (`int`, *optional*): what the server answered; `None` if no answer came.
        is_timeout (`bool`, defaults to `False`): whether it took too long.
    """

    def __init__(self, said: str, status_code: int | None = None, is_timeout: bool = False):
        super().__init__(said)
        self.said, self.status_code, self.is_timeout = said, status_code, is_timeout

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status_code in (None, 408, 409, 429) or self.status_code >= 500


class BrokenOff(RequestError):
    """An answer that began and did not come to its end."""


@dataclass
class Connection:
    """A session in one event loop, the requests it may have under way, and what closes it."""

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    end: AsyncGenerator[None, None]


class Connections:
    """Connections to one server; arguments as of [`OpenAIEngine`].

    Attributes:
        name (`str`): the URL, without credentials.
        secrets (`tuple[str, ...]`): what the server may repeat in its faults: key, headers, and the URL's password plain
            and as it is sent.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        headers: dict[str, str] | None,
        max_concurrency: int,
        timeout_s: float,
        max_retries: int,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = mask_credentials(base_url)
            raise ValueError(f"{shown!r} is no URL of a server; give one like http://localhost:8000/v1.")
        if max_concurrency < 1 or timeout_s <= 0 or max_retries < 0:
            raise ValueError(
                f"max_concurrency={max_concurrency}, timeout_s={timeout_s}, max_retries={max_retries}: they must be "
                "at least 1, above 0, and at least 0."
            )
        wrong = [key for key, value in (headers or {}).items() if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"The header {wrong[0]!r} has a value that is no text; put it in quotes.")
        base_url = urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))
        self.name = mask_credentials(base_url)
        # Not in the URL of a request, which the HTTP library logs
        self._base_url = base_url.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        hidden, given = [key, *(headers or {}).values()], f"Bearer {key}"
        if parts.username:
            password = unquote(parts.password or "")
            encoded = b64encode(f"{unquote(parts.username)}:{password}".encode()).decode()
            hidden += [encoded, password]
            given = f"Basic {encoded}"
        self._headers = {"Content-Type": "application/json", "Authorization": given, **(headers or {})}
        self.secrets = tuple(secret for secret in hidden if secret not in ("", "none"))
        self._max_concurrency = max_concurrency
        self._timeout_s = timeout_s
        self._tries = max_retries + 1
        self._by_loop: dict[asyncio.AbstractEventLoop, Connection] = {}
        weakref.finalize(self, _drop, self._by_loop)  # in event loops that are never closed

    async def get(self) -> Connection:
        """The connection of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            wait_s = self._timeout_s
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_S, ssl=_certificates(self._base_url)),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(None, sock_connect=min(wait_s, _CONNECT_TIMEOUT_S), sock_read=wait_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                **_proxy(self._base_url),
            )
            end = _close_with_loop(session, self._by_loop)
            self._by_loop[loop] = Connection(session, asyncio.Semaphore(self._max_concurrency), end)
            await anext(end)  # never waits
        return self._by_loop[loop]

    async def send(
        self, path: str, body: dict[str, Any] | None, read: Callable[[aiohttp.ClientResponse], Awaitable[Any]]
    ) -> Any:
        """What `read` makes of the answer to a request. A request that fails in a passing way is sent again.

        Args:
            path (`str`): behind the URL of the API.
            body (`dict`, *optional*): sent as JSON; `None` asks with GET.
            read (`Callable`): reads a good answer; if it raises [`BrokenOff`], the request is sent again.

        Raises:
            RequestError: there was no good answer in all tries.
        """
        connection = await self.get()
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        method, url = "GET" if data is None else "POST", f"{self._base_url}/{path}"
        async with connection.slots:
            for tried in count():
                asked: str | None = None
                try:
                    async with connection.session.request(method, url, data=data) as response:
                        if response.status < 400:
                            return await read(response)
                        asked = response.headers.get("Retry-After")
                        fault = RequestError((await response.read()).decode(errors="replace"), response.status)
                except RequestError as error:
                    fault = error
                except TimeoutError as error:
                    fault = RequestError(str(error) or type(error).__name__, is_timeout=True)
                except (aiohttp.ClientError, OSError) as error:
                    fault = RequestError(str(error) or type(error).__name__)
                if not fault.is_passing or tried == self._tries - 1:
                    raise fault
                await asyncio.sleep(_delay_s(tried, asked))

    async def aclose(self):
        """Closes the connection of the running event loop; a later request opens a new one."""
        connection = self._by_loop.get(asyncio.get_running_loop())
        if connection is not None:
            await connection.end.aclose()


def _delay_s(tried: int, asked: str | None) -> float:
    """Seconds before the next try: those that the server asked for, or twice as long each time."""
    if asked:
        date = parsedate_tz(asked)
        try:
            seconds = mktime_tz(date) - time.time() if date else float(asked)
        except ValueError:
            seconds = 0.0
        if 0 < seconds <= _LONGEST_ASKED_S:
            return seconds
    return min(_DELAY_S * 2**tried, _LONGEST_DELAY_S) * (1 - 0.25 * _jitter.random())


def _certificates(url: str) -> ssl.SSLContext | bool:
    """Whom to trust: SSL_CERT_FILE and SSL_CERT_DIR, or Mozilla's list."""
    if not url.startswith("https:"):
        return True
    is_given = "SSL_CERT_FILE" in os.environ or "SSL_CERT_DIR" in os.environ
    return ssl.create_default_context(cafile=None if is_given else certifi.where())


def _proxy(url: str) -> dict[str, Any]:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for a URL, as a session takes it."""
    parts = urlsplit(url)
    named = getproxies().get(parts.scheme) or getproxies().get("all")
    if not named or proxy_bypass(parts.netloc):
        return {}
    proxy = URL(named if "://" in named else f"http://{named}")
    auth = aiohttp.BasicAuth(proxy.user, proxy.password or "") if proxy.user else None
    return {"proxy": proxy.with_user(None), "proxy_auth": auth}


async def _close_with_loop(session: aiohttp.ClientSession, by_loop: dict) -> AsyncGenerator[None, None]:
    """Waits for its end, which `asyncio.run` brings about before it closes its event loop."""
    try:
        yield
    finally:
        by_loop.pop(asyncio.get_running_loop(), None)
        await session.close()


def _drop(by_loop: dict[asyncio.AbstractEventLoop, Connection]):
    """Closes what event loops that do not run any more have left open; aiohttp would complain."""
    for loop, connection in by_loop.items():
        if loop.is_closed():
            connection.session.detach()
            continue
        closing = connection.session.close()
        with suppress(StopIteration):
            closing.send(None)  # closes the transports; nobody is left to wait for their last words
        closing.close()
