"""The disk is full while a checkpoint or an answer is written, or the clock is set back: one sentence, and nothing is lost."""

import os
import subprocess
import time

import pytest
from helpers.scripted_relay import LETTERS, scripted
from helpers.trainers import are_equal, grpo_config, grpo_trainer, in_turn, weights_of
from transformers import TrainerCallback

from relay_trl.evaluation.answer_files import AnswerFile, read_run
from relay_trl.evaluation.methods import load_methods
from relay_trl.evaluation.runner import Problems, evaluate
from relay_trl.grading.grader import Grader
from relay_trl.relay import RelayPrompt, RelayRules

MIXED = ("right", "call, right", "wrong", "call, wrong")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size, which `grow` makes larger; a real one, for only that answers ENOSPC."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("needs the command mount")
        if done.returncode != 0:
            pytest.skip(f"needs the right to mount a file system ({done.stderr.strip()})")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def train(folder, resume=None, **fields):
    args = grpo_config(folder, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2, **fields)
    trainer = grpo_trainer(args, in_turn(*MIXED))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_the_run_goes_on_from_the_one_before(small_disk, tmp_path):
    quiet = train(tmp_path / "quiet")
    whole = sum(path.stat().st_size for path in (tmp_path / "quiet" / "checkpoint-4").iterdir())
    disk = small_disk(int(1.6 * whole))
    with pytest.raises(
        OSError, match=r"The checkpoint of step 2 could not be written to .*checkpoint-2 .*make room"
    ) as caught:
        train(disk)
    assert "\n" not in " ".join(str(caught.value).split()[:1])
    small_disk(int(4 * whole), "remount")
    rest = train(disk, "auto")
    assert rest.state.global_step == 4 and [e["step"] for e in rest.state.log_history if "loss" in e] == [1, 2, 3, 4]
    assert are_equal(weights_of(rest), weights_of(quiet))


def questions(count):
    rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(count)]
    return Problems("numbers", rows, [RelayPrompt(LETTERS.encode(row["prompt"]), None) for row in rows])


def answer_all(path, problems):
    """Asks a student that is right for even numbers; returns the contexts it was shown."""

    def turn(context):
        number = LETTERS.decode(context).partition("is ")[2].partition("?")[0]
        return [*LETTERS.encode("\\boxed{" + str(int(number) // 2 * 2) + "}"), LETTERS.eos_id]

    student = scripted(LETTERS)
    student._script = turn
    with Grader() as grader, AnswerFile(path, {"seed": 0}) as answers:
        evaluate(load_methods(["student"]), problems, student, None, RelayRules(), grader, answers, has_progress=False)
    return student.contexts


def test_answers_that_do_not_fit_are_asked_again_when_there_is_room(small_disk):
    disk, problems = small_disk(16384), questions(60)
    with pytest.raises(OSError, match="No space left"):
        answer_all(disk / "answers.jsonl", problems)
    kept = len((disk / "answers.jsonl").read_bytes().splitlines()) - 1
    assert 0 < kept < 60
    small_disk(1 << 20, "remount")
    asked = answer_all(disk / "answers.jsonl", problems)
    run = read_run(disk / "answers.jsonl")
    assert sorted(answer.index for answer in run.answers) == list(range(60))
    assert [answer.correct for answer in sorted(run.answers, key=lambda a: a.index)] == [i % 2 == 0 for i in range(60)]
    assert 0 < len(asked) <= 60 - kept + 1


class BackInTime(TrainerCallback):
    """After every checkpoint the clock is set back by an hour, which is to say: what was written is an hour ahead."""

    def __init__(self, folder):
        self.folder = folder

    def on_save(self, args, state, control, **kwargs):
        ahead = time.time() + 3600 * (10 - state.global_step)
        for path in self.folder.glob("checkpoint-*"):
            if path.stat().st_mtime < time.time() + 60:
                os.utime(path, (ahead, ahead))


@pytest.mark.slow
def test_a_clock_that_is_set_back_costs_no_new_checkpoint(tmp_path):
    args = grpo_config(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer = grpo_trainer(args, in_turn(*MIXED), callbacks=[BackInTime(tmp_path)])
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
