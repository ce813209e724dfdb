"""The parts of the torture, most without processes; the whole is `python -m tests.torture`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasksprint.ids import TaskId, task_seed
from tests.torture import __main__ as torture
from tests.torture import findings
from tests.torture.audit import Audit
from tests.torture.faults import plan
from tests.torture.findings import check_files
from tests.torture.jobs import KINDS, JobRequest, random_job, what_is_wrong
from tests.torture.machines import Machines

JOB = JobRequest(sender="a", request=1, kind="fan", seed=5, token=77, width=3, ms=0)


def test_plan_of_a_seed_is_always_the_same() -> None:
    assert plan(3, 300, has_network=True) == plan(3, 300, has_network=True)
    assert plan(3, 300, has_network=True) != plan(4, 300, has_network=True)


def test_plan_has_faults_of_all_kinds_in_order_and_calm_phases() -> None:
    kinds: set[str] = set()
    for seed in range(20):
        faults = plan(seed, 290, has_network=True)
        assert 50 < len(faults) < 200
        assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
        assert all(fault.end_s <= 290.1 for fault in faults)
        assert all(not 36 < fault.at_s % 43 < 42 for fault in faults)
        assert max(fault.for_s for fault in faults) <= 10
        kinds |= {fault.kind for fault in faults}
    assert len(kinds) == 20


def test_long_plan_stops_a_leader_for_a_minute_and_never_two_for_long_at_once() -> None:
    stops: list[float] = []
    for seed in range(20):
        faults = [each for each in plan(seed, 600, has_network=True) if each.for_s >= 10]
        assert {each.kind for each in faults} == {"stop"}
        assert [each.victim for each in faults if each.for_s == 60] == [0]
        assert all(each.end_s < 600 for each in faults)
        assert not any(a.overlaps(b) for a in faults for b in faults if a is not b)
        stops += [each.for_s for each in faults]
    assert len(stops) > 40


def test_plan_of_a_minute_changes_the_members_early() -> None:
    for seed in range(20):
        kinds = [each.kind for each in plan(seed, 60, has_network=False) if each.at_s < 15]
        assert {"lose disk", "replace", "add and remove"} & set(kinds)


def test_plan_without_a_network_has_no_faults_of_networks() -> None:
    kinds = {fault.kind for fault in plan(1, 600, has_network=False)}
    assert not kinds & {"isolate", "lose what it sends", "split", "flap", "isolate client"}
    assert {"kill", "stop", "restart", "replace"} <= kinds


# --- the jobs ---


def drawn_by_node(job: JobRequest) -> str:
    """Return what the node of the torture makes of a job, its tasks done one by one."""
    seeds = [task_seed(job.seed, TaskId(number)) for number in range(job.tasks)]
    if job.kind == "dice":
        throws = _answers([{"id": n, "name": "throw", "args": [0], "seed": 0} for n in range(2)])
        assert throws[0] != throws[1]
        return "+".join(throw for throw in throws for _ in range(2))
    drawn: list[str] = []
    for number in range(job.width):
        args: list[object] = [job.token, number, job.ms]
        args += drawn[-1:] if job.kind != "fan" else []
        task = {"id": number, "name": "draw", "args": args, "seed": seeds[number]}
        drawn += _answers([task])
    if job.kind != "fan":
        return drawn[-1]
    (joined,) = _answers([{"id": 9, "name": "join", "args": drawn, "seed": 0}])
    return joined


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_node_of_the_jobs_computes_what_is_expected_of_it(kind: str) -> None:
    job = replace(JOB, kind=kind, width=2)
    values = {"drawn": drawn_by_node(job), "told": job.tasks}
    assert what_is_wrong(job, values) is None
    again = what_is_wrong(job, {**values, "told": job.tasks + 1})
    assert again == f"its scheduler was told of {job.tasks + 1} tasks, expected {job.tasks}"
    other = what_is_wrong(job, {**values, "drawn": "f" * 16})
    assert other is not None and "expected" in other


def test_throw_that_was_used_as_two_numbers_is_found() -> None:
    job = replace(JOB, kind="dice", width=2)
    one, two = "0" * 16, "1" * 16
    told = {"told": job.tasks}
    assert what_is_wrong(job, {"drawn": "+".join([one, one, two, two]), **told}) is None
    wrong = what_is_wrong(job, {"drawn": "+".join([one, one, two, one]), **told})
    assert wrong is not None and wrong.startswith("one throw was used as ")


def test_jobs_are_of_all_kinds() -> None:
    random = Random(1)
    jobs = [random_job("a", number, random) for number in range(200)]
    assert {job.kind for job in jobs} == set(KINDS)
    assert all(job.tasks >= 1 for job in jobs)


def _answers(lines: list[dict[str, Any]]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-I", str(Path(__file__).parent / "job" / "node.py")],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    first, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert first == {"ready": {}}
    return [answer["values"]["drawn"] for answer in answers]


# --- what the mirrors say ---


def machines_of(folder: Path, *mirrors: tuple[list[int], list[int]]) -> Machines:
    """Make the files of coordinators: of each, its jobs, and the tasks that it says are done."""
    names = tuple(f"coordinator-{number}" for number in range(1, len(mirrors) + 1))
    for name, (jobs, done) in zip(names, mirrors, strict=True):
        (folder / name).mkdir()
        database = sqlite3.connect(folder / name / "replica.db")
        database.execute("CREATE TABLE jobs (job, name, state, body)")
        database.execute("CREATE TABLE events (job, number, line)")
        for job in jobs:
            database.execute("INSERT INTO jobs VALUES (?, 'x', 'finished', '{}')", (job,))
        for number, tid in enumerate(done):
            line = json.dumps({"event": number, "kind": "task_done", "tid": tid})
            database.execute("INSERT INTO events VALUES (1, ?, ?)", (number, line))
        database.commit()
        database.close()
    return cast(Machines, SimpleNamespace(folder=folder, coordinators=names))


def test_mirrors_that_agree_are_fine_whatever_they_have_forgotten(tmp_path: Path) -> None:
    machines = machines_of(tmp_path, ([1], [0, 1, 2]), ([1], []))
    assert check_files(machines, {1: JOB}, Audit()) == []


def test_task_that_was_done_twice_is_found(tmp_path: Path) -> None:
    machines = machines_of(tmp_path, ([1], [0, 1, 0]))
    assert check_files(machines, {1: JOB}, Audit()) == [
        "task 0 of job 1 was told to be done twice"
    ]


def test_job_that_is_lost_and_job_that_nobody_wants_are_found(tmp_path: Path) -> None:
    machines = machines_of(tmp_path, ([2], []))
    assert check_files(machines, {1: JOB}, Audit()) == [
        "coordinator-1: jobs that nobody wants, or that are missing: [1, 2]"
    ]


def test_mirrors_that_differ_are_found(tmp_path: Path) -> None:
    machines = machines_of(tmp_path, ([1], [0, 1]), ([1], [1, 0]))
    assert check_files(machines, {1: JOB}, Audit()) == [
        'event 0 of job 1 is {"event": 0, "kind": "task_done", "tid": 0} at coordinator-1, '
        'but {"event": 0, "kind": "task_done", "tid": 1} at coordinator-2',
        'event 1 of job 1 is {"event": 1, "kind": "task_done", "tid": 1} at coordinator-1, '
        'but {"event": 1, "kind": "task_done", "tid": 0} at coordinator-2',
    ]


def test_what_a_mirror_has_dropped_by_now_still_counts(tmp_path: Path) -> None:
    audit = Audit()
    for done in ([0, 1], [0, 1, 0]):
        folder = tmp_path / str(len(done))
        folder.mkdir()
        machines_of(folder, ([1], done))
        assert audit.try_look("coordinator-1", folder / "coordinator-1")
    assert not audit.try_look("coordinator-2", tmp_path / "none")
    assert (audit.looks, audit.events) == (2, 3)
    assert audit.wrong == ["task 0 of job 1 was told to be done twice"]


# --- the whole ---


@pytest.mark.long
def test_client_that_dies_while_all_settles_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def settle(machines: Machines, *arguments: Any, **options: Any) -> list[str]:
        machines.processes["client-1"].kill()
        machines.processes["client-1"].wait()
        return findings.settle(machines, *arguments, **options)

    monkeypatch.setattr(torture, "settle", settle)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    options = ["--minutes", "0.05", "--seed", "3", "--coordinators", "3", "--no-network"]
    monkeypatch.setattr("sys.argv", ["torture", *options])
    assert torture.main() == 1
    assert "WRONG: client-1 ended with exit code -9" in capsys.readouterr().out
