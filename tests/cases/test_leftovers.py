"""What a coordinator keeps of those that have ended, and of what was refused: nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasksprint.coordination.commands import JobObserved
from tasksprint.coordination.observations import DIFFERS
from tasksprint.coordination.schedule import Schedule
from tasksprint.ids import ClientId, JobId, Slot
from tasksprint.roles.coordinator.told import ToldHere
from tasksprint.settings import Settings
from tests.coordination.world import look_inside
from tests.roles.members import members
from tests.roles.test_coordinator import archive_of, decide, run, submission, until

SILENT = """#!/bin/sh
echo '{"ready":{}}'
exec cat > /dev/null
"""


def test_job_that_ends_while_its_scheduler_is_spoken_of_leaves_no_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(Schedule, "is_observed", lambda self, command: bool(heard))

    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            coordinator = leader.coordinator
            program = await archive_of(leader, tmp_path / "job", scheduler_sh=SILENT)
            command = submission(1, program)
            assert await decide(leader, command) == {"job": 1}
            runner = coordinator.runners.get(JobId(1))
            assert runner is not None
            await until(lambda: runner._program is not None, "its scheduler runs")
            observed = JobObserved(JobId(1), DIFFERS, "me", "me: so")
            coordinator.turns.background(runner._say(observed))
            await until(lambda: runner._saying, "something is said")
            body = b'{"sender":"me","request":2,"reason":"enough"}'
            (await leader.ask("POST", "/v1/jobs/1/cancel", body=body)).checked()
            await until(lambda: runner._ended and runner._program is None, "it is gone")
            await until(lambda: not coordinator.runners._stirred, "nothing else is to be done")
            assert len(coordinator.runners) == 1
            heard.append(True)
            await until(lambda: not coordinator.runners, "nothing is left of it", limit_s=5)

    run(main)


def test_what_clients_follow_is_told_by_the_tick_after_a_refused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(1, tmp_path, Settings(tick_interval_ms=3_600_000)) as of:
            coordinator = (await of.leader()).coordinator
            ticks = coordinator.ticks
            await until(lambda: coordinator.log.is_current and not ticks._is_waiting, "quiet")
            schedule = coordinator.log.schedule
            assert schedule is not None
            followed = (ClientId(7), Slot(1))
            look_inside(schedule).followed = dict([followed])
            with monkeypatch.context() as patched:
                patched.setattr(coordinator.turns, "step", lambda *arguments: False)
                ticks.tick_now()
            assert schedule.followed == (followed,)
            ticks.tick_now()
            assert ticks._is_waiting and schedule.followed == ()

    run(main)


def test_what_dead_clients_said_is_not_kept() -> None:
    clock = SimpleNamespace(now_ms=0)
    told = ToldHere(lambda: clock.now_ms, cast(Any, {}))
    for number in range(1, 100):
        clock.now_ms += 1_000
        said = {"stalls": '[[1, "disk", 1, []]]', "runs": "[[1, 2, 1, 2500]]"}
        said["complaint"] = "h:6 answers: nonsense"
        told.heard(ClientId(number), said)
        assert len(told._complaints) <= 21 and len(told._stalls) <= 4 and len(told._runs) <= 4
    assert told.complaint_of(ClientId(99)) == "h:6 answers: nonsense"
    assert told.complaint_of(ClientId(80)) == "h:6 answers: nonsense"
    assert told.complaint_of(ClientId(78)) is None
