"""A student that writes random tokens, and vocabularies that spell a call in different ways."""

import torch

from helpers import tokenizers as kinds
from relay_trl.call_syntax import CallSyntax
from relay_trl.engines.base import FinishReason, Generation, Sampling
from relay_trl.engines.sampling import draw
from relay_trl.vocabulary import Vocabulary

SYNTAX = CallSyntax()


VOCABULARIES = {name: Vocabulary(make()) for name, make in kinds.KINDS.items()}
VOCABULARIES["added_tags"] = Vocabulary(kinds.byte_level(kinds.TAGS))


class RandomStudent:
    """Draws from random logits that hold commands together: what a warmed-up student without an opinion would do."""

    name, max_context = "random", None

    def __init__(self, vocabulary):
        self.vocabulary, self.requests = vocabulary, []
        self.pieces = [vocabulary.decode([token]) for token in range(vocabulary.size)]

    def logits(self, text, generator):
        logits = torch.rand(self.vocabulary.size, generator=generator)
        _, found, rest = text.rpartition(SYNTAX.open_tag)
        command = "7" + SYNTAX.close_tag
        begun = next((k for k in range(1, len(SYNTAX.open_tag)) if text.endswith(SYNTAX.open_tag[:k])), 0)
        # A student with an added tag does not spell it.
        wanted = SYNTAX.open_tag[begun:] if begun and SYNTAX.open_tag not in self.pieces else ""
        if found and command.startswith(rest):
            wanted = command[len(rest) :]
        for token, piece in enumerate(self.pieces):
            if wanted and piece and wanted.startswith(piece):
                logits[token] += 30.0
        return logits

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        self.requests.append((max_tokens, stop, sampling))
        generator = torch.Generator().manual_seed(sampling.seed or 0)
        ids, finish = [], FinishReason.LENGTH
        while len(ids) < max_tokens and finish is FinishReason.LENGTH:
            text = self.vocabulary.decode(context + ids)
            (token,), _ = draw(self.logits(text, generator)[None], [sampling], [sampling.seed or 0], [len(ids)])
            ids.append(token)
            if token in self.vocabulary.eos_ids:
                finish = FinishReason.EOS
            elif any(s in self.vocabulary.decode(ids) for s in stop):
                finish = FinishReason.STOP
        words = ids[:-1] if finish is FinishReason.EOS else ids
        return Generation(ids, self.vocabulary.decode(words), finish, [-0.5] * len(ids))
