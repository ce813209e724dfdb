"""A leader whose disk is slow hands over, and leadership doesn't come back to it at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.consensus import (
    Accept,
    Accepted,
    Canvass,
    Heartbeat,
    HeartbeatReply,
    Replica,
    Resign,
)
from tasksprint.consensus.pace import Pace
from tasksprint.ids import ReplicaId, Slot
from tasksprint.settings import Settings
from tests.consensus.helpers import ballot, drain, from_peer, leader, make, sent

SETTINGS = Settings(chosen_notice_delay_ms=0, spare_delay_ms=0)
BEAT_MS = SETTINGS.heartbeat_interval_ms


class Disk:
    """A leader, the others, which answer at once, and its disk, which doesn't."""

    def __init__(self, *, write_ms: int | None, others_ms: int = 0, count: int = 3) -> None:
        """Take office.

        Args:
            write_ms: What a write of the leader takes; None: it never ends.
            others_ms: After how long the others' acceptances arrive.
        """
        self.replica, self.now_ms = leader(count, settings=SETTINGS)
        self.notes: list[str] = []
        self.resigned: list[Resign] = []
        self._write_ms = write_ms
        self._others_ms = others_ms
        self._writing: tuple[int, int] | None = None  # sequence, and when it ends
        self._waiting: list[int] = []
        self._accepted: list[tuple[int, int, Slot]] = []  # when who accepts which slot

    def run(self, ms: int, *, command_each_ms: int = 50) -> None:
        """Let time pass, as long as the replica leads."""
        began_ms = self.now_ms
        end_ms = began_ms + ms
        while self.now_ms < end_ms and self.replica.is_leader:
            self.now_ms += 10
            if (self.now_ms - began_ms) % command_each_ms == 0:
                self.replica.propose(b"x", self.now_ms)
            self._turn()

    def recover(self) -> None:
        """Let the disk end all that it was given."""
        for ready in (ready for ready in iter(self.replica.ready, None) if ready.persist):
            self._waiting.append(ready.sequence)
        self.replica.persisted(self._waiting[-1], self.now_ms)

    def _turn(self) -> None:
        replica, now_ms = self.replica, self.now_ms
        if self._writing is not None and now_ms >= self._writing[1]:
            replica.persisted(self._writing[0], now_ms)
            self._writing = None
        while self._accepted and self._accepted[0][0] <= now_ms:
            _, peer, slot = self._accepted.pop(0)
            message = Accepted(replica.ballot, (slot,))
            replica.receive(from_peer(peer, 1, message), now_ms)
        if now_ms >= replica.deadline_ms:
            replica.tick(now_ms)
        while (ready := replica.ready()) is not None:
            self.notes += ready.notes
            for envelope in ready.send_now:
                if isinstance(envelope.message, Resign):
                    self.resigned.append(envelope.message)
                if isinstance(envelope.message, Accept):
                    done_ms = now_ms + self._others_ms
                    self._accepted.append((done_ms, envelope.target, envelope.message.slot))
                if isinstance(envelope.message, Heartbeat) and replica.is_leader:
                    beat = envelope.message
                    reply = HeartbeatReply(beat.ballot, beat.beat, beat.chosen_end)
                    replica.receive(from_peer(envelope.target, 1, reply), now_ms)
            if ready.persist is not None:
                self._waiting.append(ready.sequence)
        if self._writing is None and self._waiting:
            takes_ms = 1 << 40 if self._write_ms is None else self._write_ms
            self._writing = (self._waiting[-1], now_ms + takes_ms)
            self._waiting.clear()
        replica.check()


def test_leader_whose_disk_hangs_resigns_soon_and_says_why() -> None:
    disk = Disk(write_ms=None)
    before_ms = disk.now_ms
    disk.run(10_000)
    assert not disk.replica.is_leader
    assert disk.now_ms - before_ms < SETTINGS.slow_write_ms + 500
    assert len(disk.resigned) == 2  # to each of the others
    cause = disk.resigned[0].cause
    assert cause.startswith("its disk is slow: a write has taken 1")
    assert disk.notes[-1] == f"replica=1 ballot=1.1 steps down: {cause}"
    assert disk.replica.status().handovers == 1
    assert disk.replica.status().write_ms > SETTINGS.slow_write_ms


def test_leader_of_an_idle_log_whose_disk_hangs_resigns_with_its_next_entries() -> None:
    disk = Disk(write_ms=None)
    disk.run(10_000, command_each_ms=500)
    assert not disk.replica.is_leader


def test_leader_whose_writes_all_take_long_resigns_though_each_of_them_ends() -> None:
    disk = Disk(write_ms=500)
    disk.run(10_000)
    assert not disk.replica.is_leader


def test_leader_with_a_slow_write_now_and_then_stays() -> None:
    disk = Disk(write_ms=5)
    for _ in range(10):
        disk._write_ms = 600
        disk.run(50)
        disk._write_ms = 5
        disk.run(3_000)
    assert disk.replica.is_leader
    assert disk.replica.status().handovers == 0


def test_leader_that_is_as_slow_as_the_others_stays() -> None:
    disk = Disk(write_ms=3_000, others_ms=2_000)
    disk.run(60_000, command_each_ms=500)
    assert disk.replica.is_leader


def test_leader_that_was_stopped_for_a_minute_during_a_write_does_not_blame_its_disk() -> None:
    disk = Disk(write_ms=5)
    disk.run(1_000)
    disk.replica.propose(b"x", disk.now_ms)
    slot = disk.replica.chosen_end
    disk._turn()  # The write is under way.
    for peer in (2, 3):
        disk.replica.receive(from_peer(peer, 1, Accepted(ballot(1, 1), (slot,))), disk.now_ms)
    disk._turn()
    disk.now_ms += 60_000
    for peer in (2, 3):  # They can't have waited; but if they had:
        reply = HeartbeatReply(ballot(1, 1), 1, slot)
        disk.replica.receive(from_peer(peer, 1, reply), disk.now_ms)
    disk._writing = None
    disk.replica.tick(disk.now_ms)
    assert disk.replica.is_leader


def canvasses(replica: Replica, now_ms: int) -> bool:
    if now_ms >= replica.deadline_ms:
        replica.tick(now_ms)
    return bool(sent(drain(replica, now_ms), Canvass))


def when_it_stands(replica: Replica, now_ms: int) -> int:
    """Return how long it takes until a replica canvasses that hears no leader."""
    before_ms = now_ms
    while not canvasses(replica, now_ms):
        now_ms += 10
    return now_ms - before_ms


def test_who_handed_over_stands_again_if_nobody_else_leads() -> None:
    disk = Disk(write_ms=None)
    disk.run(10_000)
    disk.recover()
    leaderless_ms = 3 * SETTINGS.election_timeout_max_ms
    assert leaderless_ms <= when_it_stands(disk.replica, disk.now_ms) < leaderless_ms + 1_000


def test_who_handed_over_leaves_the_next_election_to_others_for_some_time() -> None:
    disk = Disk(write_ms=None)
    disk.run(10_000)
    replica, now_ms = disk.replica, disk.now_ms
    disk.recover()
    follow(replica, now_ms)
    replica.disconnected(ReplicaId(2), now_ms)
    assert when_it_stands(replica, now_ms) > 3_000
    # Later, with a disk that is quick, it is like everybody.
    now_ms += SETTINGS.hold_back_min_ms
    follow(replica, now_ms)
    replica.disconnected(ReplicaId(2), now_ms)
    assert when_it_stands(replica, now_ms) <= 30


def follow(replica: Replica, now_ms: int) -> None:
    beat = Heartbeat(ballot(99, 2), 1, Slot(1))
    replica.receive(from_peer(2, 1, beat), now_ms)
    drain(replica, now_ms)
    assert replica.leader == 2


def test_each_handover_doubles_the_time_up_to_a_limit() -> None:
    replica = make(1, 3, settings=SETTINGS)
    pace = replica._pace
    waits: list[int] = []
    now_ms = 0
    for _ in range(7):
        pace.hand_over(now_ms)
        wait_ms = 0
        while pace.holds_back(now_ms + wait_ms, heard_ms=now_ms + wait_ms):
            wait_ms += 1_000
        waits.append(wait_ms)
        now_ms += wait_ms
    assert waits == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000]
    now_ms += SETTINGS.hold_back_max_ms
    pace.hand_over(now_ms)
    assert not pace.holds_back(now_ms + 5_000, heard_ms=now_ms + 5_000)


def test_slow_writes_as_a_follower_keep_it_from_standing() -> None:
    pace = make(1, 3, settings=SETTINGS)._pace
    pace.hand_over(0)
    pace.wrote(400, 4_900)
    assert pace.holds_back(9_000, heard_ms=9_000)
    pace.wrote(20, 9_800)  # That one was quick.
    assert not pace.holds_back(9_900, heard_ms=9_900)


def test_follower_whose_write_hangs_leaves_an_election_to_others_first() -> None:
    replica = make(3, 3, settings=SETTINGS)
    replica._acceptor.raise_promise(ballot(1, 2))
    ready = replica.ready()
    assert ready is not None and ready.persist is not None
    now_ms = 5_000
    replica.receive(from_peer(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1))), now_ms)
    replica.ready()
    replica.disconnected(ReplicaId(2), now_ms)
    waited_ms = 0
    while not sent([r for r in [replica.ready()] if r is not None], Canvass):
        waited_ms += 10
        if now_ms + waited_ms >= replica.deadline_ms:
            replica.tick(now_ms + waited_ms)
    assert waited_ms >= 3 * SETTINGS.election_timeout_max_ms


def test_who_is_elected_while_it_holds_back_stays_for_some_time() -> None:
    replica, now_ms = leader(3, settings=SETTINGS)
    assert replica.hand_over("there is a reason", now_ms)
    assert not replica.is_leader
    replica._pace.take_office(now_ms)
    assert not replica._pace.may_hand_over(now_ms + 4_999)
    assert replica._pace.may_hand_over(now_ms + 5_000)


def test_leader_that_the_others_cannot_replace_stays() -> None:
    replica, now_ms = leader(2, settings=SETTINGS)
    assert not replica.hand_over("there is a reason", now_ms)
    assert replica.is_leader


def test_leader_that_cannot_hand_over_is_heard_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it says nothing until its disk has ended, and its process spins.

    It takes a change of the members: entries were chosen without it when there were three.
    """
    replica, now_ms = leader(2, settings=SETTINGS)
    monkeypatch.setattr(Pace, "look", lambda self, now_ms: "its disk is slow")
    now_ms = replica.deadline_ms
    replica.tick(now_ms)
    assert sent(drain(replica, now_ms), Heartbeat)
    assert replica.deadline_ms > now_ms and replica.is_leader


def test_setting_changes_what_is_slow() -> None:
    settings = replace(SETTINGS, slow_write_ms=100)
    replica, now_ms = leader(3, settings=settings)
    replica.propose(b"x", now_ms)
    slot = replica.chosen_end
    while (ready := replica.ready()) is not None:
        assert ready.sequence  # The write never ends.
    for peer in (2, 3):
        replica.receive(from_peer(peer, 1, Accepted(ballot(1, 1), (slot,))), now_ms)
    for _ in range(3):
        now_ms += BEAT_MS
        replica.tick(now_ms)
    assert not replica.is_leader
