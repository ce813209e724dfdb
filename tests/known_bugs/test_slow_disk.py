"""etcd-io/etcd#13587: slow fsync caused elections of leaders.

Here: disks whose writes take seconds, in simulated time. A follower with such a disk must
not disturb the leader. A leader with such a disk keeps its heartbeats, which don't wait for
its writes, and hands over, once. If all disks are slow, the leader stays. The same once more
on real coordinators, whose stores are made slow (`slow_disk.py`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tasksprint.consensus import Chosen, Envelope, Persist
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.settings import Settings
from tests.archives import packed
from tests.e2e.conftest import wait_until
from tests.known_bugs.test_power_loss import decides
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from tests.simulation.replica_node import ReplicaNode, ReplicaState
from tests.simulation.timeline import Clock, Timeline
from tests.torture.machines import Machines, number_of

QUICK = (0.1, 1.0)
SLOW = (1_000.0, 3_000.0)
# No election but for a slow disk, however long a busy machine keeps a real leader waiting.
PATIENT = {"election_timeout_min_ms": 5_000, "election_timeout_max_ms": 6_000}


@dataclass
class Watch:
    """Writes down what matters here."""

    notes: list[str] = field(default_factory=list)
    chosen: dict[bytes, set[ReplicaId]] = field(default_factory=dict)

    def started(self, node: ReplicaNode) -> None: ...

    def sends(self, node: ReplicaNode, envelope: Envelope) -> None: ...

    def wrote(self, node: ReplicaNode, persist: Persist) -> None: ...

    def chose(self, node: ReplicaNode, chosen: Chosen) -> None:
        for command in chosen.commands:
            self.chosen.setdefault(command, set()).add(node.me)

    def read_confirmed(self, node: ReplicaNode, read_id: int) -> None: ...

    def read_failed(self, node: ReplicaNode, read_id: int) -> None: ...

    def noted(self, node: ReplicaNode, text: str) -> None:
        self.notes.append(text)

    def stopped(self, node: ReplicaNode, text: str) -> None:
        raise AssertionError(text)


class World:
    """Three replicas on a network that loses nothing."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self.timeline = Timeline()
        self.watch = Watch()
        self.network = Network(self.timeline, Random(random.random()), self._deliver)
        members = tuple(ReplicaId(number) for number in (1, 2, 3))
        self.nodes = {
            member: ReplicaNode(
                me=member,
                members=members,
                settings=Settings(),
                timeline=self.timeline,
                clock=Clock(self.timeline, offset=1_000 * member, rate=1.0),
                disk=Disk(
                    self.timeline,
                    Random(random.random()),
                    ReplicaState(Incarnation(f"of {member}")),
                ),
                random=Random(random.random()),
                send=lambda envelope: self.network.send(
                    envelope.source, envelope.target, envelope
                ),
                observer=self.watch,
            )
            for member in members
        }

    def _deliver(self, source: int, target: int, envelope: Envelope) -> None:
        self.nodes[ReplicaId(target)].receive(envelope)

    def run_until(self, condition: Callable[[], bool], *, within_ms: float) -> float:
        """Run until something is so; return how long that took."""
        began = self.timeline.now
        while not condition():
            assert self.timeline.now - began < within_ms, self.watch.notes[-5:]
            assert self.timeline.step()
        return self.timeline.now - began

    def run(self, ms: float) -> None:
        """Run for a while."""
        end = self.timeline.now + ms
        while self.timeline.now < end:
            assert self.timeline.step()

    def leader(self) -> ReplicaNode | None:
        """Return who leads, if all say so."""
        leaders = [
            node
            for node in self.nodes.values()
            if node.replica is not None and node.replica.is_established
        ]
        return leaders[0] if len(leaders) == 1 else None

    def elected(self) -> ReplicaNode:
        """Return who leads, after a while."""
        self.run_until(lambda: self.leader() is not None, within_ms=10_000)
        leader = self.leader()
        assert leader is not None
        return leader

    def decide(self, command: bytes) -> float:
        """Return how long it takes a command at the leader to be applied there."""
        leader = self.elected()
        assert leader.propose(command)
        return self.run_until(
            lambda: leader.me in self.watch.chosen.get(command, ()), within_ms=30_000
        )


@pytest.fixture(params=[0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3, 4))])
def world(request: pytest.FixtureRequest) -> World:
    """Three replicas that have been founded and have a leader."""
    made = World(request.param)
    for node in made.nodes.values():
        node.start()
    made.elected()
    made.decide(b"the first one")
    made.run(2_000)
    return made


def ballots(world: World) -> set[object]:
    return {node.replica.status().ballot for node in world.nodes.values() if node.replica}


def test_follower_with_a_slow_disk_causes_no_election(world: World) -> None:
    leader = world.elected()
    before = ballots(world)
    follower = next(node for node in world.nodes.values() if node is not leader)
    follower.disk.latency = SLOW
    for number in range(60):
        assert world.decide(b"command %d" % number) < 100
        world.run(500)
    assert ballots(world) == before
    assert world.leader() is leader


@pytest.mark.parametrize("hangs", [False, True])
def test_leader_with_a_slow_disk_hands_over_once(world: World, hangs: bool) -> None:
    """It isn't lost and found over and over, and its commands don't wait meanwhile."""
    leader = world.elected()
    world.watch.notes.clear()
    leader.disk.latency = SLOW
    if hangs:
        leader.disk.hang()
    for number in range(60):
        assert world.decide(b"command %d" % number) < 100
        world.run(500)
        if number > 20:
            assert world.leader() not in (None, leader)
    became = [note for note in world.watch.notes if "became leader" in note]
    assert len(became) == 1, became
    # (Both others may stand, as both hear it.)
    stood = [note for note in world.watch.notes if "stands for election" in note]
    why = f"heard that replica {leader.me} resigned: its disk is slow: a write has taken"
    assert 1 <= len(stood) <= 2 and all(why in note for note in stood), stood


def test_leader_of_a_cluster_in_which_all_disks_are_slow_stays(world: World) -> None:
    leader = world.elected()
    world.watch.notes.clear()
    for node in world.nodes.values():
        node.disk.latency = SLOW
    for number in range(30):
        assert world.decide(b"command %d" % number) < 10_000
        assert world.leader() is leader
    assert not [note for note in world.watch.notes if "steps down" in note]


def test_leader_stays_if_any_majority_without_it_is_as_slow(world: World) -> None:
    """One of three is quick. Whoever leads needs a slow one, so handing over gains nothing."""
    leader = world.elected()
    slow = [leader, next(node for node in world.nodes.values() if node is not leader)]
    for node in slow:
        node.disk.latency = (300.0, 600.0)
    world.watch.notes.clear()
    for number in range(60):
        assert world.decide(b"command %d" % number) < 2_000
        world.run(500)
    assert world.leader() is leader
    assert not [note for note in world.watch.notes if "became leader" in note]


@pytest.mark.slow
def test_leadership_does_not_go_round_among_slow_disks(world: World) -> None:
    """Two of three are slow by turns, so the leader hands over: the third leads, and stays."""
    leader = world.elected()
    quick, slow = (node for node in world.nodes.values() if node is not leader)
    for node in (leader, slow):
        node.disk.latency = (100.0, 3_000.0)
    world.watch.notes.clear()
    numbers = iter(range(300))
    while world.leader() is not quick:
        world.decide(b"command %d" % next(numbers))
        world.run(500)
    assert any("resigned: its disk is slow" in note for note in world.watch.notes)
    for number in range(300, 350):
        world.decide(b"command %d" % number)
        world.run(500)
    became = [note for note in world.watch.notes if "became leader" in note]
    assert len(became) == 1, became
    assert world.leader() is quick


@contextlib.contextmanager
def machines_with_slow_disks(folder: Path, command: list[str]) -> Iterator[Machines]:
    """Run three coordinators whose commits take as long as the files slow-… in a folder say."""
    script = str(Path(__file__).with_name("slow_disk.py"))
    with Machines(
        folder / "cluster",
        command=command,
        coordinators=3,
        clients=0,
        environment={
            "PYTHONPATH": str(Path(command[-1]).parent),
            "TASKSPRINT_SETTINGS": json.dumps(PATIENT),
        },
    ) as machines:
        for name in machines.coordinators:
            file = str(folder / f"slow-{name}")
            machines.start(name, command=[sys.executable, script, file])
        wait_until(partial(decides, machines, 1), "the cluster is founded")
        yield machines


def became_leader(machines: Machines) -> list[str]:
    return [
        line
        for name in machines.coordinators
        for line in machines.log(name).splitlines()
        if "became leader" in line
    ]


@pytest.mark.long
def test_real_follower_whose_disk_becomes_slow_disturbs_nobody(
    tmp_path: Path, command: list[str]
) -> None:
    with machines_with_slow_disks(tmp_path, command) as machines:
        leader = machines.leader()
        slow = next(name for name in machines.coordinators if name != leader)
        (tmp_path / f"slow-{slow}").write_text("2.0")
        for request in range(2, 22):
            wait_until(partial(decides, machines, request), "it is decided", limit_s=5)
            time.sleep(0.2)  # Real time: several writes of the slow disk are to pass.
        (tmp_path / f"slow-{slow}").unlink()
        assert len(became_leader(machines)) == 1
        assert set(machines.end_all().values()) == {0}


@pytest.mark.long
@pytest.mark.parametrize("seconds", [2.0, 600.0])
def test_real_leader_whose_disk_becomes_slow_hands_over(
    seconds: float, tmp_path: Path, command: list[str]
) -> None:
    """What must be on the leader's own disk is quick again soon: a job's archive."""
    with machines_with_slow_disks(tmp_path, command) as machines:
        slow = machines.leader()
        assert slow is not None

        def keep(number: int) -> float:
            before_s = time.monotonic()
            body = packed(b"%d" % number)
            machines.connect().request("POST", "/v1/programs", body=body).checked()
            return time.monotonic() - before_s

        keep(1)
        (tmp_path / f"slow-{slow}").write_text(str(seconds))
        wait_until(lambda: machines.leader() not in (slow, None), "another one leads", limit_s=15)
        # (Each would take as long as a write of the slow disk.)
        assert sum(keep(number) for number in range(2, 12)) < 5 * seconds
        # And it stays so, though the first one is a good follower otherwise.
        for request in range(2, 22):
            wait_until(partial(decides, machines, request), "it is decided", limit_s=5)
            time.sleep(0.2)  # Real time: several writes of the slow disk are to pass.
        assert len(became_leader(machines)) == 2
        leader = machines.leader()
        assert leader is not None
        status = machines.status(leader)
        assert status is not None
        why = status["elections"][-1]["cause"]  # type: ignore[index]
        assert f"replica {number_of(slow)} resigned: its disk is slow: a write" in why
        found = machines.status(slow)
        assert found is not None and found["consensus"]["handovers"] == 1  # type: ignore[index]
        (tmp_path / f"slow-{slow}").unlink()
        if seconds > 10:
            machines.kill(slow)  # It can't end before its write does.
        assert set(machines.end_all().values()) == {0}
