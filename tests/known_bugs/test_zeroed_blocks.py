"""It4innovations/hyperqueue#1059: a crash left blocks of zeros in the journal, unnoticed.

Here: each block of a replica's file in turn is zeros. Then the replica says so and stops,
or the block held nothing that matters. It never goes on with something else.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasksprint.coordination.rows import Row
from tasksprint.errors import StoreError
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.e2e.conftest import wait_until
from tests.known_bugs.test_power_loss import decides
from tests.store.helpers import accept, entry
from tests.torture.machines import Machines

PAGE = 4096
SLOTS = 30


def fill(directory: Path) -> None:
    """Make a store with values and rows that fit into a page, and that need several."""
    store = ReplicaStore.open(directory, 1, now_ms=0)
    for slot in range(1, SLOTS):
        value = b"v%d," % slot * (3_000 if slot % 7 == 0 else 10)
        rows = [
            Row("events", (slot, n), ('{"x":"' + "x" * (9_000 if n == slot % 10 else 20) + '"}',))
            for n in range(5)
        ]
        rows.append(Row("senders", (f"person {slot}",), ("[" + "1," * slot * 40 + "1]",)))
        rows.append(Row("jobs", (slot,), ("name", "running", '{"y":' + "7" * slot * 300 + "}")))
        persist = accept(entry(slot, value), chosen_end=slot + 1)
        store.commit(Commit((persist,), tuple(rows), AppliedPoint(slot, f"digest {slot}")))
    store.close()


def everything(directory: Path) -> tuple[Any, ...]:
    """Read all that a replica reads when it starts, and when another one catches up."""
    store = ReplicaStore.open(directory, 1, now_ms=0)
    try:
        recovery = store.recover()
        return (
            recovery.consensus,
            list(recovery.rows),
            recovery.applied,
            store.read_log(1, SLOTS, 10**9),
        )
    finally:
        store.close()


@pytest.mark.slow
def test_no_block_of_zeros_goes_unnoticed(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    expected = everything(tmp_path / "whole")
    data = (tmp_path / "whole" / "replica.db").read_bytes()
    assert len(data) % PAGE == 0
    reported = 0
    for start in range(0, len(data), PAGE):
        directory = tmp_path / f"zeros-{start}"
        directory.mkdir()
        spoiled = data[:start] + bytes(PAGE) + data[start + PAGE :]
        (directory / "replica.db").write_bytes(spoiled)
        try:
            found = everything(directory)
        except StoreError as error:
            reported += 1
            assert str(directory / "replica.db") in str(error)
        else:
            # An empty table, or one that is read only later.
            assert found == expected, f"block {start // PAGE}"
    assert reported > 0.9 * len(data) / PAGE


def test_zeros_in_a_row_of_many_blocks_are_told_with_the_row(tmp_path: Path) -> None:
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    store.commit(Commit(rows=(Row("events", (3, 1), ("{" + " " * 9_000 + "}",)),)))
    store.close()
    path = tmp_path / "replica.db"
    data = path.read_bytes()
    # The last block of the row: it begins with zeros, as no other one follows.
    start = next(n for n in range(0, len(data), PAGE) if data[n : n + 9] == b"\0\0\0\0     ")
    path.write_bytes(data[:start] + bytes(PAGE) + data[start + PAGE :])
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    with pytest.raises(StoreError) as caught:
        list(store.recover().rows)
    store.close()
    assert str(caught.value) == (
        f"replica store {str(path)!r} is damaged: row (3, 1) of table 'events' fails its "
        "checksum; start this replica again: it finds out what is left, and takes the rest from "
        "the other members"
    )


@pytest.mark.slow
def test_replica_with_zeros_in_its_file_stops_and_the_others_go_on(
    tmp_path: Path, command: list[str]
) -> None:
    with Machines(tmp_path / "cluster", command=command, coordinators=3, clients=0) as machines:
        machines.start_all()
        for request in range(1, 4):
            wait_until(partial(decides, machines, request), "it is decided")
        name = "coordinator-2"
        machines.processes[name].terminate()  # So that all is in the file, and no log beside.
        assert machines.processes[name].wait(10) == 0
        path = machines.folder / name / "replica.db"
        data = path.read_bytes()
        # Among them the promise and the log.
        path.write_bytes(data[:PAGE] + bytes(len(data) - PAGE))
        machines.start(name)
        assert machines.processes[name].wait(20) == StoreError.exit_code
        assert f"{str(path)!r} is damaged: " in machines.log(name)
        assert "Traceback" not in machines.log(name)
        wait_until(lambda: decides(machines, 4), "the others decide")
