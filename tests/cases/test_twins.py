"""Two processes that say they are one: of a replica whose directory was copied, of a client."""

from __future__ import annotations

import socket
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasksprint.consensus import Heartbeat, Mark, Prepare, Promise
from tasksprint.consensus.lives import Lives
from tasksprint.coordination.commands import JoinClient
from tasksprint.errors import SettingsError
from tasksprint.ids import ClientId, Incarnation, ReplicaId, Slot
from tasksprint.release import SILENT, THIS_RELEASE
from tasksprint.roles.client import incarnations as client_incarnations
from tasksprint.roles.client.incarnations import Incarnations
from tasksprint.roles.coordinator.peers import Peers
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions, Surroundings
from tasksprint.settings import Settings
from tests.consensus.helpers import ballot, drain, make, sent
from tests.consensus.test_marks import said
from tests.coordination.world import World
from tests.net.support import KEY, run, until
from tests.net.test_streams import Replica, replicas
from tests.roles import client_world

TWO = ReplicaId(2)
SETTINGS = Settings()
SPAN_MS = SETTINGS.election_timeout_max_ms
FIRST, SECOND = 7, 8  # lives

# --- who may be heard ---


def heard_at(now_ms: int) -> Lives:
    lives = Lives(SETTINGS, own=1)
    assert lives.greet(TWO, FIRST, now_ms, connected=None) is None
    return lives


def test_second_life_waits_while_the_first_is_connected() -> None:
    """A follower hears nothing of another follower for long; its connection tells of it."""
    lives = heard_at(0)
    late = 100 * SPAN_MS
    assert lives.greet(TWO, SECOND, late, connected=FIRST) == "is connected"
    assert lives.greet(TWO, SECOND, late, connected=None) is None


def test_second_life_waits_an_election_span_for_the_first() -> None:
    lives = heard_at(10)
    why = "was heard a moment ago"
    assert lives.greet(TWO, SECOND, 10 + SPAN_MS - 1, connected=None) == why
    assert lives.greet(TWO, SECOND, 10 + SPAN_MS, connected=None) is None
    # And now the first is the second.
    assert lives.greet(TWO, FIRST, 11 + SPAN_MS, connected=None) == why


def test_life_whose_connection_broke_makes_room_at_once() -> None:
    """A process that was killed and started again, within milliseconds."""
    lives = heard_at(10)
    lives.end(TWO)
    assert lives.greet(TWO, SECOND, 11, connected=None) is None


def test_life_that_connects_again_is_no_second_one() -> None:
    lives = heard_at(10)
    assert lives.greet(TWO, FIRST, 11, connected=FIRST) is None


def test_vote_of_a_second_life_does_not_count() -> None:
    """Not even if nothing told of its connection, and nothing shows that it is a copy."""
    replica = make(3, 3)
    replica.receive(said(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(FIRST, 5, 5)), 0)
    drain(replica)
    copy = said(2, 3, Prepare(ballot(9, 2), Slot(1)), Mark(SECOND, 5, 6))
    replica.receive(copy, SPAN_MS - 1)
    ready = drain(replica)
    assert sent(ready) == []
    assert [note for one in ready for note in one.notes] == [
        "replica=3 hears nothing of a second process as replica 2"
    ]
    replica.receive(copy, 2 * SPAN_MS)
    assert [message for _, message in sent(drain(replica))] == [
        Promise(ballot(9, 2), Slot(1), ())
    ]


def test_former_life_that_was_only_cut_off_is_told_from_its_copy_by_marks() -> None:
    """Both were heard, one after the other, and both wrote: neither counts any more."""
    replica = make(3, 3)
    replica.receive(said(2, 3, Heartbeat(ballot(1, 2), 1, Slot(1)), Mark(FIRST, 5, 6)), 0)
    replica.disconnected(TWO, 1)
    replica.receive(said(2, 3, Prepare(ballot(9, 2), Slot(1)), Mark(SECOND, 5, 6)), 2)
    replica.disconnected(TWO, 3)
    drain(replica, 3)
    replica.receive(said(2, 3, Prepare(ballot(10, 2), Slot(1)), Mark(FIRST, 5, 9)), 4)
    assert [type(message).__name__ for _, message in sent(drain(replica, 4))] == ["Stale"]


def test_second_process_gets_no_stream_until_the_first_is_gone() -> None:
    async def scenario() -> None:
        member, first, second = Replica(ReplicaId(1)), Replica(TWO), Replica(TWO)
        first.life, second.life = FIRST, SECOND
        member.refuse = lambda life, connected: None if connected in (None, life) else "no"
        async with replicas(member, first):
            await until(lambda: first.streams.is_connected(ReplicaId(1)))
            await second.listen()
            second.connect({ReplicaId(1): member.address})
            await until(lambda: len(second.events) > 1)  # Also when it tries again.
            assert {event[:2] for event in second.events} == {("twin", 1)}
            assert second.events[0][2] == (
                "no; end one of the two processes; if a data directory was copied, remove the "
                "copy, or make it a new replica (a new --id, --join, an empty --data-dir)"
            )
            first.send(ReplicaId(1), b"still heard")
            await until(lambda: member.frames == [(TWO, b"still heard")])
            await first.close()
            await until(lambda: second.streams.is_connected(ReplicaId(1)))
            await second.close()

    run(scenario)


# --- what is said ---


class Shell:
    """The ports of `Peers`."""

    def __init__(self) -> None:
        self.time_ms = 1_000
        self.said: list[str] = []
        self.failed: BaseException | None = None
        self.me = 3
        self.warnings = self
        options = CoordinatorOptions(ReplicaId(3), "", {}, Path("/var/3"), KEY)
        port: Any = self
        surroundings = Surroundings(new_streams=lambda *_, **options: port)
        self.peers = Peers(options, SETTINGS, port, port, make(3, 3), Random(1), surroundings)

    def now_ms(self) -> int:
        return self.time_ms

    def address_of(self, replica: ReplicaId) -> str:
        return f"10.0.0.{replica}:7070"

    def warn(self, kind: object, message: str) -> None:
        self.said.append(message)

    def wake(self) -> None:
        pass

    def step(self, method: Any, *arguments: Any) -> Any:
        return method(*arguments)

    def fail(self, error: BaseException) -> None:
        self.failed = error


def test_member_says_who_is_not_heard() -> None:
    shell = Shell()
    assert shell.peers.knocks(TWO, FIRST, None, "10.0.0.2:7070", SILENT) is None
    text = shell.peers.knocks(TWO, SECOND, FIRST, "10.0.0.9:7070", SILENT)
    assert text == (
        "replica 2 (at 10.0.0.2:7070) runs and is connected: another process that says it is "
        "replica 2 (at 10.0.0.9:7070) isn't heard"
    )
    assert shell.said == [f"replica=3 peer=2 {text}"]
    shell.peers.disconnected(TWO)
    assert shell.peers.knocks(TWO, SECOND, None, "10.0.0.9:7070", SILENT) is None


def test_what_is_known_of_a_release_is_that_of_the_process_that_is_heard() -> None:
    shell = Shell()
    lives, new = shell.peers._replica.lives, THIS_RELEASE.speaks
    assert shell.peers.knocks(TWO, FIRST, None, "10.0.0.2:7070", SILENT) is None
    assert not lives.reads_alone(TWO)
    assert shell.peers.knocks(TWO, SECOND, FIRST, "10.0.0.9:7070", new) is not None
    assert not lives.reads_alone(TWO)
    shell.peers.disconnected(TWO)
    assert shell.peers.knocks(TWO, SECOND, None, "10.0.0.9:7070", new) is None
    assert lives.reads_alone(TWO)


def test_process_that_is_refused_for_long_ends() -> None:
    """Not at once: its machine may have lost power, and its former connection looks alive."""
    shell = Shell()
    patience_ms = 2 * SETTINGS.unacknowledged_timeout_ms
    refuse_for(shell, patience_ms)
    shell.peers.connected(ReplicaId(1))
    shell.time_ms += 1
    refuse_for(shell, patience_ms)
    assert shell.failed is None
    shell.time_ms += 1
    shell.peers.refused(ReplicaId(1), "replica 3 runs already")
    assert isinstance(shell.failed, SettingsError)
    assert str(shell.failed) == (
        "data directory '/var/3' is that of a replica which runs elsewhere; replica 1 says: "
        "replica 3 runs already"
    )


def refuse_for(shell: Shell, span_ms: int) -> None:
    """Let replica 1 refuse it so long, at each of the tries."""
    end_ms = shell.time_ms + span_ms
    shell.peers.refused(ReplicaId(1), "no")
    while shell.time_ms < end_ms:
        shell.time_ms = min(shell.time_ms + SETTINGS.reconnect_pause_max_ms * 3 // 2, end_ms)
        shell.peers.refused(ReplicaId(1), "no")


def test_process_that_is_refused_now_and_then_goes_on() -> None:
    """Between two refusals it was cut off for long: nobody refused it all the time."""
    shell = Shell()
    patience_ms = 2 * SETTINGS.unacknowledged_timeout_ms
    for _ in range(3):
        refuse_for(shell, patience_ms)
        shell.time_ms += 10 * patience_ms
    assert shell.failed is None
    refuse_for(shell, patience_ms + 1)
    assert isinstance(shell.failed, SettingsError)


# --- clients ---

SUCCESSOR = {"incarnation": "b" * 16, "hostname": "elsewhere", "address": "10.0.0.9:7071"}


def join(incarnation: str) -> JoinClient:
    return JoinClient("aa", Incarnation(incarnation), "h:1", "host", 1)


def test_state_tells_a_replaced_client_from_a_silent_one() -> None:
    world = World()
    one, two = Incarnation("1"), Incarnation("2")
    cid = ClientId(1)
    world.apply(join("1"))
    schedule = world.schedule
    assert schedule.replacement(cid, one) is None  # It lives.
    world.apply(join("2"))
    found = schedule.replacement(cid, one)
    assert found is not None and (found.incarnation, found.address) == (two, "h:1")
    assert schedule.replacement(cid, two) is None
    schedule.found_anew("c0ffee", (ReplicaId(1),))
    assert schedule.replacement(cid, one) is None  # Whoever lives joins the new cluster.


def test_client_that_was_replaced_ends_and_says_by_whom(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with client_world.world(tmp_path) as here:
            here.coordinator.replacement = SUCCESSOR
            here.coordinator.declare_dead()
            await client_world.until(here.client.stopped.done)
        assert len(here.coordinator.joins) == 1 and here.coordinator.left == []

    with pytest.raises(SettingsError) as caught:
        client_world.run(scenario)
    assert str(caught.value) == (
        "client 1 was started once more (on elsewhere, at 10.0.0.9:7071): this process, on "
        f"{socket.gethostname()} with data directory {str(tmp_path)!r}, gives way to it; if a "
        "data directory was copied, give each client an empty --data-dir of its own"
    )


def test_client_whose_own_former_join_counts_late_joins_again(tmp_path: Path) -> None:
    """A join that a leader kept for long may come into the log behind a later one."""

    async def scenario() -> None:
        async with client_world.world(tmp_path) as here:
            (first,) = here.coordinator.joins
            here.coordinator.replacement = {**SUCCESSOR, "incarnation": first.incarnation}
            here.coordinator.declare_dead()
            await client_world.until(lambda: len(here.coordinator.joins) == 2)

    client_world.run(scenario)


def test_short_lives_follow_each_other_more_and_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def sleep(duration_s: float) -> None:
        pauses.append(duration_s)

    monkeypatch.setattr(client_incarnations.asyncio, "sleep", sleep)

    async def scenario() -> None:
        lives = Incarnations(Path("d"), Random(1))
        lives.joined(0)
        for now_ms in range(0, 10_000, 1_000):
            await lives.pause(now_ms)
            lives.joined(now_ms)
        assert 0.2 <= pauses[0] <= 0.3 and pauses[0] < pauses[1] < pauses[2]
        assert all(5 <= pause <= 7.5 for pause in pauses[5:])
        await lives.pause(30_000)  # That one was no short life.
        assert len(pauses) == 10

    run(scenario)
