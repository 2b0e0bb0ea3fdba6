"""A model behind HTTP: any server that speaks OpenAI's completions or chat API (`vllm serve`, SGLang, llama.cpp, ...).

Owns the requests; `connections.py` sends them, `replies.py` reads what comes back, `dialect.py` knows what one server takes. The
server does the batching. With a vocabulary it exchanges token ids, without one text or chat messages.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import aiohttp

from ..vocabulary import Vocabulary
from .base import APIS, Context, EngineError, FinishReason, Generation, OnTokens, Sampling, Scores
from .connections import Connections, RequestError
from .dialect import WAYS, Dialect, Way, begun
from .events import stream_answer
from .replies import REQUESTS_FAULTS, Replies, first_choice, list_names
from .request_body import request_body

logger = logging.getLogger(__name__)

_PROBE = "17 apples and 25 pears are"
_PROBE_TOKENS = 4


class OpenAIEngine(Scores):
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
        api (`"completions"`, `"chat"` or `"instruct"`, defaults to `"completions"`): which one the server offers. With
            `"chat"` the contexts are messages, and the assistant's unfinished turn is continued. `"instruct"` asks in words
            for a continuation instead, which any chat model follows, but not always to the letter.
        needs_logprobs (`bool`, defaults to `False`): ask for one logprob per token, as a student's trainer needs.
        extra_body (`dict`, *optional*): fields of every request; a value of `None` leaves out one of ours.
        headers (`dict[str, str]`, *optional*): of every request. Never shown.
        chat_template_kwargs (`dict`, *optional*): for the template of a chat server.
        option_prefix (`str`, defaults to `""`): what the names of its options begin with for people, such as `teacher_`.

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
        api: Literal["completions", "chat", "instruct"] = "completions",
        needs_logprobs: bool = False,
        extra_body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        option_prefix: str = "",
    ):
        self._connections = Connections(base_url, api_key, headers, max_concurrency, timeout_s, max_retries)
        self.name = self._connections.name
        if api not in APIS:
            raise ValueError(f"api is {api!r}; it must be 'completions', 'chat' or 'instruct'.")
        if needs_logprobs and vocabulary is None:
            raise ValueError("needs_logprobs needs a vocabulary: logprobs belong to token ids.")
        self.model = model
        self.vocabulary = vocabulary
        self.max_context: int | None = None
        self.gives_ids: bool | None = None
        self.model_path: str | None = None
        self._gives_scores: bool | None = None
        self.api = api
        self.needs_logprobs = needs_logprobs
        self._replies = Replies(self.name, api, self._connections.secrets, timeout_s, max_retries + 1, option_prefix)
        self._dialect = Dialect(self.name, api, extra_body, chat_template_kwargs)

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
        if is_chat != (self.api != "completions"):
            given = "chat messages" if is_chat else "text or token ids"
            raise ValueError(
                f"{self.name} is used through its {self.api} API and got {given}; set api to "
                f"{'chat' if is_chat else 'completions'!r} or give it the other kind of context."
            )
        if not is_chat and not isinstance(context, str) and self.vocabulary is None:
            raise ValueError(f"{self.name} got token ids but has no vocabulary; give the served model's, or send text.")
        if self.api == "chat" and self._dialect.way is None and begun(context) is not None:
            await self._dialect.find_way(self._probe)
        way = self._dialect.way or WAYS[0]
        return await self._generate(context, way, max_tokens, stop, sampling, on_tokens)

    async def _generate(
        self,
        context: Context,
        way: Way,
        max_tokens: int,
        stop: tuple[str, ...],
        sampling: Sampling,
        on_tokens: OnTokens | None,
    ) -> Generation:
        prefix = begun(context)
        body = self._body(max_tokens, stop, sampling)
        try:
            if on_tokens is None:
                answer = await self._post(context, way, body)
            else:
                answer = await self._stream(context, way, body, self._dialect.listener(on_tokens, prefix))
        except EngineError as error:
            if error.written is not None and error.written.ids is None:
                error.written.text = self._dialect.own_words(error.written.text, prefix, True)
            raise
        written = self._replies.read(answer, stop, self.vocabulary, self.needs_logprobs)
        if first_choice(answer).get("finish_reason") == "" and written.num_tokens == max_tokens:
            written.finish = FinishReason.LENGTH  # as some servers end every answer
        if written.ids is None:
            written.text = self._dialect.own_words(written.text, prefix, on_tokens is not None)
        return written

    async def _probe(self, way: Way, messages: list[dict], is_stream: bool) -> Generation:
        listener = (lambda piece: None) if is_stream else None
        return await self._generate(messages, way, _PROBE_TOKENS, (), Sampling(), listener)

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        """Log-probabilities at the places of `ids[start:]`; see [`ScoringEngine.alternatives`]. `None` from a server without `prompt_logprobs`
        (vLLM has it), or where text is exchanged.

        Raises:
            EngineError: no usable answer after all tries.
        """
        if self.vocabulary is None or self.api != "completions" or self._gives_scores is False:
            return None
        if self.model is None:
            await self.find_model()
        try:
            answer = await self._post(ids, WAYS[0], {**self._body(1, (), Sampling()), "prompt_logprobs": top})
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
        try:
            listed = json.loads(await self._connections.send("models", None, _whole))["data"]
            listed = [m for m in listed if isinstance(m, dict) and isinstance(m["id"], str)]
        except RequestError as error:
            if error.status_code != 404 or self.model is None:
                raise self._replies.fault(error, self.model) from error
            return  # some servers list nothing; the first request will tell
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
            await self._dialect.find_way(self._probe)
            return
        if self.api == "instruct":
            logger.warning(
                "%s is asked in words to go on (teacher_api: instruct): it may repeat or explain.", self.name
            )
            await self.generate([{"role": "user", "content": _PROBE}], _PROBE_TOKENS)
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
        answer = await self._post(_PROBE, WAYS[0], {**self._body(1, (), Sampling()), "add_special_tokens": False})
        theirs = first_choice(answer).get("prompt_token_ids")
        if isinstance(theirs, list) and theirs != ids:
            raise EngineError(
                f"{self.name} splits {_PROBE!r} into ids {theirs}, the given tokenizer into {ids}; give the tokenizer "
                f"of the model it serves ({self.model_path})."
            )

    async def aclose(self):
        """Closes the connections of the running event loop; the engine can be used again."""
        await self._connections.aclose()

    def _body(self, max_tokens: int, stop: tuple[str, ...], sampling: Sampling) -> dict[str, Any]:
        return request_body(self.vocabulary, self.api, self.needs_logprobs, max_tokens, stop, sampling)

    def _request(self, context: Context, way: Way, body: dict[str, Any]) -> dict[str, Any]:
        if self.api == "completions":
            return {"model": self.model, "prompt": context, **self._dialect.body(body)}
        messages, fields = self._dialect.turn(context, way)  # type: ignore[arg-type]
        return {"model": self.model, "messages": messages, **self._dialect.body({**body, **fields})}

    async def _stream(self, context: Context, way: Way, body: dict[str, Any], on_tokens: OnTokens) -> dict[str, Any]:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        read = partial(stream_answer, replies=self._replies, vocabulary=self.vocabulary, on_tokens=on_tokens)
        return await self._send(context, way, body, read)

    async def _post(self, context: Context, way: Way, body: dict[str, Any]) -> dict[str, Any]:
        said = await self._send(context, way, body, _whole)
        try:
            answer = json.loads(said)
        except ValueError as error:
            raise self._replies.broken(f"answered with broken JSON ({self._replies.words(said)})") from error
        if not first_choice(answer):
            raise self._replies.broken(f"answered without any choice ({self._replies.words(said)})")
        return answer

    async def _send(self, context: Context, way: Way, body: dict[str, Any], read: Callable[..., Awaitable[Any]]) -> Any:
        """What `read` makes of the answer to a request, without the fields that the server turns out to refuse."""
        path = "completions" if self.api == "completions" else "chat/completions"
        while True:
            request = self._request(context, way, body)
            try:
                return await self._connections.send(path, request, read)
            except RequestError as error:
                if not self._dialect.learn(error, request):
                    raise self._replies.fault(error, self.model) from error


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    return await response.read()
