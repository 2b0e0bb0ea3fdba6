"""The rollout files of a training: contents, size, resuming, and following them."""

import json
import math

import pytest
from helpers.trainers import grpo_config, grpo_trainer, in_turn

from relay_trl.call_syntax import CallSyntax
from relay_trl.rollout_files import FOLDER, Draw, RolloutReader, RolloutWriter
from relay_trl.trace import Author, Call, Outcome, Span, StopReason, Trace

PLANS = ("right", "call, right", "wrong", "malformed, right")
ABOUT = {"student": "a"}


def trace(text="1+1=2", **fields):
    return Trace([0], [Span(Author.STUDENT, [1] * len(text), text)], stop=StopReason.EOS, **fields)


def write(writer, step, texts, first=0, size=4, batch=0, prompt="p"):
    count = len(texts)
    writer.add(
        Draw(
            mode="train",
            step=step,
            batch=batch,
            first=first,
            size=size,
            rows=[{"prompt": prompt, "answer": "2"}] * count,
            traces=[trace(text) for text in texts],
            correct=[True] * count,
            rewards=[1.0] * (first + count),
            advantages=[0.5] * count,
            kinds=["student_solvable"] * 9,
        )
    )


def texts_of(group):
    return ["".join(piece["text"] for piece in rollout["segments"]) for rollout in group["rollouts"]]


def steps_of(groups):
    return [(group["step"], group["group"]) for group in groups]


def test_a_training_writes_its_groups_and_figures(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, beta=0.0), in_turn(*PLANS))
    trainer.train()
    is_new, groups, figures = RolloutReader(tmp_path).poll()
    assert is_new and steps_of(groups) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [entry["step"] for entry in figures] == [1, 2, 2] and figures[0]["relay/accuracy"] == 0.75
    last = groups[2]["rollouts"] + groups[3]["rollouts"]
    assert [rollout["advantage"] for rollout in last] == pytest.approx(list(trainer._logs["advantages"]), abs=1e-5)
    rewards = trainer._logs["rewards"]["difficulty_aware"]
    assert [rollout["reward"] for rollout in last] == pytest.approx(list(rewards), abs=1e-5)
    for group in groups:
        right, called, wrong, malformed = group["rollouts"]
        assert group["kind"] == "student_solvable" and group["prompt"].endswith("=")
        assert right["correct"] and called["correct"] and malformed["correct"] and not wrong["correct"]
        assert [rollout["called"] for rollout in group["rollouts"]] == [False, True, False, False]
        assert (malformed["malformed"], wrong["malformed"], wrong["stop"]) == (1, 0, "eos")
        call, teacher, rest = called["segments"]
        assert call == {
            "author": "call",
            "text": "<call>5</call>",
            "requested": 5,
            "granted": 5,
            "delivered": 5,
            "outcome": "answered",
        }
        assert teacher["author"] == "teacher" and teacher["tokens"] == called["teacher_tokens"] == 5
        assert (teacher["text"] + rest["text"]).endswith("#" + group["gold"])


def test_failed_rollouts_and_groups_are_told_apart(tmp_path):
    seen = []

    def choose(problem, seed):  # all rollouts of the first problem fail, and every other one of the second
        seen.append(problem)
        return "call, broken" if problem == seen[0] or seen.count(problem) % 2 == 0 else "right"

    grpo_trainer(grpo_config(tmp_path, max_steps=1, max_teacher_failures=1.0), choose).train()
    lost, partly = RolloutReader(tmp_path).poll()[1]
    failed = partly["rollouts"][1]
    assert failed["correct"] is failed["reward"] is None and failed["error"] == "The teacher is out for lunch."
    assert failed["advantage"] == 0 and partly["kind"] == "student_solvable" and lost["kind"] is None


def test_a_resumed_training_keeps_what_its_checkpoint_knows_and_nothing_twice(tmp_path):
    args = grpo_config(tmp_path, max_steps=3, save_strategy="steps", save_steps=2)
    grpo_trainer(args, in_turn(*PLANS)).train()
    reader = RolloutReader(tmp_path)
    assert [group["step"] for group in reader.poll()[1]] == [1, 1, 2, 2, 3, 3]
    first = (tmp_path / FOLDER / "rank0000-000000.jsonl").read_bytes().splitlines()[:4]
    with open(tmp_path / FOLDER / "rank0000-000000.jsonl", "ab") as file:
        file.write(b'{"step": 1, "half a li')  # a run that was killed

    again = grpo_trainer(args, in_turn(*reversed(PLANS)))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    is_new, groups, figures = reader.poll()
    assert is_new and steps_of(groups) == [(step, group) for step in (1, 2, 3) for group in (0, 1)]
    assert (tmp_path / FOLDER / "rank0000-000000.jsonl").read_bytes().splitlines()[:4] == first
    assert [entry["step"] for entry in figures if "loss" in entry] == [1, 2, 3]
    assert groups[4]["rollouts"][0]["malformed"] == 1, "the third step is the second run's"

    again.writer.start(0, ABOUT)  # as a training that begins anew in the same folder
    assert reader.poll() == (True, [], [])


def test_an_evaluation_is_no_part_of_a_run(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn(*PLANS))
    trainer.train()
    before = RolloutReader(tmp_path).poll()[1:]
    trainer.evaluate(trainer.train_dataset)
    assert RolloutReader(tmp_path).poll()[1:] == before


def test_no_files_by_option(tmp_path):
    grpo_trainer(grpo_config(tmp_path, max_steps=1, rollouts_max_mb=0), in_turn(*PLANS)).train()
    assert not (tmp_path / FOLDER).exists()
    with pytest.raises(FileNotFoundError, match="rollouts_max_mb above 0"):
        RolloutReader(tmp_path)
    with pytest.raises(ValueError, match="rollouts_max_mb is -1"):
        grpo_config(tmp_path, rollouts_max_mb=-1)


def test_a_reader_gets_what_is_new_and_only_whole_lines(tmp_path):
    writer = RolloutWriter(tmp_path, CallSyntax())
    writer.start(0, ABOUT)
    reader = RolloutReader(tmp_path)
    assert reader.poll() == (True, [], []) and reader.run["student"] == "a"
    write(writer, 1, list("abcd"))
    path = tmp_path / FOLDER / "rank0000-000000.jsonl"
    line = path.read_bytes()
    path.write_bytes(line[:40])
    assert reader.poll() == (False, [], [])
    with open(path, "ab") as file:
        file.write(line[40:])
    writer.log(1, {"loss": math.nan, "reward": 0.5, "name": "no number"})
    _, groups, figures = reader.poll()
    assert [texts_of(group) for group in groups] == [list("abcd")]
    assert figures == [{"step": 1, "loss": None, "reward": 0.5}]
    assert reader.poll() == (False, [], [])


def test_a_group_that_lies_across_processes_is_one(tmp_path):
    writers = [RolloutWriter(tmp_path, CallSyntax(), rank, 2) for rank in (0, 1)]
    for writer in writers:
        writer.start(0, ABOUT)
    reader = RolloutReader(tmp_path)
    write(writers[1], 1, list("cdefgh"), first=2, size=4)
    assert [texts_of(group) for group in reader.poll()[1]] == [list("efgh")]
    write(writers[0], 1, list("ab"), first=0, size=4)
    (group,) = reader.poll()[1]
    assert texts_of(group) == list("abcd") and [rollout["index"] for rollout in group["rollouts"]] == [0, 1, 2, 3]
    # Gone on from the first step by one process alone: what the second one wrote after it is of no run
    write(writers[0], 2, list("ijkl"))
    write(writers[1], 2, list("mnop"), first=4)
    RolloutWriter(tmp_path, CallSyntax(), 0, 1).start(1, ABOUT)
    is_new, groups, _ = reader.poll()
    assert is_new and [texts_of(group) for group in groups] == [list("abcd"), list("efgh")]


def test_the_oldest_go_when_the_room_is_full(tmp_path):
    writer = RolloutWriter(tmp_path, CallSyntax(), max_mb=1)
    writer.start(0, ABOUT)
    reader = RolloutReader(tmp_path)
    seen = []
    for step in range(1, 61):
        write(writer, step, ["x" * 10_000] * 4)
        is_new, groups, _ = reader.poll()
        assert is_new == (step == 1)
        seen += [group["step"] for group in groups]
    files = sorted((tmp_path / FOLDER).glob("rank*.jsonl"))
    size = sum(path.stat().st_size for path in files)
    assert 0.7 * 2**20 < size < 1.3 * 2**20 and len(files) == 8
    assert seen == list(range(1, 61))
    kept = [group["step"] for group in RolloutReader(tmp_path).poll()[1]]
    assert kept == list(range(kept[0], 61)) and kept[0] > 1


def test_whatever_a_model_writes_comes_back(tmp_path):
    writer = RolloutWriter(tmp_path, CallSyntax())
    writer.start(0, ABOUT)
    texts = ["</script><b>\u2028\r\n", "\udcff", '"\\\x00', "\U0001f600"]
    write(writer, 1, texts)
    (group,) = RolloutReader(tmp_path).poll()[1]
    assert texts_of(group) == texts


def test_a_disk_that_fails_stops_nothing(tmp_path, caplog):
    (tmp_path / FOLDER).write_text("no folder")
    writer = RolloutWriter(tmp_path, CallSyntax())
    writer.start(0, ABOUT)
    write(writer, 1, list("abcd"))
    writer.log(1, {"loss": 1.0})
    assert caplog.text.count("the training goes on") == 1


def test_a_newer_format_is_refused(tmp_path):
    writer = RolloutWriter(tmp_path, CallSyntax())
    writer.start(0, ABOUT)
    path = tmp_path / FOLDER / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(ValueError, match="upgrade relay_trl"):
        RolloutReader(tmp_path).poll()


def test_calls_keep_what_became_of_them(tmp_path):
    writer = RolloutWriter(tmp_path, CallSyntax())
    writer.start(0, ABOUT)
    called = trace("a<call>9</call>b", calls=[Call(3, 9, outcome=Outcome.DENIED)])
    row = {"prompt": [{"content": "?"}], "answer": ["1", "2"]}
    judged = {"correct": [False], "rewards": [0], "advantages": [0], "kinds": [None]}
    writer.add(Draw("train", step=1, first=0, size=1, rows=[row], traces=[called], **judged))
    (group,) = RolloutReader(tmp_path).poll()[1]
    assert group["prompt"] == [{"content": "?"}] and group["gold"] == ["1", "2"]
    assert [piece.get("outcome") for piece in group["rollouts"][0]["segments"]] == [None, "denied", None]
