"""Results whose last holder is gone: what is computed again, and what is noticed of it."""

from __future__ import annotations

from tasksprint.coordination.commands import Completion, Failure, Lost
from tasksprint.ids import JobId, TaskId
from tasksprint.scheduler_commands import FinishJob, ReleaseTasks
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import FakeClient, World

MAP = TaskSpec("map")


def after(*tids: int, keys: tuple[str, ...] = ()) -> TaskSpec:
    prekeys = ("r",) * len(tids)
    return TaskSpec("map", pretasks=tids, prekeys=prekeys, keys=keys)  # type: ignore[arg-type]


def told(world: World, job: JobId) -> list[object]:
    return [event["tid"] for event in world.events[job] if event["kind"] == "task_done"]


def error(world: World, job: JobId) -> object:
    summary = world.schedule.job_summary(job)
    assert summary is not None
    return summary["error"]


def test_a_lost_result_that_is_needed_is_computed_again_and_nobody_notices() -> None:
    world = World()
    first = world.join("a")
    job = world.submit()
    world.answer(job, MAP, TaskSpec("use", pretasks=(0,), prekeys=("r",)))
    first.work(1)
    second = world.join("b")
    world.tick(500, first.silent())
    assert world.states(job) == "aw"
    world.restart()
    assert second.work() == [0]
    assert second.work() == [1]
    assert world.states(job) == "dd"
    assert told(world, job) == [0, 1]


def test_a_lost_result_that_nobody_needs_is_left_alone() -> None:
    world = World()
    first = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0))
    first.work()
    first.work()
    world.join("b")
    world.tick(500, first.silent())
    assert world.states(job) == "dd"
    # Until somebody asks for it: then it comes back with its inputs.
    world.answer(job, after(1))
    assert world.states(job) == "aaa"


def test_a_lost_result_brings_back_its_whole_lineage() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, *[MAP, after(0), after(1), after(2), after(3)])
    client.work()
    client.work(3)
    assert world.states(job) == "dddda"
    other = world.join("b")
    world.tick(500, client.silent())
    assert "d" not in world.states(job)
    assert world.notes[-1] == "job=1 4 tasks are computed again: results lost or changed"
    other.work()
    assert world.states(job) == "ddddd"
    assert told(world, job) == [0, 1, 2, 3, 4]


def test_a_client_may_lose_a_single_result() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0), after(0))
    client.work(1)
    client.work(1)
    del client.values[job, 0]  # type: ignore[arg-type]
    client.report(lost=[Lost(job, 0)])  # type: ignore[arg-type]
    assert world.states(job) == "ada"
    assert client.work() == [0, 2]
    assert world.states(job) == "ddd"


def test_with_another_holder_nothing_is_computed_but_views_name_who_is_left() -> None:
    world = World()
    first = world.join("a", slots=1)
    second = world.join("b", slots=1)
    job = world.submit()
    world.answer(job, MAP)
    first.poll()
    done = first.run(first.assigned[job, 0])
    first.report(completions=[done])
    second.values[job, 0] = done.result_digest
    second.report(completions=[done])
    for name in ("x", "y"):
        world.answer(job, TaskSpec(name, pretasks=(0,), prekeys=("r",)))
    second.poll()
    (one,) = second.assigned.values()
    assert one.inputs[0].holders == (1, 2)
    world.restart()
    first.leave()
    view = second.poll()
    assert view is not None
    assert [item.holders for assigned in view.run for item in assigned.inputs] == [(2,)]
    assert world.states(job) == "dra"


def test_a_holder_that_comes_back_restores_the_result() -> None:
    world = World()
    first = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0))
    first.work(1)
    second = world.join("b")
    world.tick(500, first.silent())
    second.poll()
    assert world.states(job) == "aa"
    first.join()
    assert world.notes[-1] == "job=1 1 results that were lost came back"
    assert world.states(job) == "da"
    second.poll()
    assert (job, 0) not in second.assigned
    assert told(world, job) == [0]


def test_a_completion_that_used_the_lost_bytes_counts_all_the_same() -> None:
    world = World()
    first, second = world.join("a", slots=1), world.join("b", slots=2)
    job = world.submit()
    world.answer(job, MAP, MAP, TaskSpec("use", pretasks=(0,), prekeys=("r",)))
    first.work()
    second.work()
    assert world.states(job) == "dda"
    task = world.state.jobs[job].tasks[2]  # type: ignore[index]
    assert task.cid == 1
    first.poll()
    done = first.run(first.assigned[job, TaskId(2)])
    values, first.values = first.values, {}
    first.join()
    assert world.states(job) == "adw"
    first.values = values
    first.report(completions=[done])
    assert world.states(job) == "add"


def test_another_result_is_used_by_all_that_depend_on_it() -> None:
    world = World()
    first = world.join("a", slots=1)
    job = world.submit()
    world.answer(job, MAP, after(0), after(1), after(0))
    first.work()
    first.work(1)
    assert world.states(job) == "ddaa"
    second = world.join("b", slots=1)
    # Only task 1 survives, on a client that lost task 0.
    first.report(lost=[Lost(job, 0)])  # type: ignore[arg-type]
    del first.values[job, 0]  # type: ignore[arg-type]
    assert world.states(job)[1] == "d"
    old = first.values[job, 1]  # type: ignore[index]
    while world.states(job) != "d" * 4:
        first.work(1, salt="again")
        second.work(1, salt="again")
    assert "job=1 tid=0 has another result than before; what used it is computed again" in (
        world.notes
    )
    info = world.schedule.task_info(job, 1)  # type: ignore[arg-type]
    assert info is not None
    assert info["digest"] != old
    assert sorted(told(world, job)) == [0, 1, 2, 3]  # type: ignore[type-var]


def test_other_values_than_the_scheduler_was_told_fail_the_job_with_the_remedy() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("map", keys=("result",)), after(0))
    client.work(1)
    client.report(lost=[Lost(job, 0)])  # type: ignore[arg-type]
    client.work(1, salt="again")
    assert error(world, job) == (
        "task 0 'map' was computed again, after its result had been lost, and returned other"
        " values than its scheduler was told; let it depend on nothing but its arguments and"
        " its seed"
    )


def test_the_same_values_in_other_company_do_not_fail_the_job() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("map", keys=("result",)), after(0))
    client.poll()
    first = client.run(client.assigned[job, 0], salt=1)  # type: ignore[index]
    client.report(completions=[first])
    client.report(lost=[Lost(job, 0)])  # type: ignore[arg-type]
    client.poll()
    again = client.run(client.assigned[job, 0], salt=2)  # type: ignore[index]
    again.inline.update(first.inline)
    client.report(completions=[again])
    assert world.schedule.is_running(job)
    assert world.states(job) == "da"


def test_a_lineage_that_was_released_fails_the_job() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0), after(1))
    client.work(1)
    client.work(1)
    world.answer(job, ReleaseTasks((0,)))  # type: ignore[arg-type]
    assert world.states(job) == "da"
    client.report(lost=[Lost(job, 1)])  # type: ignore[arg-type]
    assert error(world, job) == (
        "the result of task 1 'map' was lost and can't be computed again: its pretask 0 was"
        " released; release a task only when nothing that depends on it is needed any more"
    )


def test_a_rerun_that_fails_for_good_fails_the_job() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0))
    client.work(1)
    client.report(lost=[Lost(job, 0)])  # type: ignore[arg-type]
    client.fail(0, fatal=True)
    assert error(world, job) == (
        "the result of task 0 'map' was lost and can't be computed again:"
        " task 0 'map' failed after 1 attempt; last on client 1: boom"
    )


def test_finish_waits_for_a_result_that_must_be_computed_again() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP, after(0))
    client.work()
    client.work()
    client.report(lost=[Lost(job, 0), Lost(job, 1)])  # type: ignore[arg-type]
    assert world.states(job) == "dd"
    world.answer(job, FinishJob((1,), '"x"'))  # type: ignore[arg-type]
    assert world.schedule.is_running(job)
    world.restart()
    client.values = {}
    events = len(world.events[job])
    while client.work():
        pass
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert (summary["state"], summary["values"]) == ("finished", '"x"')
    info = world.schedule.task_info(job, 1)  # type: ignore[arg-type]
    assert info is not None
    assert info["holders"] == [1]
    assert len(world.events[job]) == events


def test_finish_goes_on_without_a_result_that_can_not_be_computed_again() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP)
    client.work()
    client.report(lost=[Lost(job, 0)])  # type: ignore[arg-type]
    world.answer(job, FinishJob((0,), '"x"'))  # type: ignore[arg-type]
    client.fail(0, fatal=True)
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["state"] == "finished"
    assert "job=1 finished without the lost results of tasks [0]" in world.notes


def _with_a_changed_result() -> tuple[World, FakeClient, FakeClient, JobId, Completion]:
    """Task 0 has another result than when task 1 used it, and task 2 used that task 1.

    Returns:
        The world, the client that computes, one that is dead and holds the old result of
        task 1, the job, and a completion of task 2 that was made from that.
    """
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    use = TaskSpec("use", pretasks=(1,), prekeys=("r",))  # type: ignore[arg-type]
    world.answer(job, MAP, after(0), use)
    client.work(1)
    client.work(1)
    client.poll()
    made = client.run(client.assigned[job, TaskId(2)])
    old = world.join("old", slots=0)
    old.values[job, TaskId(1)] = client.values[job, TaskId(1)]
    old.join()
    old.leave()
    client.report(lost=[Lost(job, TaskId(0))])
    world.answer(job, after(0))
    while world.state_of(job, 0) != "done":
        client.report(failures=[Failure(job, TaskId(2), made.attempt, "x", False)])
        client.work(1, salt="again")
    assert world.states(job)[:2] == "da", "task 1 is done no more"
    return world, client, old, job, made


def test_what_was_made_from_bytes_that_do_not_count_any_more_is_void() -> None:
    world, client, _, job, made = _with_a_changed_result()
    client.report(completions=[made])
    assert world.state_of(job, 2) != "done"
    while client.work(salt="again"):
        pass
    assert world.states(job) == "dddd"
    assert sorted(told(world, job)) == [0, 1, 2, 3]  # type: ignore[type-var]


def test_old_bytes_that_rest_on_a_changed_input_do_not_come_back() -> None:
    world, client, old, job, _ = _with_a_changed_result()
    old.join()
    assert world.state_of(job, 1) == "assigned"
    old.poll()
    assert old.values == {}
    while client.work(salt="again"):
        pass
    assert world.states(job) == "dddd"
