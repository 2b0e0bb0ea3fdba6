"""A corpus of attempts to make a call that the student did not sample, to break the loss mask, or to end a rollout.

`injections.jsonl` has one attempt in each line: `where` it is (in the user's text, a system turn, few-shot turns, the teacher's
reply, the student's own similar texts, or split over turns), and the `calls` that the student really samples.
"""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from helpers import tokenizers as kinds

from relay_trl.engines.base import FinishReason, Generation, Sampling
from relay_trl.prompts import PromptBuilder
from relay_trl.relay import RelayRules, relay
from relay_trl.trace import Author, StopReason
from relay_trl.vocabulary import Vocabulary

ATTEMPTS = [json.loads(line) for line in (Path(__file__).parent / "injections.jsonl").read_text().splitlines()]
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"


def vocabulary(kind, tags=(), has_chat=True):
    tokenizer = kinds.KINDS[kind](tags)
    tokenizer.chat_template = CHAT if has_chat else None
    return Vocabulary(tokenizer)


PAIRS = {
    "qwen-like": (vocabulary("byte_level"), vocabulary("byte_level")),
    "qwen-like, special tags": (vocabulary("byte_level", kinds.TAGS), vocabulary("byte_level")),
    "both with special tags": (vocabulary("byte_level", kinds.TAGS), vocabulary("byte_level", kinds.TAGS)),
    "llama-like": (vocabulary("llama2"), vocabulary("llama2")),
    "gemma-like, special tags": (vocabulary("gemma", kinds.TAGS), vocabulary("gemma")),
    "characters": (vocabulary("characters"), vocabulary("characters")),
    "two vocabularies": (vocabulary("byte_level"), vocabulary("llama2")),
    "two vocabularies, special tags": (vocabulary("llama2", kinds.TAGS), vocabulary("byte_level", kinds.TAGS)),
    "a teacher of text": (vocabulary("byte_level", kinds.TAGS), None),
}


class Speaker:
    """Says its turns as a real engine would: cut at a stop string and at `max_tokens`, ended where `ends` says so.

    Tags of a vocabulary that has them are sampled as the special tokens that they are.
    """

    name, max_context = "speaker", None

    def __init__(self, vocabulary, turns, ends):
        self.vocabulary, self.turns, self.ends, self.requests = vocabulary, list(turns), ends, []

    def sample(self, text):
        added = self.vocabulary.tokenizer.get_added_vocab()
        ids = []
        for piece in text.replace("<call>", "\1<call>\1").replace("</call>", "\1</call>\1").split("\1"):
            ids += [added[piece]] if piece in kinds.TAGS and piece in added else self.vocabulary.encode(piece)
        return ids

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        self.requests.append(context)
        text = self.turns.pop(0) if self.turns else ""
        is_last = not self.turns
        if self.vocabulary is None:
            return Generation(None, text, FinishReason.EOS if self.ends else FinishReason.LENGTH)
        planned = self.sample(text) + ([self.vocabulary.eos_id] if is_last and self.ends else [])
        ids, finish = [], FinishReason.LENGTH
        for token in planned[:max_tokens]:
            ids.append(token)
            if token == self.vocabulary.eos_id:
                finish = FinishReason.EOS
                break
            if stop and any(one in self.vocabulary.decode(ids[-12:]) for one in stop):
                finish = FinishReason.STOP
                break
        if finish is FinishReason.STOP and len(ids) < len(planned) and planned[len(ids) :] != [self.vocabulary.eos_id]:
            self.turns.insert(0, self.vocabulary.decode(planned[len(ids) :]).replace("<eos>", ""))
        text = self.vocabulary.decode(ids[:-1] if finish is FinishReason.EOS else ids)
        return Generation(ids, text, finish, [-0.5] * len(ids))


def try_it(attempt, pair, teacher_ends=False, **config):
    """Runs the attempt; returns the trace and the two speakers."""
    mine, theirs = PAIRS[pair]
    where = attempt["where"]
    turns = attempt.get("turns", ["It is <call>90</call>", "done"])
    reply = attempt.get("teacher", attempt.get("text", "1") if where == "teacher" else "42")
    student, teacher = Speaker(mine, turns, True), Speaker(theirs, [reply] * 9, teacher_ends)
    system = attempt["text"] if where == "system" else None
    builder = PromptBuilder(mine.tokenizer, teacher, system=system)
    problem = attempt.get("messages") or (attempt["text"] if where == "prompt" else "1+1=")
    prompt = builder.build(problem)
    config = RelayRules(max_completion_length=4000, max_calls=5, **config)
    return asyncio.run(relay(prompt, student, teacher, config)), student, teacher


def check(attempt, trace, student, teacher):
    expected = attempt.get("calls", [90])
    assert [call.requested for call in trace.calls] == expected
    assert len(teacher.requests) == len(expected)
    sampled = [i for span in trace.spans if span.author is Author.STUDENT for i in span.ids]
    assert [i for i, mask in zip(trace.completion_ids, trace.loss_mask, strict=True) if mask] == sampled
    assert sum(trace.loss_mask) + trace.teacher_tokens + (trace.stop is StopReason.TEACHER_EOS) == trace.num_tokens
    # End tokens: one, at the very end, and never among the teacher's
    eos = student.vocabulary.eos_id
    assert trace.completion_ids.count(eos) == 1 and trace.completion_ids[-1] == eos
    assert all(eos not in span.ids for span in trace.spans if span.author is Author.TEACHER)


def test_the_corpus_is_large_and_has_every_kind():
    kinds_of = Counter(attempt["where"] for attempt in ATTEMPTS)
    assert len(ATTEMPTS) >= 200 and len({attempt["name"] for attempt in ATTEMPTS}) == len(ATTEMPTS)
    assert (
        set(kinds_of) == {"prompt", "system", "few_shot", "teacher", "student", "split"}
        and min(kinds_of.values()) >= 20
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_no_attempt_makes_a_call_that_the_student_did_not_sample(pair):
    for attempt in ATTEMPTS:
        trace, student, teacher = try_it(attempt, pair)
        try:
            check(attempt, trace, student, teacher)
            assert trace.stop is StopReason.EOS
        except AssertionError as error:
            raise AssertionError(f"{attempt['name']}: {json.dumps(attempt)}") from error


@pytest.mark.parametrize("pair", ["qwen-like", "both with special tags", "two vocabularies", "a teacher of text"])
def test_only_the_teachers_own_end_ends_a_rollout(pair):
    for attempt in ATTEMPTS:
        if attempt["where"] != "teacher":
            continue
        trace, student, teacher = try_it(attempt, pair, teacher_ends=True)
        # the nine replies are the same, and only the last of them ends where ids are given; a text engine says so at once
        is_ended = PAIRS[pair][1] is None
        assert (trace.stop is StopReason.TEACHER_EOS) == is_ended, attempt["name"]
        check({**attempt, "calls": [90]}, trace, student, teacher)


@pytest.mark.parametrize("pair", ["both with special tags", "llama-like"])
def test_a_prompt_full_of_commands_calls_nobody(pair):
    for attempt in ATTEMPTS:
        if attempt["where"] in ("prompt", "system", "few_shot"):
            trace, _, teacher = try_it({**attempt, "turns": ["no call at all"]}, pair)
            assert trace.calls == [] and teacher.requests == [] and trace.malformed == 0, attempt["name"]
            assert trace.loss_mask == [1] * trace.num_tokens
