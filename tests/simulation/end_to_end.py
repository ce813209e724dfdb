"""What must hold from end to end: for people, for schedulers, for clients.

Each rule is a class of its own, told what happens and asked at the end. They keep their own
accounts: of what replicas applied (in whatever life), of the lines that schedulers got, of what
people were told. A rule that is broken is a `Violation` with the rule's name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasksprint.coordination.commands import SubmitJob, Tick, decode_command
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.ids import ClientId, JobId, ReplicaId, Slot, TaskId
from tests.coordination.world import look_inside
from tests.linearizability.checker import TooHard
from tests.linearizability.job_store import check_history
from tests.simulation import jobs
from tests.simulation.people import JobRequest, People
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.client_machine import ClientMachine
    from tests.simulation.world import World

__all__ = [
    "RULES",
    "AcknowledgedJobs",
    "Entry",
    "FairJudge",
    "Histories",
    "NothingLeft",
    "OneJob",
    "Results",
    "Rule",
    "SameEvents",
    "Scene",
    "ToldOnce",
]

_EVENT = re.compile(rb'\{"event":(\d+),"kind":"(\w+)"')
_QUIET_TICK = re.compile(rb'\["tick",\d+,\d+,\[\],')  # in which no client is silent
_OUTCOME = re.compile(rb'"kind":"task_(?:done|failed)","time_ms":\d+,"tid":(\d+)')


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as one replica applied it."""

    replica: ReplicaId
    slot: Slot
    schedule: Schedule  # after it
    commands: tuple[bytes, ...]
    applied: Applied
    is_first: bool  # Nobody had applied this slot before.


@dataclass(frozen=True, slots=True)
class Scene:
    """Who there is."""

    world: World
    people: People
    machines: Sequence[ClientMachine]


class Rule:
    """One rule; the methods do nothing where it doesn't look."""

    name = ""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def broken(self, text: str) -> Violation:
        """Return the violation to raise."""
        return Violation(self.name, text)

    def tick_proposed(self, command: bytes) -> None:
        """Take that a leader proposes a tick."""

    def client_answered(self, incarnation: str) -> None:
        """Take that a leader answers a client, which may never hear of it."""

    def applied(self, entry: Entry) -> None:
        """Take that a replica applied an entry."""

    def scheduler_got(self, replica: ReplicaId, run: object, line: bytes) -> None:
        """Take that a scheduler's process got a line."""

    def looks(self) -> None:
        """Look around: called some times in each virtual second."""

    def at_end(self, schedules: Sequence[Schedule]) -> None:
        """Check what must hold once all is healed and done."""


class AcknowledgedJobs(Rule):
    """No acknowledged job is lost, and there is none that nobody wants.

    At the end each replica knows each job that was acknowledged, unless somebody asked to
    forget it, and it is the job that was asked for; it knows no others.
    """

    name = "lost-job"

    def at_end(self, schedules: Sequence[Schedule]) -> None:
        people = self.scene.people
        wanted = {request.seed for request in people.requests}
        for schedule in schedules:
            found = {summary["job"]: summary for summary in schedule.jobs()}
            for job, request in people.acknowledged.items():
                summary = found.get(job)
                if summary is None:
                    if job not in people.to_forget:
                        raise self.broken(f"acknowledged job {job} is gone")
                elif (summary["name"], summary["seed"]) != (request.kind, request.seed):
                    raise self.broken(f"job {job} is {summary}, expected {request}")
            for job, summary in found.items():
                if summary["seed"] not in wanted:
                    raise self.broken(f"job {job} is one that nobody wants: {summary}")


class OneJob(Rule):
    """No job is run twice: a request, repeated as often as it may be, makes one job."""

    name = "job-twice"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._jobs: dict[tuple[str, int], int] = {}
        self._requests: dict[int, tuple[str, int]] = {}

    def applied(self, entry: Entry) -> None:
        for data, reply in zip(entry.commands, entry.applied.replies, strict=True):
            if not data.startswith(b'["submit"') or reply is None:
                continue
            command = decode_command(data)
            assert isinstance(command, SubmitJob)
            job = json.loads(reply).get("job")
            if job is None:
                raise self.broken(f"{command} was answered {reply!r}")
            request = (command.sender, command.request)
            if self._jobs.setdefault(request, job) != job:
                raise self.broken(f"request {request} is job {self._jobs[request]} and {job}")
            if self._requests.setdefault(job, request) != request:
                raise self.broken(f"job {job} is of {self._requests[job]} and {request}")

    def at_end(self, schedules: Sequence[Schedule]) -> None:
        for schedule in schedules:
            seeds = [summary["seed"] for summary in schedule.jobs()]
            if len(seeds) != len(set(seeds)):
                raise self.broken(f"two jobs have the seed of one request: {seeds}")


class ToldOnce(Rule):
    """A scheduler is told the end of each of its tasks, once.

    Judged on the chosen events: no task is told as done or failed twice, nor as both; and
    while a job runs, each task that is done or has failed was told.
    """

    name = "told-once"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._told: dict[int, dict[int, bytes]] = {}  # by job and tid: the kind of event

    def applied(self, entry: Entry) -> None:
        if not entry.is_first:
            return
        for job, event in entry.applied.events:
            found = _OUTCOME.search(event.line)
            if found is None:
                continue
            tid = int(found[1])
            before = self._told.setdefault(job, {}).setdefault(tid, event.line)
            if before is not event.line:
                raise self.broken(f"task {tid} of job {job}: {before!r}, then {event.line!r}")
        if entry.slot % 16 == 0:
            for job in entry.schedule.running_jobs():
                self._check_job(entry.schedule, job)

    def _check_job(self, schedule: Schedule, job: JobId) -> None:
        summary = schedule.job_summary(job)
        assert summary is not None
        told = self._told.get(job, {})
        if look_inside(schedule).running[job].finishing is not None:
            return  # Its scheduler has nothing to say any more.
        for number in range(sum(_counts(summary).values())):
            info = schedule.task_info(job, TaskId(number))
            has_ended = info is not None and info["state"] in ("done", "failed")
            if has_ended and number not in told:
                raise self.broken(f"task {number} of job {job} is {info}, nobody was told")


def _counts(summary: dict[str, object]) -> dict[str, int]:
    counts = summary["tasks"]
    assert isinstance(counts, dict)
    return counts


class SameEvents(Rule):
    """All schedulers of a job get the same events, and none is withdrawn.

    Event n of a job is the same line on every replica, in each of its lives; and every run of
    a scheduler gets the lines from 0 on, one after the other, as they were chosen.
    """

    name = "events"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._lines: dict[tuple[int, int], bytes] = {}
        # Of each run: its job, and the next event.
        self._runs: dict[object, tuple[int, int]] = {}

    def applied(self, entry: Entry) -> None:
        lines = self._lines
        for job, event in entry.applied.events:
            if lines.setdefault((job, event.number), event.line) != event.line:
                raise self.broken(
                    f"event {event.number} of job {job}: {lines[job, event.number]!r}, "
                    f"on replica {entry.replica} {event.line!r}"
                )

    def scheduler_got(self, replica: ReplicaId, run: object, line: bytes) -> None:
        found = _EVENT.match(line)
        if found is None:
            return  # a control line
        number = int(found[1])
        if run not in self._runs:
            self._runs[run] = json.loads(line).get("job", 0), 0
        job, expected = self._runs[run]
        if number != expected:
            raise self.broken(
                f"a scheduler of job {job} on replica {replica} got event {number}, "
                f"expected {expected}"
            )
        self._runs[run] = job, number + 1
        chosen = self._lines.get((job, number))
        if chosen is None or chosen.rstrip(b"\n") != line:
            raise self.broken(f"replica {replica} gave {line!r}, chosen is {chosen!r}")


class Results(Rule):
    """Each job ends as it must, with the bytes that it must have.

    A job of deterministic tasks ends as it does where nothing goes wrong, and what it keeps
    has those bytes. For one of random tasks: the scheduler was told what dependents
    consumed, and what can be fetched is what they consumed.
    """

    name = "results"

    def at_end(self, schedules: Sequence[Schedule]) -> None:
        people = self.scene.people
        for job, request in people.acknowledged.items():
            summary = schedules[0].job_summary(JobId(job))
            if summary is None:
                continue  # It was forgotten.
            self._check_end(job, request, summary)
            if job in people.results:
                self._check_kept(job, request, people.results[job], summary)

    def _check_end(self, job: int, request: JobRequest, summary: dict[str, Any]) -> None:
        state = summary["state"]
        if state == "cancelled":
            return
        what = f"job {job} ({request.kind} {request.params})"
        if state == "running":
            raise self.broken(f"{what} still runs: {summary}")
        text = summary["values"] if state == "finished" else summary["error"]
        if state == "failed" and jobs.may_fail(request.kind, text):
            self.scene.world.count(f"jobs of {request.kind} that failed for a reason")
            return
        expected = jobs.expected(request.kind, request.params, request.seed)
        if expected is None:
            self._check_chance(what, state, text)
        elif (state, text) != (expected.state, expected.text):
            raise self.broken(f"{what} is {state} with {text}, expected {expected}")

    def _check_chance(self, what: str, state: str, text: str) -> None:
        if state != "finished":
            raise self.broken(f"{what} is {state}: {text}")
        values = json.loads(text)
        told = list(values["told"].values())
        if values["seen"][: len(told)] != told:
            raise self.broken(f"{what}: its scheduler was told {told}, consumed was {text}")
        hidden, between = _hidden(values)
        for number, (blob, looked) in enumerate(zip(hidden, between, strict=True)):
            if looked != [number, blob]:
                raise self.broken(f"{what}: one dependent saw {blob}, another {looked}")

    def _check_kept(
        self,
        job: int,
        request: JobRequest,
        kept: dict[int, dict[str, bytes]],
        summary: dict[str, Any],
    ) -> None:
        if sorted(kept) != sorted(summary["taskids"]):
            raise self.broken(f"job {job} keeps {summary['taskids']}, fetched was {list(kept)}")
        found = {tid: _decode(values) for tid, values in kept.items()}
        expected = jobs.expected(request.kind, request.params, request.seed)
        if expected is not None:
            for tid, values in found.items():
                if values != expected.kept[tid]:
                    raise self.broken(
                        f"job {job} ({request.kind}) keeps {values} of task {tid}, "
                        f"expected {expected.kept[tid]}"
                    )
            return
        values = json.loads(summary["values"])
        blobs = [found[tid]["blob"].hex() for tid in sorted(found)[:-1]]
        if blobs != _hidden(values)[0]:
            raise self.broken(f"job {job} keeps {blobs}, consumed was {values['seen']}")
        if found[max(found)]["seen"] != values["seen"]:
            raise self.broken(f"job {job} keeps {found[max(found)]}, told was {values['seen']}")


def _hidden(values: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Return what hidden dice showed to the last of a job's tasks, and to those in between."""
    seen = values["seen"][len(values["told"]) :]
    return seen[: len(seen) // 2], seen[len(seen) // 2 :]


def _decode(values: dict[str, bytes]) -> dict[str, Any]:
    """Return values as a node made them."""
    return {
        key: value if key == "blob" else json.loads(value) for key, value in values.items()
    }


class FairJudge(Rule):
    """A client that was heard lately isn't declared dead, however long its judge stood still.

    Silence is counted in ticks of the log, of which each counts a second at most. So between
    the last answer to a request of the client and the proposal of the tick that declares it
    dead, some coordinator that may be the judge was awake for most of the span. (What a leader
    that was stopped counts by its clock when it goes on is no silence. A client that comes
    back while the tick is on its way was silent for too long all the same.)
    """

    name = "unfair-judge"

    # Of the span of 5 s, one second goes to the last tick before the client was heard, and one
    # to each time that the judge was stopped within it.
    awake_min_ms = 2_000.0
    look_ms = 100.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._awake: dict[str, float] = {}  # milliseconds that each coordinator was awake for
        # By incarnation: the state of these clocks when the client was last answered.
        self._heard: dict[str, dict[str, float]] = {}
        # By tick and incarnation: milliseconds that some coordinator was awake for since then,
        # when the tick was proposed.
        self._silence: dict[bytes, dict[str, float]] = {}

    def looks(self) -> None:
        for address in self.scene.world.addresses.values():
            machine = self.scene.world.wire.machines[address]
            process = machine.process
            if process is not None and process.is_alive and not process.is_frozen:
                self._awake[address] = self._awake.get(address, 0.0) + self.look_ms

    def client_answered(self, incarnation: str) -> None:
        self._heard[incarnation] = dict(self._awake)

    def tick_proposed(self, command: bytes) -> None:
        if not _QUIET_TICK.match(command):
            silent = _decode_tick(command).silent
            self._silence[command] = {
                each.incarnation: self._awake_since_heard(each.incarnation) for each in silent
            }

    def _awake_since_heard(self, incarnation: str) -> float:
        heard = self._heard.get(incarnation)
        if heard is None:
            return math.inf  # Its join was never answered.
        return max(now - heard.get(address, 0.0) for address, now in self._awake.items())

    def applied(self, entry: Entry) -> None:
        if not entry.is_first:
            return
        for data in entry.commands:
            if not data.startswith(b'["tick"') or _QUIET_TICK.match(data):
                continue
            for each in _decode_tick(data).silent:
                if f"cid={each.cid} dead: silent" in " ".join(entry.applied.notes):
                    self._judge(each.cid, self._silence[data][each.incarnation])

    def _judge(self, cid: ClientId, awake_ms: float) -> None:
        self.scene.world.count("clients declared dead")
        if awake_ms < self.awake_min_ms:
            raise self.broken(
                f"client {cid} was declared dead after an answer since which no coordinator "
                f"was awake for more than {awake_ms:.0f} ms"
            )


def _decode_tick(data: bytes) -> Tick:
    command = decode_command(data)
    assert isinstance(command, Tick)
    return command


class Histories(Rule):
    """What people were told is what one sequential store of jobs would have told them.

    The algorithm and the model are those of tests/linearizability.
    """

    name = "not-linearizable"

    def at_end(self, schedules: Sequence[Schedule]) -> None:
        try:
            wrong = check_history(self.scene.people.finished_history())
        except TooHard:
            self.scene.world.count("histories too hard to judge")
            return
        if wrong:
            raise self.broken("; ".join(wrong))


class NothingLeft(Rule):
    """Nothing is left of jobs that have ended but what they keep.

    No replica holds a task of theirs, nor counts work of a client; clients run nothing, wait for
    nothing, have nothing to report, and store no results but those that are kept.
    """

    name = "left-over"

    # What is on its way when all jobs have ended may take so long.
    patience_ms = 20_000.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._schedule: Schedule | None = None  # of who applied the last entry first

    def applied(self, entry: Entry) -> None:
        if entry.is_first:
            self._schedule = entry.schedule

    def describe(self) -> str | None:
        """Say what a client still has to do, or None."""
        for machine in self.scene.machines:
            client = machine.client
            if not machine.is_up or client is None or not client.is_joined:
                return f"{machine.name} has not joined"
            workbench = client.workbench
            if any(workbench.summary()["tasks"].values()):
                return f"{machine.name} still has tasks: {workbench.summary()}"
            if workbench.has_unreported:
                return f"{machine.name} still has to report: {workbench.summary()}"
            if self._schedule is not None and (left := self._left_in_store(machine)):
                return left
        if self._schedule is not None:
            # A machine that lost its disk came back as another client; the former one dies.
            states = [client["state"] for client in self._schedule.client_summaries()]
            if states.count("alive") != len(self.scene.machines):
                return f"clients are {states}"
        return None

    def at_end(self, schedules: Sequence[Schedule]) -> None:
        for schedule in schedules:
            schedule.check()
            if schedule.running_jobs():
                raise self.broken(f"jobs {schedule.running_jobs()} run")
            for job in look_inside(schedule).jobs.values():
                if sorted(job.tasks) != sorted(job.keep):
                    raise self.broken(f"job {job.job} has tasks {list(job.tasks)}")
            for client in schedule.client_summaries():
                if client["assigned"] or client["queued_us"]:
                    raise self.broken(f"client {client}")
        for machine in self.scene.machines:
            assert machine.client is not None
            machine.client.workbench.check()
            machine.client.values.check()
        if (left := self.describe()) is not None:
            raise self.broken(left)

    def _left_in_store(self, machine: ClientMachine) -> str | None:
        schedule = self._schedule
        assert schedule is not None
        for job, tid in machine.directory.names():
            if job in self.scene.people.to_forget:
                continue  # A client may not have heard that it was forgotten: a known limit.
            summary = schedule.job_summary(JobId(job))
            kept: Any = () if summary is None else summary["taskids"]
            if tid not in kept:
                return f"{machine.name} stores a result of task {tid} of job {job}"
        return None


RULES: tuple[type[Rule], ...] = (
    AcknowledgedJobs,
    OneJob,
    ToldOnce,
    SameEvents,
    Results,
    FairJudge,
    Histories,
    NothingLeft,
)
