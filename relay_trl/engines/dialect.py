"""What one chat or completions server takes, and how it goes on with an answer that an assistant has begun.

Owns the differences between servers in what they are sent: fields that one of them refuses, fields of the user's own, and
the ways to have an unfinished turn continued, of which one probe finds the server's. What comes back is `replies.py`'s.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .base import EngineError, Generation, OnTokens
from .connections import RequestError

logger = logging.getLogger(__name__)

Ask: TypeAlias = Callable[["Way", list[dict], bool], Awaitable[Generation]]

_USER = {"role": "user", "content": "Write A B C again and again."}
_BEGUN = ("A B C", "A B C A B C")  # twice as many tokens, whatever the vocabulary
_CONTINUE = (
    "Your answer above stops in the middle. Go on from exactly where it stops: write only what comes next, repeat nothing, "
    "and say nothing about it."
)
_REFUSAL = re.compile(
    r"(?:un|not |n't )(?:supported|recogni[sz]ed|known|expected|permitted|allowed)|unsupported|unrecogni[sz]ed|extra_forbidden"
    r"|(?:does not|doesn't|cannot|only) (?:support|accept|take)|extra (?:input|field)|additional propert|no such (?:field|param)",
    re.IGNORECASE,
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
_SPARED = (
    "model",
    "prompt",
    "messages",
    "stop",
    "logit_bias",
    "logprobs",
    "prompt_logprobs",
    "stream",
)  # without these an answer would be another one


@dataclass(frozen=True)
class Way:
    """One way to have a server continue the assistant's last turn.

    Args:
        name (`str`): for messages.
        fields (`dict`): of the request.
        message (`dict`): of the last message.
        is_echoing (`bool`), is_stream_echoing (`bool`): whether a whole reply and a streamed one repeat what they continue.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    is_echoing: bool = False
    is_stream_echoing: bool = False


WAYS = (
    Way(
        "continue_final_message", {"continue_final_message": True, "add_generation_prompt": False}
    ),  # vLLM, SGLang, TGI
    Way("a last turn of the assistant"),  # llama.cpp, Ollama, LM Studio
    Way("prefix", message={"prefix": True}),  # Mistral, DeepSeek
    Way("partial", message={"partial": True}),  # Moonshot, Alibaba
)


class Dialect:
    """What is known of one server.

    Args:
        name (`str`): its URL, without credentials.
        api (`str`): one of [`APIS`].
        extra_body (`dict`, *optional*): fields put into every request, over ours; `None` as a value leaves a field out.
        chat_template_kwargs (`dict`, *optional*): sent to a chat server, which renders the prompt.
    """

    def __init__(
        self,
        name: str,
        api: str,
        extra_body: dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.name = name
        self.api = api
        self.way: Way | None = None
        self._extra_body = dict(extra_body or {})
        self._template_fields = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
        self._refused: set[str] = set()

    def body(self, ours: dict[str, Any]) -> dict[str, Any]:
        """The fields of a request as this server takes them."""
        body = {**ours, **(self._template_fields if self.api != "completions" else {})}
        body = {key: value for key, value in body.items() if key not in self._refused or key == "max_tokens"}
        if "max_tokens" in self._refused:
            body["max_completion_tokens"] = body.pop("max_tokens")
        body |= self._extra_body
        return {key: value for key, value in body.items() if value is not None or key not in self._extra_body}

    def turn(self, messages: list[dict], way: Way) -> tuple[list[dict], dict[str, Any]]:
        """Chat messages as they are sent, and the fields that have the last one continued."""
        if begun(messages) is None:
            return messages, {}
        if self.api == "instruct":
            return [*messages, {"role": "user", "content": _CONTINUE}], {}
        return [*messages[:-1], {**messages[-1], **way.message}], way.fields

    def learn(self, error: RequestError, body: dict[str, Any]) -> bool:
        """Whether a refusal names a field that the request can do without; such a one is not sent again."""
        said = error.said
        if error.status_code not in (400, 422) or not _REFUSAL.search(said):
            return False
        param = re.search(r'"param"\s*:\s*"(\w+)"', said)
        known = {key for key in body if key not in self._extra_body and key not in _SPARED} - self._refused
        named = {key for key in known if param and key == param[1]} or {
            key for key in known if re.search(rf"(?<![\w.]){key}(?!\w)", said)
        }
        self._refused |= named
        for key in sorted(named.intersection(_SAMPLING)):
            logger.warning("%s takes no %s: it draws its tokens without it.", self.name, key)
        return bool(named)

    async def find_way(self, ask: Ask):
        """Finds out how the server continues an assistant's turn, and whether its replies repeat what they continue.

        Args:
            ask (`Callable`): asks for a few tokens in a given way, streamed or not.

        Raises:
            EngineError: it refuses every way, or answers with a new turn.
        """
        alone = await ask(WAYS[0], [_USER], False)
        faults: list[str] = []
        for way in WAYS:
            chats = [[_USER, {"role": "assistant", "content": text}] for text in _BEGUN]
            try:
                answers = [await ask(way, chat, False) for chat in chats]
                streamed = await ask(way, chats[1], True)
            except EngineError as error:
                if getattr(error.__cause__, "status_code", None) not in (400, 422, 500, 501):
                    raise
                faults.append(f"{way.name}: refused")
                continue
            counts = [answer.prompt_tokens for answer in (alone, *answers)]
            if _is_new_turn(counts):
                faults.append(f"{way.name}: answered with a new turn")
                continue
            if None in counts:
                logger.warning(
                    "%s does not say how many tokens it read, so that nobody knows whether it continues an answer or "
                    "begins a new one; look at some.",
                    self.name,
                )
            self.way = Way(
                way.name,
                way.fields,
                way.message,
                all(answer.text.startswith(text) for answer, text in zip(answers, _BEGUN, strict=True)),
                streamed.text.startswith(_BEGUN[1]),
            )
            return
        raise EngineError(
            f"{self.name} does not continue an answer that is begun ({'; '.join(faults)}); use its completions API "
            "(teacher_api: completions), or have it asked in words for a continuation (teacher_api: instruct), which is weaker."
        )

    def own_words(self, text: str, prefix: str | None, is_stream: bool) -> str:
        """What a reply adds to the answer begun with `prefix`.

        Raises:
            EngineError: the server repeats what it continues, and this reply repeats something else.
        """
        if not prefix or not text:
            return text
        is_echoing = self.way is not None and (self.way.is_stream_echoing if is_stream else self.way.is_echoing)
        if not is_echoing and self.api != "instruct":
            return text
        for repeated in (prefix, prefix.strip()):
            if text.startswith(repeated):
                return text[len(repeated) :]
        if is_echoing:
            raise EngineError(
                f"{self.name} repeats what it continues, but changed it this time, so that its own words cannot be told; "
                "use its completions API (teacher_api: completions)."
            )
        # Asked in words, a model begins without the blank in front of its first word
        return f" {text}" if (prefix[-1].isalnum() and text[0].isalnum()) else text

    def listener(self, on_tokens: OnTokens, prefix: str | None) -> OnTokens:
        """`on_tokens`, told of a streamed reply's own words only."""
        if not prefix or not (self.api == "instruct" or (self.way is not None and self.way.is_stream_echoing)):
            return on_tokens
        waiting: list[str] = []
        is_through = False

        def tell(piece: list[int] | str):
            nonlocal is_through
            if is_through or not isinstance(piece, str):
                return on_tokens(piece)
            waiting.append(piece)
            text = "".join(waiting)
            if len(text) > len(prefix) or not prefix.startswith(text):
                is_through = True
                if words := self.own_words(text, prefix, True):
                    on_tokens(words)

        return tell


def begun(messages: Any) -> str | None:
    """The text of the assistant's unfinished turn, if the last message is one."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last["content"] if isinstance(last, dict) and last.get("role") == "assistant" else None


def _is_new_turn(counts: list[int | None]) -> bool:
    """Whether a server closed the assistant's turn, told by the tokens that it read: of the question alone, with an answer
    begun, and with one begun that is twice as long. What is beyond the answer's own are the tokens of a closed turn.
    """
    alone, short, long = counts
    if alone is None or short is None or long is None or not alone <= short <= long:
        return False  # it does not count, or not what it had in its cache
    return long == short or short - alone - (long - short) > 0
