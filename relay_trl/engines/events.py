"""A server's streamed answer: joins server-sent events into the answer that would have come in one reply.

Owns the shape of OpenAI's chunks and the handling of a stream that breaks off. `connections.py` owns what goes wrong before
an answer begins.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from ..vocabulary import Vocabulary
from .base import OnTokens
from .connections import BrokenOff
from .replies import Replies, are_ids, first_choice

_LAST = ("finish_reason", "stop_reason", "matched_stop")
"""Fields of a choice that come with its last chunk."""


async def stream_answer(
    response: aiohttp.ClientResponse, replies: Replies, vocabulary: Vocabulary | None, on_tokens: OnTokens
) -> dict[str, Any]:
    """The answer in a stream, in the form of one that is not streamed.

    Args:
        response ([`~aiohttp.ClientResponse`]): whose body has not been read.
        replies ([`Replies`]): of the server.
        vocabulary ([`Vocabulary`], *optional*): of the ids that are expected; `None` reads the text only.
        on_tokens ([`OnTokens`]): gets every piece.

    Raises:
        EngineError: the stream broke off; `written` has what came before.
        BrokenOff: it broke off before its first token, so that the request can be sent again.
    """
    answer: dict[str, Any] = {}
    try:
        await _read_events(_lines(response), answer, on_tokens, vocabulary is not None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        broken = BrokenOff(str(error) or type(error).__name__)
        if not answer:
            raise broken from error
        fault = replies.fault(broken, None)
        fault.written = replies.read_part(answer, vocabulary)
        raise fault from error
    return answer


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The lines of a stream, however long."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode()
    yield rest.decode()


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
