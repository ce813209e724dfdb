"""Turns of a coordinator's loop: one for all that arrives, and a timer for what comes later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tasksprint.errors import PeerUnreachable, StoreDamaged
from tasksprint.roles.coordinator.turns import NEVER_MS, LoopTurns


class World:
    """Turns that are recorded, at a time that the test sets."""

    def __init__(self) -> None:
        self.time_ms = 1_000
        self.due_ms = NEVER_MS
        self.taken: list[int] = []
        self.damages: list[StoreDamaged] = []
        self.error: Exception | None = None
        self.turns = LoopTurns(lambda: self.time_ms, self.work, self.damages.append)

    def work(self, now_ms: int) -> int:
        assert self.turns.is_under_way and not self.turns.is_due
        self.taken.append(now_ms)
        if self.error is not None:
            raise self.error
        return self.due_ms


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await scenario(world)
        world.turns.end()
        if world.turns.stopped.done():
            world.turns.stopped.exception()
        await world.turns.close()

    asyncio.run(asyncio.wait_for(main(), 10))


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_all_that_arrives_at_once_has_one_turn() -> None:
    async def scenario(world: World) -> None:
        for _ in range(3):
            world.turns.wake()
        assert world.turns.is_due and world.taken == []
        await settle()
        assert world.taken == [1_000]
        assert not (world.turns.is_due or world.turns.is_under_way)

    run(scenario)


def test_timer_wakes_when_there_is_more_to_do_and_an_earlier_one_stays() -> None:
    async def scenario(world: World) -> None:
        world.due_ms = 1_001
        world.turns.take()
        timer = world.turns._timer
        assert timer is not None
        world.due_ms = 5_000  # Put off: a turn too early costs less than a new timer.
        world.turns.take()
        assert world.turns._timer is timer
        while len(world.taken) < 3:
            await asyncio.sleep(0.001)
        later = world.turns._timer
        assert later is not None and later is not timer
        world.due_ms = 2_000  # Sooner: the timer is set anew.
        world.turns.take()
        assert later.cancelled() and world.turns._timer is not later

    run(scenario)


@pytest.mark.parametrize("error", [ValueError("a bug"), StoreDamaged("a page is spoiled")])
def test_failure_in_a_turn_stops_the_replica_for_good(error: Exception) -> None:
    async def scenario(world: World) -> None:
        world.error = error
        world.turns.take()
        assert world.turns.stopped.exception() is error
        assert world.damages == ([error] if isinstance(error, StoreDamaged) else [])
        world.turns.wake()
        await settle()
        assert world.taken == [1_000], "it has no more turns"

    run(scenario)


def test_bug_in_a_step_of_a_core_stops_the_replica_and_tells_whoever_asked() -> None:
    async def scenario(world: World) -> None:
        def step() -> None:
            raise KeyError("slot")

        with pytest.raises(PeerUnreachable):
            world.turns.step(step)
        assert isinstance(world.turns.stopped.exception(), KeyError)
        assert world.turns.is_over

    run(scenario)
