"""A command that stands alone, and a member that was put back to a release which can't read it.

Release 0.2.0 takes the entry for a membership of an unknown version (batch.py). It ends there as
a follower. As a leader that has it chosen it would lead on, and apply nothing more.
"""

from __future__ import annotations

from typing import Any

import pytest

from tasksprint.consensus import (
    Accept,
    Accepted,
    Chosen,
    Envelope,
    Found,
    LogEntry,
    Member,
    Membership,
    Prepare,
    Replica,
    decode_founding,
    encode_membership,
)
from tasksprint.consensus.batch import encode_alone, stands_alone
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.membership import encode_membership_value, with_learner
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.release import SILENT, THIS_RELEASE, Speaks
from tasksprint.settings import Settings
from tests.consensus.helpers import ballot, drain, founded, from_peer, make, sent, start, value

ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
RAISE = b'["rules",2]'
ALONE = encode_alone(RAISE)


def follower(speaks: Speaks | None, **recovered: Any) -> Replica:
    """Return replica 2, with what it was told of the process that is heard as replica 3."""
    replica = make(2, 3, **recovered)
    if speaks is not None:
        replica.lives.speaks[THREE] = speaks
    return replica


def test_entry_of_a_leader_that_cannot_read_it_is_refused_and_the_leader_deposed() -> None:
    replica = follower(SILENT)
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(1), ALONE, Slot(1))), 0)
    assert sent(drain(replica)) == [
        (target, Prepare(ballot(5, 2), Slot(1))) for target in (ONE, THREE)
    ]
    # It isn't asked twice: the leader is of a lower ballot now.
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(1), ALONE, Slot(1))), 0)
    readies = drain(replica)
    assert sent(readies, Prepare) == sent(readies, Accepted) == []


def test_entry_that_is_known_to_be_chosen_deposes_such_a_leader_as_well() -> None:
    """It was elected by others, and counts on our acceptance."""
    held = LogEntry(Slot(1), ballot(1, 1), ALONE)
    replica = follower(SILENT, accepted=(held,), chosen_end=Slot(2))
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(1), ALONE, Slot(1))), 0)
    readies = drain(replica)
    assert sent(readies, Accepted) == [] and len(sent(readies, Prepare)) == 2


@pytest.mark.parametrize(
    ("speaks", "proposed"),
    [(THIS_RELEASE.speaks, ALONE), (None, ALONE), (SILENT, value("a"))],
    ids=["of this release", "unheard of", "another entry"],
)
def test_other_entries_and_those_of_other_leaders_are_accepted(
    speaks: Speaks | None, proposed: bytes
) -> None:
    replica = follower(speaks)
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(1), proposed, Slot(1))), 0)
    readies = drain(replica)
    assert sent(readies, Accepted) == [(THREE, Accepted(ballot(4, 3), (Slot(1),)))]
    assert sent(readies, Prepare) == []


def test_who_may_not_stand_refuses_the_entry_all_the_same() -> None:
    """A replica that has lost what it knows to be chosen must not stand before it has it again."""
    replica = follower(SILENT, chosen_end=Slot(1), known_end=Slot(3))
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(3), ALONE, Slot(1))), 0)
    readies = drain(replica)
    assert sent(readies, Accepted) == sent(readies, Prepare) == []


def test_learner_refuses_the_entry_and_stands_in_no_election() -> None:
    members = decode_founding(founded(2)).members
    learning = with_learner(Membership(0, members), Member(THREE, Incarnation("inc3"), "h3"))
    log = [LogEntry(Slot(1), ballot(1, 1), encode_membership_value(learning))]
    log += [LogEntry(Slot(slot), ballot(1, 1), value("a")) for slot in range(2, 20)]
    replica = make(3, 2, accepted=tuple(log), chosen_end=Slot(20), founding=founded(2))
    replica.lives.speaks[TWO] = SILENT
    replica.receive(from_peer(2, 3, Accept(ballot(4, 2), Slot(20), ALONE, Slot(20))), 0)
    readies = drain(replica)
    assert sent(readies, Accepted) == sent(readies, Prepare) == []


def test_who_has_no_durable_founding_entry_does_not_stand() -> None:
    """Its disk may yet forget the cluster, and with it the ballot."""
    replica = follower(SILENT, founding=None)
    membership = encode_membership(Membership(0, decode_founding(founded(3)).members))
    replica.receive(from_peer(3, 2, Found(founded(3), membership)), 0)
    replica.receive(from_peer(3, 2, Accept(ballot(4, 3), Slot(1), ALONE, Slot(1))), 0)
    readies = drain(replica)
    assert replica.founding is not None
    assert sent(readies, Accepted) == sent(readies, Prepare) == []


# --- the whole story ------------------------------------------------------------------------


class _LastLearner(Learner):
    """As release 0.2.0 has it."""

    def _decode(self, slot: Slot, value: bytes) -> Chosen:
        if stands_alone(value):
            raise RemoteProtocolError("a membership has version 'none: it raises the rules'")
        return super()._decode(slot, value)


class _Cluster:
    """Replicas on a network that loses nothing, and what each has applied."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas: dict[ReplicaId, Replica] = {}
        self.logs: dict[ReplicaId, list[bytes]] = {}
        self._applied: dict[ReplicaId, int] = {}
        self._network: list[Envelope] = []
        self.leaders: list[ReplicaId] = []  # one after the other
        self.now_ms = 0
        for replica in replicas:
            self.add(replica)

    def add(self, replica: Replica) -> None:
        me = replica.me
        self.replicas[me], self.logs[me], self._applied[me] = replica, [], 0
        for peer in self.replicas.values():
            for one, other in (peer, replica), (replica, peer):
                is_old = isinstance(other._learner, _LastLearner)
                one.lives.speaks[other.me] = SILENT if is_old else THIS_RELEASE.speaks

    def _work(self, replica: Replica) -> None:
        while (ready := replica.ready()) is not None:
            if replica.is_leader and self.leaders[-1:] != [replica.me]:
                self.leaders.append(replica.me)
            self._network += ready.send_now
            if ready.persist is not None:
                replica.persisted(ready.sequence, self.now_ms)
            self._network += ready.send_after_persist
            for chosen in ready.chosen:
                if chosen.slot != self._applied[replica.me] + 1:
                    del self.replicas[replica.me]  # "AssertionError: slot 2 after 0"
                    return
                self._applied[replica.me] = chosen.slot
                self.logs[replica.me] += chosen.commands

    def _hear(self, replica: Replica, envelope: Envelope) -> None:
        try:
            replica.receive(envelope, self.now_ms)
        except RemoteProtocolError:  # The stream is closed, and opened again.
            source = self.replicas[envelope.source]
            replica.disconnected(source.me, self.now_ms)
            source.disconnected(replica.me, self.now_ms)

    def pass_10_ms(self) -> None:
        self.now_ms += 10
        for replica in list(self.replicas.values()):
            replica.tick(self.now_ms)
            self._work(replica)
        while self._network:
            envelope = self._network.pop(0)
            replica = self.replicas.get(envelope.target)
            if replica is not None and envelope.source in self.replicas:
                self._hear(replica, envelope)
                self._work(replica)

    def wait_until(self, condition: Any) -> None:
        for _ in range(3_000):
            if condition():
                return
            self.pass_10_ms()
        raise AssertionError(f"not within {self.now_ms} ms: {self.logs}, {self.replicas}")


def test_member_put_back_in_the_moment_of_the_raise_leads_nobody() -> None:
    """Replica 1 has proposed it, only replica 3 has accepted, and replica 1 dies."""
    patient = Settings(election_timeout_min_ms=5_000, election_timeout_max_ms=6_000)
    held = LogEntry(Slot(1), ballot(1, 1), ALONE)
    old = start(3, 3, accepted=(held,), promised=ballot(1, 1))
    old._learner.__class__ = _LastLearner
    cluster = _Cluster(start(2, 3, settings=patient), old)
    two = cluster.replicas[TWO]
    cluster.wait_until(lambda: two.is_established)
    assert cluster.leaders == [THREE, TWO] and not old.is_leader
    # What it had accepted is chosen: by the members of this release it is read, and the log
    # goes on with the third one.
    cluster.add(start(1, 3))
    two.propose(b"next", cluster.now_ms)
    cluster.wait_until(lambda: cluster.logs[ONE] == cluster.logs[TWO] == [RAISE, b"next"])
    assert cluster.logs[THREE] == []
