"""A server's streamed answer: joins server-sent events into the answer that would have come in one reply.

Owns the shape of OpenAI's chunks and the handling of a stream that breaks off. `openai.py` owns connections and what goes
wrong before an answer begins.
"""

import asyncio
import importlib
import importlib.util
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..vocabulary import Vocabulary
from .base import OnTokens
from .replies import Replies, are_ids, first_choice

_RETRY_DELAY_S = 0.5
# The client wraps errors before an answer begins but not in the middle of one; its releases use different HTTP libraries.
_HTTP_ERRORS: tuple[type[Exception], ...] = tuple(
    importlib.import_module(name).HTTPError for name in ("httpx", "httpx2") if importlib.util.find_spec(name)
)
_LAST = ("finish_reason", "stop_reason", "matched_stop")
"""Fields of a choice that come with its last chunk."""


async def stream_answer(
    create: Callable[..., Any],
    request: dict[str, Any],
    replies: Replies,
    vocabulary: Vocabulary | None,
    on_tokens: OnTokens,
) -> dict[str, Any]:
    """The answer to a streamed request, in the form of one that is not streamed.

    If a stream breaks off before its first token, the request is repeated. After that it is not, as the listener has the beginning.

    Args:
        create (`Callable`): the client's `with_streaming_response.create`.
        request (`dict`): its arguments.
        replies ([`Replies`]): of the server.
        vocabulary ([`Vocabulary`], *optional*): of the ids that are expected; `None` reads the text only.
        on_tokens ([`OnTokens`]): gets every piece.

    Raises:
        EngineError: the stream broke off; `written` has what came before.
        openai.APIError: the answer did not begin.
    """
    for tries_left in reversed(range(replies.tries)):
        answer: dict[str, Any] = {}
        try:
            async with create(**request) as response:
                await _read_events(response.iter_lines(), answer, on_tokens, vocabulary is not None)
            return answer
        except (*_HTTP_ERRORS, ValueError) as error:
            if tries_left == 0 or answer:
                reason = replies.words(str(error) or type(error).__name__)
                fault = replies.broken(f"broke off an answer ({reason})", "Look into the server's log.")
                fault.written = replies.read_part(answer, vocabulary)
                raise fault from error
        await asyncio.sleep(_RETRY_DELAY_S)
    raise AssertionError("there is at least one try")


async def _read_events(lines: AsyncIterator[str], answer: dict[str, Any], on_tokens: OnTokens, has_ids: bool):
    """Fills `answer` from the lines of a stream, even if it breaks off, and calls `on_tokens`.

    Raises:
        ValueError: the stream ends too early, is not an event stream, or contains an error.
    """
    choice: dict[str, Any] = {}
    pieces: list[str] = []
    ids: list[int] = []
    logprobs: dict[str, list] = {"content": [], "token_logprobs": []}
    is_chat = has_thoughts = is_done = False
    try:
        async for line in lines:
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                is_done = True
                break
            chunk = json.loads(data)
            if not isinstance(chunk, dict) or "error" in chunk:
                raise ValueError(f"it sent {data[:200]}")
            if chunk.get("usage"):
                answer["usage"] = chunk["usage"]
            part = first_choice(chunk)
            delta, scores = part.get("delta") or {}, part.get("logprobs") or {}
            if not isinstance(delta, dict) or not isinstance(scores, dict):
                raise ValueError(f"it sent {data[:200]}")
            is_chat = is_chat or "delta" in part
            has_thoughts = has_thoughts or bool(delta.get("reasoning") or delta.get("reasoning_content"))
            text = (delta.get("content") if is_chat else part.get("text")) or ""
            new = part.get("token_ids") or [] if has_ids else []
            if type(text) is not str or not are_ids(new):
                raise ValueError(f"it sent {data[:200]}")
            pieces.append(text)
            ids += new
            for key, values in logprobs.items():
                more = scores.get(key) or []
                if not isinstance(more, list):
                    raise ValueError(f"it sent {data[:200]}")
                values += more
            choice |= {name: part[name] for name in _LAST if part.get(name) is not None}
            if new or text:
                on_tokens(new or text)
        if not choice.get("finish_reason") and not (is_done and "finish_reason" in choice):
            # Some servers send an empty one with every chunk, and it ends nothing by itself
            raise ValueError("the stream ended without a finish_reason")
    finally:
        if choice or ids or any(pieces) or has_thoughts:
            text = "".join(pieces)
            choice |= {"message": {"content": text, "reasoning": has_thoughts}} if is_chat else {"text": text}
            choice |= {"token_ids": ids} if ids else {}
            answer["choices"] = [{**choice, "logprobs": logprobs}]
        else:
            answer.clear()
