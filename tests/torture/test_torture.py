"""The parts of the torture that need no processes; the whole is `python -m tests.torture`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tasksprint.ids import TaskId, task_seed
from tests.torture.faults import plan
from tests.torture.findings import check_files
from tests.torture.load import JobRequest, expected_values
from tests.torture.machines import Machines

JOB = JobRequest(sender="a", request=1, seed=5, token=77, width=3, ms=0)


def test_plan_of_a_seed_is_always_the_same() -> None:
    assert plan(3, 300, has_network=True) == plan(3, 300, has_network=True)
    assert plan(3, 300, has_network=True) != plan(4, 300, has_network=True)


def test_plan_has_faults_of_all_kinds_in_order_and_calm_phases() -> None:
    kinds: set[str] = set()
    for seed in range(20):
        faults = plan(seed, 300, has_network=True)
        assert 50 < len(faults) < 200
        assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
        assert all(fault.end_s <= 300.1 for fault in faults)
        assert all(not 36 < fault.at_s % 43 < 42 for fault in faults)
        assert max(fault.for_s for fault in faults) <= 10
        kinds |= {fault.kind for fault in faults}
    assert len(kinds) == 12


def test_plan_without_a_network_has_no_faults_of_networks() -> None:
    kinds = {fault.kind for fault in plan(1, 600, has_network=False)}
    assert all("kill" in kind or "stop" in kind for kind in kinds)


def test_node_of_the_job_computes_what_is_expected_of_it() -> None:
    lines = [
        {
            "id": number,
            "name": "draw",
            "args": [JOB.token, number, 0],
            "seed": task_seed(JOB.seed, TaskId(number)),
        }
        for number in range(JOB.width)
    ]
    drawn = [answer["values"]["drawn"] for answer in _answers(lines)]
    (joined,) = _answers([{"id": 1, "name": "join", "args": drawn, "seed": 0}])
    assert expected_values(JOB) == {"all": joined["values"]["all"], "told": 4}


def _answers(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
    return answers


# --- what the mirrors say ---


def _machines(folder: Path, *mirrors: tuple[list[int], list[int]]) -> Machines:
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
    machines = _machines(tmp_path, ([1], [0, 1, 2]), ([1], []))
    assert check_files(machines, {1: JOB}) == []


def test_task_that_was_done_twice_is_found(tmp_path: Path) -> None:
    machines = _machines(tmp_path, ([1], [0, 1, 0]))
    assert check_files(machines, {1: JOB}) == [
        "coordinator-1: tasks (job, tid) that were done twice: [(1, 0)]"
    ]


def test_job_that_is_lost_and_job_that_nobody_wants_are_found(tmp_path: Path) -> None:
    machines = _machines(tmp_path, ([2], []))
    assert check_files(machines, {1: JOB}) == [
        "coordinator-1: jobs that nobody wants, or that are missing: [1, 2]"
    ]


def test_mirrors_that_differ_are_found(tmp_path: Path) -> None:
    machines = _machines(tmp_path, ([1], [0, 1]), ([1], [1, 0]))
    assert check_files(machines, {1: JOB}) == [
        "coordinator-2: events differ from those of coordinator-1"
    ]
