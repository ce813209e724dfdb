"""What counts as a result, and what becomes of attempts that fail or are void."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.coordination.commands import Failure
from tasksprint.coordination.view import Drop
from tasksprint.ids import JobId
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World, digest_of

MAP = TaskSpec("map")
USE = TaskSpec("use", pretasks=(0,), prekeys=("r",))


def holders(world: World, job: JobId, tid: int) -> object:
    info = world.schedule.task_info(job, tid)
    assert info is not None
    return info["holders"]


def test_the_first_completion_makes_the_result_and_a_copy_makes_a_holder() -> None:
    world = World()
    first = world.join("a")
    job = world.submit()
    world.answer(job, MAP)
    first.poll()
    done = first.run(first.assigned[job, 0])
    second = world.join("b")
    world.tick(500, first.silent())
    second.work()
    assert holders(world, job, 0) == [2]
    first.values = {}
    first.join()
    first.report(completions=[done])
    assert holders(world, job, 0) == [2, 1]
    assert world.kinds(job).count("task_done") == 1


def test_a_copy_with_other_bytes_is_no_holder_and_is_dropped() -> None:
    world = World()
    first = world.join("a")
    job = world.submit()
    world.answer(job, MAP)
    first.poll()
    other_bytes = first.run(first.assigned[job, 0], salt="other")
    second = world.join("b")
    world.tick(500, first.silent())
    second.work()
    values, first.values = first.values, {}
    first.join()
    first.values = values
    first.report(completions=[other_bytes])
    assert holders(world, job, 0) == [2]
    view = first.poll()
    assert view is not None
    assert view.drop == (Drop(job, 0, other_bytes.result_digest),)
    assert first.values == {}


def test_an_attempt_that_consumed_other_bytes_is_void_and_placed_anew() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP, USE)
    client.work(1)
    client.poll()
    completion = client.run(client.assigned[job, 1])
    client.report(completions=[replace(completion, inputs_digest=digest_of("other"))])
    assert world.notes[-1] == (
        "job=1 tid=1 attempt=1 cid=1 void: it consumed bytes that aren't the inputs' results"
    )
    view = client.poll()
    assert view is not None
    assert view.drop == (Drop(job, 1, completion.result_digest),)
    assert [(one.tid, one.attempt) for one in view.run] == [(1, 2)]
    assert client.work() == [1]
    assert world.states(job) == "dd"


def test_an_attempt_that_consumed_something_though_it_has_no_inputs_is_void() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.poll()
    completion = client.run(client.assigned[job, 0])
    client.report(completions=[replace(completion, inputs_digest=digest_of("x"))])
    assert world.states(job) == "a"


def test_a_report_in_the_wrong_order_counts_all_the_same() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    map_after = [TaskSpec("map", pretasks=(tid,), prekeys=("r",)) for tid in range(6)]
    world.answer(job, MAP, *map_after)
    client.work()
    client.poll()
    completions = [client.run(one) for one in list(client.assigned.values())]
    assert len(completions) == 6
    client.report(completions=completions[::-1])
    assert world.states(job) == "d" * 7
    told = [event["tid"] for event in world.events[job] if event["kind"] == "task_done"]
    assert told == list(range(7))


def test_a_completion_without_its_input_is_void() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.work()
    world.answer(job, *[TaskSpec("map", pretasks=(tid,), prekeys=("r",)) for tid in range(3)])
    client.poll()
    completions = [client.run(one) for one in list(client.assigned.values())]
    client.report(completions=[completions[1]])
    assert world.states(job) == "daww"
    client.report(completions=[completions[0]])
    client.work()
    client.work()
    assert world.states(job) == "dddd"


def failed(world: World, job: JobId) -> list[dict[str, object]]:
    return [event for event in world.events[job] if event["kind"] == "task_failed"]


def test_a_task_is_tried_again_and_then_given_up_with_its_last_cause() -> None:
    world = World()
    world.join("a")
    client = world.join("b")
    world.join("c")
    job = world.submit()
    world.answer(job, TaskSpec("merge", retries=2), USE)
    for name, attempt in (("a", 1), ("b", 2), ("a", 3)):
        del name
        task = world.state.jobs[job].tasks[0]  # type: ignore[index]
        assert task.attempt == attempt
        owner = world.state.clients[task.cid]  # type: ignore[index]
        failure = Failure(job, task.tid, attempt, "exit code 3", False, {"exit_code": 3})
        client.cid, client.incarnation = owner.cid, owner.incarnation
        record = world.state.senders.get(owner.sender)
        client.request = record.highest if record is not None else 0
        client.report(failures=[failure])
    assert failed(world, job) == [
        {
            "event": 4,
            "kind": "task_failed",
            "time_ms": 0,
            "tid": 0,
            "error": "task 0 'merge' failed after 3 attempts; last on client 1: exit code 3",
            "detail": {
                "exit_code": 3,
                "name": "merge",
                "attempt": 3,
                "attempts": 3,
                "cid": 1,
                "host": "a",
            },
        }
    ]
    assert world.states(job) == "fw", "the scheduler decides what that means"
    assert world.schedule.is_running(job)
    info = world.schedule.task_info(job, 0)
    assert info is not None
    assert info["error"] == failed(world, job)[0]["error"]


@pytest.mark.parametrize(
    ("manifest", "retries", "attempts"),
    [("{}", None, 3), ('{"retries":0}', None, 1), ('{"retries":0}', 1, 2)],
)
def test_retries_are_the_tasks_or_the_manifests_or_the_default(
    manifest: str, retries: int | None, attempts: int
) -> None:
    world = World()
    client = world.join()
    job = world.submit(manifest=manifest)
    world.answer(job, TaskSpec("map", retries=retries))
    for _ in range(attempts):
        assert world.states(job) == "a"
        client.fail(0)
    assert world.states(job) == "f"


def test_a_fatal_failure_is_not_tried_again() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.fail(0, fatal=True, error="NaN under key 'x'")
    assert failed(world, job)[0]["error"] == (
        "task 0 'map' failed after 1 attempt; last on client 1: NaN under key 'x'"
    )


def test_a_failure_of_an_older_attempt_changes_nothing() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.fail(0)
    client.poll()
    applied = client.report(failures=[Failure(job, 0, 1, "late", True)])
    assert world.states(job) == "a"
    assert applied.clients == ()


def test_a_value_that_the_scheduler_asked_for_must_be_there() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, TaskSpec("merge", keys=("result",)))
    client.poll()
    completion = client.run(client.assigned[job, 0])
    client.report(completions=[replace(completion, inline={})])
    assert world.states(job) == "f"
    assert failed(world, job)[0]["error"] == (
        "task 0 'merge' failed after 1 attempt; last on client 1:"
        " task 0 'merge' returned no value under key 'result'"
    )
    client.poll()
    assert client.values == {}


@pytest.mark.parametrize(
    ("kind", "text", "size"),
    [("json", '"' + "é" * 50 + '"', 102), ("bytes", "A" * 136 + "AA==", 103)],
)
def test_a_value_for_the_scheduler_has_a_limit(kind: str, text: str, size: int) -> None:
    world = World()
    world = World(rules=replace(world.rules, inline_value_bytes_max=101))
    client = world.join()
    job = world.submit()
    world.answer(job, TaskSpec("merge", keys=("result",)))
    client.poll()
    completion = client.run(client.assigned[job, 0])
    client.report(completions=[replace(completion, inline={"result": (kind, text)})])
    assert failed(world, job)[0]["error"] == (
        f"task 0 'merge' failed after 1 attempt; last on client 1: task 0 'merge' returned"
        f" {size} bytes under key 'result', more than 101 (inline_value_bytes_max);"
        " return large values under keys that start_task doesn't list"
    )


def test_all_values_for_the_scheduler_have_a_limit_together() -> None:
    world = World()
    world = World(rules=replace(world.rules, inline_task_bytes_max=10))
    client = world.join()
    job = world.submit()
    world.answer(job, TaskSpec("merge", keys=("a", "b")))
    client.poll()
    completion = client.run(client.assigned[job, 0])
    client.report(completions=[completion])
    assert failed(world, job)[0]["error"] == (
        "task 0 'merge' failed after 1 attempt; last on client 1: task 0 'merge' returned"
        " 12 bytes under its keys, more than 10 (inline_task_bytes_max);"
        " return large values under keys that start_task doesn't list"
    )


def test_a_completion_of_a_task_that_was_never_started_is_dropped() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.poll()
    completion = replace(client.run(client.assigned[job, 0]), tid=77)
    client.report(completions=[completion])
    view = client.poll()
    assert view is not None
    assert view.drop == (Drop(job, 77, None),)
    assert world.states(job) == "a"
