"""The last release and this checkout on one cluster: each role of one beside the others'."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.e2e.harness import write_job
from tests.releases.stages import (
    JOB,
    PATIENT,
    Outcome,
    Stages,
    ask,
    command_of,
    heard_by,
    leave_no_trace,
    replace,
    undisturbed,
)
from tests.torture.machines import Machines

pytestmark = pytest.mark.long

COORDINATORS = ("coordinator-1", "coordinator-2", "coordinator-3")
SIZE = {"stages": 3, "width": 40}
BOTH_WAYS = pytest.mark.parametrize(("here", "there"), [("old", "new"), ("new", "old")])


@pytest.fixture(scope="module")
def expected(old_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the job ends with where all is of the last release."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "cluster", old_archive, **SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cluster"


@pytest.fixture
def sdk_in_archive(old_archive: Path, tmp_path: Path) -> Path:
    """The job, with programs that import the SDK from the last release's archive beside them."""
    folder = tmp_path / "own-sdk"
    shutil.copytree(JOB, folder)
    shutil.copy(old_archive, folder / "former.pyz")
    for name, module in (("scheduler", "TaskSprintCoordinator"), ("node", "TaskSprintNode")):
        path = folder / f"{name}.py"
        lines = [
            "import sys",
            'sys.path.insert(0, "former.pyz")',
            f"import {module}",
            f'assert "former.pyz" in {module}.__file__, {module}.__file__',
        ]
        path.write_text("\n".join([*lines, path.read_text(encoding="utf-8")]), encoding="utf-8")
    return folder


@BOTH_WAYS
def test_clients_of_both_work_with_coordinators_of_either(
    archives: dict[str, Path], folder: Path, expected: Outcome, here: str, there: str
) -> None:
    """Clients of two releases fetch values from one another; people use the other release."""
    with Machines(
        folder, command=command_of(archives[here]), coordinators=1, clients=2, nodes=2
    ) as machines:
        machines.start("coordinator-1")
        machines.start("client-1")
        machines.start("client-2", command=command_of(archives[there]))
        wait_until(lambda: machines.client_states() == ["alive"] * 2, "both clients have joined")
        stages = Stages(machines, archives[there], **SIZE)
        stages.wait_for_middle(0)
        stages.open(0)
        stages.wait_for_middle(1)
        assert stages.holders() == {1, 2}
        assert stages.end() == expected
        leave_no_trace(machines)


@BOTH_WAYS
def test_people_of_either_release_are_told_the_same(
    archives: dict[str, Path], folder: Path, expected: Outcome, here: str, there: str
) -> None:
    """Every command that asks; and what ends the cluster at last."""
    with Machines(
        folder, command=command_of(archives[here]), coordinators=1, clients=1, nodes=4
    ) as machines:
        machines.start_all()
        stages = Stages(machines, archives[there], **SIZE)
        assert stages.end() == expected
        job = str(stages.job)

        def told(release: str, *arguments: str, code: int = 0) -> bytes:
            return ask(machines, archives[release], *arguments, code=code)

        alike = (["jobs"], ["result", job, "--json"], ["logs", job], ["cancel", job])
        for arguments in alike:
            assert told("old", *arguments) == told("new", *arguments)
        for arguments in (["status"], ["status", job], ["clients"], ["member", "list"]):
            told(there, *arguments)
        told(there, "job", "forget", job)
        told(here, "result", job, code=77)
        told(there, "stop")
        for name in ("client-1", "coordinator-1"):
            assert machines.processes[name].wait(20) == 0, machines.log(name)[-2000:]


@pytest.mark.parametrize(("here", "there"), [("old", "new"), ("new", "old"), ("new", "new")])
def test_programs_go_on_that_import_the_sdk_of_the_last_release(
    archives: dict[str, Path],
    folder: Path,
    expected: Outcome,
    sdk_in_archive: Path,
    here: str,
    there: str,
) -> None:
    """Two coordinators of one release and one of the other compare what schedulers answer.

    Or all are of this one: then the rules are its own from the beginning.
    """
    with Machines(
        folder, command=command_of(archives[here]), coordinators=3, clients=1, nodes=4
    ) as machines:
        machines.start("coordinator-1", command=command_of(archives[there]))
        machines.start_all()
        stages = Stages(machines, archives["old"], folder=sdk_in_archive, **SIZE)
        assert stages.end() == expected
        leave_no_trace(machines)


SCHEDULER = """
from TaskSprintCoordinator import *


class Hand(TaskSprintCoordinator):
    def init(self, seed):
        self.start_task("draw", base=[41], keys=["drawn"])

    def task_done(self, tid, values):
        self.finish([tid], values)


Hand().start()
"""
NODE = """#!/usr/bin/env python3
from TaskSprintNode import *


class Node(TaskSprintNode):
    def draw(self, number):
        return {"drawn": number + 1}


Node().start()
"""


@BOTH_WAYS
def test_nodes_attach_by_hand_to_clients_of_the_other_release(
    archives: dict[str, Path], folder: Path, tmp_path: Path, here: str, there: str
) -> None:
    job = write_job(tmp_path / "hand", SCHEDULER, NODE)
    (job / "tasksprint.json").write_text('{"node":"attached:mynode"}', encoding="utf-8")
    program = (job / "node.py").rename(tmp_path / "mynode.py")
    program.chmod(0o755)
    with Machines(
        folder, command=command_of(archives[here]), coordinators=1, clients=1
    ) as machines:
        machines.start_all()
        wait_until(lambda: machines.client_states() == ["alive"], "the client has joined")
        node = subprocess.Popen(
            [*command_of(archives[there]), "node", "--exec", str(program)],
            stdin=subprocess.DEVNULL,
            env=machines.environment,
        )
        try:
            said = ask(machines, archives[there], "submit", str(job), "--wait", "--json")
            assert json.loads(said)["values"] == {"drawn": 42}
        finally:
            node.kill()
            node.wait()
        leave_no_trace(machines)


def test_a_cluster_goes_back_to_the_last_release_before_its_rules_are_raised(
    archives: dict[str, Path], folder: Path, expected: Outcome
) -> None:
    """Asked to end or killed: what this checkout wrote, the last release reads and goes on."""
    old, new = command_of(archives["old"]), ["env", PATIENT, *command_of(archives["new"])]
    names = (*COORDINATORS, "client-1")
    with Machines(folder, command=old, coordinators=3, clients=1, nodes=4) as machines:
        machines.start_all()
        stages = Stages(machines, archives["old"], **SIZE)
        stages.wait_for_middle(0)
        for name in names:
            replace(machines, name, new)
            if name in COORDINATORS:
                heard_by(machines, name)
        stages.open(0)
        stages.wait_for_middle(1)
        for name in names:
            machines.kill(name)
            machines.start(name, command=old)
            if name in COORDINATORS:
                heard_by(machines, name)
        assert stages.end() == expected
        leave_no_trace(machines)


@pytest.fixture
def backed_up(archives: dict[str, Path], folder: Path) -> Iterator[tuple[Machines, Stages]]:
    """A cluster of the last release in the middle of a job."""
    with Machines(
        folder, command=command_of(archives["old"]), coordinators=1, clients=1, nodes=4
    ) as machines:
        machines.start_all()
        stages = Stages(machines, archives["old"], **SIZE)
        stages.wait_for_middle(0)
        yield machines, stages


@pytest.mark.parametrize("who", ["old", "new"])
def test_a_backup_of_the_last_release_goes_on_in_this_one(
    archives: dict[str, Path],
    backed_up: tuple[Machines, Stages],
    tmp_path: Path,
    expected: Outcome,
    who: str,
) -> None:
    """Whichever release asks for it; its data directory is whole for this one, too."""
    machines, stages = backed_up
    new, path = archives["new"], str(tmp_path / "backup")
    ask(machines, archives[who], "backup", path)
    machines.kill("coordinator-1", "client-1")
    data_dir = machines.folder / "coordinator-1"
    for what in (["--data-dir", str(data_dir)], [path]):
        assert json.loads(ask(machines, new, "log", "verify", "--json", *what))["problems"] == []
    shutil.rmtree(data_dir)
    address = machines.addresses["coordinator-1"]
    ask(machines, new, "restore", path, "--data-dir", str(data_dir), "--listen", address)
    machines.start("coordinator-1", command=command_of(new))
    machines.start("client-1", command=command_of(new))
    assert stages.end() == expected
    leave_no_trace(machines)
