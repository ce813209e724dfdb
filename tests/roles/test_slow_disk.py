"""A leader whose disk hangs, in this process: who waits for it is sent to the next one."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.archives import packed
from tests.roles.members import members
from tests.roles.test_coordinator import QUIET, archive_of, run, until
from tests.roles.test_disk_space import submit


@pytest.mark.slow
def test_who_waits_for_a_hung_disk_is_sent_to_the_next_leader(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            hung = await of.leader()
            program = await archive_of(hung, tmp_path / "job", scheduler_sh=QUIET)
            await until(lambda: hung.coordinator.log.is_current, "it leads")
            released = threading.Event()
            hung.coordinator.writer.run(lambda store: released.wait(60))
            try:
                began_s = asyncio.get_running_loop().time()
                waiting = (
                    asyncio.ensure_future(submit(hung, program, 1)),
                    asyncio.ensure_future(hung.ask("POST", "/v1/programs", body=packed())),
                )
                answers = await asyncio.gather(*waiting)
                assert asyncio.get_running_loop().time() - began_s < 5
                assert [answer.status for answer in answers] == [421, 421]
                leader = await of.leader()
                assert leader is not hung
                await until(lambda: leader.coordinator.log.is_current, "the next one leads")
                assert (await submit(leader, program, 1)).json() == {"job": 1}
                cause = leader.coordinator.standing.elections[-1]["cause"]
                assert "resigned: its disk is slow" in cause
                assert hung.coordinator.replica.status().handovers == 1
                assert not hung.coordinator.members._waiters
            finally:
                released.set()

    run(main)
