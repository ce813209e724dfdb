"""State that only grows: what years of comings and goings leave behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tasksprint.consensus import outbox as outbox_module
from tasksprint.consensus.outbox import Outbox
from tasksprint.coordination import state as state_module
from tasksprint.coordination import transitions
from tasksprint.coordination.applied import Applied
from tasksprint.coordination.commands import (
    CancelJob,
    Command,
    ForgetJob,
    JoinClient,
    LeaveClient,
    Lost,
    NodesAttached,
    SilentClient,
    SubmitJob,
    Tick,
    encode_command,
)
from tasksprint.coordination.placement import capacity, estimates, order
from tasksprint.coordination.rows import garbage_ranges
from tasksprint.coordination.schedule import Schedule
from tasksprint.coordination.view import Drop, DropJob, JobEntry
from tasksprint.execution import nodes
from tasksprint.execution.effects import Effect
from tasksprint.hosting import claims
from tasksprint.hosting import history as host_history
from tasksprint.hosting.host import SchedulerHost
from tasksprint.ids import Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.protocol.scheduler_lines import SchedulerAnswer
from tasksprint.roles.coordinator import runners
from tasksprint.roles.coordinator.coordinator import Coordinator
from tasksprint.scheduler_commands import (
    FinishJob,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.settings import RULES, Settings
from tasksprint.store import writer
from tasksprint.task_spec import TaskSpec
from tests.cases.sizes import growth, sizes
from tests.consensus.helpers import make
from tests.coordination.world import FakeClient, World, look_inside, reply_of
from tests.execution.helpers import COMMAND, Bench, RunTask, SendReport, TaskError, task
from tests.hosting.test_host import History
from tests.roles.members import members
from tests.roles.test_coordinator import decide, run, submission, until
from tests.store.memory_store import MemoryReplicaStore

# A day of these is a minute of the real ones, and so are the limits.
YEAR_RULES = replace(
    RULES,
    request_record_ms=5_000,
    request_records_max=40,
    replies_per_sender_max=8,
    ended_job_ms=20_000,
    ended_jobs_max=20,
    dead_client_ms=20_000,
    dead_clients_max=20,
    failures_kept_max=5,
)
HISTORY = ("events", "answers", "job_log")
# Heaps have stale entries, a few for each client that is remembered.
SLACK = 60
MAPS = 12  # tasks that the jobs of a year start at once


class Years(World):
    """A leader, whom clients ask, and a follower that only hears the log."""

    def __init__(self) -> None:
        self.follower: Schedule | None = None
        super().__init__(rules=YEAR_RULES, is_checked=False)
        self.follower = self.make_schedule(None)
        self.random = random.Random(7)
        self.visits = 0
        self.worker = self.join("worker", slots=2)
        self.idler = self.join("idler", slots=0)
        self.idler_request = 0
        self.old = self.submit(name="old")  # It runs all the time.
        self.stuck = self.submit(name="stuck", manifest='{"node":"attached:nobody"}')
        self.kept: list[FakeClient] = []
        for job in (self.old, self.stuck):
            self.answer_rest(job)
        self.start(self.old, TaskSpec("root", "[]"))
        self.start(self.stuck, TaskSpec("waits", "[]"))
        self.work_all()

    def apply(self, *commands: Command | bytes) -> Applied:
        """Apply one entry on both; nothing is kept of it here."""
        data = tuple(
            command if isinstance(command, bytes) else encode_command(command)
            for command in commands
        )
        self.slot = Slot(self.slot + 1)
        applied = self.schedule.apply(self.slot, data)
        # A running job's history stays, and the lines that it logged: no replica reads them.
        self.mirror.take(row for row in applied.rows if row.table not in HISTORY)
        self.origins.clear()
        if self.follower is not None:
            self.follower.apply(self.slot, data)
            assert self.follower.digest == self.schedule.digest
        return applied

    def pass_time(self, ticks: int, *silent: SilentClient) -> None:
        """Let seconds pass, in which all clients that live ask for their views."""
        for _ in range(ticks):
            for client in (self.worker, self.idler, *self.kept):
                client.poll()
            followed = self.schedule.take_followed()
            self.apply(Tick(1_000, 1_000_000 + self.slot, silent, None, followed))
            silent = ()

    def start(self, job: JobId, *commands: SchedulerCommand) -> list[int]:
        """Let the scheduler of a job say something at its next event, a timer's."""
        state = look_inside(self.schedule).jobs[job]
        if state.next_event == state.event_count:
            self.join(f"event {self.slot}", slots=0).leave()
        while state.next_event + 1 < state.event_count:
            self.answer(job)
        first = state.next_tid
        self.answer(job, *commands)
        assert state.error is None, state.error
        return list(range(first, state.next_tid))

    def work_all(self) -> None:
        while any([client.work() for client in (self.worker, *self.kept)]):
            pass
        for job in self.schedule.running_jobs():
            self.answer_rest(job)

    def day(self) -> None:
        """Everything that happens in a cluster, once."""
        rng = self.random
        number = self.visits = self.visits + 1
        self.people_come(number)
        self.clients_come(number)
        old = self.old
        maps = self.start(
            old,
            *[TaskSpec(f"map {number}", f"[{index}]", (0,), ("k",)) for index in range(MAPS)],
            StartTimer(number, 500),
            StartTimer(number, 10**9 if number < 3 else 700),
            WriteLog(f"day {number}"),
        )
        if rng.random() < 0.5:
            self.kept[0].poll()
            for tid in [one.tid for one in self.kept[0].assigned.values()][:1]:
                self.kept[0].fail(tid, fatal=rng.random() < 0.5, error="day's failure")
        self.start(old, KillTask(TaskId(maps[-1])))
        self.work_all()
        if rng.random() < 0.3:  # Some results get lost, and come again.
            held = [tid for job, tid in self.worker.values if job == old and tid][:2]
            self.worker.report(lost=[Lost(old, tid) for tid in held])
        self.work_all()
        if number % 3 == 0:
            self.idler_request += 1
            names = ((f"name {number}", 1),)
            self.apply(
                NodesAttached(
                    self.idler.cid, self.idler.incarnation, self.idler_request, names
                )
            )
        self.pass_time(2)
        self.work_all()
        self.start(old, ReleaseTasks(tuple(TaskId(tid) for tid in maps)))
        waits = self.start(self.stuck, *[TaskSpec("waits", "[]") for _ in range(4)])
        self.start(self.stuck, *[KillTask(TaskId(tid)) for tid in waits])
        self.start(self.stuck, ReleaseTasks(tuple(TaskId(tid) for tid in waits)))
        self.short_jobs(number)
        self.kept[1].leave()
        self.pass_time(1, *[client.silent() for client in (self.kept[0], *self.kept[2:])])
        self.kept[0].join()
        del self.kept[1:]
        self.pass_time(1)

    def people_come(self, number: int) -> None:
        self.apply(CancelJob(f"visitor {number}", 1, JobId(10**6), ""))
        self.apply(CancelJob("daemon", number, JobId(10**6), ""))

    def clients_come(self, number: int) -> None:
        self.kept += [self.join(f"container {number} {index}") for index in range(3)]

    def short_jobs(self, number: int) -> None:
        for ending in ("finish", "cancel", "forget"):
            job = self.submit(name=f"{ending} {number}")
            self.answer_rest(job)
            tids = self.start(job, TaskSpec("one", "[]"), TaskSpec("two", "[]", (0,), ("k",)))
            self.start(job, StartTimer(1, 10**9))
            if ending != "cancel":
                self.work_all()
                self.start(job, FinishJob((TaskId(tids[0]),), "1"))
            else:
                self.apply(CancelJob(f"canceller {number}", 1, job, ""))
            if ending == "forget":
                self.apply(ForgetJob(f"forgetter {number}", 1, job))

    def submit(
        self, *, name: str = "job", params: str = "{}", manifest: str = '{"node":"node.py"}'
    ) -> JobId:
        command = SubmitJob(f"submits {name}", 1, name, 7, params, "p" * 64, manifest)
        return JobId(reply_of(self.apply(command))["job"])

    def rest(self) -> None:
        """Nothing happens for a week: all that may be forgotten is."""
        for client in self.kept:
            client.leave()
        self.kept.clear()
        for job in self.schedule.running_jobs():
            self.answer_rest(job)
        self.pass_time(70)

    def measured(self) -> dict[str, Counter[str]]:
        assert self.follower is not None
        restored = self.make_schedule(self.mirror.rows.values())
        assert restored.digest == self.schedule.digest
        restored.check()
        self.schedule.check()
        self.follower.check()
        skip = (type(YEAR_RULES),)
        return {
            "leader": sizes(self.schedule, skip=skip),
            "follower": sizes(self.follower, skip=skip),
            "rows": Counter({f"rows of {table}": count for table, count in self._rows().items()}),
        }

    def _rows(self) -> Counter[str]:
        """Count the rows after deleting, as stores do, what is garbage."""
        rows = self.mirror.rows
        garbage = [place for place in rows if place[0] == "garbage"]
        ranges = [
            one
            for place in garbage
            for one in garbage_ranges(int(place[1][0]), str((rows[place].columns or [""])[0]))
        ]
        for place in [
            (table, key)
            for table, key in rows
            if any(of == table and first <= key[: len(first)] < end for of, first, end in ranges)
        ]:
            del rows[place]
        for place in garbage:
            del rows[place]
        return Counter(table for table, _ in rows)


def live(world: Years, days: int) -> dict[str, Counter[str]]:
    for _ in range(days):
        world.day()
    world.rest()
    return world.measured()


def check_years(days: int) -> None:
    world = Years()
    live(world, 10)  # until all limits are reached
    before = live(world, 3)
    for _ in range(4):  # Heaps are cleaned now and then only.
        for who, counts in live(world, 3).items():
            before[who] |= counts
    after = live(world, days)
    grown = {who: growth(before[who], after[who], slack=SLACK) for who in before}
    assert not any(grown.values()), grown


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "NOTED_MAX", 20)
    monkeypatch.setattr(estimates, "NAMES_MAX", 8)
    monkeypatch.setattr(host_history, "HISTORY_BYTES", 1_000)
    monkeypatch.setattr(host_history, "TRIM_LINES_MIN", 10)
    monkeypatch.setattr(runners, "_OUTPUTS_MAX", 5)
    monkeypatch.setattr(writer, "_TIMES_KEPT", 20)
    monkeypatch.setattr(claims, "_KEPT", 8)
    monkeypatch.setattr(capacity, "STALE_ENTRIES_MAX", 4)
    monkeypatch.setattr(transitions, "STALE_ENTRIES_MAX", 4)
    monkeypatch.setattr(order, "STALE_ENTRIES_MAX", 4)


@pytest.mark.slow
def test_days_leave_nothing_behind_in_the_state() -> None:
    check_years(40)


@pytest.mark.long
def test_years_leave_nothing_behind_in_the_state() -> None:
    check_years(730)


# --- each kind by itself ---


def work_off(world: World, job: JobId, client: FakeClient, *, left: int = 1) -> None:
    """Do all that can be done, and say nothing to the events but the last ones."""
    while client.work():
        pass
    while True:
        history = world.schedule.scheduler_history(job)
        if history.answered_end[0] + left >= history.event_count:
            break
        world.answer(job)


def followed_tick(world: World) -> Tick:
    return Tick(500, 1_000_000 + world.slot, (), None, world.schedule.take_followed())


def test_followers_forget_what_clients_told_the_leader_that_they_know() -> None:
    world = World()
    follower = world.make_schedule(None)
    client = world.join()
    job = world.submit()
    world.answer(job, *[TaskSpec("map", "[]") for _ in range(20)])
    work_off(world, job, client)
    world.answer(job, ReleaseTasks(tuple(TaskId(tid) for tid in range(20))))
    for slot, commands in enumerate(world.log, start=1):
        follower.apply(Slot(slot), commands)
    drops = look_inside(follower).clients[client.cid].changes.drops
    assert len(drops) == 20
    world.apply(followed_tick(world))
    follower.apply(world.slot, world.log[-1])
    assert len(drops) == 20, "the client hasn't heard of them yet"
    assert client.poll() is not None  # It gets them …
    assert client.poll() is not None  # … and says so.
    assert world.schedule.take_followed() == ((client.cid, client.since),)
    assert world.schedule.take_followed() == (), "each is told once"
    world.apply(Tick(500, 2_000_000, (), None, ((client.cid, client.since),)))
    follower.apply(world.slot, world.log[-1])
    assert not drops
    assert follower.digest == world.schedule.digest


def test_client_that_changes_over_to_a_follower_misses_no_drop() -> None:
    world = World()
    follower = world.make_schedule(None)
    client = world.join()
    job = world.submit()
    world.answer(job, TaskSpec("map", "[]"), TaskSpec("map", "[]"))
    work_off(world, job, client, left=2)
    for tid in (0, 1):
        world.answer(job, ReleaseTasks((TaskId(tid),)))
        client.poll()
        if tid == 0:
            client.poll()
            world.apply(followed_tick(world))
    for slot, commands in enumerate(world.log, start=1):
        follower.apply(Slot(slot), commands)
    # What it was told last was told by the leader only, and may never have arrived.
    view = follower.view(client.cid, client.incarnation, Slot(client.since - 1))
    assert view is not None
    assert not view.whole
    assert [drop.tid for drop in view.drop] == [1]


def test_end_of_a_job_wakes_nobody_who_has_nothing_of_it_and_is_told_to_all() -> None:
    world = World()
    busy, idle = world.join("busy"), world.join("idle", slots=0)
    job = world.submit()
    world.answer(job, TaskSpec("map", "[]"))
    busy.work()
    idle.poll()
    applied = world.apply(CancelJob("me", 1, job, "enough"))
    assert applied.clients == (busy.cid,)
    for client in (busy, idle):
        view = client.poll()
        assert view is not None
        assert [told.job for told in view.drop_jobs] == [job]
        again = client.poll()
        assert again is not None and again.is_empty


def test_client_that_was_away_for_longer_than_ends_are_told_gets_a_whole_view() -> None:
    world = World()
    client = world.join()
    client.poll()
    job = world.submit()
    world.apply(CancelJob("me", 1, job, "enough"))
    since = client.since
    for _ in range(state_module.ENDS_TOLD_MS // 1_000 + 1):
        world.tick(1_000)
    assert not world.state.ends
    view = world.schedule.view(client.cid, client.incarnation, since)
    assert view is not None and view.whole
    assert [told.job for told in view.drop_jobs] == [job]


def test_client_that_is_dead_for_long_is_forgotten_and_comes_back_under_another_number() -> None:
    world = World(rules=replace(RULES, dead_client_ms=3_000))
    client, other = world.join("a"), world.join("b")
    first = client.cid
    client.leave()
    for _ in range(2):
        world.tick(1_000)
        assert [one["cid"] for one in world.schedule.client_summaries()] == [1, 2]
    world.restart()
    world.tick(1_000)
    assert [one["cid"] for one in world.schedule.client_summaries()] == [other.cid]
    assert f"cid={first} host=a forgotten: dead for long" in world.notes
    assert ("clients", (first,)) not in world.mirror.rows
    client.join()
    assert client.cid == 3
    assert client.poll() is not None
    world.restart()


def test_client_that_came_back_in_time_is_not_forgotten() -> None:
    world = World(rules=replace(RULES, dead_client_ms=3_000))
    client = world.join("a")
    client.leave()
    world.tick(1_000)
    client.join()
    for _ in range(6):
        world.tick(1_000)
    assert client.cid == 1
    assert client.poll() is not None


def test_the_clients_that_died_first_are_forgotten_if_there_are_too_many() -> None:
    world = World(rules=replace(RULES, dead_clients_max=3))
    for number in range(8):
        world.join(f"container {number}").leave()
    world.tick()
    assert [one["cid"] for one in world.schedule.client_summaries()] == [6, 7, 8]
    world.restart()


def test_sender_of_many_requests_keeps_the_replies_to_the_last_ones() -> None:
    world = World(rules=replace(RULES, replies_per_sender_max=3))
    for request in range(1, 6):
        world.apply(CancelJob("daemon", request, JobId(9), ""))
    reply = world.schedule.reply_to("daemon", 5)
    assert reply == b'{"error":"there is no job 9"}'
    assert world.schedule.reply_to("daemon", 2) == (
        b'{"error":"it isn\'t known any more whether this request was carried out: its sender '
        b'made too many later ones since"}'
    )
    assert world.schedule.reply_to("daemon", 6) is None
    world.restart()
    assert world.schedule.reply_to("daemon", 3) == reply


def test_records_of_too_many_senders_go_by_the_time_of_their_last_request() -> None:
    world = World(rules=replace(RULES, request_records_max=2))
    for name in ("z", "y"):
        world.apply(CancelJob(name, 1, JobId(9), ""))
    world.tick()
    for name in ("b", "a"):
        world.apply(CancelJob(name, 1, JobId(9), ""))
    world.restart()
    world.tick()
    assert [sender.name for sender in world.state.senders] == ["person a", "person b"]


def test_list_of_dependents_is_as_long_as_those_that_are_left() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, TaskSpec("root", "[]"))
    client.work()
    for first in range(1, 101, 10):
        world.answer_rest(job)
        world.apply(JoinClient(f"visitor {first}", Incarnation("x"), None, "v", 0))
        tids = range(first, first + 10)
        world.answer(job, *[TaskSpec("map", "[]", (0,), ("k",)) for _ in tids])
        work_off(world, job, client)
        world.answer(job, ReleaseTasks(tuple(TaskId(tid) for tid in tids)))
    root = world.state.jobs[job].tasks[TaskId(0)]
    assert len(root.dependents or ()) < 40


def test_notes_of_elections_are_remembered_up_to_a_limit() -> None:
    outbox = Outbox.__new__(Outbox)
    outbox.me, outbox._noted, outbox._notes = ReplicaId(1), {}, []
    for ballot in range(100):
        outbox.note_once(f"ballot={ballot} asks for an election")
        outbox.note_once(f"ballot={ballot} asks for an election")
    assert len(outbox._notes) == 100
    assert len(outbox._noted) == outbox_module.NOTED_MAX


class Three:
    """Three replicas whose messages arrive at once, and whose disks take no time."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.replicas = {ReplicaId(number): make(number, 3) for number in (1, 2, 3)}
        self.slots = dict.fromkeys(self.replicas, 0)
        self.elections = 0

    def settle(self, *silent: ReplicaId) -> None:
        """Deliver all that is said, but by or to those who are silent."""
        todo = True
        while todo:
            todo = False
            for me, replica in self.replicas.items():
                ready = replica.ready()
                if ready is None:
                    continue
                todo = True
                if ready.persist is not None:
                    replica.persisted(ready.sequence, self.now_ms)
                if ready.chosen:
                    self.slots[me] = ready.chosen[-1].slot
                    replica.truncated(Slot(max(self.slots[me] - 5, 1)))
                for envelope in (*ready.send_now, *ready.send_after_persist):
                    if not {envelope.source, envelope.target} & set(silent):
                        self.replicas[envelope.target].receive(envelope, self.now_ms)

    def pass_time(self, *silent: ReplicaId) -> None:
        self.now_ms += 50
        for replica in self.replicas.values():
            if self.now_ms >= replica.deadline_ms:
                replica.tick(self.now_ms)
        self.settle(*silent)

    def change_leader(self) -> None:
        """Cut the leader off until another one leads, and let it come back."""
        former = self.leader()
        silent = () if former is None else (former,)
        while self.leader(*silent) is None:
            self.pass_time(*silent)
        self.elections += 1
        leader = self.replicas[self.leader(*silent) or ReplicaId(1)]
        assert leader.propose(b"command %d" % self.elections, self.now_ms)
        for _ in range(40):
            self.pass_time()

    def leader(self, *but: ReplicaId) -> ReplicaId | None:
        for me, replica in self.replicas.items():
            if replica.is_leader and me not in but:
                return me
        return None


def check_elections(count: int) -> None:
    world = Three()

    def live(elections: int) -> Counter[str]:
        for _ in range(elections):
            world.change_leader()
        return sizes(*world.replicas.values(), skip=(random.Random, Settings))

    live(3 * outbox_module.NOTED_MAX)  # of the notes each replica makes some
    before = live(10)
    after = live(count)
    assert not growth(before, after, slack=SLACK), growth(before, after, slack=SLACK)


@pytest.mark.slow
def test_elections_leave_nothing_behind_in_the_replicas() -> None:
    check_elections(100)


@pytest.mark.long
def test_thousands_of_elections_leave_nothing_behind_in_the_replicas() -> None:
    check_elections(5_000)


# --- the shell of a coordinator ---

# What belongs to the loop, the network below us, or to nobody.
FOREIGN = (asyncio.AbstractEventLoop, asyncio.Future, asyncio.Handle, random.Random, Settings)


def is_quiet(coordinator: Coordinator) -> bool:
    durable = coordinator.durable
    return not (len(coordinator.runners) or durable._rows or durable.is_writing)


def check_shell(folder: Path, rounds: int) -> None:
    """Have commands, polls and jobs come and go on three coordinators in this process."""

    async def main() -> None:
        settings = Settings(
            tick_interval_ms=20, log_window_slots=20, log_tail_slots=20, program_unused_max_ms=200
        )
        async with members(3, folder, settings) as of:
            leader = await of.leader()
            number = 0

            async def round_of_all() -> None:
                nonlocal number
                number += 1
                incarnation = Incarnation(f"{number:016x}")
                join = JoinClient(f"client {number}", incarnation, None, "host", 1)
                cid = (await decide(leader, join))["cid"]
                path = f"/v1/view?cid={cid}&since=0&incarnation={incarnation}"
                (await leader.ask("GET", path)).checked()
                job = (await decide(leader, submission(number, f"{number:064x}")))["job"]
                (await leader.ask("GET", f"/v1/jobs/{job}")).checked()
                assert (await leader.ask("GET", f"/v1/archives/{number:064x}")).status == 503
                await decide(leader, CancelJob("canceller", number, job, "enough"))
                await decide(leader, ForgetJob("forgetter", number, job))
                await decide(leader, LeaveClient(cid, incarnation))

            async def measured(rounds: int) -> Counter[str]:
                for _ in range(rounds):
                    await round_of_all()
                for member in of.all:
                    await until(partial(is_quiet, member.coordinator), "nothing is left to do")
                # The state has limits in log time, and tests of its own above.
                roots = [member.coordinator for member in of.all]
                return sizes(*roots, skip=(*FOREIGN, Schedule, MemoryReplicaStore))

            await measured(15)
            before = await measured(5)
            for _ in range(3):
                before |= await measured(5)
            grown = growth(before, await measured(rounds), slack=SLACK)
            assert not grown, "\n".join(map(str, grown.items()))

    run(main, limit_s=60 + rounds)


@pytest.mark.slow
def test_coordinators_shells_keep_nothing_of_what_came_and_went(tmp_path: Path) -> None:
    check_shell(tmp_path, 40)


# --- a client ---


def check_client(days: int) -> None:
    """Have tasks of one long job done, failed and dropped, and other jobs come and go."""
    bench = Bench(slots=2)
    bench.serving(1, 2)
    tid = 0
    job = 1

    def effects() -> list[Effect]:
        """Take what is to be done; what is reported is acknowledged at once."""
        found: list[Effect] = []
        while more := bench.effects():
            found += more
            for one in more:
                if isinstance(one, SendReport):
                    bench.acknowledged(one.request)
        return found

    def day() -> None:
        nonlocal tid, job
        tid += 2
        bench.view(task(tid, name=f"name {tid}"), task(tid + 1, name="fails"))
        for one in effects():
            if isinstance(one, RunTask):
                bench.now_us += 1_000
                if one.assignment.tid == tid:
                    bench.done(one.node, one.id)
                else:
                    bench.failed(one.node, one.id, TaskError("day's failure", retry=True))
        effects()
        bench.stored(tid)
        effects()
        bench.view(drop=(Drop(1, tid, None),))
        bench.view()
        job += 1
        program = f"{job:064x}"
        bench.view(replace(task(1), job=job), jobs=(JobEntry(job, program, COMMAND),))
        effects()
        bench.workbench.program_failed(program, "no such archive", bench.now_ms)
        effects()
        bench.view(drop_jobs=(DropJob(job, ()),))
        bench.pass_time(6_000)
        effects()

    def live(days: int) -> Counter[str]:
        for _ in range(days):
            day()
        return sizes(bench.workbench, skip=(Settings, type(RULES)))

    live(200)  # Programs and names of tasks are remembered up to a limit.
    before = live(10)
    grown = growth(before, live(days), slack=SLACK)
    assert not grown, grown


@pytest.mark.slow
def test_days_leave_nothing_behind_in_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_ESTIMATES_MAX", 20)
    check_client(150)


# --- the host of a scheduler ---


def check_host(events: int) -> None:
    """Tell a scheduler of many events; it answers each, in turn with something and nothing."""
    history = History(1)
    host = SchedulerHost(
        job=JobId(7),
        replica=ReplicaId(1),
        settings=Settings(),
        events=history.events,
        answers={},
        answered_end=(0, 0),
        next_tid=0,
        now_ms=0,
    )
    host.lead(0, is_leader=True)
    number = 0

    def effects() -> None:
        while host.effects() is not None:
            pass

    def live(events: int) -> Counter[str]:
        nonlocal number
        for _ in range(events):
            commands = (TaskSpec("map"),) if number % 2 else ()
            host.answered([SchedulerAnswer(number, 0, True, commands)], number)
            effects()
            host.answers_chosen(history.choose(*commands), number)
            host.events_chosen(history.add_events(1), number)
            effects()
            number += 1
        return sizes(host, skip=(Settings, type(RULES)))

    effects()
    host.ready(0)
    effects()
    live(100)  # The last chosen answers are kept, and what may be in the pipe.
    before = live(10)
    grown = growth(before, live(events), slack=SLACK)
    assert not grown, grown


def test_many_events_leave_nothing_behind_in_the_host_of_a_scheduler() -> None:
    check_host(2_000)
