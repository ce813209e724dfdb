"""A small world around the state machine: a mirror of rows, clients and schedulers to drive.

`World.apply` checks all invariants after each entry; `FakeClient` follows views as a real
client does and completes, fails or loses what the test says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tasksprint.coordination.commands import (
    Answer,
    AnswerPart,
    Command,
    Completion,
    Failure,
    Held,
    JoinClient,
    LeaveClient,
    Lost,
    Report,
    SilentClient,
    SubmitJob,
    Tick,
    encode_command,
    inputs_digest,
)
from tasksprint.coordination.rows import TABLES, Row
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import DONE
from tasksprint.coordination.view import Assignment, View, decode_view, encode_view
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.release import THIS_RELEASE, Release
from tasksprint.scheduler_commands import SchedulerCommand
from tasksprint.settings import RULES, Rules
from tests.coordination.mirror_rows import MirrorRows

MEMBERS = (ReplicaId(1), ReplicaId(2), ReplicaId(3))


def digest_of(*parts: object) -> str:
    """Return a digest for a fake result."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def look_inside(machine: Any) -> State:
    """Look into a state machine, or one of its parts: at what no reading tells.

    The only place that does. Tests that break something on purpose do it here, too.
    """
    state: State = machine._state
    return state


@dataclass
class Mirror:
    """The rows, as a store would keep them."""

    rows: dict[tuple[str, tuple[int | str, ...]], Row]

    def take(self, rows: Iterable[Row]) -> None:
        seen = set()
        for row in rows:
            table = TABLES[row.table]
            assert len(row.key) == len(table.key_columns)
            place = (row.table, row.key)
            assert place not in seen, f"two rows for {place} in one entry"
            seen.add(place)
            if row.columns is None:
                self.rows.pop(place, None)
                continue
            assert len(row.columns) == len(table.value_columns)
            for value, column in zip(row.columns, table.value_columns, strict=True):
                if value is None:
                    assert column.nullable, (row, column)
                else:
                    assert type(value) is {"INTEGER": int, "TEXT": str}[column.type], row
            self.rows[place] = row


class World:
    """A schedule with its mirror, and what it told schedulers so far."""

    def __init__(
        self,
        *,
        rules: Rules = RULES,
        members: tuple[ReplicaId, ...] = MEMBERS,
        is_checked: bool = True,
        release: Release = THIS_RELEASE,
    ) -> None:
        self.rules = rules
        self.release = release
        self.members = members
        self.is_checked = is_checked
        self.schedule = self.make_schedule(None)
        self.mirror = Mirror({})
        self.slot = Slot(0)
        self.log: list[tuple[bytes, ...]] = []
        self.events: dict[int, list[dict[str, Any]]] = {}
        self.notes: list[str] = []
        # (job, tid, result digest): the digests that it was computed from.
        self.origins: dict[tuple[JobId, TaskId, str], list[str]] = {}
        self._submitted = 0

    def make_schedule(self, rows: Iterable[Row] | None) -> Schedule:
        return Schedule(
            cluster="c1",
            members=self.members,
            rules=self.rules,
            mirror=None if rows is None else MirrorRows(rows),
            release=self.release,
        )

    @property
    def state(self) -> State:
        """The state as no reading tells it."""
        return look_inside(self.schedule)

    def apply(self, *commands: Command | bytes) -> Applied:
        """Apply one entry, with all checks; a command that raises the rules stands alone."""
        data = tuple(
            command if isinstance(command, bytes) else encode_command(command)
            for command in commands
        )
        self.slot = Slot(self.slot + 1)
        self.log.append(data)
        is_alone = len(data) == 1 and data[0].startswith(b'["rules",')
        applied = self.schedule.apply(self.slot, data, is_alone=is_alone)
        assert len(applied.replies) == len(data)
        self.mirror.take(applied.rows)
        for job, event in applied.events:
            listed = self.events.setdefault(job, [])
            decoded = json.loads(event.line)
            assert decoded["event"] == event.number == len(listed)
            listed.append(decoded)
        self.notes.extend(applied.notes)
        if self.is_checked:
            self.schedule.check()
            self.check_told_once()
            self.check_origins()
        return applied

    def check_origins(self) -> None:
        """Assert that each result rests on what its inputs' results are now."""
        for job in self.state.running.values():
            for task in job.tasks.values():
                if task.state != DONE or task.digest is None:
                    continue
                used = self.origins.get((job.job, task.tid, task.digest), [])
                for tid, digest in zip(task.spec.pretasks, used, strict=True):
                    pretask = job.tasks.get(tid)
                    assert pretask is None or pretask.digest == digest, (
                        f"{task} rests on other bytes than {pretask} has"
                    )

    def check_told_once(self) -> None:
        for events in self.events.values():
            told = [event["tid"] for event in events if event["kind"] == "task_done"]
            assert len(told) == len(set(told)), "task_done came twice"

    def restart(self) -> None:
        """Go on with a schedule that was made from the rows alone."""
        before = self.schedule.digest
        rows = list(self.mirror.rows.values())
        self.schedule = self.make_schedule(reversed(rows))
        assert self.schedule.digest == before
        assert self.schedule.applied_slot == self.slot
        self.schedule.check()

    # --- jobs ---

    def submit(
        self, *, name: str = "job", params: str = "{}", manifest: str = '{"node":"node.py"}'
    ) -> JobId:
        self._submitted += 1
        applied = self.apply(
            SubmitJob("tester", self._submitted, name, 7, params, "p" * 64, manifest)
        )
        return JobId(reply_of(applied)["job"])

    def answer(self, job: JobId, *commands: SchedulerCommand, last: bool = True) -> Applied:
        """Give the next part of the answer to the job's next unanswered event."""
        state = self.state.jobs[job]
        part = AnswerPart(state.next_event, state.next_part, last, state.next_tid, commands)
        return self.apply(Answer(job, (part,)))

    def answer_rest(self, job: JobId) -> None:
        """Say nothing to all events that wait."""
        if self.schedule.is_running(job):
            history = self.schedule.scheduler_history(job)
            next_event, end_event = history.answered_end[0], history.event_count
            if next_event < end_event:
                self.apply(Answer(job, (), ((next_event, end_event),)))

    def kinds(self, job: JobId) -> list[str]:
        return [event["kind"] for event in self.events[job]]

    def state_of(self, job: JobId, tid: int) -> str:
        info = self.schedule.task_info(job, TaskId(tid))
        assert info is not None
        return str(info["state"])

    def states(self, job: JobId) -> str:
        """Return the states of all tasks in memory, as one letter each."""
        tasks = self.state.jobs[job].tasks
        return "".join("wradfk"[task.state] for task in tasks.values())

    def tick(self, elapsed_ms: int = 500, *silent: SilentClient) -> Applied:
        return self.apply(Tick(elapsed_ms, 1_000_000 + 500 * self.slot, tuple(silent)))

    def join(self, name: str = "a", *, slots: int = 1) -> FakeClient:
        client = FakeClient(self, name, slots)
        client.join()
        return client


def reply_of(applied: Applied, index: int = 0) -> Any:
    reply = applied.replies[index]
    assert reply is not None
    return json.loads(reply)


class FakeClient:
    """A client that follows its view and does what the test says."""

    def __init__(self, world: World, name: str, slots: int) -> None:
        self.world = world
        self.name = name
        self.slots = slots
        self.run_us: dict[str, int] = {}  # by task name
        self.starts = 0
        self.cid = ClientId(0)
        self.incarnation = Incarnation("")
        self.since = Slot(0)
        self.request = 0
        self.assigned: dict[tuple[JobId, TaskId], Assignment] = {}
        self.values: dict[tuple[JobId, TaskId], str] = {}

    def join(self) -> Applied:
        """Start (again), with the values that are on disk."""
        self.starts += 1
        self.incarnation = Incarnation(f"{self.name}{self.starts}")
        self.since = Slot(0)
        self.request = 0
        self.assigned = {}
        held = tuple(Held(job, tid, digest) for (job, tid), digest in self.values.items())
        applied = self.world.apply(
            JoinClient(self.name, self.incarnation, f"{self.name}:1", self.name, self.slots, held)
        )
        self.cid = ClientId(reply_of(applied)["cid"])
        return applied

    def leave(self) -> Applied:
        return self.world.apply(LeaveClient(self.cid, self.incarnation))

    def silent(self) -> SilentClient:
        return SilentClient(self.cid, self.incarnation, self.request)

    def poll(self) -> View | None:
        """Follow the view; None: this client must join again."""
        found = self.world.schedule.view(self.cid, self.incarnation, self.since)
        if found is None:
            return None
        view = decode_view(encode_view(found))
        assert encode_view(view) == encode_view(found)
        if view.whole:
            named = {(one.job, one.tid) for one in view.run}
            self.assigned = {place: one for place, one in self.assigned.items() if place in named}
        for stop in view.stop:
            one = self.assigned.get((stop.job, stop.tid))
            if one is not None and one.attempt == stop.attempt:
                del self.assigned[stop.job, stop.tid]
        for drop_job in view.drop_jobs:
            for place in [place for place in self.values if place[0] == drop_job.job]:
                if place[1] not in drop_job.keep:
                    del self.values[place]
        for drop in view.drop:
            if drop.digest is None or self.values.get((drop.job, drop.tid)) == drop.digest:
                self.values.pop((drop.job, drop.tid), None)
        for one in view.run:
            assert {entry.job for entry in view.jobs} >= {one.job}
            self.assigned[one.job, one.tid] = one
        assert view.version >= self.since
        self.since = view.version
        return view

    def check_followed(self) -> None:
        """Assert that following changes led to the same as the whole view.

        But for inputs: the client isn't told of each new holder, nor that an input which it
        makes itself is done; it only never is without a holder that it knows.
        """
        whole = self.world.schedule.view(self.cid, self.incarnation, Slot(0))
        assert whole is not None
        whole = decode_view(encode_view(whole))  # It leaves out what clients aren't told.
        expected = {(one.job, one.tid): one for one in whole.run}
        assert sorted(expected) == sorted(self.assigned)
        for place, one in expected.items():
            known = self.assigned[place]
            assert replace(known, inputs=()) == replace(one, inputs=())
            for told, item in zip(known.inputs, one.inputs, strict=True):
                if told.digest is None:
                    assert told.holders == (self.cid,)
                    assert item.digest is None or self.cid in item.holders
                else:
                    assert (told.tid, told.key, told.digest) == (item.tid, item.key, item.digest)
                    assert any(cid in item.holders for cid in told.holders)

    def run(self, one: Assignment, salt: object = "") -> Completion:
        """Compute a task that is assigned, or return what was computed before."""
        consumed = []
        for item in one.inputs:
            own = self.values.get((one.job, item.tid))
            if item.digest is None:
                assert own is not None, f"{one.tid} runs before its input {item.tid}"
                consumed.append(own)
            else:
                consumed.append(item.digest)
        digest = digest_of(one.job, one.spec.name, one.seed, consumed, salt)
        self.world.origins[one.job, one.tid, digest] = consumed
        self.values[one.job, one.tid] = digest
        self.assigned.pop((one.job, one.tid), None)
        return Completion(
            one.job,
            one.tid,
            one.attempt,
            digest,
            100,
            inputs_digest(consumed) if consumed else None,
            self.run_us.get(one.spec.name, 100),
            {key: ("json", f'"{digest[:4]}"') for key in one.spec.keys},
        )

    def can_run(self, one: Assignment) -> bool:
        return all(
            item.digest is not None or (one.job, item.tid) in self.values for item in one.inputs
        )

    def report(
        self,
        *,
        completions: Iterable[Completion] = (),
        failures: Iterable[Failure] = (),
        lost: Iterable[Lost] = (),
        acknowledged: int | None = None,
    ) -> Applied:
        self.request += 1
        for failure in failures:
            self.assigned.pop((failure.job, failure.tid), None)
        return self.world.apply(
            Report(
                self.cid,
                self.incarnation,
                self.request,
                self.request if acknowledged is None else acknowledged,
                tuple(completions),
                tuple(failures),
                tuple(lost),
            )
        )

    def work(self, limit: int = 1_000_000, salt: object = "") -> list[TaskId]:
        """Poll, complete up to `limit` tasks in order, report; return their tids."""
        self.poll()
        completions = []
        for one in list(self.assigned.values()):
            if len(completions) < limit and self.can_run(one):
                completions.append(self.run(one, salt))
        if completions:
            self.report(completions=completions)
        return [completion.tid for completion in completions]

    def fail(self, tid: int, *, fatal: bool = False, error: str = "boom") -> Applied:
        """Fail the attempt at a task that is assigned."""
        self.poll()
        one = next(one for one in self.assigned.values() if one.tid == tid)
        return self.report(failures=[Failure(one.job, one.tid, one.attempt, error, fatal)])
