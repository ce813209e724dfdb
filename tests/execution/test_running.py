"""From a view to a report, and what a node's answer must be like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.coordination.commands import inputs_digest as coordinators_inputs_digest
from tasksprint.errors import LocalProtocolError, RemoteProtocolError
from tasksprint.execution.effects import Manifest
from tasksprint.settings import RULES

from .helpers import (
    COMMAND,
    DIGEST,
    PROGRAM,
    SETTINGS,
    AttemptFailed,
    Bench,
    Note,
    PrepareProgram,
    RunTask,
    SendReport,
    StartNode,
    TaskError,
    completion,
    digest_of,
    inputs_digest,
    made_here,
    manifest,
    report,
    run,
    stored,
    task,
)

_RAN = {"node": 1, "run_ms": 1}


def test_task_without_inputs_runs_is_stored_and_reported() -> None:
    """The whole way, effect by effect."""
    bench = Bench()
    bench.view(task(0, keys=("result",)))
    bench.expect(PrepareProgram(PROGRAM, COMMAND))
    bench.workbench.program_ready(PROGRAM)
    bench.expect(StartNode(1, PROGRAM, COMMAND))
    bench.ready(1)
    bench.expect(run(task(0, keys=("result",))))
    bench.done(1, 1, after_us=1_500)
    bench.expect(stored(0))
    bench.stored(0)
    bench.expect(report(1, completion(0, run_us=1_500, inline=(("result", "json"),))))
    bench.acknowledged(1)
    bench.assert_empty()


def test_empty_result_is_a_result() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.expect(run(task(0), id=2))
    bench.done(1, 2, values=(), after_us=1_000)
    bench.expect(stored(0, id=2, values=()))
    bench.stored(0)
    bench.expect(report(2, completion(0, run_us=1_000, values=())))


def test_chain_runs_without_waiting_for_store_or_coordinator() -> None:
    """Each answer's effects hold the next link; digests of what was consumed are reported."""
    bench = Bench()
    bench.serving(1)
    links = [task(0), task(1, made_here(0)), task(2, made_here(1), made_here(0))]
    bench.view(*links)
    bench.expect(run(links[0], id=2))
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2), run(links[1], id=3, digests=(DIGEST,)))
    second = manifest("result", salt="second")
    bench.done(1, 3, values=second, after_us=1_000)
    bench.expect(
        stored(1, id=3, values=second),
        run(links[2], id=4, digests=(digest_of(second), DIGEST)),
    )
    bench.done(1, 4, after_us=1_000)
    bench.expect(stored(2, id=4))
    bench.stored(0, 1, 2)
    bench.expect(
        report(
            2,
            completion(0, run_us=1_000),
            completion(1, run_us=1_000, values=second, inputs=inputs_digest(DIGEST)),
            completion(2, run_us=1_000, inputs=inputs_digest(digest_of(second), DIGEST)),
        )
    )
    assert inputs_digest("a", "b") == coordinators_inputs_digest(["a", "b"])


def test_tasks_run_in_order_of_arrival_even_if_ready_later() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0), task(1, made_here(0)), task(2))
    bench.expect(run(task(0), id=2))
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2), run(task(1, made_here(0)), id=3, digests=(DIGEST,)))
    bench.done(1, 3, after_us=1_000)
    bench.expect(stored(1, id=3), run(task(2), id=4))


def test_failed_task_is_reported_at_once() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.effects()
    bench.failed(1, 2, TaskError("boom", traceback="line 1", retry=True), after_us=1_000)
    detail = {**_RAN, "traceback": "line 1"}
    bench.expect(report(2, failures=(AttemptFailed(1, 0, 1, "boom", False, detail),)))
    bench.acknowledged(2)
    bench.assert_empty()


def test_task_that_says_no_retry_fails_for_good() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.effects()
    bench.failed(1, 2, TaskError("bad input", retry=False), after_us=1_000)
    bench.expect(report(2, failures=(AttemptFailed(1, 0, 1, "bad input", True, _RAN),)))


def _failure_of(bench: Bench) -> AttemptFailed:
    (sent,) = bench.effects()
    assert isinstance(sent, SendReport)
    assert not sent.completions
    (failure,) = sent.failures
    return failure


def test_key_that_the_scheduler_asked_for_and_the_node_did_not_return() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, name="merge", keys=("result",)))
    bench.effects()
    bench.done(1, 2, values=manifest("a", "b"), after_us=1_000)
    assert _failure_of(bench) == AttemptFailed(
        1,
        4,
        1,
        "task 4 'merge' returned no value under key 'result', it returned 'a', 'b'",
        True,
        _RAN,
    )


@pytest.mark.parametrize(
    ("values", "returned"),
    [
        ((), "nothing"),
        (manifest(*"abcdefghijkl"), "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j' and 2 more"),
    ],
)
def test_missing_key_lists_what_was_returned_within_reason(
    values: Manifest, returned: str
) -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, keys=("result",)))
    bench.effects()
    bench.done(1, 2, values=values)
    assert _failure_of(bench).error == (
        f"task 4 'work' returned no value under key 'result', it returned {returned}"
    )


def test_value_too_big_for_the_log_fails_for_good() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, keys=("result",)))
    bench.effects()
    bench.done(1, 2, values=manifest("result", size=RULES.inline_value_bytes_max + 1))
    failure = _failure_of(bench)
    assert failure.fatal
    assert failure.error == (
        "task 4 'work' returned 65537 bytes under key 'result', which is one of its keys: "
        "expected at most 65536 (inline_value_bytes_max); "
        "leave big values to other tasks and return a small summary under this key"
    )


def test_big_value_under_another_key_is_fine() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, keys=("small",)))
    bench.effects()
    values = (*manifest("big", size=10**9), *manifest("small"))
    bench.done(1, 2, values=values, after_us=1_000)
    bench.expect(stored(4, id=2, values=values))
    bench.stored(4)
    bench.expect(
        report(2, completion(4, run_us=1_000, values=values, inline=(("small", "json"),)))
    )


def test_values_too_big_together_for_the_log_fail_for_good() -> None:
    bench = Bench()
    bench.serving(1)
    keys = tuple(f"k{number:02}" for number in range(17))
    bench.view(task(4, keys=keys))
    bench.effects()
    bench.done(1, 2, values=manifest(*keys, size=RULES.inline_value_bytes_max))
    failure = _failure_of(bench)
    assert failure.fatal
    assert failure.error == (
        "task 4 'work' returned more than 1048576 bytes under its keys "
        "(inline_task_bytes_max), 'k16' is the first one too many; "
        "leave big values to other tasks and return small summaries under its keys"
    )


def test_key_asked_for_twice_is_reported_once() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(4, keys=("result", "result")))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.effects()
    bench.stored(4)
    bench.expect(report(2, completion(4, run_us=1_000, inline=(("result", "json"),))))


def test_value_beyond_two_gigabytes_fails_for_good() -> None:
    bench = Bench(settings=replace(SETTINGS, value_bytes_max=1_000))
    bench.serving(1)
    bench.view(task(4))
    bench.effects()
    bench.done(1, 2, values=manifest("x", size=1_001))
    failure = _failure_of(bench)
    assert failure.fatal
    assert failure.error == (
        "task 4 'work' returned 1001 bytes under key 'x', expected at most 1000 "
        "(value_bytes_max); split the value over several keys or tasks"
    )


def test_input_key_that_the_pretask_did_not_return_fails_for_good() -> None:
    bench = Bench()
    bench.serving(1)
    merge = task(5, made_here(4), name="merge")
    bench.view(task(4), merge)
    bench.effects()
    bench.done(1, 2, values=manifest("a", "b"), after_us=1_000)
    error = "task 5 'merge' needs the value 'result' of task 4, which returned 'a', 'b'"
    bench.expect(
        stored(4, id=2, values=manifest("a", "b")),
        report(2, failures=(AttemptFailed(1, 5, 1, error, True, {}),)),
    )


def test_batch_of_answers_shares_its_run_time() -> None:
    bench = Bench()
    bench.serving(1, window=10)
    bench.measure("work", 100)
    bench.view(*[task(tid) for tid in range(4)])
    assert [one.id for one in bench.effects() if isinstance(one, RunTask)] == [3, 4, 5, 6]
    bench.done(1, 3, 4, 5, 6, after_us=402)
    bench.effects()
    bench.stored(0, 1, 2, 3)
    bench.expect(report(3, *[completion(tid, run_us=100) for tid in range(4)]))


def test_nearly_full_disk_starts_nothing_and_says_so() -> None:
    bench = Bench()
    bench.serving(1)
    bench.workbench.disk_low(True)
    bench.view(task(0))
    bench.expect(
        Note("the disk is nearly full (free_refuse_bytes): no task is started")
    )
    bench.workbench.disk_low(True)
    bench.assert_empty()
    bench.workbench.disk_low(False)
    bench.expect(Note("enough disk is free again: tasks are started"), run(task(0), id=2))


def test_view_that_does_not_say_what_runs_a_job_is_refused() -> None:
    bench = Bench()
    with pytest.raises(
        RemoteProtocolError, match="view has a task of job 1, which it doesn't describe"
    ):
        bench.view(task(0), jobs=())


def test_event_of_a_node_that_never_was_is_our_bug() -> None:
    bench = Bench()
    with pytest.raises(LocalProtocolError, match="node 7 was never started"):
        bench.ready(7)


def test_summary_is_for_people() -> None:
    bench = Bench(slots=2)
    bench.serving(1)
    bench.view(task(0), task(1, made_here(0)))
    bench.effects()
    assert bench.workbench.summary() == {
        "cid": 1,
        "incarnation": "a",
        "version": bench.version,
        "slots": 2,
        "tasks": {"waiting": 1, "ready": 0, "running": 1},
        "unreported": 0,
        "report_under_way": None,
        "disk_low": False,
        "nodes": [
            {
                "node": 1,
                "program": "node.py",
                "attached": False,
                "state": "serving",
                "tasks": 1,
                "running": "task 0 'work'",
            }
        ],
        "held": 0,
        "copies": 0,
        "copy_bytes": 0,
        "fetches": 0,
    }
