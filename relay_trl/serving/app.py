"""The server's routes: OpenAI's chat and completions over a pair, its models, health and metrics.

Owns the steps of a request: key, body, parameters, prompt, place, answer, reply. Each step has its own module.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..costs import PriceTable
from ..engines.base import EngineError
from ..redaction import mask_credentials
from ..relay import RelayPrompt
from .answer import News, Question, answer_all, choice_seed
from .chat_page import render_chat_page
from .limits import Admission, Keys, Limits, cancelled_by_hang_up, read_body
from .metrics import Metrics
from .pair import Pair, PromptError
from .protocol import LIMITS, AnyRequest, ApiError, ChatRequest, CompletionRequest, parse
from .protocol import Request as Asked
from .reply import Reply
from .responses import Form, refusal

logger = logging.getLogger(__name__)


_MOST_QUIET_S = 15.0
"""After so many seconds without text a comment is sent."""


class RelayServer:
    """A pair behind HTTP.

    Args:
        pair ([`Pair`]).
        model (`str`): the name it is served under.
        keys (`list[str]`): API keys; without any, everybody may ask.
        limits ([`Limits`]).
        prices ([`PriceTable`], *optional*): for the page at `/`.
    """

    def __init__(
        self,
        pair: Pair,
        model: str,
        keys: list[str] = [],  # noqa: B006
        limits: Limits = Limits(),
        prices: PriceTable | None = None,
    ):
        self.pair = pair
        self.model = model
        self.limits = limits
        self.metrics = Metrics()
        self.keys = Keys(keys)
        self.places = Admission(limits.max_in_flight, limits.max_queue)
        self._started = int(time.time())
        self._page = render_chat_page(model, pair.holds_conversation, prices)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/v1/chat/completions", _Route(self, self.chat), methods=["POST"]),
            Route("/v1/completions", _Route(self, self.completions), methods=["POST"]),
            Route("/v1/models", _Route(self, self.models), methods=["GET"]),
            Route("/v1/models/{model:path}", _Route(self, self.models), methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.show_metrics, methods=["GET"]),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _http_error})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette):
        yield
        for engine in (self.pair.student, self.pair.teacher):
            close = getattr(engine, "aclose", None)
            if close is not None:
                await close()

    async def chat(self, request: Request, reply: Reply):
        """`/v1/chat/completions`."""
        asked = await self._read(request, ChatRequest)
        prompt = self.pair.chat([message.to_dict() for message in asked.messages])
        await self._answer(request, reply, asked, prompt, Form("chat", self.model, _wants_usage(asked)))

    async def completions(self, request: Request, reply: Reply):
        """`/v1/completions`."""
        asked = await self._read(request, CompletionRequest)
        prompt = self.pair.complete(asked.prompt)
        await self._answer(request, reply, asked, prompt, Form("text", self.model, _wants_usage(asked)))

    async def _read(self, request: Request, kind: type[AnyRequest]) -> AnyRequest:
        body = await read_body(request, self.limits.max_body_bytes, self.limits.body_timeout_s)
        try:
            parsed = json.loads(body.decode(), parse_constant=_no_constant)
            if b"\\ud" in body.lower():  # JSON may hold half of a surrogate pair; tokenizers refuse it
                json.dumps(parsed, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # also for bytes that are not UTF-8
            raise ApiError(400, f"The body is no valid JSON: {error}.", code="invalid_json") from None
        asked = parse(parsed, kind)
        self._check_model(asked.model)
        return asked

    def _check_model(self, model: str):
        if model != self.model:
            raise ApiError(
                404, f"The model {model!r} does not exist; this server has {self.model!r}.", "model", "model_not_found"
            )

    async def _answer(self, request: Request, reply: Reply, asked: Asked, prompt: RelayPrompt, form: Form):
        questions = self._questions(asked, prompt)
        started, has_text = time.perf_counter(), False

        async def tell(news: News):
            nonlocal has_text
            if news and not has_text:
                has_text = True
                self.metrics.first_token.observe(time.perf_counter() - started)
            await reply.events(("" if reply.has_begun else form.opening(asked.n)) + form.news(news))

        async with cancelled_by_hang_up(request), self.places.taken(asked.n):
            answers = await answer_all(
                questions, self.pair.student, self.pair.teacher, tell if asked.stream else None, _MOST_QUIET_S
            )
        length = len(prompt.student)
        self.metrics.add(answers, length)
        if asked.stream:
            await reply.events(form.closing(answers, length), is_last=True)
        else:
            await reply.whole(JSONResponse(form.whole(answers, length)))

    def _questions(self, asked: Asked, prompt: RelayPrompt) -> list[Question]:
        length, most = len(prompt.student), self.limits.max_prompt_length
        if most is not None and length > most:
            raise PromptError(
                f"The prompt has {length} tokens; there is room for {most}, answer included.",
                code="context_length_exceeded",
            )
        options = asked.options
        for name in LIMITS:
            own = getattr(self.pair.rules, name)
            if own is not None:
                options[name] = min(options.get(name, own), own)
        questions = [
            self.pair.question(prompt, seed=choice_seed(asked.seed, index), **options) for index in range(asked.n)
        ]
        room = questions[0].config.max_completion_tokens
        if asked.max_tokens is not None and asked.max_tokens > room:
            raise PromptError(
                f"max_tokens is {asked.max_tokens}; after a prompt of {length} tokens there is room for {room}.",
                "max_tokens",
                "context_length_exceeded",
            )
        return questions

    async def models(self, request: Request, reply: Reply):
        """`/v1/models`, and one of them."""
        teacher = self.pair.teacher
        data = {
            "id": self.model,
            "object": "model",
            "created": self._started,
            "owned_by": "relay_trl",
            "max_model_len": self.pair.student.max_context,
            "relay": {
                "teacher": None if teacher is None else mask_credentials(teacher.name),
                "max_calls": self.pair.rules.max_calls,
                "max_call_tokens": self.pair.rules.max_call_tokens,
                "max_completion_tokens": self.pair.rules.max_completion_tokens,
            },
        }
        name = request.path_params.get("model")
        if name is not None:
            self._check_model(name)
        await reply.whole(JSONResponse({"object": "list", "data": [data]} if name is None else data))

    async def page(self, request: Request) -> Response:
        """The chat page."""
        return HTMLResponse(self._page, headers={"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"})

    async def health(self, request: Request) -> Response:
        """Whether the process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether the server takes requests. It does so even if the teacher is down, because the student goes on alone."""
        teacher = self.pair.teacher
        state = "none" if teacher is None else "up" if getattr(teacher, "is_up", True) else "down"
        return JSONResponse({"status": "ready", "teacher": state})

    async def show_metrics(self, request: Request) -> Response:
        """`/metrics`."""
        self.metrics.in_flight.set(self.places.in_flight)
        self.metrics.queued.set(self.places.queued)
        self.metrics.teacher_up.set(float(getattr(self.pair.teacher, "is_up", self.pair.teacher is not None)))
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")


@dataclass(frozen=True)
class _Route:
    """What all of `/v1` shares: the check of the key, hang-ups, errors in OpenAI's form, counters. An ASGI application."""

    server: RelayServer
    answer: Callable[[Request, Reply], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        request = Request(scope, receive)
        reply = Reply(scope, receive, send, self.server.limits.client_timeout_s)
        metrics, started = self.server.metrics, time.perf_counter()
        try:
            try:
                self.server.keys.check(request)
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


def _wants_usage(asked: Asked) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
