"""The orders of the replica core to its shell, and the state that a restart gives back to it.

Plain data. The order that `Ready` prescribes is the heart of the matter: a replica says
nothing that its disk could forget. Types that are made for each entry are named tuples: a
frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.membership import Membership
from tasksprint.consensus.messages import Envelope
from tasksprint.ids import Incarnation, ReplicaId, Slot

__all__ = [
    "FIRST_SLOT",
    "Chosen",
    "PeerStatus",
    "Persist",
    "ReadLog",
    "Ready",
    "Recovered",
    "Status",
]

FIRST_SLOT = Slot(1)


class Chosen(NamedTuple):
    """A slot is decided for ever; empty commands: a no-op, or a membership."""

    slot: Slot
    commands: tuple[bytes, ...]
    membership: Membership | None = None  # governs from ALPHA slots later on
    is_alone: bool = False  # Its command stands in an entry of the form for that (batch.py).


class Persist(NamedTuple):
    """The contents of one transaction; None and () mean: unchanged.

    An entry replaces the former one of its slot. If all are None or (), there is nothing to
    write, but all earlier `Persist`s must be durable all the same.
    """

    promised: Ballot | None = None
    accepted: tuple[LogEntry, ...] = ()
    chosen_end: Slot | None = None  # the values of all slots below are chosen
    founding: bytes | None = None
    # The voters from each slot on, as far as they matter for open slots. The entries of the
    # log that said so may be truncated from now on.
    memberships: bytes | None = None
    skips: bytes | None = None  # commands that aren't applied (skips.py)
    # This write's durable number: the replica is held to account for it (marks.py). And what
    # it knows of the others' numbers.
    durable: int | None = None
    marks: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read chosen entries that have left memory; answered by `Replica.log_read`."""

    target: ReplicaId  # the peer that asked for them
    first_slot: Slot
    end_slot: Slot
    bytes_max: int  # stop before this much, but bring one entry at least


class Ready(NamedTuple):
    """Everything that one turn asks for. The fields stand in the order that matters.

    1. `send_now` may go out at once.
    2. `persist` must be durable, and so must those of all earlier `Ready`s, before
       `send_after_persist` goes out and before `Replica.persisted(sequence)`. Without
       `persist` there is nothing to wait for, and `send_after_persist` is empty.
    3. `chosen` may be applied at once. The changes that this makes must not become
       durable before `persist` is.
    4. `confirmed_reads` may be answered once everything in `chosen`, of this and all
       earlier `Ready`s, is applied.
    """

    sequence: int  # 1, 2, 3 …
    send_now: tuple[Envelope, ...] = ()
    persist: Persist | None = None
    send_after_persist: tuple[Envelope, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    confirmed_reads: tuple[int, ...] = ()
    failed_reads: tuple[int, ...] = ()  # leadership was lost; ask again elsewhere
    read_log: tuple[ReadLog, ...] = ()
    notes: tuple[str, ...] = ()  # lines for the log of the process
    fatal: str | None = None  # this replica must stop, and say this
    is_removed: bool = False  # it stops because it was removed from the cluster


@dataclass(frozen=True, slots=True)
class Recovered:
    """The memory of a replica's disk.

    `accepted` holds at least every entry from the smaller of `applied_end` and
    `chosen_end` on, in any order. Older ones may stand in it too: then they needn't be read
    back for others.

    If the disk has spoiled a chosen entry, the chosen prefix ends there: `chosen_end` is the
    slot of that entry. `known_end` is where the prefix ended before the damage. The entries
    between the two are fetched again.
    """

    incarnation: Incarnation
    founding: bytes | None = None
    memberships: bytes | None = None  # None: the founding members
    skips: bytes | None = None  # None: none
    promised: Ballot | None = None
    accepted: tuple[LogEntry, ...] = ()
    chosen_end: Slot = FIRST_SLOT
    applied_end: Slot = FIRST_SLOT  # first slot that isn't in the durable mirror of the state
    log_start: Slot = FIRST_SLOT  # first slot that the store can read back
    known_end: Slot = FIRST_SLOT  # all slots below are chosen, whether they are here or not
    durable: int = 0  # as in the last `Persist`
    marks: bytes | None = None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer, as this replica knows it."""

    chosen_end: Slot  # as the peer said last
    heard_ms: int | None  # how long ago its last message came; None: never


@dataclass(frozen=True, slots=True)
class Status:
    """A replica at a glance, for operators and tests."""

    role: str  # "unfounded", "follower", "canvassing", "candidate", "leader" or "stopped"
    cluster: str | None
    ballot: Ballot
    leader: ReplicaId | None
    chosen_end: Slot
    elections: int  # times that this replica stood since it started
    last_cause: str  # why it last canvassed or stood, or ""
    waiting_commands: int
    open_slots: int
    log_start: Slot = FIRST_SLOT  # first slot of the log that is kept
    # Peers to take a copy of the state from; none while a peer may have the missing log.
    state_givers: tuple[ReplicaId, ...] = ()
    durable: int = 0  # its durable number (marks.py)
    handovers: int = 0  # times that it resigned since it started, as others would do better
    write_ms: int = 0  # the age of the oldest unfinished write; 0: there is none
    peers: dict[ReplicaId, PeerStatus] = field(default_factory=dict)
