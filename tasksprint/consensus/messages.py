"""The messages of replicas to each other.

Every message is a plain fact or question. It is made of numbers, bytes and tuples of them, so
any codec can carry it; values are bytes and travel as they are. The envelope decides whether
a message counts (admission.py). The parts of a replica decide what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from tasksprint.arrays import Through, added
from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.marks import NO_MARK, KnownMark, Mark
from tasksprint.consensus.skips import Skips
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.release import SILENT, Speaks, decode_speaks, encode_speaks

__all__ = [
    "Accept",
    "Accepted",
    "Canvass",
    "CanvassReply",
    "CatchUpReply",
    "CatchUpRequest",
    "ChosenNotice",
    "Envelope",
    "Forward",
    "Found",
    "Greeting",
    "Heartbeat",
    "HeartbeatReply",
    "Hello",
    "Marks",
    "Message",
    "Nack",
    "Prepare",
    "Promise",
    "Resign",
    "Stale",
    "Stranger",
]


# In a frame, the abilities of a release stand as text.
_Speaks = Annotated[Speaks, Through(decode_speaks, encode_speaks)]

# --- founding ---


@dataclass(frozen=True, slots=True)
class Hello:
    """A replica says who it is; asked for or not."""

    address: str
    # The target's incarnation as the source knows it; None: it never heard from the target.
    # It shows that this was said to the target's present life, and not to a former one.
    heard: Incarnation | None
    cluster: str | None  # None: unfounded
    members: tuple[ReplicaId, ...]  # founding members as its operator named them, sorted
    skips: Skips = b""  # commands that it doesn't apply
    speaks: _Speaks = added(SILENT, since=3)  # the abilities of its release


@dataclass(frozen=True, slots=True)
class Found:
    """The founding entry, and the membership that governs as far as the source knows.

    Sent to a member that doesn't know them yet, though both name it.
    """

    founding: bytes
    membership: bytes
    skips: Skips = b""  # commands that members of the cluster don't apply


@dataclass(frozen=True, slots=True)
class Stranger:
    """The cluster knows another incarnation under the target's id, or none; durable when said."""

    cluster: str
    expected: Incarnation | None  # None: the cluster has no such member
    found: Incarnation
    membership: bytes  # it governs, as far as the source knows; the target may know a newer one


@dataclass(frozen=True, slots=True)
class Stale:
    """The target's disk is older than its numbers that others heard: it counts as lost (marks.py).

    The source knows the target. The target needn't know the source (yet).
    """

    cluster: str
    life: int  # of the target: this one isn't believed
    seen: int  # the durable number that the source has heard of
    found: int  # the one that the target's disk had at the start of that life


@dataclass(frozen=True, slots=True)
class Marks:
    """Known durable numbers: a leader tells those of all; others tell the target its own."""

    known: tuple[KnownMark, ...]


# --- election ---


@dataclass(frozen=True, slots=True)
class Canvass:
    """May I stand? A replica asks so before it raises its ballot, to disturb no leader."""

    number: int  # random; the answer repeats it
    chosen_end: Slot


@dataclass(frozen=True, slots=True)
class CanvassReply:
    """Whether the source would welcome a new leader: it hears none."""

    number: int
    is_welcome: bool
    round: int  # highest one that the source has seen
    chosen_end: Slot


@dataclass(frozen=True, slots=True)
class Prepare:
    """Phase 1(a), for all slots from `first_slot` on."""

    ballot: Ballot
    first_slot: Slot  # the candidate knows all chosen values below


@dataclass(frozen=True, slots=True)
class Promise:
    """Phase 1(b): nothing below `ballot` will be accepted any more.

    Speaks for all slots from `first_slot` on. The source knows all slots below to be chosen.
    The candidate fetches those by catch-up, and doesn't adopt them.
    """

    ballot: Ballot
    first_slot: Slot
    entries: tuple[LogEntry, ...]  # accepted by the source, in the order of slots


@dataclass(frozen=True, slots=True)
class Nack:
    """`ballot` is refused: the source has promised, or follows, a higher one."""

    ballot: Ballot
    promised: Ballot


# --- the log ---


@dataclass(frozen=True, slots=True)
class Accept:
    """Phase 2(a): accept this value; and the leader's log is chosen below `chosen_end`."""

    ballot: Ballot
    slot: Slot
    value: bytes
    chosen_end: Slot


@dataclass(frozen=True, slots=True)
class Accepted:
    """Phase 2(b) for one or more slots; durable when said."""

    ballot: Ballot
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class ChosenNotice:
    """The leader's log is chosen below `chosen_end`; sent when no `Accept` says so."""

    ballot: Ballot
    chosen_end: Slot


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The leader lives; also a round of read confirmation."""

    ballot: Ballot
    beat: int  # 1, 2, 3 … within a ballot
    chosen_end: Slot


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """When this was said, the source had promised nothing above `ballot`."""

    ballot: Ballot
    beat: int
    chosen_end: Slot


@dataclass(frozen=True, slots=True)
class Resign:
    """The leader of `ballot` leads no more: elect another, without waiting."""

    ballot: Ballot
    cause: str  # for people


@dataclass(frozen=True, slots=True)
class CatchUpRequest:
    """Send chosen entries from `first_slot` on."""

    first_slot: Slot


@dataclass(frozen=True, slots=True)
class CatchUpReply:
    """Chosen entries, without gaps, from `first_slot` on; perhaps only the first of them."""

    first_slot: Slot
    entries: tuple[LogEntry, ...]
    chosen_end: Slot  # as far as the source knows
    log_start: Slot  # the source has truncated the slots below


@dataclass(frozen=True, slots=True)
class Forward:
    """Commands for the leader to propose; lost silently if the target doesn't lead."""

    commands: tuple[bytes, ...]


Message = (
    Hello
    | Found
    | Stranger
    | Canvass
    | CanvassReply
    | Prepare
    | Promise
    | Nack
    | Accept
    | Accepted
    | ChosenNotice
    | Heartbeat
    | HeartbeatReply
    | Resign
    | CatchUpRequest
    | CatchUpReply
    | Forward
    | Stale
    | Marks
)


# Messages about members and their lives: admission.py hears them.
Greeting = Hello | Found | Stranger | Stale | Marks


class Envelope(NamedTuple):
    """A message with its source, the life of the source, and its target."""

    source: ReplicaId
    source_incarnation: Incarnation
    target: ReplicaId
    message: Message
    mark: Mark = NO_MARK  # of the source
