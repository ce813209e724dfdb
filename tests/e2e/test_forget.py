"""`job forget`: nothing is left of a job, on real processes."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.e2e.conftest import JOBS, wait_until
from tests.e2e.harness import shared_cluster

pytestmark = pytest.mark.slow

TABLES = ("jobs", "tasks", "events", "answers", "job_log", "failures", "garbage")


def test_forgotten_job_leaves_no_rows_and_a_running_one_is_refused(archive: Path) -> None:
    with shared_cluster(archive, nodes=2) as shared:
        job = shared.submit(JOBS / "layers", params='{"width":20,"ms":1}')
        assert shared.outcome(job).state == "finished"
        running = shared.submit(JOBS / "layers", params='{"width":20,"ms":100000}')
        commands = shared.commands
        assert commands.text("job", "forget", str(job)) == f"forgot job {job}\n"
        listed = json.loads(commands.text("jobs", "--json"))
        assert [each["job"] for each in listed] == [running]
        refused = commands("job", "forget", str(running), code=77).stderr.decode()
        assert f"job {running} is running; cancel it first" in refused
        refused = commands("job", "forget", str(job), code=77).stderr.decode()
        assert f"there is no job {job}" in refused
        commands("cancel", str(running))
        found = commands.json("job", "forget", str(running))
        assert found == {"job": running, "state": "forgotten"}
        (path,) = shared.private.directory.glob("coordinator-*/replica.db")

        def is_empty() -> bool:
            database = sqlite3.connect(path)
            counts = [
                database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES
            ]
            database.close()
            return not any(counts)

        wait_until(is_empty, "the rows of both jobs are gone")
