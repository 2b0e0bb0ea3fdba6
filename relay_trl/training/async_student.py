"""The student of rollouts that run beside the training: its engine, and how new weights reach it between two turns.

Owns the file of weights, and which version of them writes which token.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ..engines.base import Engine, Generation, Sampling
from ..engines.loading import load_engine
from ..engines.openai import OpenAIEngine
from ..engines.transformers import TransformersEngine
from ..vocabulary import Vocabulary
from .async_config import RelayAsyncGRPOConfig


class FileWeights:
    """TRL's `WeightTransferProtocol` through a file in memory, where there is no GPU. A new file takes the place of the old one as a
    whole.
    """

    def __init__(self):
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._folder = tempfile.TemporaryDirectory(prefix="relay-weights-", dir=memory, ignore_cleanup_errors=True)
        self.path = os.path.join(self._folder.name, "weights.safetensors")

    def init_weight_transfer(self):
        """Nothing to set up."""

    def pause(self):
        """Nothing to wait for: the other process takes new weights when it is between two turns."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]):
        """Writes all weights, under their names in the student's checkpoint."""
        save_file({name: weight.detach().cpu().contiguous() for name, weight in iterator}, f"{self.path}.part")
        os.replace(f"{self.path}.part", self.path)

    def resume(self):
        """See [`FileWeights.pause`]."""

    def destroy(self):
        """Removes the file."""
        self._folder.cleanup()


def load_engines(
    args: RelayAsyncGRPOConfig, student: str, tokenizer, eos_ids: Sequence[int]
) -> tuple[Engine, Engine | None]:
    """Student and teacher of the rollouts. Beside a GPU the student is the server that TRL sends the weights to.

    Args:
        args ([`RelayAsyncGRPOConfig`]).
        student (`str`): folder or Hub id.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the student's.
        eos_ids (`Sequence[int]`): its end tokens.
    """
    teacher = load_engine(args.teacher, **args.teacher_options()) if args.teacher else None
    if args.device.type != "cpu":
        url, vocabulary = f"{args.vllm_server_base_url.rstrip('/')}/v1", Vocabulary(tokenizer, eos_ids)
        limits = {"max_concurrency": args.max_inflight_tasks, "timeout_s": float(args.request_timeout)}
        # The key in the environment is the teacher's
        return OpenAIEngine(url, None, "none", vocabulary, needs_logprobs=True, **limits), teacher
    own = cast(dict[str, Any], args.model_init_kwargs or {})  # TRL reads a string as a mapping
    options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code, **own}
    model = AutoModelForCausalLM.from_pretrained(student, **options).eval()
    return TransformersEngine(model, tokenizer, name="the student"), teacher


class Student:
    """The student of all rollouts. New weights are taken when no turn is under way, so that one set writes a whole turn.

    Args:
        engine ([`Engine`]).
        newest (`Callable[[], int]`): the version that the training has sent last.
        path (`str`, *optional*): the file of weights; `None` where TRL gives the engine's server its weights itself, in the middle of
            turns, too. A turn then counts as written by the version that it began with, the oldest of its own.
    """

    def __init__(self, engine: Engine, newest: Callable[[], int], path: str | None):
        self.engine, self.version = engine, 0
        self._newest, self._path = newest, path
        self._under_way = 0
        self._idle = asyncio.Condition()

    async def generate(self, versions: list[int], *args: Any, **kwargs: Any) -> Generation:
        """One turn; adds the version that wrote it to `versions`, once for each of its tokens."""
        async with self._idle:
            while self.version != (newest := self._newest()):
                if self._path is not None:
                    if self._under_way:
                        await self._idle.wait()
                        continue
                    load_weights(self.engine, self._path)
                self.version = newest
            self._under_way += 1
            version = self.version
        try:
            written = await self.engine.generate(*args, **kwargs)
        finally:
            async with self._idle:
                self._under_way -= 1
                self._idle.notify_all()
        versions += [version] * len(written.ids or ())
        return written


class Turns:
    """A [`Student`] as one rollout asks it.

    Attributes:
        versions (`list[int]`): of the weights that wrote each token so far.
    """

    def __init__(self, student: Student):
        engine = student.engine
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context
        self.versions: list[int] = []
        self._student = student

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()) -> Generation:
        """See [`~relay_trl.engines.base.Engine.generate`]."""
        return await self._student.generate(self.versions, context, max_tokens, stop, sampling)


def load_weights(engine: Any, path: str):
    """Puts the weights of a file into a [`~relay_trl.engines.transformers.TransformersEngine`]."""
    own, new = dict(engine.model.named_parameters()), load_file(path)
    if odd := new.keys() ^ own.keys():
        raise ValueError(f"The weights of the training and of the rollouts differ: {min(odd)} is in one of them only.")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(new[name])
    engine.model = engine.model  # forgets what the old weights computed
