"""Real processes are killed in mid-job; the result is that of an undisturbed run, in bytes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.errors import PeerUnreachable
from tasksprint.ids import JobId
from tasksprint.process.job_directory import read_job
from tests.e2e.conftest import JOBS, MakeCluster, connect, wait_until

pytestmark = pytest.mark.slow

WIDTH = 40
TASKS = 2 * WIDTH + 1


def submit(cluster: Cluster, *, task_ms: int = 1) -> JobId:
    """Submit a job whose result is the same however long its tasks take."""
    directory = JOBS / "layers"
    params = json.dumps({"width": WIDTH, "ms": task_ms})
    return cluster.submit(directory, read_job(directory), seed=11, params=params)


def result_of(cluster: Cluster, job: JobId) -> str:
    """Wait for a job's end and return what it finished with."""
    *_, outcome = cluster.follow(job)
    assert outcome.state == "finished", outcome.error
    assert outcome.values is not None
    assert outcome.tasks["done"] == TASKS
    return outcome.values


def wait_for_half(cluster: Cluster, job: JobId) -> None:
    """Wait until tasks of both kinds are done and others are not."""
    wait_until(
        lambda: cluster.job(job)[0].tasks["done"] >= WIDTH,
        "half of the tasks are done",
    )
    assert cluster.job(job)[0].tasks["done"] < TASKS


def mirrors_are_alike(private: PrivateCluster, job: JobId) -> None:
    """Each replica's mirror says the same of the job, and has let its events go.

    That each task was told once, the job's scheduler checks itself.
    """
    rows = set()
    for path in sorted(private.directory.glob("coordinator-*/replica.db")):
        database = sqlite3.connect(path)
        rows.add(*database.execute("SELECT state, body FROM jobs WHERE job = ?", (job,)))
        left = database.execute("SELECT count(*) FROM events").fetchone()
        assert left == (0,), path
        database.close()
    ((state, body),) = rows
    assert state == "finished"
    assert json.loads(body)["tasks"]["done"] == TASKS


def leader_name(private: PrivateCluster, cluster: Cluster) -> str:
    for address in private.addresses:
        leader = cluster.direct(address, "GET", "/v1/status").json()["leader"]
        if leader is not None:
            return f"coordinator-{leader}"
    raise AssertionError("nobody leads")


def is_up(private: PrivateCluster, cluster: Cluster, name: str) -> bool:
    try:
        cluster.direct(private.addresses[int(name[-1]) - 1], "GET", "/v1/status")
    except PeerUnreachable:
        return False
    return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> str:
    """What the job finishes with when nothing happens to it."""
    import sys

    with PrivateCluster(
        coordinators=1,
        clients=1,
        nodes=2,
        keep=tmp_path_factory.mktemp("undisturbed") / "cluster",
        command=[sys.executable, str(archive)],
    ) as private:
        cluster = connect(private)
        return result_of(cluster, submit(cluster))


def wait_for_level_replicas(private: PrivateCluster, cluster: Cluster) -> None:
    """Wait until all replicas have applied the same, and see that they agree on it."""

    def level() -> bool:
        found: dict[int, set[str]] = {}
        for address in private.addresses:
            status = cluster.direct(address, "GET", "/v1/status").json()
            found.setdefault(status["applied_slot"], set()).add(status["digest"])
        assert all(len(digests) == 1 for digests in found.values()), found
        return len(found) == 1

    wait_until(level, "all replicas are at the same slot")


def kill_leader(private: PrivateCluster, cluster: Cluster) -> str:
    name = leader_name(private, cluster)
    private.kill(name)
    return name


def kill_all_coordinators_and_restart(private: PrivateCluster, cluster: Cluster) -> None:
    names = [f"coordinator-{number}" for number in (1, 2, 3)]
    private.kill(*names)
    for name in names:
        private.restart(name)


def kill_one_client(private: PrivateCluster, cluster: Cluster) -> None:
    private.kill("client-1")


@pytest.mark.parametrize(
    "disturb",
    [
        kill_leader,
        pytest.param(kill_all_coordinators_and_restart, marks=pytest.mark.long),
        kill_one_client,
    ],
)
def test_a_kill_in_mid_job_changes_nothing_of_the_result(
    disturb: Callable[[PrivateCluster, Cluster], str | None],
    make_cluster: MakeCluster,
    undisturbed: str,
) -> None:
    private = make_cluster(coordinators=3, clients=2, nodes=1)
    cluster = connect(private)
    job = submit(cluster, task_ms=30)
    wait_for_half(cluster, job)
    killed = disturb(private, cluster)
    assert result_of(cluster, job) == undisturbed
    if killed is not None:
        private.restart(killed)
        wait_until(lambda: is_up(private, cluster, killed), f"{killed} answers again")
    wait_for_level_replicas(private, cluster)
    private.__exit__(None, None, None)
    mirrors_are_alike(private, job)
