"""A disk that fills, for real: coordinators whose data directories are small file systems.

What is acknowledged stays acknowledged, whatever the disk does, and a process that stopped
for want of space goes on where it was once there is some.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasksprint.encoding import encode_json
from tasksprint.errors import DiskFull, PeerUnreachable, Refused
from tests.archives import packed
from tests.e2e.conftest import wait_until
from tests.torture.machines import Machines

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
# A fifth, a tenth and a twentieth of it are the marks.
SIZE = 60 * MIB


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Make a directory a file system of its own, of SIZE bytes; or skip the test."""
    directory.mkdir(parents=True, mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root (CAP_SYS_ADMIN)")
    options = f"size={SIZE},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def leave(directory: Path, free_bytes: int) -> None:
    """Let somebody else's file take all but so much of a disk."""
    ballast = directory / "ballast"
    ballast.unlink(missing_ok=True)
    found = os.statvfs(directory)
    # Real blocks; the file system may have none left at the end, as others write, too.
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        left = found.f_bavail * found.f_frsize - free_bytes
        while left > 0:
            left -= file.write(bytes(min(left, 65_536)))


class People:
    """Somebody who submits jobs, and remembers which of them were acknowledged."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._requests = 0
        self.acknowledged: set[int] = set()

    def submit(self, *, padding: int = 100, give_up_ms: int = 10_000) -> None:
        """Submit a job, which never ends, and note that it was acknowledged."""
        cluster = self._machines.connect()
        post = cluster.request("POST", "/v1/programs", body=packed(), give_up_ms=give_up_ms)
        self._requests += 1
        manifest = {"scheduler": ["scheduler.sh"], "node": ["attached:nobody"]}
        body = {
            **{"sender": "me", "request": self._requests, "name": "job", "seed": 1},
            "params": json.dumps({"padding": "x" * padding}),
            "program": post.json()["digest"],
            "manifest": json.dumps(manifest),
        }
        answer = cluster.request("POST", "/v1/jobs", body=encode_json(body), give_up_ms=give_up_ms)
        self.acknowledged.add(answer.checked().json()["job"])

    def jobs(self) -> set[int]:
        """Return the jobs that there are."""
        found = self._machines.connect().request("GET", "/v1/jobs").json()
        return {job["job"] for job in found}


def level_of(machines: Machines, name: str) -> str:
    status = machines.status(name)
    if status is None:
        return "none"
    space = status["free_space"]
    assert isinstance(space, dict)
    return str(space["level"])


@pytest.mark.long  # tests/e2e/test_bad_input.py fills a disk in steps, too
def test_coordinator_warns_refuses_stops_and_goes_on(tmp_path: Path, command: list[str]) -> None:
    name = "coordinator-1"
    disk = tmp_path / "cluster" / name
    with (
        small_disk(disk),
        Machines(tmp_path / "cluster", command=command, coordinators=1, clients=0) as machines,
    ):
        people = People(machines)
        machines.start(name)
        wait_until(lambda: machines.leader() is not None, "it leads")
        people.submit()
        assert level_of(machines, name) == "plenty"
        leave(disk, SIZE // 7)
        wait_until(lambda: level_of(machines, name) == "low", "it warns")
        people.submit()
        leave(disk, SIZE // 14)
        wait_until(lambda: level_of(machines, name) == "short", "it takes no new jobs")
        with pytest.raises(Refused, match=r"replica 1 takes no new jobs: .* MiB are free"):
            people.submit()
        leave(disk, SIZE // 30)
        assert machines.processes[name].wait(20) == DiskFull.exit_code
        assert "replica 1 can't go on: " in machines.log(name)
        machines.start(name)
        assert machines.processes[name].wait(20) == DiskFull.exit_code
        assert "Traceback" not in machines.log(name)
        # What it left is enough for it to start, if the operator lets it.
        (disk / "ballast").unlink()
        machines.start(name)
        wait_until(lambda: machines.leader() is not None, "it leads again")
        assert people.jobs() == people.acknowledged == {1, 2}
        people.submit()
        assert people.jobs() == people.acknowledged
        assert machines.end_all() == {name: 0}


def test_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, command: list[str]) -> None:
    """The disk is full within the second before anybody looks."""
    name = "coordinator-1"
    disk = tmp_path / "cluster" / name
    settings = {"free_warn_bytes": 1, "free_refuse_bytes": 1, "free_stop_bytes": 1}
    with (
        small_disk(disk),
        Machines(
            tmp_path / "cluster",
            command=command,
            coordinators=1,
            clients=0,
            environment={"TASKSPRINT_SETTINGS": json.dumps(settings)},
        ) as machines,
    ):
        people = People(machines)
        for left in (1 * MIB, 100_000, 0):
            machines.start(name)
            wait_until(lambda: machines.leader() is not None, "it leads")
            people.submit()
            leave(disk, left)
            with pytest.raises(PeerUnreachable):
                for _ in range(200):
                    people.submit(padding=50_000, give_up_ms=300)
            assert machines.processes[name].wait(20) == DiskFull.exit_code
            assert "the disk is full; free some space and start again" in machines.log(name)
            assert "Traceback" not in machines.log(name)
            (disk / "ballast").unlink()
            (machines.folder / f"{name}.log").unlink()
        machines.start(name)
        wait_until(lambda: machines.leader() is not None, "it leads again")
        # One more may be there each time: what was under way got no answer.
        assert people.acknowledged <= people.jobs()
        assert len(people.jobs()) <= len(people.acknowledged) + 3
        assert machines.end_all() == {name: 0}


def test_leader_whose_disk_fills_hands_over_and_no_job_is_refused(
    tmp_path: Path, command: list[str]
) -> None:
    disk = tmp_path / "cluster" / "coordinator-1"
    with (
        small_disk(disk),
        Machines(tmp_path / "cluster", command=command, coordinators=3, clients=0) as machines,
    ):
        people = People(machines)
        machines.start_all()

        def leads() -> bool:
            """Whether coordinator-1 leads; if another one does, let them elect again."""
            leader = machines.leader()
            if leader not in (None, "coordinator-1"):
                machines.kill(leader)
                wait_until(lambda: machines.leader() not in (None, leader), "another one leads")
                machines.start(leader)
            return leader == "coordinator-1"

        wait_until(leads, "coordinator-1 leads", limit_s=60)
        leave(disk, SIZE // 14)
        wait_until(
            lambda: (
                level_of(machines, "coordinator-1") == "short"
                and machines.leader() not in (None, "coordinator-1")
            ),
            "another one leads",
        )
        people.submit()
        leave(disk, SIZE // 30)
        assert machines.processes["coordinator-1"].wait(20) == DiskFull.exit_code
        people.submit()
        (disk / "ballast").unlink()
        machines.start("coordinator-1")
        wait_until(machines.is_level, "it has caught up: ", found=machines.points)
        assert people.jobs() == people.acknowledged
        assert set(machines.end_all().values()) == {0}
