"""Write-ahead logs that aren't as a coordinator left them: its database opens without a word."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasksprint.consensus.effects import Persist
from tasksprint.consensus.founding import Founding, Member, encode_founding
from tasksprint.errors import StoreError
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.net.keys import ClusterKey
from tasksprint.roles.coordinator.process import open_coordinator
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions
from tasksprint.settings import Settings
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore

WRITES = 12
LEFT = ("replica.db", "replica.db-wal", "replica.durable")
FRAME_BYTES = 24 + 4096
BEGINNING = 32  # of a log: its header

Change = Callable[[Path], None]


def founding(members: int) -> bytes:
    numbers = range(1, members + 1)
    return encode_founding(
        Founding("c0ffee", tuple(Member(ReplicaId(n), Incarnation(f"i{n}"), "h") for n in numbers))
    )


def killed(folder: Path, *, members: int = 1, checkpointed: int = 1) -> Path:
    """Return what a coordinator leaves that was killed after some writes."""
    store = ReplicaStore.open(folder / "running", 1, now_ms=0, incarnation="i1")
    for number in range(1, WRITES + 1):
        first = founding(members) if number == 1 else None
        store.commit(Commit((Persist(founding=first, durable=number),)))
        if number == checkpointed:
            store._database.checkpoint()
    left = folder / "left"
    left.mkdir()
    for name in LEFT:
        shutil.copy(folder / "running" / name, left / name)
    store.close()
    return left


def doubts(left: Path) -> str | None:
    store = ReplicaStore.open(left, 1, now_ms=0)
    try:
        return store.doubts
    finally:
        store.close()


def flip(place: int) -> Change:
    def change(log: Path) -> None:
        data = bytearray(log.read_bytes())
        data[place] ^= 0x10
        log.write_bytes(data)

    return change


def cut(size: int) -> Change:
    return lambda log: log.write_bytes(log.read_bytes()[:size])


def without_mark(log: Path) -> None:
    log.with_name("replica.durable").unlink()


def both(*changes: Change) -> Change:
    def change(log: Path) -> None:
        for one in changes:
            one(log)

    return change


REMOVED = "its write-ahead log was removed, emptied or cut off, or it was put back"
THIRD = BEGINNING + 2 * FRAME_BYTES
SPOILED = (
    "its write-ahead log is damaged behind frame 2: of what follows, {} transactions "
    "can't be read"
)
BEHIND = f"it ends with write {{}}, but write {WRITES} was durable; "


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda log: None, None),
        (Path.unlink, BEHIND.format(1) + REMOVED),
        (cut(0), BEHIND.format(1) + REMOVED),
        (cut(THIRD + 99), BEHIND.format(3) + REMOVED),
        # In a page, in the salts of a frame, in the log's own header.
        (flip(THIRD + 500), BEHIND.format(3) + SPOILED.format(WRITES - 3)),
        (flip(THIRD + 9), BEHIND.format(3) + SPOILED.format(WRITES - 4)),
        (flip(2), BEHIND.format(1) + "its write-ahead log has no valid beginning"),
        # What the log shows by itself, where nothing stands beside it.
        (both(without_mark, flip(THIRD + 500)), SPOILED.format(WRITES - 3)),
        (both(without_mark, cut(THIRD + 99)), None),
        (without_mark, None),
    ],
)
def test_log_of_an_only_coordinator(
    change: Change, expected: str | None, tmp_path: Path
) -> None:
    left = killed(tmp_path)
    change(left / "replica.db-wal")
    assert doubts(left) == expected


def test_log_that_was_removed_before_its_first_checkpoint(tmp_path: Path) -> None:
    """The database itself is empty then, and looks like a new one."""
    left = killed(tmp_path, checkpointed=0)
    (left / "replica.db-wal").unlink()
    found = doubts(left)
    assert found == BEHIND.format(0) + REMOVED


def test_log_of_one_of_several_counts_as_an_older_disk(tmp_path: Path) -> None:
    """Others rely on what it said: it doesn't wait for them to notice."""
    left = killed(tmp_path, members=3)
    (left / "replica.db-wal").unlink()
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            doubts(left)
        assert str(caught.value).startswith(
            f"replica 1 returned with an older disk (durable number 1, this machine has seen "
            f"{WRITES}): it counts as lost; "
        )


# The byte of an index that SQLite locks while it uses it ("dead man's switch"): who gets it
# alone takes the index for left behind, and begins it anew.
TAKE_INDEX = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    try:
        fcntl.lockf(index, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)
    except OSError:
        sys.exit("in use")
"""


def test_who_reads_the_database_beside_us_finds_its_index_in_use(tmp_path: Path) -> None:
    """Reading the index of a left log gave SQLite's locks away; sqlite3 then cut it to nothing."""
    left = killed(tmp_path)
    store = ReplicaStore.open(left, 1, now_ms=0)
    try:
        command = [sys.executable, "-c", TAKE_INDEX, str(left / "replica.db-shm")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == "in use\n"
    finally:
        store.close()


def test_doubts_are_over_with_the_next_write(tmp_path: Path) -> None:
    left = killed(tmp_path)
    (left / "replica.db-wal").unlink()
    store = ReplicaStore.open(left, 1, now_ms=0)
    assert store.doubts is not None
    store.commit(Commit((Persist(durable=2),)))
    store.close()
    assert doubts(left) is None


def test_coordinator_says_so_at_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = killed(tmp_path)
    (left / "replica.db-wal").unlink()
    options = CoordinatorOptions(
        me=ReplicaId(1),
        advertise="127.0.0.1:1",
        peers={ReplicaId(1): "127.0.0.1:1"},
        data_dir=left,
        key=ClusterKey(bytes(32)),
    )

    async def start() -> None:
        made = open_coordinator(
            options, Settings(), lambda: ReplicaStore.open(left, 1, now_ms=0)
        )
        await made.close()

    asyncio.run(start())
    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert warning.getMessage() == (
        f"replica=1 acknowledged work may be missing from '{left}/replica.db': "
        f"{BEHIND.format(1)}{REMOVED}; if that isn't what you meant to do, keep a copy of "
        f"'{left}', or bring back a backup (docs/operations.md, 'When a disk fails')"
    )
