"""How a reply reaches its client: whole, or as server-sent events.

Owns the status, errors before and after the first event, and the time that a client has to read. The contents are in
`responses.py`.
"""

import asyncio

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .protocol import ApiError
from .responses import DONE, event, refusal

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # tells proxies not to collect events before they pass them on
}


class Reply:
    """The reply to one request.

    Args:
        scope, receive, send: as ASGI gives them.
        timeout_s (`float`): seconds that the client may wait before it reads on.

    Attributes:
        status (`int`): of what was sent; 499 until then.
        has_begun (`bool`): whether an event was sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout_s: float):
        self._scope, self._receive, self._to_client = scope, receive, send
        self._timeout_s = timeout_s
        self.status = 499
        self.has_begun = False

    async def _send(self, message: Message):
        async with asyncio.timeout(self._timeout_s):
            await self._to_client(message)

    async def whole(self, response: Response):
        """Sends a response."""
        await response(self._scope, self._receive, self._send)
        self.status = response.status_code

    async def events(self, text: str, is_last: bool = False):
        """Sends events. The first begin the reply."""
        if not self.has_begun:
            self.has_begun = True
            headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": not is_last})
        if is_last:
            self.status = 200

    async def error(self, error: ApiError):
        """Sends an error: as the response, or as the last event if events were sent before it."""
        if self.has_begun:
            await self.events(event(error.body) + DONE, is_last=True)
        else:
            await self.whole(refusal(error))
        self.status = error.status
