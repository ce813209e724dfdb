"""Opening and owning a file: what goes wrong there, and the sentence for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tasksprint.coordination.rows import TABLES
from tasksprint.errors import DiskFull, SettingsError, StoreError
from tasksprint.settings import Settings
from tasksprint.store.database import Database, Kind
from tasksprint.store.many_rows import Upsert
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.result_store import ResultStore
from tests.store.conftest import FilePlace
from tests.store.helpers import accept, entry, promise

KIND = Kind("test store", 77, 1, "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)", 4096, 2)


def open_replica(data_dir: Path, settings: Settings | None = None) -> ReplicaStore:
    return ReplicaStore.open(data_dir, 1, now_ms=0, settings=settings)


def open_results(data_dir: Path) -> ResultStore:
    return ResultStore.open(data_dir, now_ms=0)


BOTH = pytest.mark.parametrize(
    ("opener", "name", "what"),
    [
        (open_replica, "replica.db", "replica store"),
        (open_results, "results.db", "result store"),
    ],
)


@pytest.mark.parametrize(
    ("opener", "synchronous", "page_bytes"), [(open_replica, 2, 4096), (open_results, 1, 8192)]
)
def test_pragmas_hold_on_the_open_connection(
    tmp_path: Path, opener: Any, synchronous: int, page_bytes: int
) -> None:
    store = opener(tmp_path)
    connection = store._database.connection
    wanted = {
        "journal_mode": "wal",
        "synchronous": synchronous,
        "foreign_keys": 1,
        "busy_timeout": Settings().store_busy_timeout_ms,
        "wal_autocheckpoint": 0,
        "page_size": page_bytes,
    }
    assert {name: connection.pragma(name) for name in wanted} == wanted
    store.close()


def test_pragma_that_does_not_hold_is_an_error(tmp_path: Path) -> None:
    """A database in memory can't have a write-ahead log, like some network disks."""
    with pytest.raises(StoreError) as caught:
        Database(Path(":memory:"), KIND, Settings())
    assert str(caught.value) == (
        "test store ':memory:' runs with journal_mode 'memory', expected 'wal'; "
        "data directories must be on a local file system"
    )


@BOTH
def test_other_process_in_the_same_directory_is_named(
    tmp_path: Path, opener: Any, name: str, what: str
) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys\n"
            f"file = open({str(tmp_path / name.replace('.db', '.lock'))!r}, 'w')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\n"
            "import os; file.write(str(os.getpid()) + '\\n'); file.flush()\n"
            "print('locked', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(SettingsError) as caught:
        opener(tmp_path)
    assert str(caught.value) == (
        f"data directory {str(tmp_path)!r} is in use by process {holder.pid}; "
        "stop that process, or give this one its own --data-dir"
    )
    holder.stdin.close()
    assert holder.wait() == 0
    opener(tmp_path).close()  # The lock ended with its process.


@BOTH
def test_owner_of_a_directory_leaves_its_pid(
    tmp_path: Path, opener: Any, name: str, what: str
) -> None:
    lock = tmp_path / name.replace(".db", ".lock")
    lock.write_text("123456789 of an owner long gone\n")
    store = opener(tmp_path)
    assert lock.read_text() == f"{os.getpid()}\n"
    store.close()


@BOTH
def test_file_that_is_no_database_is_refused(
    tmp_path: Path, opener: Any, name: str, what: str
) -> None:
    (tmp_path / name).write_bytes(b"not a database, " * 1000)
    with pytest.raises(StoreError) as caught:
        opener(tmp_path)
    assert str(caught.value) == (
        f"cannot open {what} {str(tmp_path / name)!r}: it is not an SQLite database, or its "
        "beginning is damaged; move it away or give another --data-dir"
    )
    assert (tmp_path / name).read_bytes() == b"not a database, " * 1000


@BOTH
def test_database_of_another_program_is_refused(
    tmp_path: Path, opener: Any, name: str, what: str
) -> None:
    with apsw.Connection(str(tmp_path / name)) as other:
        other.execute("CREATE TABLE precious (a)")
    other.close()
    with pytest.raises(StoreError) as caught:
        opener(tmp_path)
    assert str(caught.value).startswith(
        f"cannot open {what} {str(tmp_path / name)!r}: it is an SQLite database of another kind "
        "(application_id 0, expected "
    )
    assert str(caught.value).endswith("; move it away or give another --data-dir")


@BOTH
def test_newer_format_is_refused(tmp_path: Path, opener: Any, name: str, what: str) -> None:
    opener(tmp_path).close()
    connection = apsw.Connection(str(tmp_path / name))
    known = connection.pragma("user_version")
    connection.pragma("user_version", 9)
    connection.close()
    with pytest.raises(StoreError) as caught:
        opener(tmp_path)
    assert str(caught.value) == (
        f"cannot open {what} {str(tmp_path / name)!r}: it has format 9, this program knows "
        f"format {known}; use the version of TaskSprint that wrote it, or a newer one"
    )


def test_damaged_page_is_reported_with_the_file(tmp_path: Path) -> None:
    store = open_replica(tmp_path)
    store.commit(Commit((accept(*(entry(slot, bytes(500)) for slot in range(1, 200))),)))
    store.close()
    path = tmp_path / "replica.db"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)  # The schema is whole, the tables are not.
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        open_replica(tmp_path)
    assert str(caught.value) == (
        f"replica store {str(path)!r} is damaged: table 'header' can't be read; this replica "
        "counts as lost; start a new one with a new --id and --join, then tasksprint member "
        "replace ID NEW=HOST:PORT (if it is the only one: tasksprint restore FILE --data-dir DIR)"
    )


def test_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        open_replica(tmp_path / "file" / "data")
    assert str(caught.value) == (
        f"cannot write in data directory {str(tmp_path / 'file' / 'data')!r}: Not a directory; "
        "make it writable for this user, or give another --data-dir"
    )


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory, and no right to write in it or to what is not ours."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    else:
        directory.chmod(0o555)
    yield directory
    os.seteuid(me)
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def test_directory_that_may_not_be_written_is_named(as_nobody: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_replica(as_nobody)
    assert str(caught.value) == (
        f"cannot write in data directory {str(as_nobody)!r}: Permission denied; "
        "make it writable for this user, or give another --data-dir"
    )


def test_file_that_may_not_be_written_is_named(as_nobody: Path) -> None:
    """SQLite itself would open it for reading only, and say nothing."""
    nobody = os.geteuid()
    os.seteuid(os.getuid())
    as_nobody.chmod(0o777)
    open_replica(as_nobody).close()
    (as_nobody / "replica.lock").chmod(0o666)
    (as_nobody / "replica.db").chmod(0o444)
    os.seteuid(nobody)
    with pytest.raises(StoreError) as caught:
        open_replica(as_nobody)
    assert str(caught.value) == (
        f"cannot write replica store {str(as_nobody / 'replica.db')!r}: permission denied; "
        "make the file and its directory writable for this user"
    )


def test_full_disk_ends_the_store_and_loses_nothing_acknowledged(file_place: FilePlace) -> None:
    store = file_place.open()
    store.commit(Commit((promise(1), accept(entry(1, b"kept")))))
    connection = store._database.connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    with pytest.raises(StoreError) as caught:
        store.commit(Commit((promise(2), accept(entry(2, bytes(1_000_000))))))
    assert str(caught.value) == (
        f"cannot write replica store {str(store.path)!r}: the disk is full; "
        "free some space and start again; nothing that was acknowledged is lost"
    )
    for write in (lambda: store.commit(Commit((promise(3),))), store.begin_copy):
        with pytest.raises(DiskFull):  # Who comes later hears the same, and ends by it.
            write()
    file_place.crash()
    core = file_place.open().recover().consensus
    assert core.promised == promise(1).promised
    assert core.accepted == (entry(1, b"kept"),)


def test_lock_of_another_program_is_reported_after_the_busy_timeout(tmp_path: Path) -> None:
    store = open_replica(tmp_path, Settings(store_busy_timeout_ms=1))
    other = apsw.Connection(str(store.path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as caught:
        store.commit(Commit((promise(1),)))
    assert str(caught.value) == (
        f"cannot write replica store {str(store.path)!r}: another program holds a lock on it; "
        "close every program that writes to this file; reading it is fine"
    )
    other.close()
    store.close()


def test_file_is_read_by_others_while_it_is_written(tmp_path: Path) -> None:
    """The mirror is a feature: somebody's sqlite3 sees every commit and stops none."""
    store = open_replica(tmp_path)
    other = apsw.Connection(str(store.path), flags=apsw.SQLITE_OPEN_READONLY)
    for round_ in (1, 2):
        store.commit(Commit((promise(round_),)))
        assert other.execute("SELECT promised_round FROM progress").get == round_
    other.close()
    store.close()


def test_tables_of_the_mirror_are_as_declared(tmp_path: Path) -> None:
    store = open_replica(tmp_path)
    for table in TABLES.values():
        info = store._database.query(f"PRAGMA table_info({table.name})")
        columns = table.key_columns + table.value_columns
        assert [(name, kind) for _, name, kind, *_ in info] == [
            *[(column.name, column.type) for column in columns],
            ("checksum", "INTEGER"),
        ]
        assert [key for *_, key in info if key] == list(range(1, len(table.key_columns) + 1))
    store.close()


def test_long_write_ahead_log_is_copied_even_if_the_owner_is_busy(tmp_path: Path) -> None:
    settings = Settings(wal_idle_bytes=100_000, wal_bytes_max=1_000_000)
    store = open_replica(tmp_path, settings)
    assert not store.idle_work_is_due
    store.commit(Commit((accept(entry(1, bytes(200_000))),)))
    assert store.idle_work_is_due
    assert not store.checkpoint_if_due()
    store.commit(Commit((accept(entry(2, bytes(900_000))),)))
    assert store.checkpoint_if_due()
    assert not store.idle_work_is_due
    wal = tmp_path / "replica.db-wal"
    size = wal.stat().st_size
    store.commit(Commit((accept(entry(3, bytes(900_000))),)))
    assert wal.stat().st_size <= size  # The log began anew.
    store.close()
    assert not wal.exists()


def test_upsert_without_value_columns_keeps_what_is_there() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    upsert = Upsert("t", ("a",), ())
    upsert.run(connection.cursor(), [1, 2, 3])
    upsert.run(connection.cursor(), [3, 4])
    upsert.run(connection.cursor(), [])
    assert connection.execute("SELECT a FROM t").fetchall() == [(1,), (2,), (3,), (4,)]
    for count in range(1, 300):
        upsert.run(connection.cursor(), list(range(count)))
    assert len(upsert._texts) == 8  # 1, 2, 4 … 128: each is compiled once.
    with pytest.raises(AssertionError):
        Upsert("t", ("a",), ("b",)).run(connection.cursor(), [1, 2, 3])
