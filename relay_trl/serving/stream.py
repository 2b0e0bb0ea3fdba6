"""A streamed answer as server-sent events.

Owns the order of events, what happens when a client hangs up or stops reading, and errors before and after the first token.
The shape of the events is in `responses.py`.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..engines.base import EngineError
from .answer import Answer, Question, answer, ended_together
from .limits import Admission, Limits, cancelled_by_hang_up
from .metrics import Metrics
from .pair import Pair
from .protocol import ApiError
from .reader import Delta
from .responses import Form, event, refusal

logger = logging.getLogger(__name__)

_SIGN_OF_LIFE_S = 15.0
"""After so many seconds without text a comment is sent, so that no proxy closes the connection."""


class EventStream(Response):
    """The answers to one request, sent while they are written.

    Args:
        pair ([`Pair`]).
        places ([`Admission`]), limits ([`Limits`]), metrics ([`Metrics`]): the server's.
        request (`Request`): its body must have been read.
        questions (`list[Question]`): one for each choice.
        form ([`Form`]).
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        pair: Pair,
        places: Admission,
        limits: Limits,
        metrics: Metrics,
        request: Request,
        questions: list[Question],
        form: Form,
    ):
        # Tells proxies not to collect events before they pass them on.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.on_end: Callable[[int], None] = lambda status: None
        self._pair, self._places, self._limits, self._metrics = pair, places, limits, metrics
        self._request, self._questions, self._form = request, questions, form
        self._started = time.perf_counter()
        self._is_open = False
        self._has_text = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        status = 499
        try:
            async with cancelled_by_hang_up(self._request):
                status = await self._serve(scope, receive, send)
        except (ClientDisconnect, OSError):
            self._metrics.hang_ups.inc()
        finally:
            self.on_end(status)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> int:
        try:
            async with self._places.taken(len(self._questions)):
                answers = await self._tell(send)
        except ApiError as refused:
            error = refused
        except EngineError as failure:
            error = student_failed(failure)
        except (OSError, ClientDisconnect):  # a client that does not read raises TimeoutError, which is an OSError
            raise
        except Exception:
            logger.exception("A streamed answer failed.")
            error = ApiError(500, "The server failed; its log says more.", code="internal_error")
        else:
            prompt_tokens = len(self._questions[0].prompt.student)
            self._metrics.add(answers, prompt_tokens)
            await self._send(send, self._form.closing(answers, prompt_tokens), is_last=True)
            return 200
        if not self._is_open:
            await refusal(error)(scope, receive, send)
        else:
            await self._send(send, event(error.body) + "data: [DONE]\n\n", is_last=True)
        return error.status

    async def _tell(self, send: Send) -> list[Answer]:
        """Sends every piece as it comes; returns when all answers have ended."""
        news = asyncio.Event()
        pieces: list[tuple[int, Delta]] = []

        def listener(index: int) -> Callable[[Delta], None]:
            def hear(delta: Delta):
                pieces.append((index, delta))
                news.set()

            return hear

        pair = self._pair
        tasks = [
            asyncio.ensure_future(answer(question, pair.student, pair.teacher, listener(index)))
            for index, question in enumerate(self._questions)
        ]
        async with ended_together(tasks):
            for task in tasks:
                task.add_done_callback(lambda _: news.set())
            running = dict(enumerate(tasks))
            while running:
                try:
                    async with asyncio.timeout(_SIGN_OF_LIFE_S):
                        await news.wait()
                except TimeoutError:
                    await self._send(send, ": still there\n\n")
                    continue
                news.clear()
                told, pieces[:] = list(pieces), []
                events = [self._form.piece(index, delta) for index, delta in _joined(told)]
                ended = [index for index, task in running.items() if task.done()]
                events += [self._form.ending(index, running.pop(index).result()) for index in ended]
                if told and not self._has_text:
                    self._has_text = True
                    self._metrics.first_token.observe(time.perf_counter() - self._started)
                await self._send(send, "".join(events))
        return [task.result() for task in tasks]

    async def _send(self, send: Send, text: str, is_last: bool = False):
        async with asyncio.timeout(self._limits.client_timeout_s):
            if not self._is_open:
                self._is_open = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                text = self._form.opening(len(self._questions)) + text
            await send({"type": "http.response.body", "body": text.encode(), "more_body": not is_last})


def student_failed(error: BaseException) -> ApiError:
    """The error that a client gets when the student failed; the log has more."""
    logger.error("The student failed: %s", error)
    return ApiError(503, "The student cannot answer now.", code="student_unavailable", retry_after_s=5)


def _joined(pieces: list[tuple[int, Delta]]) -> list[tuple[int, Delta]]:
    """The pieces, with consecutive ones of one author joined."""
    joined: list[tuple[int, Delta]] = []
    for index, delta in pieces:
        if joined and joined[-1][0] == index and joined[-1][1].author is delta.author:
            last = joined[-1][1]
            joined[-1] = index, Delta(delta.author, last.text + delta.text, last.tokens + delta.tokens)
        else:
            joined.append((index, delta))
    return joined
