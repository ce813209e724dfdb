"""One seed of the whole coordinator: several of them, clients, people, and what goes wrong.

Real coordinators (turns, log, state machine, mirror, copies, members, schedulers' hosts) and
real clients run on virtual time. In the first phase anything may go wrong and only safety
is asked for; then everything is healed, and within a bounded time all jobs must end, all
replicas agree, and a new job run. The seed decides everything: it fails again in the same way.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tasksprint.coordination.rows import garbage_ranges
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import TaskSprintError
from tasksprint.ids import ReplicaId
from tasksprint.settings import Settings
from tests.simulation.checker import Checker
from tests.simulation.clients import Clients
from tests.simulation.coordinators import CoordinatorNode, SchedulerFaults
from tests.simulation.faults import Faults
from tests.simulation.machines import Machine, Process
from tests.simulation.operators import Operator
from tests.simulation.releases import Releases
from tests.simulation.sim_http import SimHttp
from tests.simulation.stranger import Stranger
from tests.simulation.timeline import Timeline
from tests.simulation.wire import Wire
from tests.simulation.world import Outcome, Unreachable, Violation, violation_of
from tests.store.file_directory import FileDirectory, FileResults
from tests.store.memory_result_store import MemoryResults
from tests.store.memory_store import MemoryDirectory

__all__ = ["ENTRIES_MIN", "Whole", "run_whole"]

# Entries that a seed must have chosen, to count.
ENTRIES_MIN = 200
# Virtual milliseconds of the first phase, at least and at most.
_FAULTS_MS = (8_000.0, 25_000.0)
_FAULTS_MS_MAX = 60_000.0
# Virtual milliseconds that a healed cluster may take until all is as it should be.
_HEALING_MS_MAX = 120_000.0
_STEPS_MAX = 3_000_000
# Of the seeds, one in so many runs on real SQLite files, and which.
_FILES_EACH, _FILES_REST = 10, 4
# Entries of the first phase: what is missing to ENTRIES_MIN comes after healing.
_ENTRIES_WANTED = 150


class WholeChecker(Checker):
    """The consensus checker, for replicas inside of coordinators."""

    def refused(self, node: CoordinatorNode, text: str) -> None:
        """A replica can't make sense of what another one sent."""
        raise Violation("core", f"replica {node.me} refused a message: {text}")


class Whole:
    """The world of one seed; the simulator's `World`.

    Args:
        on_files: Disks are real files, or in memory; None: as this seed has it.
    """

    node_class: type[CoordinatorNode] = CoordinatorNode

    def __init__(
        self,
        seed: int,
        *,
        trace: Callable[[str], None] | None = None,
        node_class: type[CoordinatorNode] = CoordinatorNode,
        clients_class: type[Clients] = Clients,
        faults_class: type[Faults] = Faults,
        releases_class: type[Releases] = Releases,
        on_files: bool | None = None,
    ) -> None:
        self.random = random = Random(seed)
        self.timeline = Timeline()
        self.violation: Violation | None = None
        self.is_healed = False
        if on_files is None:
            on_files = seed % _FILES_EACH == _FILES_REST
        self._folder = _new_folder() if on_files else None
        self._disks: list[MemoryDirectory | FileDirectory | MemoryResults | FileResults] = []
        self._trace = trace
        self._node_class = node_class
        self.settings = _draw_settings(random)
        self.wire = Wire(self.timeline, Random(random.random()))
        self.wire.give_up_ms = float(self.settings.unacknowledged_timeout_ms)
        self.machines: dict[str, Machine] = {}
        self._drift = random.choice((0.0, 0.01, 0.1))
        self._https: dict[Process, SimHttp] = {}
        self._graveyard: list[Process] = []
        self.scheduler_faults = SchedulerFaults(Random(random.random()))
        if random.random() < 0.4:
            self.scheduler_faults.crash = random.choice((0.002, 0.02))
            self.scheduler_faults.hang = random.choice((0.0, 0.002))
        size = random.choice((1, 2, 3, 3, 3, 3, 3, 3, 4, 5))
        members = [ReplicaId(number) for number in range(1, size + 1)]
        self.checker = WholeChecker(members=tuple(members), trace=self.say if trace else None)
        self.addresses: dict[ReplicaId, str] = {me: _address(me) for me in members}
        self.founders = dict(self.addresses)
        self.nodes: dict[ReplicaId, CoordinatorNode] = {}
        self.wiped: set[ReplicaId] = set()
        self.spoiled: set[ReplicaId] = set()
        self.releases = releases_class(self, Random(f"releases {seed}"))
        for me in members:
            self.add_node(me, join=())
        self.clients = clients_class(self)
        self.operator = Operator(self, Random(random.random()))
        self.faults = faults_class(self, Random(random.random()))
        self.stranger = Stranger(self, Random(f"stranger {seed}"))
        self.wire.on_request = self.stranger.hears

    # --- the world, as its parts see it ---

    @property
    def is_on_files(self) -> bool:
        """Whether its disks are real files."""
        return self._folder is not None

    @property
    def now(self) -> float:
        """True virtual milliseconds since the seed began."""
        return self.timeline.now

    def after(self, delay_ms: float, event: Callable[[], Any]) -> None:
        """Let something happen from outside of all processes."""
        self.timeline.after(delay_ms, event)

    def machine(self, name: str, address: str | None = None) -> Machine:
        """Return the machine of that name, made at its first mention."""
        found = self.machines.get(name)
        if found is None:
            number = len(self.machines) + 1
            found = Machine(
                name,
                address or f"10.1.0.{number}:7070",
                Random(self.random.random()),
                drift=self._drift,
            )
            self.machines[name] = found
            self.wire.machines[found.address] = found
        return found

    def spawn(self, name: str) -> Process:
        """Start a process on a machine."""
        return self.spawn_on(self.machine(name))

    def spawn_on(self, machine: Machine) -> Process:
        """Start a process on a machine, which may be one that nobody knows."""
        assert not machine.is_up, f"{machine.name} runs already"
        machine.has_power = True
        process = Process(machine, self.timeline, self.settings, self._process_raised)
        machine.process = process
        self._graveyard.append(process)
        return process

    def http(self, process: Process) -> SimHttp:
        """Return the HTTP client of a process."""
        found = self._https.get(process)
        if found is None:
            found = self._https[process] = SimHttp(self.wire, process, self.settings)
        return found

    def new_results(self, name: str) -> MemoryResults | FileResults:
        """Return an empty disk for a client."""
        results: MemoryResults | FileResults
        if self._folder is None:
            results = MemoryResults(name)
        else:
            results = FileResults(name, Path(self._folder.name, name))
        self._disks.append(results)
        return results

    def _new_directory(self, name: str) -> MemoryDirectory | FileDirectory:
        """Return an empty disk for a coordinator."""
        directory: MemoryDirectory | FileDirectory
        if self._folder is None:
            directory = MemoryDirectory()
        else:
            directory = FileDirectory(Path(self._folder.name, name))
        self._disks.append(directory)
        return directory

    async def request(
        self,
        process: Process,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        timeout_ms: float = 10_000,
    ) -> tuple[int, bytes]:
        """Send a request from a process; return status and body of the answer."""
        try:
            response = await self.http(process).request(
                address,
                method,
                path,
                query=query,
                body=body,
                answer_timeout_ms=int(timeout_ms),
                repeatable=False,
            )
        except TaskSprintError as error:
            raise Unreachable(str(error)) from error
        return response.status, response.body

    def member_addresses(self) -> set[str]:
        """Return the addresses of the members that the log says there are."""
        return {node.machine.address for node in self.members_left()}

    def cut(self, pairs: Iterable[tuple[str, str]]) -> Callable[[], None]:
        """Cut links, named by machines; call what is returned to mend them."""
        return partial(self.faults.cuts.mend, self.faults.cuts.make(pairs))

    def say(self, text: str) -> None:
        """Write a line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.timeline.now:9.2f} {text}")

    def count(self, name: str, number: int = 1) -> None:
        """Add to a figure of the final report."""
        self.checker.count(name, number)

    def violate(self, rule: str, text: str) -> None:
        """End the seed: a rule is broken."""
        self._violated(Violation(rule, text))

    def _violated(self, violation: Violation) -> None:
        if self.violation is None:
            self.violation = violation
            self.say(f"VIOLATION {violation}")

    def _process_raised(self, process: Process, error: BaseException) -> None:
        if isinstance(error, Violation):
            self._violated(error)
        else:
            self._violated(violation_of(process.name, error))

    # --- coordinators ---

    def add_node(self, me: ReplicaId, *, join: tuple[str, ...]) -> CoordinatorNode:
        """Set up the machine of a coordinator; it is started later."""
        name = f"replica {me}"
        self.addresses[me] = address = _address(me)
        peers = {me: address} if join else self.founders
        node = self._node_class(
            me,
            self.machine(name, address),
            self.wire,
            self.settings,
            self.checker,
            self.scheduler_faults,
            directory=self._new_directory(name),
            peers=peers,
            join=join,
            spawn=lambda: self.spawn(name),
        )
        node.disk.latency = self.random.choice(((0.1, 1.0), (0.1, 1.0), (0.5, 5.0), (2.0, 30.0)))
        node.on_tick = lambda command: self.clients.tick_proposed(command)
        node.on_applied = lambda *entry: self.clients.applied(*entry)
        node.on_line = lambda *line: self.clients.scheduler_got(*line)
        node.restart_soon = lambda node: self.after(
            self.random.uniform(50, 1_000), lambda: self.start_node(node)
        )
        self.releases.set_up(node)
        self.nodes[me] = node
        return node

    def start_node(self, node: CoordinatorNode) -> None:
        """Start a coordinator that is down, unless it ended for good."""
        if not node.has_ended:
            node.start()

    def crash(self, node: CoordinatorNode, *, power_loss: bool) -> None:
        """Kill a coordinator."""
        if not node.machine.is_up:
            return
        self.say(f"replica {node.me} {'loses power' if power_loss else 'is killed'}")
        lost, kept = node.crash(power_loss=power_loss)
        self.count("crashes")
        if lost:
            self.count("crashes that lost writes")
        if kept:
            self.count("crashes after an unreported write")

    def may_wipe(self, node: CoordinatorNode) -> bool:
        """Whether the cluster goes on without this disk, whatever else happens.

        Where the members change all the time, it takes an operator who looks first.
        """
        lost = {*self.wiped, *self.spoiled, node.me}
        voters = {member.replica for member in self.checker.membership.voters}
        return (
            self.is_founded
            and not self.operator.changes_members
            and node.me in self.founders
            and node.me not in self.wiped
            and 2 * len(lost) < len(self.founders)
            and 2 * len(lost & voters) < len(voters)
        )

    def may_spoil(self, node: CoordinatorNode) -> bool:
        """Whether a quorum of others has all that is on this disk."""
        if node.me in self.wiped or not (node.me in self.spoiled or self.may_wipe(node)):
            return False
        self.spoiled.add(node.me)
        return True

    def wipe(self, node: CoordinatorNode) -> None:
        """Take a coordinator's disk away for good, or what of it can't be replaced."""
        self.crash(node, power_loss=True)
        self.say(f"replica {node.me} loses its disk")
        self.count("disks lost")
        self.wiped.add(node.me)
        if self.random.random() < 0.5:
            node.lose_disk()
        else:
            node.lose_promises(self.random)
        self.operator.replace(node.me)

    @property
    def is_founded(self) -> bool:
        """Whether all founding members know the founding entry."""
        return all(self.nodes[me].disk.state.founding is not None for me in self.founders)

    # --- phases ---

    def run(self) -> None:
        """Run both phases."""
        random = self.random
        for node in self.nodes.values():
            self.after(random.uniform(0, 500), lambda node=node: self.start_node(node))
        self.clients.start()
        self.operator.start()
        self.faults.start()
        self.releases.start()
        span = random.uniform(*_FAULTS_MS)
        self._run(lambda: self.is_founded or self.now >= _FAULTS_MS_MAX)
        end = self.now + span
        self._run(lambda: self.now >= end)
        self._run(
            lambda: self.checker.chosen_end > _ENTRIES_WANTED or self.now >= _FAULTS_MS_MAX
        )
        self._heal()
        limit = self.now + _HEALING_MS_MAX
        self._run_to_the_end(self._is_settled, limit)
        self.clients.submit_last()
        self._run_to_the_end(lambda: self._is_settled() and self._is_long_enough(), limit)
        self._run_to_the_end(self._mirrors_are_level, limit)
        self._check_end()
        if not self._is_long_enough():
            raise Violation("too-short", f"{self.checker.chosen_end - 1} entries were chosen")

    def _run(self, is_over: Callable[[], bool]) -> None:
        step = self.timeline.step
        while not is_over():
            for _ in range(200):
                if not step():
                    return
                if self.violation is not None:
                    raise self.violation

    def _run_to_the_end(self, is_over: Callable[[], bool], limit: float) -> None:
        def is_enough() -> bool:
            return is_over() or self.now > limit or self.timeline.steps > _STEPS_MAX

        self._run(is_enough)
        if not is_over():
            raise Violation("no-progress", f"after healing: {self._describe()}")

    def _heal(self) -> None:
        self.say("everything is healed")
        self.is_healed = True
        self.faults.stop()
        self.operator.stop()
        self.releases.heal()
        self.wire.delays, self.wire.straggling = (0.05, 0.5), 0.0
        self.scheduler_faults.crash = self.scheduler_faults.hang = 0.0
        for node in self.nodes.values():
            node.disk.latency = (0.1, 1.0)
            node.disk.hangs_until = 0.0
            node.machine.slow_ms = 0.0
            if node.machine.process is not None:
                node.machine.process.thaw()
            self.after(self.random.uniform(0, 200), lambda node=node: self.start_node(node))
        self.clients.heal()

    def members_left(self) -> list[CoordinatorNode]:
        """Return the nodes that belong to the cluster now."""
        membership = self.checker.membership
        return [
            node
            for node in self.nodes.values()
            if membership.member(node.me) is not None and node.me not in self.wiped
        ]

    def _is_settled(self) -> bool:
        if not self.clients.is_settled:
            return False
        ends = {node.applied_end for node in self.members_left() if node.coordinator is not None}
        return (
            len(ends) == 1
            and min(ends) >= self.checker.acknowledged_end
            and all(node.coordinator is not None for node in self.members_left())
            and self.releases.are_settled
        )

    def _is_long_enough(self) -> bool:
        return self.checker.chosen_end > ENTRIES_MIN

    def _mirrors_are_level(self) -> bool:
        """Whether all mirrors hold the same slot, and it is the one applied."""
        ends = {node.disk.state.applied_end for node in self.members_left()}
        ends |= {node.applied_end for node in self.members_left()}
        return len(ends) == 1

    def _check_end(self) -> None:
        nodes = self.members_left()
        self.checker.at_end(nodes)
        schedules: list[Schedule] = []
        for node in nodes:
            assert node.schedule is not None
            node.schedule.check()
            schedules.append(node.schedule)
        first = _rows(nodes[0])
        for node in nodes[1:]:
            if (other := _rows(node)) != first:
                raise Violation("mirrors-differ", _difference(nodes[0], first, node, other))
        self.clients.check(schedules)
        self.releases.check()

    def _describe(self) -> str:
        states = [
            f"replica {node.me}: applied to {node.applied_end}, "
            f"{node.replica.status() if node.replica is not None else 'down'}"
            for node in self.nodes.values()
        ]
        return f"{self.clients.describe()}; " + "; ".join(states)

    def close(self) -> None:
        """End all processes, and what they left behind, without a word."""
        for process in self._graveyard:
            process.kill()
        for process in self._graveyard:
            process.loop.throw_away(process.left_behind)
            process.left_behind.clear()
        for disk in self._disks:
            disk.close()
        if self._folder is not None:
            self._folder.cleanup()


Rows = dict[tuple[str, Any], Any]


def _rows(node: CoordinatorNode) -> Rows:
    """Return the mirror of a node, without what waits to be deleted."""
    content = node.directory.content
    assert content is not None
    mirror = content.mirror
    gone = [
        each
        for (job,), (what,) in mirror["garbage"].items()
        for each in garbage_ranges(int(job), str(what))
    ]
    return {
        (table, key): columns
        for table, rows in mirror.items()
        if table != "garbage"
        for key, columns in rows.items()
        if not any(
            table == of and key[: len(first)] >= first and (not end or key[: len(end)] < end)
            for of, first, end in gone
        )
    }


def _difference(a: CoordinatorNode, first: Rows, b: CoordinatorNode, other: Rows) -> str:
    for place in sorted({*first, *other}, key=repr):
        if first.get(place) != other.get(place):
            return (
                f"{place}: replica {a.me} has {first.get(place)!r:.200}, "
                f"replica {b.me} {other.get(place)!r:.200}"
            )
    raise AssertionError("they don't")


def _new_folder() -> TemporaryDirectory[str]:
    """Make a folder for real files; in memory where that can be: no disk is to be tested."""
    memory = Path("/dev/shm")
    return TemporaryDirectory(prefix="simulation-", dir=memory if memory.is_dir() else None)


def _address(me: ReplicaId) -> str:
    return f"10.0.0.{me}:7070"


def _draw_settings(random: Random) -> Settings:
    """Return settings that bring the rare paths about: a short log, small pieces."""
    return Settings(
        log_tail_slots=random.choice((10, 40, 40, 120, 20_000)),
        mirror_piece_rows=random.choice((3, 20, 5_000)),
        pipeline_slots_max=random.choice((1, 2, 8)),
        entry_bytes_max=random.choice((300, 2_000, 1_000_000)),
        log_window_slots=random.choice((4, 16, 1_024)),
        log_window_bytes_max=random.choice((3_000, 1_000_000)),
        catch_up_bytes_max=random.choice((300, 5_000, 1_000_000)),
        scheduler_answer_timeout_ms=random.choice((2_000, 30_000)),
        scheduler_window_events=random.choice((2, 20, 2_000)),
        program_unused_max_ms=random.choice((6_000, 3_600_000)),
        mirror_session_idle_ms=random.choice((1_000, 10_000)),
        mirror_session_max_ms=random.choice((4_000, 300_000)),
        rules_settle_ms=1_000,
    )


class _Printer(logging.Handler):
    """Puts what the processes log into the trace."""

    def __init__(self, world: Whole) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.say(f"[{record.levelname.lower()}] {record.getMessage()}")


def run_whole(
    seed: int,
    *,
    trace: Callable[[str], None] | None = None,
    node_class: type[CoordinatorNode] = CoordinatorNode,
    clients_class: type[Clients] = Clients,
    faults_class: type[Faults] = Faults,
    releases_class: type[Releases] = Releases,
    on_files: bool | None = None,
) -> Outcome:
    """Run one seed to its end, or to the first broken rule.

    Args:
        on_files: See `Whole`.
    """
    logger = logging.getLogger("tasksprint")
    before = logger.level, logger.propagate
    world = Whole(
        seed,
        trace=trace,
        node_class=node_class,
        clients_class=clients_class,
        faults_class=faults_class,
        releases_class=releases_class,
        on_files=on_files,
    )
    printer = _Printer(world)
    logger.propagate = False
    logger.setLevel(logging.CRITICAL + 1 if trace is None else logging.INFO)
    logger.addHandler(printer)
    # Collected between seeds: nothing that a collector calls may depend on when it does.
    gc.disable()
    violation: Violation | None = None
    try:
        world.run()
    except Violation as error:
        violation = error
    except (AssertionError, LookupError, TaskSprintError) as error:
        violation = violation_of("the world", error)
    finally:
        world.close()
        gc.enable()
        logger.removeHandler(printer)
        logger.setLevel(before[0])
        logger.propagate = before[1]
    counts = world.checker.counts
    counts["entries chosen"] = world.checker.chosen_end - 1
    counts["things sent"] = world.wire.sent
    counts["worlds on real files"] = int(world.is_on_files)
    counts["changes of members that govern"] = world.checker.memberships_governing
    counts["logs truncated"] = sum(node.disk.state.log_start > 1 for node in world.nodes.values())
    return Outcome(seed, violation, world.timeline.steps, world.now, counts)
