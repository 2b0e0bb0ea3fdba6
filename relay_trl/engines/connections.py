"""The way to one server: its URL and credentials, and the HTTP clients of the event loops that ask it.

Owns what is secret of a server, how many requests are under way at once, and that connections close with their event loop.
"""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

import openai

from ..redaction import mask_credentials

_CONNECT_TIMEOUT_S = 10.0


@dataclass
class Connection:
    """A client in one event loop, the requests it may have under way, and what closes it."""

    client: openai.AsyncOpenAI
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
        self._auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._headers = dict(headers or {})
        sent = [b64encode(":".join(self._auth).encode()).decode(), self._auth[1]] if self._auth else []
        hidden = (self._api_key, *sent, *self._headers.values())
        self.secrets = tuple(secret for secret in hidden if secret not in ("", "none"))
        self._max_concurrency = max_concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Connection] = WeakKeyDictionary()

    async def get(self) -> Connection:
        """The connection of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            timeout = openai.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_TIMEOUT_S))
            client = openai.AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key,
                timeout=timeout,
                max_retries=self._max_retries,
                default_headers=self._headers,
                # The client's own would close itself in whatever event loop runs when it is collected
                http_client=openai.DefaultAsyncHttpxClient(auth=self._auth),
            )
            connection = Connection(client, asyncio.Semaphore(self._max_concurrency), _close_with_loop(client))
            self._by_loop[loop] = connection
            await anext(connection.end)  # never waits
        return self._by_loop[loop]

    async def aclose(self):
        """Closes the connection of the running event loop; a later request opens a new one."""
        connection = self._by_loop.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.end.aclose()


async def _close_with_loop(client: openai.AsyncOpenAI) -> AsyncGenerator[None, None]:
    """Waits for its end, which `asyncio.run` brings about before it closes its event loop."""
    try:
        yield
    finally:
        await client.close()
