"""Coordinators and clients that are broken on purpose: a rule from end to end must find each.

Each build says within how many seeds. Without this, rules that check nothing would be as
green as those that check all. (tests/simulation/test_checkers_bite.py does the same for
the rules of consensus.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tasksprint.coordination.clients import Client as ClientRecord
from tasksprint.coordination.commands import Command, Completion, SubmitJob, decode_command
from tasksprint.coordination.results import Results
from tasksprint.coordination.rows import Mirror
from tasksprint.coordination.schedule import Event, Schedule
from tasksprint.coordination.task_states import ASSIGNED, DONE
from tasksprint.coordination.view import View
from tasksprint.encoding import encode_json
from tasksprint.errors import Refused
from tasksprint.execution.effects import DropJobResults, Manifest
from tasksprint.ids import ClientId, Incarnation, JobId, Slot, TaskId
from tasksprint.release import Release
from tasksprint.roles.client import durable as durable_module
from tasksprint.roles.client.client import Client
from tasksprint.roles.client.values import ValueCache
from tasksprint.roles.coordinator import runners as runners_module
from tasksprint.roles.coordinator.decisions import Decided
from tasksprint.roles.coordinator.ports import NotLeader
from tasksprint.roles.coordinator.scheduler_runner import SchedulerRunner
from tasksprint.settings import RULES, Rules
from tests.coordination.world import look_inside
from tests.simulation.bites import expects, first_rule
from tests.simulation.client_machine import ClientMachine
from tests.simulation.clients import Clients
from tests.simulation.coordinators import CoordinatorNode, SimCoordinator
from tests.simulation.sim_writer import SimWriter
from tests.simulation.whole import run_whole


def _rule_broken(
    seeds: int,
    coordinator: type[SimCoordinator] = SimCoordinator,
    clients: type[Clients] = Clients,
    *,
    first: int = 0,
) -> str | None:
    """Return the rule that the first seed with a violation breaks, from `first` on."""

    class Node(CoordinatorNode):
        coordinator_class = coordinator

    run = partial(run_whole, node_class=Node, clients_class=clients)
    return first_rule(run, seeds, first=first)


# --- seeds in which what is broken matters often --------------------------------------------


class _UnluckyClients(Clients):
    """Random tasks, on clients that are killed all the time and stay away for long."""

    def start(self) -> None:
        self.people._kinds = ["dice"]
        self._faults = [self._kill, self._freeze, self._lose_disk]
        super().start()
        self.world.after(2_000, self._hit)

    def _hit(self) -> None:
        if not self.world.is_healed:
            self.fault()
            self.world.after(self.random.uniform(0, 1_500), self._hit)


class _KilledClients(_UnluckyClients):
    """Beside that, machines keep their disks, and results are the same each time."""

    def start(self) -> None:
        super().start()
        self.people._kinds = ["chain", "fan", "reduce"]
        self._faults = [self._kill]


class _LostInputs(Clients):
    """Results are lost and made again, while those that use them are heard, but don't hear."""

    def start(self) -> None:
        self.people._kinds = ["hidden dice"]
        self.people._job_max, self.people._pause_ms = 40, 300.0
        world: Any = self.world
        world.faults.stop()
        super().start()
        self.world.after(2_000, self._strike)

    def fault(self) -> None:
        pass

    def _strike(self) -> None:
        if self.world.is_healed:
            return
        pause_ms = 100.0
        for user, holder in self._fetched():
            pairs = [(f"replica {replica}", user.name) for replica in self.world.addresses]
            self.world.after(3_000, self.world.cut(pairs))
            holder.kill()
            holder.lose_values(1.0, self.random)
            self.world.after(20, partial(self._start, holder))
            pause_ms = 4_000.0
            break
        self.world.after(pause_ms, self._strike)

    def _fetched(self) -> Iterator[tuple[ClientMachine, ClientMachine]]:
        """Find clients that run a task, and those of which they have fetched an input."""
        world: Any = self.world
        machines = {each.client.workbench.cid: each for each in self.machines if each.client}
        for node in world.nodes.values():
            running = look_inside(node.schedule).running if node.schedule is not None else {}
            for job in running.values():
                for task in job.tasks.values():
                    for tid in task.spec.pretasks if task.state == ASSIGNED else ():
                        user, holder = task.cid, job.tasks[tid].holders[:1]
                        if holder and user != holder[0] and {user, *holder} <= {*machines}:
                            yield machines[user], machines[holder[0]]


class _StrandedLeaders(Clients):
    """Leaders stand still, cut off, until others lead; people ask each of them all the time."""

    def start(self) -> None:
        self.people._job_max, self.people._pause_ms = 60, 700.0
        self.people._kinds = ["chain"]
        world: Any = self.world
        world.faults.stop()  # Else there is nobody who could decide anything meanwhile.
        super().start()
        for address in self.world.addresses.values():
            for number in range(2):
                who = f"curious {number} about {address}"
                self.people._person(who, partial(self._ask_all_the_time, address))
        self.world.after(3_000, self._strand)

    async def _ask_all_the_time(self, address: str, person: Any) -> None:
        while not self.world.is_healed:
            await person.pause(self.random.uniform(20, 100))
            if self.people.acknowledged:
                await person.ask(max(self.people.acknowledged), address=address)

    def _strand(self) -> None:
        world: Any = self.world
        if world.is_healed:
            return
        names = [node.machine.name for node in world.nodes.values()]
        for node in world.nodes.values():
            if node.replica is not None and node.replica.is_leader:
                mine, process = node.machine.name, node.machine.process
                pairs = [(mine, name) for name in names] + [(name, mine) for name in names]
                world.after(7_000, world.cut(pair for pair in pairs if pair[0] != pair[1]))
                process.freeze()
                world.after(6_000, process.thaw)
                break
        world.after(9_000, self._strand)


class _StalledJudges(Clients):
    """All coordinators stand still at once, for longer than a client may be silent."""

    def start(self) -> None:
        super().start()
        self.world.after(4_000, self._stall)

    def _stall(self) -> None:
        world: Any = self.world
        for node in world.nodes.values():
            process = node.machine.process
            if process is not None:
                process.freeze()
                world.after(9_000, process.thaw)
        if not world.is_healed:
            world.after(15_000, self._stall)


# --- broken builds: coordinators ------------------------------------------------------------


class _DeafJudge(SimCoordinator):
    """Doesn't note that a client is there."""

    def heard(self, incarnation: Incarnation) -> None:
        pass


class _AnswersBeforeChosen(SimCoordinator):
    """Acknowledges a job as soon as it is proposed, with the id that it will likely get."""

    def decide_then(self, command: bytes, decoded: Command | None, then: Decided) -> None:
        if not isinstance(decode_command(command), SubmitJob):
            super().decide_then(command, decoded, then)
            return
        super().decide_then(command, decoded, lambda reply: None)
        job = look_inside(self.log.require_schedule()).next_job
        asyncio.get_running_loop().call_soon(then, encode_json({"job": job}))


class _ForgetfulSchedule(Schedule):
    """Doesn't look whether a request of a person was applied before."""

    def _apply_once(self, command: Any) -> str:
        state = look_inside(self)
        if (sender := state.senders.get(f"person {command.sender}")) is not None:
            sender.replies.pop(command.request, None)
        return super()._apply_once(command)


class _ForgetfulView(Schedule):
    """After a change of the leader, tells a client only what changed since."""

    led_since: Slot | None = None

    def view(self, cid: ClientId, incarnation: Incarnation, since: Slot) -> View | None:
        if self.led_since is None:
            self.led_since = self.applied_slot
        found = super().view(cid, incarnation, since)
        if found is None or found.whole or since >= self.led_since:
            return found
        news = super().view(cid, incarnation, self.led_since)
        assert news is not None
        return replace(found, run=news.run)


class _RepetitiveResults(Results):
    """Tells the scheduler of a task again that was computed again."""

    __slots__ = ()

    def _complete(self, client: ClientRecord, completion: Completion, *, is_final: bool) -> bool:
        job = look_inside(self).running.get(completion.job)
        task = None if job is None else job.tasks.get(completion.tid)
        if task is not None and task.state < DONE:
            task.digest = None
        return super()._complete(client, completion, is_final=is_final)


class _CredulousResults(Results):
    """Counts whatever a completion consumed."""

    __slots__ = ()

    def _complete(self, client: ClientRecord, completion: Completion, *, is_final: bool) -> bool:
        job = look_inside(self).running.get(completion.job)
        task = None if job is None else job.tasks.get(completion.tid)
        if task is not None and (consumed := self._canonical_inputs(task)) is not None:
            consumed = consumed if task.spec.pretasks else None
            completion = replace(completion, inputs_digest=consumed)
        return super()._complete(client, completion, is_final=is_final)


class _HastyReader(SimCoordinator):
    """Answers reads from its own state, as long as it believes that it leads."""

    async def confirm_read(self) -> Schedule:
        if not self.replica.is_leader:
            raise self.log.not_leader()
        return self.log.require_schedule()


class _RefusesReads(SimCoordinator):
    """Tells who asks a follower, or too early, that this can't be."""

    async def confirm_read(self) -> Schedule:
        try:
            return await super().confirm_read()
        except NotLeader as error:
            raise Refused(str(error), status=409) from error


class _Clock(SchedulerRunner):
    """Gives its scheduler events that carry the time of this machine."""

    def event_chosen(self, event: Event) -> None:
        now_ms = self._turns.now_ms() % 100_000
        head, _, rest = event.line.partition(b'"time_ms":')
        tail = rest.partition(b",")[2]
        super().event_chosen(Event(event.number, b'%s"time_ms":%d,%s' % (head, now_ms, tail)))


def _with_schedule(kind: type[Schedule]) -> type[SimCoordinator]:
    class Broken(SimCoordinator):
        def _new_schedule(self, mirror: Mirror | None) -> Schedule:
            schedule = super()._new_schedule(mirror)
            schedule.__class__ = kind
            return schedule

        def _leadership_changed(self, is_leader: bool) -> None:
            super()._leadership_changed(is_leader)
            if isinstance(self.log.schedule, _ForgetfulView):
                self.log.schedule.led_since = None

    return Broken


def _with_results(kind: type[Results]) -> type[SimCoordinator]:
    class Broken(SimCoordinator):
        def _new_schedule(self, mirror: Mirror | None) -> Schedule:
            schedule = super()._new_schedule(mirror)
            schedule._results.__class__ = kind
            return schedule

    return Broken


# --- broken builds: clients -----------------------------------------------------------------


class _KeepsAll(Client):
    """Keeps the values of jobs that have ended."""

    def _carry_out(self, effect: object) -> None:
        if not isinstance(effect, DropJobResults):
            super()._carry_out(effect)


class _Careless(ValueCache):
    """Keeps copies that were damaged on their way."""

    def put_copy(
        self,
        job: JobId,
        tid: TaskId,
        digest: str,
        manifest: Manifest,
        values: Iterable[tuple[str, str, bytes]],
    ) -> None:
        damaged = [
            (key, kind, data[:-1] + b"?" if kind == "bytes" else data)
            for key, kind, data in values
        ]
        super().put_copy(job, tid, digest, manifest, damaged)


class _SpeaksFirst(SimWriter):
    """Says that values are kept before they are."""

    def post(self, commit: Any, done: Callable[[], None], *, may_block: bool = False) -> None:
        super().post(commit, lambda: None)
        self._process.loop.call_soon(done)


class _SlowDisk(ClientMachine):
    """The disk that `_SpeaksFirst` doesn't wait for."""

    writer_class = _SpeaksFirst

    def start(self) -> None:
        if not self.world.is_healed:
            self.disk.latency = (300.0, 3_000.0)
        super().start()


def _machines(kind: type[ClientMachine], base: type[Clients] = Clients) -> type[Clients]:
    class Broken(base):  # type: ignore[misc, valid-type]
        machine_class = kind

    return Broken


class _HoardingMachine(ClientMachine):
    client_class = _KeepsAll


BUILDS: dict[str, tuple[Callable[[], str | None], frozenset[str]]] = {
    "acknowledged before it is chosen": (
        partial(_rule_broken, 10, _AnswersBeforeChosen),
        expects("lost-job", "job-twice", "not-linearizable"),
    ),
    "clients that ask aren't heard": (
        partial(_rule_broken, 5, _DeafJudge),
        expects("unfair-judge"),
    ),
    "a request that is repeated counts again": (
        partial(_rule_broken, 10, _with_schedule(_ForgetfulSchedule)),
        expects("job-twice", "not-linearizable"),
    ),
    "what changed in the view before the leader did is not told": (
        partial(_rule_broken, 10, _with_schedule(_ForgetfulView), _StrandedLeaders, first=2),
        expects("no-progress"),
    ),
    "a task that is computed again is told again": (
        partial(_rule_broken, 20, _with_results(_RepetitiveResults), _UnluckyClients),
        expects("told-once"),
    ),
    "a completion counts whatever it consumed": (
        partial(_rule_broken, 20, _with_results(_CredulousResults), _LostInputs, first=2),
        expects("results"),
    ),
    "a read that can't be confirmed is refused for good": (
        partial(_rule_broken, 5, _RefusesReads),
        expects("answer"),
    ),
    "reads aren't confirmed by a quorum": (
        partial(_rule_broken, 10, _HastyReader, _StrandedLeaders, first=4),
        expects("not-linearizable"),
    ),
    "a client keeps the values of ended jobs": (
        partial(_rule_broken, 5, SimCoordinator, _machines(_HoardingMachine), first=1),
        expects("left-over"),
    ),
    "a client reports values that it hasn't stored": (
        partial(_rule_broken, 20, SimCoordinator, _machines(_SlowDisk, _KilledClients), first=1),
        expects("results"),
    ),
}


_UNFAIR, _OTHER_EVENTS = expects("unfair-judge"), expects("events")
_OTHER_RESULTS = expects("results")


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        # (Its seeds take long. The rule that catches it is seen to catch others, too.)
        pytest.param(build, marks=pytest.mark.long if "completion" in build else ())
        for build in sorted(BUILDS)
    ],
)
def test_broken_build_is_caught(build: str) -> None:
    run, rules = BUILDS[build]
    assert run() in rules


@pytest.mark.slow
def test_log_time_that_follows_the_clock_of_a_stalled_leader_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = Release("broken", {2: Rules(2, tick_elapsed_max_ms=10**9)})
    monkeypatch.setattr(CoordinatorNode, "release", release)
    assert _rule_broken(20, SimCoordinator, _StalledJudges) in _UNFAIR


@pytest.mark.slow
def test_scheduler_that_is_told_the_time_of_its_machine_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runners_module, "SchedulerRunner", _Clock)
    assert _rule_broken(5) in _OTHER_EVENTS


@pytest.mark.slow
def test_client_that_computes_with_damaged_inputs_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(durable_module, "ValueCache", _Careless)
    assert _rule_broken(20, first=2) in _OTHER_RESULTS


@pytest.mark.long
@pytest.mark.parametrize(
    "clients", [_UnluckyClients, _LostInputs, _StalledJudges, _StrandedLeaders]
)
def test_seeds_for_broken_builds_are_clean_without_them(clients: type[Clients]) -> None:
    assert RULES.tick_elapsed_max_ms == 1_000
    assert _rule_broken(4, clients=clients) is None
