"""The form of an answer: OpenAI's objects, whole or in chunks, with the authors in an additional field `relay`.

Owns the names and shapes of what is sent; docs/serving.md describes them.
"""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.responses import JSONResponse, Response

from ..trace import Reading
from .answer import Answer, News
from .logprobs import as_chat, as_completion
from .protocol import ApiError
from .reader import Delta

DONE = "data: [DONE]\n\n"
"""The end of every stream."""


@dataclass(frozen=True)
class Form:
    """The objects of one request's answer.

    Args:
        kind (`"chat"` or `"text"`).
        model (`str`): the name that was asked for.
        has_usage (`bool`, defaults to `False`): whether a stream ends with the usage.
        echoes (`list[str]`): text in front of each answer, its prompt's; empty without.
    """

    kind: Literal["chat", "text"]
    model: str
    has_usage: bool = False
    echoes: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def _object(self, name: str, choices: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        head = {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **fields}

    def whole(self, answers: list[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index, answer in enumerate(answers):
            said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
            text = {"text": (self.echoes[index] if self.echoes else "") + answer.text}
            choices.append(
                {
                    "index": index,
                    **(said if self.kind == "chat" else text),
                    "logprobs": self._logprobs(answer),
                    "finish_reason": answer.finish_reason,
                    "relay": {"spans": [span_of(span) for span in answer.spans], **outcome(answer)},
                }
            )
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return self._object(name, choices, usage=usage(answers, prompt_tokens))

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if answer.places is None:
            return None
        return as_chat(answer.places) if self.kind == "chat" else as_completion(answer.places)

    def _chunk(
        self,
        index: int,
        text: str | None,
        relay: dict | None,
        finish: str | None = None,
        logprobs: dict | None = None,
        **delta: Any,
    ) -> str:
        said: dict[str, Any]
        if self.kind == "chat":
            said = {"delta": {**delta, **({} if text is None else {"content": text})}}
        else:
            said = {"text": text or ""}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        if relay is not None:
            choice["relay"] = relay
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return event(self._object(name, [choice], **({"usage": None} if self.has_usage else {})))

    def opening(self, choices: int) -> str:
        """The beginning of a stream."""
        if self.kind == "text":
            return "".join(self._chunk(index, text, None) for index, text in enumerate(self.echoes))
        return "".join(self._chunk(index, "", None, role="assistant") for index in range(choices))

    def news(self, news: News) -> str:
        """The next part of a stream. If there are no news, a comment, so that no proxy closes the connection."""
        return (
            "".join(
                self._chunk(index, None, outcome(said), said.finish_reason, self._logprobs(said))
                if isinstance(said, Answer)
                else self._chunk(index, said.text, {"author": said.author, "tokens": said.tokens})
                for index, said in news
            )
            or ": still there\n\n"
        )

    def closing(self, answers: list[Answer], prompt_tokens: int) -> str:
        """The end of a stream."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        last = event(self._object(name, [], usage=usage(answers, prompt_tokens))) if self.has_usage else ""
        return last + DONE


def event(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def refusal(error: ApiError) -> Response:
    """The reply to a request that is refused."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse(error.body, error.status, headers)


def usage(answers: list[Answer], prompt_tokens: int) -> dict[str, Any]:
    """The usage of all answers to a request. `prompt_tokens` counts the prompt once; read tokens count every turn."""
    student = sum(answer.student_tokens for answer in answers)
    teacher = sum(answer.teacher_tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": student + teacher,
        "total_tokens": prompt_tokens + student + teacher,
        "student_tokens": student,
        "teacher_tokens": teacher,
        "calls": sum(len(answer.calls) for answer in answers),
        **_read("student", [answer.trace.student_read for answer in answers]),
        **_read("teacher", [answer.trace.teacher_read for answer in answers]),
    }


def _read(name: str, parts: list[Reading]) -> dict[str, int | None]:
    read = Reading()
    for part in parts:
        read.add(part.tokens, part.cached)
    return {f"{name}_read_tokens": read.tokens, f"{name}_cached_tokens": read.cached}


def span_of(span: Delta) -> dict[str, Any]:
    """A stretch of one author."""
    return {"author": span.author, "text": span.text, "tokens": span.tokens}


def outcome(answer: Answer) -> dict[str, Any]:
    """How an answer ended, and what became of its calls."""
    return {
        "calls": [
            {
                "requested": call.requested,
                "granted": call.granted,
                "delivered": call.delivered,
                "outcome": call.outcome,
                "wait_s": round(call.wait_s, 4),
            }
            for call in answer.calls
        ],
        "stop": "stop_string" if answer.is_stopped else answer.trace.stop,
        "teacher_failed": answer.has_failed_teacher,
        **({} if answer.places is None else {"all_scored": answer.is_scored}),
    }
