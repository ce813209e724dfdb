"""All that one replica may not forget, in one SQLite file: `replica.db`.

Keeps the promise, the accepted values, how far the log is known chosen, the founding entry and
the voters since then. Keeps also the mirror of the replicated state, the slot up to which it
was applied, and the archives of jobs. When `commit` returns, everything of one `Commit` is on
the disk (`synchronous=FULL`), or nothing of it is.

Doesn't know Paxos: it checks only that nothing goes back (a promise, the chosen prefix,
the applied slot). Doesn't know what commands or bodies mean. To be used by one thread.

Everything has a checksum, which is compared at each reading. A CRC-32 covers the owner's name,
the promise, each accepted value (vital.py) and each row of the mirror (mirror_tables.py).
Archives have a SHA-256. Consequences of damage:

- the promise, or an acceptance that nobody knows to be chosen: this replica counts as lost;
- an entry that was chosen: it is left out, and fetched again from the other members;
- the mirror: `StoreDamaged`. Once that is noted (`note_damage`), the next `open` looks for
  whole parts (repair.py): the state is dropped, and taken from the other members.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tasksprint.consensus.effects import Recovered
from tasksprint.consensus.founding import decode_founding, older_disk
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.coordination.rows import TABLES, Key, Row, garbage_ranges
from tasksprint.errors import SettingsError, StoreDamaged, StoreError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tasksprint.store.blobs import blob_digests, drop_blob, read_blob, write_blob
from tasksprint.store.database import Cell, Cursor, Database, DirectoryLock, damaged_store
from tasksprint.store.durable_mark import DurableMark, LeftLog, find_doubts
from tasksprint.store.mirror_snapshot import MirrorSnapshot
from tasksprint.store.mirror_tables import (
    DELETES,
    UPSERTS,
    add_piece,
    delete_range,
    drop_side_tables,
    find_row,
    has_side_tables,
    make_side_tables,
    page_of_range,
    row_checksum,
    rows_of_range,
    side_name,
    swap_tables,
)
from tasksprint.store.records import AppliedPoint, Commit, Recovery
from tasksprint.store.repair import (
    damage_of_state,
    note_damage,
    refuse_half_repaired,
    repair,
)
from tasksprint.store.scrub import Scrub
from tasksprint.store.vital import (
    DATABASE_FILE,
    NO_PROGRESS,
    REPLICA_KIND,
    Header,
    OpenEntries,
    Progress,
    is_only_member,
    log_checksum,
    log_rows,
    lost_store,
    only_member_lost,
    read_header,
    read_progress,
    write_header,
    write_log,
    write_progress,
)

__all__ = ["ReplicaStore"]

_LOCK = "replica.lock"
# Rows of ended jobs that are deleted by one commit besides its own work (0.3 ms), and by one
# step of idle work.
_GARBAGE_ROWS_OF_COMMIT = 100
_GARBAGE_ROWS_OF_STEP = 2_000


class ReplicaStore:
    """The open store of one replica; `open` makes or opens it.

    A write that fails ends the store: from then on memory and disk may differ. So every
    later write is refused with the same error.
    """

    def __init__(
        self,
        database: Database,
        lock: DirectoryLock,
        settings: Settings,
        repairs: tuple[str, ...] = (),
        mark: DurableMark | None = None,
        left: LeftLog | None = None,
    ) -> None:
        self.repairs = repairs  # what `open` did about a damage, for the operator
        self.doubts: str | None = None  # why acknowledged work may be missing
        self._mark = mark
        self._left = left
        self._database = database
        self._lock = lock
        self._settings = settings
        self.failure: BaseException | None = None  # the write that ended the store
        self._header = read_header(database)
        self._progress = read_progress(database, self._header.replica)
        self._open = OpenEntries()
        self._count_open()
        self._garbage = self._read_garbage()
        self._scrub = Scrub(database, settings)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        replica: int,
        *,
        now_ms: int,
        incarnation: str | None = None,
        settings: Settings | None = None,
    ) -> ReplicaStore:
        """Make or open the store of `replica` in a directory.

        Args:
            data_dir: Made if it isn't there.
            replica: The owner; written down when the store is made.
            now_ms: Wall time, kept for people as the time of making.
            incarnation: For a new store; by default random. For simulations.
            settings: Lock time and sizes of the write-ahead log.

        Raises:
            SettingsError: In use by another process, or it belongs to another replica.
            StoreDamaged: Part of it is spoiled. This is noted; opening the store once more
                finds out which parts are whole.
            StoreError: It can't be made, opened, written, or trusted.
        """
        lock = DirectoryLock(data_dir, _LOCK)
        try:
            repairs = repair(data_dir, replica, settings or Settings())
            left = LeftLog(data_dir / DATABASE_FILE)
            new = Header(replica, incarnation or secrets.token_hex(8), now_ms)
            database = Database(
                data_dir / DATABASE_FILE,
                REPLICA_KIND,
                settings or Settings(),
                fill=lambda cursor: _fill(cursor, new),
            )
            try:
                _check_owner(database, replica)
                mark = DurableMark(data_dir)
                store = cls(database, lock, settings or Settings(), repairs, mark, left)
                store._look_for_doubts(left, mark)
                store._tidy()
                return store
            except BaseException:
                database.close()
                left.close()
                raise
        except StoreDamaged as error:
            note_damage(data_dir, error)
            lock.release()
            raise
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open_there(cls, data_dir: Path, *, settings: Settings | None = None) -> ReplicaStore:
        """Open the store in a directory, whoever owns it; make and mend nothing.

        A note of damage stays unread. A repair drops data that the other members can give again,
        and the caller (rescue/recover.py) may have no other members left.

        Raises:
            SettingsError: There is none, or a process uses it.
            StoreDamaged: Part of it is spoiled.
            StoreError: It can't be read, or be trusted.
        """
        path = data_dir / DATABASE_FILE
        refuse_half_repaired(data_dir)
        if not path.is_file():
            raise SettingsError(
                f"{str(data_dir)!r} holds no data of a coordinator: it has no {DATABASE_FILE!r}",
                hint="name the --data-dir of one",
            )
        lock = DirectoryLock(data_dir, _LOCK)
        try:
            database = Database(path, REPLICA_KIND, settings or Settings(), must_be_there=True)
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
        """The owner of the store."""
        return ReplicaId(self._header.replica)

    def _look_for_doubts(self, left: LeftLog, mark: DurableMark) -> None:
        """Find out whether durable writes are missing.

        Raises:
            StoreError: They are, and other members may rely on them.
        """
        found, is_new = self._progress.durable, self._database.is_new
        doubts = find_doubts(left, mark, number=found, is_new=is_new)
        is_member = self._header.founding is not None and not is_only_member(self._header)
        if is_member and found < mark.number:
            text = older_disk(self.replica, found, "this machine", mark.number)
            raise StoreError(text)
        self.doubts = doubts

    def _count_open(self) -> None:
        """Begin the account of acceptances that aren't known to be chosen.

        Raises:
            StoreError: Some of it is damaged or gone.
        """
        progress = self._progress
        open_from = progress.open_from
        try:
            for slot, entry in log_rows(self._database, open_from):
                if entry is None:
                    raise self._lost(f"slot {slot} of table 'log' fails its checksum")
                self._open.put(slot, log_checksum(slot, entry.ballot, entry.value))
        except StoreDamaged as error:
            raise self._lost(f"table 'log' can't be read: {error.args[0]}") from error
        found = self._open.count, self._open.checksum
        if found != (progress.open_count, progress.open_checksum):
            raise self._lost(
                f"table 'log' has {self._open.count} values accepted from slot {open_from} on, "
                f"expected {progress.open_count}, or others"
            )

    def _tidy(self) -> None:
        """Delete useless leftovers of a former life.

        Raises:
            StoreDamaged: Chosen entries can't be read: others have them, so it can be mended.
            StoreError: A chosen entry of an only member is damaged or gone.
        """
        if has_side_tables(self._database):  # of a copy that a crash cut off
            with self._writing() as cursor:
                drop_side_tables(cursor)
        first, end = self._first_lost(), self._progress.open_from
        if first < end:
            if is_only_member(self._header):
                what = f"slot {first} of table 'log' is gone or fails its checksum"
                raise only_member_lost(self.path, what)
            # Chosen, but damaged. They go: until they are fetched again, nobody shall take them
            # for a new damage.
            spoiled = [slot for slot, each in log_rows(self._database, first, end) if each is None]
            with self._writing() as cursor:
                cursor.executemany("DELETE FROM log WHERE slot = ?", [(slot,) for slot in spoiled])

    def _first_lost(self) -> int:
        """Return the first chosen slot, of those not applied, that isn't whole; the end: none."""
        expected = self._progress.applied.slot + 1
        for slot, entry in log_rows(self._database, expected, self._progress.open_from):
            if slot != expected or entry is None:
                break
            expected += 1
        return expected

    def _lost(self, what: str) -> StoreError:
        return lost_store(self.path, self._header.replica, what)

    def check_state(self) -> None:
        """Look through all of the mirror, as a repair does.

        Raises:
            StoreDamaged: Part of it is spoiled.
        """
        if (damage := damage_of_state(self._database)) is not None:
            raise self._damage(damage)

    def note_damage(self, error: StoreDamaged) -> None:
        """Remember that this file is damaged, for the next `open`; on any thread."""
        note_damage(self.path.parent, error)

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def applied(self) -> AppliedPoint:
        """How far the mirror goes."""
        return self._progress.applied

    @property
    def transactions(self) -> int:
        """How many transactions were committed since it was opened."""
        return self._database.transactions

    # --- reading ---

    def recover(self, *, after_slot: int = 0) -> Recovery:
        """Return everything that the store remembers.

        Args:
            after_slot: Accepted values up to this slot are left out.

        Raises:
            StoreDamaged: An accepted value that was applied fails its checksum, or a page of
                the log can't be read. One that is only chosen is left out.
        """
        header, progress = self._header, self._progress
        applied_end = progress.applied.slot + 1
        return Recovery(
            consensus=Recovered(
                incarnation=Incarnation(header.incarnation),
                founding=header.founding,
                memberships=header.memberships,
                skips=header.skips,
                promised=progress.promised,
                accepted=tuple(self._recovered_log(after_slot + 1)),
                chosen_end=Slot(self._first_lost()),
                applied_end=Slot(applied_end),
                log_start=Slot(progress.log_start),
                known_end=Slot(progress.open_from),
                durable=progress.durable,
                marks=None if progress.marks is None else progress.marks.encode(),
            ),
            cluster=header.cluster,
            applied=progress.applied,
            rows=self._all_rows(),
        )

    def _recovered_log(self, first_slot: int) -> Iterator[LogEntry]:
        """Yield the whole entries; the others were applied before, or are fetched again."""
        progress = self._progress
        for slot, entry in log_rows(self._database, max(first_slot, progress.log_start)):
            if entry is not None:
                yield entry
            elif slot <= progress.applied.slot:
                raise self._damage(f"slot {slot} of table 'log' fails its checksum")

    def _damage(self, what: str) -> StoreDamaged:
        return damaged_store(self._database.path, self._database.kind, what)

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

    def read_log(self, first_slot: int, end_slot: int, bytes_max: int) -> tuple[LogEntry, ...]:
        """Return accepted values of `first_slot <= slot < end_slot`, in order.

        Returns:
            As many as have `bytes_max` bytes together, but one at least if there is one.

        Raises:
            StoreDamaged: One fails its checksum.
        """
        found: list[LogEntry] = []
        size = 0
        first_slot = max(first_slot, self._progress.log_start)
        for slot, entry in log_rows(self._database, first_slot, end_slot):
            if entry is None:
                raise self._damage(f"slot {slot} of table 'log' fails its checksum")
            size += len(entry.value)
            if found and size > bytes_max:
                break
            found.append(entry)
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
        self._refuse_after_failure()
        promised, durable, marks, chosen_end, log_start, _, _, applied = self._progress
        header = self._header
        accepted: dict[int, LogEntry] = {}
        changes: dict[str, dict[Key, tuple[Cell, ...] | None]] = {}
        blobs: list[tuple[str, bytes]] = []
        for commit in commits:
            for persist in commit.persists:
                if persist.promised is not None:
                    is_later = promised is None or persist.promised >= promised
                    assert is_later, "a promise never goes back"
                    promised = persist.promised
                for entry in persist.accepted:
                    accepted[entry.slot] = entry
                if persist.chosen_end is not None:
                    assert persist.chosen_end >= chosen_end, "what was chosen stays chosen"
                    chosen_end = persist.chosen_end
                if persist.durable is not None:
                    assert persist.durable > durable, "durable numbers grow"
                    durable = persist.durable
                if persist.marks is not None:
                    marks = persist.marks.decode()
                if persist.founding is not None:
                    header = replace(header, founding=persist.founding)
                if persist.memberships is not None:
                    header = replace(header, memberships=persist.memberships)
                if persist.skips is not None:
                    header = replace(header, skips=persist.skips)
            for row in commit.rows:
                changes.setdefault(row.table, {})[row.key] = row.columns
            if commit.applied is not None:
                assert commit.applied.slot >= applied.slot, "what was applied stays applied"
                applied = commit.applied
            if commit.truncate_below is not None:
                log_start = max(log_start, commit.truncate_below)
                assert log_start <= applied.slot + 1, "what isn't applied is still needed"
            if commit.cluster is not None and commit.cluster != header.cluster:
                header = replace(header, cluster=commit.cluster)
            blobs.extend(commit.blobs)
        try:
            with self._database.transaction() as cursor:
                written: list[tuple[LogEntry, int]] = []
                for slot, entry in accepted.items():
                    checksum = log_checksum(slot, entry.ballot, entry.value)
                    written.append((entry, checksum))
                    self._open.put(slot, checksum)
                if written:
                    write_log(cursor, written)
                for table, rows in changes.items():
                    self._write_rows(cursor, table, rows)
                if log_start > self._progress.log_start:
                    cursor.execute("DELETE FROM log WHERE slot < ?", (log_start,))
                self._note_garbage(changes.get("garbage"))
                self._collect_garbage(cursor, _GARBAGE_ROWS_OF_COMMIT)
                for digest, data in blobs:
                    write_blob(cursor, digest, data)
                if header is not self._header:
                    write_header(cursor, header)
                self._open.drop_below(max(chosen_end, applied.slot + 1))
                progress = Progress(
                    promised,
                    durable,
                    marks,
                    chosen_end,
                    log_start,
                    self._open.count,
                    self._open.checksum,
                    applied,
                )
                if progress != self._progress:
                    write_progress(cursor, progress)
        except BaseException as error:
            self.failure = error
            raise
        self._header, self._progress = header, progress
        if self._mark is not None:
            self._mark.write(durable)

    @staticmethod
    def _write_rows(cursor: Cursor, table: str, rows: dict[Key, tuple[Cell, ...] | None]) -> None:
        written: list[Cell] = []
        deleted: list[Cell] = []
        for key, columns in rows.items():
            if columns is None:
                deleted += key
            else:
                cells = key + columns
                written += cells
                written.append(row_checksum(table, cells))
        # The keys of both differ, so their order doesn't matter.
        UPSERTS[table].run(cursor, written)
        DELETES[table].run(cursor, deleted)

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
        """Delete some of the rows that "garbage" names, in the caller's transaction."""
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

        It may be used by another thread; close it soon. Facts outside of the mirror come from
        memory: they were read and compared at the start, or written since.
        """
        return MirrorSnapshot(
            self.path,
            REPLICA_KIND,
            self._settings,
            applied=self._progress.applied,
            cluster=self._header.cluster,
            memberships=self._header.memberships,
        )

    def begin_copy(self) -> None:
        """Make room for a copy beside the mirror; the rest of another copy is dropped."""
        with self._writing() as cursor:
            make_side_tables(cursor)

    def add_copied(self, table: str, text: bytes) -> None:
        """Keep a piece of the copy, as `MirrorSnapshot.piece` made it.

        A copy doesn't outlast the process: the next process begins a new one.
        """
        with self._writing() as cursor:
            add_piece(cursor, table, text.decode())

    def read_copied(self, table: str, key: Key) -> Row | None:
        """Return one row of the copy."""
        return find_row(self._database, table, key, name=side_name(table))

    def install_copy(self, applied: AppliedPoint, memberships: bytes | None = None) -> None:
        """Put the copy in the mirror's place: it holds the state up to `applied`.

        This replica's promise and acceptances stay as they are, but not for entries that the
        copy covers. Those are chosen, and no acceptor speaks for them any more.

        Args:
            memberships: The voters, as known to the replica that was copied
                (`MirrorSnapshot.memberships`); None: they are the founding members still.

        Raises:
            StoreError: Nothing of it is done; the store is not usable any more.
        """
        before = self._progress
        assert applied.slot > before.applied.slot, "a copy leads on, never back"
        log_start = max(before.log_start, applied.slot + 1)
        header = self._header
        if memberships is not None:
            header = replace(header, memberships=memberships)
        with self._writing() as cursor:
            swap_tables(cursor)
            cursor.execute("DELETE FROM log WHERE slot < ?", (log_start,))
            self._open.drop_below(log_start)
            progress = before._replace(
                log_start=log_start,
                open_count=self._open.count,
                open_checksum=self._open.checksum,
                applied=applied,
            )
            write_progress(cursor, progress)
            write_header(cursor, header)
        self._header, self._progress = header, progress
        self._garbage = self._read_garbage()

    def drop_copy(self) -> None:
        """Give up a copy."""
        with self._writing() as cursor:
            drop_side_tables(cursor)

    # --- a new life ---

    def begin_anew(self, founding: bytes, cluster: str, commit: Commit) -> None:
        """Make this the store of a replica of another cluster, in a new incarnation.

        In one transaction: a crash leaves the former store or the new one, whole. The log
        is gone: its contents are in the mirror, up to `commit.applied`, or are given up.

        Args:
            founding: The founding entry of the new cluster; it alone names the voters.
            cluster: Its name.
            commit: `rows` of the mirror that change, and `applied` with them.

        Raises:
            StoreError: Nothing of it is done; the store is not usable any more.
        """
        applied, before = commit.applied, self._progress
        assert applied is not None and applied.slot >= before.applied.slot
        log_start = applied.slot + 1
        header = replace(
            self._header,
            incarnation=decode_founding(founding).members[0].incarnation,
            cluster=cluster,
            founding=founding,
            memberships=None,
        )
        self._open = OpenEntries()
        progress = before._replace(
            marks=None,
            chosen_end=log_start,
            log_start=log_start,
            open_count=0,
            open_checksum=0,
            applied=applied,
        )
        changes: dict[str, dict[Key, tuple[Cell, ...] | None]] = {}
        for row in commit.rows:
            changes.setdefault(row.table, {})[row.key] = row.columns
        with self._writing() as cursor:
            for table, rows in changes.items():
                self._write_rows(cursor, table, rows)
            cursor.execute("DELETE FROM log")
            write_header(cursor, header)
            write_progress(cursor, progress)
        self._header, self._progress = header, progress
        self._garbage = self._read_garbage()

    def write_skips(self, skips: bytes) -> None:
        """Make durable the marks of commands that aren't to be applied (consensus/skips.py)."""
        header = replace(self._header, skips=skips)
        with self._writing() as cursor:
            write_header(cursor, header)
        self._header = header

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Cursor]:
        """A transaction; if it fails, the store ends."""
        self._refuse_after_failure()
        try:
            with self._database.transaction() as cursor:
                yield cursor
        except BaseException as error:
            self.failure = error
            raise

    def _refuse_after_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    # --- archives of jobs ---

    def put_blob(self, digest: str, data: bytes) -> None:
        """Keep an archive under the SHA-256 of its bytes; one that is there stays."""
        self.commit(Commit(blobs=((digest, data),)))

    def has_blob(self, digest: str) -> bool:
        """Return whether an archive is there."""
        return bool(self._database.query("SELECT 1 FROM blobs WHERE digest = ?", (digest,)))

    def read_blob(self, digest: str) -> bytes | None:
        """Return an archive, or None if it isn't there.

        Raises:
            StoreDamaged: It is there, and doesn't have its digest.
        """
        return read_blob(self._database, digest) if self.has_blob(digest) else None

    def blobs(self) -> list[str]:
        """Return the digests of all archives."""
        return blob_digests(self._database)

    def drop_blob(self, digest: str) -> None:
        """Forget an archive; one that isn't there is no error."""
        with self._writing() as cursor:
            drop_blob(cursor, digest)

    # --- upkeep ---

    def checkpoint_if_due(self) -> bool:
        """Checkpoint if the write-ahead log is very long; call it after commits."""
        return self._database.checkpoint_if_due()

    @property
    def idle_work_is_due(self) -> bool:
        """Whether a quiet moment should be used for `do_idle_work`."""
        return bool(self._garbage) or self._database.checkpoint_is_due or self._scrub.is_due

    def do_idle_work(self) -> None:
        """Delete some rows that nobody needs, tidy the files, or look at rows for damage."""
        if self._garbage:
            with self._writing() as cursor:
                self._collect_garbage(cursor, _GARBAGE_ROWS_OF_STEP)
            self._database.checkpoint_if_due()
        elif self._scrub.is_due and not self._database.checkpoint_is_due:
            self._scrub.step(self._progress.log_start)
        else:
            self._database.checkpoint()

    def close(self) -> None:
        """Close the file and give the directory free."""
        if self._mark is not None:
            self._mark.close()
        try:
            self._database.close()
        finally:
            if self._left is not None:
                self._left.close()
            self._lock.release()

    def close_whole(self) -> None:
        """Close it so that the file alone holds everything, and may get another name.

        Raises:
            StoreError: Part of it is beside the file still.
        """
        try:
            self._database.close_whole()
        finally:
            self.close()


def _fill(cursor: Cursor, header: Header) -> None:
    write_header(cursor, header)
    write_progress(cursor, NO_PROGRESS)


def _check_owner(database: Database, replica: int) -> None:
    header = read_header(database)
    if header.replica == replica:
        return
    of = f" of cluster {header.cluster!r}" if header.cluster is not None else ""
    raise SettingsError(
        f"cannot open replica store {str(database.path)!r}: it belongs to "
        f"replica {header.replica!r}{of}, this is replica {replica}",
        hint="give this replica its own --data-dir",
    )
