"""Makes an engine from one option: a URL or several, a folder, or a Hub id.

Owns which engine a name stands for and where the tokenizer of a model behind a URL comes from. An engine's module is
imported when it is used, so that libraries which are not used need not be installed.
"""

import asyncio
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from ..redaction import mask_credentials
from ..vocabulary import Vocabulary
from .base import BACKENDS, Engine, EngineError

if TYPE_CHECKING:
    from .openai import OpenAIEngine

logger = logging.getLogger(__name__)

_HUB_LIMIT_S = 3.0
_WEIGHTS = (".gguf", ".ggml", ".bin", ".safetensors", ".pt", ".pth", ".onnx", ".mlx")
"""Endings of names that are files on a server's machine."""


def load_engine(
    spec: str,
    backend: str = "auto",
    tokenizer: str | Any | None = None,
    *,
    needs_logprobs: bool = False,
    model: str | None = None,
    api: Literal["completions", "chat", "instruct"] = "completions",
    api_key: str | None = None,
    timeout_s: float = 120.0,
    max_retries: int = 4,
    max_concurrency: int = 64,
    extra_body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    option_prefix: str = "",
    **kwargs: Any,
) -> Engine:
    """The engine that `spec` stands for, ready to be asked. A server is checked before this returns.

    Args:
        spec (`str`): the URL of a server (`http://...`, `https://...`), a folder, or a Hub id. Several URLs with blanks
            between them are servers of one model, which share the requests; see [`EnginePool`].
        backend (`str`, defaults to `"auto"`): `"auto"` takes `"openai"` for a URL and `"transformers"` for a model;
            `"vllm"` runs a model in vLLM in this process.
        tokenizer (`str` or tokenizer, *optional*): of the model behind a URL: a folder, a Hub id or the tokenizer
            itself. `None` tries what the server says it serves, and exchanges text if that cannot be loaded here.
        needs_logprobs (`bool`, defaults to `False`): whether the engine must give logprobs, as for a trained student.
        model, api, api_key, timeout_s, max_retries, max_concurrency, extra_body, headers, chat_template_kwargs,
            option_prefix: of a server, see [`OpenAIEngine`]; a model run in this process has no use for them.
        **kwargs: of [`TransformersEngine.load`] or [`VLLMEngine.load`], such as `dtype` and `revision`.

    Raises:
        ValueError: an unknown backend, or one that does not fit `spec`.
        ImportError: vLLM is asked for and not installed.
        EngineError: a server that is down, serves another model or does not fit, or that differs from the others of its
            pool; a model that vLLM cannot load.
    """
    urls = spec.split() if "://" in spec else []
    is_url = bool(urls)
    if backend not in BACKENDS:
        raise ValueError(f"The backend is {backend!r}; it must be one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        backend = "openai" if is_url else "transformers"
    if is_url != (backend == "openai"):
        kind = "a URL" if is_url else "no URL (http://...)"
        raise ValueError(f"The backend {backend!r} was asked for, but the model is given as {kind}; use 'auto'.")
    if tokenizer is not None and not is_url:
        raise ValueError(f"A tokenizer was given for {spec!r}, which brings its own; that is for a URL only.")
    if backend == "vllm":
        from .vllm import VLLMEngine

        return VLLMEngine.load(spec, needs_logprobs=needs_logprobs, **kwargs)
    if backend == "transformers":
        from .transformers import TransformersEngine

        return TransformersEngine.load(spec, **kwargs)
    if kwargs:
        raise ValueError(f"{', '.join(kwargs)}: a server has no such options; they are set where it is started.")
    from .openai import OpenAIEngine
    from .pool import EnginePool

    twice = [url for url in urls if urls.count(url) > 1]
    if twice:
        raise ValueError(f"{mask_credentials(twice[0])} is named {len(twice)} times; name each server once.")
    vocabulary = None if tokenizer is None else load_vocabulary(tokenizer)
    retries = max_retries if len(urls) == 1 else 0  # a pool repeats the request on another server
    engines: list[OpenAIEngine] = []
    for url in urls:
        engine = OpenAIEngine(
            *(url, model, api_key, vocabulary, max_concurrency, timeout_s, retries, api),
            extra_body=extra_body,
            headers=headers,
            chat_template_kwargs=chat_template_kwargs,
            option_prefix=option_prefix,
        )
        _run(_prepare(engine, needs_logprobs))
        vocabulary = engine.vocabulary  # all servers share it; the next one is checked against it
        engines.append(engine)
    return engines[0] if len(engines) == 1 else EnginePool(engines, max_retries)


async def close_engines(*engines: Engine | None):
    """Closes the connections of those that have some; engines in this process have none."""
    for engine in engines:
        close = getattr(engine, "aclose", None)
        if close is not None:
            await close()


def load_vocabulary(tokenizer: str | Any) -> Vocabulary:
    """The vocabulary of a tokenizer, or of a folder or Hub id that has one.

    The end tokens of its generation config are among its `eos_ids`.

    Raises:
        OSError: there is no tokenizer in that place.
    """
    from transformers import AutoTokenizer, GenerationConfig

    if not isinstance(tokenizer, str):
        return Vocabulary(tokenizer)
    try:
        eos_ids = GenerationConfig.from_pretrained(tokenizer).eos_token_id or []
    except OSError:
        eos_ids = []
    loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)  # a server may have named it
    return Vocabulary(loaded, [eos_ids] if isinstance(eos_ids, int) else eos_ids)


async def _prepare(engine: "OpenAIEngine", needs_logprobs: bool):
    try:
        await engine.find_model()
        # Chat messages are put into ids by the server, so a tokenizer would not be used.
        if engine.vocabulary is None and engine.api == "completions":
            engine.vocabulary = _guess_vocabulary(engine)
        if needs_logprobs and engine.vocabulary is None:
            raise EngineError(f"{engine.name} is to give logprobs, which belong to token ids; give its tokenizer.")
        engine.needs_logprobs = needs_logprobs
        await engine.check()
    finally:
        await engine.aclose()


def _guess_vocabulary(engine: "OpenAIEngine") -> Vocabulary | None:
    for name in dict.fromkeys((engine.model_path, engine.model)):
        if name is None or not (os.path.isdir(name) or _is_on_hub(name)):
            continue
        try:
            vocabulary = load_vocabulary(name)
        except (OSError, ValueError):
            continue
        logger.info("%s serves %r; its tokenizer was taken from %r.", engine.name, engine.model, name)
        return vocabulary
    logger.warning(
        "%s serves %r, whose tokenizer was not found here, so text is exchanged instead of token ids; give its "
        "tokenizer to keep prompts and tokens exact.",
        engine.name,
        engine.model,
    )
    return None


def _is_on_hub(name: str) -> bool:
    """Whether the Hub has a tokenizer under a name that a server gave, asked once and not for long."""
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or name.lower().endswith(_WEIGHTS):
        return False
    try:
        if isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str):
            return True
        get_hf_file_metadata(hf_hub_url(name, "tokenizer_config.json"), timeout=_HUB_LIMIT_S)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        logger.debug("%s: %s", name, error)
        return False
    return True


def _run(coroutine):
    """Runs a coroutine to its end, from a running event loop too."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
