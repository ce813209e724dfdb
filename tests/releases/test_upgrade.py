"""A cluster of the last release becomes one of this checkout while a job runs on it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tasksprint.consensus import Ballot, LogEntry, Persist
from tasksprint.consensus.batch import encode_alone
from tasksprint.coordination.commands import RaiseRules, encode_command
from tasksprint.ids import ReplicaId, Slot
from tasksprint.store.records import Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.e2e.conftest import wait_until
from tests.releases.stages import (
    PATIENT,
    Stages,
    ask,
    command_of,
    heard_by,
    leave_no_trace,
    replace,
    undisturbed,
    wait_for_leader,
)
from tests.torture.machines import Machines, number_of

pytestmark = pytest.mark.long

COORDINATORS = ("coordinator-1", "coordinator-2", "coordinator-3")
SIZE = {"stages": 8, "width": 80}
# As many versions of the rules as this checkout has.
OLD_RULES, NEW_RULES = 1, 2
# Beside this one: coordinators that raise the rules soon, and such as leave elections to others.
HASTY = 'TASKSPRINT_SETTINGS={"rules_settle_ms":500}'
IDLE = (
    'TASKSPRINT_SETTINGS={"rules_settle_ms":3600000,"resend_interval_ms":20000,'
    '"election_timeout_min_ms":40000,"election_timeout_max_ms":60000}'
)


def rules_of(machines: Machines, name: str) -> object:
    """Return the version of the rules by which a coordinator applies the log."""
    status = machines.status(name)
    return None if status is None else status.get("rules", OLD_RULES)


def wait_for_rules(machines: Machines, version: int) -> None:
    wait_until(
        lambda: {rules_of(machines, name) for name in COORDINATORS} == {version},
        f"all apply the log by the rules {version}",
        found=lambda: [rules_of(machines, name) for name in COORDINATORS],
    )


def test_each_process_is_replaced_in_mid_job_and_then_the_rules_are_raised(
    old_archive: Path, new_archive: Path, tmp_path: Path
) -> None:
    """The job ends with the bytes of an undisturbed run, by the old rules and by the new ones.

    The second client is still of the last release when the rules are raised. A coordinator
    that is killed then replays what the job's scheduler said before.
    """
    new = ["env", PATIENT, *command_of(new_archive)]
    with Machines(
        tmp_path / "cluster", command=command_of(old_archive), coordinators=3, clients=2, nodes=3
    ) as machines:
        machines.start_all()
        stages = Stages(machines, old_archive, **SIZE)
        for stage, name in enumerate((*COORDINATORS, "client-1")):
            stages.wait_for_middle(stage)
            replace(machines, name, new)
            if name in COORDINATORS:
                heard_by(machines, name)
            stages.open(stage)
        stages.people = new_archive
        stages.wait_for_middle(4)
        assert {rules_of(machines, name) for name in COORDINATORS} == {OLD_RULES}
        stages.ask("upgrade")
        wait_for_rules(machines, NEW_RULES)
        stages.open(4)
        stages.wait_for_middle(5)
        machines.kill("coordinator-2")
        machines.start("coordinator-2", command=new)
        heard_by(machines, "coordinator-2")
        stages.open(5)
        stages.wait_for_middle(6)
        replace(machines, "client-2", new)
        outcome = stages.end()
        # By the new rules from its beginning, and undisturbed.
        assert Stages(machines, new_archive, **SIZE).end() == outcome
        leave_no_trace(machines)
    assert undisturbed(tmp_path / "old", old_archive, **SIZE) == outcome


def start_upgraded(machines: Machines, command: list[str]) -> str:
    """Replace the coordinators of a cluster of the last release; return one that follows."""
    machines.start_all()
    wait_for_leader(machines)
    for name in COORDINATORS:
        replace(machines, name, command)
        heard_by(machines, name)
    leader = wait_for_leader(machines)
    return next(name for name in COORDINATORS if name != leader)


def test_the_last_release_doesnt_come_back_once_the_rules_are_raised(
    old_archive: Path, new_archive: Path, tmp_path: Path
) -> None:
    """It stops with a sentence, before it applies anything, on a state of the newer rules.

    And so it does on a state of before: it is stopped here when the others raise the
    rules, is downgraded, and meets the entry that raises them. This release then goes on
    with its data directory.
    """
    old, new = command_of(old_archive), ["env", PATIENT, *command_of(new_archive)]
    with Machines(tmp_path / "cluster", command=old, coordinators=3, clients=0) as machines:
        late = start_upgraded(machines, new)
        raised = next(n for n in COORDINATORS if n not in (late, wait_for_leader(machines)))
        machines.stop(late)
        ask(machines, new_archive, "upgrade")
        mirror = machines.folder / raised / "replica.db"
        wait_until(lambda: rules_of_mirror(mirror) == NEW_RULES, "the rules are raised")
        machines.kill(late, raised)

        said = end_of(machines, raised, old)
        assert said == (
            f"the state was made by version {NEW_RULES} of the rules, this program has version "
            f"{OLD_RULES}; start the release that it was made with"
        )
        machines.start(raised, command=new)
        heard_by(machines, raised)

        # The entry that it can't read reaches it from a member, and ends it at the next one;
        # once it knows that the entry is chosen, it is told so at its start.
        for _ in range(5):
            said = end_of(machines, late, old)
            if not said.startswith("AssertionError: slot "):
                break
        assert said.startswith("a membership has version 'none: it raises the rules'")
        machines.start(late, command=new)
        heard_by(machines, late)
        wait_for_rules(machines, NEW_RULES)

        # Nor is it taken up as a new member.
        machines.command = old
        added = machines.join()
        wait_until(lambda: "waits until cluster" in machines.log(added), f"{added} is up")
        place = f"{number_of(added)}={machines.addresses[added]}"
        ask(machines, new_archive, "member", "add", place, code=77)
        machines.leave(added)
        wait_until(machines.is_level, "all have the same state")


def rules_of_mirror(path: Path) -> int:
    """Return the rules by which a coordinator's file says that its rows were made."""
    with closing(sqlite3.connect(path)) as database:
        ((body,),) = database.execute("SELECT body FROM facts WHERE name = 'state'")
    return int(json.loads(body)["rules"])


def end_of(machines: Machines, name: str, command: list[str]) -> str:
    """Start a coordinator that ends by itself, and return its last sentence."""
    before = len(machines.log(name))
    machines.start(name, command=command)
    code = machines.processes[name].wait(60)
    said = machines.log(name)[before:]
    assert code not in (0, None), said
    machines._killed.add(name)
    return said.splitlines()[-1].removeprefix("tasksprint: ")


def test_a_member_of_the_last_release_holds_the_rules_back(
    old_archive: Path, new_archive: Path, tmp_path: Path
) -> None:
    """Whoever asks is told which member it is; once it is replaced they rise by themselves."""
    old, new = command_of(old_archive), ["env", HASTY, *command_of(new_archive)]
    with Machines(tmp_path / "cluster", command=old, coordinators=3, clients=0) as machines:
        machines.start_all()
        wait_for_leader(machines)
        for name in COORDINATORS[:2]:
            replace(machines, name, new)
            heard_by(machines, name)
        while wait_for_leader(machines) == "coordinator-3":
            replace(machines, "coordinator-3", old)
        heard_by(machines, "coordinator-3")
        said = ask(machines, new_archive, "upgrade", code=77).decode()
        assert "missing: replica 3 runs release 0.2.0 or older, which has the rules" in said
        assert {rules_of(machines, name) for name in COORDINATORS} == {OLD_RULES}
        replace(machines, "coordinator-3", new)
        wait_for_rules(machines, NEW_RULES)
        leave_no_trace(machines)


def test_a_member_put_back_in_the_moment_of_the_raise_is_deposed(
    old_archive: Path, new_archive: Path, tmp_path: Path
) -> None:
    """Release 0.2.0, elected then, would have the raise chosen, lead on and apply nothing.

    1. The leader has proposed to raise the rules, and is killed before anybody else hears of it.
    2. It is put back, and elected by a member of this release: the third one is down.
    3. It proposes the raise anew. That member refuses, and takes its place.
    """
    old, new = command_of(old_archive), ["env", PATIENT, *command_of(new_archive)]
    with Machines(tmp_path / "cluster", command=old, coordinators=3, clients=0) as machines:
        start_upgraded(machines, new)
        leader = wait_for_leader(machines)
        voter, third = (name for name in COORDINATORS if name != leader)
        replace(machines, voter, ["env", IDLE, *command_of(new_archive)])
        heard_by(machines, voter)
        assert wait_for_leader(machines) == leader
        machines.kill(third)
        machines.kill(leader)
        accept_raise(machines.folder / leader)
        before = len(machines.log(leader))
        machines.start(leader, command=old)
        wait_until(lambda: "became leader" in machines.log(leader)[before:], "it was elected")
        machines.start(third, command=new)
        for name in (voter, third):
            wait_until(lambda name=name: rules_of(machines, name) == NEW_RULES, "rules are raised")
        refused = f"replica {number_of(leader)} leads, but can't read what it proposes"
        assert refused in machines.log(voter)
        # As a follower it ends by itself.
        machines.processes[leader].wait(60)
        machines._killed.add(leader)
        machines.start(leader, command=new)
        heard_by(machines, leader)
        wait_for_rules(machines, NEW_RULES)


def accept_raise(data_dir: Path) -> None:
    """Let a leader that is down have proposed to raise the rules, in a ballot of its own."""
    store = ReplicaStore.open_there(data_dir)
    recovered = store.recover().consensus
    assert recovered.promised is not None
    slot = max([recovered.chosen_end, *[entry.slot + 1 for entry in recovered.accepted]])
    ballot = Ballot(recovered.promised.round + 1, ReplicaId(store.replica))
    value = encode_alone(encode_command(RaiseRules(NEW_RULES)))
    store.commit(Commit((Persist(accepted=(LogEntry(Slot(slot), ballot, value),)),)))
    store.close()
