"""The server's routes: OpenAI's chat and completions over a pair, its models, health and metrics.

Owns the steps of a request: key, body, parameters, prompt, place, answer, reply. Each step has its own module.
"""

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..costs import PriceTable
from ..engines.loading import close_engines
from ..redaction import mask_credentials
from ..relay import RelayPrompt
from .answer import News, Question, answer_all, choice_seed
from .chat_page import render_chat_page
from .limits import Admission, Keys, Limits, cancelled_by_hang_up, read_body
from .metrics import Metrics
from .pair import Pair, PromptError
from .protocol import AnyRequest, ApiError, parse
from .reply import Reply
from .requests import LIMITS, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, template_fields
from .requests import Request as Asked
from .responses import Form, refusal
from .responses_api import ResponsesForm, ResponsesRequest
from .route import ApiRoute

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
        origins (`list[str]`): other origins whose pages may ask this server (CORS); `*` is all.
    """

    def __init__(
        self,
        pair: Pair,
        model: str,
        keys: list[str] = [],  # noqa: B006
        limits: Limits = Limits(),
        prices: PriceTable | None = None,
        origins: list[str] = [],  # noqa: B006
    ):
        self.pair = pair
        self.model = model
        self.limits = limits
        self.metrics = Metrics()
        self.keys = Keys(keys)
        self._origins = list(origins)
        self.places = Admission(limits.max_in_flight, limits.max_queue)
        self._started = int(time.time())
        self._page = render_chat_page(model, pair.holds_conversation, prices)

    def app(self) -> Starlette:
        """The ASGI application."""

        def api(path: str, answer: Callable[[Request, Reply], Awaitable[None]], method: str = "POST") -> Route:
            return Route(path, ApiRoute(self.keys, self.limits, self.metrics, answer), methods=[method])

        routes = [
            Route("/", self.page, methods=["GET"]),
            api("/v1/chat/completions", self.chat),
            api("/v1/completions", self.completions),
            api("/v1/responses", self.responses),
            api("/tokenize", self.tokenize),
            api("/detokenize", self.detokenize),
            api("/v1/models", self.models, "GET"),
            api("/v1/models/{model:path}", self.models, "GET"),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.show_metrics, methods=["GET"]),
        ]
        shared = Middleware(CORSMiddleware, allow_origins=self._origins, allow_methods=["*"], allow_headers=["*"])
        return Starlette(
            routes=routes,
            middleware=[shared] if self._origins else [],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_error},
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette):
        yield
        await close_engines(self.pair.student, self.pair.teacher)

    async def chat(self, request: Request, reply: Reply):
        """`/v1/chat/completions`."""
        asked = await self._read(request, ChatRequest)
        prompt = self._conversation(asked)
        await self._answer(request, reply, asked, [prompt], Form("chat", self.model, _wants_usage(asked)))

    async def completions(self, request: Request, reply: Reply):
        """`/v1/completions`."""
        asked = await self._read(request, CompletionRequest)
        prompts = [self.pair.complete(prompt) for prompt in asked.prompt]
        texts = [
            given if isinstance(given, str) else self.pair.vocabulary.decode(given)
            for given in asked.prompt
            if asked.echo
        ]
        echoes = [text for text in texts for _ in range(asked.n)]
        await self._answer(request, reply, asked, prompts, Form("text", self.model, _wants_usage(asked), echoes))

    async def responses(self, request: Request, reply: Reply):
        """`/v1/responses`."""
        asked = await self._read(request, ResponsesRequest)
        prompt = self.pair.chat([message.to_dict() for message in asked.messages])
        await self._answer(request, reply, asked, [prompt], ResponsesForm(self.model, asked))

    def _conversation(self, asked: ChatRequest | TokenizeRequest) -> RelayPrompt:
        if asked.chat_template_kwargs and getattr(self.pair.teacher, "api", "") in ("chat", "instruct"):
            raise PromptError(
                "chat_template_kwargs cannot reach the teacher, whose server has a template of its own; leave them out.",
                "chat_template_kwargs",
            )
        return self.pair.chat([message.to_dict() for message in asked.messages or ()], template_fields(asked))

    async def tokenize(self, request: Request, reply: Reply):
        """`/tokenize`: the student's tokens of a text or a conversation, as vLLM's server gives them."""
        asked = await self._read(request, TokenizeRequest)
        tokenizer = self.pair.vocabulary.tokenizer
        if asked.prompt is None:
            ids = self._conversation(asked).student
        else:
            ids = list(tokenizer(asked.prompt, add_special_tokens=asked.add_special_tokens)["input_ids"])
        found: dict[str, Any] = {"count": len(ids), "max_model_len": self.pair.student.max_context, "tokens": ids}
        found["token_strs"] = tokenizer.convert_ids_to_tokens(ids) if asked.return_token_strs else None
        await reply.whole(JSONResponse(found))

    async def detokenize(self, request: Request, reply: Reply):
        """`/detokenize`: the text of the student's tokens."""
        asked = await self._read(request, DetokenizeRequest)
        self.pair.check_ids(asked.tokens, "tokens")
        await reply.whole(JSONResponse({"prompt": self.pair.vocabulary.decode(asked.tokens)}))

    async def _read(self, request: Request, kind: type[AnyRequest]) -> AnyRequest:
        body = await read_body(request, self.limits.max_body_bytes, self.limits.body_timeout_s)
        try:
            parsed = json.loads(body.decode(), parse_constant=_no_constant)
            if b"\\ud" in body.lower():  # JSON may hold half of a surrogate pair; tokenizers refuse it
                json.dumps(parsed, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # also for bytes that are not UTF-8
            raise ApiError(400, f"The body is no valid JSON: {error}.", code="invalid_json") from None
        asked = parse(parsed, kind)
        self._check_model(getattr(asked, "model", None))
        return asked

    def _check_model(self, model: str | None):
        if model is not None and model != self.model:
            raise ApiError(
                404, f"The model {model!r} does not exist; this server has {self.model!r}.", "model", "model_not_found"
            )

    async def _answer(
        self, request: Request, reply: Reply, asked: Asked, prompts: list[RelayPrompt], form: Form | ResponsesForm
    ):
        questions = [question for prompt in prompts for question in self._questions(asked, prompt)]
        started, has_text = time.perf_counter(), False

        async def tell(news: News):
            nonlocal has_text
            if news and not has_text:
                has_text = True
                self.metrics.first_token.observe(time.perf_counter() - started)
            await reply.events(("" if reply.has_begun else form.opening(len(questions))) + form.news(news))

        async with cancelled_by_hang_up(request), self.places.taken(len(questions)):
            answers = await answer_all(
                questions, self.pair.student, self.pair.teacher, tell if asked.stream else None, _MOST_QUIET_S
            )
        length = sum(len(prompt.student) for prompt in prompts)
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
        return [self.pair.question(prompt, seed=choice_seed(asked.seed, index), **options) for index in range(asked.n)]

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
                "max_completion_tokens": self.pair.rules.max_completion_length,
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


def _wants_usage(asked: Asked) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
