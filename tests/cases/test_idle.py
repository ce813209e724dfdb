"""Costs that grow with what is idle: a task must not pay for jobs and clients that wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasksprint.coordination.commands import (
    Answer,
    AnswerPart,
    Completion,
    JoinClient,
    NodesAttached,
    Report,
    SubmitJob,
    Tick,
    encode_command,
)
from tasksprint.coordination.schedule import Schedule
from tasksprint.coordination.view import View
from tasksprint.execution.effects import NodeId
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot
from tasksprint.scheduler_commands import StartTimer
from tasksprint.settings import RULES, Settings
from tasksprint.task_spec import TaskSpec
from tests.cases.work import steps_of
from tests.coordination.world import look_inside
from tests.execution.helpers import RESULT, Bench, Reply, task
from tests.roles.members import members
from tests.roles.test_coordinator import decide, run, submission, until

BATCH = 20
ME = Incarnation("aa")


class Busy:
    """A schedule with one job and one client at work, and others that wait."""

    def __init__(self, *, jobs: int, clients: int, attached: int = 0) -> None:
        self.schedule = Schedule(cluster="c1", members=(ReplicaId(1),), rules=RULES)
        self.slot = Slot(0)
        self.request = 0
        self.since = Slot(0)
        self.apply(JoinClient("worker", ME, None, "host", 2))
        for number in range(clients):
            cid, incarnation = ClientId(number + 2), Incarnation(f"b{number}")
            self.apply(JoinClient(f"idle {number}", incarnation, None, "host", 0))
            name = "crowd" if number < attached else f"elsewhere {number}"
            self.apply(NodesAttached(cid, incarnation, 1, ((name, 1),)))
        self.job = self.submit("busy", '{"node":"node.py"}')
        for number in range(jobs):
            # Its task waits for nodes that are attached, but busy, or for some that aren't.
            name = "crowd" if number < 2 * attached else "nobody"
            job = self.submit(f"idle {number}", f'{{"node":"attached:{name}"}}')
            self.answer(job, TaskSpec("wait", "[]"), StartTimer(1, 10**9))
        self.cycle()

    def apply(self, *commands: object) -> None:
        self.slot = Slot(self.slot + 1)
        data = tuple(encode_command(command) for command in commands)  # type: ignore[arg-type]
        self.schedule.apply(self.slot, data)

    def submit(self, name: str, manifest: str) -> JobId:
        self.apply(SubmitJob(name, 1, name, 7, "{}", "p" * 64, manifest))
        job = JobId(len(self.schedule.jobs()))
        self.answer_rest(job, left=1)
        return job

    def answer_rest(self, job: JobId, *, left: int) -> None:
        history = self.schedule.scheduler_history(job)
        next_event, end_event = history.answered_end[0], history.event_count - left
        if next_event < end_event:
            self.apply(Answer(job, (), ((next_event, end_event),)))

    def answer(self, job: JobId, *commands: TaskSpec | StartTimer) -> None:
        history = self.schedule.scheduler_history(job)
        part = AnswerPart(*history.answered_end, False, history.next_tid, commands)
        self.apply(Answer(job, (part,)))

    def poll(self) -> View:
        view = self.schedule.view(ClientId(1), ME, self.since)
        assert view is not None
        self.since = view.version
        return view

    def cycle(self) -> None:
        """Start some tasks, hand them out, and take their results."""
        self.answer(self.job, *[TaskSpec("map", "[]") for _ in range(BATCH)])
        done = 0
        while done < BATCH:
            completions = tuple(
                Completion(one.job, one.tid, one.attempt, "d" * 64, 10, None, 100, {})
                for one in self.poll().run
            )
            done += len(completions)
            self.request += 1
            self.apply(Report(ClientId(1), ME, self.request, self.request, completions, (), ()))
        self.apply(Tick(500, 1_000_000 + self.slot))
        assert self.schedule.next_timer_ms is not None or not look_inside(self.schedule).due

    def steps(self) -> int:
        self.cycle()
        return steps_of(self.cycle)


@pytest.mark.parametrize("attached", [0, 20])
def test_entries_and_views_cost_the_same_beside_idle_jobs_and_clients(attached: int) -> None:
    few = Busy(jobs=3, clients=3)
    many = Busy(jobs=60, clients=60, attached=attached)
    many.schedule.check()
    assert many.steps() <= 1.02 * few.steps()


@pytest.mark.long
def test_entries_and_views_cost_the_same_beside_a_thousand_idle_jobs_and_clients() -> None:
    few = Busy(jobs=3, clients=3)
    many = Busy(jobs=1_000, clients=1_000, attached=100)
    assert many.steps() <= 1.02 * few.steps()


def test_turn_of_a_coordinator_costs_the_same_beside_idle_jobs(tmp_path: Path) -> None:
    """Its jobs wait for an archive that nobody has: their schedulers have nothing to do."""

    async def turn_steps(folder: Path, jobs: int) -> int:
        folder.mkdir()
        async with members(1, folder, Settings(tick_interval_ms=10**9)) as of:
            leader = await of.leader()
            for number in range(jobs):
                await decide(leader, submission(number, "0" * 64))
            coordinator = leader.coordinator
            await until(lambda: len(coordinator.runners) == jobs, "all are about to run")
            await until(
                lambda: not coordinator.durable.is_writing and not coordinator.durable._rows,
                "all is written",
            )
            coordinator.turns.take()
            return steps_of(coordinator.turns.take)

    async def main() -> None:
        few = await turn_steps(tmp_path / "few", 3)
        many = await turn_steps(tmp_path / "many", 40)
        assert many <= few + 10, (many, few)

    run(main)


def answer_steps(nodes: int) -> int:
    """Return what one more answer costs a client with so many nodes, all of which are busy."""
    bench = Bench(slots=nodes)
    bench.serving(*range(1, nodes + 1))
    bench.view(*[task(tid) for tid in range(2 * nodes)])
    bench.effects()

    def answer() -> None:
        reply = Reply(bench.workbench._nodes.nodes[NodeId(1)].last_id, RESULT)
        bench.workbench.node_replied(NodeId(1), [reply], bench.now_us)
        assert bench.workbench.effects(bench.now_us)

    answer()
    steps = steps_of(answer)
    bench.workbench.check()
    return steps


def test_answer_of_a_node_costs_the_same_beside_busy_nodes() -> None:
    assert answer_steps(60) <= 1.02 * answer_steps(3)
