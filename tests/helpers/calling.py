"""A student that writes what its engine writes and calls all the time."""

from relay_trl.engines.base import FinishReason, Sampling


class Calling:
    """Puts a well-formed command after the first tokens of each turn, with a logprob of exactly 0."""

    def __init__(self, engine, syntax):
        self.engine, self.syntax = engine, syntax
        self.name, self.vocabulary, self.max_context = engine.name, engine.vocabulary, engine.max_context

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        written = await self.engine.generate(context, min(max_tokens, 6), stop, sampling)
        if stop and written.finish is FinishReason.LENGTH and len(written.ids) == 6 < max_tokens:
            ids = self.vocabulary.encode(self.syntax.render(9))
            written.ids += ids
            written.logprobs += [0.0] * len(ids)
            written.finish = FinishReason.STOP
        return written
