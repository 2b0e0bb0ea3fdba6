"""How a body becomes a request: what asks for nothing is left out, what is not supported is refused by name.

Owns errors in the form that OpenAI's clients understand. The requests are in `requests.py`, answers in `responses.py`.
"""

from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

NEUTRAL: dict[str, tuple] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Unsupported parameters and the values that ask for nothing, beside null. Any other value is refused."""

LABELS = ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user")
"""Parameters that do not change an answer in OpenAI's API."""


class ApiError(Exception):
    """An error reply in OpenAI's form.

    Args:
        status (`int`): HTTP status.
        message (`str`): for the client.
        param (`str`, *optional*): the parameter that is wrong.
        code (`str`, *optional*): a code for programs.
        retry_after_s (`int`, *optional*): when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.retry_after_s = code, retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Body(BaseModel):
    """A body that knows its fields.

    Attributes:
        neutral (`dict[str, tuple]`): further entries of [`NEUTRAL`], of this kind of body.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[dict[str, tuple]] = {}


AnyRequest = TypeVar("AnyRequest", bound=Body)


def parse(body: Any, kind: type[AnyRequest]) -> AnyRequest:
    """The request in a body.

    Args:
        body (`Any`): parsed JSON.
        kind (`type`): of `requests.py`.

    Raises:
        ApiError: 400, with the name of the parameter.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"The body must be a JSON object, not {type(body).__name__}.", code="invalid_json")
    for name, neutral in {**NEUTRAL, **kind.neutral}.items():
        if body.get(name) is None or any(_is_same(body[name], value) for value in neutral):
            continue
        allowed = " or ".join(map(repr, neutral))
        remedy = f"leave it out or send {allowed}" if allowed else "leave it out"
        raise ApiError(400, f"{name} is not supported here; {remedy}.", name, "unsupported_parameter")
    left_out = {*NEUTRAL, *kind.neutral, *LABELS}
    known = {name: value for name, value in body.items() if name not in left_out and value is not None}
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _refusal(error) from None


def _is_same(given: Any, neutral: Any) -> bool:
    # True == 1 in Python, but a client that sends true means something else
    return given == neutral and isinstance(given, bool) == isinstance(neutral, bool)


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    # For a union, pydantic adds the name of the branch, which is not part of the request.
    path = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}.", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"The parameter {param} is missing.", param, "missing_required_parameter")
    value = repr(first["input"])
    shown = "" if first["loc"] == () or len(value) > 100 else f"; it is {value}"
    reason = first["msg"].removeprefix("Value error, ").rstrip(".")
    return ApiError(400, f"{param or 'The request'}: {reason}{shown}.", param, "invalid_value")
