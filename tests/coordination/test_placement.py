"""Which client gets which task, by situation."""

from __future__ import annotations

import json
from dataclasses import replace

from tasksprint.coordination.commands import Completion
from tasksprint.ids import JobId
from tasksprint.scheduler_commands import KillTask
from tasksprint.settings import RULES
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import FakeClient, World

MAP = TaskSpec("map")


def after(*tids: int, name: str = "map") -> TaskSpec:
    return TaskSpec(name, pretasks=tids, prekeys=("r",) * len(tids))  # type: ignore[arg-type]


def where(world: World, job: JobId) -> dict[int, int]:
    """Return tid -> cid of all assigned tasks."""
    tasks = world.state.jobs[job].tasks
    return {tid: task.cid for tid, task in tasks.items() if task.cid is not None}


def learn(world: World, client: FakeClient, job: JobId, *, run_us: int, name: str = "map") -> None:
    """Let the cluster know how long tasks of a name run."""
    world.answer(job, TaskSpec(name))
    client.poll()
    one = list(client.assigned.values())[-1]
    assert one.spec.name == name
    client.report(completions=[replace(client.run(one), run_us=run_us)])
    client.poll()


def test_tasks_of_unknown_length_get_a_slot_each() -> None:
    world = World()
    world.join("a", slots=2)
    world.join("b", slots=1)
    job = world.submit()
    world.answer(job, *[MAP] * 8)
    assert where(world, job) == {0: 1, 1: 2, 2: 1}
    assert world.states(job) == "aaarrrrr"


def test_short_tasks_are_handed_out_by_the_hundred() -> None:
    world = World()
    client = world.join("a", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=10)
    world.answer(job, *[MAP] * 2_000)
    # task_us_min is 100: 50 ms of queue for each of two slots.
    assert client_summary(world, 1) == (1_000, 100_000, 0)


def client_summary(world: World, cid: int) -> tuple[object, object, object]:
    summary = world.schedule.client_summaries()[cid - 1]
    return summary["assigned"], summary["queued_us"], summary["ahead_us"]


def test_tasks_of_middle_length_fill_the_queue_and_no_more() -> None:
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    learn(world, client, job, run_us=20_000)
    world.answer(job, *[MAP] * 10)
    assert client_summary(world, 1) == (3, 60_000, 0)


def test_long_tasks_are_handed_out_one_by_one_even_beside_short_ones() -> None:
    world = World()
    client = world.join("a", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=10_000_000, name="long")
    learn(world, client, job, run_us=100)
    world.answer(job, *[MAP] * 3_000)
    assert client_summary(world, 1)[0] == 1_000
    other = world.submit()
    learn_first = world.answer(other, *[TaskSpec("unknown")] * 5)
    assert learn_first.clients == (1,)
    assert where(world, other) == {0: 1, 1: 1}, "a queue of short ones keeps no long one out"


def test_an_estimate_follows_what_tasks_need_now() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    learn(world, client, job, run_us=8_000)
    estimates = world.state.jobs[job].estimates_us
    assert estimates == {"map": 8_000}
    learn(world, client, job, run_us=0)
    assert estimates == {"map": 7_000}
    learn(world, client, job, run_us=15_001)
    assert estimates == {"map": 8_000}


def test_the_client_that_has_the_inputs_gets_the_task() -> None:
    world = World()
    first, second = world.join("a", slots=2), world.join("b", slots=2)
    job = world.submit()
    world.answer(job, MAP, MAP, MAP)
    assert where(world, job) == {0: 1, 1: 2, 2: 1}
    second.poll()
    (one,) = second.assigned.values()
    second.report(completions=[replace(second.run(one), size_bytes=1_000_000)])
    first.work()
    world.answer(job, after(0, 1, 2), after(0, 2))
    assert where(world, job) == {3: 2, 4: 1}


def test_a_holder_that_is_full_does_not_keep_the_task() -> None:
    world = World()
    first, second = world.join("a", slots=1), world.join("b", slots=1)
    job = world.submit()
    world.answer(job, MAP)
    first.work()
    world.answer(job, after(0, name="x"), after(0, name="y"), after(0, name="z"))
    assert where(world, job) == {1: 1, 2: 2}
    view = second.poll()
    assert view is not None
    assert [client.address for client in view.clients] == ["a:1"]
    assert view.run[0].inputs[0].holders == (1,)


def test_work_spreads_by_what_is_queued_for_each_slot() -> None:
    world = World()
    first = world.join("a", slots=1)
    world.join("b", slots=3)
    job = world.submit()
    learn(world, first, job, run_us=1_000)
    world.answer(job, *[MAP] * 8)
    assert sorted(where(world, job).values()) == [1, 1, 2, 2, 2, 2, 2, 2]


def test_a_task_that_failed_goes_to_another_client_if_one_is_open() -> None:
    world = World()
    first, second = world.join("a"), world.join("b")
    job = world.submit()
    world.answer(job, MAP)
    first.fail(0)
    assert where(world, job) == {0: 2}
    second.leave()
    assert where(world, job) == {0: 1}


def test_a_chain_is_handed_out_ahead_of_need() -> None:
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, *[after(tid) for tid in range(10)])
    assert where(world, job) == dict.fromkeys(range(1, 11), 1)
    view = client.poll()
    assert view is not None
    first, second = view.run[:2]
    assert (first.inputs[0].digest, first.inputs[0].holders) == (client.values[job, 0], (1,))
    assert (second.inputs[0].digest, second.inputs[0].holders) == (None, (1,))
    assert client.work() == list(range(1, 11)), "one report for the whole chain"
    assert world.states(job) == "d" * 11


def test_chains_share_the_allowance_and_are_extended_as_they_run() -> None:
    world = World(rules=replace(RULES, ahead_us=1_000))
    client = world.join("a", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=100)
    chains = [MAP, MAP, *[after(tid) for tid in range(1, 59)]]
    world.answer(job, *chains)
    # Two heads that can run, and 20 followers of 100 µs in all, ten for each.
    assert world.states(job) == "d" + "a" * 22 + "w" * 38
    assert client_summary(world, 1) == (22, 200, 2_000)
    assert client.work(4) == [1, 2, 3, 4]
    assert world.states(job) == "d" * 5 + "a" * 22 + "w" * 34
    world.restart()
    client.work(4)
    assert world.states(job) == "d" * 9 + "a" * 22 + "w" * 30


def test_of_many_dependents_one_follows_ahead_of_need() -> None:
    world = World()
    client = world.join("a", slots=2)
    world.join("b", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, after(0), *[after(1) for _ in range(5)])
    assert where(world, job) == {1: 1, 2: 1}


def test_a_join_follows_when_all_its_inputs_are_made_on_one_client() -> None:
    world = World()
    client = world.join("a", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, MAP, MAP, after(0, 1, 2))
    assert where(world, job) == {1: 1, 2: 1, 3: 1}
    assert client.work() == [1, 2, 3]


def test_a_join_of_inputs_from_two_clients_waits() -> None:
    world = World()
    first, _ = world.join("a", slots=1), world.join("b", slots=1)
    job = world.submit()
    learn(world, first, job, run_us=1_000)
    world.answer(job, MAP, MAP, after(1, 2))
    assert where(world, job) == {1: 1, 2: 2}


def test_long_followers_keep_no_slot_waiting() -> None:
    world = World()
    client = world.join("a", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=10_000_000)
    world.answer(job, MAP, after(1), MAP)
    assert where(world, job) == {1: 1, 3: 1}


def test_a_dependent_that_is_asked_for_later_follows_too() -> None:
    world = World()
    client = world.join("a", slots=2)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, MAP)
    world.answer_rest(job)
    world.join("b", slots=9)
    world.answer(job, after(1))
    assert where(world, job) == {1: 1, 2: 1}


def test_what_was_placed_ahead_goes_when_its_input_fails() -> None:
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, after(0), after(1), after(2), after(3))
    client.poll()
    assert len(client.assigned) == 4
    client.fail(1)
    # Placed again in the same entry, as new attempts, and the old ones are stopped.
    view = client.poll()
    assert view is not None
    assert [(stop.tid, stop.attempt) for stop in view.stop] == [(2, 1), (3, 1), (4, 1)]
    assert [(one.tid, one.attempt) for one in view.run] == [(1, 2), (2, 2), (3, 2), (4, 2)]


def test_what_was_placed_ahead_goes_when_its_input_is_killed() -> None:
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, after(0), after(1), after(2))
    client.poll()
    world.answer(job, KillTask(2))
    client.poll()
    assert [tid for _, tid in client.assigned] == [1]


def test_when_a_client_dies_its_whole_chain_moves_in_the_same_entry() -> None:
    world = World()
    client = world.join("a", slots=1)
    other = world.join("b", slots=1)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, MAP, *[after(tid) for tid in range(1, 6)])
    assert where(world, job) == dict.fromkeys(range(1, 7), 1)
    world.tick(500, client.silent())
    assert where(world, job) == dict.fromkeys(range(1, 7), 2)
    assert other.work() == [1, 2, 3, 4, 5, 6]


def test_when_another_client_finishes_the_input_first_followers_move() -> None:
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    learn(world, client, job, run_us=100)
    world.answer(job, MAP, after(1))
    client.poll()
    unreported: Completion = client.run(client.assigned[job, 1])  # type: ignore[index]
    other = world.join("b", slots=1)
    world.tick(500, client.silent())
    assert where(world, job) == {1: 2, 2: 2}
    client.join()
    client.report(completions=[unreported])
    # The older attempt counts; where its bytes are, the follower runs now.
    assert world.states(job) == "dda"
    other.poll()
    assert where(world, job) == {2: 1}
    assert other.assigned == {}


def test_one_job_does_not_keep_another_waiting() -> None:
    world = World()
    client = world.join("a", slots=2)
    first, second = world.submit(), world.submit()
    learn(world, client, first, run_us=5_000)
    learn(world, client, second, run_us=5_000)
    world.answer(first, *[MAP] * 100)
    world.answer(second, *[MAP] * 100)
    client.work(6)
    assert len(where(world, second)) >= 3


def test_many_clients_are_chosen_as_by_looking_at_each() -> None:
    """The heap finds the client that a scan would find, whatever happened before."""
    world = World(rules=replace(RULES, ahead_us=2_000), is_checked=False)
    clients = [world.join(f"c{number}", slots=number % 4) for number in range(12)]
    job = world.submit()
    learn(world, clients[1], job, run_us=300)
    state = world.state
    capacity = world.schedule._placement._capacity
    for step in range(60):
        world.answer_rest(job)
        world.join(f"d{step}", slots=1)
        world.answer(job, *[MAP] * (step % 7))
        clients[step % 12].work(step % 3)
        for is_heavy in (False, True):
            open_clients = [
                capacity.key(client, is_heavy)
                for client in state.clients.values()
                if capacity.is_open(client, is_heavy)
            ]
            found = capacity.least_loaded(is_heavy)
            assert (found and capacity.key(found, is_heavy)) == min(open_clients, default=None)
    world.schedule.check()


# --- priorities ---


def prioritised(*priorities: int) -> list[TaskSpec]:
    return [TaskSpec("map", priority=priority) for priority in priorities]


def order_of_runs(world: World, client: FakeClient) -> list[int]:
    ran: list[int] = []
    while done := client.work():
        ran += done
    return ran


def test_ready_tasks_go_out_by_priority_then_by_tid() -> None:
    world = World()
    client = world.join("a", slots=1)
    job = world.submit()
    world.answer(job, *prioritised(0, 2, -1, 2, 0, 2**31 - 1, -(2**31)))
    world.restart()
    assert order_of_runs(world, client) == [5, 1, 3, 0, 4, 2, 6]


def test_a_priority_outlives_a_restart_and_a_lost_client() -> None:
    world = World()
    first = world.join("a", slots=1)
    job = world.submit()
    world.answer(job, *prioritised(0, 7, 0))
    assert where(world, job) == {1: 1}
    first.leave()
    world.restart()
    other = world.join("b", slots=1)
    assert where(world, job) == {1: 2}, "it is first again"
    assert order_of_runs(world, other) == [1, 0, 2]


def test_rows_have_a_priority_behind_all_else_and_only_if_there_is_one() -> None:
    world = World()
    job = world.submit()
    world.answer(job, *prioritised(0, -3))
    bodies = [json.loads(str((world.mirror.rows["tasks", (job, tid)].columns or ())[-1]))
              for tid in (0, 1)]  # fmt: skip
    assert [len(body) for body in bodies] == [20, 21]
    assert bodies[1][:20] == bodies[0]
    assert bodies[1][20] == -3


def test_priorities_of_one_job_keep_no_other_waiting() -> None:
    world = World()
    client = world.join("a", slots=1)
    first, second = world.submit(), world.submit()
    world.answer(first, *prioritised(9, 9))
    world.answer(second, *prioritised(0, 0))
    client.work()
    assert where(world, second) == {0: 1}
