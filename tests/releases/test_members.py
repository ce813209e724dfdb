"""Members of two releases give each other copies of the state, and take each other's places."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_until
from tests.releases.stages import (
    Outcome,
    Stages,
    ask,
    command_of,
    heard_by,
    leave_no_trace,
    slot_of,
    undisturbed,
    wait_for_leader,
)
from tests.torture.machines import Machines, number_of

pytestmark = pytest.mark.long

SIZE = {"stages": 2, "width": 80}
# So short a log that whoever was away needs a copy of the state, in many pieces.
SHORT_LOG = {"TASKSPRINT_SETTINGS": '{"log_tail_slots":20,"mirror_piece_rows":20}'}
BOTH_WAYS = pytest.mark.parametrize(("here", "there"), [("old", "new"), ("new", "old")])


@pytest.fixture(scope="module")
def expected(old_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the job ends with where all is of the last release."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "cluster", old_archive, **SIZE)


@BOTH_WAYS
def test_members_of_one_release_take_up_one_of_the_other(
    archives: dict[str, Path], tmp_path: Path, expected: Outcome, here: str, there: str
) -> None:
    """A cluster that the last release founded; one is away, one is added, and one removed.

    Who was away comes back as the other release and takes a copy of the state; so does
    who is added. Commands are the other release's. In the end they vote without the leader
    of before.
    """
    old, new = command_of(archives[here]), command_of(archives[there])
    founders = command_of(archives["old"])
    with Machines(
        tmp_path / "cluster",
        command=founders,
        coordinators=3,
        clients=1,
        nodes=4,
        environment=SHORT_LOG,
    ) as machines:
        machines.start_all()
        stages = Stages(machines, archives[there], **SIZE)
        leader = wait_for_leader(machines)
        away = next(name for name in machines.coordinators if name != leader)
        for name in machines.coordinators:
            machines.kill(name)
        left_at = slot_of_file(machines, away)
        for name in machines.coordinators:
            if name != away:
                machines.start(name, command=old)
        stages.wait_for_middle(0)
        leader = wait_for_leader(machines)
        wait_until(lambda: slot_of(machines, leader) > left_at + 60, "the log goes on")
        wait_until(lambda: log_start(machines, leader) > left_at + 1, "the log is short")
        machines.start(away, command=new)
        heard_by(machines, away)
        machines.command = new
        added = machines.join()
        wait_until(lambda: "waits until cluster" in machines.log(added), f"{added} is up")
        said = f"{number_of(added)}={machines.addresses[added]}"
        ask(machines, archives[there], "member", "add", said)
        machines.leave(leader)
        ask(machines, archives[there], "member", "remove", str(number_of(leader)))
        assert stages.end() == expected
        for name in (away, added):
            assert "took over a copy of the state up to slot" in machines.log(name)
        members = json.loads(ask(machines, archives[here], "member", "list", "--json"))
        assert {each["role"] for each in members["members"]} == {"voter"}
        leave_no_trace(machines)


def log_start(machines: Machines, name: str) -> int:
    status = machines.status(name)
    consensus = None if status is None else status["consensus"]
    return int(consensus["log_start"]) if isinstance(consensus, dict) else 0


def slot_of_file(machines: Machines, name: str) -> int:
    """Return the last slot that the file of a coordinator knows, which isn't up."""
    with sqlite3.connect(machines.folder / name / "replica.db") as database:
        ((slot,),) = database.execute("SELECT max(slot) FROM log")
    return int(slot or 0)
