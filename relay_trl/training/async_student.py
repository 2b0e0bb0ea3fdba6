"""The student of rollouts that run beside the training: its engine, and how new weights reach it between two turns.

Owns the file of weights, and which version writes which turn.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..engines.base import Engine, Generation, Sampling
from ..engines.loading import load_engine, load_vocabulary
from .async_config import RelayAsyncGRPOConfig


class FileWeights:
    """TRL's `WeightTransferProtocol` through a file in memory, where there is no GPU. Each set of weights replaces the last
    one as a whole.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(
            prefix="relay-weights-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        )
        self.path = os.path.join(self._folder.name, "weights.safetensors")

    def init_weight_transfer(self):
        """Nothing to set up."""

    def pause(self):
        """The other process takes new weights when it is between two turns."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]):
        """Writes all weights, under their names in the student's checkpoint."""
        save_file({name: weight.detach().cpu().contiguous() for name, weight in iterator}, f"{self.path}.part")
        os.replace(f"{self.path}.part", self.path)

    def resume(self):
        """See [`FileWeights.pause`]."""

    def destroy(self):
        """Removes the file."""
        self._folder.cleanup()


def load_engines(args: RelayAsyncGRPOConfig, student: str, tokenizer) -> tuple[Engine, Engine | None]:
    """Student and teacher of the worker's process: on a GPU, the student is the server that TRL sends weights to.

    Args:
        args ([`RelayAsyncGRPOConfig`]).
        student (`str`): folder or Hub id.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the student's.
    """
    teacher = load_engine(args.teacher, **args.teacher_options()) if args.teacher else None
    if args.device.type != "cpu":
        from ..engines.openai import OpenAIEngine

        url = f"{args.vllm_server_base_url.rstrip('/')}/v1"
        most = args.max_inflight_tasks
        return OpenAIEngine(
            url, vocabulary=load_vocabulary(tokenizer), needs_logprobs=True, max_concurrency=most
        ), teacher
    from transformers import AutoModelForCausalLM

    from ..engines.transformers import TransformersEngine

    options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    model = AutoModelForCausalLM.from_pretrained(student, **options).eval()
    return TransformersEngine(model, tokenizer, name="the student"), teacher


class Student:
    """The worker's student: new weights are taken when no turn is under way, so that one set writes a whole turn.

    Args:
        engine ([`Engine`]).
        newest (`Callable[[], int]`): the version that the training has sent last.
        path (`str`, *optional*): the file of weights; `None` where TRL gives the engine's server its weights itself, in the
            middle of turns, too: each token's logprob is then that of the weights that drew it.
    """

    def __init__(self, engine: Engine, newest: Callable[[], int], path: str | None):
        self.engine, self.version = engine, 0
        self._newest, self._path = newest, path
        self._under_way = 0
        self._idle = asyncio.Condition()

    async def generate(self, versions: list[int], *args: Any, **kwargs: Any) -> Generation:
        """One turn; adds the version that writes it to `versions`."""
        async with self._idle:
            while self.version != (newest := self._newest()):
                if self._path is not None:
                    if self._under_way:
                        await self._idle.wait()
                        continue
                    load_weights(self.engine, self._path)
                self.version = newest
            self._under_way += 1
        versions.append(self.version)
        try:
            return await self.engine.generate(*args, **kwargs)
        finally:
            async with self._idle:
                self._under_way -= 1
                self._idle.notify_all()


class Turns:
    """A [`Student`] as one rollout asks it."""

    def __init__(self, student: Student):
        engine = student.engine
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context
        self.versions: list[int] = []
        self._student = student

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling(), **heard) -> Generation:
        return await self._student.generate(self.versions, context, max_tokens, stop, sampling, **heard)


def load_weights(engine: Any, path: str):
    """Puts the weights of a file into a [`~relay_trl.engines.transformers.TransformersEngine`]."""
    own = dict(engine.model.named_parameters())
    with torch.no_grad():
        for name, weight in load_file(path).items():
            own[name].copy_(weight)
