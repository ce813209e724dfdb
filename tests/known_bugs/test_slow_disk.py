"""etcd-io/etcd#13587: slow fsync caused elections of leaders.

Here: disks whose writes take seconds, in simulated time. A follower with such a disk must
not disturb the leader, and a leader with such a disk keeps its heartbeats: they don't
wait for its writes. The others make a majority, so commands go on meanwhile. The same
once more on real coordinators, whose stores are made slow (`slow_disk.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tasksprint.consensus import Chosen, Envelope, Persist
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.settings import Settings
from tests.e2e.conftest import wait_until
from tests.known_bugs.test_power_loss import decides
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from tests.simulation.replica_node import ReplicaNode, ReplicaState
from tests.simulation.timeline import Clock, Timeline
from tests.torture.machines import Machines, copy_of_checkout

QUICK = (0.1, 1.0)
SLOW = (1_000.0, 3_000.0)


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

    def turned(self, node: ReplicaNode) -> None: ...


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


@pytest.fixture(params=range(5))
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


def test_leader_with_a_slow_disk_keeps_its_heartbeats(world: World) -> None:
    """It may hand over, once; it may not be lost and found over and over."""
    leader = world.elected()
    world.watch.notes.clear()
    leader.disk.latency = SLOW
    for number in range(60):
        assert world.decide(b"command %d" % number) < 2_000
        world.run(500)
    became = [note for note in world.watch.notes if "became leader" in note]
    assert len(became) <= 1, became


@pytest.mark.long
@pytest.mark.parametrize("role", ["follower", "leader"])
def test_real_coordinator_whose_disk_becomes_slow_loses_nobody(role: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    copy_of_checkout(tmp_path / "code")
    script = str(Path(__file__).with_name("slow_disk.py"))
    with Machines(
        tmp_path / "cluster",
        command=[],
        coordinators=3,
        clients=0,
        environment={"PYTHONPATH": str(tmp_path / "code")},
    ) as machines:
        for name in machines.coordinators:
            file = str(tmp_path / f"slow-{name}")
            machines.start(name, command=[sys.executable, script, file])
        wait_until(partial(decides, machines, 1), "the cluster is founded")
        leader = machines.leader()
        assert leader is not None
        slow = leader
        if role == "follower":
            slow = next(name for name in machines.coordinators if name != leader)
        (tmp_path / f"slow-{slow}").write_text("2.0")
        for request in range(2, 22):
            wait_until(partial(decides, machines, request), "it is decided", limit_s=5)
            time.sleep(0.2)
        (tmp_path / f"slow-{slow}").unlink()
        became = [
            line
            for name in machines.coordinators
            for line in machines.log(name).splitlines()
            if "became leader" in line
        ]
        # A slow leader may hand over.
        assert len(became) == 1 if role == "follower" else len(became) <= 2, became
        assert set(machines.end_all().values()) == {0}
