"""A coordinator or a client that is killed and started again goes on where it was."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.e2e.harness import Shared, shared_cluster, write_job

pytestmark = pytest.mark.slow

WIDTH = 12

# Some tasks, then one that waits at a gate, then some that need the first again.
SCHEDULER = """
from TaskSprintCoordinator import *


class Gated(TaskSprintCoordinator):
    def init(self, seed):
        ran, gate, width = self.params["ran"], self.params["gate"], self.params["width"]
        first = [self.start_task("draw", base=[ran, n]) for n in range(width)]
        hold = self.start_task("hold", base=[ran, gate], pretasks=first, prekeys=["drawn"] * width)
        second = [
            self.start_task("again", base=[ran], pretasks=[hold, tid], prekeys=["none", "drawn"])
            for tid in first
        ]
        self.last = self.start_task(
            "gather", base=[ran], pretasks=second, prekeys=["drawn"] * width, keys=["all"]
        )

    def task_done(self, tid, values):
        if tid == self.last:
            self.finish([tid], values["all"])


Gated().start()
"""

# Each run of a task is written down, so that nothing is taken for done that was done twice.
NODE = """
import os, random, time
from TaskSprintNode import *


class Node(TaskSprintNode):
    def note(self, ran):
        with open(ran, "a") as file:
            file.write("%d\\n" % self.task.tid)

    def draw(self, ran, number):
        self.note(ran)
        return {"drawn": [number, random.random(), "x" * 1000]}

    def hold(self, ran, gate, *drawn):
        self.note(ran)
        deadline = time.monotonic() + 60
        while not os.path.exists(gate):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return {"none": None}

    def again(self, ran, none, drawn):
        self.note(ran)
        return {"drawn": drawn[:2]}

    def gather(self, ran, *drawn):
        self.note(ran)
        return {"all": drawn}


Node().start()
"""
HOLD = WIDTH
TASKS = 2 * WIDTH + 2


@pytest.fixture(scope="module")
def shared(archive: Path) -> Iterator[Shared]:
    """One coordinator and one client, which has two nodes."""
    with shared_cluster(archive, nodes=2) as shared:
        yield shared


class Gated:
    """A job that has come to its gate."""

    def __init__(self, shared: Shared, folder: Path) -> None:
        self._shared = shared
        self._gate, self._ran = folder / "gate", folder / "ran"
        params = {"gate": str(self._gate), "ran": str(self._ran), "width": WIDTH}
        job_folder = write_job(folder / "gated", SCHEDULER, NODE)
        self.job = shared.submit(job_folder, seed=3, params=json.dumps(params))
        wait_until(lambda: HOLD in self.runs(), "the task at the gate runs")

    def runs(self) -> collections.Counter[int]:
        """Return how often each task has run."""
        text = self._ran.read_text() if self._ran.exists() else ""
        return collections.Counter(map(int, text.split()))

    def end(self) -> str:
        """Open the gate, and return what the job finishes with."""
        self._gate.touch()
        outcome = self._shared.outcome(self.job)
        assert outcome.state == "finished", outcome.error
        assert outcome.tasks["done"] == TASKS and outcome.values is not None
        return outcome.values


@pytest.fixture(scope="module")
def undisturbed(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> str:
    gated = Gated(shared, tmp_path_factory.mktemp("undisturbed"))
    values = gated.end()
    assert gated.runs() == dict.fromkeys(range(TASKS), 1)
    return values


def test_a_restarted_coordinator_goes_on_and_runs_nothing_again(
    shared: Shared, tmp_path: Path, undisturbed: str
) -> None:
    gated = Gated(shared, tmp_path)
    shared.private.kill("coordinator-1")
    shared.private.restart("coordinator-1")
    assert gated.end() == undisturbed
    assert gated.runs() == dict.fromkeys(range(TASKS), 1)
    assert shared.task(gated.job, TASKS - 1)["attempts"] == 1


def test_a_coordinator_that_is_away_for_a_while_misses_nothing(
    shared: Shared, tmp_path: Path, undisturbed: str
) -> None:
    """What the client does meanwhile is reported when somebody listens again."""
    gated = Gated(shared, tmp_path)
    shared.private.kill("coordinator-1")
    (tmp_path / "gate").touch()
    shared.private.restart("coordinator-1")
    assert gated.end() == undisturbed
    assert gated.runs() == dict.fromkeys(range(TASKS), 1)


def client(shared: Shared) -> dict[str, object]:
    (found,) = shared.cluster.request("GET", "/v1/clients").json()
    assert isinstance(found, dict)
    return found


def test_a_restarted_client_uses_what_it_holds(
    shared: Shared, tmp_path: Path, undisturbed: str
) -> None:
    gated = Gated(shared, tmp_path)
    shared.private.kill("client-1")
    shared.private.restart("client-1")
    wait_until(lambda: gated.runs()[HOLD] == 2, "the task at the gate runs again")
    assert client(shared)["cid"] == 1, "the same data directory is the same client"
    assert gated.end() == undisturbed
    assert gated.runs() == {**dict.fromkeys(range(TASKS), 1), HOLD: 2}


@pytest.mark.long
def test_a_client_that_comes_back_from_the_dead_uses_what_it_holds(
    shared: Shared, tmp_path: Path, undisturbed: str
) -> None:
    gated = Gated(shared, tmp_path)
    shared.private.kill("client-1")
    wait_until(lambda: client(shared)["state"] == "dead", "the client is declared dead")
    # All results that the job needs are lost now; nobody is there to make them again.
    shared.private.restart("client-1")
    wait_until(lambda: gated.runs()[HOLD] == 2, "the task at the gate runs again")
    assert client(shared)["cid"] == 1
    assert gated.end() == undisturbed
    assert gated.runs() == {**dict.fromkeys(range(TASKS), 1), HOLD: 2}
