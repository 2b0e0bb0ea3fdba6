"""A turn of a conversation, as clients send it: text, in one piece or in parts.

Owns which fields of a message say nothing to a text model and are left out, and which are refused. The parameters of a
request are in `protocol.py`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

_LEFT_OUT = {
    *("annotations", "cache_control", "id", "provider_specific_fields", "reasoning", "reasoning_content", "status"),
    *("reasoning_details", "thinking_blocks"),
}
"""Fields that a model's turn comes back with, or that are for another server's cache. No text of the turn is in them."""
_PARTS = ("text", "input_text", "output_text")


def is_neutral(value: Any) -> bool:
    """Whether a value asks for nothing."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _without_neutral(data: dict[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k in own or (k not in _LEFT_OUT and not is_neutral(v))}


class Message(BaseModel):
    """A turn of a conversation, text only. Fields that say nothing are left out, others are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = _without_neutral(data, ("role", "content"))
        if kept.get("role") == "assistant" and kept.get("content") is None and set(kept) <= {"role", "content"}:
            kept["content"] = ""  # a turn that said nothing
        if kept.get("type") == "message":  # an item of the responses API
            del kept["type"]
        return kept

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        texts = []
        for part in content:
            kept = _without_neutral(part, ("type", "text")) if isinstance(part, dict) else {}
            if set(kept) != {"type", "text"} or kept["type"] not in _PARTS or not isinstance(kept["text"], str):
                raise ValueError("only parts of the type text are supported")
            texts.append(kept["text"])
        return "".join(texts)

    @field_validator("name")
    @classmethod
    def _no_name(cls, name: str | None) -> None:
        if name is not None:
            raise ValueError("names of participants are not supported; leave it out")

    def to_dict(self) -> dict[str, str]:
        """The turn for a chat template."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}
