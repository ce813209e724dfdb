"""A log that was truncated: who lags behind it, and what a copy of the state changes."""

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
    Heartbeat,
    Prepare,
    Promise,
    Replica,
)
from tasksprint.ids import ReplicaId, Slot
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


def truncated(log_start: int, chosen_end: int = 90) -> CatchUpReply:
    return CatchUpReply(Slot(1), (), Slot(chosen_end), Slot(log_start))


def lagging(*, heard: tuple[int, ...] = (1,)) -> Replica:
    """Return replica 2 of 3, which knows that others are ahead and has asked one."""
    replica = make(2, 3)
    for peer in heard:
        replica.receive(from_peer(peer, 2, Heartbeat(ballot(peer, peer), 1, Slot(90))), 0)
    drain(replica)
    return replica


# --- the store truncates ---


def test_truncated_entries_leave_memory_and_replies_say_so() -> None:
    log = tuple(entry(slot, 1, 1, "abcd") for slot in (1, 2, 3, 4))
    replica = make(1, 3, accepted=log, chosen_end=Slot(5), applied_end=Slot(5))
    replica.truncated(Slot(4))
    replica.check()
    replica.receive(from_peer(2, 1, CatchUpRequest(Slot(2))), 0)
    replica.receive(from_peer(3, 1, CatchUpRequest(Slot(4))), 0)
    assert sent(drain(replica)) == [
        (2, CatchUpReply(Slot(2), (), Slot(5), Slot(4))),
        (3, CatchUpReply(Slot(4), log[3:], Slot(5), Slot(4))),
    ]
    replica.truncated(Slot(2))  # Later and lower: changes nothing.
    assert replica.status().log_start == 4


def test_whole_log_may_be_truncated_and_the_leader_goes_on() -> None:
    replica, now_ms = leader()
    replica.truncated(replica.chosen_end)
    replica.propose(b"a", now_ms)
    drain(replica, now_ms)
    replica.receive(from_peer(2, 1, Accepted(ballot(1, 1), (Slot(2),))), now_ms)
    assert [ready.chosen for ready in drain(replica, now_ms) if ready.chosen] == [
        (Chosen(Slot(2), (b"a",)),)
    ]


def test_what_is_not_chosen_is_not_truncated() -> None:
    replica = make(2, 3)
    with pytest.raises(AssertionError, match="only what is chosen is truncated"):
        replica.truncated(Slot(2))


# --- who needs a copy ---


def test_replica_asks_all_who_are_ahead_before_it_needs_a_copy() -> None:
    replica = lagging(heard=(1, 3))
    asked = [target for target, _ in sent(drain(replica), CatchUpRequest)]
    assert asked == []  # That was said in `lagging`; the first who was heard was asked.
    replica.receive(from_peer(1, 2, truncated(50)), 0)
    assert not replica.state_givers
    assert sent(drain(replica)) == [(3, CatchUpRequest(Slot(1)))]
    replica.receive(from_peer(3, 2, truncated(60)), 0)
    assert replica.state_givers == (1, 3)
    assert replica.status().state_givers == (1, 3)


def test_silent_peer_is_not_waited_for_when_another_can_give_a_copy() -> None:
    replica = lagging(heard=(1, 3))
    replica.receive(from_peer(1, 2, truncated(50)), 0)
    drain(replica)
    assert not replica.state_givers
    replica.tick(300)
    assert replica.state_givers == (1,)
    drain(replica)
    # It comes back, and has the log: no copy is needed.
    log = tuple(entry(slot, 1, 1, "a") for slot in (1, 2))
    replica.receive(from_peer(3, 2, CatchUpReply(Slot(1), log, Slot(90), Slot(1))), 310)
    assert not replica.state_givers
    assert replica.chosen_end == 3


def test_replica_that_does_not_lag_needs_no_copy() -> None:
    replica = make(2, 3)
    assert not replica.state_givers
    replica.receive(from_peer(1, 2, CatchUpReply(Slot(1), (), Slot(1), Slot(1))), 0)
    assert not replica.state_givers


# --- a copy was taken over ---


def test_copy_moves_the_chosen_prefix_and_the_tail_comes_by_the_log() -> None:
    replica = lagging()
    replica.receive(from_peer(1, 2, truncated(50)), 0)
    drain(replica)
    replica.state_copied(Slot(80), 5)
    (ready,) = drain(replica)
    assert ready.notes == ("replica=2 took over a copy of the state up to slot 79",)
    assert ready.chosen == ()
    assert (replica.chosen_end, replica.status().log_start) == (80, 80)
    assert not replica.state_givers
    replica.receive(from_peer(1, 2, Heartbeat(ballot(1, 1), 2, Slot(82))), 6)
    assert sent(drain(replica), CatchUpRequest) == [(1, CatchUpRequest(Slot(80)))]
    tail = tuple(entry(slot, 1, 1, f"c{slot}") for slot in (80, 81))
    replica.receive(from_peer(1, 2, CatchUpReply(Slot(80), tail, Slot(82), Slot(50))), 7)
    (ready,) = drain(replica)
    assert ready.chosen == (Chosen(Slot(80), (b"c80",)), Chosen(Slot(81), (b"c81",)))


def test_promise_and_later_acceptances_outlast_a_copy() -> None:
    """What a copy covers is chosen; for all else the acceptor's word stands."""
    replica = lagging()
    for slot in (79, 80, 81):
        accept = Accept(ballot(1, 1), Slot(slot), value(f"c{slot}"), Slot(1))
        replica.receive(from_peer(1, 2, accept), 0)
    drain(replica)
    replica.state_copied(Slot(80), 5)
    drain(replica)
    assert replica.ballot == ballot(1, 1)
    replica.receive(from_peer(3, 2, Prepare(ballot(2, 3), Slot(60))), 6)
    (promise,) = [message for _, message in sent(drain(replica), Promise)]
    assert promise == Promise(
        ballot(2, 3), Slot(80), (entry(80, 1, 1, "c80"), entry(81, 1, 1, "c81"))
    )


def test_leader_elected_while_a_copy_was_put_in_place_resigns() -> None:
    """1. A copy is being put in place. 2. Somebody who has the log comes back, and this
    replica is elected. 3. The copy is durable, and the state is the copy's from now on."""
    replica, now_ms = leader()
    drain(replica, now_ms)
    replica.state_copied(Slot(1), now_ms)
    assert not replica.is_leader
    replica.check()
    assert "takes over a copy" in " ".join(drain(replica, now_ms)[0].notes)


def test_copy_below_what_is_known_meanwhile_changes_only_the_start() -> None:
    log = tuple(entry(slot, 1, 1, f"c{slot}") for slot in (1, 2, 3, 4))
    replica = start(2, 3, accepted=log, chosen_end=Slot(5), applied_end=Slot(1))
    replica.state_copied(Slot(3), 5)
    (ready,) = drain(replica)
    # Slots 3 and 4 are still to be applied, upon the copy.
    assert ready.chosen == (Chosen(Slot(3), (b"c3",)), Chosen(Slot(4), (b"c4",)))
    assert (replica.chosen_end, replica.status().log_start) == (5, 3)


def test_candidate_that_lacked_truncated_slots_takes_office_once_it_has_a_copy() -> None:
    """It was elected by a quorum, but one who promised knows slots that are in no log."""
    replica = make(2, 3)
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    canvass = sent(drain(replica, now_ms))[0][1]
    assert isinstance(canvass, Canvass)
    reply = CanvassReply(canvass.number, is_welcome=True, round=0, chosen_end=Slot(70))
    replica.receive(from_peer(3, 2, reply), now_ms)
    drain(replica, now_ms)
    replica.receive(from_peer(3, 2, Promise(replica.ballot, Slot(70), ())), now_ms)
    assert not replica.is_leader
    drain(replica, now_ms)
    replica.receive(from_peer(3, 2, truncated(70, 70)), now_ms)
    drain(replica, now_ms)
    assert replica.state_givers == (ReplicaId(3),)
    replica.state_copied(Slot(70), now_ms + 1)
    assert replica.is_leader
    accepted = [message for _, message in sent(drain(replica, now_ms + 1), Accept)]
    assert [message.slot for message in accepted if isinstance(message, Accept)] == [70, 70]
