"""What all routes of the API share: the check of the key, hang-ups, errors in OpenAI's form, counters.

Owns which failure becomes which error. `app.py` has the routes.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from ..engines.base import EngineError
from .limits import Keys, Limits
from .metrics import Metrics
from .pair import PromptError
from .protocol import ApiError
from .reply import Reply

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ApiRoute:
    """What all of `/v1` shares: the check of the key, hang-ups, errors in OpenAI's form, counters. An ASGI application."""

    keys: Keys
    limits: Limits
    metrics: Metrics
    answer: Callable[[Request, Reply], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        request = Request(scope, receive)
        reply = Reply(scope, receive, send, self.limits.client_timeout_s)
        metrics, started = self.metrics, time.perf_counter()
        try:
            try:
                self.keys.check(request)
                await self.answer(request, reply)
            except (ClientDisconnect, OSError):
                raise
            except Exception as failure:
                await reply.error(_as_api_error(failure))
        except (ClientDisconnect, OSError):  # a client that does not read raises TimeoutError, which is an OSError
            metrics.hang_ups.inc()
        finally:
            metrics.requests.labels(scope["route"].path, str(reply.status)).inc()
            if request.method == "POST":
                metrics.seconds.observe(time.perf_counter() - started)


def _as_api_error(failure: Exception) -> ApiError:
    if isinstance(failure, ApiError):
        return failure
    if isinstance(failure, PromptError):
        return ApiError(400, str(failure), failure.param, failure.code)
    if isinstance(failure, EngineError):
        logger.error("The student failed: %s", failure)
        return ApiError(503, "The student cannot answer now.", code="student_unavailable", retry_after_s=5)
    logger.error("A request failed.", exc_info=failure)
    return ApiError(500, "The server failed; its log says more.", code="internal_error")
