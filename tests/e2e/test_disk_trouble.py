"""Disks that fail real coordinators: what each of three says, does, and comes to.

The files of one of them are spoiled while it is down; the others decide meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasksprint.errors import StoreError
from tasksprint.settings import Settings
from tasksprint.store.verify import verify
from tests.e2e.conftest import as_documented, wait_until
from tests.known_bugs.test_power_loss import decides
from tests.torture.machines import Machines

pytestmark = pytest.mark.slow


class Cluster:
    """Three coordinators, and commands that are numbered."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.request = 0

    def decide(self, count: int = 3) -> None:
        """Have commands decided."""
        for _ in range(count):
            self.request += 1
            wait_until(lambda: decides(self.machines, self.request), "it is decided")

    def follower(self, *, other_than: str = "") -> str:
        """Return one that doesn't lead."""
        no = (self.machines.leader(), other_than)
        return next(name for name in self.machines.coordinators if name not in no)

    def file(self, name: str) -> Path:
        return self.machines.folder / name / "replica.db"

    def end(self, name: str) -> None:
        """Stop one in good order, once its file has a mirror: all is in the file then."""
        wait_until(lambda: has_mirror(self.file(name)), "its mirror is written")
        self.machines.processes[name].terminate()
        assert self.machines.processes[name].wait(10) == 0

    def ended(self, name: str) -> str:
        """Return what one says that stops by itself because of its disk."""
        assert self.machines.processes[name].wait(20) == StoreError.exit_code
        said = self.machines.log(name)
        assert "Traceback" not in said
        return said.rpartition("tasksprint: ")[2].strip()


@pytest.fixture
def log_tail_slots() -> int:
    """How much of the log is kept: all of it, in these short lives."""
    return Settings().log_tail_slots


@pytest.fixture
def cluster(tmp_path: Path, log_tail_slots: int, command: list[str]) -> Iterator[Cluster]:
    environment = {"TASKSPRINT_SETTINGS": json.dumps({"log_tail_slots": log_tail_slots})}
    with Machines(
        tmp_path / "cluster", command=command, coordinators=3, clients=0, environment=environment
    ) as machines:
        machines.start_all()
        made = Cluster(machines)
        made.decide()
        yield made
        # Whoever it was: the others go on.
        made.decide()


def has_mirror(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as database:
        ((count,),) = database.execute("SELECT count(*) FROM facts").fetchall()
        return bool(count)


def change(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute(statement).rowcount > 0
        database.commit()


@pytest.mark.long
def test_disk_that_is_put_back_from_a_copy_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.follower()
    cluster.end(name)
    shutil.copytree(cluster.machines.folder / name, tmp_path / "copy")
    cluster.machines.start(name)
    # Without the third one nothing is decided before it has said that it wrote it.
    third = cluster.follower(other_than=name)
    cluster.machines.stop(third)
    cluster.decide()
    cluster.machines.resume(third)
    cluster.end(name)
    shutil.rmtree(cluster.machines.folder / name)
    shutil.copytree(tmp_path / "copy", cluster.machines.folder / name)
    cluster.machines.start(name)
    said = as_documented(cluster.ended(name))
    number = name[-1]
    assert said.startswith(f"replica {number} returned with an older disk (durable number ")
    assert said.endswith(f"then tasksprint member replace {number} ID=HOST:PORT")


@pytest.mark.long
def test_torn_tail_of_the_write_ahead_log_is_an_older_disk(cluster: Cluster) -> None:
    """A power cut may leave it only if the disk said that it was written, and wasn't."""
    name = cluster.follower()
    cluster.decide(10)
    cluster.machines.kill(name)
    log = cluster.file(name).with_name("replica.db-wal")
    data = log.read_bytes()
    # (What is left holds more than the empty tables, which are the first transaction.)
    log.write_bytes(data[: len(data) * 3 // 4])
    cluster.machines.start(name)
    assert "returned with an older disk (durable number " in cluster.ended(name)


def test_zeroed_write_ahead_log_is_an_older_disk_or_an_empty_one(cluster: Cluster) -> None:
    name = cluster.follower()
    cluster.machines.kill(name)
    log = cluster.file(name).with_name("replica.db-wal")
    log.write_bytes(bytes(log.stat().st_size))
    cluster.machines.start(name)
    said = cluster.ended(name)
    assert "returned with an older disk" in said or "lost its disk" in said


def test_flipped_bit_in_the_mirror_costs_a_copy_of_the_state(cluster: Cluster) -> None:
    name = cluster.follower()
    cluster.end(name)
    path = cluster.file(name)
    change(path, "UPDATE facts SET body = replace(body, 'log_ms', 'log_mr') WHERE name = 'state'")
    assert list(verify(path)) == ["row ('state',) of table 'facts' fails its checksum"]
    cluster.machines.start(name)
    wait_until(cluster.machines.is_level, "it has the state of the others")
    said = cluster.machines.log(name)
    assert "row ('state',) of table 'facts' fails its checksum" in said
    assert "repaired its store: its state is made again from the log" in said
    cluster.end(name)
    assert list(verify(path)) == []
    cluster.machines.start(name)


@pytest.mark.parametrize("log_tail_slots", [2])
def test_zeroed_block_in_the_mirror_costs_a_copy_of_the_state(cluster: Cluster) -> None:
    """Without the beginning of the log, the state comes from another member."""
    name = cluster.follower()
    cluster.decide(10)
    cluster.end(name)
    path = cluster.file(name)
    with contextlib.closing(sqlite3.connect(path)) as database:
        ((first,),) = database.execute("SELECT min(slot) FROM log").fetchall()
        ((page,),) = database.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'facts'"
        ).fetchall()
    assert first > 1
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    assert list(verify(path)) != []
    cluster.machines.start(name)
    wait_until(cluster.machines.is_level, "it has the state of the others")
    said = cluster.machines.log(name)
    assert "repaired its store: its state is dropped, for a copy of another member's: " in said
    assert "took over a copy of the state up to slot " in said


def test_chosen_entry_that_is_spoiled_is_fetched_again(cluster: Cluster) -> None:
    name = cluster.follower()
    cluster.end(name)
    path = cluster.file(name)
    change(path, "UPDATE log SET value = x'00' WHERE slot = 2")
    # As if it hadn't been applied yet: then it is needed.
    change(path, "UPDATE facts SET checksum = checksum + 1")
    cluster.machines.start(name)
    wait_until(cluster.machines.is_level, "it has all that the others have")


def test_spoiled_promise_is_a_lost_disk(cluster: Cluster) -> None:
    name = cluster.follower()
    cluster.end(name)
    change(cluster.file(name), "UPDATE progress SET promised_round = promised_round + 1")
    cluster.machines.start(name)
    assert as_documented(cluster.ended(name)) == (
        f"replica store {str(cluster.file(name))!r} is damaged: the row of table 'progress' fails "
        "its checksum; this replica counts as lost; start a new one with a new --id and --join, "
        f"then tasksprint member replace {name[-1]} NEW=HOST:PORT (if it is the only one: "
        "tasksprint restore FILE --data-dir DIR)"
    )
