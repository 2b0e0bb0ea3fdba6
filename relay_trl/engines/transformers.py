"""An engine over a transformers model in this process: the default without a GPU or without vLLM.

Rows join the running batch between two tokens and leave it when they are done. `kv_cache.py` owns the layout of their caches, and
those that are kept for a rollout's next turn.
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
from .kv_cache import KeptCaches, RowCache, batch_of, join, length_of, select
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
    past: RowCache | None  # of the beginning of the prompt, until it is in the batch's cache
    num_past: int
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
        kept_cache_mb (`int`, defaults to `512`): MiB of key/value caches kept for the next turns of rollouts.
    """

    def __init__(
        self,
        model,
        tokenizer,
        name: str | None = None,
        max_batch_size: int = 512,
        max_prefill_tokens: int = 32768,
        kept_cache_mb: int = 512,
    ):
        super().__init__()
        self._kept = KeptCaches(kept_cache_mb << 20)
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

    @property
    def model(self):
        """The model; one that is set anew may have other weights, so nothing that was computed is used with it."""
        return self._model

    @model.setter
    def model(self, model):
        self._model = model
        self._kept.clear()

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
        ids = cast(list[int], context)
        past = self._kept.take(ids)
        row = _Row(next(self._keys), ids, max_tokens, stop, sampling, seed, on_tokens, past, length_of(past))
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
            for has_past in (False, True):
                for part in self._parts([row for row in arrivals if (row.past is not None) == has_past]):
                    self._prefill(part)
            if any(not _is_done(row) for row in self._rows):
                self._decode()
        finished = [row for row in self._rows if row.finish is not None and not row.is_aborted]
        for i, row in enumerate(self._rows):
            if row.finish not in (None, FinishReason.EOS) and not row.is_aborted and self._cache is not None:
                self._kept.put([*row.prompt, *row.ids[:-1]], self._cache, i, self._mask)
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
        return Generation(row.ids, text, row.finish, row.logprobs, len(row.ids), len(row.prompt), row.num_past)

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
        """Reads the prompts of rows that all have a past, or all have none."""
        device = self.model.device
        cache = DynamicCache() if rows[0].past is None else batch_of([row.past or [] for row in rows])
        past, width = max(row.num_past for row in rows), max(len(row.prompt) - row.num_past for row in rows)
        ids = torch.full((len(rows), width), self.vocabulary.eos_id)
        mask = torch.zeros((len(rows), past + width), dtype=torch.long)
        for i, row in enumerate(rows):
            new, row.past = row.prompt[row.num_past :], None
            ids[i, width - len(new) :] = torch.tensor(new)
            mask[i, past - row.num_past : past] = 1
            mask[i, past + width - len(new) :] = 1
        mask = mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        logits = self._forward(ids.to(device), mask, positions, cache)
        self._sample(logits, rows)
        self._mask = mask if self._cache is None else join(self._cache, self._mask, cache, mask)
        self._cache, self._rows = cache if self._cache is None else self._cache, self._rows + rows

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

    def _compact(self):
        live = [i for i, row in enumerate(self._rows) if not row.is_aborted]
        if not live:
            self._rows, self._cache, self._mask = [], None, torch.empty(0, 0)
        elif self._cache is not None and 4 * len(live) <= 3 * len(self._rows):
            # Dropping rows copies the cache, so not for every single row
            self._mask = select(self._cache, self._mask, live)
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


def _is_done(row: _Row) -> bool:
    return row.finish is not None or row.is_aborted
