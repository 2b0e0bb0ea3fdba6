"""Asks many requests with a limit on how many are under way at once.

Owns the limit. Jobs are read only when there is room, so a million jobs take only the memory of those under way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


async def ask_all(
    jobs: Iterable[Job], ask: Callable[[Job], Awaitable[Result]], max_in_flight: int
) -> AsyncIterator[tuple[Job, Result]]:
    """Asks for every job.

    Args:
        jobs (`Iterable[Job]`): read only as far as there is room.
        ask (`Callable[[Job], Awaitable[Result]]`): its first error ends the loop and cancels the jobs under way.
        max_in_flight (`int`).

    Yields:
        `tuple[Job, Result]`: in the order in which they finish.
    """
    waiting = iter(jobs)
    running: dict[asyncio.Future, Job] = {}
    try:
        while True:
            for job in islice(waiting, max_in_flight - len(running)):
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
