"""Real coordinators are added, removed and replaced under a running job; its result is right."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tasksprint.cli.run import PrivateCluster
from tests.e2e.conftest import MakeCluster, as_documented, connect, status_of, wait_until
from tests.e2e.test_kills import result_of, submit

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Operator:
    """The commands, as who knows the first addresses runs them."""

    def __init__(self, private: PrivateCluster, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = run
        monkeypatch.setenv("TASKSPRINT_KEY_FILE", str(private.directory / "key"))
        monkeypatch.setenv("TASKSPRINT_COORDINATORS", ",".join(private.addresses))

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Return what `member …` prints, on stdout if it succeeds, else on stderr."""
        done = self._run("member", *arguments)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def listing(self) -> Any:
        """Return `member list --json`."""
        return json.loads(self("list", "--json"))

    def roles(self) -> dict[int, str]:
        """Return the role of each member."""
        return {member["replica"]: member["role"] for member in self.listing()["members"]}


def test_members_change_under_a_running_job(
    make_cluster: MakeCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So short a log that new members need a copy of the state, and who votes with it.
    monkeypatch.setenv("TASKSPRINT_SETTINGS", '{"log_tail_slots": 20}')
    private = make_cluster(coordinators=3, clients=1)
    cluster = connect(private)
    operator = Operator(private, run, monkeypatch)
    expected = result_of(cluster, submit(cluster))
    job = submit(cluster, task_ms=30)

    # A fourth, which catches up and votes.
    address = private.join(4)
    wait_until(lambda: _answers(private, 4), "replica 4 is up")
    assert operator("add", f"4={address}") == "added replica 4\n"
    assert operator.roles() == {1: "voter", 2: "voter", 3: "voter", 4: "voter"}
    assert "takes a copy of the state" in (private.directory / "coordinator-4.log").read_text()

    # The leader leaves, and stops with one sentence.
    leader = operator.listing()["leader"]
    assert operator("remove", str(leader)) == f"removed replica {leader}\n"
    name = f"coordinator-{leader}"
    wait_until(lambda: private.ended(name) is not None, f"{name} has stopped")
    assert private.ended(name) == 78
    last = (private.directory / f"{name}.log").read_text().splitlines()[-1]
    assert last.startswith(f"tasksprint: replica {leader} was removed from cluster ")
    assert leader not in operator.roles()
    assert operator.listing()["retired"] == [leader]

    # Another loses its disk; a new one takes its place.
    victim = next(number for number in (2, 3) if number != leader)
    private.kill(f"coordinator-{victim}")
    shutil.rmtree(private.directory / f"coordinator-{victim}")
    (private.directory / f"coordinator-{victim}").mkdir(mode=0o700)
    private.restart(f"coordinator-{victim}")
    wait_until(lambda: private.ended(f"coordinator-{victim}") is not None, "it has stopped")
    said = (private.directory / f"coordinator-{victim}.log").read_text()
    assert f"replica {victim} lost its disk" in said
    assert f"tasksprint member replace {victim} ID=HOST:PORT" in as_documented(said)
    address = private.join(5)
    wait_until(lambda: _answers(private, 5), "replica 5 is up")
    assert operator("replace", str(victim), f"5={address}") == f"replaced replica {victim} by 5\n"
    assert sorted(operator.roles()) == sorted({1, 2, 3, 4, 5} - {leader, victim})

    assert result_of(cluster, job) == expected
    status = json.loads(run("status", "--json").stdout)
    assert sorted(status["coordinators"]) == sorted(map(str, operator.roles()))
    wait_until(lambda: len(_digests(run)) == 1, "all members have the same state")


def _digests(run: Run) -> set[tuple[int, str]]:
    coordinators = json.loads(run("status", "--json").stdout)["coordinators"]
    return {(each["applied_slot"], each["digest"]) for each in coordinators.values()}


def _answers(private: PrivateCluster, number: int) -> bool:
    log = private.directory / f"coordinator-{number}.log"
    return log.exists() and "waits until cluster" in log.read_text()


def test_changes_that_would_lose_the_majority_are_refused(
    make_cluster: MakeCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in etcd-io/etcd#3505: a member that isn't up must not be counted."""
    private = make_cluster(coordinators=1, clients=0)
    cluster = connect(private)
    operator = Operator(private, run, monkeypatch)
    refused = operator("add", "2=127.0.0.1:9", code=77)
    assert refused.startswith("tasksprint: replica 2 doesn't answer at 127.0.0.1:9: ")
    refused = as_documented(refused)
    assert refused.endswith("start it first: tasksprint coordinator --id 2 --join …\n")
    address = private.join(2)
    wait_until(lambda: _answers(private, 2), "replica 2 is up")
    refused = operator("add", f"3={address}", code=77)
    assert f"at {address} answers replica 2, expected 3" in refused
    own = private.addresses[0]
    assert f"at {own} answers replica 1, expected 3" in operator("add", f"3={own}", code=77)
    assert "replica 1 is the last that votes" in operator("remove", "1", code=77)
    assert "replica 7 is no member of the cluster" in operator("remove", "7", code=77)
    assert operator("add", f"2={address}") == "added replica 2\n"
    assert operator("add", f"2={address}") == "added replica 2\n"  # It is so already.
    private.kill("coordinator-2")
    wait_until(lambda: status_of(cluster, own)["leader"] is None, "replica 1 has stepped down")
    # Two members and one of them gone: nothing can be decided, as everybody is told.
    monkeypatch.setenv("TASKSPRINT_SETTINGS", '{"find_leader_timeout_ms": 500}')
    assert "no coordinator leads at" in operator("remove", "2", code=69)
    monkeypatch.delenv("TASKSPRINT_SETTINGS")
    private.restart("coordinator-2")
    assert operator("remove", "2") == "removed replica 2\n"
    assert "was removed before" in operator("add", f"2={address}", code=77)
    listing = operator("list")
    assert listing.splitlines()[0].split() == ["REPLICA", "ADDRESS", "ROLE", "CHOSEN", "HEARD"]
    assert listing.splitlines()[1].split()[:3] == ["1", private.addresses[0], "leader"]
    assert listing.splitlines()[-1] == "removed: 2"


@pytest.mark.long
def test_coordinator_with_an_empty_disk_is_told_that_its_id_was_used(
    make_cluster: MakeCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever it asks where the cluster is tells it: nobody may ever connect to it again."""
    private = make_cluster(coordinators=1, clients=0)
    connect(private)
    operator = Operator(private, run, monkeypatch)
    for number in (2, 3):
        address = private.join(number)
        wait_until(lambda number=number: _answers(private, number), f"{number} is up")
        operator("add", f"{number}={address}")
    operator("remove", "2")
    wait_until(lambda: private.ended("coordinator-2") is not None, "replica 2 has stopped")
    private.kill("coordinator-3")
    for number, sentence, code in (
        (2, "tasksprint: replica 2 was removed from cluster ", 78),
        (3, "tasksprint: replica 3 lost its disk ", 74),
    ):
        name = f"coordinator-{number}"
        log = private.directory / f"{name}.log"
        shutil.rmtree(private.directory / name)
        (private.directory / name).mkdir(mode=0o700)
        log.write_text("")
        private.restart(name)
        wait_until(lambda name=name: private.ended(name) is not None, f"{name} has stopped")
        assert private.ended(name) == code
        assert log.read_text().splitlines()[-1].startswith(sentence)
