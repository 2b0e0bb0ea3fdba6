"""The protocol of an engine: a request goes in, a generation comes out. The engine itself does the batching.

Owns the request and the answer of an engine, and the asyncio front of engines that run in this process. Imports no torch.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ..vocabulary import Vocabulary

Context: TypeAlias = list[int] | str | list[dict]
"""What an engine continues: token ids, a text, or chat messages. The last message may be an unfinished assistant turn."""

OnTokens: TypeAlias = Callable[[list[int] | str], None]
"""Gets an answer while it is written: the ids since the last call, end tokens included, or the text from an engine without
ids. It is called in the event loop that made the request."""


BACKENDS = ("auto", "transformers", "vllm", "openai")
"""Kinds of engine by name; `auto` takes `openai` for a URL and `transformers` for a model."""


APIS = ("completions", "chat", "instruct")
"""How a server is asked: by texts or ids, by chat messages whose last one it continues, or by chat messages of which the
last one asks for a continuation in words."""

LOOP_TURNS = 10
"""Turns of the event loop between two steps of an engine in this process. To send or read a request to a server takes about
as many turns; with one turn a step it would take as many steps."""


class FinishReason(StrEnum):
    """Why an engine stopped: it sampled an end token, it wrote a stop string, or it ran out of `max_tokens`."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


class EngineError(RuntimeError):
    """An engine could not answer, after its own retries. The message names the engine, the fault and a remedy.

    Attributes:
        written ([`Generation`], *optional*): what a listener got before the engine failed.
    """

    written: "Generation | None" = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature (`float`, defaults to `1.0`): 0 is greedy.
        top_p (`float`, defaults to `1.0`): keep the smallest set of tokens with this probability; 1 keeps all.
        top_k (`int`, defaults to `0`): keep this many tokens; 0 keeps all.
        min_p (`float`, defaults to `0.0`): drop tokens below this share of the likeliest one's probability.
        seed (`int`, *optional*): the same seed and context give the same tokens, whatever else is in the batch. `None`
            leaves the choice to the engine.
        logit_bias (`Mapping[int, float]`, *optional*): added to the logits of these token ids before anything else;
            `-inf` bars a token. Log-probabilities are those of the biased distribution, as it is the one drawn from. A
            server takes -100 for the lowest and 100 for the highest.
        repetition_penalty (`float`, defaults to `1.0`): tokens of the context and of the answer so far have their logits
            divided by it where they are positive, and multiplied where not; 1 leaves them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if any(math.isnan(bias) or bias == math.inf for bias in (self.logit_bias or {}).values()):
            raise ValueError("logit_bias has a value that is inf or not a number; give finite numbers or -inf.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise ValueError(
                f"{self} is not a valid sampling: temperature must be >= 0, top_p in (0, 1], top_k >= 0 and min_p in [0, 1]."
            )
        if not 0 < self.repetition_penalty <= 2:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and at most 2, and 1 is none."
            )


@dataclass
class Generation:
    """What an engine wrote.

    Args:
        ids (`list[int]`, *optional*): the tokens exactly as sampled, an EOS included; `None` from a text-only engine.
        text (`str`): their text, a closing end token left out. A text-only engine gives only this.
        finish ([`FinishReason`]): why it stopped.
        logprobs (`list[float]`, *optional*): log-probability of each id under the distribution it was drawn from.
        num_tokens (`int`, *optional*): tokens written by the engine's own count, for text-only engines.
        prompt_tokens (`int`, *optional*): tokens of the context, by the engine's own count.
        cached_tokens (`int`, *optional*): those of them that the engine took from its prefix cache instead of computing
            them; 0 from an engine that keeps none, `None` from one that does not tell.
    """

    ids: list[int] | None
    text: str
    finish: FinishReason
    logprobs: list[float] | None = None
    num_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


class Engine(Protocol):
    """A model that can be asked.

    Attributes:
        name (`str`): what people call it, for errors and reports: a path, a hub id or a URL.
        vocabulary ([`Vocabulary`], *optional*): of its ids; `None` if it takes and gives text only.
        max_context (`int`, *optional*): most tokens of prompt and answer together; `None` if unknown.
    """

    name: str

    # Properties for the type checker: an engine may promise more, such as always having a vocabulary.
    @property
    def vocabulary(self) -> Vocabulary | None: ...

    @property
    def max_context(self) -> int | None: ...

    async def generate(
        self,
        context: Context,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = Sampling(),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Continue `context` by at most `max_tokens` tokens, up to and including the token that completes a stop
        string, and tell `on_tokens` of them as they come. Raises [`EngineError`] when it cannot.
        """
        ...


@runtime_checkable
class ScoringEngine(Protocol):
    """An engine that can also say how likely it finds a given text. Whoever needs it asks `isinstance` first."""

    async def score(self, ids: list[int], start: int) -> list[float] | None:
        """Log-probabilities of `ids[start:]`, each after all before it, at temperature 1.

        Args:
            ids (`list[int]`): a context and what follows it, in the engine's vocabulary.
            start (`int`): how many of them are the context, at least 1.

        Returns:
            `list[float]`, shape (len(ids) - start,), or `None` if the server behind the engine does not tell.

        Raises:
            EngineError: the engine could not answer, or `ids` are longer than its context.
        """
        ...

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        """As [`~ScoringEngine.score`], with the `top` likeliest tokens of each place beside the one that is there.

        Returns:
            `list[dict[int, float]]`, shape (len(ids) - start,): log-probabilities by token.
        """
        ...


class Scores:
    """`score` of an engine that has `alternatives`."""

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        raise NotImplementedError

    async def score(self, ids: list[int], start: int) -> list[float] | None:
        """See [`ScoringEngine.score`]."""
        found = await self.alternatives(ids, start)
        return None if found is None else [place[token] for place, token in zip(found, ids[start:], strict=True)]


class SteppedEngine(Scores):
    """Asyncio front of an engine in this process that advances all requests together, one step at a time.

    Requests join between steps and leave as soon as they are done, so no request waits for another. A child class provides
    `_submit(context, max_tokens, stop, sampling, on_tokens) -> key`, `_submit_score(ids, start, top) -> key`,
    `_step() -> [(key, Generation or log-probabilities)]`, which calls the listeners, and `_abort(key)`.
    """

    def __init__(self):
        self._futures: dict[object, asyncio.Future] = {}
        self._pump: asyncio.Task | None = None

    async def generate(
        self,
        context: Context,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = Sampling(),
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        return await self._finish(self._submit(context, max_tokens, stop, sampling, on_tokens))

    async def alternatives(self, ids: list[int], start: int, top: int = 0) -> list[dict[int, float]] | None:
        """See [`ScoringEngine.alternatives`]."""
        if not 0 < start <= len(ids):
            raise ValueError(f"start is {start} for {len(ids)} ids; it must be 1 to their number.")
        return await self._finish(self._submit_score(ids, start, top))

    async def _finish(self, key: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._futures[key] = future
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        try:
            return await future
        except asyncio.CancelledError:
            if self._futures.pop(key, None) is not None:
                self._abort(key)
            raise

    def _submit(
        self, context: Context, max_tokens: int, stop: tuple[str, ...], sampling: Sampling, on_tokens: OnTokens | None
    ) -> Any:
        raise NotImplementedError

    def _submit_score(self, ids: list[int], start: int, top: int) -> Any:
        raise NotImplementedError

    def _step(self) -> Iterable[tuple[Any, Any]]:
        raise NotImplementedError

    def _abort(self, key: Any):
        raise NotImplementedError

    async def _run(self):
        try:
            while self._futures:
                for key, result in self._step():
                    future = self._futures.pop(key, None)
                    if future is not None and not future.done():
                        future.set_result(result)
                for _ in range(LOOP_TURNS if self._futures else 0):
                    await asyncio.sleep(0)
        except Exception as error:
            futures, self._futures = self._futures, {}
            for future in futures.values():
                if not future.done():
                    future.set_exception(error)
            for key in futures:  # last, because a broken engine may fail here too and no request may be left waiting
                self._abort(key)
