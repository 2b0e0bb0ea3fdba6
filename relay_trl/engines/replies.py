"""Reads the replies of a server with OpenAI's API: answers become generations, errors become one clear sentence.

Owns the differences between servers in the shape of an answer, and keeps secrets and long bodies out of messages.
`openai.py` sends the requests.
"""

import logging
from typing import Any, Literal

from ..vocabulary import Vocabulary
from .base import EngineError, FinishReason, Generation
from .connections import BrokenOff, RequestError

REQUESTS_FAULTS = (400, 413, 422)
"""Statuses that say that the request is wrong, wherever it is sent."""

logger = logging.getLogger(__name__)

_REASONS = {
    **dict.fromkeys(
        ("stop", "eos", "eos_token", "end_turn", "end", "stop_sequence", "stop_token", "complete", ""), "stop"
    ),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length", "max_output_tokens"), "length"),
}
"""What servers call an answer's end, in OpenAI's two words."""


class Replies:
    """Reads the replies of one server.

    Args:
        name (`str`): the server's URL, without credentials.
        api (`"completions"`, `"chat"` or `"instruct"`).
        secrets (`tuple[str, ...]`): kept out of every message.
        timeout_s (`float`), tries (`int`): what is allowed.
        option_prefix (`str`, defaults to `""`): of the options' names in messages.
    """

    def __init__(
        self,
        name: str,
        api: Literal["completions", "chat", "instruct"],
        secrets: tuple[str, ...],
        timeout_s: float,
        tries: int,
        option_prefix: str = "",
    ) -> None:
        self.name = name
        self._is_chat = api != "completions"
        self._has_warned = False
        self._secrets = secrets
        self._timeout_s = timeout_s
        self._timeout_option = f"{option_prefix}timeout_s"
        self._concurrency_option = f"{option_prefix or 'max_'}concurrency"
        self.tries = tries
        self._tries = f"{tries} tries" if tries > 1 else "1 try"

    def read(
        self, answer: dict[str, Any], stop: tuple[str, ...], vocabulary: Vocabulary | None, needs_logprobs: bool
    ) -> Generation:
        """The generation in an answer.

        Args:
            answer (`dict`): the JSON of a completion or chat completion.
            stop (`tuple[str, ...]`): the stop strings that were asked for.
            vocabulary ([`Vocabulary`], *optional*): of the ids in the answer; `None` reads the text only.
            needs_logprobs (`bool`): whether one logprob per id must be there.

        Raises:
            EngineError: a part is missing or of the wrong type, or the answer has no usable end.
        """
        choice = first_choice(answer)
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        text = message.get("content") if self._is_chat else choice.get("text")
        has_thoughts = bool(message.get("reasoning") or message.get("reasoning_content"))
        if text is None and message:  # an answer of nothing, or of something that is no text
            others = [key for key in ("tool_calls", "function_call", "audio", "refusal") if message.get(key)]
            if others:
                raise self.broken(f"answered with {' and '.join(others)} in place of text")
            text = ""
        if has_thoughts and not text:
            raise self.broken(
                "thought to the end of what it was granted and wrote nothing",
                "Switch its thinking off, by chat_template_kwargs or teacher_extra_body (such as reasoning_effort), or take a "
                "model that does not think.",
            )
        if has_thoughts and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s thinks apart from its text: the thoughts count among its tokens and are left out of the answer.",
                self.name,
            )
        ids = choice.get("token_ids") if vocabulary is not None else None
        is_readable = ids is None or are_ids(ids)
        if not isinstance(text, str) or not is_readable:
            raise self.broken(f"answered with text {self.words(text)} and token_ids {self.words(ids)}")
        reason = _REASONS.get(str(choice.get("finish_reason")).lower())
        if reason is None:
            raise self.broken(f"ended an answer with finish_reason {self.words(choice.get('finish_reason'))}")
        # vLLM names the stop string, or the id of an end token that is not the main one; SGLang in another field.
        cause = choice.get("stop_reason", choice.get("matched_stop"))
        finish = FinishReason.LENGTH
        if reason == "stop":
            is_stop = cause in stop if isinstance(cause, str) else cause is None and bool(stop) and text.endswith(stop)
            # A stop string may stand in the text of the end token: `<` in `<|im_end|>`
            is_end = bool(ids) and vocabulary is not None and ids[-1] in vocabulary.eos_ids
            finish = FinishReason.STOP if is_stop and not is_end else FinishReason.EOS
        counts = _counts(answer.get("usage"))
        logprobs = self._read_logprobs(choice.get("logprobs"), ids) if needs_logprobs else None
        if ids is None or vocabulary is None:
            return Generation(None, text, finish, None, *counts)
        if finish is FinishReason.EOS and (not ids or (ids[-1] not in vocabulary.eos_ids and ids[-1] != cause)):
            if logprobs is not None:
                raise self.broken("drops the end token, whose logprob a student needs", "Use vLLM for a student.")
            ids = [*ids, vocabulary.eos_id]  # the server left it out, but reported it
        words = ids[:-1] if finish is FinishReason.EOS else ids
        return Generation(ids, vocabulary.decode(words), finish, logprobs, *counts)

    def read_part(self, answer: dict[str, Any], vocabulary: Vocabulary | None) -> Generation | None:
        """The generation in an answer that broke off; `None` if nothing had arrived."""
        choice = first_choice(answer)
        ids = choice.get("token_ids") if vocabulary is not None else None
        if ids is None or vocabulary is None:
            text = (choice.get("message") or {}).get("content") if self._is_chat else choice.get("text")
            return Generation(None, text, FinishReason.LENGTH) if text else None
        return Generation(ids, vocabulary.decode(ids), FinishReason.LENGTH)

    def _read_logprobs(self, logprobs: Any, ids: list[int] | None) -> list[float]:
        if ids is None:
            raise self.broken("returns no token ids, which a student needs", "Use a server with return_token_ids.")
        try:
            values = [c["logprob"] for c in logprobs["content"]] if self._is_chat else logprobs["token_logprobs"]
            # JSON has no NaN; null stands for it, and the trainer gives such a token no correction.
            numbers = [float("nan") if value is None else float(value) for value in values]
        except (TypeError, KeyError, ValueError) as error:
            raise self.broken(f"returned logprobs {self.words(logprobs)}") from error
        if len(numbers) != len(ids):
            raise self.broken(f"returned {len(numbers)} logprobs for {len(ids)} tokens")
        return numbers

    def read_scores(self, answer: dict[str, Any], ids: list[int], start: int) -> list[dict[int, float]] | None:
        """The log-probabilities at the places of `ids[start:]`, by token, in an answer to a request with `prompt_logprobs`; `None`
        if there are none."""
        given = first_choice(answer).get("prompt_logprobs")
        if given is None:
            return None
        try:
            if len(given) != len(ids):
                raise ValueError(f"{len(given)} of them for {len(ids)} tokens")
            return [
                {
                    ids[k]: float(given[k][str(ids[k])]["logprob"]),
                    **{int(i): float(o["logprob"]) for i, o in given[k].items()},
                }
                for k in range(start, len(ids))
            ]
        except (TypeError, KeyError, ValueError) as error:
            raise self.broken(f"returned unreadable prompt_logprobs ({self.words(repr(error))})") from error

    def fault(self, error: RequestError, model: str | None) -> EngineError:
        """A request's failure, after all tries, with its remedy."""
        words = self.words(error.said)
        if isinstance(error, BrokenOff):
            return self.broken(f"broke off an answer ({words})", "Look into the server's log.")
        if error.is_timeout:
            return EngineError(
                f"{self.name} gave no answer within {self._timeout_s:g} s in {self._tries}; raise "
                f"{self._timeout_option} or lower {self._concurrency_option}."
            )
        if (status := error.status_code) is not None:
            if status in (401, 403):
                remedy = "Give its key as api_key or OPENAI_API_KEY."
            elif status == 404:
                other = "" if self._is_chat else ", or set teacher_api: chat if it has no completions API"
                remedy = f"Check that the URL ends where its API begins (/v1) and that it serves {model!r}{other}."
            elif status == 429 or status >= 500:
                remedy = (
                    f"Gave up after {self._tries}: lower {self._concurrency_option}, or look into the server's log."
                )
            else:
                remedy = "If it takes no token ids or extra fields, use it without a vocabulary."
            return EngineError(f"{self.name} refused a request with status {status} ({words}). {remedy}")
        return EngineError(
            f"{self.name} cannot be reached in {self._tries} ({words}); start the server or correct the URL."
        )

    def broken(self, what: str, remedy: str = "Check that it speaks OpenAI's API.") -> EngineError:
        """An answer that came but cannot be used."""
        return EngineError(f"{self.name} {what}. {remedy}")

    def words(self, said: Any) -> str:
        """A text from outside for use in a message: one line, short, without the key."""
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return repr(text if len(text) <= 200 else text[:200] + "...")


def are_ids(value: Any) -> bool:
    """Whether `value` is a list of ids that a tokenizer accepts: it fails on ids that are negative or have more than 32 bits."""
    return isinstance(value, list) and all(type(i) is int and 0 <= i < 1 << 32 for i in value)


def first_choice(answer: Any) -> dict[str, Any]:
    """The first choice of an answer; empty if there is none."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _counts(usage: Any) -> list[int | None]:
    """The tokens that a server wrote, read, and found in its cache; `None` for a count that it does not report. vLLM reports
    the last one if it was started with `--enable-prompt-tokens-details`.
    """
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    said = (usage.get("completion_tokens"), usage.get("prompt_tokens"), cached)
    return [count if type(count) is int else None for count in said]


def list_names(names: list[str]) -> str:
    """Names for a message, the first eight of them spelled out."""
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
