"""The loop of simulated processes: what a killed one leaves behind."""

from __future__ import annotations

import asyncio
import gc
import warnings
from random import Random

from tests.simulation.timeline import Timeline
from tests.simulation.virtual_loop import VirtualLoop


def test_clauses_of_a_killed_process_begin_nothing_and_leave_no_coroutine_behind() -> None:
    timeline = Timeline()
    errors: list[BaseException] = []
    loop = VirtualLoop(timeline, Random(1), on_exception=errors.append)
    told: list[str] = []

    async def last_words() -> None:
        told.append("last words")

    async def work() -> None:
        told.append("begun")
        try:
            await asyncio.sleep(10)
        finally:
            asyncio.get_running_loop().create_task(last_words())
            told.append("cleaned up")

    loop.create_task(work())
    timeline.step()
    tasks = loop.kill()
    assert len(tasks) == 1
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        loop.throw_away(tasks)
        while timeline.step():
            pass
        gc.collect()
    assert told == ["begun", "cleaned up"]
    assert (errors, [str(each.message) for each in found]) == ([], [])
