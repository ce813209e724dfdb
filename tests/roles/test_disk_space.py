"""Coordinators whose disks fill, as far as they are told: what they refuse, and when they stop."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from tasksprint.errors import DiskFull
from tasksprint.net.http_messages import HttpResponse
from tasksprint.roles.coordinator import disk_space
from tasksprint.settings import GIB, MIB
from tests.archives import packed
from tests.roles.members import Member, members
from tests.roles.test_coordinator import QUIET, archive_of, run, until

PLENTY = 100 * GIB


class Disks:
    """What each data directory's file system has left, by its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free: dict[str, int] = {}
        monkeypatch.setattr(disk_space, "measure", self._measure)

    async def _measure(self, directory: Path) -> tuple[int, int]:
        return self.free.get(directory.name, PLENTY), 2 * PLENTY

    async def fill(self, member: Member, free_bytes: int) -> None:
        """Leave so much, and let the coordinator look."""
        space = member.coordinator.disk_space
        self.free[space.free.directory.name] = free_bytes
        await space.check()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(monkeypatch)


async def submit(member: Member, program: str, request: int) -> HttpResponse:
    manifest = {"scheduler": ["scheduler.sh"], "node": ["node.sh"]}
    body: dict[str, Any] = {
        **{"sender": "me", "request": request, "name": "job", "seed": 1, "params": "{}"},
        **{"program": program, "manifest": json.dumps(manifest)},
    }
    return await member.ask("POST", "/v1/jobs", body=json.dumps(body).encode())


def test_leader_that_is_short_takes_no_new_jobs_and_goes_on_with_those_it_has(
    disks: Disks, tmp_path: Path
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            program = await archive_of(leader, tmp_path / "job", scheduler_sh=QUIET)
            first = await submit(leader, program, 1)
            assert first.json() == {"job": 1}
            await disks.fill(leader, 500 * MIB)  # Low: nothing changes.
            assert (await submit(leader, program, 2)).json() == {"job": 2}
            await disks.fill(leader, 200 * MIB)
            where = leader.coordinator.options.data_dir
            sentence = {
                "error": f"replica 1 takes no new jobs: 200.0 MiB are free where {str(where)!r} "
                "is, expected at least 256.0 MiB (free_refuse_bytes)",
                "hint": "free some space there",
            }
            for answer in (
                await submit(leader, program, 3),
                await leader.ask("POST", "/v1/programs", body=packed()),
                await leader.ask("POST", "/v1/archives", body=b"more"),
            ):
                assert (answer.status, answer.json()) == (507, sentence)
            # What was acknowledged stays so, whoever asks again.
            assert (await submit(leader, program, 1)).json() == {"job": 1}
            body = b'{"sender": "me", "request": 9, "reason": ""}'
            cancelled = await leader.ask("POST", "/v1/jobs/1/cancel", body=body)
            assert cancelled.json() == {"job": 1, "state": "cancelled"}
            assert (await leader.ask("GET", "/readyz")).status == 200
            status = (await leader.ask("GET", "/v1/status")).json()
            assert status["free_space"] == {
                "level": "short",
                "free_bytes": 200 * MIB,
                "size_bytes": 2 * PLENTY,
            }
            metrics = (await leader.ask("GET", "/metrics")).body.decode()
            assert f"\ntasksprint_free_bytes {200 * MIB}\n" in metrics
            assert "\ntasksprint_free_space_level 2\n" in metrics
            await disks.fill(leader, PLENTY)
            assert (await submit(leader, program, 3)).json() == {"job": 3}

    run(main)


def test_changes_are_said_once(
    disks: Disks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            with caplog.at_level("INFO", "tasksprint.coordinator"):
                for free_mib in (10**6, 900, 899, 100, 99, 900, 10**6):
                    await disks.fill(leader, free_mib * MIB)

    run(main)
    said = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert [line.split(":")[0] for line in said if " are free where " in line] == [
        "WARNING replica=1 the disk fills",
        "WARNING replica=1 takes no new jobs",
        "INFO replica=1 takes new jobs again",
        "INFO replica=1 there is enough space again",
    ]


@pytest.mark.slow
def test_leader_that_is_short_hands_over_to_one_that_is_not(disks: Disks, tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            short = await of.leader()
            await until(lambda: short.coordinator.log.is_current, "it leads")
            other = next(member for member in of.all if member is not short)
            await disks.fill(other, 200 * MIB)  # Only the third one has space.
            await disks.fill(short, 200 * MIB)
            await until(lambda: not short.coordinator.replica.is_leader, "it hands over")
            third = next(member for member in of.all if member not in (short, other))

            while not third.coordinator.log.is_current:
                await asyncio.sleep(0.01)
                for member in of.all:
                    await member.coordinator.disk_space.check()
            await disks.fill(other, PLENTY)  # For the archive's second copy.
            program = await archive_of(third, tmp_path / "job", scheduler_sh=QUIET)
            assert (await submit(third, program, 1)).json() == {"job": 1}
            cause = third.coordinator.standing.elections[-1]["cause"]
            assert "resigned: its disk is nearly full: 200.0 MiB are free where" in cause

    run(main)


@pytest.mark.slow
def test_leader_stays_if_all_are_short(disks: Disks, tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            for member in sorted(of.all, key=lambda each: each is leader):
                await disks.fill(member, 200 * MIB)
            space = leader.coordinator.disk_space
            await until(lambda: space._asking is None, "it has asked the others")
            assert leader.coordinator.replica.is_leader
            answer = await leader.ask("POST", "/v1/programs", body=packed())
            assert answer.status == 507

    run(main)


@pytest.mark.slow
def test_leader_sees_that_its_disk_is_spent_also_while_the_others_hang(
    disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()

            async def hang(*arguments: Any, **options: Any) -> HttpResponse:
                await asyncio.Event().wait()
                raise AssertionError

            monkeypatch.setattr(leader.coordinator.http, "request", hang)
            await disks.fill(leader, 200 * MIB)
            await asyncio.sleep(0)
            await disks.fill(leader, 60 * MIB)
            assert isinstance(leader.failure, DiskFull)

    run(main)


@pytest.mark.slow
def test_archive_that_too_few_have_space_for_is_refused(disks: Disks, tmp_path: Path) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            for member in of.all:
                if member is not leader:
                    await disks.fill(member, 200 * MIB)
            answer = await leader.ask("POST", "/v1/programs", body=packed())
            assert answer.status == 507
            assert "reached 1 of 3 coordinators, expected 2: " in answer.json()["error"]
            assert "takes no new jobs: 200.0 MiB are free" in answer.json()["error"]

    run(main)


def test_member_that_is_short_refuses_no_archive_that_it_has(
    disks: Disks, tmp_path: Path
) -> None:
    """It would write nothing; and changes of the members waited for it."""

    async def main() -> None:
        async with members(1, tmp_path) as of:
            short = await of.leader()
            digest = await short.coordinator.archives.keep(b"archive")
            await disks.fill(short, 200 * MIB)
            answer = await short.ask("POST", "/v1/archives", body=b"archive")
            assert (answer.status, answer.json()) == (200, {"digest": digest})
            assert (await short.ask("POST", "/v1/archives", body=b"another")).status == 507

    run(main)


@pytest.mark.slow
def test_member_that_is_short_keeps_nobody_from_submitting(
    disks: Disks,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with members(3, tmp_path) as of:
            leader = await of.leader()
            short = next(each for each in of.all if each is not leader)
            await disks.fill(short, 200 * MIB)
            request = leader.coordinator.http.request
            answered = asyncio.Event()
            asking: set[asyncio.Task[Any] | None] = set()

            async def late(address: str, *arguments: Any, **options: Any) -> HttpResponse:
                """Let the refusal come after the archive was kept by enough others."""
                if address == short.address:
                    asking.add(asyncio.current_task())
                    await answered.wait()
                return await request(address, *arguments, **options)

            monkeypatch.setattr(leader.coordinator.http, "request", late)
            answer = await leader.ask("POST", "/v1/programs", body=packed())
            assert answer.status == 200
            answered.set()
            await until(lambda: all(task is None or task.done() for task in asking), "it refuses")
            assert asking
            asking.clear()
            gc.collect()

    run(main)
    assert "never retrieved" not in caplog.text


def test_coordinator_stops_before_the_disk_is_full(disks: Disks, tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            await disks.fill(leader, 60 * MIB)
            assert isinstance(leader.failure, DiskFull)
            assert str(leader.failure).startswith("replica 1 can't go on: 60.0 MiB are free where")

    run(main)
