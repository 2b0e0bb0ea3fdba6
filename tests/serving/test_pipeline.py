"""`RelayPipeline`, and that training, evaluation, pipeline and server write the same tokens for the same seed."""

import asyncio
from pathlib import Path

import pytest
from helpers.scripted_relay import END, LETTERS, scripted
from helpers.serving import pair_of, serving

from relay_trl import RelayPipeline
from relay_trl.engines.base import Sampling
from relay_trl.engines.loading import load_engine
from relay_trl.engines.threaded import ThreadedEngine
from relay_trl.evaluation.methods import load_method
from relay_trl.relay_config import RelayRecord, save_record
from relay_trl.serving.pair import Pair
from relay_trl.training.rollouts import Rollouts

PAIR = Path(__file__).parents[2] / "data" / "arithmetic"
PROBLEM = "78*6+49="


@pytest.fixture
def pipeline():
    with RelayPipeline(
        pair_of(scripted(LETTERS, *["ab<call>2</call>", "gh" + END] * 4), scripted(LETTERS, *["de"] * 4))
    ) as it:
        yield it


def test_one_and_several(pipeline):
    answer = pipeline("Q")
    assert answer.text == "abdegh" and (answer.teacher_tokens, len(answer.calls)) == (2, 1)
    assert [span.author for span in answer.spans] == ["student", "teacher", "student"]
    assert len(pipeline([[{"role": "user", "content": "Q"}]])) == 1
    assert pipeline([]) == []


def test_streaming_and_async(pipeline):
    assert "".join(piece.text for piece in pipeline.stream("Q")) == "abdegh"

    async def both():
        pieces = [piece.text async for piece in pipeline.astream("Q")]
        return "".join(pieces), (await pipeline.generate("Q")).text

    assert asyncio.run(both()) == ("abdegh", "abdegh")


def test_a_stream_that_is_left_stops_the_engines():
    student = scripted(LETTERS, "a" * 10_000, delay_s=0.01)
    with RelayPipeline(pair_of(student, max_completion_length=10_000)) as pipeline:
        for _ in pipeline.stream("Q"):
            break

        async def others():
            await asyncio.sleep(0.05)
            return len(asyncio.all_tasks()) - 1

        assert pipeline._wait(others()) == 0


def test_options(pipeline):
    assert pipeline("Q", max_call_tokens=1, stop="g").text == "abd"
    with pytest.raises(TypeError, match="max_cals"):
        pipeline("Q", max_cals=1)
    with pytest.raises(ValueError, match="max_calls is -1"):
        pipeline("Q", max_calls=-1)


@pytest.fixture(scope="module")
def calling(tmp_path_factory):
    """The shipped student with tags that it writes by itself: in its steps, `78*6=468;`, every `=468;` is a call."""
    folder = tmp_path_factory.mktemp("student")
    for path in (PAIR / "student").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    limits = {"max_completion_length": 24, "max_calls": 2, "max_call_tokens": 3}
    record = RelayRecord(teacher=str(PAIR / "teacher"), open_tag="=", close_tag=";", **limits)
    save_record(record, folder)
    return folder, record


def test_the_same_prompt_and_seed_give_the_same_ids_everywhere(calling):
    folder, record = calling
    student, teacher = load_engine(str(folder)), load_engine(str(PAIR / "teacher"))
    config = record.relay_config(student=Sampling())
    builder = record.prompt_builder(student.vocabulary.tokenizer, teacher)
    trained = Rollouts(builder, config, teacher).run([PROBLEM], [12], student)[0]
    evaluated = asyncio.run(load_method("relay").answer(builder.build(PROBLEM), student, teacher, config, 12))
    assert trained.teacher_tokens == 6, "the comparison is worth little without the teacher's words"

    with RelayPipeline.from_pretrained(str(folder)) as pipeline:
        piped = pipeline(PROBLEM, seed=12, temperature=1.0)
    with serving(Pair(ThreadedEngine(student), ThreadedEngine(teacher), record, Sampling())) as server:
        ask = {"model": "pair", "messages": [{"role": "user", "content": PROBLEM}], "seed": 12}
        ask |= {"extra_body": {"show_commands": True}}
        whole = server.client.chat.completions.create(**ask)
        chunks = list(server.client.chat.completions.create(**ask, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert trained.completion_ids == evaluated.completion_ids == piped.trace.completion_ids
    # One character is one token here, so that the same text is the same ids
    assert trained.text == whole.choices[0].message.content == streamed
    assert (whole.usage.teacher_tokens, whole.usage.student_tokens) == (6, sum(trained.loss_mask))
