"""What people see while they wait: causes of failures, the state of now, and what is in the way.

Cores and the words for people, without processes; `test_silence_live.py` has those.
"""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasksprint.asking.cluster import Cluster, JobOutcome
from tasksprint.bounded_text import cut_middle, keep_end, on_one_line
from tasksprint.cli.failure_text import failure_block, failure_line
from tasksprint.cli.main import main
from tasksprint.cli.parser import parse_command
from tasksprint.cli.progress import Progress, counts_in_words, with_hint
from tasksprint.coordination.commands import Failure, NodesAttached, SilentClient
from tasksprint.coordination.long_runs import LongRun, decode_runs
from tasksprint.coordination.obstacles import Stall, Told, decode_stalls
from tasksprint.ids import ClientId, JobId, ReplicaId, TaskId
from tasksprint.net.keys import create_key
from tasksprint.next_steps import COMMANDS, as_started, program_command
from tasksprint.roles.coordinator.job_notes import cause_of_end
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.unheard import (
    describe_unheard,
    why_leaderless,
    why_not_level,
)
from tasksprint.scheduler_commands import FinishJob, KillTask, StartTimer, WriteLog
from tasksprint.settings import RULES, Rules, Settings
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import FakeClient, World

TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/data/programs/ab/node.py", line 3, in work\n'
    '    return {"x": {}["missing"]}\n'
    "KeyError: 'missing'\n"
)


# --- the cause -----------------------------------------------------------------------


def fail(client: FakeClient, tid: int, error: str, **detail: Any) -> None:
    client.poll()
    one = next(one for one in client.assigned.values() if one.tid == tid)
    client.report(failures=[Failure(one.job, one.tid, one.attempt, error, False, detail)])


def kept_failures(world: World, job: int = 1) -> list[dict[str, Any]]:
    rows = sorted(
        (row.key, row.columns)
        for (table, key), row in world.mirror.rows.items()
        if table == "failures" and key[0] == job
    )
    return [json.loads(str(columns[1])) for _, columns in rows if columns is not None]


def test_each_failed_attempt_is_kept_with_all_that_is_known_of_it() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work", retries=1))
    fail(client, 0, "KeyError: 'missing'", traceback=TRACEBACK, run_ms=12)
    fail(client, 0, "exit code 3", exit_code=3, out_of_memory=False, stderr="oh\n")
    first, second = kept_failures(world)
    assert first == {
        "number": 0,
        "tid": 0,
        "name": "work",
        "attempt": 1,
        "failures": 1,
        "retries": 1,
        "final": False,
        "cid": 1,
        "host": "a",
        "time_ms": 0,
        "error": "KeyError: 'missing'",
        "detail": {"traceback": TRACEBACK, "run_ms": 12},
    }
    assert second["detail"] == {"exit_code": 3, "out_of_memory": False, "stderr": "oh\n"}
    assert (second["attempt"], second["final"]) == (2, True)
    [event] = [event for event in world.events[job] if event["kind"] == "task_failed"]
    assert event["detail"] == {
        **second["detail"],
        "name": "work",
        "attempt": 2,
        "attempts": 2,
        "cid": 1,
        "host": "a",
    }
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["failures"] == 2
    world.restart()
    assert world.schedule.job_summary(job) == summary


def test_values_that_the_scheduler_cannot_see_are_a_failure_like_others() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work", keys=("missing",)))
    client.poll()
    [one] = client.assigned.values()
    client.report(completions=[replace(client.run(one), inline={})])
    [kept] = kept_failures(world)
    assert kept["error"] == "task 0 'work' returned no value under key 'missing'"
    assert kept["final"]


def test_only_the_last_failures_are_kept_with_the_one_that_matters() -> None:
    world = World(rules=Rules(failures_kept_max=3))
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work", retries=9))
    for number in range(10):
        fail(client, 0, f"no {number}")
    assert [one["error"] for one in kept_failures(world)] == ["no 7", "no 8", "no 9"]
    assert [one["final"] for one in kept_failures(world)] == [False, False, True]


def test_what_a_client_sends_of_a_failure_is_bounded_before_it_is_kept() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work", retries=0))
    detail: dict[str, Any] = {
        "traceback": "é" * 1_000_000,
        "nested": {"a": [1]},
        "x" * 41: 1,
        "run_ms": 1.5,
        **{f"n{number}": number for number in range(100)},
    }
    fail(client, 0, "boom", **detail)
    [kept] = kept_failures(world)
    assert len(kept["detail"]["traceback"].encode()) <= RULES.failure_text_bytes_max + 5
    assert "nested" not in kept["detail"]
    assert "run_ms" not in kept["detail"]
    assert len(kept["detail"]) == 16


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 12, 50])
def test_texts_are_cut_by_bytes_and_stay_text(size: int) -> None:
    text = "aé☃" * size
    for cut in (cut_middle(text, 10), keep_end(text, 10)):
        assert len(cut.encode()) <= 10 + len(" … ".encode())
        assert (cut == text) == (len(text.encode()) <= 10)
    assert keep_end("first line\nsecond\nthird\n", 15) == "…\nsecond\nthird\n"


def failure(**changed: Any) -> dict[str, Any]:
    return {
        "number": 0,
        "tid": 3,
        "name": "work",
        "attempt": 2,
        "failures": 2,
        "retries": 2,
        "final": False,
        "cid": 7,
        "host": "vm",
        "time_ms": 10,
        "error": "KeyError: 'missing'",
        "detail": {"traceback": TRACEBACK, "run_ms": 1_250, "stderr": "one\ntwo\n"},
        **changed,
    }


def test_failure_in_one_line_names_file_and_line() -> None:
    assert failure_line(failure()) == (
        "task 3 'work' failed, attempt 2 of 3 on client 7 (vm): KeyError: 'missing' "
        "(node.py:3 in work); it is tried again"
    )
    ended = failure(
        final=True, attempt=5, error="exit code 3; its stderr ended with:\nx", detail={}
    )
    assert failure_line(ended) == (
        "task 3 'work' failed, attempt 5 on client 7 (vm): "
        "exit code 3; its stderr ended with: x; given up"
    )


def test_failure_in_one_line_ends_with_the_last_line_of_stderr() -> None:
    starts = "no node of 'node.py' got ready in 3 starts: exit code 1"
    cause = "ModuleNotFoundError: No module named 'numpyyy'"
    for tail, shown in {
        f"; its stderr ended with:\nTraceback:\n  import numpyyy\n{cause}\n\n": (
            f"{starts}; its stderr ended with: {cause}"
        ),
        "; its stderr ended with:\n \n": starts,
        "; its stderr ended with:": starts,
        "": starts,
    }.items():
        told = failure_line(failure(error=starts + tail, detail={}))
        assert told.endswith(f": {shown}; it is tried again"), tail
    assert on_one_line("x" * 50 + "; its stderr ended with:\n" + "y" * 50, 20) == (
        "x" * 9 + "… " + "y" * 8 + "…"
    )


def test_failure_beneath_the_end_of_a_job_is_that_of_the_task_which_the_sentence_names() -> None:
    kept = [
        failure(number=0, tid=1, final=True),
        failure(number=1, tid=1, final=False),
        failure(number=2, tid=12, final=True),
    ]
    for error, number in {
        "task 1 'work' failed after 3 attempts; last on client 12: KeyError: 'task 12'": 0,
        "task 12 'work' failed after 3 attempts; last on client 1: boom\ntask 1": 2,
        "task 7 'work' failed after 1 attempt; last on client 1: boom": None,
        "too many tasks failed": 2,
        "": 2,
    }.items():
        found = cause_of_end(error, kept)
        assert (None if found is None else found["number"]) == number, error
    assert cause_of_end("too many tasks failed", kept[1:2]) is None


def test_failure_in_full_says_where_when_and_what_it_printed() -> None:
    assert failure_block(failure()) == (
        "  task 3 'work', attempt 2 of 3 on client 7 (vm), after 1.250 s:\n"
        "    Traceback (most recent call last):\n"
        '      File "/data/programs/ab/node.py", line 3, in work\n'
        '        return {"x": {}["missing"]}\n'
        "    KeyError: 'missing'\n"
        "    its stderr ended with:\n"
        "      one\n"
        "      two"
    )
    killed = failure(
        error="node failed: signal 9 (SIGKILL)",
        detail={"exit_code": None, "signal": 9, "out_of_memory": True, "run_ms": 3, "stderr": ""},
    )
    assert failure_block(killed) == (
        "  task 3 'work', attempt 2 of 3 on client 7 (vm), after 0.003 s, signal 9, "
        "out of memory:\n"
        "    node failed: signal 9 (SIGKILL)"
    )


# --- what is in the way --------------------------------------------------------------


def obstacle(world: World, job: int, told: Told | None = None) -> tuple[str, str] | None:
    """Return kind and words of what a job waits for."""
    summary = world.schedule.job_summary(JobId(job), told or Told())
    assert summary is not None
    found = summary["obstacle"]
    if found is None:
        return None
    assert isinstance(found, dict)
    [listed] = [one for one in world.schedule.jobs(told or Told()) if one["job"] == job]
    assert listed["obstacle"] == found
    return found["kind"], f"waits: {with_hint(found)}"


def test_no_client_is_the_obstacle_until_one_comes() -> None:
    world = World()
    job = world.submit()
    assert obstacle(world, job) is None, "its scheduler is asked first"
    world.answer(job, TaskSpec("work"))
    assert obstacle(world, job) == (
        "no_client",
        "waits: no client is alive; start one with: tasksprint client",
    )
    client = world.join("a")
    assert obstacle(world, job) is None
    client.leave()
    assert obstacle(world, job) == (
        "no_client",
        "waits: no client is alive (the only one left or fell silent); "
        "start one with: tasksprint client",
    )
    served = world.submit(manifest='{"node":"attached:gpu"}')
    world.answer(served, TaskSpec("work"))
    assert obstacle(world, served) == (
        "no_client",
        "waits: no client is alive (the only one left or fell silent), and no node is attached "
        "as 'gpu'; start one with: tasksprint client",
    )


def test_nodes_that_people_attach_are_the_obstacle_until_they_do() -> None:
    world = World()
    client = world.join("a")
    job = world.submit(manifest='{"node":"attached:gpu"}')
    world.answer(job, TaskSpec("work"))
    assert obstacle(world, job) == (
        "no_attached_node",
        "waits: no node is attached as 'gpu'; "
        "start one with: tasksprint node --exec PROGRAM --name gpu",
    )
    world.apply(NodesAttached(client.cid, client.incarnation, 1, (("gpu", 1),)))
    assert obstacle(world, job) is None


def test_job_whose_scheduler_said_nothing_more_cannot_end_by_itself() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work"))
    world.answer_rest(job)
    assert obstacle(world, job) is None
    client.work()
    assert obstacle(world, job) is None, "its scheduler hasn't answered"
    world.answer(job)
    never = (
        "and never called finish: the job can't end unless a client comes or goes; "
        "end it with: tasksprint cancel"
    )
    assert obstacle(world, job) == (
        "nothing_left",
        f"waits: its scheduler started nothing more {never} {job}",
    )
    idle = world.submit()
    world.answer(idle)
    world.answer_rest(idle)
    assert obstacle(world, idle) == (
        "nothing_left",
        f"waits: its scheduler started no task {never} {idle}",
    )
    client.leave()
    world.answer_rest(idle)
    assert obstacle(world, idle) == (
        "no_client",
        "waits: no client is alive (the only one left or fell silent), and its scheduler "
        "started no task so far; start one with: tasksprint client",
    )


def test_timer_that_a_job_waits_for_is_named_with_the_time_left() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(job, StartTimer(7, 6_000), StartTimer(8, 90_000), StartTimer(9, 95_000))
    world.answer_rest(job)
    waits = "its scheduler waits for its timer"
    assert obstacle(world, job) == (
        "timer",
        f"waits: it has no task so far; {waits} 7, in 6 s (and 2 others later)",
    )
    world.tick(500)
    assert obstacle(world, job) == (
        "timer",
        f"waits: it has no task so far; {waits} 7, in 5 s (and 2 others later)",
    )
    for _ in range(6):
        world.tick(1_000)
    assert obstacle(world, job) is None, "its scheduler is asked"
    second = TaskSpec("second", pretasks=(TaskId(0),), prekeys=("x",))
    world.answer(job, TaskSpec("first", retries=0), second)
    assert obstacle(world, job) is None, "a task runs"
    fail(client, 0, "boom")
    world.answer_rest(job)
    assert obstacle(world, job) == (
        "timer",
        "waits: 1 task waits for task 0 'first', which failed; "
        f"{waits} 8, in 83 s (and 1 other later)",
    )
    done = world.submit()
    world.answer(done, TaskSpec("work"), StartTimer(1, 5_000))
    client.work()
    world.answer_rest(done)
    assert obstacle(world, done) == ("timer", f"waits: no task is left; {waits} 1, in 5 s")


def test_tasks_that_need_a_failed_one_are_told_with_it() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    world.answer(
        job,
        TaskSpec("first", retries=0),
        TaskSpec("second", pretasks=(TaskId(0),), prekeys=("x",)),
    )
    fail(client, 0, "boom")
    world.answer_rest(job)
    assert obstacle(world, job) == (
        "nothing_left",
        "waits: 1 task waits for task 0 'first', which failed, and its scheduler never called "
        "finish: the job can't end unless a client comes or goes; "
        f"end it with: tasksprint cancel {job}",
    )


def logged(world: World, job: int) -> list[str]:
    """Return the lines of a job's log."""
    rows = sorted(
        (key, row.columns)
        for (table, key), row in world.mirror.rows.items()
        if table == "job_log" and key[0] == job
    )
    return [str(columns[0]) for _, columns in rows if columns is not None]


def test_what_a_job_loses_by_the_death_of_a_client_stands_in_its_log() -> None:
    world = World()
    one, two = world.join("lab1", slots=2), world.join("lab2")
    job, other = world.submit(), world.submit()
    world.answer(job, TaskSpec("work"), TaskSpec("work"), TaskSpec("work"))
    one.work(1)
    before = world.schedule.job_news(job)
    two.leave()
    assert logged(world, job) == [
        "tasksprint: client 2 (lab2) left: 1 task that it had is placed anew"
    ]
    assert logged(world, other) == [], "it lost nothing"
    assert world.schedule.job_news(job) != before
    while one.work():
        pass
    world.answer(job, TaskSpec("use", pretasks=(TaskId(0), TaskId(1)), prekeys=("x", "x")))
    world.answer(job, TaskSpec("more"))
    world.answer_rest(job)
    assert world.states(job) == "dddaa"
    world.tick(500, SilentClient(one.cid, one.incarnation, 99))
    assert logged(world, job)[1:] == [
        "tasksprint: client 1 (lab1) fell silent: 2 tasks that it had are placed anew, "
        "2 results that only it had are computed again unless it comes back with them"
    ]
    one.join()
    assert world.states(job) == "dddaa"
    assert len(logged(world, job)) == 2
    one.join()
    again = "tasksprint: client 1 (lab1) was started again: 2 tasks that it had are placed anew"
    assert logged(world, job)[2:] == [again], "it came back with both results"
    del one.values[job, TaskId(1)]
    one.join()
    assert logged(world, job)[3:] == [
        f"{again}, 1 result that only it had is computed again"
    ]
    world.restart()
    one.leave()
    assert logged(world, job)[4:] == [
        "tasksprint: client 1 (lab1) left: 2 tasks that it had are placed anew, "
        "1 result that only it had is computed again unless it comes back with it"
    ]


def test_clients_that_die_again_and_again_leave_the_scheduler_its_lines() -> None:
    """They have lines of their own, the last of which says so."""
    world = World(rules=replace(RULES, job_log_lines_max=4, job_loss_lines_max=3))
    client = world.join("lab")
    job = world.submit()
    world.answer(job, TaskSpec("work"), WriteLog("one"))
    for number in range(6):
        if number == 2:
            world.restart()
        client.join()
        world.answer(job, WriteLog(f"after {number}"))
        world.answer_rest(job)
    again = "tasksprint: client 1 (lab) was started again: 1 task that it had is placed anew"
    assert logged(world, job) == [
        "one",
        again,
        "after 0",
        again,
        "after 1",
        f"{again}; nothing more is told here of clients that die",
        "after 2",
    ]
    summary = world.schedule.job_summary(job)
    assert summary is not None and summary["log_lines"] == 7


def test_jobs_that_move_or_have_ended_have_no_obstacle() -> None:
    world = World()
    world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work"), TaskSpec("work"), KillTask(1))
    world.answer_rest(job)
    assert obstacle(world, job) is None
    done = world.submit()
    world.answer(done, FinishJob((), "{}"))
    assert obstacle(world, done) is None


def test_silent_scheduler_is_the_obstacle_while_it_has_something_to_answer() -> None:
    world = World()
    world.join("a")
    job = world.submit()
    words = "its scheduler hasn't answered event 0 init() for 4 s; it is ended in 26 s"
    told = Told({job: words})
    assert obstacle(world, job, told) == ("scheduler", f"waits: {words}")
    world.answer(job, TaskSpec("work"))
    world.answer_rest(job)
    assert obstacle(world, job, told) is None, "another replica's scheduler has answered"


def test_what_clients_cannot_run_yet_is_told_if_nothing_else_runs() -> None:
    world = World()
    one, two = world.join("a"), world.join("b")
    job = world.submit()
    world.answer(job, TaskSpec("make", keys=()), TaskSpec("make"))
    one.work()
    two.work()
    holder = world.schedule.task_info(job, TaskId(0))
    assert holder is not None
    world.answer_rest(job)
    world.answer_rest(job)
    job = JobId(job)
    state = world.state.jobs[job]
    state.tasks[TaskId(0)].size_bytes = 629_145_600
    # One task more, on whichever client, that needs the first one's values.
    timer = world.submit()
    world.answer(timer, TaskSpec("use"))
    summary = world.schedule.job_summary(timer)
    assert summary is not None and summary["tasks"]["assigned"] == 1  # type: ignore[index]
    for kind, words in {
        "preparing": "client 2 prepares its program: unpacks it, and runs its setup",
        "disk": "client 2 starts no task: too little disk space",
        "starting": "client 2 starts nodes",
        "queued": "its task waits at client 2 for nodes that run other tasks",
        "fetching": "inputs are fetched, 0 bytes: values of tasks",
    }.items():
        told = Told({}, (Stall(ClientId(2), timer, kind, 1),))
        assert obstacle(world, timer, told) == (kind, f"waits: {words}")
    crashing = Stall(ClientId(2), timer, "crashing", 1, error="exit code 1")
    assert obstacle(world, timer, Told({}, (crashing,))) == (
        "crashing",
        "waits: its node doesn't start: exit code 1 (on client 2); "
        f"see: tasksprint logs {timer}",
    )
    for order in ((1, 2), (2, 1)):
        stalls = tuple(Stall(ClientId(cid), timer, "preparing", 1) for cid in order)
        assert obstacle(world, timer, Told({}, stalls)) == (
            "preparing",
            "waits: clients 1 and 2 prepare its program: unpack it, and run its setup",
        )
    many = tuple(Stall(ClientId(cid), timer, "starting", 1) for cid in range(9, 0, -1))
    assert obstacle(world, timer, Told({}, many)) == (
        "starting",
        "waits: clients 1, 2, 3 and 6 others start nodes",
    )
    assert obstacle(world, timer, Told({}, ())) is None
    assert obstacle(world, timer, Told({}, (Stall(ClientId(2), timer, "disk", 0),))) is None


def test_inputs_on_their_way_are_told_with_their_size() -> None:
    world = World()
    one = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("make"))
    one.work()
    two = world.join("b")
    world.state.jobs[job].tasks[TaskId(0)].size_bytes = 629_145_600
    world.answer_rest(job)
    extra = world.submit()
    world.answer(extra, TaskSpec("busy"))
    state = world.state.jobs[job]
    state.counts[2] += 1  # As if a task that needs it were assigned to the other client.
    told = Told({}, (Stall(two.cid, job, "fetching", 1, (TaskId(0),)),))
    assert obstacle(world, job, told) == (
        "fetching",
        "waits: inputs are fetched, 629.1 MB: values of task 0 from client 1 to client 2",
    )
    state.counts[2] -= 1


def long_run(world: World, job: int, *runs: LongRun) -> dict[str, Any] | None:
    """Return what is said of the task of a job that runs longest."""
    summary = world.schedule.job_summary(JobId(job), Told(runs=runs))
    assert summary is not None
    found = summary["long_run"]
    assert found is None or isinstance(found, dict)
    return found


HINT = (
    "if it hangs, give such tasks a limit: start_task(…, timeout=SECONDS), or "
    '"timeout_ms" in tasksprint.json'
)


def test_task_that_runs_longest_is_named_with_its_client_and_the_way_to_limit_it() -> None:
    world = World()
    client = world.join("a", slots=3)
    job = world.submit()
    world.answer(job, TaskSpec("work"), TaskSpec("work", timeout_ms=90_000), TaskSpec("quick"))
    client.poll()
    hangs = LongRun(client.cid, job, TaskId(0), 1, 4_200)
    limited = LongRun(client.cid, job, TaskId(1), 1, 5_000)
    assert long_run(world, job) is None
    assert long_run(world, job, hangs) == {
        "tid": 0,
        "name": "work",
        "attempt": 1,
        "cid": 1,
        "host": "a",
        "seconds": 4.2,
        "usual_seconds": None,
        "is_unlike": False,
        "text": "task 0 'work' runs on client 1 (a) for 4 s",
        "hint": "",
    }
    found = long_run(world, job, replace(hangs, run_ms=12_000), limited)
    assert found is not None
    assert (found["tid"], found["hint"]) == (0, HINT)
    found = long_run(world, job, hangs, limited)
    assert found is not None
    assert with_hint(found) == "task 1 'work' runs on client 1 (a) for 5 s; its timeout is 90 s"
    for over in (
        replace(hangs, tid=TaskId(9)),
        replace(hangs, attempt=2),
        replace(hangs, cid=ClientId(2)),
    ):
        assert long_run(world, job, over) is None, "it runs no more, or elsewhere"
    client.work(1)
    assert world.state_of(job, 0) == "done"
    assert long_run(world, job, hangs) is None


@pytest.mark.parametrize(
    ("usual_us", "run_ms", "words"),
    [
        (1_500_000, 7_400, None),
        (1_500_000, 7_500, "1.50 s"),
        (3_000, 4_999, None),
        (3_000, 5_000, "less than 0.01 s"),
        (12_345_678, 61_000, None),
        (12_345_678, 61_729, "12 s"),
    ],
)
def test_task_that_runs_much_longer_than_its_like_is_told_apart(
    usual_us: int, run_ms: int, words: str | None
) -> None:
    world = World(is_checked=False)
    client = world.join("a")
    job = world.submit()
    world.answer(job, TaskSpec("work"))
    client.poll()
    world.state.jobs[job].estimates_us["work"] = usual_us
    found = long_run(world, job, LongRun(client.cid, job, TaskId(0), 1, run_ms))
    assert found is not None
    assert found["is_unlike"] == (words is not None)
    told = f"task 0 'work' runs on client 1 (a) for {run_ms // 1_000} s"
    if words is not None:
        told += f", others of its name took {words}; {HINT}"
    assert with_hint(found) == told


def test_what_newer_or_broken_clients_say_of_long_runs_is_left_out() -> None:
    cid = ClientId(4)
    listed = [[1, 2, 3, 4_000], [1, 2, 3], [1, "2", 3, 4], None]
    assert decode_runs(cid, listed, 50) == (LongRun(cid, JobId(1), TaskId(2), 3, 4_050),)
    assert decode_runs(cid, {"a": 1}, 0) == decode_runs(cid, None, 0) == ()


def test_what_newer_or_broken_clients_say_of_their_stalls_is_left_out() -> None:
    cid = ClientId(4)
    assert decode_stalls(cid, [[1, "fetching", 2, [3, "x"]], [1, "dreaming", 1, []]]) == (
        Stall(cid, JobId(1), "fetching", 2, (TaskId(3),)),
    )
    crashing = [1, "crashing", 2, [], "exit code 1; its stderr ended with:\nboom"]
    assert decode_stalls(cid, [crashing, [2, "crashing", 1, [], 5]]) == (
        Stall(cid, JobId(1), "crashing", 2, error="exit code 1; its stderr ended with: boom"),
        Stall(cid, JobId(2), "crashing", 1),
    )
    for broken in (
        None,
        5,
        {},
        [None],
        [[]],
        [[1]],
        [[1, "disk", "x", []]],
        [["1", "disk", 1, []]],
    ):
        assert decode_stalls(cid, broken) == ()


def test_news_of_a_job_are_its_end_lines_and_failures_and_not_its_counts() -> None:
    world = World()
    client = world.join("a")
    job = world.submit()
    seen = [world.schedule.job_news(job)]

    def is_news() -> bool:
        now = world.schedule.job_news(job)
        changed = now != seen[-1]
        seen.append(now)
        return changed

    world.answer(job, TaskSpec("work"), TaskSpec("work"))
    client.work(1)
    assert not is_news()
    world.answer(job, WriteLog("half"))
    assert is_news()
    fail(client, 1, "boom")
    assert is_news()
    world.answer(job, FinishJob((), "{}"))
    assert is_news()
    assert world.schedule.job_news(JobId(99)) is None


# --- nobody leads --------------------------------------------------------------------


def test_members_that_are_not_heard_are_named_with_their_addresses() -> None:
    others = {ReplicaId(number): f"h{number}:7070" for number in (3, 2)}
    for ages, words in (
        ({2: 100, 3: 2_000}, ""),
        ({2: 100, 3: None}, "it hears replica 2; it doesn't hear replica 3 (h3:7070)"),
        ({2: 2_001}, "it doesn't hear replica 2 (h2:7070, since 2 s), 3 (h3:7070)"),
    ):
        known = {ReplicaId(number): age for number, age in ages.items()}
        assert describe_unheard(others, known, silent_ms=2_000) == words
    many = {ReplicaId(number): "h:1" for number in range(2, 11)}
    assert describe_unheard(many, {}, silent_ms=1).endswith(", 6 (h:1), 4 more")


@pytest.mark.parametrize(
    ("addresses", "join", "schedule", "words"),
    [
        ({1: "h1:1"}, (), None, "replica 1 isn't ready yet; it is the only member"),
        ({1: "h1:1"}, (), "it", "replica 1 doesn't lead yet; it is the only member, and will"),
        (
            {},
            ("h2:1",),
            None,
            "replica 1 waits until the cluster adds it: tasksprint member add 1=HOST:PORT",
        ),
        (
            {1: "h1:1", 2: "h2:1"},
            (),
            None,
            "replica 1 waits for the other members to be up; it doesn't hear replica 2 (h2:1)",
        ),
    ],
)
def test_coordinator_that_has_not_begun_says_whom_it_waits_for(
    addresses: dict[int, str], join: tuple[str, ...], schedule: str | None, words: str
) -> None:
    options = SimpleNamespace(me=1, join=join, peers=addresses)
    replica: Any = SimpleNamespace(
        status=lambda: SimpleNamespace(peers={}), membership=None, founding=None
    )
    roster = Roster(replica, cast(Any, options))
    state = cast(Any, schedule)
    assert why_leaderless(roster, replica, state, silent_ms=1) == words
    if schedule is None:
        assert why_not_level(roster, replica, state) == words.split("; it doesn't")[0]


def test_commands_tell_what_each_coordinator_answered_or_why_it_did_not(tmp_path: Path) -> None:
    addresses = ["h1:1", "h2:1", "h3:1"]
    cluster = Cluster(addresses, create_key(tmp_path / "key"), Settings())
    refused = {"h2:1": "cannot reach h2:1: connection refused", "h3:1": "h3:1 timed out"}
    assert str(cluster._nobody({"h1:1": "replica 1 hears no leader"}, refused)) == (
        "no coordinator leads at h1:1, h2:1, h3:1: replica 1 hears no leader; cannot reach h2:1: "
        "connection refused; h3:1 timed out; a majority of them must be up: see 'tasksprint "
        "status'; or name others with --coordinators"
    )
    assert str(cluster._nobody({}, refused)) == (
        "no coordinator answers at h1:1, h2:1, h3:1: cannot reach h2:1: connection refused; h3:1 "
        "timed out; start one with 'tasksprint coordinator'; or name others with --coordinators"
    )
    many = {f"h{number}:1": f"no {number} at h{number}:1" for number in range(9)}
    words = str(cluster._nobody({}, many))
    assert "1: no 0 at h0:1; no 1 at h1:1; no 2 at h2:1; no 3 at h3:1; no 4 at h4:1; 4 m" in words


def test_commands_tell_where_it_was_said_that_somebody_is_not_ready(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    said = {"h1:1": "not ready", "h2:1": "not ready", "h3:1": "replica 3 hears no leader"}
    assert str(Cluster([*said], key, Settings())._nobody(said, {})).startswith(
        "no coordinator leads at h1:1, h2:1, h3:1: h1:1: not ready; h2:1: not ready; "
        "replica 3 hears no leader; "
    )
    assert str(Cluster(["h1:1"], key, Settings())._nobody({"h1:1": "not ready"}, {})).startswith(
        "no coordinator leads at h1:1: not ready; "
    )


# --- the words of commands -------------------------------------------------------------


def test_commands_in_sentences_are_those_by_which_the_program_was_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/my tools/tasksprint.pyz"])
    mine = "python3 '/opt/my tools/tasksprint.pyz'"
    for told, shown in {
        "start one with: tasksprint client": f"start one with: {mine} client",
        "see 'tasksprint log show --slot 7'": f"see '{mine} log show --slot 7'",
        "tasksprint member add 4=h:1 (or tasksprint restore F)": (
            f"{mine} member add 4=h:1 (or {mine} restore F)"
        ),
        "a tasksprint of your own": "a tasksprint of your own",
        "data in /var/lib/tasksprint client": "data in /var/lib/tasksprint client",
        "tasksprint.json has a slip": "tasksprint.json has a slip",
    }.items():
        assert as_started(told) == shown
    assert program_command("member", "add") == f"{mine} member add"
    assert with_hint({"text": "no client", "hint": "start: tasksprint client"}) == (
        f"no client; start: {mine} client"
    )
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    for number in range(21):
        progress.failed(failure(number=number), in_full=False)
    progress.tell(1.0)
    assert screen.new().endswith(f"1 more failures; '{mine} logs' shows those of a task\n")


def test_errors_and_help_name_the_program_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["./100%/tasksprint.pyz"])
    assert main(["jobs", "--no-such"]) == 64
    assert capsys.readouterr().err.endswith("; see 'python3 ./100%/tasksprint.pyz jobs --help'\n")
    with pytest.raises(SystemExit):
        parse_command(["jobs", "--help"])
    assert "usage: python3 ./100%/tasksprint.pyz jobs " in capsys.readouterr().out


def test_every_command_is_known_where_sentences_are_put_into_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_command(["--help"])
    listed = capsys.readouterr().out.partition("\ncommands:")[2]
    assert set(COMMANDS) == set(re.findall(r"(?m)^    ([a-z]+)\b", listed))


# --- the line of now -----------------------------------------------------------------


class Screen(io.StringIO):
    """A stream that is a terminal, or isn't."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def new(self) -> str:
        """Return what was written since the last time."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def stands(
    seconds: float, *, state: str = "running", waits: Any = None, **tasks: int
) -> JobOutcome:
    return JobOutcome(JobId(1), "job", state, tasks, None, None, seconds, waits)


STUCK = {"kind": "no_client", "text": "no client is alive", "hint": "start one"}


def test_a_line_each_second_is_of_now() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=100.0)
    for second in range(6):
        progress.stands(stands(float(second), assigned=1), 100.0 + second)
        assert progress.line_due_s <= 100.0 + second + 0.001
        progress.tell(100.0 + second)
    lines = screen.new().splitlines()
    assert lines[0] == "[   0.0 s] 0 of 1 tasks done, 1 running"
    assert lines[-1] == "[   5.0 s] 0 of 1 tasks done, 1 running, unchanged for 5 s"
    assert len(lines) == 6


def test_what_was_seen_long_ago_is_not_shown_as_if_it_were_so() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    progress.stands(stands(0.0, assigned=1), 0.0)
    progress.tell(2.5)
    assert screen.new() == "[   2.5 s] no answer for 2 s\n"
    progress.unanswered("cannot reach 127.0.0.1:7070: connection refused", 3.0)
    progress.tell(4.0)
    assert screen.new() == (
        "[   4.0 s] no answer for 4 s: cannot reach 127.0.0.1:7070: connection refused; "
        "the job isn't lost: waiting for an answer\n"
    )
    for second in range(5, 27):
        progress.unanswered("cannot reach 127.0.0.1:7070: connection refused", float(second))
        progress.tell(float(second))
    assert screen.new() == "still no answer for 14 s\nstill no answer for 24 s\n"
    progress.stands(stands(5.0, done=1), 5.0)
    progress.tell(5.0)
    assert screen.new() == "[   5.0 s] 1 of 1 tasks done\n"


def test_rate_and_time_left_are_told() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    for second in range(4):
        progress.stands(stands(float(second), done=10 * second, ready=100 - 10 * second), second)
    progress.tell(3.0)
    assert screen.new() == "[   3.0 s] 30 of 100 tasks done, 70 ready, 10.0/s, 7 s left\n"
    progress.stands(stands(4.0, state="finished", done=100), 4.0)
    progress.tell(4.0)
    assert screen.new() == "[   4.0 s] 100 of 100 tasks done\n"


def test_obstacle_is_named_once_it_lasts_and_in_full_now_and_then() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    shown = []
    for second in range(13):
        progress.stands(stands(float(second), waits=STUCK, ready=1), float(second))
        progress.tell(float(second))
        shown.append(screen.new().partition("] ")[2])
    assert shown[0] == "0 of 1 tasks done, 1 ready\n"
    assert shown[1] == "0 of 1 tasks done, 1 ready; no client is alive; start one\n"
    assert shown[2] == "0 of 1 tasks done, 1 ready; still waiting for that\n"
    assert shown[11] == shown[1]
    progress = Progress(screen, now_s=0.0, with_hints=False)
    for second in (0.0, 1.0):
        progress.stands(stands(second, waits=STUCK, ready=1), second)
    progress.tell(1.0)
    assert screen.new() == "[   1.0 s] 0 of 1 tasks done, 1 ready; no client is alive\n"


def test_task_that_holds_up_all_others_is_named_while_nothing_moves() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    run = {"tid": 7, "cid": 2, "text": "task 7 runs", "hint": "", "is_unlike": False}
    hinted = {**run, "hint": "limit it"}
    shown = []
    for second in range(17):
        found = None if second < 3 else run if second < 5 else hinted
        progress.stands(
            replace(stands(float(second), assigned=1), long_run=found), float(second)
        )
        progress.tell(float(second))
        shown.append(screen.new().partition(" running")[2])
    assert shown[:3] == ["\n", "\n", ", unchanged for 2 s\n"]
    assert shown[3:7] == [
        ", unchanged for 3 s; task 7 runs\n",
        ", unchanged for 4 s: task 7 on client 2\n",
        ", unchanged for 5 s; task 7 runs; limit it\n",
        ", unchanged for 6 s: task 7 on client 2\n",
    ]
    assert shown[15] == ", unchanged for 15 s; task 7 runs; limit it\n"
    # Others are done meanwhile: it is named only if it is unlike them, and now and then.
    for is_unlike in (False, True):
        progress = Progress(screen, now_s=0.0, with_hints=False)
        for second in range(3):
            moves = replace(
                stands(float(second), done=second, assigned=1),
                long_run={**hinted, "is_unlike": is_unlike},
            )
            progress.stands(moves, float(second))
            progress.tell(float(second))
        assert screen.new().count("; task 7 runs; limit it\n") == is_unlike


def test_terminal_gets_a_bar_that_is_rewritten_and_kept_within_its_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen(is_terminal=True)
    progress = Progress(screen, now_s=0.0)
    progress.stands(stands(0.0, done=3, assigned=1), 0.0)
    progress.tell(0.0)
    text = screen.new()
    assert text.startswith("\r\x1b[K[   0.0 s] |##################------| 3 of 4")
    assert len(text) - len("\r\x1b[K") == 59
    progress.logged("half way \x1b[2J")
    assert screen.new() == "\r\x1b[Klog: half way \\x1b[2J\n"
    progress.end()
    assert screen.new() == "\n"


def test_text_of_users_cannot_write_to_the_terminal_by_any_way() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    bad = "\x1b]0;owned\x07\x9b"
    progress.logged(bad)
    progress.printed(1, 2, 1, f"{bad}\n{bad}\n")
    progress.failed(failure(error=bad, name=bad, detail={"traceback": bad}), in_full=True)
    progress.unanswered(bad, 1.0)
    progress.tell(1.0)
    progress.stands(stands(1.0, waits={"kind": "x", "text": bad, "hint": ""}), 1.0)
    progress.stands(stands(2.0, waits={"kind": "x", "text": bad, "hint": ""}), 2.0)
    progress.tell(2.0)
    assert screen.new().replace("\n", "").isprintable()


def test_many_failures_are_counted_and_not_all_shown() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0)
    for number in range(50):
        progress.failed(failure(number=number), in_full=False)
    progress.missed(7)
    progress.stands(stands(1.0, assigned=1), 1.0)
    progress.tell(1.0)
    lines = screen.new().splitlines()
    assert len(lines) == 20 + 1 + 1 + 1
    assert lines[20] == "7 earlier failures aren't kept any more"
    assert lines[21] == "30 more failures; 'tasksprint logs' shows those of a task"


def test_programs_get_a_line_of_json_for_each_thing_that_happens() -> None:
    screen = Screen()
    progress = Progress(screen, now_s=0.0, as_json=True)
    progress.logged("half way")
    progress.failed(failure(), in_full=True)
    progress.missed(2)
    progress.printed(1, 2, 3, "text\n")
    progress.unanswered("nobody", 0.5)
    progress.tell(1.0)
    progress.stands(stands(2.0, waits=STUCK, ready=1), 2.0)
    progress.tell(2.0)
    progress.end()
    events = [json.loads(line) for line in screen.new().splitlines()]
    assert events == [
        {"event": "log", "text": "half way"},
        {"event": "failure", **failure()},
        {"event": "missed", "failures": 2},
        {"event": "stderr", "cid": 1, "tid": 2, "attempt": 3, "text": "text\n"},
        {"event": "progress", "unanswered": {"seconds": 1.0, "cause": "nobody"}},
        {
            "event": "progress",
            "job": 1,
            "state": "running",
            "seconds": 2.0,
            "tasks": {"ready": 1},
            "obstacle": STUCK,
            "long_run": None,
        },
    ]


def test_counts_in_words() -> None:
    assert counts_in_words({}) == "no tasks yet"
    assert counts_in_words({"done": 3, "assigned": 2, "waiting": 1, "failed": 0}) == (
        "3 of 6 tasks done, 2 running, 1 waiting"
    )
    fetching = {"kind": "fetching", "text": "", "hint": ""}
    assert counts_in_words({"done": 1, "assigned": 1}, fetching) == (
        "1 of 2 tasks done, 1 handed out"
    )
