"""The fields of a request to a server with OpenAI's API, without its context.

Owns the differences between servers in the fields that they accept. `replies.py` reads their answers.
"""

from typing import Any

from ..vocabulary import Vocabulary
from .base import Sampling


def request_body(
    vocabulary: Vocabulary | None,
    api: str,
    needs_logprobs: bool,
    max_tokens: int,
    stop: tuple[str, ...],
    sampling: Sampling,
) -> dict[str, Any]:
    """The fields for at most `max_tokens` tokens, up to a stop string.

    Args:
        vocabulary ([`Vocabulary`], *optional*): of the served model; `None` if only text is exchanged.
        api (`"completions"`, `"chat"` or `"instruct"`).
        needs_logprobs (`bool`): ask for one log-probability per token.
        max_tokens (`int`), stop (`tuple[str, ...]`), sampling ([`Sampling`]): of the request.
    """
    body: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if vocabulary is not None:
        # Sent even if they change nothing: vLLM takes what is missing from the model's generation_config.json.
        body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        body |= {"return_token_ids": True, "stop_token_ids": sorted(vocabulary.eos_ids)}
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.min_p:
        body["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    if sampling.logit_bias:
        # JSON has no -inf; servers take -100 for a ban.
        limited = {str(token): min(max(bias, -100.0), 100.0) for token, bias in sampling.logit_bias.items()}
        body["logit_bias"] = limited
    if stop:
        body["stop"] = list(stop)
        if vocabulary is not None:
            # A tag may be a special token, which vLLM finds in the text only if it is not skipped.
            body |= {"include_stop_str_in_output": True, "skip_special_tokens": False}
    if needs_logprobs:
        body["logprobs"] = 0 if api == "completions" else True
    return body
