"""Rollouts of scripted engines: their answers are given as texts, and their requests are kept."""

import asyncio
import itertools

from helpers import tokenizers as kinds
from relay_trl.engines.base import Sampling
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.vocabulary import Vocabulary

LETTERS = Vocabulary(kinds.characters())
BYTE_LEVEL = Vocabulary(kinds.byte_level())
BYTE_LEVEL_TAGS = Vocabulary(kinds.byte_level(kinds.TAGS))
END = "\0"  # stands for the end token in what the scripts below say


class LoggedEngine(ScriptedEngine):
    """A scripted engine that also keeps what it was asked and what it answered."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.requests = []

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling(), on_tokens=None):
        self.requests.append((max_tokens, stop, sampling))
        return await super().generate(context, max_tokens, stop, sampling, on_tokens)


class FixedEngine:
    """Gives one generation whatever it is asked: an engine that breaks the rules."""

    name, max_context = "fixed", None

    def __init__(self, vocabulary, generation):
        self.vocabulary, self.generation = vocabulary, generation

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        return self.generation


def tokens(vocabulary, text):
    """Ids of `text`, with the end token where `END` stands."""
    first, *rest = text.split(END)
    return vocabulary.encode(first) + [i for part in rest for i in [vocabulary.eos_id, *vocabulary.encode(part)]]


def scripted(vocabulary, *turns, **kwargs):
    """An engine that writes one turn after the other (texts, ids, or errors to raise), then the end token."""
    turns = itertools.chain(turns, itertools.repeat(END))

    def script(context):
        turn = next(turns)
        return tokens(vocabulary, turn) if isinstance(turn, str) and vocabulary is not None else turn

    return LoggedEngine(vocabulary, script, **kwargs)


def run(student_engine, teacher_engine=None, prompt="Q:", teacher_prompt="T:", seed=None, **config):
    """One rollout. A teacher with a vocabulary gets its prompt as ids."""
    prompt_ids = student_engine.vocabulary.encode(prompt)
    if isinstance(teacher_prompt, str) and teacher_engine is not None and teacher_engine.vocabulary is not None:
        teacher_prompt = teacher_engine.vocabulary.encode(teacher_prompt)
    both = RelayPrompt(prompt_ids, teacher_prompt)
    return asyncio.run(relay(both, student_engine, teacher_engine, RelayRules(**config), seed))


def shown(teacher, k=-1):
    """The text of the teacher's `k`-th context."""
    context = teacher.contexts[k]
    return context if isinstance(context, str) else teacher.vocabulary.decode(context)


def one_each(vocabulary, *pieces):
    """Ids of `pieces`, each one token."""
    table = {piece: i for i, piece in enumerate(kinds.token_bytes(vocabulary.tokenizer))}
    return [table[piece.encode() if isinstance(piece, str) else piece] for piece in pieces]
