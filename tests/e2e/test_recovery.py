"""A cluster that lost its majority for good goes on with what one member holds."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.net.keys import create_key
from tasksprint.settings import Settings
from tests.e2e.conftest import MakeCluster, connect, status_of, wait_until
from tests.e2e.test_kills import result_of, submit, wait_for_half

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def log_of(private: PrivateCluster, name: str) -> str:
    return (private.directory / f"{name}.log").read_text()


def wait_for_word(private: PrivateCluster, number: int, words: str) -> None:
    name = f"coordinator-{number}"
    wait_until(lambda: words in log_of(private, name), f"{name} says {words!r}")


def recover(run: Run, private: PrivateCluster, replica: int, *options: str) -> Any:
    data_dir = private.directory / f"coordinator-{replica}"
    return run("recover", "--data-dir", str(data_dir), *options)


@dataclass(frozen=True)
class Survived:
    """A cluster of which two of three coordinators were lost, and the third went on."""

    private: PrivateCluster
    cluster: Cluster
    expected: str  # what a job finishes with
    former: str  # the cluster's name
    now: str


@pytest.fixture
def survived(make_cluster: MakeCluster, run: Run) -> Survived:
    """The third coordinator alone, after `recover`; the test of that is in here."""
    private = make_cluster(coordinators=3, clients=1)
    cluster = connect(private)
    expected = result_of(cluster, submit(cluster))
    job = submit(cluster, task_ms=30)
    wait_for_half(cluster, job)

    # Two are destroyed; what they held is put away, to come back later.
    private.kill("coordinator-1", "coordinator-2")
    for number in (1, 2):
        path = private.directory / f"coordinator-{number}"
        shutil.copytree(path, private.directory / f"former-{number}")
        shutil.rmtree(path)
    name = "coordinator-3"
    refused = recover(run, private, 3, "--dry-run")
    assert refused.returncode == 78 and "is in use by process" in refused.stderr
    private.kill(name)
    found = json.loads(recover(run, private, 3, "--dry-run", "--json").stdout)
    former = found["cluster"]
    assert found["replica"] == 3 and found["role"] == "voter" and found["shut_out"] == [1, 2]
    assert found["applied_slot"] <= found["chosen_slot"] <= found["last_slot"]
    assert found["jobs_running"] == 1 and found["jobs_ended"] == 1
    assert found["jobs_without_archive"] == []
    unconfirmed = recover(run, private, 3)
    assert unconfirmed.returncode == 64
    assert f"--yes-lose {former} confirms it" in unconfirmed.stderr
    wrong = recover(run, private, 3, "--yes-lose", "another")
    assert wrong.returncode == 64
    assert f"'another' is not the cluster's name, '{former}'" in wrong.stderr
    assert json.loads(recover(run, private, 3, "--dry-run", "--json").stdout) == found
    done = recover(run, private, 3, "--yes-lose", former)
    assert done.returncode == 0, done.stderr
    assert "replica 3 is the only member of the new cluster" in done.stderr
    again = recover(run, private, 3, "--dry-run")
    assert again.returncode == 78 and "is the only one that votes" in again.stderr

    # Started as ever, it serves at once, and the client comes along with what it holds.
    private.restart(name)
    wait_until(lambda: status_of(cluster, private.addresses[2]).get("leader") == 3, "it leads")
    now = status_of(cluster, private.addresses[2])["cluster"]
    assert now != former
    started = [line for line in log_of(private, name).splitlines() if " listens on " in line]
    assert started[-1].endswith(f", members 3={private.addresses[2]}")  # whatever --peers says
    assert result_of(cluster, job) == expected
    assert f"cluster {former} went on as cluster {now}" in log_of(private, "client-1")
    return Survived(private, cluster, expected, former, now)


def test_survivor_goes_on_with_what_it_holds(survived: Survived) -> None:
    again = submit(survived.cluster)
    assert result_of(survived.cluster, again) == survived.expected


@pytest.mark.long
def test_former_members_are_shut_out_for_ever(
    survived: Survived, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, cluster, expected = survived.private, survived.cluster, survived.expected
    former, now = survived.former, survived.now
    name = "coordinator-3"
    # The former ones come back, both of them, and have a majority of their own.
    for number in (1, 2):
        shutil.copytree(
            private.directory / f"former-{number}", private.directory / f"coordinator-{number}"
        )
        private.restart(f"coordinator-{number}")
    olds = private.addresses[:2]
    wait_until(
        lambda: all(status_of(cluster, each).get("leader") in (1, 2) for each in olds), "they lead"
    )
    wait_for_word(private, 1, f"belongs to cluster '{now}'")
    # The client is told of all three, and goes on with the one that is of its cluster, also
    # when that one is away for a while, and after a restart of its own.
    key = create_key(private.directory / "key")
    new = Cluster(private.addresses, key, Settings(), name=now)
    job = submit(new, task_ms=30)
    private.kill(name)
    private.kill("client-1")
    private.restart("client-1")
    wait_until(
        lambda: "no coordinator leads" in log_of(private, "client-1"), "the client looks for it"
    )
    private.restart(name)
    assert result_of(new, job) == expected
    assert status_of(cluster, private.addresses[2])["members"] == {"3": private.addresses[2]}
    assert log_of(private, "client-1").count("went on as cluster") == 1
    for number in (1, 2):
        clients = status_of(cluster, olds[number - 1])
        assert clients["cluster"] == former

    monkeypatch.setenv("TASKSPRINT_KEY_FILE", str(private.directory / "key"))
    monkeypatch.setenv("TASKSPRINT_COORDINATORS", ",".join(private.addresses))
    monkeypatch.setenv("TASKSPRINT_CLUSTER", now)
    # New members, under new ids, with empty disks.
    for number in (4, 5):
        address = private.join(number)
        wait_for_word(private, number, "waits until cluster")
        added = run("member", "add", f"{number}={address}")
        assert added.stdout == f"added replica {number}\n", added.stderr
        new.also_ask([address])
    roles = {
        member["replica"]: member["role"]
        for member in json.loads(run("member", "list", "--json").stdout)["members"]
    }
    assert roles == {3: "voter", 4: "voter", 5: "voter"}
    # They are a majority without the third, and the client has heard of them.
    assert result_of(new, submit(new)) == expected
    private.kill(name)
    assert result_of(new, submit(new)) == expected
