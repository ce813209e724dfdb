"""Jobs that are served by nodes which people attach to clients by hand."""

from __future__ import annotations

from typing import Any

from tasksprint.coordination.applied import Applied
from tasksprint.coordination.commands import NodesAttached
from tasksprint.ids import JobId
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import FakeClient, World, reply_of

GPU = '{"node":"attached:gpu"}'
MAP = TaskSpec("map")


def attach(client: FakeClient, request: int, **nodes: int) -> Applied:
    return client.world.apply(
        NodesAttached(client.cid, client.incarnation, request, tuple(nodes.items()))
    )


def assigned(client: FakeClient) -> list[tuple[int, int]]:
    client.poll()
    client.check_followed()
    return sorted((one.job, one.tid) for one in client.assigned.values())


def obstacle(world: World, job: JobId) -> Any:
    summary = world.schedule.job_summary(job)
    assert summary is not None
    found = summary["obstacle"]
    return f"{found['text']}; {found['hint']}" if isinstance(found, dict) else found


def test_a_job_waits_until_its_nodes_are_attached_and_keeps_no_slot_from_others() -> None:
    world = World()
    client = world.join(slots=1)
    waiting = world.submit(manifest=GPU)
    world.answer(waiting, MAP, MAP)
    assert obstacle(world, waiting) == (
        "no node is attached as 'gpu'; start one with: tasksprint node --exec PROGRAM --name gpu"
    )
    other = world.submit()
    world.answer(other, MAP)
    assert assigned(client) == [(other, 0)]
    assert obstacle(world, other) is None
    attach(client, 1, gpu=1, unrelated=5)
    assert assigned(client) == [(waiting, 0), (other, 0)]
    assert obstacle(world, waiting) is None
    world.restart()
    client.work()
    assert assigned(client) == [(waiting, 1)]


def test_tasks_go_to_the_clients_that_have_such_nodes() -> None:
    world = World()
    without, one, two = world.join("a", slots=8), world.join("b"), world.join("c")
    attach(one, 1, gpu=1)
    attach(two, 1, gpu=2)
    job = world.submit(manifest=GPU)
    world.answer(job, *[MAP] * 5)
    assert assigned(without) == []
    assert assigned(one) == [(job, 0)]
    assert assigned(two) == [(job, 1), (job, 2)]
    world.restart()
    two.work(1)
    # These tasks are short, as is known now: several are handed out to each node.
    assert world.states(job) == "adaaa"
    assert assigned(one) + assigned(two) == [(job, 0), (job, 4), (job, 2), (job, 3)]


def test_tasks_leave_a_client_with_its_last_such_node() -> None:
    world = World()
    one = world.join("a")
    attach(one, 1, gpu=2)
    job = world.submit(manifest=GPU)
    world.answer(job, MAP, MAP)
    assert assigned(one) == [(job, 0), (job, 1)]
    attach(one, 2, gpu=1)
    assert assigned(one) == [(job, 0), (job, 1)], "the other node can still run them"
    attach(one, 3)
    assert assigned(one) == []
    assert world.states(job) == "rr"
    assert obstacle(world, job) is not None
    two = world.join("b")
    attach(two, 1, gpu=2)
    assert assigned(two) == [(job, 0), (job, 1)]
    info = world.schedule.task_info(job, 0)  # type: ignore[arg-type]
    assert info is not None
    assert (info["attempts"], info["failures"]) == (2, 0)


def test_what_is_told_late_twice_or_by_a_former_start_changes_nothing() -> None:
    world = World()
    client = world.join("a")
    attach(client, 2, gpu=1)
    digest = world.schedule.digest
    assert reply_of(attach(client, 1)) == {}
    assert reply_of(attach(client, 2)) == {}
    assert world.schedule.digest == digest
    former = NodesAttached(client.cid, client.incarnation, 9, (("gpu", 7),))
    client.join()
    assert "error" in reply_of(world.apply(former))
    job = world.submit(manifest=GPU)
    world.answer(job, MAP)
    assert assigned(client) == [], "a new start has no nodes until it says so"
    attach(client, 1, gpu=1)
    assert assigned(client) == [(job, 0)]


def test_a_dead_client_has_no_attached_nodes() -> None:
    world = World()
    client = world.join("a")
    attach(client, 1, gpu=1)
    job = world.submit(manifest=GPU)
    world.answer(job, MAP)
    client.leave()
    assert world.states(job) == "r"
    assert obstacle(world, job) is not None
    world.restart()
    assert world.states(job) == "r"


def test_nothing_is_placed_ahead_of_need_on_attached_nodes() -> None:
    world = World()
    client = world.join("a")
    attach(client, 1, gpu=1)
    job = world.submit(manifest=GPU)
    world.answer(job, MAP)
    client.work()  # now tasks of this name are known to be short
    world.answer(job, MAP, TaskSpec("map", pretasks=(1,), prekeys=("k",)))
    assert assigned(client) == [(job, 1)]
    client.work()
    assert assigned(client) == [(job, 2)]
