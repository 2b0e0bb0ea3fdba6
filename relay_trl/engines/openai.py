"""A model behind HTTP: any server that speaks OpenAI's completions or chat API (`vllm serve`, SGLang, llama.cpp, ...).

Owns connections and requests; `replies.py` reads what comes back. Retries with back-off are the `openai` client's,
the server does the batching. With a vocabulary it exchanges token ids, without one text or chat messages.
"""

import asyncio
import json
import logging
import os
from base64 import b64encode
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

import openai

from ..redaction import mask_credentials
from ..vocabulary import Vocabulary
from .base import Context, EngineError, Generation, OnTokens, Sampling
from .events import stream_answer
from .replies import REQUESTS_FAULTS, Replies, first_choice, list_names
from .request_body import request_body

logger = logging.getLogger(__name__)

_PROBE = "17 apples and 25 pears are"
_PROBE_CHAT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "There are"}]
_CONNECT_TIMEOUT_S = 10.0


class OpenAIEngine:
    """Asks a server.

    Requests that meet 408, 409, 429, 5xx, a time-out or a lost connection are sent again, later each time and not
    before the server's `Retry-After`. A request that is cancelled here is dropped, which servers take as an abort.

    Token ids come back from servers that know `return_token_ids` (vLLM). From others the text is taken, and the relay
    encodes it for the student; [`check`] finds out. The log-probabilities are those the server gives: start vLLM with
    `--logprobs-mode processed_logprobs` for a student that is trained.

    Args:
        base_url (`str`): such as `http://localhost:8000/v1`; the `/v1` may be left out when there is no path.
        model (`str`, *optional*): the name it is served under; `None` takes the server's only model.
        api_key (`str`, *optional*): `None` takes the environment's `OPENAI_API_KEY`, or none. Never shown.
        vocabulary ([`Vocabulary`], *optional*): of the served model; `None` exchanges text only.
        max_concurrency (`int`, defaults to `64`): requests under way at once; others wait here.
        timeout_s (`float`, defaults to `120.0`): longest wait for one answer, in seconds, per try.
        max_retries (`int`, defaults to `4`): tries after the first.
        api (`"completions"` or `"chat"`, defaults to `"completions"`): which one the server offers. With `"chat"` the
            contexts are messages, and the assistant's unfinished turn is continued.
        needs_logprobs (`bool`, defaults to `False`): ask for one logprob per token, as a student's trainer needs.

    Attributes:
        name (`str`): the URL, without credentials.
        max_context (`int`, *optional*): what the server reports; known after [`check`].
        gives_ids (`bool`, *optional*): whether ids come back; known after [`check`].
        model_path (`str`, *optional*): where the server says it has the model from; known after [`check`].

    Raises:
        ValueError: a URL that is not http(s), a limit out of range, or `needs_logprobs` without a vocabulary.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        vocabulary: Vocabulary | None = None,
        max_concurrency: int = 64,
        timeout_s: float = 120.0,
        max_retries: int = 4,
        api: Literal["completions", "chat"] = "completions",
        needs_logprobs: bool = False,
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
        if api not in ("completions", "chat"):
            raise ValueError(f"api is {api!r}; it must be 'completions' or 'chat'.")
        if needs_logprobs and vocabulary is None:
            raise ValueError("needs_logprobs needs a vocabulary: logprobs belong to token ids.")
        base_url = urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.name = mask_credentials(base_url)
        # Not in the URL of a request, which the HTTP library logs
        self._base_url = base_url.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
        self._auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self.model = model
        self.vocabulary = vocabulary
        self.max_context: int | None = None
        self.gives_ids: bool | None = None
        self.model_path: str | None = None
        self._gives_scores: bool | None = None
        self.api = api
        self._max_concurrency = max_concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self.needs_logprobs = needs_logprobs
        self._replies = Replies(self.name, api, self._secrets(), timeout_s, max_retries + 1)
        self._continuation = {"continue_final_message": True, "add_generation_prompt": False}
        # Connections and semaphores belong to the event loop they were first used in.
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[openai.AsyncOpenAI, asyncio.Semaphore]]
        self._by_loop = WeakKeyDictionary()

    async def generate(
        self,
        context: Context,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = Sampling(),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Continue `context` by at most `max_tokens` tokens; see [`Engine.generate`]. With a listener the answer is
        streamed, and one that breaks off after its first token is not asked for again.

        Raises:
            EngineError: no usable answer after all tries.
            ValueError: a context of a kind that this engine was not set up for.
        """
        if self.model is None:
            await self.find_model()
        is_chat = not isinstance(context, str) and bool(context) and isinstance(context[0], dict)
        if is_chat != (self.api == "chat"):
            given = "chat messages" if is_chat else "text or token ids"
            raise ValueError(
                f"{self.name} is used through its {self.api} API and got {given}; set api to "
                f"{'chat' if is_chat else 'completions'!r} or give it the other kind of context."
            )
        if not is_chat and not isinstance(context, str) and self.vocabulary is None:
            raise ValueError(f"{self.name} got token ids but has no vocabulary; give the served model's, or send text.")
        body = self._body(max_tokens, stop, sampling)
        if on_tokens is not None:
            return await self._stream(context, body, stop, on_tokens)
        answer = await self._post(context, body)
        return self._replies.read(answer, stop, self.vocabulary, self.needs_logprobs)

    async def score(self, ids: list[int], start: int) -> list[float] | None:
        """Log-probabilities of `ids[start:]`; see [`ScoringEngine.score`]. `None` from a server without `prompt_logprobs`
        (vLLM has it), or where text is exchanged.

        Raises:
            EngineError: no usable answer after all tries.
        """
        if self.vocabulary is None or self.api != "completions" or self._gives_scores is False:
            return None
        if self.model is None:
            await self.find_model()
        try:
            answer = await self._post(ids, {**self._body(1, (), Sampling()), "prompt_logprobs": 0})
        except EngineError as error:
            if getattr(error.__cause__, "status_code", None) not in REQUESTS_FAULTS or self._gives_scores:
                raise
            self._gives_scores = False  # refuses the field
            return None
        scores = self._replies.read_scores(answer, ids, start)
        self._gives_scores = scores is not None
        return scores

    async def find_model(self):
        """Looks up the model's name, its path and its longest context.

        Raises:
            EngineError: the server cannot be reached, does not serve `model`, or serves several and none was named.
        """
        client, _ = self._connection()
        try:
            raw = await client.models.with_raw_response.list()
            listed = [m for m in json.loads(raw.content)["data"] if isinstance(m, dict) and isinstance(m["id"], str)]
        except openai.NotFoundError as error:
            if self.model is None:
                raise self._replies.fault(error, self.model) from error
            return  # some servers list nothing; the first request will tell
        except openai.APIError as error:
            raise self._replies.fault(error, self.model) from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._replies.broken("answers /models with something that is no list of models") from error
        names = [m["id"] for m in listed]
        if self.model is None and len(names) == 1:
            self.model = names[0]
        if self.model is None:
            raise EngineError(f"{self.name} serves {len(names)} models ({list_names(names)}); name one of them.")
        if self.model not in names:
            raise EngineError(
                f"{self.name} does not serve {self.model!r} but {list_names(names)}; name one of these, or correct "
                "the URL."
            )
        served = listed[names.index(self.model)]
        length = served.get("max_model_len")
        self.max_context = length if isinstance(length, int) and length > 0 else None
        self.model_path = str(served.get("root") or self.model)

    async def check(self):
        """Makes sure before a run that the server is up, serves the model and continues what it will be given.

        Raises:
            EngineError: it does not, or its tokenizer is not the vocabulary, or it gives no ids and they are needed.
        """
        await self.find_model()
        if self.api == "chat":
            try:
                await self.generate(_PROBE_CHAT, 1)
            except EngineError as error:
                if getattr(error.__cause__, "status_code", None) not in (400, 422):
                    raise
                # Strict servers refuse vLLM's fields, and by convention continue a last turn of the assistant.
                self._continuation = {}
                await self.generate(_PROBE_CHAT, 1)
            return
        if self.vocabulary is None:
            await self.generate(_PROBE, 1)
            return
        ids = self.vocabulary.encode(_PROBE)
        self.gives_ids = (await self.generate(ids, 1)).ids is not None
        if not self.gives_ids:
            # `Replies.read` has refused this already where logprobs are needed.
            logger.warning("%s returns no token ids; its text will be encoded again for the student.", self.name)
            return
        answer = await self._post(_PROBE, {**self._body(1, (), Sampling()), "add_special_tokens": False})
        theirs = first_choice(answer).get("prompt_token_ids")
        if isinstance(theirs, list) and theirs != ids:
            raise EngineError(
                f"{self.name} splits {_PROBE!r} into ids {theirs}, the given tokenizer into {ids}; give the tokenizer "
                f"of the model it serves ({self.model_path})."
            )

    async def aclose(self):
        """Closes the connections of the running event loop; the engine can be used again."""
        connection = self._by_loop.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection[0].close()

    def _connection(self) -> tuple[openai.AsyncOpenAI, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            timeout = openai.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_TIMEOUT_S))
            client = openai.AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key,
                timeout=timeout,
                max_retries=self._max_retries,
                http_client=openai.DefaultAsyncHttpxClient(auth=self._auth) if self._auth else None,
            )
            self._by_loop[loop] = client, asyncio.Semaphore(self._max_concurrency)
        return self._by_loop[loop]

    def _secrets(self) -> tuple[str, ...]:
        """What a server may repeat in its faults: the key, and the URL's password plain and as it is sent."""
        sent = [b64encode(":".join(self._auth).encode()).decode(), self._auth[1]] if self._auth else []
        return tuple(secret for secret in (self._api_key, *sent) if secret not in ("", "none"))

    def _body(self, max_tokens: int, stop: tuple[str, ...], sampling: Sampling) -> dict[str, Any]:
        return request_body(self.vocabulary, self.api, self.needs_logprobs, max_tokens, stop, sampling)

    def _request(self, context: Context, body: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the client's `create`."""
        if self.api == "completions":
            # Not as `prompt`: the client would check every single id, a millisecond for each hundred
            return {"model": self.model or "", "prompt": "", "extra_body": {"prompt": context, **body}}
        if context[-1]["role"] == "assistant":  # type: ignore[index]
            body = {**body, **self._continuation}
        return {"model": self.model or "", "messages": context, "extra_body": body}

    async def _stream(
        self, context: Context, body: dict[str, Any], stop: tuple[str, ...], on_tokens: OnTokens
    ) -> Generation:
        client, slots = self._connection()
        api: Any = client.chat.completions if self.api == "chat" else client.completions
        request = self._request(context, {**body, "stream": True, "stream_options": {"include_usage": True}})
        try:
            async with slots:
                create = api.with_streaming_response.create
                answer = await stream_answer(create, request, self._replies, self.vocabulary, on_tokens)
        except openai.APIError as error:
            raise self._replies.fault(error, self.model) from error
        return self._replies.read(answer, stop, self.vocabulary, self.needs_logprobs)

    async def _post(self, context: Context, body: dict[str, Any]) -> dict[str, Any]:
        client, slots = self._connection()
        api: Any = client.chat.completions if self.api == "chat" else client.completions
        try:
            async with slots:
                raw = await api.with_raw_response.create(**self._request(context, body))
        except openai.APIError as error:
            raise self._replies.fault(error, self.model) from error
        try:
            answer = json.loads(raw.content)
        except ValueError as error:
            raise self._replies.broken(f"answered with broken JSON ({self._replies.words(raw.content)})") from error
        if not first_choice(answer):
            raise self._replies.broken(f"answered without any choice ({self._replies.words(raw.content)})")
        return answer
