"""`recover` on stores that hold all sorts of things, and what a crash in it leaves."""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasksprint.consensus import (
    Founding,
    LogEntry,
    Member,
    Persist,
    decode_batch,
    decode_founding,
    encode_batch,
    encode_founding,
)
from tasksprint.consensus.batch import encode_alone
from tasksprint.consensus.membership import Membership, encode_membership_value, without
from tasksprint.coordination.commands import (
    Command,
    RaiseRules,
    SubmitJob,
    Tick,
    encode_command,
)
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import SettingsError, StoreDamaged, StoreError, UnknownRules, UsageError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.rescue import recover as recover_module
from tasksprint.rescue.recover import Survivor, run_recover
from tasksprint.settings import RULES, RULES_BY_VERSION, Rules
from tasksprint.store import replica_store as replica_store_module
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tests.store.helpers import ballot

IDS = (ReplicaId(1), ReplicaId(2), ReplicaId(3))
FOUNDING = Founding(
    "c0ffee", tuple(Member(number, Incarnation(f"inc{number}"), f"h:{number}") for number in IDS)
)


def submission(number: int) -> SubmitJob:
    return SubmitJob("tester", number, f"job {number}", 7, "{}", "p" * 64, '{"node":"n"}')


def value_of(slot: int) -> bytes:
    commands: list[Command] = [Tick(100, 1_000_000 + slot)]
    if slot % 5 == 0:
        commands.append(submission(slot))
    return encode_batch(encode_command(command) for command in commands)


def make_store(
    folder: Path,
    *,
    applied: int = 10,
    chosen: int = 12,
    accepted: tuple[int, ...] = (11, 12, 13, 14, 15),
    values: dict[int, bytes] | None = None,
    founding: Founding | None = FOUNDING,
    incarnation: str = "inc3",
    rules: Rules = RULES,
) -> Path:
    """Make the data directory of replica 3."""
    store = ReplicaStore.open(folder, 3, now_ms=0, incarnation=incarnation)
    if founding is not None:
        schedule = Schedule(cluster="c0ffee", members=IDS, rules=rules)
        rows = [
            row
            for slot in range(1, applied + 1)
            for row in schedule.apply(Slot(slot), decode_batch(value_of(slot))).rows
        ]
        given = values or {}
        entries = tuple(
            LogEntry(Slot(slot), ballot(slot // 13 + 1, 2), given.get(slot, value_of(slot)))
            for slot in (applied, *accepted)
        )
        persist = Persist(
            promised=ballot(2, 2),
            accepted=entries,
            chosen_end=Slot(chosen + 1),
            founding=encode_founding(founding),
        )
        point = AppliedPoint(schedule.applied_slot, schedule.digest)
        store.commit(Commit((persist,), tuple(rows), point, applied, founding.cluster))
    store.close()
    return folder


def options(folder: Path, **given: Any) -> argparse.Namespace:
    found: dict[str, Any] = {"json": True, "dry_run": False, "yes_lose": None, "advertise": None}
    return argparse.Namespace(data_dir=str(folder), **{**found, **given})


def look(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    assert run_recover(options(folder, dry_run=True)) == 0
    return json.loads(capsys.readouterr().out)


def test_findings_say_what_would_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_store(tmp_path / "data")
    found = look(folder, capsys)
    assert found == {
        "replica": 3,
        "role": "voter",
        "cluster": "c0ffee",
        "members": {"1": "h:1", "2": "h:2", "3": "h:3"},
        "shut_out": [1, 2],
        "applied_slot": 10,
        "chosen_slot": 12,
        "last_slot": 15,
        "last_ballot": [2, 2],
        "given_up": [],
        "log_ms": 1500,
        "wall_ms": 1_000_015,
        "jobs_running": 3,
        "jobs_ended": 0,
        "jobs_without_archive": [1, 2, 3],
    }
    assert look(folder, capsys) == found  # Nothing was changed by looking.


def test_new_cluster_goes_on_by_the_rules_that_the_last_entries_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = {14: encode_alone(encode_command(RaiseRules(2)))}
    folder = make_store(tmp_path / "data", values=raised, rules=RULES_BY_VERSION[1])
    assert run_recover(options(folder, yes_lose="c0ffee")) == 0
    store = ReplicaStore.open(folder, 3, now_ms=0)
    founding = store.recover().consensus.founding
    assert founding is not None and decode_founding(founding).rules == 2
    store.close()


def test_member_whose_log_asks_for_unknown_rules_is_not_recovered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = {14: encode_alone(encode_command(RaiseRules(9)))}
    folder = make_store(tmp_path / "data", values=raised)
    with pytest.raises(UnknownRules, match="the log, from slot 14 on, is at version 9 of the"):
        run_recover(options(folder, yes_lose="c0ffee"))


def test_accepted_slots_behind_a_gap_are_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_store(tmp_path / "data", accepted=(11, 12, 13, 15, 16))
    found = look(folder, capsys)
    assert (found["last_slot"], found["given_up"], found["jobs_running"]) == (13, [15, 16], 2)
    assert run_recover(options(folder, dry_run=True, json=False)) == 0
    text = capsys.readouterr().out
    assert "counts the slots 13 to 13 as chosen" in text
    assert "running jobs 1, 2: their archives aren't here; cancel them, and hand" in text
    assert "gives up 2 accepted slots from 15 on: slot 14 before them isn't here" in text


def test_state_of_the_new_cluster_is_that_of_the_former_one_up_to_the_last_slot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_store(tmp_path / "data")
    assert run_recover(options(folder, yes_lose="c0ffee", advertise="new:1")) == 0
    store = ReplicaStore.open(folder, 3, now_ms=0)
    recovery = store.recover()
    core = recovery.consensus
    assert core.founding is not None and core.memberships is None
    founding = decode_founding(core.founding)
    assert founding.cluster == recovery.cluster != "c0ffee"
    assert (founding.origins, founding.retired) == (("c0ffee",), (1, 2))
    assert founding.members == (Member(ReplicaId(3), core.incarnation, "new:1"),)
    assert core.incarnation != "inc3"
    assert (core.chosen_end, core.applied_end, core.log_start) == (16, 16, 16)
    assert core.accepted == () and store.read_log(1, 100, 10**6) == ()
    assert core.promised == ballot(2, 2)
    schedule = Schedule(cluster=founding.cluster, members=IDS, rules=RULES, mirror=store)
    schedule.check()
    assert (schedule.applied_slot, schedule.digest) == (15, recovery.applied.digest)
    assert [job["name"] for job in schedule.jobs()] == ["job 5", "job 10", "job 15"]
    store.close()


def test_recovering_twice_names_both_former_clusters(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "data")
    run_recover(options(folder, yes_lose="c0ffee"))
    store = ReplicaStore.open_there(folder)
    core = store.recover().consensus
    assert core.founding is not None
    founding = decode_founding(core.founding)
    # The new cluster had grown, and lost its majority once more.
    other = Member(ReplicaId(4), Incarnation("inc4"), "h:4")
    grown = Membership(1, (*founding.members, other), retired=founding.retired)
    slot = Slot(16)
    entry = LogEntry(slot, ballot(3, 3), encode_membership_value(grown))
    store.commit(Commit((Persist(accepted=(entry,), chosen_end=Slot(17)),)))
    store.close()
    run_recover(options(folder, yes_lose=founding.cluster))
    store = ReplicaStore.open_there(folder)
    core = store.recover().consensus
    store.close()
    assert core.founding is not None
    again = decode_founding(core.founding)
    assert again.origins == ("c0ffee", founding.cluster)
    assert again.retired == (1, 2, 4)


def _remove_three() -> bytes:
    return encode_membership_value(without(Membership(0, FOUNDING.members), ReplicaId(3)))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "never founded": ({"founding": None}, "replica 3 never belonged to a cluster"),
    "lost its disk": (
        {"incarnation": "another"},
        "replica 3 is not a member of cluster 'c0ffee' (any more)",
    ),
    "was removed": (
        {"values": {13: _remove_three()}},
        "replica 3 is not a member of cluster 'c0ffee' (any more)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_recovered_is_refused(case: str, tmp_path: Path) -> None:
    given, text = REFUSED[case]
    folder = make_store(tmp_path / "data", **given)
    with pytest.raises(SettingsError) as caught:
        run_recover(options(folder, yes_lose="c0ffee"))
    assert str(caught.value).startswith(text)


def test_directory_without_data_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no data of a coordinator"):
        run_recover(options(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_done_without_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_store(tmp_path / "data")
    found = look(folder, capsys)

    class Terminal:
        def __init__(self, text: str) -> None:
            self.text = text

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.text

    for text in ("", "yes\n", "c0ffe\n"):
        monkeypatch.setattr("sys.stdin", Terminal(text))
        with pytest.raises(UsageError, match="is not the cluster's name, 'c0ffee'"):
            run_recover(options(folder))
        capsys.readouterr()
        assert look(folder, capsys) == found
    monkeypatch.setattr("sys.stdin", Terminal("c0ffee\n"))
    assert run_recover(options(folder)) == 0
    assert "type the cluster's name (c0ffee) to go on: " in capsys.readouterr().err


Break = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("place", ["write_header", "write_progress"])
def test_crash_in_the_middle_leaves_the_former_state(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_store(tmp_path / "data")
    found = look(folder, capsys)

    def fail(*arguments: object) -> None:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as context:
        context.setattr(replica_store_module, place, fail)
        with pytest.raises(StoreError, match="the disk is gone"):
            run_recover(options(folder, yes_lose="c0ffee"))
    capsys.readouterr()
    assert look(folder, capsys) == found
    monkeypatch.setattr(recover_module, "new_cluster", lambda: "beef")
    assert run_recover(options(folder, yes_lose="c0ffee")) == 0


def test_store_that_lost_its_state_is_refused(tmp_path: Path) -> None:
    """As one is left that a damage was found in, and that no other member has helped yet."""
    store = ReplicaStore.open(tmp_path, 3, now_ms=0, incarnation="inc3")
    persist = Persist(chosen_end=Slot(9), founding=encode_founding(FOUNDING))
    store.commit(Commit((persist,), cluster="c0ffee"))
    store.close()
    with pytest.raises(StoreError, match="has lost its state to a damaged disk"):
        run_recover(options(tmp_path, yes_lose="c0ffee"))


def test_damaged_store_is_refused_with_what_helps_then(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "data")
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE jobs SET name = 'another' WHERE job = 1")
        database.commit()
    with pytest.raises(StoreError) as caught:
        run_recover(options(folder, yes_lose="c0ffee"))
    assert "row (1,) of table 'jobs' fails its checksum" in str(caught.value)
    assert str(caught.value).endswith("another member's data directory, or restore a backup")


def test_survivor_with_a_note_of_damage_keeps_its_state(tmp_path: Path) -> None:
    """A repair would drop it for a copy of another member's, and there is none any more."""
    folder = make_store(tmp_path / "data")
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        # A row that nothing here needs.
        database.execute("UPDATE senders SET checksum = checksum + 1")
        database.commit()
    (folder / "replica.damaged").write_text("a row")
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    for given in ({"dry_run": True}, {"yes_lose": "c0ffee"}):
        with pytest.raises(StoreError) as caught:
            run_recover(options(folder, **given))
        assert "of table 'senders' fails its checksum; nothing was changed; recover another" in (
            str(caught.value)
        )
    before["replica.lock"] = (folder / "replica.lock").read_bytes()
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE senders SET checksum = checksum - 1")
        database.execute("UPDATE log SET checksum = checksum + 1 WHERE slot = 10")
        database.commit()
    assert run_recover(options(folder, yes_lose="c0ffee")) == 0  # It was of the log.
    store = ReplicaStore.open(folder, 3, now_ms=0)
    assert store.applied.slot == 15
    store.close()


def test_survivor_that_counts_as_lost_is_refused_with_what_helps_then(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "data")
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE progress SET promised_round = 1")
        database.commit()
    with pytest.raises(StoreError) as caught:
        run_recover(options(folder, dry_run=True))
    assert str(caught.value).endswith(
        "the row of table 'progress' fails its checksum; nothing was changed; recover another "
        "member's data directory, or restore a backup"
    )


def test_survivor_whose_log_cannot_be_read_is_mended_by_starting_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {slot: b"page %d," % slot * 400 for slot in range(14, 18)}  # a page for each
    folder = make_store(
        tmp_path / "data", chosen=20, accepted=tuple(range(11, 23)), values=large
    )
    path = folder / "replica.db"
    data = path.read_bytes()
    pages = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    leaf = max(  # (Others may hold what they held before: the root was a leaf once.)
        number for number, page in enumerate(pages) if page[0] == 13 and b"page 14," in page
    )
    spoiled = [*pages[:leaf], bytes(4096), *pages[leaf + 1 :]]
    path.write_bytes(b"".join(spoiled))
    with pytest.raises(StoreError) as caught:
        run_recover(options(folder, yes_lose="c0ffee"))
    assert str(caught.value).endswith(
        "; nothing was changed; start this replica once: it mends its log and keeps its state"
    )
    with pytest.raises(StoreDamaged):
        ReplicaStore.open(folder, 3, now_ms=0)
    ReplicaStore.open(folder, 3, now_ms=0).close()  # as a coordinator does, once more
    found = look(folder, capsys)
    assert (found["applied_slot"], found["chosen_slot"], found["jobs_running"]) == (10, 20, 2)


def test_half_repaired_survivor_is_refused_as_it_is(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "data")
    (folder / "replica.db").rename(folder / "replica.db.repaired")
    with pytest.raises(StoreError, match="was interrupted; start this replica once: it puts"):
        run_recover(options(folder, yes_lose="c0ffee"))
    assert (folder / "replica.db.repaired").exists()
    ReplicaStore.open(folder, 3, now_ms=0).close()
    assert run_recover(options(folder, yes_lose="c0ffee")) == 0


def test_empty_file_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "replica.db").touch()
    with pytest.raises(StoreError, match=r"cannot open replica store .*: it is empty; move it"):
        run_recover(options(tmp_path, dry_run=True))
    assert (tmp_path / "replica.db").stat().st_size == 0


def test_chosen_slots_that_are_damaged_are_told_as_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_store(tmp_path / "data")
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE log SET value = x'00' WHERE slot = 12")
        database.commit()
    found = look(folder, capsys)
    assert (found["chosen_slot"], found["last_slot"], found["given_up"]) == (12, 11, [13, 14, 15])
    assert run_recover(options(folder, dry_run=True, json=False)) == 0
    assert "the slots 12 to 12: they were chosen, and are damaged" in capsys.readouterr().out


def test_only_member_needs_no_recovery(tmp_path: Path) -> None:
    alone = Founding("c0ffee", FOUNDING.members[2:])
    folder = make_store(tmp_path / "data", founding=alone)
    with pytest.raises(SettingsError, match="replica 3 is the only one that votes"):
        Survivor(ReplicaStore.open_there(folder))
