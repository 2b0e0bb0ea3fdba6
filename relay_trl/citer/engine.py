"""The student's engine with a router: it stops where the router wants the teacher's token.

Owns how hidden states are read from a transformers model. Other engines give none and are refused here.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

from ..engines.base import Engine, FinishReason, Sampling
from ..engines.transformers import TransformersEngine
from .router import Router, RouterRecord, load_router


@dataclass(frozen=True)
class RoutedSampling(Sampling):
    """[`Sampling`] that ends with `FinishReason.STOP` at the first token whose score is below the threshold. The last token of
    the generation is that token, which the student would have written.

    Args:
        threshold (`float`, defaults to `0.0`): 0 never stops, a value above 1 stops at every token.
    """

    threshold: float = 0.0

    @classmethod
    def of(cls, sampling: Sampling, threshold: float) -> "RoutedSampling":
        """`sampling` with a threshold."""
        kept = {item.name: getattr(sampling, item.name) for item in fields(Sampling)}
        return cls(**kept, threshold=threshold)


class RoutedEngine(TransformersEngine):
    """A [`TransformersEngine`] with a router for requests with [`RoutedSampling`]. Other requests are not affected.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer: as for [`TransformersEngine`].
        router ([`Router`], *optional*): may be set later (`engine.router = ...`).
        record ([`RouterRecord`], *optional*): the router's record, with its default threshold.
        kwargs: of [`TransformersEngine`].

    Raises:
        ValueError: the router needs hidden states of another size than the model has.
    """

    def __init__(
        self, model, tokenizer, router: Router | None = None, record: RouterRecord | None = None, **kwargs: Any
    ):
        super().__init__(model, tokenizer, **kwargs)
        size = model.config.get_text_config().hidden_size
        if router is not None and router.hidden_size != size:
            raise ValueError(
                f"The router reads hidden states of {router.hidden_size} numbers, but {self.name} has {size}; use the router "
                "that was trained for this student."
            )
        self.router = None if router is None else router.to(model.device)
        self.record = record
        self._states = torch.empty(0)
        # The input of the output layer is the last layer's state at the positions whose logits are computed.
        model.get_output_embeddings().register_forward_pre_hook(self._keep_states)

    @classmethod
    def over(cls, engine: Engine, router: Router | None = None, record: RouterRecord | None = None) -> "RoutedEngine":
        """`engine` with access to hidden states.

        Raises:
            ValueError: it is not a transformers engine.
        """
        if not isinstance(engine, TransformersEngine):
            raise ValueError(
                f"CITER's router reads the student's hidden states, which only the transformers engine gives; {engine.name} "
                f"runs in {type(engine).__name__}. Set student_backend: transformers."
            )
        tokenizer = engine.vocabulary.tokenizer
        routed = cls(engine.model, tokenizer, router, record, name=engine.name, max_batch_size=engine.max_batch_size)
        routed.vocabulary = engine.vocabulary
        return routed

    def _keep_states(self, module: torch.nn.Module, inputs: tuple):
        self._states = inputs[0]

    def _sample(self, logits: torch.Tensor, rows: list):
        open_rows = [i for i, row in enumerate(rows) if row.finish is None and not row.is_aborted]
        super()._sample(logits, rows)
        routed = [i for i in open_rows if getattr(rows[i].sampling, "threshold", 0.0) > 0.0]
        if not routed:
            return
        if self.router is None:
            raise ValueError("A threshold was asked for, but the engine has no router; load one with `load_router`.")
        scores = self.router.score(self._states[routed, -1])
        for i, score in zip(routed, scores.tolist(), strict=True):
            if score < rows[i].sampling.threshold:
                rows[i].finish = FinishReason.STOP

    @torch.no_grad()
    def read(self, prompt: list[int], completion: list[int]) -> tuple[torch.Tensor, list[int]]:
        """Reads a completion.

        Returns:
            `tuple[torch.Tensor, list[int]]`: the hidden state before each token, shape (T, h) on the CPU, and the student's
            likeliest token at each of the T places.
        """
        ids = torch.tensor([prompt + completion], device=self.model.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0]
        before = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        return self._states[0, before].cpu(), logits[before].argmax(-1).tolist()


def with_router(engine: Engine, folder: str) -> RoutedEngine:
    """The student's engine with the router that `recipes/train_citer.py` wrote to `folder`.

    Raises:
        FileNotFoundError: there is no router in the folder.
        ValueError: it does not fit the engine.
    """
    return RoutedEngine.over(engine, *load_router(folder))
