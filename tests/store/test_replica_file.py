"""What only the real file of a replica can show: damage, torn logs, kills."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasksprint.consensus.effects import Persist
from tasksprint.coordination.rows import Row
from tasksprint.errors import StoreDamaged, StoreError
from tasksprint.ids import Slot
from tasksprint.settings import Settings
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.store import kill_child
from tests.store.conftest import FilePlace
from tests.store.helpers import accept, ballot, blob_name, entry, promise
from tests.store.memory_store import MemoryDirectory, MemoryReplicaStore

LOST = (
    "; this replica counts as lost; start a new one with a new --id and --join, then tasksprint "
    "member replace {} NEW=HOST:PORT (if it is the only one: tasksprint restore FILE --data-dir "
    "DIR)"
)
DAMAGED = (
    "; start this replica again: it finds out what is left, and takes the rest from the other "
    "members"
)


def flip_byte(path: Path, pattern: bytes) -> None:
    data = bytearray(path.read_bytes())
    assert data.count(pattern) == 1
    data[data.find(pattern) + len(pattern) // 2] ^= 1
    path.write_bytes(data)


def test_flipped_byte_in_an_open_acceptance_is_a_lost_disk(file_place: FilePlace) -> None:
    store = file_place.open()
    values = [b"value of slot %d" % slot for slot in range(1, 5)]
    store.commit(Commit((accept(*(entry(i + 1, value) for i, value in enumerate(values))),)))
    file_place.close()
    flip_byte(store.path, values[2])
    with pytest.raises(StoreError) as caught:
        file_place.open()
    assert not isinstance(caught.value, StoreDamaged)
    assert str(caught.value) == (
        f"replica store {str(store.path)!r} is damaged: slot 3 of table 'log' fails its checksum"
        + LOST.format(1)
    )


@pytest.mark.parametrize(
    ("change", "message", "member"),
    [
        ("UPDATE log SET round = 2", "slot 1 of table 'log' fails its checksum", "1"),
        ("UPDATE log SET slot = 2", "slot 2 of table 'log' fails its checksum", "1"),
        (
            "DELETE FROM log",
            "table 'log' has 0 values accepted from slot 1 on, expected 1, or others",
            "1",
        ),
        (
            "UPDATE progress SET promised_round = 1",
            "the row of table 'progress' fails its checksum",
            "1",
        ),
        (
            "UPDATE header SET memberships = x'00'",
            "the row of table 'header' fails its checksum",
            "ID",
        ),
        ("UPDATE header SET replica = 2", "the row of table 'header' fails its checksum", "ID"),
        ("DELETE FROM progress", "table 'progress' has 0 rows, expected 1", "1"),
    ],
)
def test_changed_row_is_a_lost_disk(
    file_place: FilePlace, change: str, message: str, member: str
) -> None:
    store = file_place.open()
    store.commit(Commit((promise(2), accept(entry(1, b"v")), Persist(founding=b"f"))))
    file_place.close()
    connection = apsw.Connection(str(store.path))
    connection.execute(change)
    connection.close()
    with pytest.raises(StoreError) as caught:
        file_place.open().recover()
    assert str(caught.value) == (
        f"replica store {str(store.path)!r} is damaged: {message}" + LOST.format(member)
    )


def test_changed_archive_is_reported(file_place: FilePlace) -> None:
    store = file_place.open()
    data = b"the content of an archive"
    store.put_blob(blob_name(data), data)
    file_place.close()
    flip_byte(store.path, data)
    with pytest.raises(StoreError) as caught:
        file_place.open().read_blob(blob_name(data))
    assert f"blob {blob_name(data)} of table 'blob_chunks' fails its checksum" in str(caught.value)


def test_twin_reports_a_full_disk_with_the_same_words() -> None:
    directory = MemoryDirectory("imagined")
    store = MemoryReplicaStore.open(directory, 1, now_ms=0)
    directory.is_full = True
    with pytest.raises(
        StoreError, match="cannot write replica store 'imagined': the disk is full"
    ):
        store.commit(Commit((promise(1),)))
    directory.crash()
    directory.is_full = False
    assert MemoryReplicaStore.open(directory, 1, now_ms=0).recover().consensus.promised is None


# --- a sequence of commits and crashes recovers exactly what was committed ---


def look_inside(store: Any) -> tuple[Any, ...]:
    recovery = store.recover()
    core = recovery.consensus
    return (
        (core.promised, core.accepted, core.chosen_end, core.applied_end, core.log_start),
        (core.founding, recovery.cluster, recovery.applied),
        tuple(recovery.rows),
    )


KEYS = st.tuples(st.integers(1, 2), st.integers(0, 3))
ROWS = st.one_of(
    st.builds(
        lambda key, cells: Row("tasks", key, cells),
        KEYS,
        st.none()
        | st.tuples(
            st.text(max_size=3),
            st.just("done"),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.integers(0, 9),
            st.text(max_size=5),
        ),
    ),
    st.builds(
        lambda key, cells: Row("events", key, cells), KEYS, st.none() | st.tuples(st.text())
    ),
    st.builds(
        lambda key, cells: Row("senders", (key,), cells),
        st.sampled_from(["", "a", "ü"]),
        st.none() | st.tuples(st.just("{}")),
    ),
)
ENTRIES = st.builds(
    lambda slot, value, round_: entry(slot, value, ballot(round_)),
    st.integers(1, 12),
    st.binary(max_size=40),
    st.integers(1, 3),
)
# Steps forward are drawn as differences: nothing in a store goes back.
CHANGES = st.fixed_dictionaries(
    {
        "promised": st.none() | st.integers(0, 2),
        "accepted": st.lists(ENTRIES, max_size=4),
        "chosen": st.none() | st.integers(0, 2),
        "founding": st.none() | st.binary(max_size=4),
        "applied": st.none() | st.integers(0, 2),
        "truncated": st.none() | st.integers(0, 2),
        "rows": st.lists(ROWS, max_size=6),
    }
)
STEPS = st.lists(
    st.lists(CHANGES, min_size=1, max_size=3) | st.sampled_from(["crash", "reopen", "upkeep"]),
    max_size=12,
)


class Forward:
    """Turns differences into commits."""

    def __init__(self) -> None:
        self.promised = 1
        self.chosen = 1
        self.applied = 0
        self.truncated = 1

    def commit(self, change: dict[str, Any]) -> Commit:
        parts: dict[str, Any] = {}
        if change["promised"] is not None:
            self.promised += change["promised"]
            parts["promised"] = ballot(self.promised)
        if change["chosen"] is not None:
            self.chosen += change["chosen"]
            parts["chosen_end"] = Slot(self.chosen)
        applied = None
        if change["applied"] is not None:
            self.applied += change["applied"]
            applied = AppliedPoint(self.applied, f"digest {self.applied}")
        below = None
        if change["truncated"] is not None:
            self.truncated = min(self.truncated + change["truncated"], self.applied + 1)
            below = self.truncated
        accepted = tuple(each for each in change["accepted"] if each.slot >= self.truncated)
        persist = Persist(accepted=accepted, founding=change["founding"], **parts)
        return Commit((persist,), tuple(change["rows"]), applied, below)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_random_commits_and_crashes_recover_exactly_what_was_committed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    """The slow, obvious version is the twin: dictionaries."""
    place = FilePlace(tmp_path_factory.mktemp("place"))
    directory = MemoryDirectory()
    forward = Forward()
    real: Any = place.open(incarnation="00")
    twin = MemoryReplicaStore.open(directory, 1, now_ms=0, incarnation="00")
    for step in steps:
        if isinstance(step, list):
            commits = [forward.commit(change) for change in step]
            real.commit_all(commits)
            twin.commit_all(commits)
        elif step == "upkeep":
            real.do_idle_work()
        else:
            (place.crash if step == "crash" else place.close)()
            real = place.open()
        assert look_inside(real) == look_inside(twin)
    place.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_torn_write_ahead_log_recovers_a_prefix_of_the_commits(tmp_path: Path, seed: int) -> None:
    """A power cut may leave any beginning of the log; never half of a commit."""
    chance = random.Random(seed)
    store = ReplicaStore.open(tmp_path / "data", 1, now_ms=0, incarnation="00")
    states = [look_inside(store)]
    for slot in range(1, 25):
        rows = tuple(
            Row("events", (1, chance.randrange(20)), (f"{slot} " + "x" * chance.randrange(900),))
            for _ in range(chance.randrange(30))
        )
        value = chance.randbytes(chance.randrange(9000))
        store.commit(
            Commit(
                (accept(entry(slot, value), chosen_end=slot + 1),), rows, AppliedPoint(slot, "")
            )
        )
        states.append(look_inside(store))
        if slot == 12:
            store.do_idle_work()
    log = (tmp_path / "data" / "replica.db-wal").read_bytes()
    found = []
    for size in [*sorted(chance.sample(range(len(log)), 25)), len(log)]:
        copy = tmp_path / f"cut{size}"
        copy.mkdir()
        shutil.copy(store.path, copy)
        (copy / "replica.db-wal").write_bytes(log[:size])
        cut = ReplicaStore.open(copy, 1, now_ms=0)
        found.append(states.index(look_inside(cut)))
        cut.close()
    store.close()
    assert found == sorted(found)
    assert found[0] >= 12 and found[-1] == 24
    assert len(set(found)) > 5


@pytest.mark.slow
def test_killed_process_leaves_every_commit_that_it_acknowledged(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.store.kill_child", str(tmp_path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    acknowledged = 0
    while acknowledged < 60:
        acknowledged = int(child.stdout.readline())
    child.kill()
    for line in child.stdout:
        acknowledged = int(line)
    child.wait()
    child.stdout.close()
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    recovery = store.recover()
    slot = recovery.applied.slot
    assert slot in (acknowledged, acknowledged + 1)
    assert recovery.consensus.chosen_end == slot + 1
    assert [(each.slot, each.value) for each in recovery.consensus.accepted] == [
        (each, kill_child.value(each)) for each in range(1, slot + 1)
    ]
    assert list(recovery.rows) == [
        row for each in range(1, slot + 1) for row in kill_child.rows(each)
    ]
    store.close()


def test_file_does_not_grow_with_history_that_is_truncated(file_place: FilePlace) -> None:
    """Freed pages are used again: after the first rounds the file stays as it is."""
    often = Settings(wal_idle_bytes=1, wal_bytes_max=1)
    store = file_place.open(settings=often)
    sizes = []
    for first in range(1, 2_001, 100):
        entries = [entry(slot, bytes(1_000)) for slot in range(first, first + 100)]
        store.commit(
            Commit(
                (accept(*entries, chosen_end=first + 100),),
                applied=AppliedPoint(first + 99, "d"),
                truncate_below=max(first - 50, 1),
            )
        )
        store.checkpoint_if_due()
        sizes.append(store.path.stat().st_size)
    assert sizes[4] == sizes[-1]
