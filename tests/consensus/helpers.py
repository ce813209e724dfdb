"""Replicas and messages for unit tests, in few words."""

from __future__ import annotations

from random import Random
from typing import Any

from tasksprint.consensus import (
    NO_MARK,
    Accepted,
    Ballot,
    Canvass,
    CanvassReply,
    Envelope,
    Founding,
    LogEntry,
    Member,
    Message,
    Promise,
    Ready,
    Recovered,
    Replica,
    encode_batch,
    encode_founding,
)
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings

__all__ = [
    "ballot",
    "bare",
    "drain",
    "entry",
    "founded",
    "from_peer",
    "leader",
    "make",
    "sent",
    "start",
    "value",
]


def ballot(number: int, replica: int) -> Ballot:
    """Return a ballot."""
    return Ballot(number, ReplicaId(replica))


def value(*commands: str) -> bytes:
    """Return the value that carries these commands."""
    return encode_batch(command.encode() for command in commands)


def entry(slot: int, number: int, replica: int, *commands: str) -> LogEntry:
    """Return an entry accepted under ballot (number, replica)."""
    return LogEntry(Slot(slot), ballot(number, replica), value(*commands))


def founded(count: int) -> bytes:
    """Return the founding entry of `count` replicas with incarnations inc1, inc2 …"""
    return encode_founding(
        Founding(
            "c0ffee",
            tuple(
                Member(ReplicaId(number), Incarnation(f"inc{number}"), f"h{number}")
                for number in range(1, count + 1)
            ),
        )
    )


def start(me: int, count: int, *, settings: Settings | None = None, **recovered: Any) -> Replica:
    """Return a replica as a process starts it; `recovered` are fields of `Recovered`."""
    recovered.setdefault("founding", founded(count))
    return Replica(
        me=ReplicaId(me),
        address=f"h{me}",
        peers={ReplicaId(number): f"h{number}" for number in range(1, count + 1)},
        recovered=Recovered(incarnation=Incarnation(f"inc{me}"), **recovered),
        settings=settings or Settings(chosen_notice_delay_ms=0, spare_delay_ms=0),
        random=Random(me),
        now_ms=0,
    )


def make(me: int, count: int, *, settings: Settings | None = None, **recovered: Any) -> Replica:
    """Return a replica of a founded cluster, with its greetings already taken."""
    replica = start(me, count, settings=settings, **recovered)
    if count > 1:
        assert replica.ready() is not None
    return replica


def from_peer(
    source: int, target: int, message: Message, *, incarnation: str | None = None
) -> Envelope:
    """Return a message of a peer in the life that the cluster knows, or another."""
    return Envelope(
        ReplicaId(source),
        Incarnation(incarnation or f"inc{source}"),
        ReplicaId(target),
        message,
    )


def bare(ready: Ready | None) -> Ready:
    """Return what is to be done without durable numbers, which have tests of their own."""
    assert ready is not None
    persist = ready.persist
    return ready._replace(
        send_now=tuple(each._replace(mark=NO_MARK) for each in ready.send_now),
        persist=None if persist is None else persist._replace(durable=None, marks=None),
        send_after_persist=tuple(each._replace(mark=NO_MARK) for each in ready.send_after_persist),
    )


def drain(replica: Replica, now_ms: int = 0) -> list[Ready]:
    """Take everything that a replica wants done, with a disk that takes no time."""
    taken: list[Ready] = []
    while True:
        has_work = replica.has_work
        ready = replica.ready()
        assert has_work or ready is None
        if ready is None:
            return taken
        taken.append(ready)
        if ready.persist is not None:
            replica.persisted(ready.sequence, now_ms)
        replica.check()


def sent(readies: list[Ready], kind: type[Message] | None = None) -> list[tuple[int, Message]]:
    """Return (target, message) of everything sent, of one kind if said."""
    return [
        (envelope.target, envelope.message)
        for ready in readies
        for envelope in (*ready.send_now, *ready.send_after_persist)
        if kind is None or isinstance(envelope.message, kind)
    ]


def leader(count: int = 3, *, settings: Settings | None = None) -> tuple[Replica, int]:
    """Return replica 1 of `count` as an established leader with ballot 1.1, and the time."""
    replica = make(1, count, settings=settings)
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    first = ballot(1, 1)
    (_, canvass), *_ = sent(drain(replica, now_ms), Canvass)
    assert isinstance(canvass, Canvass)
    for peer in range(2, count + 1):
        reply = CanvassReply(canvass.number, is_welcome=True, round=0, chosen_end=Slot(1))
        replica.receive(from_peer(peer, 1, reply), now_ms)
    drain(replica, now_ms)
    for peer in range(2, count + 1):
        replica.receive(from_peer(peer, 1, Promise(first, Slot(1), ())), now_ms)
    drain(replica, now_ms)
    for peer in range(2, count + 1):
        replica.receive(from_peer(peer, 1, Accepted(first, (Slot(1),))), now_ms)
    drain(replica, now_ms)
    assert replica.is_established
    return replica, now_ms
