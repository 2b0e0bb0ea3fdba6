"""`call_bias`: which tokens are biased, and what a student does at both ends and in between, in every vocabulary."""

import math

import pytest
import torch
from helpers import tokenizers as kinds
from helpers.models import new_model
from helpers.random_student import SYNTAX, VOCABULARIES, RandomStudent
from helpers.scripted_relay import END, run, scripted, tokens

from relay_trl.call_bias import NEVER, next_piece, starting_tokens
from relay_trl.engines.base import Sampling
from relay_trl.engines.sampling import draw
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.relay import RelayRules


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_huge_bias_calls_at_once_until_calls_are_used_up(vocabulary):
    student, teacher = RandomStudent(vocabulary), scripted(vocabulary, "T", "T")
    for seed in range(2):
        trace = run(student, teacher, seed=seed, call_bias=1e6, max_calls=1, max_completion_length=48)
        assert trace.calls and trace.calls[0].requested == 7
        before = trace.text.index("<call>")
        # Nothing comes before but what the vocabulary merges with the tag's first character.
        assert before < max(map(len, student.pieces)) and trace.calls[0].position <= len("<call>7</call>")
        assert student.requests[-1][2].logit_bias is None  # no call is answered any more: nothing to bias


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_minus_infinity_never_calls_and_leaves_the_rest_of_the_vocabulary(vocabulary):
    student, teacher = RandomStudent(vocabulary), scripted(vocabulary)
    seen = ""
    for seed in range(3):
        trace = run(student, teacher, seed=seed, call_bias=NEVER, max_completion_length=120)
        assert not trace.calls and "<call" not in trace.text and trace.malformed == 0
        seen += trace.text
    assert teacher.contexts == [] and "c" in seen and ">" in seen and "/" in seen


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_no_bias_asks_exactly_as_without_the_option(vocabulary):
    def requests(**options):
        student = scripted(vocabulary, "ab<call>3</call>", "the < an" + END)
        run(student, scripted(vocabulary, "so"), seed=5, **options)
        return student.requests

    assert requests() == requests(call_bias=0.0) and len(requests()) == 2
    assert [(stop, sampling.logit_bias) for _, stop, sampling in requests()] == [(("</call>",), None)] * 2


@pytest.mark.parametrize("name", ["byte_level", "added_tags"])
def test_more_bias_more_calls(name):
    vocabulary = VOCABULARIES[name]

    def calls(bias):
        student = RandomStudent(vocabulary)
        traces = [
            run(student, scripted(vocabulary, "T"), seed=s, call_bias=bias, max_completion_length=40) for s in range(8)
        ]
        assert sum(trace.malformed for trace in traces) <= 4  # a tag begun, an answer at its end
        return sum(trace.has_called for trace in traces)

    found = [calls(bias) for bias in (-8.0, 0.0, 8.0)]
    assert found[0] <= found[1] < found[2] == 8 and found[0] <= 1


def test_a_held_back_student_can_still_close_its_calls():
    # In a vocabulary of characters `<` begins both tags: the bias on it must not outlast the open tag.
    vocabulary = VOCABULARIES["characters"]
    student = scripted(vocabulary, "ab<call>", "3</call>", "an" + END)
    trace = run(student, scripted(vocabulary, "the"), call_bias=-5.0)
    assert [(call.requested, call.delivered) for call in trace.calls] == [(3, 3)] and trace.answer == "abthean"
    biases = [sampling.logit_bias for _, _, sampling in student.requests]
    (less_than,) = tokens(vocabulary, "<")
    assert biases == [{less_than: -5.0}, None, {less_than: -5.0}]


def test_a_piece_that_is_cut_by_its_own_limit_does_not_end_the_rollout():
    vocabulary = VOCABULARIES["characters"]
    student = scripted(vocabulary, "x<", "c", "b" + END)
    trace = run(student, scripted(vocabulary), call_bias=2.0)
    assert trace.text == "x<cb" and [asked for asked, _, _ in student.requests] == [1024, 1, 1, 1020]


def test_an_added_tag_is_biased_alone():
    vocabulary = VOCABULARIES["added_tags"]
    tag = vocabulary.tokenizer.convert_tokens_to_ids("<call>")
    for bias in (-3.0, 3.0):
        assert dict(next_piece(bias, "a <", SYNTAX, vocabulary).logit_bias) == {tag: bias}
    barred = next_piece(NEVER, "", SYNTAX, vocabulary).logit_bias
    assert tag in barred and vocabulary.encode("<")[0] in barred


def test_the_tokens_that_may_begin_a_tag():
    vocabulary = VOCABULARIES["byte_level"]
    pieces = {vocabulary.decode([token]) for token in starting_tokens("<call>", vocabulary)}
    assert pieces == {"<", " <", "><", ".<", "\ufffd<"}
    beyond_ascii = starting_tokens("«call»", vocabulary)
    assert set(vocabulary.encode("«")[:1]) <= set(beyond_ascii) and len(beyond_ascii) < vocabulary.size


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_bias_without_a_meaning_is_refused(bias):
    with pytest.raises(ValueError, match="call_bias is .*finite number, or -inf"):
        RelayRules(call_bias=bias)
    with pytest.raises(ValueError, match="logit_bias has a value"):
        Sampling(logit_bias={3: bias})


def test_logprobs_are_those_of_the_biased_distribution():
    tokenizer = kinds.byte_level()
    engine = TransformersEngine(new_model(tokenizer), tokenizer, name="tiny")
    context = engine.vocabulary.encode("the sum of ")
    with torch.no_grad():
        logits = engine.model(torch.tensor([context])).logits[0, -1].float()
    favourite = int(logits.argmax())
    for bias, temperature in ((3.0, 0.7), (-math.inf, 1.0)):
        rows = [Sampling(temperature, seed=seed, logit_bias={favourite: bias}) for seed in range(30)]
        biased = logits.clone()
        biased[favourite] += bias
        expected = (biased / temperature).log_softmax(-1)
        # Rows without a bias stand in the same batch and must not feel it.
        everybody = [*rows, *(Sampling(temperature, seed=seed) for seed in range(30))]
        drawn, logprobs = draw(logits.expand(60, -1), everybody, [s.seed for s in everybody], [7] * 60)
        assert logprobs[:30] == pytest.approx(expected[drawn[:30]].tolist(), abs=1e-5)
        assert logprobs[30:] == pytest.approx((logits / temperature).log_softmax(-1)[drawn[30:]].tolist(), abs=1e-5)
        assert (favourite in drawn[:30]) == (bias > 0)
