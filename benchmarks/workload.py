"""The workload of several benchmarks: random models in real engines, with lengths and calls from a schedule.

An untrained student makes no calls, so the schedule inserts a command after the student's text, and the relay does the rest.
Neither model ever ends an answer, because its head excludes the end token. So every way writes the same number of tokens.
"""

import os
import random
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from servers import free_port, running
from tables import CORES
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from relay_trl.call_syntax import CallSyntax
from relay_trl.engines.base import Engine, FinishReason, Generation, Sampling
from relay_trl.vocabulary import Vocabulary

SYNTAX = CallSyntax()
CHARACTERS = [chr(code) for code in range(32, 127)]
START_LIMIT_S = 300

# Hidden size and layers of student and teacher. With `small`, a step takes the same time for any number of rollouts, as on a
# GPU; `large` keeps the cores busy; `gpu` has the shapes of Qwen3-0.6B and Qwen3-1.7B.
SIZES = {
    "small": ((64, 2), (96, 2)),
    "large": ((256, 8), (384, 8)),
    "gpu": ((1024, 28), (2048, 28)),
}


@dataclass(frozen=True)
class Plan:
    """One rollout: its prompt, the tokens of each turn of the student, and the n of the call after each but the last."""

    prompt: list[int]
    turns: list[int]
    calls: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of the completion, with commands."""
        commands = sum(len(SYNTAX.render(n)) for n in self.calls)  # one token a character
        return sum(self.turns) + sum(self.calls) + commands


def make_plans(prompts: int, rollouts: int, median_tokens: int, most: int, seed: int) -> list[Plan]:
    """P prompts x G rollouts: log-normal lengths, 0 to 3 calls at random places, n a digit times 1, 10 or 100."""
    draw = random.Random(seed)
    plans = []
    for _ in range(prompts):
        prompt = [draw.randrange(len(CHARACTERS)) for _ in range(draw.randint(40, 120))]
        for _ in range(rollouts):
            left = max(8, min(most, int(draw.lognormvariate(0.0, 0.6) * median_tokens)))
            calls = [draw.randint(1, 9) * 10 ** draw.randint(0, 2) for _ in range(draw.randint(0, 3))]
            calls = [min(n, most // 4) for n in calls]
            places = sorted(draw.sample(range(1, left), len(calls)))
            turns = [b - a for a, b in zip([0, *places], [*places, left], strict=True)]
            plans.append(Plan(prompt, turns, calls))
    return plans


class Scheduled:
    """A student that writes as many tokens of its engine as the plan says, and then the plan's command.

    Args:
        engine ([`Engine`]): writes the tokens.
        plan ([`Plan`]).
    """

    def __init__(self, engine: Engine, plan: Plan):
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context
        self._engine, self._plan, self._turn = engine, plan, 0

    async def generate(self, context, max_tokens: int, stop=(), sampling=Sampling()) -> Generation:
        """The next turn of the plan."""
        turn, self._turn = self._turn, self._turn + 1
        written = await self._engine.generate(context, self._plan.turns[turn], stop, sampling)
        assert written.ids is not None and len(written.ids) == self._plan.turns[turn]
        if turn == len(self._plan.calls):
            return written
        command = SYNTAX.render(self._plan.calls[turn])
        ids = [CHARACTERS.index(character) for character in command]
        logprobs = None if written.logprobs is None else written.logprobs + [0.0] * len(ids)
        return replace(
            written, ids=written.ids + ids, text=written.text + command, finish=FinishReason.STOP, logprobs=logprobs
        )


class Instant:
    """A teacher that answers at once."""

    name, max_context = "instant", None

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()) -> Generation:
        ids = [max_tokens % len(CHARACTERS)] * max_tokens
        return Generation(ids, self.vocabulary.decode(ids), FinishReason.LENGTH)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and an end token that no model of [`make_model`] writes."""
    tokenizer = Tokenizer(models.WordLevel({c: k for k, c in enumerate(CHARACTERS)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token=" "
    )  # pads must be embedded


def make_model(path: Path, hidden: int, layers: int, most: int, seed: int) -> str:
    """Writes a Qwen3 of random weights and returns its path."""
    heads = max(2, hidden // 64)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 1,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32 if hidden < 128 else 64,
        max_position_embeddings=most,
    )
    return random_model(path, config, seed)


def random_model(path: Path, config: Qwen3Config, seed: int) -> str:
    """Writes a model of random weights that writes characters and never ends; returns its path. Words of its vocabulary
    beyond those of [`make_tokenizer`] are barred as the end token is.
    """
    torch.manual_seed(seed)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        setattr(config, name, None)
    config.tie_word_embeddings, config.initializer_range = False, 0.1
    config.dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = None
    with torch.no_grad():  # the first channel is always 1; with it the head excludes the end token
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[len(CHARACTERS) :, 0] = -1e4
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


def own_core(number: int):
    """Without a GPU and with at least two cores, keeps this process and its children on one core. So student and teacher have
    their own hardware, as in real runs.
    """
    if hasattr(os, "sched_setaffinity") and len(CORES) > 1 and not torch.cuda.is_available():
        os.sched_setaffinity(0, {CORES[number % len(CORES)]})


@contextmanager
def serve(model: str, max_num_seqs: int):
    """Runs a vLLM server of `model` on the second core; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-num-seqs", str(max_num_seqs), "--enable-prompt-tokens-details"]
    if not torch.cuda.is_available():
        command += ["--enforce-eager", "--dtype", "float32", "--no-enable-chunked-prefill", "--block-size", "32"]
    with tempfile.TemporaryDirectory() as folder:
        health, log = f"http://127.0.0.1:{port}/health", Path(folder, "log")
        with running(command, health, log, START_LIMIT_S, preexec_fn=lambda: own_core(1)):
            yield f"http://127.0.0.1:{port}/v1"


def vocabulary_of(model: str) -> Vocabulary:
    """Of a model that [`make_model`] wrote."""
    return Vocabulary(PreTrainedTokenizerFast.from_pretrained(model))
