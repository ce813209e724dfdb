"""Clients that join, repeat themselves, fall silent, leave and come back; their views."""

from __future__ import annotations

from dataclasses import replace

from tasksprint.coordination.commands import (
    Completion,
    Failure,
    Held,
    JoinClient,
    LeaveClient,
    NodesAttached,
    Report,
    SilentClient,
    SubmitJob,
)
from tasksprint.coordination.view import Drop, DropJob, Stop, View
from tasksprint.scheduler_commands import FailJob, FinishJob, KillTask
from tasksprint.settings import RULES
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World, digest_of, reply_of

MAP = TaskSpec("map")


def test_a_client_keeps_its_number_over_its_lives() -> None:
    world = World()
    first, second = world.join("a"), world.join("b")
    assert (first.cid, second.cid) == (1, 2)
    assert reply_of(first.join()) == {"cid": 1, "cluster": "c1", "liveness_ms": 5_000}
    second.leave()
    world.restart()
    assert reply_of(second.join())["cid"] == 2
    assert world.join("c").cid == 3


def test_a_join_that_comes_twice_counts_once() -> None:
    world = World()
    job = world.submit()
    command = JoinClient("a", "i1", "a:1", "a", 2)
    world.apply(command)
    world.answer(job, MAP)
    applied = world.apply(command)
    assert reply_of(applied)["cid"] == 1
    assert world.kinds(job) == ["init", "client_joined"]
    assert world.states(job) == "a"


def test_a_client_that_started_again_is_told_as_dead_and_joined() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP)
    client.join()
    assert world.kinds(job) == ["init", "client_joined", "client_dead", "client_joined"]
    client.poll()
    assert [one.attempt for one in client.assigned.values()] == [2]


def test_a_client_with_too_many_slots_is_refused() -> None:
    world = World()
    applied = world.apply(JoinClient("a", "i1", None, "a", 1_000_000))
    assert reply_of(applied) == {"error": "client offers 1000000 slots, expected at most 100000"}


def test_a_report_counts_once_even_if_the_one_after_it_came_first() -> None:
    world = World()
    client = world.join(slots=2)
    job = world.submit()
    world.answer(job, MAP, MAP)
    client.poll()
    reports = [
        Report(client.cid, client.incarnation, number, 1, (), (Failure(job, tid, 1, "x", False),))
        for number, tid in ((1, 0), (2, 1))
    ]
    world.apply(reports[1])
    world.apply(reports[0])
    world.restart()
    digest = world.schedule.digest
    replies = world.apply(*reports, reports[1]).replies
    assert replies == (b"{}", b"{}", b"{}")
    assert world.schedule.digest == digest, "nothing changed"
    assert [info(world, job, tid)["failures"] for tid in (0, 1)] == [1, 1]


def test_a_request_counts_once_even_if_the_one_after_it_came_first() -> None:
    world = World()
    submits = [
        SubmitJob("me", number, "job", 7, "{}", "p" * 64, '{"node":"node.py"}')
        for number in (1, 2)
    ]
    assert reply_of(world.apply(submits[1])) == {"job": 1}
    assert reply_of(world.apply(submits[0])) == {"job": 2}
    world.restart()
    digest = world.schedule.digest
    assert world.apply(*submits).replies == (b'{"job":2}', b'{"job":1}')
    assert world.schedule.digest == digest, "nothing changed"


def info(world: World, job: int, tid: int) -> dict[str, object]:
    found = world.schedule.task_info(job, tid)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_an_acknowledged_request_is_not_applied_again() -> None:
    world = World()
    client = world.join()
    first = Report(client.cid, client.incarnation, 1, 1)
    world.apply(first, Report(client.cid, client.incarnation, 2, 2))
    digest = world.schedule.digest
    assert reply_of(world.apply(first)) == {}  # It was, and that is all that is asked.
    assert world.schedule.digest == digest


def test_records_of_requests_expire_by_log_time() -> None:
    world = World(rules=replace(RULES, request_record_ms=2_000))
    world.submit()
    assert len(world.state.senders) == 1
    for _ in range(4):
        world.tick(500)
    assert len(world.state.senders) == 1
    world.tick(1)
    assert len(world.state.senders) == 0
    assert not [place for place in world.mirror.rows if place[0] == "senders"]


def test_the_dead_are_told_to_join_again_and_change_nothing() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.poll()
    done = client.run(client.assigned[job, 0])
    world.tick(500, client.silent())
    refusal = {"error": "dead: client 1 must join again", "rejoin": True}
    assert reply_of(client.report(completions=[done])) == refusal
    assert client.poll() is None
    old = client.incarnation
    client.values = {}
    client.join()
    applied = world.apply(Report(client.cid, old, 9, 9, (done,)))
    assert reply_of(applied) == refusal
    assert world.states(job) == "a"
    assert world.schedule.view(client.cid, old, 0) is None
    assert world.schedule.view(77, "x", 0) is None


def test_a_client_that_has_spoken_since_is_not_silent() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job)
    silent = client.silent()
    assert silent == SilentClient(1, "a1", 0)
    client.report()
    assert world.schedule.living_clients() == ((1, "a1", 1),)
    world.tick(500, silent)
    assert client.poll() is not None
    world.tick(500, client.silent(), SilentClient(44, "x", 0))
    assert client.poll() is None
    client.join()
    world.tick(500, SilentClient(1, "a1", 9))
    assert client.poll() is not None, "that was another life"
    assert world.kinds(job)[1:] == ["client_joined", "client_dead", "client_joined"]
    assert world.schedule.living_clients() == ((1, "a2", 0),)


def test_a_client_that_leaves_is_dead_at_once() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.leave()
    assert world.states(job) == "r"
    assert world.kinds(job)[-1] == "client_dead"
    assert [one["state"] for one in world.schedule.client_summaries()] == ["dead"]
    again = world.apply(LeaveClient(client.cid, client.incarnation))
    assert reply_of(again) == {"error": "client 1 isn't alive in this incarnation"}


def test_what_a_joining_client_holds_is_kept_or_dropped() -> None:
    world = World()
    client = world.join("a", slots=4)
    ended = world.submit()
    world.answer(ended, FailJob("x"))
    job = world.submit()
    world.answer(job, MAP, MAP, MAP, MAP, MAP)
    client.work(2)
    world.answer(job, KillTask(4))
    held = (
        Held(job, 0, client.values[job, 0]),  # type: ignore[index]
        Held(job, 1, "other bytes"),
        Held(job, 2, "made, not reported"),
        Held(job, 4, "killed"),
        Held(job, 99, "never started"),
        Held(ended, 0, "x"),
        Held(77, 0, "x"),
    )  # type: ignore[arg-type]
    world.apply(JoinClient("a", "new", "a:1", "a", 4, held))
    view = world.schedule.view(1, "new", 0)
    assert view is not None
    assert view.whole
    assert view.drop == (
        Drop(job, 1, "other bytes"),
        Drop(job, 4, "killed"),
        Drop(job, 99, "never started"),
    )
    assert view.drop_jobs == (DropJob(ended, ()), DropJob(77, ()))
    assert [info(world, job, tid)["holders"] for tid in (0, 1)] == [[1], []]


def test_a_held_result_of_an_ended_job_can_be_read_again() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, MAP)
    client.work()
    world.answer(job, FinishJob((0,), "{}"))
    client.leave()
    assert info(world, job, 0)["holders"] == []
    world.restart()
    client.join()
    client.poll()
    assert info(world, job, 0)["holders"] == [1]
    assert (job, 0) in client.values


# --- views ---


def test_a_view_tells_changes_only_and_its_version_is_the_slot() -> None:
    world = World()
    client = world.join(slots=1)
    world.apply(NodesAttached(client.cid, client.incarnation, 1, (("gpu", 2),)))
    job = world.submit(manifest='{"node":"attached:gpu"}')
    world.answer(job, TaskSpec("map", "[1]", keys=("k",), timeout_ms=50), MAP, MAP)
    view = client.poll()
    assert view is not None
    assert view.whole
    assert view.version == world.slot
    (entry,) = view.jobs
    assert (entry.job, entry.program, entry.node) == (job, "p" * 64, "attached:gpu")
    one = view.run[0]
    assert (one.tid, one.attempt) == (0, 1)
    assert one.spec == TaskSpec("map", "[1]", keys=("k",), timeout_ms=50)
    assert [task.tid for task in view.run] == [0, 1]
    assert client.poll() == View(world.slot, False, (), (), (), (), (), ())
    client.work(1)
    after = client.poll()
    assert after is not None
    assert not after.whole
    assert [task.tid for task in after.run] == [2]
    assert after.stop == ()
    client.check_followed()


def test_a_stop_is_told_until_the_client_names_a_later_version() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, MAP)
    client.poll()
    before = client.since
    applied = world.answer(job, KillTask(0))
    assert applied.clients == (client.cid,)
    stop = (Stop(job, 0, 1),)
    for _ in range(2):
        view = world.schedule.view(client.cid, client.incarnation, before)
        assert view is not None
        assert view.stop == stop
    client.poll()
    later = client.poll()
    assert later is not None
    assert later.stop == ()


def test_after_a_restart_of_the_replica_older_versions_get_the_whole_view() -> None:
    world = World()
    client = world.join(slots=3)
    job = world.submit()
    other = world.submit()
    world.answer(job, MAP, MAP)
    client.poll()
    world.answer(job, KillTask(0))
    world.answer(other, FailJob("x"))
    world.restart()
    view = client.poll()
    assert view is not None
    assert view.whole
    assert [one.tid for one in view.run] == [1]
    assert view.drop_jobs == (DropJob(other, ()),)
    assert list(client.assigned) == [(job, 1)]
    world.restart()
    view = client.poll()
    assert view is not None
    assert view.is_empty, "it had named the newest version"


def test_what_a_join_has_to_drop_is_told_after_a_restart_of_the_replica_too() -> None:
    world = World()
    world.join("a")
    ended = world.submit()
    world.answer(ended, FailJob("x"))
    world.tick()
    held = (Held(ended, 0, "x"),)  # type: ignore[arg-type]
    world.apply(JoinClient("a", "new", "a:1", "a", 1, held))
    world.restart()
    view = world.schedule.view(1, "new", 0)  # type: ignore[arg-type]
    assert view is not None
    assert view.drop_jobs == (DropJob(ended, ()),)


def test_a_client_without_an_address_is_named_all_the_same() -> None:
    world = World()
    job = world.submit()
    world.apply(JoinClient("a", "i", None, "a", 1))
    world.answer(job, MAP)
    world.apply(Report(1, "i", 1, 1, (Completion(job, 0, 1, digest_of(1), 1, None, 5),)))
    world.answer(job, TaskSpec("use", pretasks=(0,), prekeys=("r",)))
    view = world.schedule.view(1, "i", 0)
    assert view is not None
    assert [(client.cid, client.address) for client in view.clients] == [(1, None)]
    assert info(world, job, 0)["addresses"] == []


def test_after_a_restart_of_the_replica_tasks_come_in_the_order_of_placement() -> None:
    world = World()
    client = world.join(slots=2)
    job = world.submit()
    world.answer(job, MAP, MAP)
    client.fail(0)
    world.restart()
    view = world.schedule.view(client.cid, client.incarnation, 0)
    assert view is not None
    assert [(one.tid, one.attempt) for one in view.run] == [(1, 1), (0, 2)]
