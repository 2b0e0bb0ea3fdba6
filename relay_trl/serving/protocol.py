"""The parameters of a request: OpenAI's and the relay's. Each is used or refused by name.

Owns names, types and ranges, and errors in the form that OpenAI's clients understand. Answers are in `responses.py`.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..call_bias import NEVER

MAX_CHOICES = 16
MAX_STOPS = 16
MIN_BIAS = -100.0
"""The lowest `call_bias`, at which the student never calls. At the highest, a call begins wherever it can."""

NEUTRAL: dict[str, tuple] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Unsupported parameters and the values that ask for nothing, beside null. Any other value is refused."""

LIMITS = ("max_calls", "max_call_tokens", "max_teacher_tokens")
"""Options that a request can only lower."""

OPTIONS = (
    *("max_tokens", "stop", "show_commands", "use_teacher"),
    *("temperature", "top_p", "top_k", "min_p", "call_bias", *LIMITS),
)
"""Options of a question."""

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
        self.status, self.message, self.param, self.code, self.retry_after_s = (
            *(status, message, param),
            *(code, retry_after_s),
        )

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """Options of a streamed answer. Obfuscation would add padding to the chunks; there is none here."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Request(_Strict):
    """What chat and completions share. `None` takes the server's value."""

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: list[str] = Field([], max_length=MAX_STOPS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Ours
    max_calls: int | None = Field(None, ge=0)
    max_call_tokens: int | None = Field(None, ge=1)
    max_teacher_tokens: int | None = Field(None, ge=0)
    call_bias: float | None = Field(None, ge=MIN_BIAS, le=-MIN_BIAS)
    use_teacher: bool = True
    show_commands: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given, as [`Pair.question`] takes them."""
        given = {name: getattr(self, name) for name in OPTIONS}
        if self.top_k == -1:
            given["top_k"] = 0
        if self.call_bias == MIN_BIAS:  # a call is then impossible, not only rare
            given["call_bias"] = NEVER
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [] if stop is None else [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: list[str]) -> list[str]:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("n", "stream", "use_teacher", "show_commands", mode="before")
    @classmethod
    def _default_for_null(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @model_validator(mode="after")
    def _check_stream_options(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for a streamed answer; set stream to true")
        return self


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of a conversation, text only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None
    refusal: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if isinstance(content, list):
            if not all(isinstance(part, dict) and set(part) == {"type", "text"} for part in content):
                raise ValueError("only parts of the type text are supported")
            content = "".join(_TextPart.model_validate(part).text for part in content)
        return content

    @field_validator("name")
    @classmethod
    def _no_name(cls, name: str | None) -> None:
        if name is not None:
            raise ValueError("names of participants are not supported; leave it out")

    def to_dict(self) -> dict[str, str]:
        """The turn for a chat template."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(Request):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
            self.max_tokens = self.max_completion_tokens
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's; end with a user's turn")
        return self


class CompletionRequest(Request):
    """The body of `/v1/completions`. A list of numbers is the student's token ids."""

    prompt: str | Annotated[list[int], Field(min_length=1)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(isinstance(part, str | list) for part in prompt):
            if len(prompt) != 1:
                raise ValueError("several prompts in one request are not supported; send one request for each")
            return prompt[0]
        return prompt


AnyRequest = TypeVar("AnyRequest", bound=Request)


def parse(body: Any, kind: type[AnyRequest]) -> AnyRequest:
    """The request in a body.

    Args:
        body (`Any`): parsed JSON.
        kind (`type`): [`ChatRequest`] or [`CompletionRequest`].

    Raises:
        ApiError: 400, with the name of the parameter.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"The body must be a JSON object, not {type(body).__name__}.", code="invalid_json")
    for name, neutral in NEUTRAL.items():
        if body.get(name) is None or any(_is_same(body[name], value) for value in neutral):
            continue
        allowed = " or ".join(map(repr, neutral))
        remedy = f"leave it out or send {allowed}" if allowed else "leave it out"
        raise ApiError(400, f"{name} is not supported here; {remedy}.", name, "unsupported_parameter")
    known = {name: value for name, value in body.items() if name not in NEUTRAL and name not in LABELS}
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
