"""One replica, message by message, with whole `Ready`s compared."""

from __future__ import annotations

from random import Random

import pytest

from tasksprint.consensus import (
    Accept,
    Accepted,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    Chosen,
    ChosenNotice,
    Envelope,
    Forward,
    Heartbeat,
    HeartbeatReply,
    Message,
    Nack,
    Persist,
    Prepare,
    Promise,
    ReadLog,
    Ready,
    Recovered,
    Replica,
)
from tasksprint.errors import LocalProtocolError, RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tests.consensus.helpers import (
    ballot,
    bare,
    drain,
    entry,
    from_peer,
    leader,
    make,
    sent,
    start,
    value,
)


def _to(target: int, message: Message, *, source: int = 1) -> Envelope:
    return Envelope(
        ReplicaId(source),
        Incarnation(f"inc{source}"),
        ReplicaId(target),
        message,
    )


# --- leading ---


def test_commands_of_one_turn_share_an_entry_whose_accept_does_not_wait() -> None:
    replica, now_ms = leader()
    assert replica.propose(b"a", now_ms) and replica.propose(b"b", now_ms)
    accept = Accept(ballot(1, 1), Slot(2), value("a", "b"), Slot(2))
    ready = replica.ready()
    assert ready is not None
    assert bare(ready) == Ready(
        sequence=ready.sequence,
        send_now=(_to(2, accept), _to(3, accept)),
        persist=Persist(accepted=(entry(2, 1, 1, "a", "b"),), chosen_end=Slot(2)),
    )
    assert replica.ready() is None


def test_chosen_with_one_peer_and_the_own_write() -> None:
    replica, now_ms = leader()
    replica.propose(b"a", now_ms)
    first = replica.ready()
    assert first is not None
    replica.receive(from_peer(3, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    assert replica.ready() is None  # One vote: the own write isn't durable yet.
    replica.persisted(first.sequence, now_ms)
    notice = ChosenNotice(ballot(1, 1), Slot(3))
    assert bare(replica.ready()) == Ready(
        sequence=first.sequence + 1,
        send_now=(_to(2, notice), _to(3, notice)),
        chosen=(Chosen(Slot(2), (b"a",)),),
    )


def test_what_is_chosen_is_told_with_the_next_entry_or_after_a_while() -> None:
    replica, now_ms = leader(settings=Settings(chosen_notice_delay_ms=5, spare_delay_ms=0))
    replica.tick(now_ms)  # The heartbeat tells of the first slot.
    drain(replica, now_ms)

    def choose(slot: int) -> None:
        for peer in (2, 3):
            replica.receive(from_peer(peer, 1, Accepted(ballot(1, 1), (Slot(slot),))), now_ms)

    replica.propose(b"a", now_ms)
    replica.ready()
    choose(2)
    ready = replica.ready()
    assert ready is not None and ready.send_now == ()
    assert replica.deadline_ms == now_ms + 5
    replica.propose(b"b", now_ms)
    ready = replica.ready()
    assert ready is not None
    told = [envelope.message for envelope in ready.send_now]
    assert [type(message) for message in told] == [Accept, Accept]
    assert isinstance(told[0], Accept) and told[0].chosen_end == 3
    assert replica.deadline_ms > now_ms + 5  # Only the heartbeat is due.
    choose(3)
    replica.ready()
    replica.tick(now_ms + 4)
    assert replica.ready() is None
    replica.tick(now_ms + 5)
    notice = ChosenNotice(ballot(1, 1), Slot(4))
    ready = replica.ready()
    assert ready is not None and bare(ready).send_now == (_to(2, notice), _to(3, notice))


def test_chosen_by_two_peers_while_the_own_disk_hangs() -> None:
    replica, now_ms = leader()
    replica.propose(b"a", now_ms)
    replica.ready()
    for peer in (2, 3):
        replica.receive(from_peer(peer, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    ready = replica.ready()
    assert ready is not None and ready.chosen == (Chosen(Slot(2), (b"a",)),)


def test_repeated_acceptance_counts_once() -> None:
    replica, now_ms = leader(5)
    replica.propose(b"a", now_ms)
    drain(replica, now_ms)
    for _ in range(3):
        replica.receive(from_peer(2, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    assert replica.chosen_end == 2
    replica.receive(from_peer(3, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    assert replica.chosen_end == 3


def test_acceptance_of_another_ballot_or_life_does_not_count() -> None:
    replica, now_ms = leader()
    replica.propose(b"a", now_ms)
    drain(replica, now_ms)
    accepted = Accepted(ballot(1, 1), (Slot(2),))
    replica.receive(from_peer(2, 1, accepted, incarnation="another"), now_ms)
    replica.receive(from_peer(2, 1, Accepted(ballot(0, 1), (Slot(2),))), now_ms)
    replica.receive(from_peer(9, 1, accepted), now_ms)
    assert replica.chosen_end == 2


def test_slot_chosen_before_the_one_below_is_applied_after_it() -> None:
    replica, now_ms = leader()
    for command in (b"a", b"b"):
        replica.propose(command, now_ms)
        drain(replica, now_ms)
    replica.receive(from_peer(2, 1, Accepted(ballot(1, 1), (Slot(3),))), now_ms)
    assert all(ready.chosen == () for ready in drain(replica, now_ms))
    replica.receive(from_peer(3, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    assert drain(replica, now_ms)[0].chosen == (
        Chosen(Slot(2), (b"a",)),
        Chosen(Slot(3), (b"b",)),
    )


def test_entries_end_at_the_limit_of_bytes_and_slots_at_the_pipeline() -> None:
    settings = Settings(entry_bytes_max=14, pipeline_slots_max=2)
    replica, now_ms = leader(settings=settings)
    for command in (b"aaa", b"bbb", b"a command beyond the limit", b"c", b"d"):
        assert replica.propose(command, now_ms)
    ready = replica.ready()
    assert ready is not None and ready.persist is not None
    assert ready.persist.accepted == (
        entry(2, 1, 1, "aaa", "bbb"),
        entry(3, 1, 1, "a command beyond the limit"),
    )
    assert replica.status().waiting_commands == 2


def test_too_many_waiting_commands_are_refused() -> None:
    settings = Settings(waiting_commands_max=2, pipeline_slots_max=1)
    replica, now_ms = leader(settings=settings)
    replica.propose(b"under way", now_ms)
    replica.ready()
    assert [replica.propose(b"x", now_ms) for _ in range(3)] == [True, True, False]


def test_leader_behind_a_hanging_disk_opens_no_slots_without_end() -> None:
    replica, now_ms = leader()
    for number in range(300):
        replica.propose(b"x", now_ms)
        replica.ready()
        slots = (Slot(number + 2),)
        for peer in (2, 3):
            replica.receive(from_peer(peer, 1, Accepted(ballot(1, 1), slots)), now_ms)
    assert replica.chosen_end == 258
    assert replica.status().waiting_commands == 44


def test_unanswered_entry_is_repeated_to_those_who_did_not_answer() -> None:
    replica, now_ms = leader(5)
    replica.propose(b"a", now_ms)
    drain(replica, now_ms)
    replica.receive(from_peer(3, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    now_ms += 300
    replica.tick(now_ms)
    accept = Accept(ballot(1, 1), Slot(2), value("a"), Slot(2))
    assert sent(drain(replica, now_ms), Accept) == [(peer, accept) for peer in (2, 4, 5)]


def test_first_open_slot_is_repeated_at_a_steady_pace_and_others_ever_more_rarely() -> None:
    """Everything waits for the first one, perhaps at a peer that had no room for it."""
    replica, now_ms = leader()
    for command in (b"a", b"b"):
        replica.propose(command, now_ms)
        drain(replica, now_ms)
    times: dict[int, list[int]] = {2: [], 3: []}
    for beat in range(1, 31):
        replica.receive(from_peer(2, 1, HeartbeatReply(ballot(1, 1), beat, Slot(2))), now_ms)
        now_ms += 100
        replica.tick(now_ms)
        for target, message in sent(drain(replica, now_ms), Accept):
            if target == 2 and isinstance(message, Accept):
                times[message.slot].append(beat)
    assert times == {2: [3, 6, 9, 12, 15, 18, 21, 24, 27, 30], 3: [3, 9, 21]}


def test_leader_steps_down_when_the_others_cannot_make_a_quorum() -> None:
    replica, now_ms = leader()
    replica.read(8, now_ms)
    for peer in (2, 3):
        assert replica.is_leader
        replica.receive(from_peer(peer, 1, Nack(ballot(1, 1), ballot(2, 3))), now_ms)
    assert not replica.is_leader
    (ready,) = drain(replica, now_ms)
    assert ready.failed_reads == (8,)
    assert ready.notes == ("replica=1 ballot=1.1 steps down: replica 3 knows ballot 2.3",)


def test_leader_that_promises_a_higher_ballot_steps_down() -> None:
    replica, now_ms = leader()
    replica.propose(b"dropped", now_ms)
    replica.receive(from_peer(2, 1, Prepare(ballot(2, 2), Slot(2))), now_ms)
    assert not replica.is_leader and replica.leader is None
    assert not replica.propose(b"refused", now_ms)
    assert sent(drain(replica, now_ms), Accept) == []


def test_read_waits_until_an_entry_of_the_own_ballot_is_chosen() -> None:
    """A new leader may not know yet what its predecessor acknowledged."""
    replica = make(1, 3, accepted=(entry(1, 1, 2, "a"),), promised=ballot(1, 2))
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    ((_, canvass), *_) = sent(drain(replica, now_ms), Canvass)
    assert isinstance(canvass, Canvass)
    reply = CanvassReply(canvass.number, is_welcome=True, round=1, chosen_end=Slot(1))
    replica.receive(from_peer(2, 1, reply), now_ms)
    drain(replica, now_ms)
    replica.receive(from_peer(2, 1, Promise(ballot(2, 1), Slot(1), ())), now_ms)
    assert replica.is_leader and not replica.is_established
    replica.read(5, now_ms)
    drain(replica, now_ms)
    replica.receive(from_peer(2, 1, HeartbeatReply(ballot(2, 1), 1, Slot(1))), now_ms)
    assert drain(replica, now_ms) == []
    replica.receive(from_peer(2, 1, Accepted(ballot(2, 1), (Slot(1),))), now_ms)
    assert replica.is_established
    (ready,) = drain(replica, now_ms)
    assert ready.chosen == (Chosen(Slot(1), (b"a",)),)
    assert ready.confirmed_reads == (5,)


def test_answer_to_an_earlier_heartbeat_confirms_no_later_read() -> None:
    replica, now_ms = leader()
    now_ms += 100
    replica.tick(now_ms)
    drain(replica, now_ms)
    replica.read(1, now_ms)
    drain(replica, now_ms)
    replica.receive(from_peer(2, 1, HeartbeatReply(ballot(1, 1), 1, Slot(2))), now_ms)
    assert drain(replica, now_ms) == []
    replica.receive(from_peer(2, 1, HeartbeatReply(ballot(1, 1), 2, Slot(2))), now_ms)
    assert drain(replica, now_ms)[0].confirmed_reads == (1,)


def test_forwarded_commands_are_proposed_by_the_leader_only() -> None:
    replica, now_ms = leader()
    replica.receive(from_peer(2, 1, Forward((b"a", b"b"))), now_ms)
    assert replica.forward(b"c")
    (first, *_) = drain(replica, now_ms)
    assert first.persist is not None
    assert first.persist.accepted == (entry(2, 1, 1, "a", "b", "c"),)
    follower = make(2, 3)
    follower.receive(from_peer(3, 2, Forward((b"a",))), 0)
    assert not follower.forward(b"nobody to send it to")
    assert drain(follower) == []


# --- following ---


def test_accepts_of_one_turn_share_a_write_and_an_answer() -> None:
    replica = make(2, 3)
    for slot, command in ((1, "a"), (2, "b")):
        accept = Accept(ballot(1, 1), Slot(slot), value(command), Slot(1))
        replica.receive(from_peer(1, 2, accept), 0)
    ready = replica.ready()
    assert bare(ready) == Ready(
        sequence=2,
        persist=Persist(
            promised=ballot(1, 1), accepted=(entry(1, 1, 1, "a"), entry(2, 1, 1, "b"))
        ),
        send_after_persist=(_to(1, Accepted(ballot(1, 1), (Slot(1), Slot(2))), source=2),),
        notes=("replica=2 ballot=1.1 follows replica 1",),
    )


def test_repeated_accept_is_not_answered_before_the_first_write_is_durable() -> None:
    """1. An Accept is being written. 2. It arrives again; nothing is left to write. 3. Its
    answer must wait for the write under way all the same."""
    replica = make(2, 3)
    accept = from_peer(1, 2, Accept(ballot(1, 1), Slot(1), value("a"), Slot(1)))
    replica.receive(accept, 0)
    first = replica.ready()
    replica.receive(accept, 0)
    second = replica.ready()
    assert first is not None and second is not None
    assert second.persist == Persist()
    assert second.send_now == ()
    replica.persisted(second.sequence, 0)
    replica.receive(accept, 0)
    third = replica.ready()
    assert third is not None and third.persist is None


def test_accept_below_the_chosen_prefix_is_answered_and_not_written_again() -> None:
    replica = make(
        2, 3, accepted=(entry(1, 1, 1, "a"),), promised=ballot(1, 1), chosen_end=Slot(2)
    )
    drain(replica)
    accept = Accept(ballot(2, 3), Slot(1), value("a"), Slot(1))
    replica.receive(from_peer(3, 2, accept), 0)
    (ready,) = drain(replica)
    assert bare(ready).persist == Persist(promised=ballot(2, 3))
    assert sent([ready]) == [(3, Accepted(ballot(2, 3), (Slot(1),)))]


def test_another_value_for_a_chosen_slot_stops_the_replica() -> None:
    replica = make(
        2, 3, accepted=(entry(1, 1, 1, "a"),), promised=ballot(1, 1), chosen_end=Slot(2)
    )
    accept = Accept(ballot(2, 3), Slot(1), value("b"), Slot(1))
    with pytest.raises(AssertionError, match="another value was proposed for the chosen slot 1"):
        replica.receive(from_peer(3, 2, accept), 0)


def test_other_value_of_a_leader_that_was_replaced_is_passed_over() -> None:
    """Not a reason to stop: who catches up may not have heard of the new leader at all.

    1. Leader 1 (ballot 1) proposes "a" in slot 1, and reaches nobody yet.
    2. Leader 3 (ballot 2) hears a quorum without replica 2, and has "b" chosen.
    3. Replica 2 learns slot 1 from a replica that is ahead. It has promised nothing to 3.
    4. Leader 1, which knows nothing of 3, repeats its proposal to replica 2.
    """
    replica = make(2, 5, promised=ballot(1, 1))
    reply = CatchUpReply(Slot(1), (entry(1, 2, 3, "b"),), Slot(2), Slot(1))
    replica.receive(from_peer(4, 2, reply), 0)
    assert replica.chosen_end == 2
    drain(replica)
    replica.receive(from_peer(1, 2, Accept(ballot(1, 1), Slot(1), value("a"), Slot(1))), 0)
    assert sent(drain(replica)) == []  # It isn't accepted, either: nothing counts as a vote.


def test_heartbeat_marks_only_what_was_accepted_under_its_ballot() -> None:
    replica = make(
        2, 3, accepted=(entry(1, 2, 3, "a"), entry(2, 1, 1, "b")), promised=ballot(2, 3)
    )
    replica.receive(from_peer(3, 2, Heartbeat(ballot(2, 3), 1, Slot(3))), 0)
    (ready,) = drain(replica)
    assert ready.chosen == (Chosen(Slot(1), (b"a",)),)
    assert sent([ready]) == [
        (3, CatchUpRequest(Slot(2))),
        (3, HeartbeatReply(ballot(2, 3), 1, Slot(2))),
    ]


def test_heartbeat_alone_promises_nothing() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(3, 2, Heartbeat(ballot(2, 3), 1, Slot(1))), 0)
    (ready,) = drain(replica)
    assert ready.persist is None
    assert replica.leader == 3


def test_lower_ballot_than_the_leader_followed_is_refused() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(3, 2, Heartbeat(ballot(2, 3), 1, Slot(1))), 0)
    drain(replica)
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 9, Slot(1))), 0)
    replica.receive(from_peer(1, 2, Prepare(ballot(2, 1), Slot(1))), 0)
    assert sent(drain(replica)) == [
        (1, Nack(ballot(1, 1), ballot(2, 3))),
        (1, Nack(ballot(2, 1), ballot(2, 3))),
    ]
    assert replica.leader == 3


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Heartbeat(ballot(2, 3), 1, Slot(1)), "replica 1 leads under 2.3, not its own"),
        (Prepare(ballot(2, 3), Slot(1)), "replica 1 stands under 2.3, not its own"),
    ],
)
def test_ballot_of_another_replica_is_refused(message: Heartbeat | Prepare, text: str) -> None:
    replica = make(2, 3)
    with pytest.raises(RemoteProtocolError) as caught:
        replica.receive(from_peer(1, 2, message), 0)
    assert str(caught.value) == text


# --- elections ---


def test_follower_that_hears_its_leader_welcomes_nobody() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 1, Slot(1))), 1_000)
    drain(replica)
    for now_ms, is_welcome in ((1_699, False), (1_700, True)):
        replica.receive(from_peer(3, 2, Canvass(77, Slot(1))), now_ms)
        ((_, reply),) = sent(drain(replica), CanvassReply)
        assert reply == CanvassReply(77, is_welcome, 1, Slot(1))


def test_replica_that_cannot_hear_a_quorum_never_raises_its_ballot() -> None:
    """It asks again and again, so that nothing is disturbed when it returns."""
    replica = make(2, 3)
    asked = 0
    for _ in range(20):
        now_ms = replica.deadline_ms
        replica.tick(now_ms)
        readies = drain(replica, now_ms)
        asked += len(sent(readies, Canvass))
        assert all(ready.persist is None for ready in readies)
    assert asked == 40
    assert replica.ballot == ballot(0, 0)


def test_answer_to_an_earlier_canvass_does_not_count() -> None:
    replica = make(2, 3)
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    drain(replica, now_ms)
    reply = CanvassReply(12_345, is_welcome=True, round=0, chosen_end=Slot(1))
    replica.receive(from_peer(1, 2, reply), now_ms)
    assert drain(replica, now_ms) == []


def test_broken_connection_to_the_leader_starts_a_canvass_within_20_ms() -> None:
    for seed in range(20):
        replica = make(2, 3)
        replica._election._random.seed(seed)
        replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 1, Slot(1))), 5_000)
        replica.disconnected(ReplicaId(3), 5_100)
        assert replica.deadline_ms >= 5_700
        replica.disconnected(ReplicaId(1), 5_100)
        assert 5_100 <= replica.deadline_ms <= 5_120
        assert replica.leader is None


def test_replica_that_can_ask_a_quorum_and_never_heard_a_leader_asks_at_once() -> None:
    """After a restart of all members nobody waits for a timeout that nothing can end."""
    for seed in range(20):
        replica = make(2, 5)
        replica._election._random.seed(seed)
        replica.connected(ReplicaId(1), 150)
        replica.connected(ReplicaId(1), 155)
        assert replica.deadline_ms >= 200
        replica.connected(ReplicaId(4), 160)
        assert 160 <= replica.deadline_ms <= 180
        # Once: who is connected anew later tells nothing about leaders.
        replica.tick(180)
        later_ms = replica.deadline_ms
        replica.connected(ReplicaId(3), 190)
        assert replica.deadline_ms == later_ms > 300


def test_connections_change_nothing_for_who_hears_a_leader() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 1, Slot(1))), 100)
    drain(replica, 100)
    replica.connected(ReplicaId(1), 110)
    assert replica.deadline_ms >= 800


def _candidate() -> tuple[Replica, int]:
    """Return replica 1 of three, standing under 1.1, its ballot durable."""
    replica = make(1, 3)
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    ((_, canvass), *_) = sent(drain(replica, now_ms), Canvass)
    assert isinstance(canvass, Canvass)
    reply = CanvassReply(canvass.number, is_welcome=True, round=0, chosen_end=Slot(1))
    replica.receive(from_peer(2, 1, reply), now_ms)
    ready = replica.ready()
    assert ready is not None
    prepare = Prepare(ballot(1, 1), Slot(1))
    assert bare(ready).persist == Persist(promised=ballot(1, 1))
    assert ready.send_now == ()
    assert bare(ready).send_after_persist == (_to(2, prepare), _to(3, prepare))
    replica.persisted(ready.sequence, now_ms)
    return replica, now_ms


def test_repeated_promise_counts_once_and_changes_nothing() -> None:
    replica, now_ms = _candidate()
    replica.receive(from_peer(2, 1, Promise(ballot(0, 1), Slot(1), ())), now_ms)
    assert not replica.is_leader  # of another ballot
    promise = Promise(ballot(1, 1), Slot(1), ())
    replica.receive(from_peer(2, 1, promise), now_ms)
    assert replica.is_leader
    drain(replica, now_ms)
    replica.receive(from_peer(2, 1, promise), now_ms)
    replica.receive(from_peer(3, 1, promise), now_ms)
    assert drain(replica, now_ms) == []


def test_candidate_behind_a_promise_fetches_before_it_proposes() -> None:
    replica, now_ms = _candidate()
    replica.receive(from_peer(2, 1, Promise(ballot(1, 1), Slot(3), ())), now_ms)
    readies = drain(replica, now_ms)
    assert sent(readies) == [(2, CatchUpRequest(Slot(1)))]
    assert not replica.is_leader
    entries = (entry(1, 1, 3, "a"), entry(2, 1, 3, "b"))
    replica.receive(from_peer(2, 1, CatchUpReply(Slot(1), entries, Slot(3), Slot(1))), now_ms)
    assert replica.is_leader
    (ready,) = drain(replica, now_ms)
    accept = Accept(ballot(1, 1), Slot(3), b"", Slot(3))
    assert sent([ready], Accept) == [(2, accept), (3, accept)]


def test_promise_speaks_only_for_slots_that_its_sender_does_not_know_chosen() -> None:
    replica = make(
        2,
        3,
        accepted=(entry(1, 1, 1, "a"), entry(2, 1, 1, "b"), entry(3, 1, 1, "c")),
        promised=ballot(1, 1),
        chosen_end=Slot(3),
    )
    drain(replica)
    replica.receive(from_peer(3, 2, Prepare(ballot(2, 3), Slot(1))), 0)
    assert sent(drain(replica), Promise) == [
        (3, Promise(ballot(2, 3), Slot(3), (entry(3, 1, 1, "c"),)))
    ]


def test_refused_candidate_stands_above_what_refused_it() -> None:
    replica, now_ms = _candidate()
    replica.receive(from_peer(3, 1, Nack(ballot(1, 1), ballot(9, 3))), now_ms)
    drain(replica, now_ms)
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    ((_, canvass), *_) = sent(drain(replica, now_ms), Canvass)
    assert isinstance(canvass, Canvass)
    reply = CanvassReply(canvass.number, is_welcome=True, round=0, chosen_end=Slot(1))
    replica.receive(from_peer(2, 1, reply), now_ms)
    drain(replica, now_ms)
    assert replica.ballot == ballot(10, 1)


def test_candidate_whose_disk_is_slow_keeps_its_candidacy() -> None:
    """Nobody was asked yet; giving up would raise the ballot again and again."""
    replica = make(1, 1, promised=ballot(3, 1))
    ready = replica.ready()
    assert ready is not None
    for _ in range(5):
        replica.tick(replica.deadline_ms)
        assert replica.ready() is None
    replica.persisted(ready.sequence, replica.deadline_ms)
    assert replica.is_leader and replica.ballot == ballot(4, 1)


# --- catching up ---


def test_answer_ends_at_the_limit_and_the_next_piece_is_asked_for() -> None:
    settings = Settings(catch_up_bytes_max=12)
    log = tuple(entry(slot, 1, 1, "abcd") for slot in (1, 2, 3))
    source = make(1, 3, settings=settings, accepted=log, chosen_end=Slot(4), promised=ballot(1, 1))
    drain(source)
    source.receive(from_peer(2, 1, CatchUpRequest(Slot(1))), 0)
    reply = CatchUpReply(Slot(1), log[:1], Slot(4), Slot(1))
    assert sent(drain(source)) == [(2, reply)]
    target = make(2, 3)
    target.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 1, Slot(4))), 0)
    drain(target)
    target.receive(from_peer(1, 2, reply), 0)
    assert sent(drain(target)) == [(1, CatchUpRequest(Slot(2)))]
    target.receive(from_peer(1, 2, reply), 0)  # a repetition starts no second chain
    assert drain(target) == []


def test_entries_that_left_memory_are_read_from_the_log() -> None:
    settings = Settings(log_window_slots=2)
    log = tuple(entry(slot, 1, 1, "abcd") for slot in (1, 2, 3, 4))
    replica = make(
        1,
        3,
        settings=settings,
        accepted=log[2:],
        chosen_end=Slot(5),
        applied_end=Slot(5),
        promised=ballot(1, 1),
    )
    request = from_peer(2, 1, CatchUpRequest(Slot(1)))
    replica.receive(request, 0)
    replica.receive(request, 0)
    (ready,) = drain(replica)
    read = ReadLog(ReplicaId(2), Slot(1), Slot(3), settings.catch_up_bytes_max)
    assert ready.read_log == (read,)
    replica.log_read(read, log[:2], 0)
    assert sent(drain(replica)) == [(2, CatchUpReply(Slot(1), log[:2], Slot(5), Slot(1)))]


def test_replica_below_a_truncated_log_says_what_it_lacks() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 1, Slot(90))), 0)
    drain(replica)
    replica.receive(from_peer(1, 2, CatchUpReply(Slot(1), (), Slot(90), Slot(50))), 0)
    (ready,) = drain(replica)
    assert ready.notes == (
        "replica=2 lacks slot 1, but replica 1 keeps its log only from 50 on; "
        "this replica needs a copy of the state",
    )


def test_lost_catch_up_is_asked_for_again_of_anyone_who_is_ahead() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 1, Slot(9))), 0)
    drain(replica)
    replica.tick(299)
    assert sent(drain(replica), CatchUpRequest) == []
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 2, Slot(9))), 299)
    replica.tick(300)
    assert sent(drain(replica), CatchUpRequest) == [(1, CatchUpRequest(Slot(1)))]


def test_entries_out_of_order_are_left_for_the_next_request() -> None:
    replica = make(2, 3)
    entries = (entry(2, 1, 1, "b"), entry(3, 1, 1, "c"))
    replica.receive(from_peer(1, 2, CatchUpReply(Slot(2), entries, Slot(4), Slot(1))), 0)
    assert replica.chosen_end == 1


# --- restarts ---


def test_restart_applies_what_the_mirror_lacks() -> None:
    log = tuple(entry(slot, 1, 1, f"c{slot}") for slot in (1, 2, 3, 4))
    replica = start(
        2, 3, accepted=log, chosen_end=Slot(4), applied_end=Slot(3), promised=ballot(1, 1)
    )
    (ready,) = drain(replica)
    assert ready.chosen == (Chosen(Slot(3), (b"c3",)),)
    assert replica.chosen_end == 4


def test_mirror_ahead_of_the_mark_counts_as_chosen() -> None:
    log = tuple(entry(slot, 1, 1, f"c{slot}") for slot in (1, 2, 3))
    replica = make(2, 3, accepted=log, chosen_end=Slot(2), applied_end=Slot(4))
    assert replica.chosen_end == 4
    assert drain(replica) == []


def test_mark_of_what_is_chosen_never_goes_back_while_lost_entries_are_fetched() -> None:
    """Neither by the first write nor by a later one; else a promise could speak for them."""
    replica = make(2, 3, known_end=Slot(5))
    marks = []
    for number in (1, 2, 3):
        reply = CatchUpReply(Slot(number), (entry(number, 1, 1, "a"),), Slot(6), Slot(1))
        replica.receive(from_peer(1, 2, reply), 0)
        marks += [ready.persist.chosen_end for ready in drain(replica) if ready.persist]
    assert marks == [None] * 3
    entries = tuple(entry(slot, 1, 1, "a") for slot in (4, 5))
    replica.receive(from_peer(1, 2, CatchUpReply(Slot(4), entries, Slot(6), Slot(1))), 0)
    marks = [ready.persist.chosen_end for ready in drain(replica) if ready.persist]
    assert marks == [6]


def test_log_with_a_hole_is_refused() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        make(2, 3, accepted=(entry(1, 1, 1, "a"),), chosen_end=Slot(3))
    assert str(caught.value) == "recovered log lacks slot 2, expected all from 1 to 2"


def test_former_leader_restarts_as_follower_and_ignores_votes_for_its_old_ballot() -> None:
    replica = make(1, 3, accepted=(entry(1, 4, 1, "a"),), promised=ballot(4, 1))
    replica.receive(from_peer(2, 1, Accepted(ballot(4, 1), (Slot(1),))), 0)
    replica.receive(from_peer(3, 1, Accepted(ballot(4, 1), (Slot(1),))), 0)
    replica.receive(from_peer(3, 1, Promise(ballot(4, 1), Slot(1), ())), 0)
    assert not replica.is_leader
    assert replica.chosen_end == 1
    assert drain(replica) == []


def test_status_tells_of_peers() -> None:
    replica, now_ms = leader()
    replica.receive(from_peer(2, 1, HeartbeatReply(ballot(1, 1), 1, Slot(2))), now_ms + 40)
    replica.tick(now_ms + 100)
    status = replica.status()
    assert (status.role, status.leader, status.elections) == ("leader", 1, 1)
    assert status.peers[ReplicaId(2)].chosen_end == 2
    assert status.peers[ReplicaId(2)].heard_ms == 60
    assert status.last_cause == "knows no leader"


def test_replica_alone_leads_at_once_and_confirms_reads_itself() -> None:
    replica = Replica(
        me=ReplicaId(1),
        address="h1",
        recovered=Recovered(incarnation=Incarnation("inc1")),
        settings=Settings(),
        random=Random(0),
        now_ms=0,
    )
    drain(replica)
    assert replica.is_established
    assert replica.read(1, 0) and replica.propose(b"a", 0)
    first, second = drain(replica)
    assert first.confirmed_reads == (1,)
    assert second.chosen == (Chosen(Slot(2), (b"a",)),)
