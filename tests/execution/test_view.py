"""How a view is followed: stops, drops, whole views, new attempts, joining anew."""

from __future__ import annotations

from tasksprint.execution.effects import DropJobResults, DropResults

from .helpers import (
    COMMAND,
    DIGEST,
    PROGRAM,
    AttemptFailed,
    Bench,
    Drop,
    DropJob,
    HeldResult,
    KillNode,
    Note,
    StartNode,
    Stop,
    completion,
    held_by,
    made_here,
    report,
    run,
    stored,
    task,
)

STOP = Stop(1, 0, 1)


def test_running_task_is_stopped_by_killing_its_node() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0), task(1))
    bench.effects()
    bench.view(stop=(STOP,))
    bench.expect(KillNode(1, "task 0 'work' was stopped"))
    bench.done(1, 2)
    bench.exited(1, "killed by SIGKILL")
    bench.expect(StartNode(2, PROGRAM, COMMAND))
    bench.ready(2)
    bench.expect(run(task(1), node=2))


def test_waiting_ready_and_unknown_tasks_are_stopped_quietly() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0), task(1), task(2, made_here(0)))
    bench.effects()
    bench.view(stop=(Stop(1, 1, 1), Stop(1, 2, 1), Stop(1, 77, 1), Stop(5, 1, 1)))
    bench.assert_empty()
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2))


def test_stop_of_an_older_attempt_leaves_the_newer_one() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0, attempt=2))
    bench.effects()
    bench.view(stop=(STOP,))
    bench.assert_empty()
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2, attempt=2))


def test_short_task_that_is_stopped_may_end_by_itself() -> None:
    """A cancelled job of no-op tasks doesn't cost its nodes."""
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0), task(1), task(2))
    bench.expect(run(task(0), id=3), run(task(1), id=4), run(task(2), id=5))
    bench.view(stop=(STOP, Stop(1, 1, 1)))
    bench.assert_empty()
    bench.done(1, 3, 4, 5, after_us=300)
    bench.expect(stored(2, id=5))


def test_short_task_that_is_stopped_and_does_not_end_is_killed_after_all() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0))
    bench.effects()
    bench.view(stop=(STOP,))
    bench.pass_time(199)
    bench.assert_empty()
    bench.pass_time(1)
    bench.expect(KillNode(1, "task 0 'work' was stopped and doesn't end"))
    bench.exited(1)
    bench.assert_empty()


def test_stopped_task_that_waits_in_a_pipe_is_watched_once_it_runs() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0), task(1))
    bench.effects()
    bench.view(stop=(Stop(1, 1, 1),))
    bench.done(1, 3, after_us=50_000)
    bench.expect(stored(0, id=3))
    bench.pass_time(200)
    bench.expect(KillNode(1, "task 1 'work' was stopped and doesn't end"))


def test_those_behind_a_killed_task_run_elsewhere_and_count_no_failure() -> None:
    bench = Bench(slots=2)
    bench.serving(1, window=10)
    bench.measure("work", 4_000)
    bench.view(task(0), task(1))
    bench.expect(run(task(0), id=3), run(task(1), id=4))
    bench.exited(1, "exit code 3", {"exit_code": 3})
    detail = {"node": 1, "run_ms": 0, "exit_code": 3}
    error = "node failed while it ran task 0 'work': exit code 3"
    bench.expect(
        StartNode(2, PROGRAM, COMMAND),
        report(3, failures=(AttemptFailed(1, 0, 1, error, False, detail),)),
    )
    bench.ready(2, 10)
    bench.expect(run(task(1), node=2))


def test_new_attempt_replaces_the_running_one() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.effects()
    bench.view(task(0, attempt=2))
    bench.expect(KillNode(1, "task 0 'work' was stopped"))
    bench.exited(1)
    bench.expect(StartNode(2, PROGRAM, COMMAND))
    bench.ready(2)
    bench.expect(run(task(0, attempt=2), node=2))


def test_older_attempt_and_repeated_one_change_nothing() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0, attempt=2))
    bench.effects()
    bench.view(task(0, attempt=1))
    bench.view(task(0, attempt=2))
    bench.assert_empty()


def test_overtaken_view_is_ignored() -> None:
    bench = Bench()
    bench.serving(1)
    bench.version = 50
    bench.view(task(0))
    bench.effects()
    bench.version = 40
    bench.view(stop=(STOP,))
    bench.assert_empty()
    assert bench.workbench.version == 51


def test_whole_view_stops_what_it_does_not_name() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2)
    bench.view(task(0), task(1), task(2))
    bench.effects()
    bench.view(task(1), task(3), whole=True)
    bench.expect(KillNode(1, "task 0 'work' was stopped"))
    bench.done(2, 2, after_us=1_000)
    bench.expect(stored(1, node=2, id=2), run(task(3), node=2, id=3))


def test_drop_deletes_the_copy_that_it_names_and_no_other() -> None:
    bench = Bench(held=(HeldResult(1, 0, DIGEST), HeldResult(1, 1, DIGEST)))
    bench.view(drop=(Drop(1, 0, "other"), Drop(1, 1, None), Drop(1, 7, None)))
    bench.expect(DropResults(1, (1,)))
    assert bench.workbench.held_results() == [(1, 0, DIGEST)]


def test_end_of_a_job_stops_its_tasks_and_deletes_what_is_not_kept() -> None:
    bench = Bench(held=tuple(HeldResult(1, tid, DIGEST) for tid in range(3)))
    bench.serving(1)
    bench.view(task(5), task(6))
    bench.effects()
    bench.view(drop_jobs=(DropJob(1, (2,)),), jobs=())
    bench.expect(KillNode(1, "task 5 'work' was stopped"), DropJobResults(1, (2,)))
    assert bench.workbench.held_results() == [(1, 2, DIGEST)]
    bench.exited(1)
    bench.assert_empty()


def test_what_ended_in_a_job_that_is_over_is_not_reported() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0), task(1))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.effects()
    bench.view(drop_jobs=(DropJob(1, ()),), jobs=())
    bench.expect(DropJobResults(1, ()))
    bench.stored(0)
    bench.done(1, 3)
    bench.assert_empty()


def test_joining_anew_forgets_assignments_and_keeps_results() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2)
    bench.view(task(0), task(1), task(2, held_by(7, tid=9)))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.effects()
    bench.stored(0)
    bench.expect(report(2, completion(0, run_us=1_000)))
    bench.workbench.reset(4, "b", bench.now_ms)
    bench.expect(
        KillNode(2, "the client joined anew"), Note("cid=4 incarnation=b began anew")
    )
    assert bench.workbench.version == 0
    assert bench.workbench.held_results() == [(1, 0, DIGEST)]
    bench.acknowledged(2)
    bench.exited(2)
    bench.version = 0
    bench.view(task(1, attempt=2), whole=True)
    bench.expect(run(task(1, attempt=2), node=1, id=3))
    bench.done(1, 3, after_us=1_000)
    bench.expect(stored(1, id=3, attempt=2))
    bench.stored(1, attempt=2)
    bench.expect(
        report(1, completion(1, attempt=2, run_us=1_000), incarnation="b")
    )


def test_result_being_stored_while_joining_anew_is_kept_and_not_reported() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2))
    bench.workbench.reset(1, "b", bench.now_ms)
    assert bench.workbench.held_results() == []
    bench.stored(0)
    bench.expect(Note("cid=1 incarnation=b began anew"))
    assert bench.workbench.held_results() == [(1, 0, DIGEST)]
