"""Several jobs share one cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasksprint.ids import JobId
from tests.e2e.conftest import wait_until
from tests.e2e.harness import Shared, shared_cluster, write_job

pytestmark = pytest.mark.long

SCHEDULER = """
from TaskSprintCoordinator import *


class Sum(TaskSprintCoordinator):
    def init(self, seed):
        self.left, self.sum = self.params["count"], 0
        for number in range(self.left):
            self.start_task("square", base=[number, self.params["ms"]], keys=["square"])

    def task_done(self, tid, values):
        self.left -= 1
        self.sum += values["square"]
        if not self.left:
            self.finish(values=self.sum)


Sum().start()
"""

NODE = """
import time
from TaskSprintNode import *


class Node(TaskSprintNode):
    def square(self, number, ms):
        time.sleep(ms / 1000)
        return {"square": number**2}


Node().start()
"""


@pytest.fixture(scope="module")
def shared(archive: Path) -> Iterator[Shared]:
    """Two clients with one node each: programs must take turns."""
    with shared_cluster(archive, clients=2, nodes=1) as shared:
        yield shared


def submit(shared: Shared, folder: Path, *, count: int, ms: int) -> int:
    return shared.submit(folder, params=json.dumps({"count": count, "ms": ms}))


def done_of(shared: Shared, job: int) -> int:
    """Return how many tasks of a job are done."""
    return shared.cluster.job(JobId(job))[0].tasks["done"]


@pytest.mark.parametrize("same_program", [True, False])
def test_a_short_job_passes_a_long_one(shared: Shared, tmp_path: Path, same_program: bool) -> None:
    long_folder = write_job(tmp_path / "long", SCHEDULER, NODE)
    other = NODE if same_program else NODE + "# another program\\n"
    short_folder = write_job(tmp_path / "short", SCHEDULER, other)
    long_job = submit(shared, long_folder, count=5_000, ms=10)
    wait_until(
        lambda: shared.cluster.job(long_job)[0].tasks["done"] > 0,  # type: ignore[arg-type]
        "the long one runs",
    )
    short_job = submit(shared, short_folder, count=10, ms=10)
    outcome = shared.outcome(short_job)
    assert json.loads(outcome.values or "") == sum(number**2 for number in range(10))
    before, _ = shared.cluster.job(JobId(long_job))
    assert before.state == "running"
    count = before.tasks["done"]
    wait_until(lambda: done_of(shared, long_job) > count, "the long one goes on behind it")
    shared.commands("cancel", str(long_job))


def test_jobs_at_once_get_even_shares(shared: Shared, tmp_path: Path) -> None:
    folder = write_job(tmp_path / "sum", SCHEDULER, NODE)
    jobs = [submit(shared, folder, count=3_000, ms=5) for _ in range(4)]

    def done() -> list[int]:
        return [done_of(shared, job) for job in jobs]

    wait_until(lambda: min(done()) > 0, "all have begun")
    before = done()
    wait_until(lambda: sum(done()) >= sum(before) + 200, "two hundred tasks more are done")
    shares = [after - at_first for after, at_first in zip(done(), before, strict=True)]
    assert min(shares) > sum(shares) / 8, shares
    for job in jobs:
        shared.commands("cancel", str(job))


def test_jobs_at_once_all_finish(shared: Shared, tmp_path: Path) -> None:
    jobs = []
    for number in range(4):
        # Two programs: the two nodes must be shared between them.
        node = NODE + f"# program {number % 2}\n"
        folder = write_job(tmp_path / f"sum-{number}", SCHEDULER, node)
        jobs.append(submit(shared, folder, count=50 + number, ms=2))
    for number, job in enumerate(jobs):
        outcome = shared.outcome(job)
        assert outcome.state == "finished", outcome.error
        expected = sum(each**2 for each in range(50 + number))
        assert json.loads(outcome.values or "") == expected
