"""The replica's store on an imagined disk: for tests and the simulator.

Behaves as `replica_store` does, including what it refuses, and passes the same contract
tests. A `MemoryDirectory` stands for the data directory: it outlives the store, so a
crash is to forget the store (`MemoryDirectory.crash`) and to open the directory again.
Nothing here is faster or slower than memory; a slow disk is the simulator's business.

What can go wrong with the disk is said to the directory: it is full, it loses everything
(`wipe`), it is an older one (`image`, `put_back`), rows of it are spoiled or gone
(`damaged_slots`, `damaged_rows`, `is_progress_damaged`).
"""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.effects import Recovered
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.coordination.rows import TABLES, Key, Row, garbage_ranges
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import (
    DiskFull,
    LocalProtocolError,
    SettingsError,
    StoreDamaged,
    StoreError,
)
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tasksprint.store.database import Cell, damaged_store
from tasksprint.store.mirror_snapshot import CopyPiece
from tasksprint.store.mirror_tables import CopyPlace, next_place
from tasksprint.store.records import AppliedPoint, Commit, Recovery
from tasksprint.store.vital import (
    REPLICA_KIND,
    Header,
    is_only_member,
    lost_store,
    only_member_lost,
)

__all__ = ["MemoryDirectory", "MemoryReplicaStore", "MemorySnapshot"]

# As the real store's: what tests see of it should be alike.
_GARBAGE_ROWS_OF_COMMIT = 100
_GARBAGE_ROWS_OF_STEP = 2_000

_TYPES: dict[str, type] = {"INTEGER": int, "TEXT": str, "BLOB": bytes}


@dataclass(slots=True)
class _Content:
    """What is on the imagined disk."""

    replica: int
    incarnation: str
    cluster: str | None = None
    founding: bytes | None = None
    memberships: bytes | None = None
    skips: bytes | None = None
    promised: Ballot | None = None
    durable: int = 0
    marks: bytes | None = None
    chosen_end: int = 1
    log_start: int = 1
    applied: AppliedPoint = field(default_factory=lambda: AppliedPoint(0, ""))
    log: dict[int, LogEntry] = field(default_factory=dict)
    mirror: dict[str, dict[Key, tuple[Cell, ...]]] = field(
        default_factory=lambda: {name: {} for name in TABLES}
    )
    blobs: dict[str, bytes] = field(default_factory=dict)


class MemoryDirectory:
    """An imagined data directory of one replica."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.is_full = False  # every write fails from now on
        # What the disk has spoiled or lost; what is written anew is whole again.
        self.damaged_slots: set[int] = set()
        self.damaged_rows: set[tuple[str, Key]] = set()
        self.is_progress_damaged = False
        self.content: _Content | None = None  # None: nothing was ever written
        self._note: str | None = None  # somebody met damage
        self._is_open = False

    def open(
        self, replica: int, *, now_ms: int, incarnation: str, settings: Settings
    ) -> MemoryReplicaStore:
        """Open the store as the next process does; the last one is gone."""
        del settings  # They say how large files may be.
        return MemoryReplicaStore.open(self, replica, now_ms=now_ms, incarnation=incarnation)

    def crash(self, *, lost_power: bool = False) -> None:
        """End the process that has it open; what was committed stays."""
        del lost_power  # All is synced.
        self._is_open = False

    def tear(self, commits: Sequence[Commit]) -> None:
        """Do nothing: what is written in part isn't there."""

    def close(self) -> None:
        """Do nothing: there is no file."""

    def spoil_slot(self, slot: int) -> None:
        """Let an entry of the log fail its checksum."""
        self.damaged_slots.add(slot)

    def spoil_row(self, table: str, key: Key) -> None:
        """Let a row of the mirror fail its checksum."""
        self.damaged_rows.add((table, key))

    def spoil_progress(self) -> None:
        """Let the row with the promise fail its checksum."""
        self.is_progress_damaged = True

    def wipe(self) -> None:
        """Lose the disk."""
        self.put_back(None)

    def image(self) -> object:
        """Return what is on the disk now, for `put_back`."""
        return copy.deepcopy(self.content)

    def put_back(self, image: object) -> None:
        """Have an older disk; None: an empty one. Whoever has it open is gone."""
        assert image is None or isinstance(image, _Content)
        self.content = copy.deepcopy(image)
        self._note = None
        self._is_open = False
        self.damaged_slots.clear()
        self.damaged_rows.clear()
        self.is_progress_damaged = False


def _damaged(name: str, what: str) -> StoreDamaged:
    return damaged_store(Path(name), REPLICA_KIND, what)


class MemorySnapshot:
    """As `MirrorSnapshot`, of an imagined disk."""

    def __init__(self, directory: MemoryDirectory, content: _Content) -> None:
        self._name = directory.name
        self._damaged = frozenset(directory.damaged_rows)
        self.applied = content.applied
        self.cluster = content.cluster
        self.memberships = content.memberships
        # Rows are immutable: a copy of the dictionaries is a moment.
        self._mirror = {name: dict(rows) for name, rows in content.mirror.items()}

    def piece(self, place: CopyPlace, *, rows_max: int, bytes_max: int) -> CopyPiece:
        """As `MirrorSnapshot.piece`."""
        table, after = place
        rows: list[list[Cell]] = []
        size = 0
        last: Key = ()
        for row in self.read_range(table, after):
            if row.key == after:
                continue
            cells = [*row.key, *(row.columns or ())]
            size += _size(cells)
            if len(rows) == rows_max or (rows and size > bytes_max):
                break
            rows.append(cells)
            last = row.key
        return CopyPiece(table, len(rows), encode_json(rows), next_place(place, last))

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        """As `Mirror.read_range`."""
        return _range(self._mirror[table], table, first, end, self._damaged, self._name)

    def close(self) -> None:
        """Let go of the moment."""


def _size(cells: list[Cell]) -> int:
    """Return the bytes of a row, as SQLite counts them."""
    return sum(
        len(cell.encode()) if isinstance(cell, str) else len(str(cell))
        for cell in cells
        if cell is not None
    )


def _range(
    rows: dict[Key, tuple[Cell, ...]],
    table: str,
    first: Key,
    end: Key,
    damaged: AbstractSet[tuple[str, Key]],
    name: str,
) -> Iterator[Row]:
    # Keys of one table have the same types in the same places, by their declaration.
    for key in sorted(rows):
        if key[: len(first)] >= first and (not end or key[: len(end)] < end):
            if damaged and (table, key) in damaged:
                raise _damaged(name, f"row {key!r} of table {table!r} fails its checksum")
            yield Row(table, key, rows[key])


class MemoryReplicaStore:
    """As `ReplicaStore`; `open` makes or opens it."""

    def __init__(self, directory: MemoryDirectory, content: _Content) -> None:
        self._directory = directory
        self._content = content
        self.failure: BaseException | None = None  # as `ReplicaStore.failure`
        self._copy: dict[str, dict[Key, tuple[Cell, ...]]] | None = None
        self.transactions = 0
        self.repairs = self._repair()
        self.doubts: str | None = None
        self._check_open()

    # --- damage ---

    def note_damage(self, error: StoreDamaged) -> None:
        """As `ReplicaStore.note_damage`."""
        self._directory._note = str(error)

    def _lost(self, what: str) -> StoreError:
        return lost_store(self._directory.name, self._content.replica, what)

    def _open_from(self) -> int:
        return max(self._content.chosen_end, self._content.applied.slot + 1)

    def _is_whole(self, slot: int) -> bool:
        return slot in self._content.log and slot not in self._directory.damaged_slots

    def _is_only_member(self) -> bool:
        content = self._content
        return is_only_member(
            Header(
                content.replica,
                content.incarnation,
                0,
                founding=content.founding,
                memberships=content.memberships,
            )
        )

    def _check_open(self) -> None:
        directory, open_from = self._directory, self._open_from()
        if directory.is_progress_damaged:
            raise self._lost("the row of table 'progress' fails its checksum")
        for slot in sorted(directory.damaged_slots):
            if slot >= open_from:
                raise self._lost(f"slot {slot} of table 'log' fails its checksum")
        slot = self._first_lost()
        if slot < open_from and self._is_only_member():
            what = f"slot {slot} of table 'log' is gone or fails its checksum"
            raise only_member_lost(directory.name, what)

    def _first_lost(self) -> int:
        slot = self._content.applied.slot + 1
        while slot < self._open_from() and self._is_whole(slot):
            slot += 1
        return slot

    def _repair(self) -> tuple[str, ...]:
        """Do as `repair` does in a real directory; see there."""
        directory, content = self._directory, self._content
        if directory._note is None:
            return ()
        open_from, log_start, applied = self._open_from(), content.log_start, content.applied
        missing = [slot for slot in range(log_start, open_from) if not self._is_whole(slot)]
        done: tuple[str, ...] = ()
        if directory.damaged_rows:
            table, key = min(directory.damaged_rows, key=str)
            what = f"row {key!r} of table {table!r} fails its checksum"
            if log_start == 1 and not missing:
                done = (f"its state is made again from the log: {what}",)
            elif self._is_only_member():
                raise only_member_lost(directory.name, what)
            else:
                done = (f"its state is dropped, for a copy of another member's: {what}",)
                for slot in [slot for slot in content.log if slot < open_from]:
                    del content.log[slot]
                content.log_start = 1
            content.chosen_end, content.applied = open_from, AppliedPoint(0, "")
            content.mirror = {name: {} for name in TABLES}
            directory.damaged_rows.clear()
        elif tail_lost := [slot for slot in missing if slot <= applied.slot]:
            content.log_start = tail_lost[-1] + 1
            for slot in [slot for slot in content.log if slot < content.log_start]:
                del content.log[slot]
            done = (f"its log begins at slot {content.log_start} now: some before is lost",)
        directory.damaged_slots = {
            slot
            for slot in directory.damaged_slots
            if slot in content.log and slot >= content.log_start
        }
        directory._note = None
        return done

    @classmethod
    def open(
        cls,
        directory: MemoryDirectory,
        replica: int,
        *,
        now_ms: int,
        incarnation: str | None = None,
    ) -> MemoryReplicaStore:
        """Make or open the store of `replica` in an imagined directory.

        Raises:
            SettingsError: It is open, or it belongs to another replica.
        """
        if directory._is_open:
            raise SettingsError(
                f"data directory {directory.name!r} is in use by process 'memory'",
                hint="stop that process, or give this one its own --data-dir",
            )
        content = directory.content
        if content is None:
            content = _Content(replica, incarnation or secrets.token_hex(8))
            directory.content = content
        if content.replica != replica:
            of = f" of cluster {content.cluster!r}" if content.cluster is not None else ""
            raise SettingsError(
                f"cannot open replica store {directory.name!r}: it belongs to "
                f"replica {content.replica!r}{of}, this is replica {replica}",
                hint="give this replica its own --data-dir",
            )
        store = cls(directory, content)
        directory._is_open = True
        return store

    # --- reading ---

    @property
    def replica(self) -> ReplicaId:
        """As `ReplicaStore.replica`."""
        return ReplicaId(self._content.replica)

    @property
    def applied(self) -> AppliedPoint:
        """As `ReplicaStore.applied`."""
        return self._content.applied

    def recover(self, *, after_slot: int = 0) -> Recovery:
        """As `ReplicaStore.recover`."""
        content = self._content
        applied_end = content.applied.slot + 1
        return Recovery(
            consensus=Recovered(
                incarnation=Incarnation(content.incarnation),
                founding=content.founding,
                memberships=content.memberships,
                skips=content.skips,
                promised=content.promised,
                accepted=tuple(self._recovered_log(after_slot + 1)),
                chosen_end=Slot(self._first_lost()),
                applied_end=Slot(applied_end),
                log_start=Slot(content.log_start),
                known_end=Slot(self._open_from()),
                durable=content.durable,
                marks=content.marks,
            ),
            cluster=content.cluster,
            applied=content.applied,
            rows=iter([row for name in TABLES for row in self.read_range(name)]),
        )

    def _recovered_log(self, first_slot: int) -> Iterator[LogEntry]:
        content = self._content
        for slot in sorted(content.log):
            if slot < max(first_slot, content.log_start):
                continue
            if self._is_whole(slot):
                yield content.log[slot]
            elif slot <= content.applied.slot:
                raise self._slot_damaged(slot)

    def _slot_damaged(self, slot: int) -> StoreDamaged:
        return _damaged(self._directory.name, f"slot {slot} of table 'log' fails its checksum")

    def _log(self, first_slot: int, end_slot: int) -> Iterator[LogEntry]:
        for slot in range(max(first_slot, self._content.log_start), end_slot):
            if slot in self._content.log:
                if not self._is_whole(slot):
                    raise self._slot_damaged(slot)
                yield self._content.log[slot]

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        """As `ReplicaStore.read_range`."""
        directory = self._directory
        rows = self._content.mirror[table]
        return _range(rows, table, first, end, directory.damaged_rows, directory.name)

    def read_page(
        self, table: str, first: Key, end: Key, *, rows_max: int, bytes_max: int
    ) -> list[list[Cell]]:
        """As `ReplicaStore.read_page`."""
        found: list[list[Cell]] = []
        for row in self.read_range(table, first, end):
            cells = [*row.key, *(row.columns or ())]
            bytes_max -= _size(cells)
            if len(found) == rows_max or (found and bytes_max < 0):
                break
            found.append(cells)
        return found

    def read_log(self, first_slot: int, end_slot: int, bytes_max: int) -> tuple[LogEntry, ...]:
        """As `ReplicaStore.read_log`."""
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
        """As `ReplicaStore.commit`."""
        self.commit_all((commit,))

    def commit_all(self, commits: Sequence[Commit]) -> None:
        """As `ReplicaStore.commit_all`: all of it or nothing."""
        self._write(lambda: _check(self._content, commits))
        for commit in commits:
            _apply(self._content, commit)
            for row in commit.rows:
                self._directory.damaged_rows.discard((row.table, row.key))
            for persist in commit.persists:
                self._directory.damaged_slots -= {entry.slot for entry in persist.accepted}
        self.transactions += 1
        self._collect_garbage(_GARBAGE_ROWS_OF_COMMIT)

    def _write(self, check: Callable[[], None] = lambda: None) -> None:
        """Refuse what can't be written; as `ReplicaStore._writing`, that ends the store."""
        if self.failure is not None:
            raise self.failure
        try:
            check()
            if self._directory.is_full:
                raise DiskFull(
                    f"cannot write replica store {self._directory.name!r}: the disk is full",
                    hint="free some space and start again; nothing that was acknowledged is lost",
                )
        except BaseException as error:
            self.failure = error
            raise

    # --- rows that nobody needs any more ---

    def _garbage(self) -> Iterator[tuple[int, str]]:
        for (job,), (what,) in self._content.mirror["garbage"].items():
            if garbage_ranges(int(job), str(what)):
                yield int(job), str(what)

    def _collect_garbage(self, rows_max: int) -> None:
        mirror = self._content.mirror
        for job, what in list(self._garbage()):
            for table, first, end in garbage_ranges(job, what):
                rows = mirror[table]
                for row in list(_range(rows, table, first, end, frozenset(), "")):
                    if rows_max <= 0:
                        return
                    del rows[row.key]
                    self._directory.damaged_rows.discard((table, row.key))
                    rows_max -= 1
            if rows_max <= 0:
                return
            del mirror["garbage"][job,]
            rows_max -= 1

    # --- a copy of another replica's mirror ---

    def open_snapshot(self) -> MemorySnapshot:
        """As `ReplicaStore.open_snapshot`."""
        return MemorySnapshot(self._directory, self._content)

    def begin_copy(self) -> None:
        """As `ReplicaStore.begin_copy`."""
        self._write()
        self._copy = {name: {} for name in TABLES}

    def add_copied(self, table: str, text: bytes) -> None:
        """As `ReplicaStore.add_copied`."""
        self._write()
        assert self._copy is not None
        count = len(TABLES[table].key_columns)
        for cells in decode_json(text):
            self._copy[table][tuple(cells[:count])] = tuple(cells[count:])

    def read_copied(self, table: str, key: Key) -> Row | None:
        """As `ReplicaStore.read_copied`."""
        assert self._copy is not None
        columns = self._copy[table].get(key)
        return None if columns is None else Row(table, key, columns)

    def install_copy(self, applied: AppliedPoint, memberships: bytes | None = None) -> None:
        """As `ReplicaStore.install_copy`."""
        content = self._content
        assert self._copy is not None
        assert applied.slot > content.applied.slot, "a copy leads on, never back"
        self._write()
        content.mirror, self._copy = self._copy, None
        self._directory.damaged_rows.clear()
        content.applied = applied
        if memberships is not None:
            content.memberships = memberships
        content.log_start = max(content.log_start, applied.slot + 1)
        for slot in [slot for slot in content.log if slot < content.log_start]:
            del content.log[slot]
        self.transactions += 1

    def drop_copy(self) -> None:
        """As `ReplicaStore.drop_copy`."""
        self._write()
        self._copy = None

    def write_skips(self, skips: bytes) -> None:
        """As `ReplicaStore.write_skips`."""
        self._write()
        self._content.skips = skips

    # --- archives of jobs ---

    def put_blob(self, digest: str, data: bytes) -> None:
        """As `ReplicaStore.put_blob`."""
        self.commit(Commit(blobs=((digest, data),)))

    def has_blob(self, digest: str) -> bool:
        """As `ReplicaStore.has_blob`."""
        return digest in self._content.blobs

    def read_blob(self, digest: str) -> bytes | None:
        """As `ReplicaStore.read_blob`."""
        return self._content.blobs.get(digest)

    def blobs(self) -> list[str]:
        """As `ReplicaStore.blobs`."""
        return sorted(self._content.blobs)

    def drop_blob(self, digest: str) -> None:
        """As `ReplicaStore.drop_blob`."""
        self._write()
        self._content.blobs.pop(digest, None)

    # --- upkeep ---

    def checkpoint_if_due(self) -> bool:
        """Do nothing: there is no write-ahead log."""
        return False

    @property
    def idle_work_is_due(self) -> bool:
        """Whether there are rows that nobody needs any more."""
        return any(True for _ in self._garbage())

    def do_idle_work(self) -> None:
        """As `ReplicaStore.do_idle_work`."""
        self._write()
        self._collect_garbage(_GARBAGE_ROWS_OF_STEP)

    def close(self) -> None:
        """Give the directory free."""
        self._directory._is_open = False


def _check(content: _Content, commits: Sequence[Commit]) -> None:
    """Refuse what a real store refuses, before anything is changed."""
    promised, chosen_end, durable = content.promised, content.chosen_end, content.durable
    log_start, applied = content.log_start, content.applied
    for commit in commits:
        for persist in commit.persists:
            if persist.promised is not None:
                is_later = promised is None or persist.promised >= promised
                assert is_later, "a promise never goes back"
                promised = persist.promised
            if persist.chosen_end is not None:
                assert persist.chosen_end >= chosen_end, "what was chosen stays chosen"
                chosen_end = persist.chosen_end
            if persist.durable is not None:
                assert persist.durable > durable, "durable numbers grow"
                durable = persist.durable
        for row in commit.rows:
            _check_row(row)
        if commit.applied is not None:
            assert commit.applied.slot >= applied.slot, "what was applied stays applied"
            applied = commit.applied
        if commit.truncate_below is not None:
            log_start = max(log_start, commit.truncate_below)
            assert log_start <= applied.slot + 1, "what isn't applied is still needed"
        for digest, data in commit.blobs:
            is_named = hashlib.sha256(data).hexdigest() == digest
            assert is_named, "a blob is named by its SHA-256"


def _apply(content: _Content, commit: Commit) -> None:
    for persist in commit.persists:
        if persist.promised is not None:
            content.promised = persist.promised
        for entry in persist.accepted:
            content.log[entry.slot] = entry
        if persist.chosen_end is not None:
            content.chosen_end = persist.chosen_end
        if persist.durable is not None:
            content.durable = persist.durable
        if persist.marks is not None:
            content.marks = persist.marks
        if persist.founding is not None:
            content.founding = persist.founding
        if persist.memberships is not None:
            content.memberships = persist.memberships
        if persist.skips is not None:
            content.skips = persist.skips
    for row in commit.rows:
        if row.columns is None:
            content.mirror[row.table].pop(row.key, None)
        else:
            content.mirror[row.table][row.key] = row.columns
    if commit.applied is not None:
        content.applied = commit.applied
    if commit.truncate_below is not None and commit.truncate_below > content.log_start:
        for slot in range(content.log_start, commit.truncate_below):
            content.log.pop(slot, None)
        content.log_start = commit.truncate_below
    if commit.cluster is not None:
        content.cluster = commit.cluster
    content.blobs.update(commit.blobs)


def _check_row(row: Row) -> None:
    """Refuse what the tables of the real store would refuse."""
    table = TABLES[row.table]
    columns = table.key_columns + (table.value_columns if row.columns is not None else ())
    cells = row.key + (row.columns or ())
    assert len(cells) == len(columns), "rows must have as many cells as columns"
    for column, cell in zip(columns, cells, strict=True):
        is_right = column.nullable if cell is None else type(cell) is _TYPES[column.type]
        if not is_right:
            raise LocalProtocolError(
                f"replica store refused what it was given: {cell!r} in column "
                f"{column.name!r} of table {row.table!r}"
            )
