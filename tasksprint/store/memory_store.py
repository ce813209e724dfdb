"""The replica's store on an imagined disk: for tests and the simulator.

Behaves as `replica_store` does, including what it refuses, and passes the same contract
tests. A `MemoryDirectory` stands for the data directory: it outlives the store, so a
crash is to forget the store (`MemoryDirectory.crash`) and to open the directory again.
Nothing here is faster or slower than memory; a slow disk is the simulator's business.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.effects import LogEntry, Recovered
from tasksprint.coordination.rows import TABLES, Key, Row, garbage_ranges
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import LocalProtocolError, SettingsError, StoreError
from tasksprint.ids import Incarnation, Slot
from tasksprint.store.database import Cell
from tasksprint.store.mirror_snapshot import CopyPiece
from tasksprint.store.mirror_tables import CopyPlace, next_place
from tasksprint.store.records import AppliedPoint, Commit, Recovery

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
    promised: Ballot | None = None
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
        self.damaged_slots: set[int] = set()  # accepted values that the disk spoiled
        self._content: _Content | None = None
        self._is_open = False

    def crash(self) -> None:
        """End the process that has it open; what was committed stays."""
        self._is_open = False

    def wipe(self) -> None:
        """Lose the disk."""
        self._content = None
        self._is_open = False
        self.damaged_slots.clear()


class MemorySnapshot:
    """As `MirrorSnapshot`, of an imagined disk."""

    def __init__(self, content: _Content) -> None:
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
        return _range(self._mirror[table], table, first, end)

    def close(self) -> None:
        """Let go of the moment."""


def _size(cells: list[Cell]) -> int:
    """Return the bytes of a row, as SQLite counts them."""
    return sum(
        len(cell.encode()) if isinstance(cell, str) else len(str(cell))
        for cell in cells
        if cell is not None
    )


def _range(rows: dict[Key, tuple[Cell, ...]], table: str, first: Key, end: Key) -> Iterator[Row]:
    # Keys of one table have the same types in the same places, by their declaration.
    for key in sorted(rows):
        if key[: len(first)] >= first and (not end or key[: len(end)] < end):
            yield Row(table, key, rows[key])


class MemoryReplicaStore:
    """As `ReplicaStore`; `open` makes or opens it."""

    def __init__(self, directory: MemoryDirectory, content: _Content) -> None:
        self._directory = directory
        self._content = content
        self._has_failed = False
        self._copy: dict[str, dict[Key, tuple[Cell, ...]]] | None = None
        self.transactions = 0

    @classmethod
    def open(
        cls,
        directory: MemoryDirectory,
        replica: int,
        *,
        now_ms: int,
        cluster: str | None = None,
        incarnation: str | None = None,
    ) -> MemoryReplicaStore:
        """Make or open the store of `replica` in an imagined directory.

        Raises:
            SettingsError: It is open, or it belongs to another replica or cluster.
        """
        if directory._is_open:
            raise SettingsError(
                f"data directory {directory.name!r} is in use by process 'memory'",
                hint="stop that process, or give this one its own --data-dir",
            )
        content = directory._content
        if content is None:
            content = _Content(replica, incarnation or secrets.token_hex(8))
            directory._content = content
        found = content.cluster
        if content.replica != replica or (cluster and found and cluster != found):
            of = f" of cluster {found!r}" if found is not None else ""
            me = f" of cluster {cluster!r}" if cluster is not None else ""
            raise SettingsError(
                f"cannot open replica store {directory.name!r}: it belongs to "
                f"replica {content.replica!r}{of}, this is replica {replica}{me}",
                hint="give this replica its own --data-dir",
            )
        directory._is_open = True
        return cls(directory, content)

    # --- reading ---

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
                promised=content.promised,
                accepted=tuple(self._log(after_slot + 1, max(content.log, default=0) + 1)),
                chosen_end=Slot(max(content.chosen_end, applied_end)),
                applied_end=Slot(applied_end),
                log_start=Slot(content.log_start),
            ),
            cluster=content.cluster,
            applied=content.applied,
            rows=iter([row for name in TABLES for row in self.read_rows(name)]),
        )

    def _log(self, first_slot: int, end_slot: int) -> Iterator[LogEntry]:
        for slot in range(max(first_slot, self._content.log_start), end_slot):
            if slot in self._directory.damaged_slots:
                raise StoreError(
                    f"replica store {self._directory.name!r} is damaged: "
                    f"slot {slot} of table 'log' fails its checksum",
                    hint="this replica can't be trusted any more; move its data directory "
                    "away and replace the member",
                )
            if slot in self._content.log:
                yield self._content.log[slot]

    def read_range(self, table: str, first: Key = (), end: Key = ()) -> Iterator[Row]:
        """As `ReplicaStore.read_range`."""
        return _range(self._content.mirror[table], table, first, end)

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

    def read_rows(
        self, table: str, key_prefix: Key = (), *, limit: int | None = None, offset: int = 0
    ) -> list[Row]:
        """As `ReplicaStore.read_rows`."""
        assert len(key_prefix) <= len(TABLES[table].key_columns), (
            "a prefix has at most as many parts as the key"
        )
        rows = self._content.mirror[table]
        # Keys of one table have the same types in the same places, by their declaration.
        keys: list[Key] = sorted(key for key in rows if key[: len(key_prefix)] == key_prefix)
        end = None if limit is None else offset + limit
        return [Row(table, key, rows[key]) for key in keys[offset:end]]

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
        assert not self._has_failed, "a store that failed is not written again"
        try:
            _check(self._content, commits)
            if self._directory.is_full:
                raise StoreError(
                    f"cannot write replica store {self._directory.name!r}: the disk is full",
                    hint="free some space and start again; nothing that was acknowledged is lost",
                )
        except BaseException:
            self._has_failed = True
            raise
        for commit in commits:
            _apply(self._content, commit)
        self.transactions += 1
        self._collect_garbage(_GARBAGE_ROWS_OF_COMMIT)

    def truncate_log(self, below_slot: int) -> None:
        """As `ReplicaStore.truncate_log`."""
        self.commit(Commit(truncate_below=below_slot))

    # --- rows that nobody needs any more ---

    def _garbage(self) -> Iterator[tuple[int, str]]:
        for (job,), (what,) in self._content.mirror["garbage"].items():
            if garbage_ranges(int(job), str(what)):
                yield int(job), str(what)

    def _collect_garbage(self, rows_max: int) -> None:
        mirror = self._content.mirror
        for job, what in list(self._garbage()):
            for table, first, end in garbage_ranges(job, what):
                for row in list(self.read_range(table, first, end)):
                    if rows_max <= 0:
                        return
                    del mirror[table][row.key]
                    rows_max -= 1
            if rows_max <= 0:
                return
            del mirror["garbage"][job,]
            rows_max -= 1

    # --- a copy of another replica's mirror ---

    def open_snapshot(self) -> MemorySnapshot:
        """As `ReplicaStore.open_snapshot`."""
        return MemorySnapshot(self._content)

    def begin_copy(self) -> None:
        """As `ReplicaStore.begin_copy`."""
        self._copy = {name: {} for name in TABLES}

    def add_copied(self, table: str, text: bytes) -> None:
        """As `ReplicaStore.add_copied`."""
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
        content.mirror, self._copy = self._copy, None
        content.applied = applied
        if memberships is not None:
            content.memberships = memberships
        content.log_start = max(content.log_start, applied.slot + 1)
        for slot in [slot for slot in content.log if slot < content.log_start]:
            del content.log[slot]
        self.transactions += 1

    def drop_copy(self) -> None:
        """As `ReplicaStore.drop_copy`."""
        self._copy = None

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
        self._collect_garbage(_GARBAGE_ROWS_OF_STEP)

    def close(self) -> None:
        """Give the directory free."""
        self._directory._is_open = False


def _check(content: _Content, commits: Sequence[Commit]) -> None:
    """Refuse what a real store refuses, before anything is changed."""
    promised, chosen_end = content.promised, content.chosen_end
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
        if persist.founding is not None:
            content.founding = persist.founding
        if persist.memberships is not None:
            content.memberships = persist.memberships
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
