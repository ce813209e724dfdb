"""A small language for stories about the state machine; each step with what it leads to.

    submit                                 a job is submitted
    answer 1: start map; start merge 0,1   the job's scheduler answers its next event
    quiet                                  all schedulers say nothing to what waits
    join a 2                               client a starts (again), with 2 nodes
    work a [2] [salt]                      it completes up to 2 tasks, and reports them
    fail a 3 / lose a 3                    an attempt fails / a result is gone
    silent a, leave a                      it is declared dead / it leaves
    tick 500, restart                      log time passes / a replica restarts from its rows

`start NAME [PRETASKS] [KEYS]`, `kill TID`, `finish TIDS`, `release TID`, `timer N MS`.
"""

from __future__ import annotations

from tasksprint.coordination.applied import Applied
from tasksprint.coordination.commands import Lost
from tasksprint.coordination.view import Assignment, View
from tasksprint.ids import JobId, TaskId
from tasksprint.scheduler_commands import (
    FinishJob,
    KillTask,
    ReleaseTasks,
    SchedulerCommand,
    StartTimer,
)
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import FakeClient, World, look_inside


def replay(text: str) -> str:
    """Return the story with all outcomes as they are."""
    story = _Story()
    blocks: list[str] = []
    for block in text.split("\n\n"):
        step = block.split("\n----")[0].rstrip("\n")
        order = [line for line in step.split("\n") if line and not line.startswith("#")]
        if not order:
            blocks.append(step)
            continue
        outcome = story.step(order[0])
        blocks.append("\n".join([step, "----", *outcome]))
    return "\n\n".join(blocks) + "\n"


class _Story(World):
    def __init__(self) -> None:
        super().__init__()
        self.clients: dict[str, FakeClient] = {}
        self.lines: list[str] = []

    def apply(self, *commands: object) -> Applied:
        applied = super().apply(*commands)  # type: ignore[arg-type]
        for job, event in applied.events:
            self.lines.append(f"event to job {job}: {event.line.decode()}")
        self.lines += [f"note: {note}" for note in applied.notes]
        return applied

    def step(self, order: str) -> list[str]:
        self.lines = []
        self._do(order)
        for client in self.clients.values():
            view = client.poll()
            if view is not None:
                self.lines += _of_view(client.name, view)
        for job in self.schedule.running_jobs():
            tasks = look_inside(self.schedule).jobs[job].tasks
            if tasks:
                states = ", ".join(f"{tid} {self.state_of(job, tid)}" for tid in tasks)
                self.lines.append(f"job {job}: {states}")
        return self.lines

    def _do(self, order: str) -> None:
        verb, *words = order.replace(":", " :").split()
        match verb:
            case "submit":
                self.submit()
            case "answer":
                commands = order.split(":", 1)[1].split(";")
                self.answer(JobId(int(words[0])), *[_command(one.split()) for one in commands])
            case "quiet":
                for job in self.schedule.running_jobs():
                    self.answer_rest(job)
            case "join":
                client = self.clients.setdefault(
                    words[0], FakeClient(self, words[0], int(words[1]))
                )
                client.join()
            case "work":
                limit = int(words[1]) if len(words) > 1 else 1_000
                self.clients[words[0]].work(limit, words[2] if len(words) > 2 else "")
            case "fail":
                self.clients[words[0]].fail(int(words[1]))
            case "lose":
                client, place = self.clients[words[0]], (JobId(1), TaskId(int(words[1])))
                del client.values[place]
                client.report(lost=[Lost(*place)])
            case "silent":
                self.tick(500, self.clients[words[0]].silent())
            case "leave":
                self.clients[words[0]].leave()
            case "tick":
                self.tick(int(words[0]))
            case "restart":
                self.restart()
            case _:
                raise AssertionError(f"unknown step {order!r}")


def _command(words: list[str]) -> SchedulerCommand:
    verb, *rest = words
    match verb:
        case "start":
            pretasks = tuple(TaskId(int(tid)) for tid in rest[1].split(",")) if rest[1:] else ()
            keys = tuple(rest[2].split(",")) if rest[2:] else ()
            return TaskSpec(rest[0], "[]", pretasks, ("result",) * len(pretasks), keys)
        case "kill":
            return KillTask(TaskId(int(rest[0])))
        case "finish":
            return FinishJob(tuple(TaskId(int(tid)) for tid in rest[0].split(",")), '"done"')
        case "release":
            return ReleaseTasks((TaskId(int(rest[0])),))
        case "timer":
            return StartTimer(int(rest[0]), int(rest[1]))
        case _:
            raise AssertionError(f"unknown command {words!r}")


def _of_view(name: str, view: View) -> list[str]:
    lines = [f"{name}: stop job {one.job} task {one.tid}.{one.attempt}" for one in view.stop]
    lines += [f"{name}: drop job {one.job} but for {list(one.keep)}" for one in view.drop_jobs]
    lines += [f"{name}: drop job {one.job} task {one.tid}" for one in view.drop]
    lines += [f"{name}: run {_of_assignment(one)}" for one in view.run]
    if view.whole and not view.run:
        lines.append(f"{name}: run nothing")
    return lines


def _of_assignment(one: Assignment) -> str:
    inputs = ", ".join(
        f"{item.tid} from {list(item.holders)}" if item.digest else f"{item.tid} made here"
        for item in one.inputs
    )
    return f"job {one.job} task {one.tid}.{one.attempt} {one.spec.name}" + (
        f" with {inputs}" if inputs else ""
    )
