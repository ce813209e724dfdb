"""Programs give the same bytes on every client, also where they use hashes, sets and the time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tasksprint.ids import JobId
from tasksprint.process.job_directory import read_job
from tasksprint.process.program import ExitReason
from tasksprint.roles import client_surroundings, surroundings
from tasksprint.roles.cluster import Cluster
from tasksprint.roles.run import PrivateCluster
from tasksprint.settings import Settings
from tests.e2e.conftest import wait_until
from tests.e2e.harness import write_job

# What programs say of their surroundings, and what they may let depend on them.
LOOK = """
import json, locale, os, sys, time
mask = os.umask(0)
print(json.dumps({
    "hash": hash("word"),
    "set": list(set("abcdefghij")),
    "zone": time.tzname[0],
    "locale": locale.setlocale(locale.LC_ALL, ""),
    "encoding": sys.stdout.encoding,
    "umask": mask,
    "pwd": os.environ["PWD"] == os.getcwd() == os.path.dirname(os.path.abspath(__file__)),
    "ours": [name for name in os.environ if name.startswith("TASKSPRINT_")],
    "mine": os.environ.get("MINE"),
}))
"""
DIGEST = "d" * 64


def look(folder: Path, digest: str = DIGEST, **fields: object) -> dict[str, object]:
    """Return what a node sees that a client with its data in `folder` starts."""
    directory = folder / "programs" / digest
    directory.mkdir(parents=True)
    (directory / "node.py").write_text(LOOK)
    command = json.dumps({"node": ["node.py"], **fields})
    said: list[bytes] = []

    async def start() -> None:
        ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        await client_surroundings.start_node(
            directory,
            command,
            on_data=said.append,
            on_exit=ended.set_result,
            on_stderr=said.append,
        )
        await ended

    asyncio.run(start())
    found: dict[str, object] = json.loads(b"".join(said))
    return found


def test_nodes_of_one_archive_are_alike_on_unlike_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKSPRINT_KEY_FILE", str(tmp_path / "key"))
    here = look(tmp_path / "here")
    for name, value in {
        "PYTHONHASHSEED": "1",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "PWD": "/elsewhere",
        "TASKSPRINT_COORDINATORS": "a:1",
    }.items():
        monkeypatch.setenv(name, value)
    before = os.umask(0o002)
    try:
        there = look(tmp_path / "there")
    finally:
        os.umask(before)
    assert here == there
    assert here["zone"] == "UTC"
    assert here["encoding"] == "utf-8"
    assert here["umask"] == 0o077
    assert here["pwd"] is True
    assert here["ours"] == []


def test_the_manifest_may_say_otherwise(tmp_path: Path) -> None:
    chosen = {"PYTHONHASHSEED": "5", "TZ": "XYZ-2", "MINE": "1"}
    found = look(tmp_path / "one", environment=chosen)
    assert found["zone"] == "XYZ"
    assert found["mine"] == "1"
    assert found["hash"] == look(tmp_path / "two", "e" * 64, environment=chosen)["hash"]


def test_schedulers_keep_their_common_hash_seed(tmp_path: Path) -> None:
    """A job whose nodes are to draw random hashes must still have equal schedulers."""
    (tmp_path / "node.py").write_text(LOOK)
    manifest = {"scheduler": ["node.py"], "environment": {"PYTHONHASHSEED": "random", "MINE": "2"}}

    async def start() -> dict[str, object]:
        said: list[bytes] = []
        ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        await surroundings.start_scheduler(
            tmp_path,
            manifest,
            17,
            on_data=said.append,
            on_exit=ended.set_result,
            on_stderr=said.append,
        )
        await ended
        found: dict[str, object] = json.loads(b"".join(said))
        return found

    first, second = (asyncio.run(start()) for _ in range(2))
    assert first == second
    assert first["mine"] == "2"


SCHEDULER = """
from TaskSprintCoordinator import *

class OneAfterADeath(TaskSprintCoordinator):
    def init(self, seed):
        self.start_task("make", base=[self.params["words"], self.params["file"]], keys=["order"])

    def client_dead(self, cid):
        self.start_task("count", pretasks=[0], prekeys=["order"], keys=["order"])

    def task_done(self, tid, values):
        if tid == 1:
            self.finish(values=values)

OneAfterADeath().start()
"""
NODE = """
import os
from TaskSprintNode import *

class Sets(TaskSprintNode):
    def make(self, words, file):
        with open(file, "a") as runs:
            print(os.getppid(), file=runs)
        return {"order": [[word, hash(word) % 1000] for word in set(words)]}

    def count(self, order):
        return {"order": order}

Sets().start()
"""


@pytest.mark.long
def test_a_result_with_sets_is_computed_again_to_the_byte(tmp_path: Path) -> None:
    """The client that has the only copy is killed; the scheduler has seen the value."""
    file = tmp_path / "runs"
    job = write_job(tmp_path / "job", SCHEDULER, NODE)
    params = json.dumps({"words": [f"word{n}" for n in range(50)], "file": str(file)})
    with PrivateCluster(coordinators=1, clients=2, nodes=1) as private:
        cluster: Cluster = private.connect(Settings())
        number: JobId = cluster.submit(job, read_job(job), seed=1, params=params)
        wait_until(lambda: cluster.job(number)[0].tasks["done"] == 1, "the first task is done")
        os.killpg(int(file.read_text()), signal.SIGKILL)
        *_, outcome = cluster.follow(number)
        assert outcome.state == "finished", outcome.error
        assert len(file.read_text().split()) == 2
