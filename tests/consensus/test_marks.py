"""Durable numbers: which lives of a replica fit together, and what a replica does about it."""

from __future__ import annotations

import pytest

from tasksprint.consensus import (
    Accept,
    Accepted,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    Chosen,
    DurableNumbers,
    Envelope,
    Heartbeat,
    HeartbeatReply,
    Hello,
    KnownMark,
    LogEntry,
    Mark,
    Marks,
    Message,
    Prepare,
    Promise,
    Replica,
    Stale,
)
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tests.consensus.helpers import (
    ballot,
    drain,
    entry,
    from_peer,
    leader,
    make,
    sent,
    start,
    value,
)

ME, PEER = Incarnation("me"), Incarnation("peer")
LOST = -1


def numbers(*heard: Mark, known: bytes | None = None) -> DurableNumbers:
    made = DurableNumbers(incarnation=ME, life=1, number=10, known=known)
    for mark in heard:
        made.hear(PEER, mark)
    return made


def said(source: int, target: int, message: Message, mark: Mark) -> Envelope:
    return Envelope(
        ReplicaId(source), Incarnation(f"inc{source}"), ReplicaId(target), message, mark
    )


# --- numbers ---


def test_own_number_grows_with_each_write_and_is_said_when_it_is_durable() -> None:
    own = numbers()
    assert own.now == own.last == Mark(1, 10, 10)
    assert [own.advance(), own.advance()] == [11, 12]
    assert (own.now, own.last) == (Mark(1, 10, 10), Mark(1, 10, 12))
    own.persisted(11)
    assert own.now == Mark(1, 10, 11)


@pytest.mark.parametrize(
    ("first", "then", "is_heard", "seen"),
    [
        # The same life, in whatever order its messages come.
        (Mark(7, 5, 45), Mark(7, 5, 46), True, 46),
        (Mark(7, 5, 45), Mark(7, 5, 40), True, 45),
        # The next life, of a disk that has all that was heard, or more.
        (Mark(7, 5, 45), Mark(8, 45, 45), True, 45),
        (Mark(7, 5, 45), Mark(8, 47, 50), True, 50),
        # A disk that went back, whether it has written since or not.
        (Mark(7, 5, 45), Mark(8, 17, 17), False, 45),
        (Mark(7, 5, 45), Mark(8, 17, 60), False, 60),
        (Mark(7, 5, 45), Mark(8, 3, 3), False, 45),
        # A late message of a former life.
        (Mark(8, 17, 30), Mark(7, 5, 12), False, 30),
        (Mark(8, 17, 30), Mark(7, 5, 17), False, 30),
        # Neither began where the other ended.
        (Mark(8, 17, 30), Mark(7, 5, 18), False, 30),
    ],
)
def test_lives_that_fit_together_are_heard(
    first: Mark, then: Mark, is_heard: bool, seen: int
) -> None:
    known = numbers(first)
    assert known.hear(PEER, then) == is_heard
    assert known.seen(PEER) == seen


def test_late_message_does_not_silence_the_present_life() -> None:
    known = numbers(Mark(7, 5, 45), Mark(8, 45, 50))
    assert not known.hear(PEER, Mark(7, 5, 44))
    assert known.hear(PEER, Mark(8, 45, 51))


def test_disk_that_went_back_stays_lost_whatever_it_writes_later() -> None:
    known = numbers(Mark(7, 5, 45), Mark(8, 17, 20))
    for mark in (Mark(8, 17, 99), Mark(9, 99, 99), Mark(7, 5, 45)):
        assert not known.hear(PEER, mark)
    again = numbers(known=known.take_unwritten())
    assert not again.hear(PEER, Mark(9, 99, 99))
    assert again.seen(PEER) == 45


def test_what_is_known_is_written_and_told_once() -> None:
    known = numbers(Mark(7, 5, 45))
    data = known.take_unwritten()
    assert data is not None and known.take_unwritten() is None
    assert known.take_untold() == ((PEER, 7, 5, 45),) and known.take_untold() == ()
    again = numbers(known=data)
    assert again.take_unwritten() is None
    assert again.take_untold() == ((PEER, 7, 5, 45),)  # A new leader tells it anew.
    known.hear(PEER, Mark(7, 5, 45))
    assert known.take_unwritten() is None and known.take_untold() == ()
    known.keep([PEER])
    assert known.take_untold() == ((PEER, 7, 5, 45),)  # There may be new members.
    known.keep([])
    assert known.seen(PEER) == 0


def test_nonsense_on_the_disk_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="not the marks of replicas"):
        numbers(known=b'[["peer",1]]')


@pytest.mark.parametrize(
    ("mine", "told", "result"),
    [
        (Mark(7, 5, 45), (7, 5, 50), (7, 5, 50)),
        (Mark(7, 5, 45), (8, 45, 50), (8, 45, 50)),
        (Mark(8, 45, 50), (7, 5, 45), (8, 45, 50)),
        (Mark(8, 17, 20), (7, 5, 45), (LOST, 45, 0)),  # I believed the older disk.
        (Mark(7, 5, 45), (8, 17, 60), (LOST, 60, 0)),  # The leader did.
        (Mark(7, 5, 45), (LOST, 50, 0), (LOST, 50, 0)),
    ],
)
def test_leader_tells_of_lives(
    mine: Mark, told: tuple[int, int, int], result: tuple[int, int, int]
) -> None:
    known = numbers(mine)
    assert known.take([(PEER, *told)]) is None
    assert known.take_untold() == ((PEER, *result),)


@pytest.mark.parametrize(
    ("told", "seen"),
    [((1, 10, 12), None), ((6, 2, 10), None), ((6, 2, 11), 11), ((LOST, 14, 0), 14)],
)
def test_leader_tells_of_this_very_replica(told: tuple[int, int, int], seen: int | None) -> None:
    assert numbers().take([(ME, *told)]) == seen


# --- replicas ---


def test_votes_of_an_older_disk_do_not_count_and_it_is_told() -> None:
    replica, now_ms = leader()
    replica.propose(b"a", now_ms)
    drain(replica, now_ms)
    beat = HeartbeatReply(ballot(1, 1), 1, Slot(2))
    replica.lives.end(ReplicaId(2))
    replica.receive(said(2, 1, beat, Mark(7, 5, 45)), now_ms)
    replica.lives.end(ReplicaId(2))
    replica.receive(said(2, 1, Accepted(ballot(1, 1), (Slot(2),)), Mark(8, 17, 18)), now_ms)
    taken = drain(replica, now_ms)
    assert sent(taken) == [(2, Stale("c0ffee", 8, 45, 17))]
    assert replica.chosen_end == 2
    replica.lives.end(ReplicaId(3))
    replica.receive(said(3, 1, Accepted(ballot(1, 1), (Slot(2),)), Mark(9, 0, 3)), now_ms)
    assert replica.chosen_end == 3


def test_nobody_promises_to_a_candidate_with_an_older_disk() -> None:
    replica = make(3, 3)
    replica.receive(said(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(7, 5, 45)), 0)
    drain(replica)
    replica.lives.end(ReplicaId(2))
    replica.receive(said(2, 3, Prepare(ballot(9, 2), Slot(1)), Mark(8, 17, 17)), 0)
    assert sent(drain(replica)) == [(2, Stale("c0ffee", 8, 45, 17))]


def own_life(replica: Replica) -> int:
    return replica._outbox.numbers.last.life


def test_replica_stops_that_hears_that_its_disk_is_older() -> None:
    replica = make(2, 3, durable=17)
    replica.receive(from_peer(1, 2, Stale("c0ffee", own_life(replica) + 1, 45, 17)), 0)
    assert drain(replica) == []  # That was said about a former life.
    replica.receive(from_peer(1, 2, Stale("c0ffee", own_life(replica), 45, 17)), 0)
    ready = drain(replica)[-1]
    assert ready.fatal == (
        "replica 2 returned with an older disk (durable number 17, replica 1 has seen 45): it "
        "counts as lost; start a new one with a new --id and --join, then tasksprint member "
        "replace 2 ID=HOST:PORT"
    )


def test_replica_with_an_older_disk_stops_again_whatever_it_wrote_since() -> None:
    """It wrote as much as it had lost before it was told: its next life looks like a good one."""
    known = numbers(Mark(7, 17, 18))
    assert not known.hear(PEER, Mark(8, 17, 17))
    assert known.hear(PEER, Mark(9, 18, 18))  # (If what it said in between got lost.)
    replica = make(2, 3, durable=17)
    replica.receive(from_peer(1, 2, Prepare(ballot(5, 1), Slot(1))), 0)
    promise = replica.ready()
    assert promise is not None and promise.persist is not None
    replica.receive(from_peer(1, 2, Stale("c0ffee", own_life(replica), 18, 17)), 0)
    loss = replica.ready()
    assert loss is not None and loss.persist is not None and loss.fatal is None
    assert replica.ready() is None  # It stops when the disk remembers why.
    replica.persisted(loss.sequence, 0)
    (stop,) = drain(replica)
    assert stop.fatal is not None and "(durable number 17, replica 1 has seen 18)" in stop.fatal
    again = start(2, 3, durable=loss.persist.durable, marks=loss.persist.marks)
    (ready,) = drain(again)
    assert sent([ready]) == [] and ready.persist is None
    assert ready.fatal is not None and "older disk (durable number 19, another one" in ready.fatal


def test_older_disk_is_told_by_members_that_it_does_not_know() -> None:
    """All whom it knows may have been replaced while it was away."""
    replica = make(2, 3, durable=17)
    stale = Stale("c0ffee", own_life(replica), 45, 17)
    replica.receive(from_peer(9, 2, stale), 0)
    ready = drain(replica)[-1]
    assert ready.fatal is not None and "replica 9 has seen 45)" in ready.fatal


def test_replica_stops_that_finds_itself_among_what_the_leader_knows() -> None:
    replica = make(2, 3, durable=17)
    known: tuple[KnownMark, ...] = ((Incarnation("inc2"), 6, 3, 45),)
    replica.receive(from_peer(1, 2, Marks(known)), 0)
    ready = drain(replica)[-1]
    assert ready.fatal is not None and "(durable number 17, replica 1 has seen 45)" in ready.fatal


def test_refusal_of_an_older_disk_is_said_again_once_it_can_be_heard() -> None:
    """`Admission.connected`: 1. Replica 3 has heard of write 45 of replica 2. 2. That returns
    with what it had after 17, and speaks to 3, which has no stream to it: the refusal is lost.
    3. Replica 1 leads, which has heard nothing of it, and 2 speaks to nobody else."""
    follower = make(3, 3)
    follower.receive(said(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(7, 5, 45)), 0)
    follower.lives.end(ReplicaId(2))
    drain(follower)
    older = make(2, 3, durable=17)
    life = own_life(older)
    follower.receive(said(2, 3, Canvass(5, Slot(1)), Mark(life, 17, 17)), 0)
    assert sent(drain(follower)) == [(2, Stale("c0ffee", life, 45, 17))]
    older.receive(said(1, 2, Heartbeat(ballot(2, 1), 1, Slot(1)), Mark(9, 0, 3)), 0)
    assert drain(older)[-1].fatal is None
    follower.connected(ReplicaId(2), 1_000)
    again = sent(drain(follower, 1_000))
    assert again[0] == (2, Stale("c0ffee", life, 45, 17))
    older.receive(said(3, 2, again[0][1], Mark(8, 0, 0)), 1_000)
    ready = drain(older, 1_000)[-1]
    assert ready.fatal is not None and "(durable number 17, replica 3 has seen 45)" in ready.fatal


def test_older_disk_is_found_out_by_a_member_to_which_it_says_nothing() -> None:
    """It need not have spoken to whoever knows better."""
    follower = make(3, 3)
    follower.receive(said(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(7, 5, 45)), 0)
    drain(follower)
    follower.connected(ReplicaId(2), 1_000)
    ((target, marks),) = sent(drain(follower, 1_000))
    assert (target, marks) == (2, Marks(((Incarnation("inc2"), 7, 5, 45),)))
    older, same = make(2, 3, durable=17), make(2, 3, durable=45)
    for replica in (older, same):
        replica.receive(said(3, 2, marks, Mark(8, 0, 0)), 1_000)
    ready = drain(older, 1_000)[-1]
    assert ready.fatal is not None and "(durable number 17, replica 3 has seen 45)" in ready.fatal
    assert [ready.fatal for ready in drain(same, 1_000)] == [], "all that was heard is there"


def test_member_that_left_is_told_nothing_more_of_its_disk() -> None:
    replica = make(3, 3)
    replica.receive(said(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(7, 5, 45)), 0)
    replica.lives.end(ReplicaId(2))
    replica.receive(said(2, 3, Canvass(5, Slot(1)), Mark(8, 17, 17)), 0)
    drain(replica)
    assert [*replica._admission._older] == [2]
    replica._admission._memberships.roster = lambda end: {}  # type: ignore[method-assign]
    replica._admission.refresh()
    assert not replica._admission._older
    replica.connected(ReplicaId(2), 1_000)
    assert sent(drain(replica, 1_000)) == []


def test_replica_that_forgot_its_founding_is_found_out_all_the_same() -> None:
    """A disk that was put back from before the cluster was founded: nothing is known there."""
    peer = make(1, 2)
    peer.receive(said(2, 1, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(7, 0, 45)), 0)
    drain(peer)
    peer.lives.end(ReplicaId(2))
    hello = Hello("h2", None, None, (ReplicaId(1), ReplicaId(2)))
    peer.receive(said(2, 1, hello, Mark(8, 0, 0)), 0)
    assert sent(drain(peer)) == [(2, Stale("c0ffee", 8, 45, 0))]
    replica = make(2, 2, founding=None)
    replica.receive(from_peer(1, 2, Stale("c0ffee", own_life(replica), 45, 0)), 0)
    ready = drain(replica)[-1]
    assert ready.fatal is not None and "older disk (durable number 0," in ready.fatal


def test_what_was_heard_travels_with_the_next_write_and_makes_none() -> None:
    replica = make(2, 3)
    replica.receive(said(1, 2, Heartbeat(ballot(1, 1), 1, Slot(1)), Mark(7, 0, 3)), 0)
    assert all(ready.persist is None for ready in drain(replica))
    accept = Accept(ballot(1, 1), Slot(1), value("a"), Slot(1))
    replica.receive(said(1, 2, accept, Mark(7, 0, 4)), 0)
    (ready,) = drain(replica)
    assert ready.persist is not None
    assert (ready.persist.durable, ready.persist.marks) == (1, b'[["inc1",7,0,4]]')
    # What rests on the write says so; what was said before it did not.
    assert [each.mark.number for each in ready.send_after_persist] == [1]
    again = make(2, 3, durable=1, marks=ready.persist.marks)
    again.receive(said(1, 2, Heartbeat(ballot(1, 1), 2, Slot(1)), Mark(8, 3, 3)), 0)
    assert sent(drain(again)) == [(1, Stale("c0ffee", 8, 4, 3))]


# --- chosen entries that the disk has lost ---


def test_no_promise_speaks_for_a_chosen_slot_whose_entry_is_lost() -> None:
    """`Learner.known_end`: 1. Slot 2 was chosen, and its entry is lost here. 2. A candidate
    that lacks it asks for a promise. 3. It learns that it must fetch slots 2 to 4 first."""
    entries = tuple(each for each in _entries() if each.slot != 2)
    replica = make(2, 3, accepted=entries, chosen_end=Slot(2), known_end=Slot(4))
    drain(replica)
    replica.receive(from_peer(3, 2, Prepare(ballot(5, 3), Slot(1))), 0)
    ((_, promise),) = sent(drain(replica), Promise)
    assert promise == Promise(ballot(5, 3), Slot(4), (entries[-1],))
    # Nor does it stand itself, but it asks for what it lacks.
    for _ in range(5):
        now_ms = replica.deadline_ms
        replica.tick(now_ms)
        asked = sent(drain(replica, now_ms))
        assert {type(message).__name__ for _, message in asked} <= {"CatchUpRequest"}
    assert replica.status().elections == 0


def test_what_lies_behind_the_gap_is_taken_from_the_own_disk() -> None:
    entries = _entries()
    kept = tuple(each for each in entries if each.slot != 2)
    replica = make(2, 3, accepted=kept, chosen_end=Slot(2), known_end=Slot(4))
    drain(replica)
    beat = Heartbeat(ballot(1, 1), 1, Slot(5))
    replica.receive(from_peer(1, 2, beat), 0)
    ((_, request),) = sent(drain(replica), CatchUpRequest)
    assert request == CatchUpRequest(Slot(2))
    reply = CatchUpReply(Slot(2), entries[1:2], Slot(5), Slot(1))
    replica.receive(from_peer(1, 2, reply), 0)
    assert replica.chosen_end == 4  # Slot 4 is here, but nobody knew that it was chosen.


def test_former_leader_cannot_fill_a_gap_of_what_is_chosen() -> None:
    """1. Slots 2 and 3 were chosen under a ballot that isn't promised here, and are lost here.
    2. A leader before that one asks for a vote in slot 3. 3. Somebody who knows no more than
    slot 2 sends it: slot 3 must stay open until its own value comes."""
    replica = make(3, 5, accepted=_entries()[:1], chosen_end=Slot(2), known_end=Slot(4))
    drain(replica)
    accept = Accept(ballot(1, 1), Slot(3), value("of a former leader"), Slot(2))
    replica.receive(from_peer(1, 3, accept), 0)
    assert not sent(drain(replica), Accepted)
    reply = CatchUpReply(Slot(2), (entry(2, 2, 2, "c2"),), Slot(3), Slot(1))
    replica.receive(from_peer(5, 3, reply), 0)
    drain(replica)
    assert replica.chosen_end == 3
    reply = CatchUpReply(Slot(3), (entry(3, 2, 2, "c3"),), Slot(4), Slot(1))
    replica.receive(from_peer(4, 3, reply), 0)
    (ready,) = drain(replica)
    assert ready.chosen == (Chosen(Slot(3), (b"c3",)),)


@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_promise_that_cannot_speak_for_open_slots_keeps_nobody_from_leading(
    order: tuple[int, int],
) -> None:
    """1. Slots 3 and 4 are chosen; 1 and 2 have them, and only 3 knew so, which has lost them.
    2. Replica 1 stands. Whoever answers first: the promises of 1 and 2 speak for all slots."""
    replica = make(1, 3, accepted=_entries(), chosen_end=Slot(3))
    drain(replica)
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    ((_, canvass), _) = sent(drain(replica, now_ms), Canvass)
    for peer, chosen_end in ((2, 3), (3, 3)):
        reply = CanvassReply(canvass.number, is_welcome=True, round=1, chosen_end=Slot(chosen_end))
        replica.receive(from_peer(peer, 1, reply), now_ms)
    ((_, prepare), _) = sent(drain(replica, now_ms), Prepare)
    promises = {
        2: Promise(prepare.ballot, Slot(3), _entries()[2:]),
        3: Promise(prepare.ballot, Slot(5), ()),
    }
    for peer in order:
        replica.receive(from_peer(peer, 1, promises[peer]), now_ms)
        drain(replica, now_ms)
    assert replica.is_leader
    assert replica.check() is None


def _entries() -> tuple[LogEntry, ...]:
    return tuple(entry(slot, 1, 1, f"c{slot}") for slot in range(1, 5))
