"""Asks many requests with a limit on how many are under way at once.

Owns the limit. Jobs are read only when there is room, so a million jobs take only the memory of those under way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

from .base import EngineError

Job = TypeVar("Job")
Result = TypeVar("Result")


async def ask_all(
    jobs: Iterable[Job], ask: Callable[[Job], Awaitable[Result]], max_in_flight: int, is_in_waves: bool = False
) -> AsyncIterator[tuple[Job, Result]]:
    """Asks for every job.

    Args:
        jobs (`Iterable[Job]`): read only as far as there is room.
        ask (`Callable[[Job], Awaitable[Result]]`): its first error ends the loop and cancels the jobs under way.
        is_in_waves (`bool`, defaults to `False`): begin the next jobs when all those under way are done.
        max_in_flight (`int`).

    Yields:
        `tuple[Job, Result]`: in the order in which they finish.
    """
    waiting = iter(jobs)
    running: dict[asyncio.Future, Job] = {}
    try:
        while True:
            room = 0 if is_in_waves and running else max_in_flight - len(running)
            for job in islice(waiting, room):
                running[asyncio.ensure_future(ask(job))] = job
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield running.pop(task), task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def ask_past_failures(
    jobs: Iterable[Job],
    ask: Callable[[Job], Awaitable[Result]],
    max_in_flight: int,
    max_failures: int,
    what: str,
    is_in_waves: bool = False,
) -> AsyncIterator[tuple[Job, Result]]:
    """[`ask_all`], but a job whose engine fails holds up no other.

    Args:
        max_failures (`int`): failed jobs in a row at which the rest is left.
        what (`str`): whose failures they are, for the error, such as `"The teacher failed at {} problems"`.

    Yields:
        `tuple[Job, Result]`: of the others.

    Raises:
        EngineError: after all others, or after `max_failures` in a row: how many failed, and the last one's fault.
    """

    async def ask_anyway(job: Job) -> Result | EngineError:
        try:
            return await ask(job)
        except EngineError as error:
            return error

    failures, in_a_row, last = 0, 0, None
    async for job, result in ask_all(jobs, ask_anyway, max_in_flight, is_in_waves):
        if isinstance(result, EngineError):
            failures, in_a_row, last = failures + 1, in_a_row + 1, result
            if in_a_row >= max_failures:
                break
        else:
            in_a_row = 0
            yield job, result
    if failures:
        raise EngineError(
            f"{what.format(failures)}, the last time with: {last} What is done so far is kept; run again to ask the others."
        )
