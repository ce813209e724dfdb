"""Random histories for the state machine: schedulers, clients and time do as they like.

One `Chaos` is driven by a list of small numbers, so that hypothesis can shrink a history
that breaks something. After each entry the invariants hold (`World.apply`) and twins,
which were made from the rows at some earlier entry, have the same digest.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from tasksprint.coordination.commands import (
    CancelJob,
    Command,
    Completion,
    Failure,
    Lost,
    Report,
    SchedulerOut,
)
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.scheduler_commands import (
    EVENT_KINDS,
    FailJob,
    FinishJob,
    HandleEvents,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
    WriteLog,
)
from tasksprint.settings import Rules
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import FakeClient, World

# Small limits, so that short histories meet them.
RULES = Rules(
    ahead_us=3_000, assigned_max=12, request_record_ms=10_000, idle_job_ms=1_000
)
TWINS_MAX = 2
NAMES = ("map", "merge", "long", "new")
RUN_US = {"map": 200, "merge": 700, "long": 50_000, "new": 10}  # of a completion


class ChaosWorld(World):
    """A world whose entries go to twins, too."""

    def __init__(self, version: int) -> None:
        self.twins: list[Schedule] = []
        super().__init__(rules=replace(RULES, version=version))

    def apply(self, *commands: Command | bytes) -> Applied:
        applied = super().apply(*commands)
        for twin in self.twins:
            other = twin.apply(self.slot, self.log[-1])
            assert other.replies == applied.replies
            assert other.events == applied.events
            assert other.answers == applied.answers
            assert other.jobs == applied.jobs
            assert other.rows == applied.rows
            assert twin.digest == self.schedule.digest
        return applied

    def add_twin(self) -> None:
        rows = list(self.mirror.rows.values())
        twin = self.make_schedule(rows)
        twin.check()
        self.twins = [*self.twins[-TWINS_MAX + 1 :], twin]


class Chaos:
    """What happens, chosen by numbers."""

    def __init__(self, *, is_deterministic: bool, version: int = 2) -> None:
        self.world = ChaosWorld(version)
        self.is_deterministic = is_deterministic
        self.version = version
        self.clients: list[FakeClient] = []
        self.jobs: list[JobId] = []
        self.late: list[Completion] = []  # of attempts long forgotten
        self.sent: list[Report] = []
        self.salt = 0

    def run(self, steps: Iterable[tuple[int, int]]) -> None:
        actions = [
            (16, self.start_tasks),
            (60, self.work),
            (4, self.work_unreported),
            (6, self.fail),
            (5, self.lose),
            (7, self.join),
            (4, self.die),
            (2, self.leave),
            (2, self.kill),
            (4, self.release),
            (1, self.finish),
            (1, self.end),
            (4, self.tick),
            (3, self.repeat),
            (4, self.late_completions),
            (3, self.small_commands),
            (3, self.submit),
            (4, self.poll),
            (4, self.twin),
        ]
        table = [action for weight, action in actions for _ in range(weight)]
        self.submit(random.Random(1))
        self.join(random.Random(1))
        for choice, seed in steps:
            table[choice % len(table)](random.Random(seed))

    def settle(self) -> None:
        """Let well-behaved clients end what can end."""
        for client in self.clients:
            if client.poll() is None:
                client.join()
        if not any(client.slots for client in self.clients):
            self.clients.append(self.world.join("last", slots=1))
        for _ in range(400):
            for job in self.jobs:
                self.world.answer_rest(job)
            worked = [client.work() for client in self.clients]
            for client in self.clients:
                client.poll()
                client.check_followed()
            if not any(worked):
                break
        for job in self.running():
            states = self.world.states(job)
            assert "r" not in states, states
            assert "a" not in states, states
            self._check_waiting(job)

    def _check_waiting(self, job: JobId) -> None:
        """Whatever still waits does so because of a task that failed."""
        blocked: dict[int, None] = {}
        state = self.world.state.jobs[job]
        for tid, task in state.tasks.items():
            info = self.world.state_of(job, tid)
            if info == "failed":
                blocked[tid] = None
            elif info == "waiting":
                assert any(pretask in blocked for pretask in task.spec.pretasks), task
                blocked[tid] = None

    def running(self) -> list[JobId]:
        return [job for job in self.jobs if self.world.schedule.is_running(job)]

    # --- schedulers ---

    def submit(self, rng: random.Random) -> None:
        if len(self.running()) < 3:
            job = self.world.submit()
            self.jobs.append(job)
            if self.world.rules.version > 1 and rng.random() < 0.5:
                said = HandleEvents(tuple(rng.sample(EVENT_KINDS, rng.randint(0, 4))))
                self.world.answer(job, said, last=rng.random() < 0.8)

    def _answer(self, rng: random.Random, *commands: SchedulerCommand) -> None:
        """Answer the next event of some job, if one waits."""
        for job in rng.sample(self.running(), len(self.running())):
            state = self.world.state.jobs[job]
            if state.finishing is None and state.next_event < state.event_count:
                self.world.answer(job, *commands, last=rng.random() < 0.8)
                return

    def _tids(self, *states: str) -> list[tuple[JobId, TaskId]]:
        found = []
        for job in self.running():
            for tid, task in self.world.state.jobs[job].tasks.items():
                if self.world.state_of(job, tid) in states and not task.is_released:
                    found.append((job, tid))
        return found

    def _answer_of(self, job: JobId, *commands: SchedulerCommand) -> None:
        state = self.world.state.jobs[job]
        if state.finishing is None and state.next_event < state.event_count:
            self.world.answer(job, *commands)

    def start_tasks(self, rng: random.Random) -> None:
        for job in rng.sample(self.running(), min(1, len(self.running()))):
            state = self.world.state.jobs[job]
            usable = [
                tid
                for tid, task in state.tasks.items()
                if not task.is_released and self.world.state_of(job, tid) != "killed"
            ]
            commands: list[SchedulerCommand] = []
            next_tid = state.next_tid
            shape = rng.choice(["wide", "chain", "random", "random"])
            for _ in range(rng.randint(1, 8)):
                count = 0
                if usable:
                    count = {"wide": 0, "chain": 1, "random": rng.choice([0, 1, 1, 2, 3])}[shape]
                if shape == "chain" and usable:
                    pretasks = [usable[-1]]
                else:
                    pretasks = [rng.choice(usable) for _ in range(count)]
                commands.append(
                    TaskSpec(
                        rng.choice(NAMES),
                        "[]" if rng.random() < 0.9 else f'["{"x" * 600}"]',
                        tuple(pretasks),
                        ("result",) * len(pretasks),
                        ("result",) if rng.random() < 0.3 else (),
                        rng.choice([None, None, 0, 1]),
                        None,
                        next_tid % 3 - 1 if self.version > 1 else 0,
                    )
                )
                usable.append(next_tid)
                next_tid = TaskId(next_tid + 1)
            self._answer_of(job, *commands)

    def kill(self, rng: random.Random) -> None:
        tids = self._tids("waiting", "ready", "assigned", "done", "failed")
        if tids:
            job, tid = rng.choice(tids)
            self._answer_of(job, KillTask(tid))

    def release(self, rng: random.Random) -> None:
        tids = self._tids("done", "failed", "killed")
        if tids:
            job, tid = rng.choice(tids)
            self._answer_of(job, ReleaseTasks((tid,)))

    def finish(self, rng: random.Random) -> None:
        tids = self._tids("done")
        if tids and rng.random() < 0.4:
            job, tid = rng.choice(tids)
            self._answer_of(job, FinishJob((tid,), '{"x":1}'))

    def end(self, rng: random.Random) -> None:
        for job in self.running()[:1]:
            match rng.randint(0, 2):
                case 0:
                    self._answer_of(job, FailJob("no"))
                case 1:
                    self.world.apply(CancelJob("me", rng.randint(1, 9), job, "enough"))
                case _:
                    replica = ReplicaId(rng.randint(1, 3))
                    self.world.apply(SchedulerOut(replica, job, "crashed", "exit 1"))

    def small_commands(self, rng: random.Random) -> None:
        timer = StartTimer(rng.randint(0, 3), rng.choice([0, 500, 1_500]))
        self._answer(rng, WriteLog("hello"), timer)

    # --- clients ---

    def alive(self) -> list[FakeClient]:
        return [
            client
            for client in self.clients
            if self.world.schedule.view(client.cid, client.incarnation, client.since)
        ]

    def join(self, rng: random.Random) -> None:
        if len(self.clients) < 3:
            name = "abc"[len(self.clients)]
            self.clients.append(self.world.join(name, slots=rng.choice([0, 1, 1, 2, 3])))
            self.clients[-1].run_us = RUN_US
            return
        dead = [client for client in self.clients if client not in self.alive()]
        client = rng.choice(dead or self.clients)
        if client.slots == 0:
            client.slots = 1
        for place in list(client.values):
            if rng.random() < 0.1:
                del client.values[place]
        client.join()

    def die(self, rng: random.Random) -> None:
        alive = self.alive()
        if alive:
            client = rng.choice(alive)
            self.world.tick(500, client.silent())
            if rng.random() < 0.3:
                client.values = {}

    def leave(self, rng: random.Random) -> None:
        alive = self.alive()
        if alive:
            rng.choice(alive).leave()

    def work(self, rng: random.Random) -> None:
        alive = self.alive()
        if alive:
            client = rng.choice(alive)
            client.work(rng.choice([1, 2, 5, 100]), self._salt(rng))

    def _salt(self, rng: random.Random) -> object:
        if self.is_deterministic:
            return ""
        self.salt += rng.random() < 0.3
        return self.salt

    def work_unreported(self, rng: random.Random) -> None:
        """Complete tasks, and report them in some later life, in any order, or never."""
        alive = self.alive()
        if alive:
            client = rng.choice(alive)
            client.poll()
            for one in list(client.assigned.values())[: rng.randint(1, 4)]:
                if client.can_run(one):
                    self.late.append(client.run(one, self._salt(rng)))
            client.join()

    def late_completions(self, rng: random.Random) -> None:
        alive = self.alive()
        if alive and self.late:
            client = rng.choice(alive)
            chosen = rng.sample(self.late, rng.randint(1, min(4, len(self.late))))
            for completion in chosen:
                client.values[completion.job, completion.tid] = completion.result_digest
            client.report(completions=chosen)
            client.poll()

    def fail(self, rng: random.Random) -> None:
        for client in self.alive():
            client.poll()
            if client.assigned:
                one = rng.choice(list(client.assigned.values()))
                failure = Failure(one.job, one.tid, one.attempt, "boom", rng.random() < 0.1)
                client.report(failures=[failure])
                return

    def lose(self, rng: random.Random) -> None:
        for client in self.alive():
            client.poll()
            if client.values:
                job, tid = rng.choice(list(client.values))
                del client.values[job, tid]
                client.report(lost=[Lost(job, tid)])
                return

    def poll(self, rng: random.Random) -> None:
        for client in self.alive():
            client.poll()
            client.check_followed()

    # --- the rest ---

    def tick(self, rng: random.Random) -> None:
        self.world.tick(rng.choice([1, 500, 5_000]))

    def repeat(self, rng: random.Random) -> None:
        """Some old entry comes again, as a log may do with what was proposed twice."""
        self.world.apply(*rng.choice(self.world.log[-20:]))

    def twin(self, rng: random.Random) -> None:
        self.world.add_twin()
