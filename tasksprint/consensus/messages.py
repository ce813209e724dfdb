"""What replicas say to each other.

Every message is a plain fact or question of numbers, bytes and tuples of them, so
that any codec can carry it; values are bytes and travel as they are. Who may act on
a message is decided by the envelope (founding.py), what it means by the roles.
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


# What a release can stands in a frame as the text that says it.
_Speaks = Annotated[Speaks, Through(decode_speaks, encode_speaks)]

# --- founding ---


@dataclass(frozen=True, slots=True)
class Hello:
    """A replica says who it is; asked for or not."""

    address: str
    # The incarnation of the target that the source knows, None if it never heard from
    # it: shows that this was said to the target's present life and is no echo of a former.
    heard: Incarnation | None
    cluster: str | None  # None: unfounded
    members: tuple[ReplicaId, ...]  # founding members as its operator named them, sorted
    skips: Skips = b""  # commands that it doesn't apply
    speaks: _Speaks = added(SILENT, since=3)  # what its release can


@dataclass(frozen=True, slots=True)
class Found:
    """The founding entry, and the membership that governs as far as the source knows.

    For a member that they name and that doesn't know them yet.
    """

    founding: bytes
    membership: bytes
    skips: Skips = b""  # commands that members of the cluster don't apply


@dataclass(frozen=True, slots=True)
class Stranger:
    """The target isn't who the cluster knows under this id; durable when said."""

    cluster: str
    expected: Incarnation | None  # None: the cluster has no such member
    found: Incarnation
    membership: bytes  # that governs, as far as the source knows: the target may know better


@dataclass(frozen=True, slots=True)
class Stale:
    """The target's disk is older than what was heard of it: it counts as lost (marks.py).

    Said to whom the source knows; the target needn't know the source (yet).
    """

    cluster: str
    life: int  # of the target, in which it said what isn't believed
    seen: int  # the durable number that the source has heard of
    found: int  # the one that the target's disk had at the start of that life


@dataclass(frozen=True, slots=True)
class Marks:
    """What a leader knows of everybody's durable numbers; a follower, of the target's."""

    known: tuple[KnownMark, ...]


# --- election ---


@dataclass(frozen=True, slots=True)
class Canvass:
    """May I stand? Asked before a ballot is raised, so that nobody disturbs a leader."""

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
    first_slot: Slot  # the candidate knows what is chosen below


@dataclass(frozen=True, slots=True)
class Promise:
    """Phase 1(b): nothing below `ballot` will be accepted any more.

    Speaks for all slots from `first_slot` on. What lies below is chosen and known to
    the source, and is fetched by catch-up rather than adopted.
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
    chosen_end: Slot  # how far the source knows
    log_start: Slot  # what is below was truncated at the source


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


# Of who belongs to the cluster, and in which life: what admission.py hears.
Greeting = Hello | Found | Stranger | Stale | Marks


class Envelope(NamedTuple):
    """A message with who sent it, in which life, and to whom."""

    source: ReplicaId
    source_incarnation: Incarnation
    target: ReplicaId
    message: Message
    mark: Mark = NO_MARK  # of the source
