"""Programs give the same bytes on every client, also where they use hashes, sets and the time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tasksprint.asking.cluster import Cluster, JobOutcome
from tasksprint.cli.job_commands import print_outcome
from tasksprint.cli.run import PrivateCluster
from tasksprint.coordination.commands import JobObserved
from tasksprint.coordination.observations import DIFFERS, NODE_RUNTIME, SCHEDULER_RUNTIME
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import JobId
from tasksprint.process.job_directory import read_job
from tasksprint.process.program import ExitReason
from tasksprint.protocol.node_lines import NodeReader
from tasksprint.protocol.scheduler_lines import SchedulerReader
from tasksprint.roles.client import surroundings as client_surroundings
from tasksprint.roles.coordinator import surroundings
from tasksprint.scheduler_commands import FinishJob
from tasksprint.settings import Settings
from tests.coordination.world import World
from tests.e2e.conftest import wait_until
from tests.e2e.harness import write_job
from tests.roles.client_world import assignment, shell_node, view, world
from tests.roles.members import Member, members
from tests.roles.test_coordinator import archive_of, run, summary, until
from tests.sdk.programs import NodeDriver, Program, SchedulerDriver, write_program

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
    "ours": ["=".join(one) for one in os.environ.items() if one[0].startswith("TASKSPRINT_")],
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
    chosen = {"PYTHONHASHSEED": "random", "TASKSPRINT_RULES": "9", "MINE": "2"}
    manifest = {"scheduler": ["node.py"], "environment": chosen}

    async def start() -> dict[str, object]:
        said: list[bytes] = []
        ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        await surroundings.start_scheduler(
            tmp_path,
            manifest,
            17,
            rules=2,
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
    assert first["ours"] == ["TASKSPRINT_RULES=2"]


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


# --- schedulers that differ ----------------------------------------------------------

# Ends its job at once, with a number that no other process has.
DIFFERENT = """#!/bin/sh
echo '{"ready":{}}'
read -r line
echo "{\\"event\\":0,\\"commands\\":[{\\"finish\\":[],\\"values\\":{\\"pid\\":$$}}]}"
exec cat > /dev/null
"""
EQUAL = DIFFERENT.replace("$$", "7")
ADVICE = "a scheduler must depend on nothing but its events, its parameters and its seed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "scheduler", "checked", "sources"),
    [
        (3, DIFFERENT, False, [f"replica {n}" for n in (1, 2, 3)]),
        (1, DIFFERENT, True, ["a second copy on replica 1"]),
        (1, DIFFERENT, False, []),
        (1, EQUAL, True, []),
    ],
)
def test_a_job_whose_scheduler_differed_ends_with_a_warning(
    tmp_path: Path, count: int, scheduler: str, checked: bool, sources: list[str]
) -> None:
    """Also a job that ends before the other schedulers have said a word."""

    async def main() -> None:
        async with members(count, tmp_path) as of:
            leader = await of.leader()
            program = await archive_of(leader, tmp_path / "job", scheduler_sh=scheduler)
            manifest = {"scheduler": ["scheduler.sh"], "node": ["attached:x"]}
            if checked:
                manifest["check_determinism"] = True  # type: ignore[assignment]
            body = {
                **{"sender": "me", "request": 1, "name": "job", "seed": 5, "params": "{}"},
                **{"program": program, "manifest": json.dumps(manifest)},
            }
            asked = await leader.ask("POST", "/v1/jobs", body=json.dumps(body).encode())
            assert asked.checked().json() == {"job": 1}
            await until(lambda: all(map(has_ended, of.all)), "all schedulers are gone")
            found = await summary(leader, 1)
            assert found["state"] == "finished"
            expected = [each for each in sources if each != f"replica {leader.number}"]
            assert sorted(each.partition(":")[0] for each in found["warnings"]) == expected
            for warning in found["warnings"]:
                _, _, text = warning.partition(": ")
                assert text.startswith(
                    "its scheduler isn't deterministic: event 0 init(): the log says finish [] "
                )
                assert text.endswith(ADVICE)

    run(main)


def has_ended(member: Member) -> bool:
    """Whether a replica knows that job 1 has ended, and runs no scheduler any more."""
    schedule = member.coordinator.log.schedule
    found = None if schedule is None else schedule.job_summary(JobId(1))
    return found is not None and found["state"] == "finished" and not member.coordinator.runners


def observed(source: str, text: str, kind: str = DIFFERS) -> JobObserved:
    return JobObserved(JobId(1), kind, source, text)


def test_what_is_observed_of_a_job_is_told_once_and_kept() -> None:
    world = World()
    job = world.submit()
    first = observed("replica 2", "one")
    assert not world.schedule.is_observed(first)
    world.apply(first, observed("replica 2", "again"))
    assert world.schedule.is_observed(first)
    world.answer(job, FinishJob((), "{}"))
    world.apply(observed("replica 3", "x" * 5_000))  # It was slower than the job.
    world.restart()
    found = world.schedule.job_summary(job)
    assert found is not None and found["state"] == "finished"
    assert found["warnings"] == ["one", "x" * 1_000 + "…"]
    world.apply(*[observed(f"replica {n}", "more") for n in range(4, 50)])
    found = world.schedule.job_summary(job)
    assert found is not None and len(found["warnings"]) == 8  # type: ignore[arg-type]
    assert world.schedule.is_observed(observed("replica 99", "more"))
    assert world.schedule.is_observed(JobObserved(JobId(9), DIFFERS, "replica 1", "no such job"))


def test_a_job_on_mixed_interpreters_is_warned_of_once() -> None:
    world = World()
    job = world.submit()
    world.apply(
        observed("client 1", "CPython 3.11.7", NODE_RUNTIME),
        observed("client 2", "CPython 3.11.7", NODE_RUNTIME),
        observed("replica 1", "CPython 3.12.1", SCHEDULER_RUNTIME),
    )
    assert world.schedule.is_observed(observed("client 3", "CPython 3.11.7", NODE_RUNTIME))
    found = world.schedule.job_summary(job)
    assert found is not None and found["warnings"] == []
    world.restart()
    world.apply(
        observed("client 3", "CPython 3.12.1", NODE_RUNTIME),
        observed("client 4", "CPython 3.13.0", NODE_RUNTIME),
    )
    found = world.schedule.job_summary(job)
    assert found is not None
    assert found["warnings"] == [
        "its nodes run on CPython 3.11.7 (client 1) and on CPython 3.12.1 (client 3): equal "
        "results are promised for equal versions only"
    ]


def test_commands_print_the_warnings_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = JobOutcome(
        JobId(3), "n", "finished", {}, '{"x":1}', None, 1.0, warnings=("it \x1bdiffers",)
    )
    print_outcome(outcome, as_json=False)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == r"tasksprint: warning: job 3: it \x1bdiffers"
    print_outcome(outcome, as_json=True)
    event = json.loads(capsys.readouterr().err)
    assert event == {"event": "warning", "job": 3, "text": "it \x1bdiffers"}
    assert json.loads(outcome.encode())["warnings"] == ["it \x1bdiffers"]
    assert b"warnings" not in JobOutcome(JobId(3), "n", "running", {}, None, None, 1.0).encode()


def test_a_client_tells_once_what_its_nodes_run_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            body = 'echo "{\\"id\\":${id}}"\n'
            ready = '{"ready":{},"runtime":"sh 1"}'
            here.program(shell_node(body, ready=ready))
            tasks = tuple(assignment(tid) for tid in range(6))
            here.coordinator.give(view(whole=True, run=tasks))
            await here.idle()
            await until(lambda: here.coordinator.observed, "it is told")
            assert here.coordinator.observed == [
                JobObserved(JobId(1), NODE_RUNTIME, "client 1", "sh 1")
            ]

    run(main)


@pytest.mark.parametrize(
    ("runtime", "sentence"),
    [
        ("5", "runtime 5, expected a text of 1 to 100 characters"),
        ('""', "runtime '', expected a text of 1 to 100 characters"),
        ('"\\ud800"', "runtime '\\ud800', expected a text of 1 to 100 characters"),
    ],
)
def test_what_a_program_runs_on_is_a_short_text(runtime: str, sentence: str) -> None:
    readers: list[Any] = [
        NodeReader(who="it", line_bytes_max=1000, value_bytes_max=1000),
        SchedulerReader(who="it", line_bytes_max=1000),
    ]
    for reader in readers:
        with pytest.raises(RemoteProtocolError) as caught:
            reader.feed(b'{"ready":{},"runtime":%s}\n' % runtime.encode())
        assert str(caught.value) == f"it said ready with {sentence}"


def test_the_python_sdk_says_what_it_runs_on(tmp_path: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    runtime = f"{sys.implementation.name} {version} {os.uname().machine}"
    text = "from TaskSprintNode import *\nTaskSprintNode().start()\n"
    argv = write_program(tmp_path / "node.py", text)
    with Program(argv, stderr=tmp_path / "stderr") as program:
        assert NodeDriver(program).ready.runtime == runtime
    text = "from TaskSprintCoordinator import *\nTaskSprintCoordinator().start()\n"
    argv = write_program(tmp_path / "scheduler.py", text)
    with Program(argv, stderr=tmp_path / "stderr") as program:
        ready = SchedulerDriver(program).reader.ready
        assert ready is not None and ready.runtime == runtime
