"""A replica's vital data, as tables with checksums: its name, its promise, its log.

One row names the store's owner (`Header`), one says how far everything is (`Progress`), and one
for each slot holds the value accepted there. Each row carries the CRC-32 of all its columns. A
missing row carries none. So `Progress` also counts the acceptances that nobody knows to be
chosen, and holds the sum of their checksums (`OpenEntries`): an acceptor that forgets one of
those could have two values chosen. Entries known to be chosen may go: others have them.

Knows these tables and the meaning of damage to them. repair.py does the repairs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, cast

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.voters import Memberships
from tasksprint.errors import RemoteProtocolError, StoreDamaged, StoreError, StoreLost
from tasksprint.ids import ReplicaId, Slot
from tasksprint.store.database import Cell, Cursor, Database, Kind
from tasksprint.store.many_rows import Upsert
from tasksprint.store.mirror_tables import MIRROR_SCHEMA
from tasksprint.store.records import AppliedPoint

__all__ = [
    "DATABASE_FILE",
    "NO_PROGRESS",
    "REPLICA_KIND",
    "SLOTS_END",
    "Header",
    "OpenEntries",
    "Progress",
    "is_only_member",
    "log_checksum",
    "log_rows",
    "lost_store",
    "only_member_lost",
    "read_header",
    "read_progress",
    "write_header",
    "write_log",
    "write_progress",
]

DATABASE_FILE = "replica.db"
SLOTS_END = 2**63 - 1  # beyond every slot

_SCHEMA = """
CREATE TABLE header (
  one INTEGER PRIMARY KEY CHECK (one = 1), replica INTEGER NOT NULL, incarnation TEXT NOT NULL,
  created_ms INTEGER NOT NULL, cluster TEXT, founding BLOB, memberships BLOB, skips BLOB,
  checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE progress (
  one INTEGER PRIMARY KEY CHECK (one = 1), promised_round INTEGER, promised_replica INTEGER,
  durable INTEGER NOT NULL, marks TEXT, chosen_end INTEGER NOT NULL, log_start INTEGER NOT NULL,
  open_count INTEGER NOT NULL, open_checksum INTEGER NOT NULL,
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

REPLICA_KIND = Kind(
    what="replica store",
    application_id=0x54535250,  # "TSRP"
    format=4,
    schema=_SCHEMA + MIRROR_SCHEMA,
    page_bytes=4096,
    synchronous=2,
    remedy="start this replica again: it finds out what is left, and takes the rest from the "
    "other members",
)

_UPSERT_LOG = Upsert("log", ("slot",), ("round", "replica", "value", "checksum"))


def lost_store(name: object, replica: int | None, what: str) -> StoreLost:
    """Return the error of a store that a replica can't go on with."""
    member = "ID" if replica is None else str(replica)
    return StoreLost(
        f"{REPLICA_KIND.what} {str(name)!r} is damaged: {what}",
        hint="this replica counts as lost; start a new one with a new --id and --join, then "
        f"tasksprint member replace {member} NEW=HOST:PORT (if it is the only one: tasksprint "
        "restore FILE --data-dir DIR)",
    )


def only_member_lost(name: object, what: str) -> StoreError:
    """Return the error for the store of an only member: nobody else has its lost data."""
    return StoreError(
        f"{REPLICA_KIND.what} {str(name)!r} is damaged: {what}, and no other member has it",
        hint="bring back a backup: tasksprint restore FILE --data-dir DIR",
    )


# --- the owner ---


@dataclass(frozen=True, slots=True)
class Header:
    """The store's owner; the columns of its table, in this order."""

    replica: int
    incarnation: str
    created_ms: int  # wall time, for people
    cluster: str | None = None
    founding: bytes | None = None
    memberships: bytes | None = None
    skips: bytes | None = None


def _checksum(cells: tuple[Cell, ...]) -> int:
    return zlib.crc32(("\0%s" * len(cells) % cells).encode())


def write_header(cursor: Cursor, header: Header) -> None:
    """Put the header in the place of the one that is there, if any."""
    cells = astuple(header)
    cursor.execute(
        "INSERT OR REPLACE INTO header VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*cells, _checksum(cells)),
    )


def _vital(database: Database, replica: int | None, sql: str) -> tuple[Cell, ...]:
    """Return the only row of a table, with its checksum checked and left out."""
    table = sql.rpartition(" ")[2]
    try:
        found = database.query(sql)
    except StoreDamaged as error:
        raise lost_store(database.path, replica, f"table {table!r} can't be read") from error
    if len(found) != 1:
        what = f"table {table!r} has {len(found)} rows, expected 1"
        raise lost_store(database.path, replica, what)
    *cells, checksum = found[0]
    if _checksum(tuple(cells)) != checksum:
        raise lost_store(database.path, replica, f"the row of table {table!r} fails its checksum")
    return tuple(cells)


def read_header(database: Database) -> Header:
    """Return the header.

    Raises:
        StoreError: It is damaged: nobody can name the store's owner.
    """
    cells = _vital(
        database,
        None,
        "SELECT replica, incarnation, created_ms, cluster, founding, memberships, skips,"
        " checksum FROM header",
    )
    return Header(*cast(tuple[Any, ...], cells))


def is_only_member(header: Header) -> bool:
    """Whether the cluster has no other voter, as far as this replica knows.

    Chosen entries are on a quorum of the voters, and so on nobody else for certain. A learner
    may have a part of them. A new voter may lack a part, too: it becomes a voter with up to
    `learner_lag_slots_max` slots missing, and counts in quorums `ALPHA` slots later. If a
    replica's file is spoiled just then, it is told to take the rest from the new voter.
    """
    if header.founding is None:
        return False
    try:
        memberships = Memberships.remembered(header.founding, header.memberships)
    except RemoteProtocolError:
        return False
    newest = memberships.newest
    return newest is not None and [each.replica for each in newest.voters] == [header.replica]


# --- how far everything is ---


class Progress(NamedTuple):
    """How far everything is."""

    promised: Ballot | None
    durable: int  # the durable number: of the last `Persist` that is in this file
    marks: str | None  # what is known of the others' numbers
    chosen_end: int
    log_start: int
    open_count: int  # of acceptances from `open_from` on
    open_checksum: int
    applied: AppliedPoint

    @property
    def open_from(self) -> int:
        """First slot that isn't known to be chosen. Applied slots count as chosen."""
        return max(self.chosen_end, self.applied.slot + 1)


NO_PROGRESS = Progress(None, 0, None, 1, 1, 0, 0, AppliedPoint(0, ""))


def write_progress(cursor: Cursor, progress: Progress) -> None:
    """Put a progress in the place of the one that is there, if any."""
    promised, durable, marks, chosen_end, log_start, count, open_checksum, applied = progress
    cells = (
        None if promised is None else promised.round,
        None if promised is None else promised.replica,
        durable,
        marks,
        chosen_end,
        log_start,
        count,
        open_checksum,
        applied.slot,
        applied.digest,
    )
    cursor.execute(
        "INSERT OR REPLACE INTO progress VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*cells, _checksum(cells)),
    )


def read_progress(database: Database, replica: int) -> Progress:
    """Return the progress.

    Raises:
        StoreError: It is damaged: this replica doesn't know its promise.
    """
    cells = _vital(
        database,
        replica,
        "SELECT promised_round, promised_replica, durable, marks, chosen_end, log_start,"
        " open_count, open_checksum, applied_slot, digest, checksum FROM progress",
    )
    # The columns' types are the table's, as the checksum says.
    round_, promised_replica, *rest, applied_slot, digest = cast(tuple[Any, ...], cells)
    promised = None if round_ is None else Ballot(round_, promised_replica)
    return Progress._make([promised, *rest, AppliedPoint(applied_slot, digest)])


# --- the log ---


def log_checksum(slot: int, ballot: Ballot, value: bytes) -> int:
    """Return what stands beside an accepted value."""
    return zlib.crc32(value, zlib.crc32(b"%d %d %d" % (slot, ballot.round, ballot.replica)))


def write_log(cursor: Cursor, entries: Iterable[tuple[LogEntry, int]]) -> None:
    """Write accepted values, each with its checksum."""
    cells: list[Cell] = []
    for entry, checksum in entries:
        ballot = entry.ballot
        cells += (entry.slot, ballot.round, ballot.replica, entry.value, checksum)
    _UPSERT_LOG.run(cursor, cells)


def log_rows(
    database: Database, first_slot: int, end_slot: int = SLOTS_END, *, is_backward: bool = False
) -> Iterator[tuple[int, LogEntry | None]]:
    """Yield (slot, the value accepted there) in the order of slots; None: it is damaged."""
    for slot, round_, replica, value, checksum in database.iterate(
        "SELECT slot, round, replica, value, checksum FROM log WHERE slot >= ? AND slot < ?"
        f" ORDER BY slot {'DESC' if is_backward else ''}",
        (first_slot, end_slot),
    ):
        assert isinstance(slot, int), "SQLite keeps the key of such a table apart, as a number"
        # The columns' types are the table's, unless the disk has spoiled the row.
        if isinstance(round_, int) and isinstance(replica, int) and isinstance(value, bytes):
            entry = LogEntry(Slot(slot), Ballot(round_, ReplicaId(replica)), value)
            if log_checksum(slot, entry.ballot, value) == checksum:
                yield slot, entry
                continue
        yield slot, None


class OpenEntries:
    """The acceptances that nobody knows to be chosen: their number, and the sum of all.

    The sum is the exclusive or of the rows' checksums. These cover the slots, too. So the sum
    changes with every row that comes, goes, or becomes another.
    """

    def __init__(self) -> None:
        self._checksums: dict[int, int] = {}
        self.checksum = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._checksums)

    def put(self, slot: int, checksum: int) -> None:
        """Take note of an acceptance, perhaps in the place of an older one."""
        self.checksum ^= self._checksums.get(slot, 0) ^ checksum
        self._checksums[slot] = checksum

    def drop_below(self, open_from: int) -> None:
        """Forget those that turned out to be chosen."""
        for slot in [slot for slot in self._checksums if slot < open_from]:
            self.checksum ^= self._checksums.pop(slot)
