"""`--profile_steps`: the sections add up to the whole step, and each has the right work."""

import json

import pytest
from helpers.trainers import grpo_config, grpo_trainer

from relay_trl.training import profile


def test_where_the_time_of_a_step_goes(tmp_path, capsys):
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=3, profile_steps=2))
    trainer.train()
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["steps"] == 2
    sections = found["sections_s"]
    assert sum(sections.values()) == pytest.approx(found["step_s"])
    used = {profile.STUDENT, profile.RELAY, profile.GRADING, profile.TRAINING, profile.REST}
    assert {name for name, seconds in sections.items() if seconds > 0} >= used
    assert sections[profile.SYNC] == 0  # there is no vLLM to keep up
    said = capsys.readouterr().out
    assert "mean of 2 steps after the first" in said
    assert all(name in said for name in profile.SECTIONS)


def test_a_bonus_on_calls_leaves_the_profile_in_place(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=2, profile_steps=1, call_entropy_coef=0.1))
    trainer.train()
    assert profile._TRL_SECTIONS.keys() <= vars(trainer).keys()


def test_an_inner_section_stops_the_clock_of_the_outer_one():
    timer = profile.SectionTimer()
    with timer.section(profile.RELAY):  # nothing is counted before it is started
        pass
    timer.start()
    with timer.section(profile.RELAY):
        with timer.section(profile.STUDENT):
            until = profile.time.perf_counter() + 0.05
            while profile.time.perf_counter() < until:
                pass
    timer.stop()
    assert timer.seconds[profile.STUDENT] >= 0.05 > timer.seconds[profile.RELAY]


def test_a_negative_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="profile_steps is -1"):
        grpo_config(tmp_path, profile_steps=-1)
