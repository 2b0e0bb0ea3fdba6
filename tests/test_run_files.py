"""Rows that a killed run continues, and requests with a limit on how many are under way."""

import asyncio
import json
import logging

import pytest

from relay_trl.engines.base import EngineError
from relay_trl.engines.in_flight import ask_all, ask_past_failures
from relay_trl.run_files import ResumableRows


def test_rows_come_back_in_order_after_a_kill_in_the_middle_of_a_line(tmp_path, caplog):
    path = tmp_path / "folder" / "rows.jsonl"
    with ResumableRows(path, {"seed": 1}) as rows:
        for number in (3, 0, 2):
            rows.add(number, {"text": f"row {number} é \ud800"})
        assert [number for number, _ in rows.in_order()] == [0, 2, 3]
    with open(path, "ab") as file:
        file.write(b'{"number": 1, "ro')
    with caplog.at_level(logging.WARNING), ResumableRows(path, {"seed": 1}) as rows:
        assert len(rows) == 3 and 1 not in rows and 2 in rows
        rows.add(1, None)
        assert list(rows.in_order())[:2] == [(0, {"text": "row 0 é \ud800"}), (1, None)]
    assert "ends in half a line" in caplog.text
    with ResumableRows(path, {"seed": 1}) as rows:
        assert [number for number, _ in rows.in_order()] == [0, 1, 2, 3]


def test_half_a_header_is_no_header(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"format": "rel')
    with ResumableRows(path, {}) as rows:
        rows.add(0, 5)
    with ResumableRows(path, {}) as rows:
        assert list(rows.in_order()) == [(0, 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n', "is no file of rows; move it away"),
        ("[]\n", "is no file of rows"),
        ("no json\n", "is no file of rows"),
        ('{"format": "relay_trl.answers", "version": 1, "settings": {}}\n', "is no file of rows"),
        ('{"format": "relay_trl.rows", "version": 9, "settings": {}}\n', "version 9 .* reads version 1"),
        (
            '{"format": "relay_trl.rows", "version": 1, "settings": {"seed": 2}}\n{"number": 0, "row": 5}\n',
            "seed was 2 and is now 1",
        ),
        ('{"format": "relay_trl.rows", "version": 1, "settings": {"seed": 1}}\n{}\n', "damaged in line 2"),
    ],
)
def test_files_that_are_none_of_this_run_are_left_alone(tmp_path, text, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        ResumableRows(path, {"seed": 1})
    assert path.read_text() == text


def test_settings_are_compared_as_they_are_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    for number in range(2):
        with ResumableRows(path, {"weights": (1, 2)}) as rows:
            rows.add(number, None)
    assert json.loads(path.read_text().splitlines()[0])["settings"] == {"weights": [1, 2]}


def collect(jobs, ask, limit):
    async def run():
        return [pair async for pair in ask_all(jobs, ask, limit)]

    return asyncio.run(run())


def test_no_more_than_the_limit_are_under_way_and_jobs_are_drawn_late():
    under_way, most, drawn = 0, 0, 0

    def jobs():
        nonlocal drawn
        for i in range(50):
            drawn += 1
            yield i

    async def ask(i):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        assert drawn <= finished + 4
        await asyncio.sleep(0.001 * (i % 3))
        under_way -= 1
        return i * i

    finished = 0

    async def run():
        nonlocal finished
        async for i, square in ask_all(jobs(), ask, 4):
            assert square == i * i
            finished += 1

    asyncio.run(run())
    assert (finished, most) == (50, 4)


def test_an_error_ends_the_rest():
    cancelled = []

    async def ask(i):
        if i == 1:
            raise KeyError("broken")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(i)
            raise

    with pytest.raises(KeyError, match="broken"):
        collect(range(9), ask, 3)
    assert sorted(cancelled) == [0, 2]


@pytest.mark.parametrize("is_in_waves", [False, True])
def test_in_waves_the_next_jobs_begin_when_all_are_done(is_in_waves):
    under_way, seen = 0, []

    async def ask(job):
        nonlocal under_way
        under_way += 1
        seen.append((job, under_way))
        for _ in range(job % 3 + 1):
            await asyncio.sleep(0)
        under_way -= 1
        return job

    async def collect():
        return [job async for job, _ in ask_all(range(9), ask, 3, is_in_waves)]

    assert sorted(asyncio.run(collect())) == list(range(9))
    first_of_each_wave = [count for job, count in seen if job % 3 == 0]
    assert (first_of_each_wave == [1, 1, 1]) is is_in_waves


def test_a_failing_engine_holds_up_no_other_job():
    async def ask(job):
        await asyncio.sleep(0)
        if job in (2, 5):
            raise EngineError(f"fault {job}.")
        return job

    async def collect(most):
        done = []
        with pytest.raises(
            EngineError, match=r"Lost 2 jobs, the last time with: fault 5\. What is done so far is kept"
        ) as error:
            async for job, _ in ask_past_failures(range(8), ask, 1, most, "Lost {} jobs"):
                done.append(job)
        return done, error

    assert asyncio.run(collect(2))[0] == [0, 1, 3, 4, 6, 7]

    async def stopped():
        with pytest.raises(EngineError, match="Lost 1 jobs, the last time with: fault 2"):
            async for _ in ask_past_failures(range(8), ask, 1, 1, "Lost {} jobs"):
                pass

    asyncio.run(stopped())
