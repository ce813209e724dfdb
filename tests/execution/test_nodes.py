"""Slots, pipes, programs, and nodes that die, hang or talk nonsense."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.errors import LocalProtocolError

from .helpers import (
    COMMAND,
    DIGEST,
    JOB,
    PROGRAM,
    SETTINGS,
    AttemptFailed,
    Bench,
    FetchInputs,
    FetchRequest,
    JobEntry,
    KillNode,
    Note,
    PrepareProgram,
    RunTask,
    SendReport,
    StartNode,
    Stop,
    StopNode,
    held_by,
    made_here,
    report,
    run,
    stored,
    task,
)

OTHER_JOB = JobEntry(2, "q" * 64, "other.py")


def failed(
    tid: int, error: str, *, attempt: int = 1, fatal: bool = False, **detail: object
) -> AttemptFailed:
    return AttemptFailed(1, tid, attempt, error, fatal, detail)


# --- slots ---


def test_nodes_are_started_as_tasks_need_them_up_to_the_slots() -> None:
    bench = Bench(slots=3)
    bench.view(task(0))
    bench.effects()
    bench.workbench.program_ready(PROGRAM)
    bench.expect(StartNode(1, PROGRAM, COMMAND))
    bench.view(*[task(tid) for tid in range(1, 10)])
    bench.expect(StartNode(2, PROGRAM, COMMAND), StartNode(3, PROGRAM, COMMAND))
    bench.ready(2)
    bench.expect(run(task(0), node=2))


def test_program_is_prepared_while_inputs_are_fetched() -> None:
    bench = Bench()
    bench.view(task(1, held_by(7, tid=0)))
    wanted = FetchRequest(1, 0, DIGEST, ("result",))
    bench.expect(PrepareProgram(PROGRAM, COMMAND), FetchInputs(7, (wanted,)))


def test_jobs_with_the_same_program_share_nodes() -> None:
    bench = Bench()
    bench.serving(1)
    second = JobEntry(2, PROGRAM, COMMAND)
    bench.view(task(0, job=2), jobs=(JOB, second))
    bench.expect(run(task(0, job=2), id=2))


def test_program_that_cannot_be_prepared_fails_its_tasks_and_is_tried_again_for_new_ones() -> None:
    bench = Bench()
    bench.view(task(0), task(1, made_here(7)))
    bench.expect(PrepareProgram(PROGRAM, COMMAND))
    bench.workbench.program_failed(PROGRAM, "setup ended with exit code 1", bench.now_ms)
    error = "cannot prepare 'node.py': setup ended with exit code 1"
    bench.expect(report(1, failures=(failed(0, error),)))
    bench.view(task(0, attempt=2))
    bench.expect(PrepareProgram(PROGRAM, COMMAND))
    bench.workbench.program_ready(PROGRAM)
    bench.expect(StartNode(1, PROGRAM, COMMAND))


def test_program_is_prepared_again_after_a_pause_for_tasks_that_wait_for_inputs() -> None:
    bench = Bench()
    bench.view(task(1, made_here(7)))
    bench.effects()
    bench.workbench.program_failed(PROGRAM, "no space", bench.now_ms)
    bench.pass_time(399)
    bench.assert_empty()
    bench.pass_time(1)
    bench.expect(PrepareProgram(PROGRAM, COMMAND))


def test_idle_node_gives_its_slot_to_a_program_without_any() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0, job=2), jobs=(OTHER_JOB,))
    bench.expect(PrepareProgram(OTHER_JOB.program, "other.py"))
    bench.workbench.program_ready(OTHER_JOB.program)
    bench.expect(StopNode(1))
    bench.assert_empty()
    bench.exited(1, "exit code 0")
    bench.expect(StartNode(2, OTHER_JOB.program, "other.py"))
    bench.ready(2)
    bench.expect(run(task(0, job=2), node=2))


def test_second_idle_node_follows_only_after_a_while() -> None:
    """Two jobs with short gaps must not stop each other's nodes all the time."""
    bench = Bench(slots=2)
    bench.serving(1, 2)
    bench.view(task(0, job=2), task(1, job=2), jobs=(OTHER_JOB,))
    bench.effects()
    bench.workbench.program_ready(OTHER_JOB.program)
    bench.expect(StopNode(1))
    bench.exited(1)
    bench.expect(StartNode(3, OTHER_JOB.program, "other.py"))
    bench.ready(3)
    bench.expect(run(task(0, job=2), node=3))
    bench.pass_time(499)
    bench.assert_empty()
    bench.pass_time(1)
    bench.expect(StopNode(2))


def test_busy_program_leaves_a_node_to_one_that_waited_long() -> None:
    """Tasks of both keep coming; those that arrived first run first."""
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.expect(run(task(0), id=2))
    bench.view(task(50, job=2), jobs=(JOB, OTHER_JOB))
    bench.effects()
    bench.workbench.program_ready(OTHER_JOB.program)
    bench.view(task(1), task(2))
    bench.assert_empty()
    bench.pass_time(100)
    bench.done(1, 2)
    bench.expect(stored(0, id=2), run(task(1), id=3))
    bench.pass_time(500)
    bench.done(1, 3)
    bench.expect(stored(1, id=3), StopNode(1))
    bench.exited(1)
    bench.expect(StartNode(2, OTHER_JOB.program, "other.py"))
    bench.ready(2)
    bench.expect(run(task(50, job=2), node=2))
    bench.done(2, 1, after_us=1_000)
    # Idle, and another program has none: its slot goes at once.
    bench.expect(stored(50, job=2, node=2), StopNode(2))
    bench.exited(2)
    bench.expect(StartNode(3, PROGRAM, COMMAND))


def test_node_without_work_for_long_is_stopped() -> None:
    bench = Bench()
    bench.serving(1)
    bench.pass_time(59_999)
    bench.assert_empty()
    bench.pass_time(10)
    bench.expect(StopNode(1))
    bench.exited(1, "exit code 0")
    bench.assert_empty()
    assert bench.workbench.deadline_ms is None


def test_idle_node_stays_while_tasks_wait_for_inputs() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, made_here(0)))
    bench.pass_time(130_000)
    bench.assert_empty()
    bench.view(stop=(Stop(1, 1, 1),))
    bench.pass_time(60_000)
    bench.expect(StopNode(1))


# --- pipes ---


def sent(bench: Bench) -> list[tuple[int, int]]:
    """(node, tid) of the tasks that were written now."""
    return [
        (one.node, one.assignment.tid) for one in bench.effects() if isinstance(one, RunTask)
    ]


def test_unknown_names_run_one_at_a_time() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.view(task(0), task(1))
    assert sent(bench) == [(1, 0)]


def test_short_tasks_are_written_ahead_up_to_the_window() -> None:
    bench = Bench()
    bench.serving(1, window=4)
    bench.measure("work", 100)
    bench.view(*[task(tid) for tid in range(10)])
    assert sent(bench) == [(1, tid) for tid in range(4)]
    bench.done(1, 3, 4, after_us=200)
    assert sent(bench) == [(1, 4), (1, 5)]


def test_work_ahead_is_limited_in_run_time() -> None:
    """Ten milliseconds are ahead at most."""
    bench = Bench()
    bench.serving(1, window=100)
    bench.measure("work", 3_000)
    bench.view(*[task(tid) for tid in range(10)])
    assert sent(bench) == [(1, 0), (1, 1), (1, 2)]


def test_long_tasks_run_one_at_a_time_and_nothing_is_behind_them() -> None:
    bench = Bench()
    bench.serving(1, window=100)
    bench.measure("work", 30_000)
    bench.measure("short", 10)
    bench.view(task(0), task(1, name="short"))
    assert sent(bench) == [(1, 0)]


def test_short_tasks_are_balanced_over_nodes() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2, window=100)
    bench.measure("work", 1_000)
    bench.measure("half", 500)
    bench.view(task(0), task(1, name="half"), *[task(tid, name="half") for tid in range(2, 6)])
    assert sent(bench) == [(1, 0), (2, 1), (2, 2), (1, 3), (2, 4), (1, 5)]


def test_task_with_a_time_limit_stands_behind_no_other() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0), task(1, timeout_ms=1_000), task(2))
    assert sent(bench) == [(1, 0)]
    bench.done(1, 3)
    assert sent(bench) == [(1, 1), (1, 2)]


def test_task_that_takes_long_after_all_gives_up_those_behind_it() -> None:
    bench = Bench(slots=2)
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(*[task(tid) for tid in range(4)])
    assert sent(bench) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    bench.pass_time(99)
    bench.assert_empty()
    bench.pass_time(1)
    bench.expect(StartNode(2, PROGRAM, COMMAND))
    bench.ready(2, 2)
    bench.expect(run(task(1), node=2, id=1), run(task(2), node=2, id=2))
    bench.done(2, 1, 2, after_us=200)
    # Task 3 runs at node 2; what node 1 says to it comes later and isn't wanted, and
    # while node 1 is stuck it gets nothing new.
    bench.expect(stored(1, node=2), stored(2, node=2, id=2), run(task(3), node=2, id=3))
    bench.view(task(4))
    bench.expect(run(task(4), node=2, id=4))
    bench.done(1, 3, 4, 5, 6, after_us=1_000)
    bench.expect(stored(0, id=3))


def test_first_answer_counts_while_a_moved_task_is_in_the_queue() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0), task(1))
    bench.effects()
    bench.pass_time(200)
    bench.assert_empty()
    bench.done(1, 3, 4, after_us=1_000)
    bench.expect(stored(0, id=3), stored(1, id=4))


def test_answers_may_come_in_any_order() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0), task(1))
    bench.effects()
    bench.done(1, 4, after_us=100)
    bench.expect(stored(1, id=4))
    bench.done(1, 3, after_us=100)
    bench.expect(stored(0, id=3))


# --- deaths ---


def test_node_that_dies_fails_its_task_with_all_that_is_known() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, name="merge"))
    bench.effects()
    bench.now_us += 70_000
    detail = {"signal": "SIGKILL", "oom": True, "stderr": "…"}
    bench.exited(1, "killed by SIGKILL, memory ran out", detail)
    bench.expect(
        report(
            2,
            failures=(
                failed(
                    4,
                    "node failed while it ran task 4 'merge': killed by SIGKILL, memory ran out",
                    node=1,
                    run_ms=70,
                    **detail,
                ),
            ),
        )
    )


def test_node_that_dies_idle_is_restarted_when_needed() -> None:
    bench = Bench()
    bench.serving(1)
    bench.exited(1)
    bench.assert_empty()
    bench.view(task(0))
    bench.expect(StartNode(2, PROGRAM, COMMAND))


def test_nodes_that_die_at_every_task_are_restarted_with_growing_pauses() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0), task(1), task(2), task(3), task(4))
    bench.effects()
    bench.exited(1)
    assert StartNode(2, PROGRAM, COMMAND) in bench.effects()
    for node, pause_ms in ((2, 100), (3, 200), (4, 400), (5, 400)):
        bench.ready(node)
        bench.effects()
        bench.exited(node)
        bench.pass_time(pause_ms - 1)
        assert not [one for one in bench.effects() if isinstance(one, StartNode)]
        bench.pass_time(1)
        if node < 5:
            bench.expect(StartNode(node + 1, PROGRAM, COMMAND))
    bench.assert_empty()
    assert bench.workbench.summary()["unreported"] == 4


def test_answer_ends_the_series_of_deaths() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(*[task(tid) for tid in range(9)])
    bench.effects()
    for node in (1, 2, 3):
        bench.exited(node)
        assert StartNode(node + 1, PROGRAM, COMMAND) in bench.effects()
        bench.ready(node + 1)
        bench.effects()
        bench.done(node + 1, 1, after_us=1_000)
        bench.effects()


def not_started(why: str) -> Note:
    return Note(f"a node of 'node.py' didn't start: {why}", is_warning=True)


def test_program_that_never_becomes_ready_fails_its_tasks_after_some_tries() -> None:
    bench = Bench()
    bench.view(task(0), task(1), task(2, made_here(7)))
    bench.effects()
    bench.workbench.program_ready(PROGRAM)
    bench.expect(StartNode(1, PROGRAM, COMMAND))
    exit_1 = "exit code 127; its stderr ended with:\nenv: python9\nnot found"
    bench.exited(1, exit_1)
    bench.expect(not_started("exit code 127; its stderr ended with: not found"))
    bench.pass_time(100)
    bench.expect(StartNode(2, PROGRAM, COMMAND))
    bench.exited(2, "exit code 127")
    bench.expect(not_started("exit code 127"))
    bench.pass_time(200)
    bench.expect(StartNode(3, PROGRAM, COMMAND))
    bench.exited(3, "exit code 127", {"stderr": "not found"})
    error = "no node of 'node.py' got ready in 3 starts: exit code 127"
    detail = {"starts": 3, "stderr": "not found"}
    failures = (failed(0, error, **detail), failed(1, error, **detail))
    bench.expect(not_started("exit code 127"), report(1, failures=failures))
    # The next try is the last for those that wait then, until one becomes ready.
    bench.view(task(0, attempt=2))
    bench.assert_empty()
    bench.pass_time(400)
    bench.expect(StartNode(4, PROGRAM, COMMAND))
    bench.exited(4, "exit code 127")
    bench.expect(not_started("exit code 127"))
    bench.acknowledged(1)
    error = error.replace("3 starts", "4 starts")
    bench.expect(report(2, failures=(failed(0, error, attempt=2, starts=4),)))


def test_node_that_ends_before_it_is_ready_is_told_as_a_stall_until_one_serves() -> None:
    bench = Bench()
    bench.view(task(0))
    bench.effects()
    bench.workbench.program_ready(PROGRAM)
    bench.expect(StartNode(1, PROGRAM, COMMAND))
    assert bench.workbench.stalls() == [[1, "starting", 1, []]]
    bench.exited(1, "exit code 1; its stderr ended with:\nTraceback\nImportError: x")
    error = "exit code 1; its stderr ended with: ImportError: x"
    bench.expect(not_started(error))
    assert bench.workbench.stalls() == [[1, "crashing", 1, [], error]]
    bench.pass_time(100)
    bench.expect(StartNode(2, PROGRAM, COMMAND))
    assert bench.workbench.stalls() == [[1, "crashing", 1, [], error]]
    bench.ready(2)
    bench.effects()
    assert bench.workbench.stalls() == [], "a task runs"


def test_node_that_does_not_say_ready_in_time_counts_as_dead() -> None:
    bench = Bench(settings=replace(SETTINGS, node_start_tries_max=1))
    bench.view(task(0))
    bench.effects()
    bench.workbench.program_ready(PROGRAM)
    bench.expect(StartNode(1, PROGRAM, COMMAND))
    bench.pass_time(1_000)
    late = "it didn't say that it is ready within 1000 ms (node_ready_timeout_ms)"
    bench.expect(KillNode(1, late))
    bench.ready(1)
    bench.assert_empty()
    bench.exited(1, "killed by SIGKILL")
    error = f"no node of 'node.py' got ready in 1 start: {late}"
    bench.expect(not_started(late), report(1, failures=(failed(0, error, starts=1),)))


# --- hanging, and nonsense ---


def test_task_that_runs_too_long_is_killed_and_says_so() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(4, name="merge", timeout_ms=5_000), task(5))
    bench.expect(run(task(4, name="merge", timeout_ms=5_000), id=3))
    bench.pass_time(5_000)
    bench.assert_empty()
    bench.pass_time(1)
    late = "task 4 'merge' ran longer than timeout_ms=5000"
    bench.expect(KillNode(1, late))
    bench.done(1, 3)
    bench.exited(1, "killed by SIGKILL", {"stderr": "tail"})
    bench.expect(
        StartNode(2, PROGRAM, COMMAND),
        report(3, failures=(failed(4, late, node=1, run_ms=5_001, stderr="tail"),)),
    )


def test_task_that_is_stopped_while_its_node_is_killed_for_time_is_not_reported() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, timeout_ms=5_000))
    bench.effects()
    bench.pass_time(5_001)
    bench.effects()
    bench.view(stop=(Stop(1, 4, 1),))
    bench.exited(1)
    bench.assert_empty()


@pytest.mark.parametrize(
    ("tasks", "expected"), [(1, "3"), (3, "one of 3 to 5"), (0, "no answer")]
)
def test_wrong_id_kills_the_node_and_fails_what_ran(tasks: int, expected: str) -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(*[task(tid) for tid in range(tasks)])
    bench.effects()
    bench.done(1, 7, after_us=1_000)
    error = f"node answered id 7, expected {expected}"
    bench.expect(KillNode(1, error))
    bench.exited(1, "killed by SIGKILL", {"stderr": "tail"})
    detail = {"node": 1, "run_ms": 1, "stderr": "tail"}
    found = [one for one in bench.effects() if isinstance(one, SendReport)]
    if tasks:
        assert found == [report(3, failures=(failed(0, error, **detail),))]
    else:
        assert found == []


def test_answers_before_a_wrong_id_in_the_same_batch_count() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(task(0), task(1))
    bench.effects()
    bench.done(1, 3, 3, after_us=200)
    bench.expect(stored(0, id=3), KillNode(1, "node answered id 3, expected 4"))


def test_late_events_of_a_node_that_ended_are_ignored() -> None:
    bench = Bench()
    bench.serving(1)
    bench.exited(1)
    bench.exited(1)
    bench.ready(1)
    bench.done(1, 1)
    bench.workbench.run_refused(1, 1, {}, bench.now_ms)
    bench.assert_empty()


# --- attached nodes ---

ATTACHED = JobEntry(1, PROGRAM, "attached:mine")


def test_attached_node_serves_the_jobs_that_name_it_beyond_the_slots() -> None:
    bench = Bench()
    bench.view(task(0), jobs=(ATTACHED,))
    bench.expect(
        Note(
            "tasks wait for a node attached as 'mine'; "
            "start one with: node --exec PROG --name mine"
        )
    )
    bench.view(task(50, job=2), jobs=(OTHER_JOB,))
    bench.expect(PrepareProgram(OTHER_JOB.program, "other.py"))
    bench.workbench.program_ready(OTHER_JOB.program)
    bench.expect(StartNode(1, OTHER_JOB.program, "other.py"))
    node = bench.workbench.next_node()
    assert node == 2
    bench.workbench.node_attached(node, "mine", False, 1, bench.now_ms)
    bench.expect(run(task(0), node=2))
    bench.ready(1)
    bench.expect(run(task(50, job=2), node=1))
    bench.done(2, 1, after_us=1_000)
    bench.expect(stored(0, node=2))
    bench.pass_time(1_000_000)
    bench.assert_empty()


def test_attached_node_that_leaves_fails_its_task_and_none_is_started() -> None:
    bench = Bench()
    bench.view(task(0), task(1), jobs=(ATTACHED,))
    bench.effects()
    bench.workbench.node_attached(bench.workbench.next_node(), "mine", False, 1, bench.now_ms)
    bench.expect(run(task(0)))
    bench.workbench.node_detached(1, "it closed its socket", bench.now_ms)
    error = "node failed while it ran task 0 'work': it closed its socket"
    bench.expect(
        Note(
            "tasks wait for a node attached as 'mine'; "
            "start one with: node --exec PROG --name mine"
        ),
        report(1, failures=(failed(0, error, node=1, run_ms=0),)),
    )


def test_attached_node_needs_a_number_of_its_own() -> None:
    bench = Bench()
    with pytest.raises(
        LocalProtocolError, match="node 5 attached with a number not from next_node"
    ):
        bench.workbench.node_attached(5, "mine", False, 1, 0)


def test_name_that_took_long_once_is_not_written_ahead_next_time() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.measure("work", 50_000)
    bench.view(task(0), task(1))
    assert sent(bench) == [(1, 0)]


def test_full_pipes_run_dry_for_a_program_that_waited_long() -> None:
    """A program of short tasks, of which new ones keep coming, never has an idle node."""
    bench = Bench()
    bench.serving(1, window=2)
    bench.measure("work", 2_000)
    bench.view(task(0), task(1))
    bench.view(task(50, job=2), jobs=(JOB, OTHER_JOB))
    bench.effects()
    bench.workbench.program_ready(OTHER_JOB.program)
    bench.effects()
    for tid in range(2, 251):
        bench.view(task(tid))
        bench.done(1, tid + 1, after_us=2_000)
        assert sent(bench) == [(1, tid)]
    bench.view(task(251))
    bench.done(1, 252, after_us=2_000)
    assert sent(bench) == []
    bench.done(1, 253, after_us=2_000)
    assert StopNode(1) in bench.effects()
