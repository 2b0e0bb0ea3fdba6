"""The server's routes: OpenAI's chat and completions over a pair, its models, health and metrics.

Owns the steps of a request: key, body, parameters, prompt, place, answer, reply. Each step has its own module.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..call_bias import NEVER
from ..costs import PriceTable
from ..engines.base import EngineError
from ..redaction import mask_credentials
from ..relay import RelayPrompt, RelayRules
from .answer import Question, answer, choice_seed, ended_together
from .chat_page import render_chat_page
from .limits import Admission, Keys, Limits, cancelled_by_hang_up, read_body
from .metrics import Metrics
from .pair import Pair, PromptError
from .protocol import MIN_BIAS, AnyRequest, ApiError, ChatRequest, CompletionRequest, parse
from .protocol import Request as Asked
from .responses import Form, refusal
from .stream import EventStream, student_failed

logger = logging.getLogger(__name__)


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
        self._keys = Keys(keys)
        self.places = Admission(limits.max_in_flight, limits.max_queue)
        self._started = int(time.time())
        self._page = render_chat_page(model, pair.holds_conversation, prices)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/v1/chat/completions", self._answering(self.chat), methods=["POST"]),
            Route("/v1/completions", self._answering(self.completions), methods=["POST"]),
            Route("/v1/models", self._answering(self.models), methods=["GET"]),
            Route("/v1/models/{model:path}", self._answering(self.models), methods=["GET"]),
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

    def _answering(self, route: Callable[[Request], Any]):
        """Adds to a route what all of `/v1` needs: the check of the key, errors in OpenAI's form, counters."""

        async def answered(request: Request) -> Response:
            started = time.perf_counter()
            try:
                self._keys.check(request)
                response = await route(request)
            except ApiError as error:
                response = refusal(error)
            except ClientDisconnect:
                self.metrics.hang_ups.inc()
                response = Response(status_code=499)  # the client is gone
            except Exception:
                logger.exception("A request to %s failed.", request.url.path)
                response = refusal(ApiError(500, "The server failed; its log says more.", code="internal_error"))
            if isinstance(response, EventStream):
                response.on_end = lambda status: self._count(request, status, started)
            else:
                self._count(request, response.status_code, started)
            return response

        return answered

    def _count(self, request: Request, status: int, started: float):
        path = request.scope["route"].path
        self.metrics.requests.labels(path, str(status)).inc()
        if request.method == "POST":
            self.metrics.seconds.observe(time.perf_counter() - started)

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        asked = await self._read(request, ChatRequest)
        prompt = _prompt(lambda: self.pair.chat([message.to_dict() for message in asked.messages]), "messages")
        return await self._answer(request, asked, prompt, Form("chat", self.model, _wants_usage(asked)))

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        asked = await self._read(request, CompletionRequest)
        prompt = _prompt(lambda: self.pair.complete(asked.prompt), "prompt")
        return await self._answer(request, asked, prompt, Form("text", self.model, _wants_usage(asked)))

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

    async def _answer(self, request: Request, asked: Asked, prompt: RelayPrompt, form: Form) -> Response:
        questions = self._questions(asked, prompt)
        if asked.stream:
            return EventStream(self.pair, self.places, self.limits, self.metrics, request, questions, form)
        try:
            async with cancelled_by_hang_up(request), self.places.taken(asked.n):
                tasks = [asyncio.ensure_future(answer(q, self.pair.student, self.pair.teacher)) for q in questions]
                async with ended_together(tasks):
                    answers = await asyncio.gather(*tasks)
        except EngineError as error:
            raise student_failed(error) from None
        self.metrics.add(answers, len(prompt.student))
        return JSONResponse(form.whole(answers, len(prompt.student)))

    def _questions(self, asked: Asked, prompt: RelayPrompt) -> list[Question]:
        length = len(prompt.student)
        room = self.pair.room_for(prompt)
        most = self.limits.max_prompt_length
        if room < 1 or (most is not None and length > most):
            limit = most if room >= 1 else self.pair.student.max_context
            raise ApiError(
                400,
                f"The prompt has {length} tokens; there is room for {limit}, answer included.",
                None,
                "context_length_exceeded",
            )
        if asked.max_tokens is not None and asked.max_tokens > room:
            raise ApiError(
                400,
                f"max_tokens is {asked.max_tokens}; after a prompt of {length} tokens there is room for {room}.",
                "max_tokens",
                "context_length_exceeded",
            )
        config = self._config(asked, asked.max_tokens or room)
        common = (tuple(asked.stop), asked.show_commands, asked.use_teacher)
        return [Question(prompt, config, choice_seed(asked.seed, index), *common) for index in range(asked.n)]

    def _config(self, asked: Asked, max_tokens: int) -> RelayRules:
        rules = self.pair.rules
        given = {"temperature": asked.temperature, "top_p": asked.top_p, "min_p": asked.min_p}
        given["top_k"] = None if asked.top_k is None else max(0, asked.top_k)
        student = replace(rules.student, **{name: value for name, value in given.items() if value is not None})
        # At the lowest value a call is impossible, not only rare
        bias = NEVER if asked.call_bias == MIN_BIAS else asked.call_bias or 0.0
        limits = {}
        for name in ("max_calls", "max_call_tokens", "max_teacher_tokens"):
            values = [value for value in (getattr(asked, name), getattr(rules, name)) if value is not None]
            limits[name] = min(values, default=None)
        return replace(rules, max_completion_tokens=max_tokens, student=student, call_bias=bias, **limits)

    async def models(self, request: Request) -> Response:
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
        if name is None:
            return JSONResponse({"object": "list", "data": [data]})
        self._check_model(name)
        return JSONResponse(data)

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


def _wants_usage(asked: Asked) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def _prompt(build: Callable[[], RelayPrompt], param: str) -> RelayPrompt:
    try:
        return build()
    except PromptError as error:
        raise ApiError(400, str(error), param, "invalid_prompt") from None


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
