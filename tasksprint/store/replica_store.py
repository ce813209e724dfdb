"""What one replica may not forget, in one SQLite file: `replica.db`.

Keeps the promise, the accepted values, how far the log is known chosen, the founding
entry, who votes since, the mirror of the replicated state with the slot up to which it
was applied, and the archives of jobs. Everything of one `Commit` is on the disk
(`synchronous=FULL`) when `commit` returns, or nothing of it is.

Doesn't know Paxos: it checks only that nothing goes back (a promise, the chosen prefix,
the applied slot). Doesn't know what commands or bodies mean. To be used by one thread.

Checksums stand on what a damaged disk must not change unnoticed: the promise, the
founding entry, the memberships and each accepted value (CRC-32), archives (SHA-256).
The rows of the mirror have none; a state that differs is found by its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.effects import LogEntry, Recovered
from tasksprint.consensus.founding import decode_founding
from tasksprint.coordination.rows import TABLES, Key, Row, garbage_ranges
from tasksprint.errors import SettingsError, StoreError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tasksprint.store.database import Cell, Cursor, Database, DirectoryLock, Kind
from tasksprint.store.many_rows import Upsert
from tasksprint.store.mirror_snapshot import MirrorSnapshot
from tasksprint.store.mirror_tables import (
    DELETES,
    MIRROR_SCHEMA,
    UPSERTS,
    add_piece,
    delete_range,
    drop_side_tables,
    has_side_tables,
    make_side_tables,
    page_of_range,
    rows_of_range,
    rows_that_begin_so,
    side_name,
    swap_tables,
)
from tasksprint.store.records import AppliedPoint, Commit, Recovery

__all__ = ["ReplicaStore"]

DATABASE_FILE = "replica.db"
_LOCK = "replica.lock"
_BLOB_CHUNK_BYTES = 1024 * 1024
_SLOTS_END = 2**63 - 1  # beyond every slot
# Rows of ended jobs that one commit deletes besides its own work (0.3 ms), and that one
# step of idle work does.
_GARBAGE_ROWS_OF_COMMIT = 100
_GARBAGE_ROWS_OF_STEP = 2_000

_SCHEMA = """
CREATE TABLE header (
  one INTEGER PRIMARY KEY CHECK (one = 1), replica INTEGER NOT NULL, cluster TEXT,
  incarnation TEXT NOT NULL, created_ms INTEGER NOT NULL,
  founding BLOB, founding_checksum INTEGER,
  memberships BLOB, memberships_checksum INTEGER
) STRICT;
CREATE TABLE progress (
  one INTEGER PRIMARY KEY CHECK (one = 1), promised_round INTEGER, promised_replica INTEGER,
  chosen_end INTEGER NOT NULL, log_start INTEGER NOT NULL,
  applied_slot INTEGER NOT NULL, digest TEXT NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE log (
  slot INTEGER PRIMARY KEY, round INTEGER NOT NULL, replica INTEGER NOT NULL,
  value BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE blob_chunks (
  id INTEGER PRIMARY KEY, digest TEXT NOT NULL REFERENCES blobs ON DELETE CASCADE,
  number INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (digest, number)
) STRICT;
"""


_KIND = Kind(
    what="replica store",
    application_id=0x54535250,  # "TSRP"
    format=2,
    schema=_SCHEMA + MIRROR_SCHEMA,
    page_bytes=4096,
    synchronous=2,
)
_UPSERT_LOG = Upsert("log", ("slot",), ("round", "replica", "value", "checksum"))


def _log_checksum(slot: int, round_: int, replica: int, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(b"%d %d %d" % (slot, round_, replica)))


class ReplicaStore:
    """The open store of one replica; `open` makes or opens it.

    A write that fails ends the store: what is in memory and what is on the disk may
    differ from then on, so every later commit is refused.
    """

    def __init__(self, database: Database, lock: DirectoryLock, settings: Settings) -> None:
        self._database = database
        self._lock = lock
        self._settings = settings
        self._has_failed = False
        with_founding = database.query(
            "SELECT incarnation, cluster, founding, founding_checksum,"
            " memberships, memberships_checksum FROM header"
        )
        with_progress = database.query(
            "SELECT promised_round, promised_replica, chosen_end, log_start, applied_slot,"
            " digest, checksum FROM progress"
        )
        if len(with_founding) != 1 or len(with_progress) != 1:
            raise self._damage("tables 'header' and 'progress' have not one row each")
        incarnation, cluster, founding, founding_checksum, *rest = with_founding[0]
        memberships, memberships_checksum = rest
        assert isinstance(incarnation, str)
        assert cluster is None or isinstance(cluster, str)
        assert founding is None or isinstance(founding, bytes)
        if founding is not None and zlib.crc32(founding) != founding_checksum:
            raise self._damage("the founding entry in table 'header' fails its checksum")
        self._incarnation = Incarnation(incarnation)
        assert memberships is None or isinstance(memberships, bytes)
        if memberships is not None and zlib.crc32(memberships) != memberships_checksum:
            raise self._damage("the memberships in table 'header' fail their checksum")
        self._memberships = memberships
        self._cluster, self._founding = cluster, founding
        *progress, checksum = with_progress[0]
        round_, replica, chosen_end, log_start, applied_slot, digest = progress
        if zlib.crc32(repr(tuple(progress)).encode()) != checksum:
            raise self._damage("the promise in table 'progress' fails its checksum")
        assert isinstance(chosen_end, int) and isinstance(log_start, int)
        assert isinstance(applied_slot, int) and isinstance(digest, str)
        self._promised: Ballot | None = None
        if round_ is not None:
            assert isinstance(round_, int) and isinstance(replica, int)
            self._promised = Ballot(round_, ReplicaId(replica))
        self._chosen_end = chosen_end
        self._log_start = log_start
        self._applied = AppliedPoint(applied_slot, digest)
        if has_side_tables(database):  # of a copy that a crash cut off
            with database.transaction() as cursor:
                drop_side_tables(cursor)
        self._garbage = self._read_garbage()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        replica: int,
        *,
        now_ms: int,
        cluster: str | None = None,
        incarnation: str | None = None,
        settings: Settings | None = None,
    ) -> ReplicaStore:
        """Make or open the store of `replica` in a directory.

        Args:
            data_dir: Made if it isn't there.
            replica: Whose store it is; written down when it is made.
            now_ms: Wall time, kept for people as the time of making.
            cluster: The cluster's name where the caller knows one, to be compared.
            incarnation: For a new store; by default random. For simulations.
            settings: Lock time and sizes of the write-ahead log.

        Raises:
            SettingsError: In use by another process, or it belongs to another replica
                or cluster.
            StoreError: It can't be made, opened, written, or trusted.
        """
        lock = DirectoryLock(data_dir, _LOCK)
        try:
            path = data_dir / DATABASE_FILE
            database = Database(
                path,
                _KIND,
                settings or Settings(),
                fill=lambda cursor: _fill(
                    cursor, replica, now_ms, incarnation or secrets.token_hex(8)
                ),
            )
            try:
                _check_owner(database, replica, cluster)
                return cls(database, lock, settings or Settings())
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open_there(cls, data_dir: Path, *, settings: Settings | None = None) -> ReplicaStore:
        """Open the store that is in a directory, whosever it is; make nothing.

        Raises:
            SettingsError: There is none, or a process uses it.
            StoreError: It can't be read, or be trusted.
        """
        path = data_dir / DATABASE_FILE
        if not path.is_file():
            raise SettingsError(
                f"{str(data_dir)!r} holds no data of a coordinator: it has no {DATABASE_FILE!r}",
                hint="name the --data-dir of one",
            )
        lock = DirectoryLock(data_dir, _LOCK)
        try:
            database = Database(path, _KIND, settings or Settings())
            try:
                return cls(database, lock, settings or Settings())
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.release()
            raise

    @property
    def replica(self) -> ReplicaId:
        """Whose store it is."""
        ((replica,),) = self._database.query("SELECT replica FROM header")
        assert isinstance(replica, int)
        return ReplicaId(replica)

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def applied(self) -> AppliedPoint:
        """How far the mirror goes."""
        return self._applied

    @property
    def transactions(self) -> int:
        """How many transactions were committed since it was opened."""
        return self._database.transactions

    def _damage(self, what: str) -> StoreError:
        return StoreError(
            f"replica store {str(self._database.path)!r} is damaged: {what}",
            hint="this replica can't be trusted any more; move its data directory away "
            "and replace the member",
        )

    # --- reading ---

    def recover(self, *, after_slot: int = 0) -> Recovery:
        """Return everything that the store remembers.

        Args:
            after_slot: Accepted values up to this slot are left out.

        Raises:
            StoreError: An accepted value fails its checksum.
        """
        applied_end = self._applied.slot + 1
        return Recovery(
            consensus=Recovered(
                incarnation=self._incarnation,
                founding=self._founding,
                memberships=self._memberships,
                promised=self._promised,
                accepted=tuple(self._log(after_slot + 1, _SLOTS_END)),
                chosen_end=Slot(max(self._chosen_end, applied_end)),
                applied_end=Slot(applied_end),
                log_start=Slot(self._log_start),
            ),
            cluster=self._cluster,
            applied=self._applied,
            rows=self._all_rows(),
        )

    def _log(self, first_slot: int, end_slot: int) -> Iterator[LogEntry]:
        for slot, round_, replica, value, checksum in self._database.iterate(
            "SELECT slot, round, replica, value, checksum FROM log"
            " WHERE slot >= ? AND slot < ? ORDER BY slot",
            (max(first_slot, self._log_start), end_slot),
        ):
            assert isinstance(slot, int) and isinstance(value, bytes)
            assert isinstance(round_, int) and isinstance(replica, int)
            if _log_checksum(slot, round_, replica, value) != checksum:
                raise self._damage(f"slot {slot} of table 'log' fails its checksum")
            yield LogEntry(Slot(slot), Ballot(round_, ReplicaId(replica)), value)

    def _all_rows(self) -> Iterator[Row]:
        for name in TABLES:
            yield from self.read_range(name)

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        """As `Mirror.read_range`; use it up before the next commit."""
        return rows_of_range(self._database, table, first, end)

    def read_page(
        self, table: str, first: Key, end: Key, *, rows_max: int, bytes_max: int
    ) -> list[list[Cell]]:
        """Return the cells, keys first, of the first rows of a range, bounded by both.

        One row at least if there is one. For thousands of rows at once, on the thread
        of a writer beside a busy loop.
        """
        return page_of_range(self._database, table, first, end, rows_max, bytes_max)

    def read_rows(
        self, table: str, key_prefix: Key = (), *, limit: int | None = None, offset: int = 0
    ) -> list[Row]:
        """Return the mirror's rows whose keys begin so, in the order of their keys.

        For questions about what is not in memory any more, as the tasks of an ended job.
        """
        limit = -1 if limit is None else limit
        return list(rows_that_begin_so(self._database, table, key_prefix, limit, offset))

    def read_log(self, first_slot: int, end_slot: int, bytes_max: int) -> tuple[LogEntry, ...]:
        """Return accepted values of `first_slot <= slot < end_slot`, in order.

        Returns:
            As many as have `bytes_max` bytes together, but one at least if there is one.

        Raises:
            StoreError: One fails its checksum.
        """
        found: list[LogEntry] = []
        size = 0
        for row in self._log(first_slot, end_slot):
            size += len(row.value)
            if found and size > bytes_max:
                break
            found.append(row)
        return tuple(found)

    # --- writing ---

    def commit(self, commit: Commit) -> None:
        """Make one commit durable.

        Raises:
            StoreError: Nothing of it is; the store is not usable any more.
        """
        self.commit_all((commit,))

    def commit_all(self, commits: Sequence[Commit]) -> None:
        """Make several commits durable, in order, in one transaction."""
        assert not self._has_failed, "a store that failed is not written again"
        promised, founding, cluster = self._promised, self._founding, self._cluster
        memberships = self._memberships
        chosen_end, log_start, applied = self._chosen_end, self._log_start, self._applied
        accepted: dict[int, tuple[Ballot, bytes]] = {}
        changes: dict[str, dict[Key, tuple[Cell, ...] | None]] = {}
        blobs: list[tuple[str, bytes]] = []
        for commit in commits:
            for persist in commit.persists:
                if persist.promised is not None:
                    is_later = promised is None or persist.promised >= promised
                    assert is_later, "a promise never goes back"
                    promised = persist.promised
                for entry in persist.accepted:
                    accepted[entry.slot] = (entry.ballot, entry.value)
                if persist.chosen_end is not None:
                    assert persist.chosen_end >= chosen_end, "what was chosen stays chosen"
                    chosen_end = persist.chosen_end
                if persist.founding is not None:
                    founding = persist.founding
                if persist.memberships is not None:
                    memberships = persist.memberships
            for row in commit.rows:
                changes.setdefault(row.table, {})[row.key] = row.columns
            if commit.applied is not None:
                assert commit.applied.slot >= applied.slot, "what was applied stays applied"
                applied = commit.applied
            if commit.truncate_below is not None:
                log_start = max(log_start, commit.truncate_below)
                assert log_start <= applied.slot + 1, "what isn't applied is still needed"
            if commit.cluster is not None:
                cluster = commit.cluster
            blobs.extend(commit.blobs)
        before = (self._promised, self._chosen_end, self._log_start, self._applied)
        try:
            with self._database.transaction() as cursor:
                if accepted:
                    cells: list[Cell] = []
                    for slot, (of, value) in accepted.items():
                        checksum = _log_checksum(slot, of.round, of.replica, value)
                        cells += (slot, of.round, of.replica, value, checksum)
                    _UPSERT_LOG.run(cursor, cells)
                for table, rows in changes.items():
                    self._write_rows(cursor, table, rows)
                if log_start > self._log_start:
                    cursor.execute("DELETE FROM log WHERE slot < ?", (log_start,))
                self._note_garbage(changes.get("garbage"))
                self._collect_garbage(cursor, _GARBAGE_ROWS_OF_COMMIT)
                for digest, data in blobs:
                    self._write_blob(cursor, digest, data)
                if (founding, cluster) != (self._founding, self._cluster):
                    cursor.execute(
                        "UPDATE header SET cluster = ?, founding = ?, founding_checksum = ?",
                        (cluster, founding, None if founding is None else zlib.crc32(founding)),
                    )
                if memberships != self._memberships:
                    _write_memberships(cursor, memberships)
                if (promised, chosen_end, log_start, applied) != before:
                    _write_progress(cursor, promised, chosen_end, log_start, applied)
        except BaseException:
            self._has_failed = True
            raise
        self._promised, self._founding, self._cluster = promised, founding, cluster
        self._memberships = memberships
        self._chosen_end, self._log_start, self._applied = chosen_end, log_start, applied

    @staticmethod
    def _write_rows(cursor: Cursor, table: str, rows: dict[Key, tuple[Cell, ...] | None]) -> None:
        written: list[Cell] = []
        deleted: list[Cell] = []
        for key, columns in rows.items():
            if columns is None:
                deleted += key
            else:
                written += key
                written += columns
        # The keys of both differ, so their order doesn't matter.
        UPSERTS[table].run(cursor, written)
        DELETES[table].run(cursor, deleted)

    def truncate_log(self, below_slot: int) -> None:
        """Forget accepted values below a slot; all of them must have been applied."""
        self.commit(Commit(truncate_below=below_slot))

    # --- rows that nobody needs any more ---

    def _read_garbage(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for row in self.read_range("garbage"):
            assert row.columns is not None
            found[int(row.key[0])] = str(row.columns[0])
        return {job: what for job, what in found.items() if garbage_ranges(job, what)}

    def _note_garbage(self, rows: dict[Key, tuple[Cell, ...] | None] | None) -> None:
        for (job,), columns in (rows or {}).items():
            what = "" if columns is None else str(columns[0])
            if garbage_ranges(int(job), what):
                self._garbage[int(job)] = what

    def _collect_garbage(self, cursor: Cursor, rows_max: int) -> None:
        """Delete some rows that "garbage" gives free, in the transaction of the caller."""
        while self._garbage and rows_max > 0:
            job, what = next(iter(self._garbage.items()))
            for table, first, end in garbage_ranges(job, what):
                rows_max -= delete_range(cursor, table, first, end, rows_max)
                if rows_max <= 0:
                    return
            cursor.execute("DELETE FROM garbage WHERE job = ?", (job,))
            del self._garbage[job]
            rows_max -= 1

    # --- a copy of another replica's mirror ---

    def open_snapshot(self) -> MirrorSnapshot:
        """Open the mirror as it is now, for reading beside the commits that follow.

        It may be used by another thread; close it soon.
        """
        return MirrorSnapshot(self.path, _KIND, self._settings)

    def begin_copy(self) -> None:
        """Make room for a copy beside the mirror; what was there of another one is dropped."""
        with self._writing() as cursor:
            make_side_tables(cursor)

    def add_copied(self, table: str, text: bytes) -> None:
        """Keep a piece of the copy, as `MirrorSnapshot.piece` made it.

        A copy doesn't outlast the process: who opens the file again begins a new one.
        """
        with self._writing() as cursor:
            add_piece(cursor, table, text.decode())

    def read_copied(self, table: str, key: Key) -> Row | None:
        """Return one row of the copy."""
        end = (*key[:-1], key[-1] + 1) if isinstance(key[-1], int) else (*key[:-1], key[-1] + " ")
        found = rows_of_range(self._database, table, key, end, name=side_name(table))
        return next(iter([row for row in found if row.key == key]), None)

    def install_copy(self, applied: AppliedPoint, memberships: bytes | None = None) -> None:
        """Put the copy in the mirror's place: it holds the state up to `applied`.

        What this replica promised and accepted stays as it is, but for the entries that
        the copy covers: those are chosen, and no acceptor speaks for them any more.

        Args:
            memberships: Who votes, as the replica that was copied knew it
                (`MirrorSnapshot.memberships`); None: it was of the founding members, too.

        Raises:
            StoreError: Nothing of it is done; the store is not usable any more.
        """
        assert applied.slot > self._applied.slot, "a copy leads on, never back"
        log_start = max(self._log_start, applied.slot + 1)
        with self._writing() as cursor:
            swap_tables(cursor)
            cursor.execute("DELETE FROM log WHERE slot < ?", (log_start,))
            _write_progress(cursor, self._promised, self._chosen_end, log_start, applied)
            if memberships is not None:
                _write_memberships(cursor, memberships)
        self._memberships = memberships if memberships is not None else self._memberships
        self._applied, self._log_start = applied, log_start
        self._garbage = self._read_garbage()

    def drop_copy(self) -> None:
        """Give up a copy."""
        with self._writing() as cursor:
            drop_side_tables(cursor)

    # --- a new life ---

    def begin_anew(self, founding: bytes, cluster: str, commit: Commit) -> None:
        """Make this the store of a replica of another cluster, in a new incarnation.

        In one transaction: a crash leaves the former store or the new one, whole. The log
        is gone: what it says is in the mirror, up to `commit.applied`, or is given up.

        Args:
            founding: The founding entry of the new cluster; who votes stands there alone.
            cluster: Its name.
            commit: `rows` of the mirror that change, and `applied` with them.

        Raises:
            StoreError: Nothing of it is done; the store is not usable any more.
        """
        applied = commit.applied
        assert applied is not None and applied.slot >= self._applied.slot
        log_start = applied.slot + 1
        incarnation = Incarnation(decode_founding(founding).members[0].incarnation)
        changes: dict[str, dict[Key, tuple[Cell, ...] | None]] = {}
        for row in commit.rows:
            changes.setdefault(row.table, {})[row.key] = row.columns
        with self._writing() as cursor:
            for table, rows in changes.items():
                self._write_rows(cursor, table, rows)
            cursor.execute("DELETE FROM log")
            cursor.execute(
                "UPDATE header SET incarnation = ?, cluster = ?, founding = ?,"
                " founding_checksum = ?",
                (incarnation, cluster, founding, zlib.crc32(founding)),
            )
            _write_memberships(cursor, None)
            _write_progress(cursor, self._promised, log_start, log_start, applied)
        self._incarnation, self._founding, self._cluster = incarnation, founding, cluster
        self._memberships, self._applied = None, applied
        self._chosen_end = self._log_start = log_start
        self._garbage = self._read_garbage()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Cursor]:
        """A transaction whose failure ends the store."""
        assert not self._has_failed, "a store that failed is not written again"
        try:
            with self._database.transaction() as cursor:
                yield cursor
        except BaseException:
            self._has_failed = True
            raise

    # --- archives of jobs ---

    def put_blob(self, digest: str, data: bytes) -> None:
        """Keep an archive under the SHA-256 of its bytes; one that is there stays."""
        self.commit(Commit(blobs=((digest, data),)))

    @staticmethod
    def _write_blob(cursor: Cursor, digest: str, data: bytes) -> None:
        assert hashlib.sha256(data).hexdigest() == digest, "a blob is named by its SHA-256"
        cursor.execute(
            "INSERT INTO blobs VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1",
            (digest, len(data)),
        )
        if cursor.fetchone() is None:
            return
        view = memoryview(data)
        for number, first in enumerate(range(0, len(data), _BLOB_CHUNK_BYTES)):
            cursor.execute(
                "INSERT INTO blob_chunks (digest, number, data) VALUES (?, ?, ?)",
                (digest, number, view[first : first + _BLOB_CHUNK_BYTES]),
            )

    def has_blob(self, digest: str) -> bool:
        """Return whether an archive is there."""
        return bool(self._database.query("SELECT 1 FROM blobs WHERE digest = ?", (digest,)))

    def read_blob(self, digest: str) -> bytes | None:
        """Return an archive, or None if it isn't there.

        Raises:
            StoreError: It is there, and isn't what its digest says.
        """
        if not self.has_blob(digest):
            return None
        data = b"".join(
            chunk
            for (chunk,) in self._database.iterate(
                "SELECT data FROM blob_chunks WHERE digest = ? ORDER BY number", (digest,)
            )
            if isinstance(chunk, bytes)
        )
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._damage(f"blob {digest} of table 'blob_chunks' fails its checksum")
        return data

    def blobs(self) -> list[str]:
        """Return the digests of all archives."""
        found = self._database.query("SELECT digest FROM blobs ORDER BY digest")
        return [str(digest) for (digest,) in found]

    def drop_blob(self, digest: str) -> None:
        """Forget an archive; one that isn't there is no error."""
        with self._database.transaction() as cursor:
            cursor.execute("DELETE FROM blobs WHERE digest = ?", (digest,))

    # --- upkeep ---

    def checkpoint_if_due(self) -> bool:
        """Checkpoint if the write-ahead log is very long; call it after commits."""
        return self._database.checkpoint_if_due()

    @property
    def idle_work_is_due(self) -> bool:
        """Whether a quiet moment should be used for `do_idle_work`."""
        return bool(self._garbage) or self._database.checkpoint_is_due

    def do_idle_work(self) -> None:
        """Delete some rows that nobody needs, or copy the write-ahead log into the file."""
        if not self._garbage:
            self._database.checkpoint()
            return
        with self._writing() as cursor:
            self._collect_garbage(cursor, _GARBAGE_ROWS_OF_STEP)
        self._database.checkpoint_if_due()

    def close(self) -> None:
        """Close the file and give the directory free."""
        try:
            self._database.close()
        finally:
            self._lock.release()


def _write_memberships(cursor: Cursor, memberships: bytes | None) -> None:
    checksum = None if memberships is None else zlib.crc32(memberships)
    cursor.execute(
        "UPDATE header SET memberships = ?, memberships_checksum = ?", (memberships, checksum)
    )


def _fill(cursor: Cursor, replica: int, now_ms: int, incarnation: str) -> None:
    progress = (None, None, 1, 1, 0, "")
    cursor.execute(
        "INSERT INTO header (one, replica, incarnation, created_ms) VALUES (1, ?, ?, ?)",
        (replica, incarnation, now_ms),
    )
    cursor.execute(
        "INSERT INTO progress VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        (*progress, zlib.crc32(repr(progress).encode())),
    )


def _write_progress(
    cursor: Cursor,
    promised: Ballot | None,
    chosen_end: int,
    log_start: int,
    applied: AppliedPoint,
) -> None:
    progress: tuple[Cell, ...] = (
        promised.round if promised else None,
        promised.replica if promised else None,
        chosen_end,
        log_start,
        applied.slot,
        applied.digest,
    )
    cursor.execute(
        "UPDATE progress SET promised_round = ?, promised_replica = ?, chosen_end = ?,"
        " log_start = ?, applied_slot = ?, digest = ?, checksum = ?",
        (*progress, zlib.crc32(repr(progress).encode())),
    )


def _check_owner(database: Database, replica: int, cluster: str | None) -> None:
    for found_replica, found_cluster in database.query("SELECT replica, cluster FROM header"):
        is_other = cluster is not None and found_cluster is not None and cluster != found_cluster
        if found_replica == replica and not is_other:
            continue
        of = f" of cluster {found_cluster!r}" if found_cluster is not None else ""
        me = f" of cluster {cluster!r}" if cluster is not None else ""
        raise SettingsError(
            f"cannot open replica store {str(database.path)!r}: it belongs to "
            f"replica {found_replica!r}{of}, this is replica {replica}{me}",
            hint="give this replica its own --data-dir",
        )
