"""A story that leaves rows in every table, with every member that a row can have.

Its log and its rows are golden: releases that apply the same rules write the same rows.
"""

from __future__ import annotations

from dataclasses import replace

from tasksprint.coordination.commands import (
    CancelJob,
    Failure,
    ForgetJob,
    JobObserved,
    Lost,
    NodesAttached,
    SchedulerOut,
    SilentClient,
    SubmitJob,
    Tick,
)
from tasksprint.coordination.observations import DIFFERS, NODE_RUNTIME
from tasksprint.ids import ClientId, JobId, ReplicaId, Slot, TaskId
from tasksprint.scheduler_commands import (
    FailJob,
    FinishJob,
    HandleEvents,
    KillTask,
    ReleaseTasks,
    StartTimer,
    WriteLog,
)
from tasksprint.settings import RULES, Rules
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World

__all__ = ["tell"]


def tell(rules: Rules = RULES) -> World:
    """Return the world at the end of the story."""
    world = World(rules=rules)
    world.apply(Tick(500, 1_700_000_000_000))
    first, second = world.join("a", slots=2), world.join("b", slots=1)
    job = world.submit(name="ж 1", params='{"n": [1.0]}')
    one, two = TaskId(0), TaskId(1)
    world.answer(
        job,
        TaskSpec("map", '["' + "x" * 600 + '"]', keys=("result",), retries=1, timeout_ms=60_000),
        TaskSpec("merge", '["ü"]', (one, one), ("result", "more"), ("result",)),
        last=False,
    )
    world.answer(job, TaskSpec("late", "[1]", (two,), ("result",)), StartTimer(7, 900))
    world.answer(job, StartTimer(8, 1_000_000), WriteLog("half way ☕"))
    first.fail(0, error="boom\n\x1b")
    world.tick(1_000)
    for client in (first, second, first):
        client.work()
    for client in (first, second):
        if (job, one) in client.values:
            del client.values[job, one]
            client.report(lost=[Lost(job, one)])
    world.apply(NodesAttached(first.cid, first.incarnation, 1, (("gpu", 2), ("шина", 1))))
    world.submit(name="attached", manifest='{"node":"attached:gpu","retries":0,"timeout_ms":9}')
    attached = JobId(2)
    world.answer(attached, TaskSpec("wait"))
    world.apply(SchedulerOut(ReplicaId(3), attached, "crashed", "exit code 1"))
    world.apply(JobObserved(attached, NODE_RUNTIME, "client 1", "cpython 3.12.1 x86_64"))
    world.apply(JobObserved(attached, NODE_RUNTIME, "client 2", "cpython 3.11.2 x86_64"))
    world.apply(JobObserved(attached, DIFFERS, "replica 2", "event 1: the log says nothing"))
    world.tick(500, SilentClient(second.cid, second.incarnation, second.request))
    world.answer_rest(job)
    for _ in range(4):
        first.work()
        world.answer_rest(job)
    finished = world.submit(name="finished")
    world.answer(finished, TaskSpec("only"), TaskSpec("gone"))
    first.work()
    world.answer(finished, KillTask(one), ReleaseTasks((two,)))
    world.answer(finished, FinishJob((one,), '{"a":1}'))
    if rules.version > 1:
        quiet = world.submit(name="can't go on")
        world.answer(quiet, HandleEvents(("task_done", "task_failed", "timer")), WriteLog("hi"))
        told = world.submit(name="hears of clients")
        world.answer(told, HandleEvents(("client_dead",)))
    waiting = world.submit(name="waits for what it named")
    world.answer(waiting, TaskSpec("kept"))
    first.work()
    del first.values[waiting, one]
    first.report(lost=[Lost(waiting, one)])
    world.answer(waiting, FinishJob((one,), '"done"'))
    failed = world.submit(name="failed")
    world.answer(failed, TaskSpec("bad", retries=0), TaskSpec("raw", keys=("raw", "text")))
    first.poll()
    raw = first.run(first.assigned[failed, two])
    inline = {"text": ("json", '{"a": [1.0, 2]}'), "raw": ("bytes", "AAECAw==")}
    first.report(
        completions=[replace(raw, inline=inline)],
        failures=[Failure(failed, one, 1, "boom", True, {"run_ms": 5, "traceback": "line 1"})],
    )
    world.answer(failed, FailJob("no way"))
    cancelled = world.submit(name="cancelled")
    world.apply(CancelJob("me", 1, cancelled, "enough"))
    forgotten = world.submit(name="forgotten")
    world.answer(forgotten, TaskSpec("base", '["' + "y" * 600 + '"]'))
    world.apply(CancelJob("me", 2, forgotten, "enough"))
    world.apply(ForgetJob("me", 3, forgotten))
    world.apply(SubmitJob("me", 4, "refused", 7, "{}", "p" * 64, '{"node":7}'))
    world.apply(b'["unknown",1]', b"nonsense")
    third = world.join("c", slots=0)
    third.leave()
    second.join()
    first.join()
    world.apply(NodesAttached(first.cid, first.incarnation, 1, (("gpu", 2),)))
    world.apply(Tick(1_000, 1_700_000_009_000, followed=((ClientId(1), Slot(world.slot)),)))
    return world
