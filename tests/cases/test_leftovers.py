"""What a coordinator keeps of those that have ended, and of what was refused: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasksprint.coordination.commands import JobObserved
from tasksprint.coordination.observations import DIFFERS
from tasksprint.coordination.schedule import Schedule
from tasksprint.ids import JobId
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
            coordinator.background(runner._say(JobObserved(JobId(1), DIFFERS, "me", "me: so")))
            await until(lambda: runner._saying, "something is said")
            body = b'{"sender":"me","request":2,"reason":"enough"}'
            (await leader.ask("POST", "/v1/jobs/1/cancel", body=body)).checked()
            await until(lambda: runner._ended and runner._program is None, "it is gone")
            await until(lambda: not coordinator.runners._stirred, "nothing else is to be done")
            assert len(coordinator.runners) == 1
            heard.append(True)
            await until(lambda: not coordinator.runners, "nothing is left of it", limit_s=5)

    run(main)
