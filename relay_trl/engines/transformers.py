"""An engine over a transformers model in this process: the default without a GPU or without vLLM.

Rows join the running batch between two tokens and leave it when they are done. All rows end at the right edge of the
key/value cache, so a row joins with padding on its left and leaves by being dropped.
"""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import AutoTokenizer, DynamicCache

from ..vocabulary import Vocabulary
from .adapters import load_model
from .base import Context, EngineError, FinishReason, Generation, OnTokens, Sampling, SteppedEngine
from .precision import warn_of_bfloat16
from .sampling import alternatives, draw


@dataclass
class _Row:
    key: int
    prompt: list[int]
    max_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    seed: int
    on_tokens: OnTokens | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    is_aborted: bool = False


@dataclass
class _Text:
    """A text whose tokens are to be scored from `start` on."""

    key: int
    ids: list[int]
    start: int
    top: int


_MOST_LOGITS = 1 << 27  # computed at once where texts are scored: half a gigabyte


class TransformersEngine(SteppedEngine):
    """Continues token ids with a causal language model.

    The same seed gives the same tokens whatever else is in the batch; see `sampling.py`.

    Args:
        model ([`~transformers.PreTrainedModel`]): may be replaced at any time between requests (`engine.model = ...`).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]).
        name (`str`, *optional*): for errors and reports, defaults to the model's path.
        max_batch_size (`int`, defaults to `512`): rows decoded together; more wait their turn.
        max_prefill_tokens (`int`, defaults to `32768`): prompt tokens, padding included, read at once.
    """

    def __init__(
        self, model, tokenizer, name: str | None = None, max_batch_size: int = 512, max_prefill_tokens: int = 32768
    ):
        super().__init__()
        self.model = model
        self.name = name or model.name_or_path
        eos = getattr(model.generation_config, "eos_token_id", None)
        self.vocabulary = Vocabulary(tokenizer, [eos] if isinstance(eos, int) else eos)
        self.max_context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_batch_size = max_batch_size
        self.max_prefill_tokens = max_prefill_tokens
        self._keys = itertools.count()
        self._waiting: list[_Row] = []
        self._texts: list[_Text] = []
        self._rows: list[_Row] = []
        self._cache: DynamicCache | None = None
        self._mask = torch.empty(0, 0)
        self._may_end_stop: dict[tuple[int, tuple[str, ...]], bool] = {}

    @classmethod
    def load(
        cls,
        path: str,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> "TransformersEngine":
        """An engine of its own model.

        Args:
            path (`str`): folder or Hub id.
            dtype (`str` or `torch.dtype`, *optional*): defaults to the checkpoint's.
            device (`str`, *optional*): defaults to the accelerator if there is one, else the CPU.
            revision (`str`, *optional*): branch, tag or commit on the Hub.
            trust_remote_code (`bool`, defaults to `False`): whether the model's repository may run its own code.
            kwargs: of [`TransformersEngine`].
        """
        found = {"revision": revision, "trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(path, **found)
        model: Any = load_model(path, len(tokenizer), dtype=dtype or "auto", use_safetensors=True, **found)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        model.eval().to(torch.device(device or accelerator or "cpu"))  # pyright: ignore[reportArgumentType]
        if model.dtype is torch.bfloat16 and model.device.type == "cpu":
            warn_of_bfloat16(path, "dtype: float32")
        return cls(model, tokenizer, name=path, **kwargs)

    def _submit(
        self, context: Context, max_tokens: int, stop: tuple[str, ...], sampling: Sampling, on_tokens: OnTokens | None
    ) -> int:
        if not context or not isinstance(context, list) or not isinstance(context[0], int):
            raise ValueError(f"The engine {self.name!r} continues a non-empty list of token ids.")
        seed = random.getrandbits(62) if sampling.seed is None else sampling.seed
        row = _Row(next(self._keys), cast(list[int], context), max_tokens, stop, sampling, seed, on_tokens)
        self._waiting.append(row)
        return row.key

    def _submit_score(self, ids: list[int], start: int, top: int) -> int:
        if self.max_context is not None and len(ids) > self.max_context:
            raise EngineError(f"{self.name} cannot score {len(ids)} tokens; its context has {self.max_context}.")
        self._texts.append(_Text(next(self._keys), ids, start, top))
        return self._texts[-1].key

    def _abort(self, key: object):
        self._texts = [text for text in self._texts if text.key != key]
        self._waiting = [row for row in self._waiting if row.key != key]
        for row in self._rows:
            if row.key == key:
                row.is_aborted = True

    def _step(self) -> list[tuple[int, Any]]:
        with torch.no_grad(), _inference(self.model):
            scored = self._score_texts()
            room = self.max_batch_size - sum(not _is_done(row) for row in self._rows)
            arrivals, self._waiting = self._waiting[:room], self._waiting[room:]
            for part in self._parts(arrivals):
                self._prefill(part)
            if any(not _is_done(row) for row in self._rows):
                self._decode()
        finished = [row for row in self._rows if row.finish is not None and not row.is_aborted]
        for row in finished:
            row.is_aborted = True  # delivered; its row of the cache is dropped at the next compaction
        self._compact()
        return [*scored, *((row.key, self._generation(row)) for row in finished)]

    def _score_texts(self) -> list[tuple[int, list[dict[int, float]]]]:
        texts, self._texts = sorted(self._texts, key=lambda text: len(text.ids)), []
        most = min(self.max_prefill_tokens, _MOST_LOGITS // self.model.config.get_text_config().vocab_size)
        scored = []
        while texts:
            size = next((k for k, text in enumerate(texts) if k and len(text.ids) * (k + 1) > most), len(texts))
            part, texts = texts[:size], texts[size:]
            ids = torch.full((size, len(part[-1].ids)), self.vocabulary.eos_id)
            for i, text in enumerate(part):  # padded on the right, which no token before it can see
                ids[i, : len(text.ids)] = torch.tensor(text.ids)
            ids = ids.to(self.model.device)
            logprobs = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            for t, row in zip(part, logprobs, strict=True):
                scored.append((t.key, alternatives(row[t.start - 1 : len(t.ids) - 1], t.ids[t.start :], t.top)))
        return scored

    def _generation(self, row: _Row) -> Generation:
        assert row.finish is not None
        text = self.vocabulary.decode(row.ids[:-1] if row.finish is FinishReason.EOS else row.ids)
        # The cache of a row ends with its request, so every context is read whole.
        return Generation(
            row.ids, text, row.finish, row.logprobs, len(row.ids), prompt_tokens=len(row.prompt), cached_tokens=0
        )

    def _parts(self, arrivals: list[_Row]) -> Iterator[list[_Row]]:
        part: list[_Row] = []
        for row in arrivals:
            longest = max(len(other.prompt) for other in [*part, row])
            if part and longest * (len(part) + 1) > self.max_prefill_tokens:
                yield part
                part = []
            part.append(row)
        if part:
            yield part

    def _prefill(self, rows: list[_Row]):
        device = self.model.device
        width = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), width), self.vocabulary.eos_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[i, width - len(row.prompt) :] = 1
        mask = mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        logits = self._forward(ids.to(device), mask, positions, cache)
        self._sample(logits, rows)
        self._join(rows, cache, mask)

    def _decode(self):
        device = self.model.device
        # Rows that are done but not yet dropped are computed too; their tokens are not kept.
        last = torch.tensor([[row.ids[-1]] for row in self._rows], device=device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        positions = self._mask.sum(1, keepdim=True) - 1
        self._sample(self._forward(last, self._mask, positions, self._cache), self._rows)

    def _forward(self, ids, mask, positions, cache) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _join(self, rows: list[_Row], cache: DynamicCache, mask: torch.Tensor):
        if self._cache is not None:
            width = max(self._mask.shape[1], mask.shape[1])
            for old, new in zip(_layers(self._cache), _layers(cache), strict=True):
                old.keys = _stack(old.keys, new.keys, width)
                old.values = _stack(old.values, new.values, width)
            pads = [torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in (self._mask, mask)]
            self._mask = torch.cat(pads)
        else:
            self._cache, self._mask = cache, mask
        self._rows = self._rows + rows

    def _compact(self):
        live = [i for i, row in enumerate(self._rows) if not row.is_aborted]
        if not live:
            self._rows, self._cache, self._mask = [], None, torch.empty(0, 0)
        elif self._cache is not None and 4 * len(live) <= 3 * len(
            self._rows
        ):  # dropping rows copies the cache, so not for every single row
            index = torch.tensor(live, device=self._mask.device)
            mask = self._mask[index]
            unused = int((mask.sum(0) == 0).sum())  # columns that only the dropped rows reached back to
            self._mask = mask[:, unused:]
            for layer in _layers(self._cache):
                layer.keys, layer.values = layer.keys[index, :, unused:], layer.values[index, :, unused:]
            self._rows = [self._rows[i] for i in live]

    def _sample(self, logits: torch.Tensor, rows: list[_Row]):
        positions = [len(row.prompt) + len(row.ids) for row in rows]
        seen = [() if row.sampling.repetition_penalty == 1 else (*row.prompt, *row.ids) for row in rows]
        tokens, logprobs = draw(logits, [row.sampling for row in rows], [row.seed for row in rows], positions, seen)
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if _is_done(row):
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            if token in self.vocabulary.eos_ids:
                row.finish = FinishReason.EOS
            elif row.stop and self._completes_stop(row):
                row.finish = FinishReason.STOP
            elif len(row.ids) >= row.max_tokens:
                row.finish = FinishReason.LENGTH
            if row.on_tokens is not None:
                row.on_tokens([token])

    def _completes_stop(self, row: _Row) -> bool:
        key = (row.ids[-1], row.stop)
        if key not in self._may_end_stop:
            piece = self.vocabulary.decode(row.ids[-1:])
            # A token of half a character may end a stop string that is not ASCII
            self._may_end_stop[key] = "\ufffd" in piece or any(stop[-1] in piece for stop in row.stop)
        if not self._may_end_stop[key]:
            return False
        tail = self.vocabulary.decode(row.ids[-max(map(len, row.stop)) - 1 :])
        return any(stop in tail for stop in row.stop)


@contextmanager
def _inference(model) -> Iterator[None]:
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def _layers(cache: DynamicCache) -> list[Any]:
    """Its layers, all of them plain ones with `keys` and `values` of shape (rows, heads, columns, size)."""
    return cache.layers


def _is_done(row: _Row) -> bool:
    return row.finish is not None or row.is_aborted


def _stack(old: torch.Tensor, new: torch.Tensor, width: int) -> torch.Tensor:
    """Two caches of shape (rows, heads, columns, size), padded on the left to `width` columns, below one another."""
    return torch.cat([torch.nn.functional.pad(t, (0, 0, width - t.shape[2], 0)) for t in (old, new)])
