"""Changing who votes: quorums of each slot, learners, refusals, and going home."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from tasksprint.consensus import (
    ALPHA,
    NOOP,
    Accept,
    Accepted,
    Ballot,
    Chosen,
    Found,
    Heartbeat,
    HeartbeatReply,
    Hello,
    LogEntry,
    Member,
    Membership,
    Message,
    Prepare,
    Promise,
    Recovered,
    Replica,
    Resign,
    Stranger,
    decode_founding,
    decode_membership,
    decode_membership_value,
    encode_membership,
    encode_membership_value,
)
from tasksprint.consensus.changes import addition, next_step, refusal, removal
from tasksprint.consensus.membership import is_next_step, with_learner, with_promoted, without
from tasksprint.consensus.voters import Memberships
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tests.consensus.helpers import ballot, drain, founded, from_peer, leader, make, sent


def _member(number: int) -> Member:
    return Member(ReplicaId(number), Incarnation(f"inc{number}"), f"h{number}")


def _founders(count: int) -> Membership:
    return Membership(0, decode_founding(founded(count)).members)


def _ids(*numbers: int) -> set[ReplicaId]:
    return {ReplicaId(number) for number in numbers}


def _entry(slot: int, membership: Membership) -> LogEntry:
    return LogEntry(Slot(slot), Ballot(1, ReplicaId(1)), encode_membership_value(membership))


# --- memberships and their order ---


def test_membership_comes_back_as_it_was() -> None:
    membership = with_learner(
        without(_founders(3), ReplicaId(2)), _member(4), replaces=ReplicaId(3)
    )
    assert decode_membership(encode_membership(membership)) == membership
    assert decode_membership_value(encode_membership_value(membership)) == membership
    assert decode_membership_value(NOOP) is None
    assert membership.describe() == "voters 1, 3; learners 4"
    assert membership.number == 2 and membership.retired == (2,)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"version":2}', "a membership has version 2, expected 1; run the same release"),
        (b'{"version":1}', "not a membership: "),
        (b"[]", "not a membership: []"),
        (
            b'{"version":1,"number":1,"voters":[[1,' + b"[" * 1_000 + b"]" * 1_000 + b',"h"]]}',
            "not a membership: {'version': 1, 'number': 1, 'voters': [[1, [[[",
        ),
    ],
)
def test_membership_that_cannot_be_read_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_membership(data)
    assert str(caught.value).startswith(text)


def test_only_one_voter_more_or_less_at_a_time() -> None:
    three = _founders(3)
    assert is_next_step(three, without(three, ReplicaId(1)))
    learning = with_learner(three, _member(4))
    assert is_next_step(three, learning)
    assert is_next_step(learning, with_promoted(learning, ReplicaId(4)))
    two_less = without(without(three, ReplicaId(1)), ReplicaId(2))
    assert not is_next_step(three, two_less)


def test_entry_governs_alpha_slots_later() -> None:
    memberships = Memberships()
    memberships.found(decode_founding(founded(3)))
    memberships.note(Slot(5), without(_founders(3), ReplicaId(1)))
    assert memberships.at(Slot(5 + ALPHA - 1)).ids == (1, 2, 3)
    assert memberships.at(Slot(5 + ALPHA)).ids == (2, 3)
    # While both govern open slots, a quorum is one of each.
    assert not memberships.is_quorum(_ids(1, 2), Slot(6))
    assert memberships.is_quorum(_ids(2, 3), Slot(6))
    again = Memberships()
    again.restore(memberships.encode())
    assert again.at(Slot(5 + ALPHA)).ids == (2, 3)
    assert again.roster(Slot(6)).keys() == _ids(1, 2, 3)
    assert again.roster(Slot(5 + ALPHA)).keys() == _ids(2, 3)


def test_nobody_votes_where_it_is_not_known_who_does() -> None:
    memberships = Memberships()
    memberships.found(decode_founding(founded(3)))
    newest = _founders(3)
    for number in range(4, 11):
        newest = with_learner(newest, _member(number))
        memberships.note(Slot(ALPHA * number), newest)
    memberships.advance(Slot(ALPHA * 12))
    assert memberships.at(Slot(1)).ids == ()
    assert not memberships.is_quorum(_ids(1, 2, 3), Slot(1))
    assert memberships.at(Slot(ALPHA * 12)).ids == (1, 2, 3)


# --- what is asked for, refused, and follows ---


def test_additions_and_removals_that_make_no_sense_are_refused() -> None:
    three = without(_founders(4), ReplicaId(4))
    assert addition(three, _member(4), replaces=None) == (
        "replica 4 was removed before, and an id is never used again: "
        "choose another for the new coordinator"
    )
    other = Member(ReplicaId(3), Incarnation("other"), "h3")
    assert addition(three, other, replaces=None) == (
        "replica 3 is a member already, in another life (inc3, this one is other): "
        "choose another id for the new coordinator"
    )
    moved = Member(ReplicaId(3), _member(3).incarnation, "elsewhere")
    assert addition(three, moved, replaces=None) == (
        "replica 3 is a member already, at h3, not at elsewhere: an address stays with its id"
    )
    assert addition(three, _member(5), replaces=ReplicaId(9)) == (
        "replica 9 is no voter: there is nothing to replace"
    )
    assert addition(three, _member(3), replaces=ReplicaId(2)) == (
        "replica 3 is a member already: to replace 2 by it, remove 2"
    )
    assert removal(three, ReplicaId(4)) is None
    assert (
        removal(three, ReplicaId(9)) == "replica 9 is no member of the cluster; see 'member list'"
    )
    assert removal(_founders(1), ReplicaId(1)) == (
        "replica 1 is the last that votes: add another before, or stop the cluster"
    )


def test_change_that_is_asked_for_again_is_done_once() -> None:
    """As who got no answer asks: after each step of what it asked for at first."""
    three = _founders(3)
    asked: list[Callable[[Membership], Membership | str | None]] = [
        lambda at: addition(at, _member(4), replaces=None),
        lambda at: addition(at, _member(4), replaces=ReplicaId(3)),
        lambda at: removal(at, ReplicaId(3)),
    ]
    for ask in asked:
        changed = ask(three)
        assert isinstance(changed, Membership)
        while isinstance(changed, Membership):
            assert ask(changed) is None
            changed = next_step(changed, _ids(1, 2, 3, 4), lambda replica: True)


def test_change_that_leaves_a_majority_which_does_not_answer_is_refused() -> None:
    two, three = _founders(2), _founders(3)
    assert refusal(two, without(two, ReplicaId(1)), _ids(1)) == (
        "the cluster has the voters 1, 2, of which only 1 answers, and 2 must: "
        "start the others, or remove those that are gone before"
    )
    assert refusal(three, without(three, ReplicaId(2)), _ids(1, 2)) == (
        "the change would leave the voters 1, 3, of which only 1 answers, and 2 must: "
        "start the others, or remove those that are gone before"
    )
    # As in etcd#6103: who is gone can be removed as long as a majority is there.
    assert refusal(three, without(three, ReplicaId(3)), _ids(1, 2)) is None


def test_learner_votes_once_it_answers_and_has_caught_up() -> None:
    """As in etcd-io/etcd#3505: a second member that isn't up would stop a cluster of one."""
    learning = with_learner(_founders(1), _member(2))
    assert next_step(learning, _ids(1), lambda replica: True) is None
    assert next_step(learning, _ids(1, 2), lambda replica: False) is None
    voting = next_step(learning, _ids(1, 2), lambda replica: True)
    assert voting is not None and voting.describe() == "voters 1, 2"


def test_who_is_replaced_goes_once_the_new_one_votes() -> None:
    replacing = with_learner(_founders(3), _member(4), replaces=ReplicaId(2))
    voting = next_step(replacing, _ids(1, 3, 4), lambda replica: True)
    assert voting is not None and voting.describe() == "voters 1, 2, 3, 4"
    left = next_step(voting, _ids(1, 3, 4), lambda replica: True)
    assert left is not None and left.describe() == "voters 1, 3, 4"
    assert (left.retired, left.replaces) == ((2,), ())
    assert next_step(left, _ids(1, 3, 4), lambda replica: True) is None


# --- a leader ---


def _accept_all(replica: Replica, now_ms: int, *voters: int) -> list[tuple[int, Message]]:
    """Let voters accept everything that is proposed, until nothing more is."""
    heard: list[tuple[int, Message]] = []
    while True:
        new = sent(drain(replica, now_ms))
        heard += new
        slots = sorted({m.slot for _, m in new if isinstance(m, Accept)})
        if not slots:
            return heard
        for voter in voters:
            accepted = Accepted(replica.ballot, tuple(slots))
            replica.receive(from_peer(voter, replica.me, accepted), now_ms)


def test_leader_fills_the_slots_until_the_change_governs() -> None:
    replica, now_ms = leader(3)
    assert replica.remove_member(ReplicaId(3), now_ms) is None
    assert replica.remove_member(ReplicaId(3), now_ms) == (
        "another change of the members is under way: try again when it is done"
    )
    values = [
        m.value
        for target, m in _accept_all(replica, now_ms, 2)
        if isinstance(m, Accept) and target == 2
    ]
    assert decode_membership_value(values[0]) == without(_founders(3), ReplicaId(3))
    assert values[1:] == [NOOP] * (ALPHA - 1)
    assert replica.chosen_end == 2 + ALPHA
    assert replica.addresses == {2: "h2"}
    replica.receive(from_peer(3, 1, Hello("h3", None, "c0ffee", ())), now_ms)
    ((target, stranger),) = sent(drain(replica, now_ms))
    assert target == 3 and isinstance(stranger, Stranger) and stranger.expected is None


def test_command_that_stands_alone_has_an_entry_of_its_own_and_no_change_beside_it() -> None:
    replica, now_ms = leader(3)
    assert replica.propose(b"before", now_ms)
    assert replica.propose(b"alone", now_ms, is_alone=True)
    assert not replica.propose(b"another", now_ms, is_alone=True)
    assert replica.remove_member(ReplicaId(3), now_ms) == (
        "another change of the members is under way: try again when it is done"
    )
    chosen = [one.commands for ready in drain(replica, now_ms) for one in ready.chosen]
    for slot in (2, 3):
        replica.receive(from_peer(2, 1, Accepted(replica.ballot, (Slot(slot),))), now_ms)
    chosen = [one.commands for ready in drain(replica, now_ms) for one in ready.chosen]
    assert chosen == [(b"alone",), (b"before",)]
    assert replica.remove_member(ReplicaId(3), now_ms) is None
    assert not replica.propose(b"alone", now_ms, is_alone=True)


def test_follower_proposes_no_command_that_stands_alone() -> None:
    assert not make(2, 3).propose(b"alone", 0, is_alone=True)


def test_slots_of_a_larger_membership_need_promises_of_its_quorum() -> None:
    replica, now_ms = make(1, 1), 0
    drain(replica)
    assert replica.is_established
    assert replica.add_member(_member(2), now_ms) is None
    _accept_all(replica, now_ms)
    heartbeats = 0
    for _ in range(3):
        now_ms = replica.deadline_ms
        replica.tick(now_ms)
        for _, message in sent(drain(replica, now_ms), Heartbeat):
            assert isinstance(message, Heartbeat)
            reply = HeartbeatReply(message.ballot, message.beat, message.chosen_end)
            replica.receive(from_peer(2, 1, reply), now_ms)
            heartbeats += 1
    assert heartbeats
    said = sent(drain(replica, now_ms))
    membership = replica.membership
    assert membership is not None and membership.describe() == "voters 1, 2"
    # A command would stand in a slot that the two govern: 2 is asked to promise first.
    prepares = [m for _, m in said if isinstance(m, Prepare)]
    end = replica.chosen_end
    assert replica.propose(b"a", now_ms)
    later = sent(drain(replica, now_ms))
    assert not any(isinstance(m, Accept) and m.slot >= end for _, m in later)
    now_ms += 1_000
    replica.receive(from_peer(2, 1, HeartbeatReply(replica.ballot, 9, replica.chosen_end)), now_ms)
    prepares += [m for _, m in sent(drain(replica, now_ms)) if isinstance(m, Prepare)]
    assert prepares and prepares[-1].ballot == replica.ballot
    replica.receive(from_peer(2, 1, Promise(replica.ballot, end, ())), now_ms)
    (accept,) = [m for _, m in sent(drain(replica, now_ms)) if isinstance(m, Accept)]
    assert accept.slot == end
    assert replica.chosen_end == end  # Its own vote is one of two.
    replica.receive(from_peer(2, 1, Accepted(replica.ballot, (end,))), now_ms)
    assert replica.chosen_end == end + 1


def test_nothing_follows_by_itself_before_the_shell_has_prepared_it() -> None:
    replica, now_ms = leader(3)
    replica.members_prepared(-1)
    assert replica.add_member(_member(4), now_ms, replaces=ReplicaId(3)) is None
    _accept_all(replica, now_ms, 2)
    described = []
    for prepared in (-1, 0, 1, 1, 2):
        replica.members_prepared(prepared)
        for _ in range(3):
            now_ms = replica.deadline_ms
            replica.tick(now_ms)
            for target, message in sent(drain(replica, now_ms)):
                reply: Message | None = None
                if isinstance(message, Heartbeat):
                    reply = HeartbeatReply(message.ballot, message.beat, replica.chosen_end)
                elif isinstance(message, Accept):
                    reply = Accepted(message.ballot, (message.slot,))
                if reply is not None and target != 3:
                    replica.receive(from_peer(target, 1, reply), now_ms)
            _accept_all(replica, now_ms, 2, 4)
        assert replica.membership is not None
        described.append(replica.membership.describe())
    assert described[0] == described[1] == "voters 1, 2, 3; learners 4"
    assert described[2] == described[3] == "voters 1, 2, 3, 4"
    assert described[4] == "voters 1, 2, 4"


def test_acceptance_of_a_learner_does_not_count() -> None:
    replica, now_ms = leader(3)
    assert replica.add_member(_member(4), now_ms) is None
    _accept_all(replica, now_ms, 2)
    end = replica.chosen_end
    assert replica.propose(b"a", now_ms)
    targets = [target for target, m in sent(drain(replica, now_ms)) if isinstance(m, Accept)]
    assert targets == [2, 3, 4]
    replica.receive(from_peer(4, 1, Accepted(replica.ballot, (end,))), now_ms)
    assert replica.chosen_end == end
    replica.receive(from_peer(3, 1, Accepted(replica.ballot, (end,))), now_ms)
    assert replica.chosen_end == end + 1


def test_removed_leader_resigns_and_goes_when_a_majority_says_so() -> None:
    replica, now_ms = leader(3)
    assert replica.remove_member(ReplicaId(1), now_ms) is None
    said = _accept_all(replica, now_ms, 2)
    assert not replica.is_leader
    assert [(target, m) for target, m in said if isinstance(m, Resign)] == [
        (2, Resign(ballot(1, 1), "was removed from the cluster")),
        (3, Resign(ballot(1, 1), "was removed from the cluster")),
    ]
    governing = encode_membership(without(_founders(3), ReplicaId(1)))
    stranger = Stranger("c0ffee", None, Incarnation("inc1"), governing)
    replica.receive(from_peer(2, 1, stranger), now_ms)
    assert all(ready.fatal is None for ready in drain(replica, now_ms))
    replica.receive(from_peer(3, 1, stranger), now_ms)
    (ready,) = drain(replica, now_ms)
    assert ready.is_removed
    assert ready.fatal == (
        "replica 1 was removed from cluster 'c0ffee'; its data directory can go, "
        "and its id is never used again"
    )


def test_follower_asks_for_an_election_when_the_leader_resigns() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(1, 2, Heartbeat(ballot(3, 1), 1, Slot(1))), 5)
    drain(replica, 5)
    replica.receive(from_peer(3, 2, Resign(ballot(3, 1), "is slow")), 6)
    assert replica.leader == 1
    replica.receive(from_peer(1, 2, Resign(ballot(3, 1), "is slow")), 6)
    assert replica.leader is None
    assert replica.deadline_ms <= 6 + 20


# --- joining and coming back ---


def _joining(me: int = 4) -> Replica:
    return Replica(
        me=ReplicaId(me),
        address=f"h{me}",
        recovered=Recovered(incarnation=Incarnation(f"inc{me}")),
        settings=Settings(),
        random=Random(me),
        now_ms=0,
        is_joining=True,
    )


def test_joining_replica_founds_nothing_and_answers_who_has_added_it() -> None:
    replica = _joining()
    assert replica.ready() is None
    replica.tick(replica.deadline_ms)
    assert replica.ready() is None
    replica.receive(from_peer(1, 4, Heartbeat(ballot(1, 1), 1, Slot(9))), 0)
    assert sent(drain(replica)) == [(1, Hello("h4", Incarnation("inc1"), None, (ReplicaId(4),)))]
    learning = encode_membership(with_learner(_founders(3), _member(4)))
    replica.receive(from_peer(1, 4, Found(founded(3), learning)), 0)
    (ready,) = drain(replica)
    assert ready.persist is not None and ready.persist.founding == founded(3)
    assert ready.persist.memberships is not None
    assert sorted(replica.addresses) == [1, 2, 3]
    # It has no vote, so it never stands.
    replica.tick(10**9)
    assert drain(replica, 10**9) == []


def test_learner_is_answered_with_the_membership_that_governs() -> None:
    learning = with_learner(_founders(3), _member(4))
    replica = make(2, 3, accepted=(_entry(1, learning), *_noops(2, 20)), chosen_end=Slot(20))
    replica.receive(from_peer(4, 2, Hello("h4", None, None, (ReplicaId(4),))), 0)
    answers = sent(drain(replica), Found)
    assert answers == [(4, Found(founded(3), encode_membership(learning)))]


def _noops(first: int, end: int) -> list[LogEntry]:
    return [LogEntry(Slot(slot), Ballot(1, ReplicaId(1)), NOOP) for slot in range(first, end)]


def test_who_knows_an_older_membership_is_told_and_refuses_nobody() -> None:
    """bakwc/PySyncObj#133: members of an old dump. 3 was away while 4 came."""
    newer = with_learner(_founders(3), _member(4))
    four = make(
        4,
        3,
        accepted=(_entry(1, newer), *_noops(2, 20)),
        chosen_end=Slot(20),
    )
    three = make(3, 3)
    three.receive(from_peer(4, 3, Heartbeat(ballot(5, 4), 1, Slot(1))), 0)
    ((_, stranger),) = sent(drain(three))
    assert stranger == Stranger(
        "c0ffee", None, Incarnation("inc4"), encode_membership(_founders(3))
    )
    four.receive(from_peer(3, 4, stranger), 0)
    ((target, found),) = sent(drain(four), Found)
    assert target == 3
    three.receive(from_peer(4, 3, found), 0)
    (ready,) = drain(three)
    assert ready.notes == ("replica=3 hears of membership 1: voters 1, 2, 3; learners 4",)
    assert ready.persist is not None and ready.persist.memberships is not None
    three.receive(from_peer(4, 3, Heartbeat(ballot(5, 4), 2, Slot(1))), 1)
    assert sent(drain(three), HeartbeatReply) == [(4, HeartbeatReply(ballot(5, 4), 2, Slot(1)))]
    # It survives a restart, though the log here doesn't say so yet.
    again = make(3, 3, memberships=ready.persist.memberships)
    assert sorted(again.addresses) == [1, 2, 4]


def test_memberships_outlive_the_entries_that_brought_them() -> None:
    """bakwc/PySyncObj#133: the log was truncated behind the mirror of the state."""
    replica = make(2, 3, chosen_end=Slot(1))
    two = without(_founders(3), ReplicaId(3))
    first = Ballot(1, ReplicaId(1))
    written = None
    for entry in (_entry(1, two), *_noops(2, 2 + ALPHA)):
        replica.receive(from_peer(1, 2, Accept(first, entry.slot, entry.value, entry.slot)), 0)
        for ready in drain(replica):
            if ready.persist is not None and ready.persist.memberships is not None:
                # With or before the entry, for the state machine and the truncation behind it.
                assert written is not None or Chosen(Slot(1), (), two) in ready.chosen
                written = ready.persist.memberships
    assert written is not None
    end = Slot(2 + ALPHA)
    again = make(2, 3, memberships=written, chosen_end=end, applied_end=end, log_start=end)
    assert again.membership == two
    assert again.addresses == {1: "h1"}
    copied = make(1, 3)
    assert copied.members_copied(written) == written
    copied.state_copied(end, 0)
    drain(copied)
    assert copied.membership == two
    assert copied.addresses == {2: "h2"}


def test_removed_replica_that_starts_again_never_votes_and_is_sent_home() -> None:
    two = without(_founders(3), ReplicaId(3))
    entries = (_entry(1, two), *_noops(2, 30))
    three = make(3, 3, accepted=entries, chosen_end=Slot(30))
    three.tick(10**9)
    said = sent(drain(three, 10**9))
    assert {type(m) for _, m in said} == {Hello}
    one = make(1, 3, accepted=entries, chosen_end=Slot(30))
    one.receive(from_peer(3, 1, Hello("h3", None, "c0ffee", ())), 0)
    ((target, stranger),) = sent(drain(one))
    assert target == 3 and isinstance(stranger, Stranger)
    assert decode_membership(stranger.membership) == two


def test_read_that_waits_for_a_member_that_is_removed_is_confirmed_by_who_is_left() -> None:
    """Nobody answers its round any more; and no later read may wait behind it for ever."""
    replica, now_ms = leader(2)
    assert replica.read(7, now_ms)
    waiting = drain(replica, now_ms)
    assert replica.remove_member(ReplicaId(2), now_ms) is None
    readies = drain(replica, now_ms)
    while accepts := sent(readies, Accept):
        for _, accept in accepts:
            assert isinstance(accept, Accept)
            answer = Accepted(accept.ballot, (accept.slot,))
            replica.receive(from_peer(2, 1, answer), now_ms)
        readies = drain(replica, now_ms)
        waiting += readies
    assert replica.is_leader and not replica.addresses
    assert replica.read(8, now_ms)
    waiting += drain(replica, now_ms)
    assert [read for ready in waiting for read in ready.confirmed_reads] == [7, 8]
