"""Jobs from submission to end, and the exact lines of their events."""

from __future__ import annotations

from tasksprint.coordination.commands import CancelJob, SchedulerOut, SubmitJob
from tasksprint.coordination.view import DropJob
from tasksprint.scheduler_commands import FailJob, FinishJob, StartTimer, WriteLog
from tasksprint.settings import RULES_BY_VERSION
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World, reply_of


def lines(world: World, job: int) -> list[str]:
    found = [row for row in world.mirror.rows.values() if row.table == "events"]
    return [str(row.columns[0]) for row in found if row.key[0] == job and row.columns]


def test_a_job_is_told_its_seed_and_parameters_then_who_is_there() -> None:
    world = World()
    world.join("a", slots=2)
    world.join("b", slots=3)
    world.tick(400)
    job = world.submit(params='{"big":1180591620717411303424,\n "name":"π"}')
    world.answer(job)
    world.tick(500)
    world.join("c")
    assert lines(world, job) == [
        '{"event":0,"kind":"init","time_ms":0,"seed":7,"job":1,'
        '"params":{"big":1180591620717411303424,  "name":"π"}}',
        '{"event":1,"kind":"client_joined","time_ms":0,"cid":1,"num_nodes":2}',
        '{"event":2,"kind":"client_joined","time_ms":0,"cid":2,"num_nodes":3}',
        '{"event":3,"kind":"client_joined","time_ms":500,"cid":3,"num_nodes":1}',
    ]


def test_a_done_task_is_told_with_the_values_that_were_asked_for() -> None:
    world = World()
    client = world.join()
    job = world.submit()
    world.answer(job, TaskSpec("map", keys=("result", "ключ")), TaskSpec("map"))
    world.tick(300)
    client.poll()
    first, *_ = client.assigned.values()
    completion = client.run(first)
    inline = {
        "ключ": ("bytes", "AAH/"),
        "result": ("json", "1180591620717411303424"),
        "other": ("json", "3"),
    }
    object.__setattr__(completion, "inline", inline)
    client.report(completions=[completion])
    client.work()
    assert lines(world, job)[2:] == [
        '{"event":2,"kind":"task_done","time_ms":300,"tid":0,'
        '"values":{"result":1180591620717411303424},"base64":{"ключ":"AAH/"}}',
        '{"event":3,"kind":"task_done","time_ms":300,"tid":1,"values":{}}',
    ]


def test_a_timer_runs_out_in_log_time_and_the_leader_knows_when() -> None:
    world = World()
    job = world.submit()
    world.tick(100)
    world.answer(job, StartTimer(7, 1_200), StartTimer(8, 300), StartTimer(9, 1_200))
    assert world.schedule.next_timer_ms == 400
    world.tick(300)
    assert world.schedule.next_timer_ms == 1_300
    world.tick(899)
    assert world.kinds(job) == ["init", "timer"]
    world.tick(1)
    assert lines(world, job)[1:] == [
        '{"event":1,"kind":"timer","time_ms":400,"timer":8}',
        '{"event":2,"kind":"timer","time_ms":1300,"timer":7}',
        '{"event":3,"kind":"timer","time_ms":1300,"timer":9}',
    ]
    assert world.schedule.next_timer_ms is None


def test_a_tick_counts_for_no_more_than_its_limit() -> None:
    world = World()
    world.tick(60_000)
    assert world.schedule.log_time_ms == world.rules.tick_elapsed_max_ms


def test_a_finished_job_keeps_the_named_results_and_nothing_else() -> None:
    world = World()
    client = world.join(slots=4)
    job = world.submit()
    world.answer(job, *[TaskSpec("map") for _ in range(4)])
    assert client.work(2) == [0, 1]
    client.poll()
    assert len(client.assigned) == 2
    world.tick(500)
    applied = world.answer(job, FinishJob((1,), '{"pi":3.14}'), TaskSpec("never"))
    assert applied.jobs == (job,)
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert (summary["state"], summary["values"], summary["taskids"]) == (
        "finished",
        '{"pi":3.14}',
        [1],
    )
    assert summary["seconds"] == 0.5
    assert summary["tasks"] == {
        "waiting": 0,
        "ready": 2,
        "assigned": 0,
        "done": 2,
        "failed": 0,
        "killed": 0,
    }
    view = client.poll()
    assert view is not None
    assert view.drop_jobs == (DropJob(job, (1,)),)
    assert client.assigned == {}
    assert list(client.values) == [(job, 1)]
    info = world.schedule.task_info(job, 1)
    assert info is not None
    assert (info["holders"], info["addresses"]) == ([1], ["a:1"])
    assert world.schedule.task_info(job, 0) is None
    assert not world.schedule.is_running(job)
    world.join("b")
    assert world.kinds(job)[-1] == "task_done", "an ended job gets no more events"


def test_a_late_completion_for_an_ended_job_is_dropped_again() -> None:
    world = World()
    client = world.join(slots=2)
    job = world.submit()
    world.answer(job, TaskSpec("map"), TaskSpec("map"))
    client.poll()
    late = [client.run(one) for one in list(client.assigned.values())]
    world.answer(job, FailJob("no"))
    client.poll()
    client.values[job, 0] = late[0].result_digest  # Stored just after it heard.
    client.report(completions=late)
    view = client.poll()
    assert view is not None
    assert view.drop_jobs == (DropJob(job, ()),)
    assert client.values == {}


def test_a_scheduler_can_fail_its_job_with_its_own_words() -> None:
    world = World()
    job = world.submit()
    world.answer(job, TaskSpec("map"), FailJob("the input is empty"))
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert (summary["state"], summary["error"]) == ("failed", "the input is empty")


def test_cancelling_counts_once_and_an_ended_job_stays_as_it_ended() -> None:
    world = World()
    job = world.submit()
    applied = world.apply(CancelJob("me", 1, job, "enough"))
    assert reply_of(applied) == {"job": 1, "state": "cancelled"}
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert (summary["state"], summary["error"]) == ("cancelled", "enough")
    assert reply_of(world.apply(CancelJob("me", 2, job, ""))) == {"job": 1, "state": "cancelled"}
    assert reply_of(world.apply(CancelJob("me", 3, 9, ""))) == {"error": "there is no job 9"}


def test_a_submission_that_comes_twice_starts_one_job() -> None:
    world = World()
    command = SubmitJob("me", 1, "pi", 1, "{}", "p", "{}")
    assert reply_of(world.apply(command)) == {"job": 1}
    assert reply_of(world.apply(command)) == {"job": 1}
    assert reply_of(world.apply(SubmitJob("you", 1, "pi", 1, "{}", "p", "{}"))) == {"job": 2}
    assert world.schedule.running_jobs() == (1, 2)


def test_a_submission_that_makes_no_sense_is_refused_as_release_0_2_0_did() -> None:
    """The replies are kept in the state, and its rules are that release's."""
    world = World(rules=RULES_BY_VERSION[1])
    for number, (params, manifest, error) in enumerate(
        [
            ("{", "{}", "the job's parameters are not JSON: "),
            ("{}", "x", "the job's manifest is not JSON: "),
            ("{}", "[]", "the manifest must be an object, found '[]'"),
            ("{}", '{"node":3}', "the manifest's 'node' must be text, found 3"),
            (
                "{}",
                '{"retries":-1}',
                "the manifest's 'retries' must be a whole number of at least 0, found -1",
            ),
            (
                "{}",
                '{"timeout_ms":"5s"}',
                "the manifest's 'timeout_ms' must be a whole number of at least 0, found '5s'",
            ),
        ]
    ):
        reply = reply_of(world.apply(SubmitJob("me", number, "pi", 1, params, "p", manifest)))
        assert reply["error"].startswith(error)
    assert world.schedule.jobs() == []


def test_why_a_submission_is_refused_is_said_in_words_of_our_own() -> None:
    """What a library says of JSON, and how Python shows a text, changes with their versions."""
    world = World()
    deep = "[" * 1_000 + "]" * 1_000
    whole = "must be a whole number of at least 0"
    for number, (params, manifest, error) in enumerate(
        [
            ("{", "{}", "the job's parameters aren't a JSON object"),
            ("[\u1fae0]", "{}", "the job's parameters aren't a JSON object"),
            (deep, "{}", "the job's parameters aren't a JSON object"),
            ("{}", "x", "the job's manifest isn't JSON"),
            ("{}", "[]", "the manifest must be an object"),
            ("{}", f'{{"node":{deep}}}', "the manifest's 'node' must be text"),
            ("{}", '{"retries":-1}', f"the manifest's 'retries' {whole}"),
            ("{}", '{"timeout_ms":"5s"}', f"the manifest's 'timeout_ms' {whole}"),
        ]
    ):
        reply = reply_of(world.apply(SubmitJob("me", number, "pi", 1, params, "p", manifest)))
        assert reply == {"error": error}
    assert world.schedule.jobs() == []


def test_without_schedulers_on_a_majority_the_job_fails_and_says_why() -> None:
    world = World()
    job = world.submit()
    world.apply(SchedulerOut(2, job, "crashed", "exit code 1"))
    world.apply(SchedulerOut(2, job, "crashed", "exit code 1"))
    assert world.schedule.is_running(job)
    world.apply(SchedulerOut(3, job, "crashed", "killed by signal 9"))
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["error"] == (
        "the scheduler crashed on 2 of 3 replicas;"
        " replica 2: exit code 1; replica 3: killed by signal 9"
    )


def test_schedulers_that_differ_fail_the_job_once_none_is_left() -> None:
    world = World()
    job = world.submit()
    world.apply(SchedulerOut(1, job, "diverged", "event 3: start map"))
    world.apply(SchedulerOut(2, job, "diverged", "event 4: start map"))
    assert world.schedule.is_running(job)
    world.apply(SchedulerOut(3, job, "crashed", "exit code 1"))
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["error"] == (
        "the scheduler crashed or gave answers that differ on 3 of 3 replicas;"
        " replica 1: event 3: start map; replica 2: event 4: start map; replica 3: exit code 1"
    )


def test_the_only_scheduler_that_crashes_fails_the_job_with_its_error() -> None:
    world = World(members=(1,))  # type: ignore[arg-type]
    job = world.submit()
    world.apply(SchedulerOut(1, job, "crashed", "the scheduler exited with code 1: no such file"))
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["error"] == "the scheduler exited with code 1: no such file"


def test_schedulers_that_crash_alike_are_told_once() -> None:
    world = World()
    job = world.submit()
    for replica in (1, 3):
        tail = f"\nin /data/{replica}/scheduler.py"
        error = f"scheduler exited with code 1{tail}"
        world.apply(SchedulerOut(replica, job, "crashed", error))
    summary = world.schedule.job_summary(job)
    assert summary is not None
    assert summary["error"] == (
        "on 2 of 3 replicas: scheduler exited with code 1\nin /data/1/scheduler.py"
    )


def test_log_lines_are_rows_and_long_ones_are_cut() -> None:
    world = World()
    job = world.submit()
    world.answer(job, WriteLog("hello"), WriteLog("é" * 5_000))
    logged = [
        row.columns[0]
        for (table, _), row in world.mirror.rows.items()
        if table == "job_log" and row.columns is not None
    ]
    assert logged == ["hello", "é" * 2_048 + "…"]


def test_several_jobs_run_at_once_and_share_the_clients() -> None:
    world = World()
    client = world.join(slots=2)
    first, second = world.submit(), world.submit()
    world.answer(first, *[TaskSpec("map") for _ in range(10)])
    world.answer(second, *[TaskSpec("map") for _ in range(10)])
    client.work()  # The first of each name shows how long they run.
    client.work(3)
    client.poll()
    jobs = [job for job, _ in client.assigned]
    assert jobs[:8] == [first, second] * 4, "round robin"


def test_bytes_that_are_no_command_are_answered_and_do_not_stop_the_rest() -> None:
    world = World()
    applied = world.apply(b"garbage", SubmitJob("me", 1, "pi", 1, "{}", "p", "{}"))
    assert reply_of(applied, 0)["error"].startswith("not JSON: ")
    assert reply_of(applied, 1) == {"job": 1}
    assert applied.notes[0].startswith("ignored bytes that are not JSON: ")
