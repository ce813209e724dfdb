"""Whole coordinators on simulated machines: the real role, its real paths, its schedulers.

Tells an observer (the checker) what the replica in it says, keeps and applies; judges
nothing. A `CoordinatorNode` is the machine and what is on its disk; the process on it comes
and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol, cast

from tasksprint.consensus import Chosen, Envelope, Persist, Ready
from tasksprint.coordination.commands import Command
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.errors import (
    LocalProtocolError,
    SettingsError,
    StateDiffers,
    StoreDamaged,
    StoreError,
    TaskSprintError,
    UnknownRules,
)
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.net.keys import ClusterKey
from tasksprint.process.program import ExitReason
from tasksprint.release import THIS_RELEASE
from tasksprint.roles.coordinator.coordinator import Coordinator
from tasksprint.roles.coordinator.decisions import Decided
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions, Surroundings
from tasksprint.settings import Settings
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.simulation import jobs
from tests.simulation.machines import KEY_SECRET, Machine, Process
from tests.simulation.sim_http import SimHttp
from tests.simulation.sim_streams import SimStreams
from tests.simulation.sim_writer import SimDisk, SimWriter
from tests.simulation.timeline import Timeline
from tests.simulation.wire import Wire
from tests.simulation.world import Violation
from tests.store.file_directory import FileDirectory
from tests.store.memory_store import MemoryDirectory

__all__ = ["CoordinatorNode", "Observer", "SchedulerFaults", "SimCoordinator"]

KEY = ClusterKey(KEY_SECRET)
# Iterations of the loop from one check of the cores to the next.
_CHECK_EACH = 10
_CHECK_SCHEDULE_EACH = 1_000
# Errors that are bugs in whoever stops with them.
_BUGS = (LocalProtocolError, StateDiffers)


class Observer(Protocol):
    """Who is told what happens."""

    def started(self, node: CoordinatorNode) -> None: ...

    def sends(self, node: CoordinatorNode, envelope: Envelope) -> None: ...

    def wrote(self, node: CoordinatorNode, persist: Persist) -> None: ...

    def chose(self, node: CoordinatorNode, chosen: Chosen) -> None: ...

    def copied(self, node: CoordinatorNode) -> None: ...

    def proposed(self, node: CoordinatorNode, command: bytes) -> None: ...

    def acknowledged_by(self, node: CoordinatorNode, command: bytes) -> None: ...

    def read_began(self, read_id: int) -> None: ...

    def read_confirmed(self, node: CoordinatorNode, read_id: int) -> None: ...

    def read_failed(self, node: CoordinatorNode, read_id: int) -> None: ...

    def noted(self, node: CoordinatorNode, text: str) -> None: ...

    def stopped(self, node: CoordinatorNode, text: str) -> None: ...

    def refused(self, node: CoordinatorNode, text: str) -> None: ...

    def count(self, name: str, number: int = 1) -> None: ...

    def say(self, text: str) -> None: ...


class SchedulerFaults:
    """How schedulers' processes behave in this world."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.start_ms = (5.0, 80.0)
        self.answer_ms = (0.1, 3.0)
        # Probabilities for each line; but each job's scheduler on each replica does so once
        # only: who crashes twice in a row is out, as it should be.
        self.crash = 0.0
        self.hang = 0.0
        self.struck: set[tuple[ReplicaId, int]] = set()


class _Scheduler:
    """The process of a scheduler, beside its coordinator's."""

    def __init__(
        self,
        node: CoordinatorNode,
        process: Process,
        seed: int,
        rules: int,
        *,
        on_data: Callable[[bytes], None],
        on_exit: Callable[[ExitReason], None],
    ) -> None:
        self._node = node
        self._key = node.me, seed
        self._faults = node.scheduler_faults
        self._process = process
        self._on_data = on_data
        self._on_exit = on_exit
        self._program = jobs.SchedulerProgram(rules)
        self._unread = b""
        self._lines: list[bytes] = []
        self._is_busy = False
        self._is_over = False
        self._later(self._faults.start_ms, self._say_ready)

    def _later(self, span_ms: tuple[float, float], then: Callable[[], None]) -> None:
        delay_ms = self._faults.random.uniform(*span_ms)
        self._process.loop.call_later(delay_ms / 1000, then)

    def _say_ready(self) -> None:
        if not self._is_over:
            self._on_data(jobs.READY)

    def write(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._node.on_line(self._node.me, self, line)
        self._lines += lines
        self._work()

    def _work(self) -> None:
        if self._lines and not self._is_busy and not self._is_over:
            self._is_busy = True
            self._later(self._faults.answer_ms, self._answer)

    def _answer(self) -> None:
        """Answer what has come by now; or crash on the way, or hang."""
        if self._is_over:
            return
        faults = self._faults
        lines, self._lines = self._lines, []
        answers: list[bytes] = []
        for line in lines:
            chance = 1.0 if self._key in faults.struck else faults.random.random()
            if chance < faults.crash + faults.hang:
                faults.struck.add(self._key)
            if chance < faults.crash:
                self._node.observer.count("schedulers crashed")
                if answers:
                    self._on_data(b"".join(answers))
                self._end(1, None, "it crashed")
                return
            if chance < faults.crash + faults.hang:
                self._node.observer.count("schedulers hanging")
                break  # It stays busy for ever.
            answers.append(self._program.feed(line))
        else:
            self._is_busy = False
        if answers:
            self._on_data(b"".join(answers))
        self._work()

    def kill(self, why: str = "") -> None:
        self._process.loop.call_soon(self._end, None, 9, why)

    async def stop(self) -> None:
        self._later((0.5, 20.0), lambda: self._end(0, None, ""))

    def _end(self, code: int | None, signal: int | None, why: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._on_exit(ExitReason(code, signal, None, "", why))


class SimCoordinator(Coordinator):
    """The real one, watched.

    What its parts ask of each other goes by way of the methods here.
    """

    def __init__(self, node: CoordinatorNode, *arguments: Any, **options: Any) -> None:
        self.node = node
        super().__init__(*arguments, **options)
        self._send = _put_between(self.peers, "send", self.send)
        self._make_tick = _put_between(self.ticks, "_make", self.make_tick)
        self._heard = _put_between(self.ticks, "heard", self.heard)
        self._decide_then = _put_between(self.log, "decide_then", self.decide_then)
        self._confirm_read = _put_between(self.log, "confirm_read", self.confirm_read)

    def _carry_out(self, ready: Ready) -> None:
        for text in ready.notes:
            self.node.observer.noted(self.node, text)
        super()._carry_out(ready)

    def send(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            self.node.observer.sends(self.node, envelope)
            self._send((envelope,))

    def _applied(self, chosen: Chosen, applied: Applied, now_ms: int) -> None:
        schedule = self.log.schedule
        assert schedule is not None
        self.node.applied(chosen, schedule)
        self.node.on_applied(self.node.me, schedule, chosen.slot, chosen.commands, applied)
        super()._applied(chosen, applied, now_ms)

    def make_tick(self, now_ms: int) -> bytes:
        command: bytes = self._make_tick(now_ms)
        self.node.on_tick(command)
        return command

    def heard(self, incarnation: Incarnation) -> None:
        self._heard(incarnation)

    def decide_then(self, command: bytes, decoded: Command | None, then: Decided) -> None:
        node = self.node

        def decided(reply: bytes | None) -> None:
            if reply is not None:
                node.observer.acknowledged_by(node, command)
            then(reply)

        if self.replica.is_leader:  # Before: it may be chosen within the call.
            node.observer.proposed(node, command)
        self._decide_then(command, decoded, decided)

    async def confirm_read(self) -> Schedule:
        node = self.node
        node.reads += 1
        read_id = node.reads * 1_000 + node.me
        node.observer.read_began(read_id)
        try:
            schedule: Schedule = await self._confirm_read()
        except BaseException:
            node.observer.read_failed(node, read_id)
            raise
        node.observer.read_confirmed(node, read_id)
        return schedule

    async def install_copy(self, applied: AppliedPoint, memberships: bytes | None) -> None:
        await super().install_copy(applied, memberships)
        assert self.log.schedule is not None
        self.node.copied(self.log.schedule)


def _put_between(part: Any, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method called in the place of a part's own one, and return that."""
    own: Callable[..., Any] = getattr(part, name)
    setattr(part, name, method)
    return own


class _State:
    """What the disk of a coordinator holds, in the words of the checker."""

    def __init__(self, directory: MemoryDirectory | FileDirectory, new_incarnation: str) -> None:
        self._directory = directory
        self._new_incarnation = new_incarnation  # Before its first start.

    @property
    def incarnation(self) -> Incarnation:
        content = self._directory.content
        return Incarnation(self._new_incarnation if content is None else content.incarnation)

    @property
    def founding(self) -> bytes | None:
        content = self._directory.content
        return None if content is None else content.founding

    @property
    def promised(self) -> Any:
        content = self._directory.content
        return None if content is None else content.promised

    @property
    def accepted(self) -> Mapping[int, Any]:
        content = self._directory.content
        return {} if content is None else content.log

    @property
    def log_start(self) -> int:
        content = self._directory.content
        return 1 if content is None else content.log_start

    @property
    def applied_end(self) -> Slot:
        content = self._directory.content
        return Slot(1 if content is None else content.applied.slot + 1)

    @property
    def digest(self) -> str:
        content = self._directory.content
        return "" if content is None else content.applied.digest


class _NodeDisk(SimDisk):
    """The disk of a coordinator's machine, with its data directory."""

    def __init__(
        self, timeline: Timeline, random: Random, directory: MemoryDirectory | FileDirectory
    ) -> None:
        super().__init__(timeline, random)
        self.directory = directory
        self.renew()

    def renew(self) -> None:
        """Draw the incarnation that an empty directory will get."""
        self.state = _State(self.directory, f"{self.random.getrandbits(64):016x}")


def _ignore(*_: object) -> None:
    pass


class CoordinatorNode:
    """One machine that runs a coordinator.

    Args:
        directory: What is on its disk.
        spawn: Starts a process on the machine.
        join: Addresses of a cluster that is to add it; (): it founds one with `peers`.
    """

    coordinator_class: type[SimCoordinator] = SimCoordinator
    writer_class: type[SimWriter] = SimWriter
    release = THIS_RELEASE

    def __init__(
        self,
        me: ReplicaId,
        machine: Machine,
        wire: Wire,
        settings: Settings,
        observer: Observer,
        scheduler_faults: SchedulerFaults,
        *,
        directory: MemoryDirectory | FileDirectory,
        peers: dict[ReplicaId, str],
        join: tuple[str, ...],
        spawn: Callable[[], Process],
    ) -> None:
        self.me = me
        self.machine = machine
        self.wire = wire
        self.settings = settings
        self.observer = observer
        self.scheduler_faults = scheduler_faults
        self._peers = peers
        self._join = join
        self._spawn = spawn
        self.is_joining = bool(join)
        self.disk = _NodeDisk(wire.timeline, Random(machine.random.random()), directory)
        self.disk.on_durable = self._wrote
        self.disk.on_torn = self._tore
        self.life = 0
        self.reads = 0
        self.coordinator: SimCoordinator | None = None  # None: it isn't up (yet)
        self.applied_end = Slot(1)
        self.digest: Any = ""
        self.has_ended = False  # by itself, for good
        self.is_spoiled = False  # Its disk has damaged what others have.
        self.is_lost = False  # … or what nobody else has.
        self.restart_soon: Callable[[CoordinatorNode], None] = lambda node: None
        self.was_put_back = False  # from this release to the last one
        self.lacks_rules: Callable[[CoordinatorNode, UnknownRules], None] = _ignore
        self._iterations = 0
        # For the rules of end_to_end.py: ticks as they are proposed, entries as they are
        # applied, and lines that the process of a scheduler gets.
        self.on_tick: Callable[[bytes], None] = _ignore
        self.on_applied: Callable[..., None] = _ignore
        self.on_line: Callable[[ReplicaId, object, bytes], None] = _ignore

    @property
    def directory(self) -> MemoryDirectory | FileDirectory:
        """What is on its disk."""
        return self.disk.directory

    @property
    def replica(self) -> Any:
        """The replica in it; None: it isn't up."""
        return None if self.coordinator is None else self.coordinator.replica

    @property
    def schedule(self) -> Schedule | None:
        """The state machine in it."""
        return None if self.coordinator is None else self.coordinator.log.schedule

    # --- the process ---

    def start(self) -> None:
        """Start the process, unless one runs."""
        if self.machine.is_up:
            return
        self.machine.has_power = True
        process = self._spawn()
        self.has_ended = False
        process.at_end.append(self._gone)
        process.refused = partial(self.observer.refused, self)
        process.call_soon(self._boot, process)

    def _boot(self, process: Process) -> None:
        """Do as `coordinator_role` does."""
        self.life += 1
        try:
            try:
                self.coordinator = self._make(process)
            except StoreDamaged as error:
                self.observer.say(f"replica {self.me}: {error.args[0]}")
                self.coordinator = self._make(process)
        except UnknownRules as error:
            process.kill()
            self.lacks_rules(self, error)
            return
        except StoreError as error:
            if not self.is_lost:
                raise
            self.observer.say(f"replica {self.me} ends: {error.args[0]}")
            self.observer.count("disks that are lost by damage")
            self.has_ended = True
            process.kill()
            return
        coordinator = self.coordinator
        process.loop.after_iteration = self._check_now_and_then
        process.listen(coordinator.router, on_bug=coordinator.turns.fail)
        coordinator.turns.stopped.add_done_callback(partial(self._stopped, process))
        coordinator.start()
        if self._join:
            coordinator.turns.background(coordinator.members.look_for_cluster())

    def _make(self, process: Process) -> SimCoordinator:
        store = self.directory.open(
            self.me,
            now_ms=process.wall_ms(),
            incarnation=self.disk.state.incarnation,
            settings=self.settings,
        )
        for text in store.repairs:
            self.observer.say(f"replica {self.me} repaired its store: {text}")
        if store.repairs:
            self.observer.count("stores repaired")
        self.applied_end = self.disk.state.applied_end
        self.digest = self.disk.state.digest
        self.observer.started(self)
        options = CoordinatorOptions(
            me=self.me,
            advertise=self.machine.address,
            peers=self._peers,
            data_dir=Path(f"/nowhere/replica-{self.me}"),
            key=KEY,
            join=self._join,
        )
        try:
            return self.coordinator_class(
                self,
                options,
                self.settings,
                cast(ReplicaStore, store),
                surroundings=self._surroundings(process),
            )
        except StoreDamaged as error:
            store.note_damage(error)
            store.close()
            raise

    def _check_now_and_then(self) -> None:
        """Let the core assert what must hold; each time would be a fifth of all the work."""
        self._iterations += 1
        if self._iterations % _CHECK_EACH == 0 and self.coordinator is not None:
            self.coordinator.replica.check()
            if self._iterations % _CHECK_SCHEDULE_EACH == 0 and self.schedule is not None:
                self.schedule.check()

    def _surroundings(self, process: Process) -> Surroundings:
        async def start_scheduler(
            directory: Path,
            manifest: dict[str, Any],
            seed: int,
            *,
            rules: int,
            on_data: Callable[[bytes], None],
            on_exit: Callable[[ExitReason], None],
            on_stderr: Callable[[bytes], None],
        ) -> Any:
            self.observer.count("schedulers started")
            return _Scheduler(self, process, seed, rules, on_data=on_data, on_exit=on_exit)

        return Surroundings(
            monotonic_ms=process.monotonic_ms,
            wall_ms=process.wall_ms,
            new_random=lambda: Random(process.random.random()),
            new_http=lambda key, settings: cast(Any, SimHttp(self.wire, process, settings)),
            new_streams=partial(SimStreams, self.wire, process),
            new_writer=cast(Any, partial(self.writer_class, self.disk, process)),
            unpack=lambda archive, digest, root: root / digest,
            start_scheduler=start_scheduler,
            release=self.release,
        )

    def _stopped(self, process: Process, stopped: Any) -> None:
        """Take that the coordinator ended by itself."""
        error = stopped.exception()
        self.has_ended = True
        process.kill()
        if isinstance(error, Violation):
            raise error  # What the observer raised in it.
        if isinstance(error, UnknownRules):
            self.has_ended = False  # One of a newer release takes its place.
            self.lacks_rules(self, error)
            return
        is_said = isinstance(error, TaskSprintError)
        if error is not None and (not is_said or isinstance(error, _BUGS)):
            raise error  # Whatever has become of this replica: it is no reason to stop.
        if isinstance(error, StoreDamaged) and self.is_spoiled:
            self.observer.say(f"replica {self.me} ends: {error.args[0]}")
            self.observer.count("replicas that met damage")
            self.has_ended = False  # It is started again, as it says.
            self.restart_soon(self)
            return
        if error is not None and not isinstance(error, SettingsError):
            self.observer.say(f"replica {self.me} fails: {type(error).__name__}: {error}")
        self.observer.stopped(self, "asked to" if error is None else str(error))

    def _gone(self) -> None:
        self.directory.crash(lost_power=not self.machine.has_power)
        self.coordinator = None

    def crash(self, *, power_loss: bool) -> tuple[int, int]:
        """Kill the process.

        Returns:
            How many commits were lost, and how many became durable without its knowing.
        """
        process = self.machine.process
        assert process is not None
        if power_loss:
            self.machine.has_power = False
        lost, kept = self.disk.lost, self.disk.kept
        process.kill()
        return self.disk.lost - lost, self.disk.kept - kept

    def spoil(self, random: Random) -> None:
        """Let the disk spoil something that the other members have, too."""
        content = self.directory.content
        assert content is not None
        self.is_spoiled = True
        open_from = max(content.chosen_end, content.applied.slot + 1)
        chosen = sorted([slot for slot in content.log if slot < open_from])
        if chosen and random.random() < 0.5:
            some = random.sample(chosen, min(len(chosen), random.choice((1, 1, 4))))
            for slot in some:
                self.directory.spoil_slot(slot)
            self.observer.say(f"replica {self.me}: the disk spoils slots {sorted(some)}")
        else:
            mirror = content.mirror
            tables = [table for table, rows in mirror.items() if rows]
            if tables:
                table = random.choice(tables)
                key = random.choice(sorted(mirror[table]))
                self.directory.spoil_row(table, key)
                self.observer.say(f"replica {self.me}: the disk spoils row {key} of {table}")

    def lose_promises(self, random: Random) -> None:
        """Let the disk spoil what only this replica knows; after a crash."""
        self.is_lost = True
        content = self.directory.content
        assert content is not None
        open_from = max(content.chosen_end, content.applied.slot + 1)
        is_open = sorted([slot for slot in content.log if slot >= open_from])
        if is_open and random.random() < 0.5:
            self.directory.spoil_slot(random.choice(is_open))
        else:
            self.directory.spoil_progress()

    def lose_disk(self) -> None:
        """Find an empty disk at the next start."""
        self.directory.wipe()
        self.disk.renew()

    # --- what is observed ---

    def applied(self, chosen: Chosen, schedule: Schedule) -> None:
        """An entry was applied."""
        self.applied_end = Slot(chosen.slot + 1)
        self.digest = schedule.digest
        self.observer.chose(self, chosen)

    def copied(self, schedule: Schedule) -> None:
        """A copy of another one's mirror took the place of this one's."""
        self.applied_end = Slot(schedule.applied_slot + 1)
        self.digest = schedule.digest
        self.observer.copied(self)

    def _tore(self, commits: Sequence[Commit]) -> None:
        self.directory.tear(commits)

    def _wrote(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            for persist in commit.persists:
                self.observer.wrote(self, persist)
