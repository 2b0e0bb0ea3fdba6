"""The parameters of each kind of request: OpenAI's and the relay's. Each is used or refused by name.

Owns names, types and ranges. What is refused for all kinds is in `protocol.py`, a conversation's turns in `messages.py`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..call_bias import NEVER
from .messages import Message
from .protocol import Body

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_PROMPTS = 256
MAX_TOP = 20
MIN_BIAS = -100.0
"""The lowest `call_bias`, at which the student never calls. At the highest, a call begins wherever it can."""

LIMITS = ("max_calls", "max_call_tokens", "max_teacher_tokens")
"""Options that a request can only lower."""

OPTIONS = (
    *("max_tokens", "stop", "show_commands", "use_teacher"),
    *("temperature", "top_p", "top_k", "min_p", "call_bias", *LIMITS),
)
"""Options of a question."""


class StreamOptions(Body):
    """Options of a streamed answer. Obfuscation would add padding to the chunks; there is none here."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class Request(Body):
    """What chat and completions share. `None` takes the server's value."""

    model: str
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: list[str] = Field([], max_length=MAX_STOPS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
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
    def top(self) -> int | None:
        """How many of the likeliest tokens are asked for at each place; `None` without logprobs."""
        return None

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given, as [`Pair.question`] takes them."""
        given = {name: getattr(self, name) for name in OPTIONS}
        given |= {"top_logprobs": self.top, "echo": getattr(self, "echo", False)}
        if self.top_k == -1:
            given["top_k"] = 0
        if self.call_bias == MIN_BIAS:  # a call is then impossible, not only rare
            given["call_bias"] = NEVER
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: list[str]) -> list[str]:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("seed")
    @classmethod
    def _no_seed(cls, seed: int | None) -> int | None:
        return None if seed is None or seed < 0 else seed  # below 0 some servers draw one

    @model_validator(mode="after")
    def _check_stream_options(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for a streamed answer; set stream to true")
        return self


_TEMPLATES_OWN = {
    *("conversation", "messages", "documents", "tools", "chat_template", "strftime_now"),
    *("tokenize", "tokenizer_kwargs", "processor_kwargs", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("add_generation_prompt", "continue_final_message"),
}
"""What a client may not hand to a chat template: how it is run, or a template of its own."""


def _check_template(given: dict[str, Any]) -> dict[str, Any]:
    own = sorted(_TEMPLATES_OWN.intersection(given))
    if own:
        raise ValueError(f"{own[0]} is no variable of a template; leave it out")
    return given


TemplateFields = Annotated[dict[str, Any], AfterValidator(_check_template)]


class ChatRequest(Request):
    """The body of `/v1/chat/completions`."""

    neutral: ClassVar[dict[str, tuple]] = {"echo": (False,)}

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    chat_template_kwargs: TemplateFields = {}
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        check_turns(self.messages, self.add_generation_prompt, self.continue_final_message)
        return self

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def check_turns(messages: list[Message], adds_prompt: bool | None, continues: bool):
    """Refuses a conversation that does not end where the student is to write."""
    if continues and adds_prompt:
        raise ValueError("continue_final_message and add_generation_prompt exclude each other; set one of them")
    if continues and messages[-1].role != "assistant":
        raise ValueError(
            f"continue_final_message continues the assistant's turn; the last one is the {messages[-1].role}'s"
        )
    if messages[-1].role == "assistant" and not continues and adds_prompt is not False:
        raise ValueError(
            "the last message is the assistant's; end with a user's turn, or set continue_final_message to true"
        )


class CompletionRequest(Request):
    """The body of `/v1/completions`. A list of numbers is the student's token ids."""

    neutral: ClassVar[dict[str, tuple]] = {"top_logprobs": (0,), "add_special_tokens": (True,)}

    prompt: Annotated[
        list[str | Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)
    ]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    echo: bool = False

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_list(cls, prompt: Any) -> Any:
        return (
            [prompt]
            if isinstance(prompt, str) or (prompt and isinstance(prompt, list) and all(map(_is_id, prompt)))
            else prompt
        )

    @field_validator("logprobs", mode="before")
    @classmethod
    def _no_logprobs(cls, logprobs: Any) -> Any:
        return None if logprobs is False else logprobs

    @model_validator(mode="after")
    def _check(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which asks for nothing; with echo it scores the prompt")
        return self

    @property
    def top(self) -> int | None:
        return self.logprobs


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class TokenizeRequest(Body):
    """The body of `/tokenize`, as vLLM has it: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: TemplateFields = {}
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either a prompt or messages")
        if self.messages:
            check_turns(self.messages, self.add_generation_prompt, self.continue_final_message)
        return self


class DetokenizeRequest(Body):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[int]


def template_fields(asked: "ChatRequest | TokenizeRequest") -> dict[str, Any]:
    """What a conversation hands to the chat templates."""
    ending = {"continue_final_message": True} if asked.continue_final_message else {}
    adds = not asked.continue_final_message if asked.add_generation_prompt is None else asked.add_generation_prompt
    return {**asked.chat_template_kwargs, "add_generation_prompt": adds, **ending}
