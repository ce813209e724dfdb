"""A cluster that went on from a survivor: nothing of the former members counts, nor back."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import get_args

import pytest

from tasksprint.consensus import (
    Accept,
    Accepted,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    ChosenNotice,
    Forward,
    Found,
    Founding,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Marks,
    Member,
    Message,
    Nack,
    Prepare,
    Promise,
    Recovered,
    Replica,
    Resign,
    Stale,
    Stranger,
    decode_membership,
    encode_founding,
    encode_membership,
)
from tasksprint.consensus.membership import Membership
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tests.consensus.helpers import (
    ballot,
    drain,
    entry,
    founded,
    from_peer,
    leader,
    make,
    sent,
    value,
)

NEW = encode_founding(
    Founding(
        "beef",
        (Member(ReplicaId(3), Incarnation("new3"), "h3"),),
        origins=("c0ffee",),
        retired=(ReplicaId(1), ReplicaId(2)),
    )
)
FORMER = Membership(0, tuple(Member(ReplicaId(n), Incarnation(f"inc{n}"), "h") for n in (1, 2, 3)))
HIGH = ballot(99, 1)
# One of each kind, as whoever leads the former cluster, or follows there, would say it.
MESSAGES: tuple[Message, ...] = (
    Hello("h1", Incarnation("new3"), None, (ReplicaId(1), ReplicaId(2), ReplicaId(3))),
    Hello("h1", Incarnation("new3"), "c0ffee", ()),
    Hello("h1", Incarnation("new3"), "beef", ()),
    Found(founded(3), encode_membership(FORMER)),
    Found(founded(3), encode_membership(Membership(7, FORMER.voters))),
    Stranger("c0ffee", Incarnation("inc3"), Incarnation("new3"), encode_membership(FORMER)),
    Canvass(1, Slot(50)),
    CanvassReply(1, is_welcome=True, round=98, chosen_end=Slot(50)),
    Prepare(HIGH, Slot(1)),
    Promise(HIGH, Slot(1), (entry(60, 98, 2, "x"),)),
    Nack(ballot(2, 3), HIGH),
    Accept(HIGH, Slot(41), value("x"), Slot(50)),
    Accepted(ballot(2, 3), (Slot(41),)),
    ChosenNotice(HIGH, Slot(50)),
    Heartbeat(HIGH, 1, Slot(50)),
    HeartbeatReply(HIGH, 1, Slot(50)),
    Resign(HIGH, "its disk is slow"),
    CatchUpRequest(Slot(1)),
    CatchUpReply(Slot(41), (entry(41, 98, 2, "x"),), Slot(50), Slot(1)),
    Forward((b"x",)),
    Stale("c0ffee", 0, 45, 0),
    Marks(((Incarnation("new3"), 1, 0, 45), (Incarnation("inc1"), 1, 0, 45))),
)


def test_list_has_each_kind() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))


def about(replica: Replica, message: Message) -> Message:
    """Return the message; one that speaks of the target's life is about its present one."""
    if isinstance(message, Stale):
        return replace(message, life=replica._outbox.numbers.last.life)
    return message


def recovered(*, is_started: bool = True) -> Replica:
    """Return replica 3 as it starts after a recovery at slot 40, leading its cluster of one."""
    end = Slot(41)
    replica = Replica(
        me=ReplicaId(3),
        address="h3",
        # Its command line names the former members, as ever.
        peers={ReplicaId(number): f"h{number}" for number in (1, 2, 3)},
        recovered=Recovered(
            incarnation=Incarnation("new3"),
            founding=NEW,
            promised=ballot(1, 1),
            chosen_end=end,
            applied_end=end,
            log_start=end,
        ),
        settings=Settings(chosen_notice_delay_ms=0, spare_delay_ms=0),
        random=Random(3),
        now_ms=0,
    )
    if is_started:
        drain(replica)
        assert replica.is_established and replica.addresses == {}
    return replica


def test_survivor_leads_at_once_and_speaks_with_nobody() -> None:
    replica = recovered(is_started=False)
    assert sent(drain(replica)) == []
    assert replica.is_established
    assert replica.membership == Membership(
        0, (Member(ReplicaId(3), Incarnation("new3"), "h3"),), retired=(ReplicaId(1), ReplicaId(2))
    )
    assert replica.propose(b"a", 1)
    chosen = [chosen.commands for ready in drain(replica, 1) for chosen in ready.chosen]
    assert chosen == [(b"a",)]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize(("source", "incarnation"), [(1, "inc1"), (2, "inc2"), (3, "inc3")])
def test_nothing_that_former_members_say_changes_the_new_cluster(
    message: Message, source: int, incarnation: str
) -> None:
    replica = recovered()
    before = (replica.status(), replica.membership, replica.addresses, replica.ballot)
    for _ in range(2):
        told = about(replica, message)
        replica.receive(from_peer(source, 3, told, incarnation=incarnation), 5)
    readies = drain(replica, 5)
    assert all(ready.persist is None and ready.fatal is None for ready in readies)
    assert all(ready.chosen == () and ready.confirmed_reads == () for ready in readies)
    # It says who it is, at most.
    for target, answer in sent(readies):
        assert target == source and isinstance(answer, Stranger) and answer.cluster == "beef"
        assert decode_membership(answer.membership) == replica.membership
    assert (replica.status(), replica.membership, replica.addresses, replica.ballot) == before
    assert replica.propose(b"a", 6)
    assert any(ready.chosen for ready in drain(replica, 6))


@pytest.mark.parametrize(
    "message",
    [
        Found(NEW, encode_membership(Membership(7, FORMER.voters[2:]))),
        Stale("beef", 0, 45, 0),
        *[message for message in MESSAGES if not isinstance(message, (Found, Stale))],
    ],
    ids=lambda message: type(message).__name__,
)
def test_nothing_that_the_survivor_says_counts_at_former_members(message: Message) -> None:
    """The one that leads there and the one that follows; both go on."""
    former, now_ms = leader(3)
    follower = make(2, 3)
    drain(follower)
    for replica in (former, follower):
        before = (replica.status(), replica.membership, replica.addresses, replica.ballot)
        told = about(replica, message)
        replica.receive(from_peer(3, replica.me, told, incarnation="new3"), now_ms)
        readies = drain(replica, now_ms)
        assert all(ready.persist is None and ready.fatal is None for ready in readies)
        assert all(isinstance(answer, Stranger) for _, answer in sent(readies))
        after = (replica.status(), replica.membership, replica.addresses, replica.ballot)
        assert after == before
    # Its word about who belongs there isn't heard either.
    stranger = Stranger("beef", None, Incarnation("inc1"), encode_membership(FORMER))
    former.receive(from_peer(3, 1, stranger, incarnation="new3"), now_ms)
    (ready,) = drain(former, now_ms)
    assert ready.fatal is None and "start them with the peers of their own" in ready.notes[0]
    assert former.is_leader


def test_two_former_members_and_the_survivor_are_no_quorum_of_either() -> None:
    """A vote of the survivor is missing there, as votes of the former members are here."""
    former, now_ms = leader(3)
    assert former.propose(b"a", now_ms)
    drain(former, now_ms)
    accepted = Accepted(ballot(1, 1), (Slot(2),))
    former.receive(from_peer(3, 1, accepted, incarnation="new3"), now_ms)
    assert all(ready.chosen == () for ready in drain(former, now_ms))
    former.receive(from_peer(2, 1, accepted), now_ms)
    assert any(ready.chosen for ready in drain(former, now_ms))


def test_former_ids_are_not_taken_up_again() -> None:
    replica = recovered()
    member = Member(ReplicaId(1), Incarnation("another"), "h1")
    refusal = replica.add_member(member, 1)
    assert refusal is not None and "was removed before" in refusal
    assert replica.add_member(Member(ReplicaId(4), Incarnation("inc4"), "h4"), 1) is None
