"""OpenAI's `/v1/responses` for text: its request, and the objects and events of its reply.

Owns the names and shapes of this API. It is answered as a chat is; nothing is stored, so a conversation comes whole each time.
"""

import time
import uuid
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from .answer import Answer, News
from .messages import Message
from .requests import Request, check_turns
from .responses import event, outcome, span_of, usage


class ResponsesRequest(Request):
    """The body of `/v1/responses`."""

    neutral: ClassVar[dict[str, tuple]] = {
        "background": (False,),
        "conversation": (),
        "include": ([],),
        "max_tool_calls": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}, {"effort": None}),
        "text": ({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: Annotated[list[Message], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)

    @field_validator("input", mode="before")
    @classmethod
    def _as_messages(cls, given: Any) -> Any:
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> "ResponsesRequest":
        if self.n != 1:
            raise ValueError("n is not supported here; send one request for each answer")
        check_turns(self.input, None, False)
        self.max_tokens = self.max_output_tokens
        return self

    @property
    def messages(self) -> list[Message]:
        """The conversation, with the instructions in front."""
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        return [*system, *self.input]


class ResponsesForm:
    """The objects of one request's reply, whole or as events; see [`~relay_trl.serving.responses.Form`].

    Args:
        model (`str`): the name that was asked for.
        asked ([`ResponsesRequest`]).
    """

    def __init__(self, model: str, asked: ResponsesRequest):
        self._model, self._asked = model, asked
        self._id, self._item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._text = ""
        self._number = -1

    def _response(self, answer: Answer | None, prompt_tokens: int = 0) -> dict[str, Any]:
        is_cut = answer is not None and answer.finish_reason == "length"
        asked = self._asked
        found: dict[str, Any] = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if answer is None else "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "error": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": {},
            "model": self._model,
            "output": [] if answer is None else [self._message(answer.text, "incomplete" if is_cut else "completed")],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }
        if answer is not None:
            counted = usage([answer], prompt_tokens)
            found["usage"] = {
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
                **{name: counted[name] for name in ("student_tokens", "teacher_tokens", "calls")},
            }
            found["relay"] = {"spans": [span_of(span) for span in answer.spans], **outcome(answer)}
        return found

    def _message(self, text: str | None, status: str) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [_part(text)],
        }

    def whole(self, answers: list[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The reply in one piece."""
        return self._response(answers[0], prompt_tokens)

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return f"event: {kind}\n" + event({"type": kind, "sequence_number": self._number, **fields})

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def opening(self, choices: int) -> str:
        """The first events."""
        return (
            self._event("response.created", response=self._response(None))
            + self._event("response.in_progress", response=self._response(None))
            + self._event("response.output_item.added", output_index=0, item=self._message(None, "in_progress"))
            + self._event("response.content_part.added", **self._place, part=_part(""))
        )

    def news(self, news: News) -> str:
        """The next events. If there are no news, a comment, so that no proxy closes the connection."""
        said = [delta for _, delta in news if not isinstance(delta, Answer) and delta.text]
        self._text += "".join(delta.text for delta in said)
        events = (
            self._event(
                "response.output_text.delta",
                **self._place,
                delta=delta.text,
                logprobs=[],
                relay={"author": delta.author, "tokens": delta.tokens},
            )
            for delta in said
        )
        return "".join(events) or ": still there\n\n"

    def closing(self, answers: list[Answer], prompt_tokens: int) -> str:
        """The last events."""
        last = self._response(answers[0], prompt_tokens)
        return (
            self._event("response.output_text.done", **self._place, text=self._text, logprobs=[])
            + self._event("response.content_part.done", **self._place, part=_part(self._text))
            + self._event("response.output_item.done", output_index=0, item=last["output"][0])
            + self._event(f"response.{last['status']}", response=last)
        )


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
