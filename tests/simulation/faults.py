"""What goes wrong in a seed of the whole coordinator, and how often: swarm testing.

The seed switches each kind of fault on or off and draws its weight, so that some seeds see
one kind only, many times, and others all of them at once. Knows machines, links and disks, not
what runs on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.coordinators import CoordinatorNode
from tests.simulation.machines import Machine

if TYPE_CHECKING:
    from tests.simulation.whole import Whole

__all__ = ["Cuts", "Faults"]

Pair = tuple[str, str]  # names of machines: from, to


class Cuts:
    """Which links are cut, by which faults; a link is whole again when no fault cuts it."""

    def __init__(self, cut: set[Pair]) -> None:
        self._cut = cut  # what the network looks at
        self._made: dict[int, frozenset[Pair]] = {}
        self._last = 0

    def make(self, pairs: Iterable[Pair]) -> int:
        """Cut links; return a number by which to mend them."""
        self._last += 1
        self._made[self._last] = frozenset(pairs)
        self._cut |= self._made[self._last]
        return self._last

    def mend(self, number: int) -> None:
        """Undo one of them."""
        if self._made.pop(number, None) is not None:
            self._cut.clear()
            self._cut.update(*self._made.values())

    def mend_all(self) -> None:
        """Undo everything."""
        self._made.clear()
        self._cut.clear()


def _set_back(machine: Machine, jump_ms: int) -> None:
    machine.wall_offset_ms -= jump_ms


class Faults:
    """Lets things go wrong until `stop`."""

    def __init__(self, world: Whole, random: Random) -> None:
        self._world = world
        self._random = random
        self._is_over = False
        self.cuts = Cuts(world.wire.cut)
        kinds: list[tuple[str, int, Callable[[CoordinatorNode], None]]] = [
            ("crash", 8, self._crash),
            ("power", 5, self._lose_power),
            ("crash many", 2, self._crash_many),
            ("away", 4, self._go_away),
            ("freeze", 4, self._freeze),
            ("isolate", 3, self._isolate),
            ("partition", 3, self._partition),
            ("strand", 4, self._strand_leader),
            ("one way", 3, self._cut_one_way),
            ("flap", 2, self._flap),
            ("swizzle", 2, self._swizzle),
            ("disk", 5, self._change_disk),
            ("hang", 3, self._hang_disk),
            ("network", 3, self._change_network),
            ("slow", 2, self._slow_down),
            ("wall", 3, self._set_clock),
            ("stranger", 3, self._visit),
            ("wipe", 2, self._wipe),
            ("spoil", 4, self._spoil),
            ("client", 5, self._hit_client),
        ]
        # Some seeds are calm but for one kind; most have half of them.
        share = random.choice((0.2, 0.5, 0.5, 0.8, 1.0))
        self._kinds = [
            (random.choice((1, 1, 3)) * weight, fault)
            for name, weight, fault in kinds
            if random.random() < share
        ] or [(1, self._crash)]
        self._gap_ms = random.choice((150.0, 400.0, 1_000.0, 2_500.0))
        self._leader_share = random.choice((0.2, 0.5, 0.8))
        # Founding needs all members at once: under fire, most of a seed would pass with it.
        self._is_patient = random.random() < 0.85

    def start(self) -> None:
        """Begin."""
        self._world.after(self._random.uniform(0, 3 * self._gap_ms), self._next)

    def stop(self) -> None:
        """Let nothing go wrong any more; what is broken stays so."""
        self._is_over = True
        self.cuts.mend_all()

    def _next(self) -> None:
        if self._is_over:
            return
        random = self._random
        self._world.after(random.uniform(0, 2 * self._gap_ms), self._next)
        if self._is_patient and not self._world.is_founded:
            return
        weights = [weight for weight, _ in self._kinds]
        fault = random.choices([fault for _, fault in self._kinds], weights)[0]
        nodes = list(self._world.nodes.values())
        leaders = self._leaders()
        if leaders and random.random() < self._leader_share:
            fault(random.choice(leaders))
        else:
            fault(random.choice(nodes))

    def _leaders(self) -> list[CoordinatorNode]:
        return [
            node
            for node in self._world.nodes.values()
            if node.replica is not None and node.replica.is_leader
        ]

    def _later(self, delays_ms: tuple[float, ...], then: Callable[[], None]) -> None:
        self._world.after(self._random.choice(delays_ms) * self._random.uniform(0.5, 1.5), then)

    # --- processes ---

    def _crash(self, node: CoordinatorNode) -> None:
        self._world.crash(node, power_loss=False)
        self._later((20, 300, 2_000), partial(self._world.start_node, node))

    def _lose_power(self, node: CoordinatorNode) -> None:
        self._world.crash(node, power_loss=True)
        self._later((100, 1_000, 4_000), partial(self._world.start_node, node))

    def _crash_many(self, node: CoordinatorNode) -> None:
        nodes = list(self._world.nodes.values())
        for each in self._random.sample(nodes, self._random.randint(1, len(nodes))):
            self._world.crash(each, power_loss=self._random.random() < 0.5)
            self._later((100, 1_500), partial(self._world.start_node, each))

    def _go_away(self, node: CoordinatorNode) -> None:
        """Be down for long, so that the others truncate what this one lacks."""
        self._world.crash(node, power_loss=self._random.random() < 0.5)
        self._later((5_000, 12_000), partial(self._world.start_node, node))

    def _freeze(self, node: CoordinatorNode) -> None:
        process = node.machine.process
        if process is None or not process.is_alive:
            return
        self._world.say(f"replica {node.me} is frozen")
        self._world.count("processes frozen")
        process.freeze()
        self._later((30, 900, 4_000, 12_000), process.thaw)

    def _slow_down(self, node: CoordinatorNode) -> None:
        """Let a machine be slow: what takes microseconds takes milliseconds now and then."""
        machine = node.machine
        machine.slow_ms = self._random.choice((0.0, 5.0, 60.0))
        self._world.say(f"{machine.name} is {'slow' if machine.slow_ms else 'fast'}")
        self._world.count("machines that changed speed")

    def _set_clock(self, node: CoordinatorNode) -> None:
        """Let the time of day jump, back or ahead, by up to a day; for a second or for good.

        On any machine: the clients' and the people's, too.
        """
        random = self._random
        machine = node.machine
        if random.random() < 0.4:
            machine = random.choice(list(self._world.machines.values()))
        jump_ms = random.choice((1_000, 60_000, 3_600_000, 24 * 3_600_000))
        jump_ms = round(jump_ms * random.uniform(-1, 1))
        self._world.say(f"the clock of {machine.name} jumps by {jump_ms} ms")
        self._world.count("clocks that jumped")
        machine.wall_offset_ms += jump_ms
        if random.random() < 0.5:
            self._world.after(random.uniform(100, 3_000), partial(_set_back, machine, jump_ms))

    def _visit(self, node: CoordinatorNode) -> None:
        self._world.stranger.visit()

    def _wipe(self, node: CoordinatorNode) -> None:
        """Lose a disk for good; the operator replaces its member."""
        if self._world.may_wipe(node):
            self._world.wipe(node)
            self._later((100, 1_500), partial(self._world.start_node, node))

    def _spoil(self, node: CoordinatorNode) -> None:
        """Let a disk damage something, of a minority only: it is had from the others again."""
        if not self._world.may_spoil(node):
            return
        self._world.count("disks that spoil something")
        if self._random.random() < 0.7:
            self._world.crash(node, power_loss=True)
            self._later((50, 500), partial(self._world.start_node, node))
        node.spoil(self._random)

    # --- the network ---

    def _cut(self, what: str, pairs: Iterable[Pair], delays_ms: tuple[float, ...]) -> None:
        made = self.cuts.make(pairs)
        self._world.say(what)
        self._later(delays_ms, partial(self._mend, made))

    def _mend(self, made: int) -> None:
        self._world.say("a part of the network is mended")
        self.cuts.mend(made)

    def _names(self) -> list[str]:
        return list(self._world.machines)

    def _around(self, name: str) -> list[Pair]:
        return [
            pair
            for other in self._names()
            if other != name
            for pair in ((name, other), (other, name))
        ]

    def _isolate(self, node: CoordinatorNode) -> None:
        self._world.count("partitions")
        name = node.machine.name
        self._cut(f"{name} is cut off", self._around(name), (200, 1_500, 6_000))

    def _partition(self, node: CoordinatorNode) -> None:
        side = {name for name in self._names() if self._random.random() < 0.5}
        self._world.count("partitions")
        pairs = [
            (source, target)
            for source in self._names()
            for target in self._names()
            if (source in side) != (target in side)
        ]
        self._cut(f"{sorted(side)} are cut off from the others", pairs, (300, 2_000, 6_000))

    def _strand_leader(self, node: CoordinatorNode) -> None:
        """Leave a leader with a minority of its peers; clients may reach both sides."""
        leaders = self._leaders()
        if not leaders:
            return
        leader = leaders[0]
        others = [each for each in self._world.nodes.values() if each is not leader]
        beside = self._random.sample(others, max(0, len(others) // 2 - 1))
        side = {leader.machine.name, *(each.machine.name for each in beside)}
        rest = [each.machine.name for each in others if each.machine.name not in side]
        if self._random.random() < 0.5:
            rest += [name for name in self._names() if not name.startswith("replica")]
        self._world.count("leaders stranded")
        pairs = [pair for a in side for b in rest for pair in ((a, b), (b, a))]
        self._cut(f"leader stranded: {sorted(side)}", pairs, (500, 2_500, 6_000))

    def _cut_one_way(self, node: CoordinatorNode) -> None:
        name = node.machine.name
        others = [other for other in self._names() if other != name]
        if self._random.random() < 0.5:
            others = [self._random.choice(others)]
        is_deaf = self._random.random() < 0.5
        pairs = [(other, name) if is_deaf else (name, other) for other in others]
        self._world.count("one-way cuts")
        what = "hears nothing from" if is_deaf else "isn't heard by"
        self._cut(f"{name} {what} {others}", pairs, (500, 3_000, 8_000))

    def _flap(self, node: CoordinatorNode) -> None:
        """Cut a machine off and mend it again, several times."""
        self._world.count("flapping links")
        name, delay = node.machine.name, 0.0
        for _ in range(self._random.randint(3, 10)):
            self._world.after(delay, partial(self._flap_once, name))
            delay += self._random.uniform(100, 1_500)

    def _flap_once(self, name: str) -> None:
        if not self._is_over:
            self._cut(f"{name} is cut off, flapping", self._around(name), (50, 400))

    def _swizzle(self, node: CoordinatorNode) -> None:
        """Cut nodes off one after the other, and mend them in another order."""
        random = self._random
        nodes = list(self._world.nodes.values())
        chosen = random.sample(nodes, random.randint(1, len(nodes)))
        self._world.count("swizzles")
        delay = 0.0
        made: list[int] = []

        def clog(each: CoordinatorNode) -> None:
            if not self._is_over:
                self._world.say(f"{each.machine.name} is clogged")
                made.append(self.cuts.make(self._around(each.machine.name)))

        def unclog() -> None:
            if made:
                self._mend(made.pop(random.randrange(len(made))))

        for each in chosen:
            delay += random.uniform(0, 800)
            self._world.after(delay, partial(clog, each))
        for _ in chosen:
            delay += random.uniform(100, 1_500)
            self._world.after(delay, unclog)

    def _change_network(self, node: CoordinatorNode) -> None:
        wire, random = self._world.wire, self._random
        wire.delays = random.choice(((0.05, 0.5), (0.5, 5.0), (5.0, 40.0), (0.05, 100.0)))
        wire.straggling = random.choice((0.0, 0.0, 0.02, 0.1))

    # --- disks ---

    def _change_disk(self, node: CoordinatorNode) -> None:
        node.disk.latency = self._random.choice(((0.1, 1.0), (2.0, 20.0), (20.0, 300.0)))
        self._world.say(f"the disk of {node.machine.name} takes {node.disk.latency} ms")
        self._world.count("disks that changed speed")

    def _hang_disk(self, node: CoordinatorNode) -> None:
        span = self._random.choice((200.0, 1_500.0, 5_000.0))
        node.disk.hangs_until = self._world.now + span
        self._world.say(f"the disk of {node.machine.name} hangs for {span:.0f} ms")
        self._world.count("disks that hang")

    # --- clients ---

    def _hit_client(self, node: CoordinatorNode) -> None:
        self._world.clients.fault()
