"""The clients and the people of a seed: what they do, what happens to them, what must hold.

Draws how many there are and how fast they are; lets clients be killed, stopped and cut off; asks
the rules of `end_to_end.py`. What a client is stands in `client_machine.py`, what people do in
`people.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.ids import ReplicaId, Slot
from tests.simulation.client_machine import ClientMachine
from tests.simulation.end_to_end import RULES, Entry, FairJudge, NothingLeft, Rule, Scene
from tests.simulation.people import People
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["Clients"]

# What the state machine notes, and how often a batch of seeds saw it.
_NOTES = {
    "completions void": " void: it consumed",
    "results that changed": " has another result than before",
    "results computed again": " computed again",
    "results that came back": " came back",
    "results lost by a client": " lost its copy",
}


class Clients:
    """All clients and people of one seed, as the scenario drives them."""

    machine_class: type[ClientMachine] = ClientMachine
    rules: Sequence[Callable[[Scene], Rule]] = RULES

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(world.random.random())
        count = self.random.choice((1, 2, 2, 3, 4))
        self.machines = [
            self.machine_class(world, f"client {number}", self._answered)
            for number in range(1, count + 1)
        ]
        self.people = People(world)
        self.people.must_be_kept = lambda: not any(each.disks_lost for each in self.machines)
        scene = Scene(world, self.people, self.machines)
        self._rules = [rule(scene) for rule in self.rules]
        self._applied_end = 0
        self._settled_at: float | None = None
        self._unfinished: str | None = None
        # Swarm: most seeds have some kinds of faults only.
        kinds: list[Callable[[ClientMachine], None]] = [
            self._kill,
            self._kill,
            self._freeze,
            self._cut,
            self._cut,
            self._stop,
            self._lose_disk,
            self._lose_values,
            self._change_disk,
            self._fill_disk,
        ]
        self._faults = [kind for kind in kinds if self.random.random() < 0.6] or [self._kill]

    # --- what the scenario does ---

    def start(self) -> None:
        """Begin the first phase."""
        for machine in self.machines:
            self.world.after(self.random.uniform(0, 3_000), partial(self._start, machine))
        self.people.start()
        self._look()

    def fault(self) -> None:
        """Let something happen to a client."""
        self.random.choice(self._faults)(self.random.choice(self.machines))

    def heal(self) -> None:
        """Bring everybody back, and let nobody begin anything more."""
        self.people.stop()
        for machine in self.machines:
            machine.disk.latency = (0.1, 1.0)
            machine.disk.hangs_until = 0.0
            machine.is_disk_low = False
            if machine.process is not None:
                machine.process.thaw()
            self.world.after(self.random.uniform(0, 500), partial(self._start, machine))
            # One that was stopping in good order just then.
            self.world.after(5_000, partial(self._start, machine))
            # One that was away while all coordinators that it knows of were replaced.
            self.world.after(10_000, partial(self._start_anew_if_lost, machine))
        self.world.after(600, self.people.settle)
        self._settled_at = None

    def submit_last(self) -> None:
        """Submit one more job."""
        self._settled_at = None
        self.people.submit_last()

    @property
    def is_settled(self) -> bool:
        """Whether all acknowledged jobs have ended, and nobody has anything left to do."""
        if not self.people.is_settled:
            return False
        left = next((rule for rule in self._rules if isinstance(rule, NothingLeft)), None)
        self._unfinished = None if left is None else left.describe()
        if self._unfinished is None:
            return True
        if self._settled_at is None:
            self._settled_at = self.world.now
        elif self.world.now - self._settled_at > NothingLeft.patience_ms:
            raise Violation("left-over", self._unfinished)
        return False

    def describe(self) -> str:
        """Say who isn't settled, for a seed that doesn't come to an end."""
        if not self.people.is_settled:
            return f"people wait: {self.people.describe()}"
        return self._unfinished or "clients and people are settled"

    def check(self, schedules: list[Schedule]) -> None:
        """Check the rules at the end."""
        for operation, number in self.people.counts.items():
            self.world.count(f"people: {operation}", number)
        for rule in self._rules:
            rule.at_end(schedules)

    # --- what coordinators do ---

    def applied(
        self,
        replica: ReplicaId,
        schedule: Schedule,
        slot: Slot,
        commands: tuple[bytes, ...],
        applied: Applied,
    ) -> None:
        """Take that a replica applied an entry."""
        is_first = slot > self._applied_end
        self._applied_end = max(self._applied_end, slot)
        entry = Entry(replica, slot, schedule, commands, applied, is_first)
        for note in applied.notes if is_first else ():
            for what, words in _NOTES.items():
                if words in note:
                    self.world.count(what)
        # Told to the world, not raised: a coordinator would take it for a fault of its own.
        try:
            for rule in self._rules:
                rule.applied(entry)
        except Violation as violation:
            self.world.violate(violation.rule, violation.text)

    def tick_proposed(self, command: bytes) -> None:
        """Take that a leader judges who is silent."""
        for rule in self._rules:
            rule.tick_proposed(command)

    def scheduler_got(self, replica: ReplicaId, run: object, line: bytes) -> None:
        """Take that a scheduler's process got a line."""
        try:
            for rule in self._rules:
                rule.scheduler_got(replica, run, line)
        except Violation as violation:
            self.world.violate(violation.rule, violation.text)

    # --- looking ---

    def _look(self) -> None:
        for rule in self._rules:
            rule.looks()
        self.world.after(FairJudge.look_ms, self._look)

    def _answered(self, incarnation: str) -> None:
        for rule in self._rules:
            rule.client_answered(incarnation)

    # --- faults ---

    def _start(self, machine: ClientMachine) -> None:
        if not machine.is_up:
            self.world.say(f"{machine.name} starts")
            machine.start()

    def _start_anew_if_lost(self, machine: ClientMachine) -> None:
        members = self.world.member_addresses()
        if machine.is_up and not members & set(machine.known_addresses()):
            self.world.say(f"{machine.name} is started anew, with other coordinators")
            self.world.count("clients started anew, as they knew no member any more")
            machine.kill()
            machine.start()

    def _kill(self, machine: ClientMachine) -> None:
        if machine.is_up:
            self.world.say(f"{machine.name} is killed")
            self.world.count("clients killed")
            machine.kill()
        self._later((20, 500, 4_000, 12_000), partial(self._start, machine))

    def _lose_disk(self, machine: ClientMachine) -> None:
        """Replace a machine by another one, of the same name, with an empty disk."""
        self.world.say(f"{machine.name} loses its disk")
        self.world.count("clients that lost their disk")
        machine.lose_disk()
        self._later((20, 4_000), partial(self._start, machine))

    def _lose_values(self, machine: ClientMachine) -> None:
        """Kill a machine, and let it find some of its results gone when it is back, soon."""
        self.world.say(f"{machine.name} is killed and loses values")
        self.world.count("clients that lost values")
        machine.kill()
        machine.lose_values(self.random.choice((0.3, 1.0)), self.random)
        self._later((20, 500), partial(self._start, machine))

    def _stop(self, machine: ClientMachine) -> None:
        self.world.say(f"{machine.name} is asked to stop")
        self.world.count("clients stopped in good order")
        machine.stop()
        self._later((500, 3_000), partial(self._start, machine))

    def _freeze(self, machine: ClientMachine) -> None:
        process = machine.process
        if process is None or not process.is_alive:
            return
        self.world.say(f"{machine.name} is frozen")
        self.world.count("clients frozen")
        process.freeze()
        self._later((50, 1_000, 6_000, 15_000), process.thaw)

    def _cut(self, machine: ClientMachine) -> None:
        """Cut links to some coordinators, to some clients, or to all; one way or both."""
        random, name = self.random, machine.name
        coordinators = [f"replica {replica}" for replica in self.world.addresses]
        clients = [each.name for each in self.machines if each is not machine]
        others = random.choice((coordinators, clients, coordinators + clients))
        some = [other for other in others if random.random() < random.choice((0.5, 1.0))]
        ways = random.choice(((True, True), (True, True), (True, False), (False, True)))
        pairs = [(name, other) for other in some if ways[0]]
        pairs += [(other, name) for other in some if ways[1]]
        self.world.say(f"cut: {pairs}")
        self.world.count("clients cut off")
        self._later((200, 2_000, 8_000), self.world.cut(pairs))

    def _change_disk(self, machine: ClientMachine) -> None:
        machine.disk.latency = self.random.choice(((0.1, 1.0), (5.0, 50.0), (50.0, 400.0)))

    def _fill_disk(self, machine: ClientMachine) -> None:
        def free() -> None:
            machine.is_disk_low = False

        machine.is_disk_low = True
        self._later((2_000, 8_000), free)

    def _later(self, delays_ms: tuple[float, ...], then: Callable[[], Any]) -> None:
        delay_ms = self.random.choice(delays_ms) * self.random.uniform(0.3, 1.5)
        self.world.after(delay_ms, then)
