"""An engine that writes given tokens, for tests and for the benchmark of the relay's own logic.

Only the choice of tokens differs from a real engine: it stops at stop strings, at end tokens and at `max_tokens`, and gives
one logprob per token.
"""

import asyncio
from collections.abc import Callable, Sequence
from copy import copy

from ..vocabulary import Vocabulary
from .base import Context, EngineError, FinishReason, Generation, OnTokens, Sampling, Scores


class ScriptedEngine(Scores):
    """Writes a given sequence of tokens.

    Args:
        vocabulary ([`Vocabulary`]): of its ids. `None` makes it a text-only engine whose script yields texts.
        script (`Callable[[Context], Sequence[int] | str | Exception]`): what to write after a context, with an end token
            if the answer shall end. An exception is raised.
        name (`str`, defaults to `"scripted"`).
        max_context (`int`, *optional*).
        delay_s (`float`, defaults to `0.0`): pause before each answer, in seconds, and before each token for a listener.
        scores (`Callable[[list[int], int], list[float]]`, *optional*): log-probabilities of `ids[start:]`; `None` makes it an
            engine that gives none.

    Attributes:
        contexts (`list[Context]`): every context that it got, in order.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        script: Callable[[Context], Sequence[int] | str | Exception],
        name: str = "scripted",
        max_context: int | None = None,
        delay_s: float = 0.0,
        scores: Callable[[list[int], int], list[float]] | None = None,
    ):
        self.vocabulary = vocabulary
        self.name = name
        self.max_context = max_context
        self.contexts: list[Context] = []
        self._script = script
        self._delay_s = delay_s
        self._scores = scores

    async def generate(
        self,
        context: Context,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = Sampling(),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        self.contexts.append(copy(context))
        await asyncio.sleep(self._delay_s)
        planned = self._script(context)
        if isinstance(planned, Exception):
            raise planned
        if self.vocabulary is None:
            if on_tokens is not None:
                on_tokens(str(planned))
            return Generation(None, str(planned), FinishReason.LENGTH, num_tokens=max_tokens)
        if isinstance(planned, str):
            raise EngineError(f"The script of {self.name!r} gave text where token ids were expected.")
        ids: list[int] = []
        longest_stop = max(map(len, stop), default=0)
        finish = FinishReason.LENGTH
        for token in planned[:max_tokens]:
            ids.append(token)
            if on_tokens is not None:
                await asyncio.sleep(self._delay_s)
                on_tokens([token])
            if token in self.vocabulary.eos_ids:
                finish = FinishReason.EOS
                break
            if stop and any(s in self.vocabulary.decode(ids[-longest_stop - 1 :]) for s in stop):
                finish = FinishReason.STOP
                break
        text = self.vocabulary.decode(ids[:-1] if finish is FinishReason.EOS else ids)
        return Generation(ids, text, finish, logprobs=[-0.5] * len(ids), prompt_tokens=len(context), cached_tokens=0)

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        await asyncio.sleep(self._delay_s)
        return (
            None
            if self._scores is None
            else [{i: s} for i, s in zip(ids[start:], self._scores(ids, start), strict=True)]
        )
