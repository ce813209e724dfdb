"""Sentences of the papers, and whether this code does what they say.

PMS: Lamport, "Paxos Made Simple" (2001). PML: Chandra, Griesemer and Redstone, "Paxos Made
Live" (2007). PMMC: van Renesse and Altinbuken, "Paxos Made Moderately Complex" (2015).
"""

from __future__ import annotations

from itertools import combinations

from tasksprint.consensus import (
    NO_BALLOT,
    NOOP,
    Accept,
    Accepted,
    Ballot,
    Hello,
    Nack,
    Persist,
    Prepare,
    Promise,
)
from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.founding import decode_founding
from tasksprint.consensus.proposer import Campaign
from tasksprint.consensus.voters import Memberships, Voters
from tasksprint.ids import ReplicaId, Slot
from tests.consensus.helpers import (
    ballot,
    bare,
    drain,
    entry,
    founded,
    from_peer,
    leader,
    make,
    sent,
    value,
)


def _acceptor() -> Acceptor:
    return Acceptor(promised=NO_BALLOT, entries=(), slots_max=100, bytes_max=10_000)


def _campaign(number: Ballot, members: int = 3) -> Campaign:
    memberships = Memberships()
    memberships.found(decode_founding(founded(members)))
    return Campaign(number, memberships)


def test_different_proposers_choose_their_numbers_from_disjoint_sets() -> None:
    """PMS 2.5: "Different proposers choose their numbers from disjoint sets of numbers"."""
    ballots = {ballot(number, replica) for number in range(1, 4) for replica in range(1, 4)}
    assert len(ballots) == 9
    assert sorted(ballots)[:4] == [ballot(1, 1), ballot(1, 2), ballot(1, 3), ballot(2, 1)]


def test_any_two_quorums_share_a_member() -> None:
    """PMS 2.2: "any two majorities have at least one acceptor in common"."""
    for count in range(1, 7):
        members = Voters(decode_founding(founded(count)).members)
        quorums = [
            set(voters)
            for size in range(count + 1)
            for voters in combinations(members.ids, size)
            if members.is_quorum(set(voters))
        ]
        assert quorums
        assert all(one & other for one in quorums for other in quorums)


def test_votes_of_others_than_members_make_no_quorum() -> None:
    members = Voters(decode_founding(founded(3)).members)
    assert not members.is_quorum({ReplicaId(1), ReplicaId(8), ReplicaId(9)})


def test_acceptor_promises_not_to_accept_lower_numbers() -> None:
    """PMS 2.2, 1(b): "it responds to the request with a promise not to accept any more
    proposals numbered less than n and with the highest-numbered proposal (if any) that it
    has accepted"."""
    replica = make(2, 3, accepted=(entry(1, 1, 1, "a"),), promised=ballot(1, 1))
    replica.receive(from_peer(3, 2, Prepare(ballot(4, 3), Slot(1))), 0)
    answers = drain(replica)
    assert sent(answers, Promise) == [(3, Promise(ballot(4, 3), Slot(1), (entry(1, 1, 1, "a"),)))]
    accept = Accept(ballot(1, 1), Slot(2), value("b"), Slot(1))
    replica.receive(from_peer(1, 2, accept), 0)
    assert sent(drain(replica)) == [(1, Nack(ballot(1, 1), ballot(4, 3)))]


def test_acceptor_accepts_unless_it_has_promised_a_higher_number() -> None:
    """PMS 2.2, 2(b): "it accepts the proposal unless it has already responded to a prepare
    request having a number greater than n": also without a prepare of its own."""
    replica = make(2, 3)
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(1), value("a"), Slot(1))), 0)
    (ready,) = drain(replica)
    assert bare(ready).persist == Persist(promised=ballot(4, 3), accepted=(entry(1, 4, 3, "a"),))
    assert sent([ready], Accepted) == [(3, Accepted(ballot(4, 3), (Slot(1),)))]


def test_acceptor_may_ignore_a_lower_prepare_but_says_so() -> None:
    """PMS 2.2: an acceptor that ignores a request because of a higher number "should probably
    inform the proposer, who should then abandon its proposal"."""
    acceptor = _acceptor()
    acceptor.promise(ballot(3, 1), Slot(1))
    assert acceptor.promise(ballot(2, 2), Slot(1)) == Nack(ballot(2, 2), ballot(3, 1))


def test_value_of_the_highest_numbered_proposal_is_proposed_again() -> None:
    """PMS 2.2, 2(a): "v is the value of the highest-numbered proposal among the responses"."""
    campaign = _campaign(ballot(5, 1))
    low, high = entry(1, 2, 2, "low"), entry(1, 3, 3, "high")
    campaign.add_promise(ReplicaId(2), Promise(ballot(5, 1), Slot(1), (low,)))
    campaign.add_promise(ReplicaId(3), Promise(ballot(5, 1), Slot(1), (high,)))
    assert campaign.adopt(Slot(1)) == value("high")
    campaign.take_own({Slot(1): entry(1, 4, 1, "own")})
    assert campaign.adopt(Slot(1)) == value("own")


def test_gaps_are_filled_with_no_ops() -> None:
    """PMS 3: a leader fills the gap with a special command "that leaves the state
    unchanged"."""
    campaign = _campaign(ballot(5, 1))
    campaign.add_own_promise(ReplicaId(1))
    entries = (entry(3, 2, 2, "c"), entry(5, 1, 2, "e"))
    campaign.add_promise(ReplicaId(2), Promise(ballot(5, 1), Slot(2), entries))
    values = [campaign.adopt(Slot(slot)) or NOOP for slot in range(2, campaign.adopted_end)]
    assert values == [NOOP, value("c"), NOOP, value("e")]


def test_phase_1_is_executed_once_for_all_slots() -> None:
    """PMS 3: "A newly chosen leader executes phase 1 for infinitely many instances"."""
    replica, now_ms = leader()
    for command in (b"a", b"b", b"c"):
        assert replica.propose(command, now_ms)
        readies = drain(replica, now_ms)
        assert sent(readies, Prepare) == []
        assert len(sent(readies, Accept)) == 2


def test_second_command_is_proposed_before_the_first_is_chosen() -> None:
    """PMS 3: "The leader can propose command 142 before it learns that its proposed command
    141 has been chosen"."""
    replica, now_ms = leader()
    replica.propose(b"a", now_ms)
    drain(replica, now_ms)
    replica.propose(b"b", now_ms)
    accepts = sent(drain(replica, now_ms), Accept)
    assert [message.slot for _, message in accepts if isinstance(message, Accept)] == [3, 3]
    assert replica.chosen_end == 2


def test_promise_survives_a_crash() -> None:
    """PMS 2.5: "Stable storage, preserved during failures, is used to maintain the information
    that the acceptor must remember. An acceptor records its intended response in stable
    storage before actually sending the response"."""
    replica = make(2, 3)
    replica.receive(from_peer(3, 2, Prepare(ballot(4, 3), Slot(1))), 0)
    ready = replica.ready()
    assert ready is not None and bare(ready).persist == Persist(promised=ballot(4, 3))
    assert ready.send_now == ()
    assert sent([ready]) == [(3, Promise(ballot(4, 3), Slot(1), ()))]
    restarted = make(2, 3, promised=ballot(4, 3))
    restarted.receive(from_peer(1, 2, Prepare(ballot(3, 1), Slot(1))), 0)
    assert sent(drain(restarted)) == [(1, Nack(ballot(3, 1), ballot(4, 3)))]


def test_proposer_uses_a_higher_number_than_any_it_used_before_a_crash() -> None:
    """PMS 2.5: "Each proposer remembers (in stable storage) the highest-numbered proposal it
    has tried to issue and begins phase 1 with a higher proposal number"."""
    replica = make(1, 1, promised=ballot(7, 1))
    drain(replica)
    assert replica.is_leader
    assert replica.ballot == ballot(8, 1)


def test_replica_with_a_lost_disk_does_not_take_part() -> None:
    """PML 5.1: a replica with a corrupted disk "participates in Paxos as a non-voting
    member", it gives neither promises nor acknowledgements; here it stops."""
    replica = make(3, 3, founding=None)
    stranger = from_peer(1, 3, Prepare(ballot(2, 1), Slot(1)))
    replica.receive(stranger, 0)
    (ready,) = drain(replica)
    assert [type(message) for _, message in sent([ready])] == [Hello]  # "Who are you?"
    assert ready.persist is None


def test_repeated_command_of_the_leader_is_accepted_once() -> None:
    """PMMC, invariants of acceptors: for one ballot and slot there is at most one command; so
    the same message delivered twice changes nothing."""
    replica = make(2, 3)
    accept = from_peer(3, 2, Accept(ballot(4, 3), Slot(1), value("a"), Slot(1)))
    replica.receive(accept, 0)
    drain(replica)
    replica.receive(accept, 0)
    (ready,) = drain(replica)
    assert ready.persist is None
    assert sent([ready]) == [(3, Accepted(ballot(4, 3), (Slot(1),)))]
