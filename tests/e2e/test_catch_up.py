"""A coordinator that was away for longer than the log reaches back comes home."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from unittest import mock

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.ids import JobId
from tasksprint.process.job_directory import read_job
from tests.e2e.conftest import JOBS, MakeCluster, connect, status_of, wait_until

pytestmark = pytest.mark.slow

# Little log is kept, so that little history is enough; small pieces, so that there are many.
SETTINGS = {"log_tail_slots": 16, "mirror_piece_rows": 20}


def submit(cluster: Cluster, width: int) -> JobId:
    directory = JOBS / "layers"
    params = f'{{"width":{width},"ms":1}}'
    return cluster.submit(directory, read_job(directory), seed=11, params=params)


def run_job(cluster: Cluster, width: int) -> str:
    *_, outcome = cluster.follow(submit(cluster, width))
    assert outcome.state == "finished" and outcome.values is not None, outcome
    return outcome.values


def points(cluster: Cluster, addresses: list[str]) -> set[tuple[int, str]]:
    """Return (applied slot, digest) of each coordinator, as it is now."""
    found = [status_of(cluster, address) for address in addresses]
    return {(each.get("applied_slot", 0), each.get("digest", "")) for each in found}


def last_slot(private: PrivateCluster, replica: int) -> int:
    """Return the last slot that a killed coordinator's file knows of."""
    path = private.directory / f"coordinator-{replica}" / "replica.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        ((slot,),) = database.execute("SELECT max(slot) FROM log").fetchall()
    return int(slot)


def test_coordinator_behind_a_truncated_log_takes_a_copy_and_is_like_the_others(
    make_cluster: MakeCluster,
) -> None:
    """Kill one, let the others go on and truncate, and start it again with its old disk."""
    with mock.patch.dict(os.environ, {"TASKSPRINT_SETTINGS": json.dumps(SETTINGS)}):
        private = make_cluster(coordinators=3, clients=1, nodes=2)
        cluster = connect(private)
        first = run_job(cluster, 20)
        statuses = [status_of(cluster, address) for address in private.addresses]
        leader = statuses[0]["leader"]
        away = leader % 3 + 1
        address = private.addresses[away - 1]
        private.kill(f"coordinator-{away}")
        left_at = last_slot(private, away)

        others = [each for each in private.addresses if each != address]
        while not all(
            status_of(cluster, each)["consensus"]["log_start"] > left_at + 1 for each in others
        ):
            assert run_job(cluster, 20) == first
        # One is running when it comes back: its scheduler replays from the copied mirror.
        running = submit(cluster, 120)
        private.restart(f"coordinator-{away}")
        wait_until(
            lambda: status_of(cluster, address).get("applied_slot", 0) > left_at, "it is back"
        )
        log = (private.directory / f"coordinator-{away}.log").read_text()
        assert "takes a copy of the state at slot" in log
        assert "took over a copy of the state up to slot" in log
        *_, outcome = cluster.follow(running)
        assert outcome.state == "finished", outcome
        wait_until(
            lambda: len(points(cluster, private.addresses)) == 1, "all have the same digest"
        )
        # It is a full member again: with another one gone, the two have a quorum.
        gone = next(each for each in (1, 2, 3) if each not in (away, leader))
        private.kill(f"coordinator-{gone}")
        assert run_job(cluster, 20) == first
