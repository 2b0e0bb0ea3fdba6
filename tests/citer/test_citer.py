"""CITER: the router's training and file, labels, decoding token by token, and its methods in the evaluation.

The models are the shipped arithmetic pair, so hidden states and the teacher's tokens are real.
"""

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relay_trl.citer.decoding import answer_by_router
from relay_trl.citer.engine import RoutedEngine, RoutedSampling, with_router
from relay_trl.citer.labels import Kind, Labeller, Reference
from relay_trl.citer.router import (
    WEIGHTS_NAME,
    Router,
    RouterRecord,
    load_router,
    save_router,
    split_by_question,
    thresholds_for,
    train_router,
)
from relay_trl.data.arithmetic import answer_of, problems
from relay_trl.engines.base import EngineError, FinishReason, Sampling
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.evaluation.config import EvaluationConfig
from relay_trl.evaluation.methods import answer_alone, load_method
from relay_trl.grading.grader import Grader
from relay_trl.prompts import PromptBuilder
from relay_trl.relay import RelayPrompt, RelayRules
from relay_trl.trace import Author, Outcome, StopReason

PAIR = Path(__file__).parents[2] / "data" / "arithmetic"
ROWS = problems("test", 24, seed=3)
CONFIG = RelayRules(max_completion_length=48, student=Sampling(), teacher=Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(5)
    router = Router(64)
    for _ in range(20):  # batch norm's running figures of states as they are
        router(torch.randn(64, 64) * 3)
    engine = RoutedEngine.over(TransformersEngine.load(str(PAIR / "student"), device="cpu"), router.eval())
    engine.record = RouterRecord("student", 64, 0.5)
    return engine


@pytest.fixture(scope="module")
def teacher():
    return TransformersEngine.load(str(PAIR / "teacher"), device="cpu")


@pytest.fixture(scope="module")
def prompts(student, teacher):
    builder = PromptBuilder(student.vocabulary.tokenizer, teacher)
    return [builder.build(row["prompt"]) for row in ROWS]


def answer_all(prompts, student, teacher, threshold, config=CONFIG):
    async def run():
        asks = [answer_by_router(p, student, teacher, config, i, threshold) for i, p in enumerate(prompts)]
        return await asyncio.gather(*asks)

    return asyncio.run(run())


def scores_along(student, trace):
    """The router's score before each token of a finished answer, by one forward pass over all of it."""
    ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
    with torch.no_grad():
        states = student.model(ids, output_hidden_states=True).hidden_states[-1][0, len(trace.prompt_ids) - 1 : -1]
    return student.router.score(states)


def middle(student, prompts):
    """A threshold that about half of the tokens of the student's own answers lie below."""
    traces = answer_all(prompts, student, student, 0.0)
    return torch.cat([scores_along(student, trace) for trace in traces]).median().item()


def test_no_threshold_leaves_the_student_alone(student, teacher, prompts):
    async def alone():
        return await asyncio.gather(*(answer_alone(p, student, None, CONFIG, i) for i, p in enumerate(prompts)))

    expected = [trace.completion_ids for trace in asyncio.run(alone())]
    traces = answer_all(prompts, student, teacher, 0.0)
    assert [trace.completion_ids for trace in traces] == expected
    assert not any(trace.calls for trace in traces)


def test_the_highest_threshold_has_the_teacher_write_it_all(student, teacher, prompts):
    for row, trace in zip(ROWS, answer_all(prompts, student, teacher, 1.1), strict=True):
        assert trace.answer == row["solution"] or row["kind"] != "hard_product"
        assert trace.stop is StopReason.TEACHER_EOS
        assert trace.teacher_tokens == trace.num_tokens - 1 == len(trace.calls) - 1
        assert trace.spans[-1].author is Author.CLOSING


def test_each_token_is_its_who_the_score_says(student, teacher, prompts):
    threshold = middle(student, prompts)
    traces = answer_all(prompts, student, teacher, threshold)
    share = sum(trace.teacher_tokens for trace in traces) / sum(trace.num_tokens for trace in traces)
    assert 0.2 < share < 0.8
    for trace in traces:
        authors = [span.author for span in trace.spans for _ in span.ids]
        # A forward pass over the whole answer sums in another order than one with a cache: a hair's breadth is left out.
        for author, score in zip(authors, scores_along(student, trace).tolist(), strict=True):
            if abs(score - threshold) > 1e-4:
                assert (author is Author.STUDENT) == (score >= threshold)
        assert all((c.requested, c.delivered, c.outcome) == (1, 1, Outcome.ANSWERED) for c in trace.calls[:-1])
        # An answer that has ended is not written on.
        ends = [i for i, token in enumerate(trace.completion_ids) if token in student.vocabulary.eos_ids]
        assert ends in ([], [trace.num_tokens - 1])
        assert (trace.stop is StopReason.LENGTH) == (not ends)


def test_an_answer_is_the_same_alone_and_in_a_batch_and_within_its_budget(student, teacher, prompts):
    threshold = middle(student, prompts)
    config = RelayRules(max_completion_length=9, student=Sampling(), teacher=Sampling(temperature=0.0))
    together = answer_all(prompts, student, teacher, threshold, config)
    for i in (0, 7):
        alone = asyncio.run(answer_by_router(prompts[i], student, teacher, config, i, threshold))
        assert alone.completion_ids == together[i].completion_ids
    assert {trace.num_tokens for trace in together} == {9}
    assert {trace.stop for trace in together} == {StopReason.LENGTH}


def test_a_teacher_with_nothing_to_say_leaves_the_students_token(student, prompts):
    silent = ScriptedEngine(None, lambda context: "", name="silent")
    asked = [RelayPrompt(prompt.student, "67*7") for prompt in prompts[:4]]
    traces = answer_all(asked, student, silent, 1.1)
    assert [t.completion_ids for t in traces] == [t.completion_ids for t in answer_all(asked, student, silent, 0.0)]
    assert all(trace.teacher_tokens == 0 and len(trace.calls) == trace.num_tokens for trace in traces)


def test_a_teachers_end_that_ends_nothing_does_not_loop(student, teacher, prompts):
    words = student.vocabulary
    ending = ScriptedEngine(words, lambda context: [words.eos_id], name="ending")
    config = RelayRules(max_completion_length=20, is_ended_by_teacher=False)
    for trace in answer_all(prompts[:4], student, ending, 1.1, config):
        assert trace.stop is not None and trace.teacher_tokens == 0


def test_a_failing_teacher_is_recorded(student, prompts):
    away = ScriptedEngine(student.vocabulary, lambda context: EngineError("The teacher is away."), name="away")
    (trace,) = answer_all(prompts[:1], student, away, 1.1)
    assert trace.has_failed and trace.error == "The teacher is away." and trace.num_tokens == 0


def test_the_generation_under_a_threshold_ends_with_the_students_own_token(student, prompts):
    sampling = RoutedSampling.of(Sampling(temperature=0.0, top_p=0.9, seed=3), 1.1)
    assert sampling.top_p == 0.9 and sampling.seed == 3
    written = asyncio.run(student.generate(prompts[0].student, 10, sampling=sampling))
    alone = asyncio.run(student.generate(prompts[0].student, 10, sampling=Sampling(temperature=0.0)))
    assert (written.ids, written.finish) == (alone.ids[:1], FinishReason.STOP)


def test_reading_gives_states_and_likeliest_tokens(student, prompts):
    completion = student.vocabulary.encode(ROWS[0]["solution"])
    states, tokens = student.read(prompts[0].student, completion)
    ids = torch.tensor([prompts[0].student + completion])
    with torch.no_grad():
        output = student.model(ids, output_hidden_states=True)
    before = slice(len(prompts[0].student) - 1, -1)
    assert torch.allclose(states, output.hidden_states[-1][0, before], atol=1e-5)
    assert tokens == output.logits[0, before].argmax(-1).tolist() and len(tokens) == len(completion)


def references(student, prompts, rows):
    words = student.vocabulary
    return [
        Reference(prompt, [*words.encode(row["solution"]), words.eos_id], row["answer"])
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def label(student, teacher, given, rounds=1, threshold=0.5):
    async def run():
        for number in range(rounds):
            await (labeller.label_open(threshold, 48) if number else labeller.first_round())

    with Grader("#") as grader:
        labeller = Labeller(given, student, teacher, grader, CONFIG)
        asyncio.run(run())
    return labeller


def next_token(engine, context):
    return asyncio.run(engine.generate(context, 1, sampling=Sampling(temperature=0.0))).ids[0]


def test_labels_are_those_of_the_paper(student, teacher, prompts):
    given = references(student, prompts[:6], ROWS[:6])
    labeller = label(student, teacher, given)
    assert labeller.states.shape == (len(labeller.positions), 64)
    assert labeller.questions.tolist() == [q for q, r in enumerate(given) for _ in r.ids]
    kinds = set()
    for position in labeller.positions:
        reference = given[position.question]
        context = reference.prompt.student + reference.ids[: position.index]
        wanted = reference.ids[position.index]
        assert position.own == next_token(student, context)
        if position.own == wanted:
            assert (position.kind, position.label) == (Kind.STUDENT, 1)
        elif next_token(teacher, context) == wanted:
            assert (position.kind, position.label) == (Kind.TEACHER, 0)
        else:
            assert position.kind is Kind.OPEN
        kinds.add(position.kind)
    assert {Kind.STUDENT, Kind.TEACHER} <= kinds


def detours(student, prompts):
    """References that begin in a way that neither model would: every first position is open."""
    words = student.vocabulary
    pairs = zip(prompts, ROWS, strict=False)
    return [Reference(p, [*words.encode(f"0;#{row['answer']}"), words.eos_id], row["answer"]) for p, row in pairs]


def test_an_open_position_is_kept_if_the_student_gets_it_right_alone(student, teacher, prompts):
    prompts = prompts[:10]
    labeller = label(student, teacher, detours(student, prompts))
    first = [position for position in labeller.positions if position.index == 0]
    assert {position.kind for position in first} == {Kind.OPEN}
    greedy = RelayRules(max_completion_length=48, student=Sampling(temperature=0.0))
    for position, prompt, row in zip(first, prompts, ROWS[:10], strict=True):
        alone = asyncio.run(answer_alone(prompt, student, None, greedy, 0))
        assert position.label == (answer_of(alone.answer) == row["answer"])
    assert {position.label for position in first} == {0, 1}


def test_the_second_round_lets_the_router_help_and_relabels_open_positions_only(student, teacher, prompts):
    alone = label(student, teacher, detours(student, prompts[:6]))
    helped = label(student, teacher, detours(student, prompts[:6]), rounds=2, threshold=1.1)
    assert helped.counts()["open_kept"] > alone.counts()["open_kept"]
    for before, after in zip(alone.positions, helped.positions, strict=True):
        assert before.label == after.label or before.kind is Kind.OPEN


def test_only_the_answer_is_graded(student, teacher, prompts):
    # The released code reads the first box of prompt and answer together, which makes every label of a set with boxes 0.
    graded = []

    class Spy:
        def grade(self, texts, golds):
            graded.extend(zip(texts, golds, strict=True))
            return [True] * len(texts)

    given = detours(student, prompts[:3])
    labeller = Labeller(given, student, teacher, Spy(), CONFIG)  # pyright: ignore[reportArgumentType]
    asyncio.run(labeller.first_round())
    open_ones = [position for position in labeller.positions if position.kind is Kind.OPEN]
    for (text, gold), position in zip(graded, open_ones, strict=True):
        written = given[position.question].ids[: position.index] + [position.own]
        assert text.startswith(student.vocabulary.decode(written).removesuffix("<eos>"))
        assert gold == given[position.question].gold and position.label == 1


def test_a_teacher_that_fails_ends_the_labelling(student, prompts):
    away = ScriptedEngine(student.vocabulary, lambda context: EngineError("The teacher is away."), name="away")
    with pytest.raises(EngineError, match="so there are no labels: The teacher is away"):
        label(student, away, references(student, prompts, ROWS))


def noisy_states(seed=0, questions=40, size=8):
    generator = torch.Generator().manual_seed(seed)
    names = torch.arange(questions).repeat_interleave(10)
    states = torch.randn(len(names), size, generator=generator)
    labels = (states[:, 0] + 0.7 * torch.randn(len(names), generator=generator) > 0).long()
    return states, labels, names


def test_training_keeps_the_best_weights_and_stops_when_they_get_no_better():
    states, labels, names = noisy_states()
    router, fit, held_out = train_router(states, labels, names, learning_rate=0.05, batch_size=32, patience=5)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(router(states[held_out]), labels[held_out].float())
    assert fit.loss == pytest.approx(loss.item(), abs=1e-6) and not router.training
    assert fit.ranking > 0.7 and 0.6 < fit.accuracy <= 1
    last, worse, _ = train_router(states, labels, names, learning_rate=0.05, batch_size=32, max_epochs=fit.epochs)
    assert (
        worse.epochs == fit.epochs and worse.loss == fit.loss
    )  # a longer run has the same beginning and gives it back


def test_the_split_is_by_question_and_by_seed():
    names = torch.arange(20).repeat_interleave(7)
    held_out = split_by_question(names, 0.2, seed=1)
    assert held_out.sum() == 28 and not set(names[held_out].tolist()) & set(names[~held_out].tolist())
    assert not torch.equal(held_out, split_by_question(names, 0.2, seed=2))


@pytest.mark.parametrize("change", [lambda s, y, q: (s, y * 0, q), lambda s, y, q: (s, y, q * 0)])
def test_nothing_to_learn_from(change):
    with pytest.raises(ValueError, match="a router needs several questions and positions of both kinds"):
        train_router(*change(*noisy_states()))


def test_thresholds_leave_their_share_below():
    scores = torch.linspace(0, 1, 1001)
    assert thresholds_for(scores, (0.1, 0.5)) == {"0.1": 0.1, "0.5": 0.5}


def test_the_shape_of_the_network():
    widths = [tuple(layer.weight.shape) for layer in Router(6).layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [(12, 6), (6, 12), (1, 6)]


def test_a_router_is_saved_and_loaded(tmp_path, student):
    record = RouterRecord("student", 64, 0.9, thresholds={"0.1": 0.4})
    save_router(student.router, record, tmp_path)
    router, found = load_router(tmp_path)
    states = torch.randn(5, 64)
    assert found == record and torch.equal(router.score(states), student.router.score(states))
    assert set(load_file(tmp_path / WEIGHTS_NAME)) == set(router.state_dict())
    (tmp_path / WEIGHTS_NAME).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read .* train it again"):
        load_router(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train a router with recipes/train_citer\.py"):
        load_router(tmp_path / "nowhere")


def test_only_a_transformers_student_has_hidden_states(tmp_path, student, teacher):
    with pytest.raises(ValueError, match="hidden states, which only the transformers engine gives; scripted runs in"):
        RoutedEngine.over(ScriptedEngine(student.vocabulary, lambda context: []))
    save_router(student.router, RouterRecord("student", 64, 0.9), tmp_path)
    with pytest.raises(ValueError, match="reads hidden states of 64 numbers, but .*teacher has 96"):
        with_router(teacher, str(tmp_path))


def test_the_methods_of_evaluation(student, teacher, prompts):
    citer, loose = load_method("citer"), load_method("citer_0")
    assert citer.has_teacher and citer.has_router and not load_method("relay").has_router
    trace = asyncio.run(citer.answer(prompts[0], student, teacher, CONFIG, 0))
    assert trace.completion_ids == answer_all(prompts[:1], student, teacher, 0.5)[0].completion_ids
    assert not asyncio.run(loose.answer(prompts[0], student, teacher, CONFIG, 0)).calls
    with pytest.raises(ValueError, match="set `citer_router`"):
        asyncio.run(citer.answer(prompts[0], teacher, teacher, CONFIG, 0))
    with pytest.raises(ValueError, match="there is none; set `teacher`"):
        asyncio.run(citer.answer(prompts[0], student, None, CONFIG, 0))
    config = EvaluationConfig(
        student=str(PAIR / "student"), teacher="t", benchmarks=["arithmetic"], methods=["citer_0.5"]
    )
    with pytest.raises(ValueError, match="The methods citer_0.5 need CITER's router"):
        config.with_student_defaults()
