"""`restore`: a directory that a coordinator can serve, or one that it refuses; nothing between."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasksprint.consensus import Member, decode_founding
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import DiskFull, SettingsError, StoreError, UnknownRules, UsageError
from tasksprint.ids import ReplicaId
from tasksprint.rescue import restore as restore_module
from tasksprint.rescue.restore import refuse_half_restored, run_restore
from tasksprint.settings import RULES, RULES_BY_VERSION
from tasksprint.store.backup_file import BackupWriter
from tasksprint.store.replica_store import ReplicaStore
from tests.store.failing_disk import failing_disk
from tests.store.test_backup_file import ARCHIVE, PROGRAM, make_backup


def restore(path: Path, data_dir: Path, **given: Any) -> int:
    options: dict[str, Any] = {
        "json": True,
        "id": 1,
        "listen": "127.0.0.1:7070",
        "advertise": None,
        **given,
    }
    return run_restore(argparse.Namespace(file=str(path), data_dir=str(data_dir), **options))


def check_restored(data_dir: Path, state: Schedule, *, me: int = 1) -> None:
    """See that a coordinator finds the state there, as that of another cluster."""
    refuse_half_restored(data_dir)
    store = ReplicaStore.open(data_dir, me, now_ms=0)
    recovery = store.recover()
    core = recovery.consensus
    assert core.founding is not None and core.accepted == () and core.promised is None
    founding = decode_founding(core.founding)
    assert founding.cluster == recovery.cluster
    assert (founding.origins, founding.retired) == (("before", "c0ffee"), ())
    slot = state.applied_slot
    assert (core.chosen_end, core.applied_end, core.log_start) == (slot + 1,) * 3
    schedule = Schedule(cluster=founding.cluster, members=(), rules=RULES, mirror=store)
    schedule.check()
    assert (schedule.applied_slot, schedule.digest) == (slot, recovery.applied.digest)
    assert schedule.jobs() == state.jobs()
    assert store.read_blob(PROGRAM) == ARCHIVE
    store.close()


def test_restored_directory_holds_the_state_as_that_of_a_new_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make_backup(tmp_path / "backup")
    data_dir = tmp_path / "data"
    assert restore(tmp_path / "backup", data_dir, id=4, advertise="10.0.0.4:7070") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["from_cluster"], told["slot"], told["jobs"]) == ("c0ffee", 3, 2)
    check_restored(data_dir, state, me=4)
    store = ReplicaStore.open(data_dir, 4, now_ms=0)
    core = store.recover().consensus
    store.close()
    assert core.founding is not None
    assert decode_founding(core.founding).members == (
        Member(ReplicaId(4), core.incarnation, "10.0.0.4:7070"),
    )
    assert sorted(each.name for each in data_dir.iterdir()) == ["replica.db", "replica.lock"]
    # Once more, elsewhere: yet another cluster.
    restore(tmp_path / "backup", tmp_path / "other")
    assert json.loads(capsys.readouterr().out)["cluster"] != told["cluster"]


def test_what_is_lost_and_what_to_do_next_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_backup(tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "data", json=False)
    text = capsys.readouterr().out
    assert text.startswith("restored cluster c0ffee as of slot 3 (")
    assert "2 jobs (2 running), 1 archives\nlost: everything that was acknowledged after" in text
    assert f"tasksprint coordinator --id 1 --listen 127.0.0.1:7070 --data-dir {tmp_path}" in text


def test_backup_of_an_empty_state_can_be_restored(tmp_path: Path) -> None:
    head = {"version": 1, "cluster": "c", "origins": [], "replica": 1, "slot": 0, "digest": ""}
    with (tmp_path / "backup").open("wb") as file:
        writer = BackupWriter(file)
        writer.add("backup", **head)
        writer.add("rows", b"[]", table="jobs", rows=0)
        writer.end()
    assert restore(tmp_path / "backup", tmp_path / "data") == 0
    store = ReplicaStore.open(tmp_path / "data", 1, now_ms=0)
    core = store.recover().consensus
    store.close()
    assert core.founding is not None and (core.chosen_end, core.log_start) == (1, 1)


@pytest.mark.parametrize("version", RULES_BY_VERSION)
def test_restored_cluster_goes_on_by_the_rules_of_its_state(tmp_path: Path, version: int) -> None:
    make_backup(tmp_path / "backup", rules_version=version)
    assert restore(tmp_path / "backup", tmp_path / "data") == 0
    store = ReplicaStore.open(tmp_path / "data", 1, now_ms=0)
    founding = store.recover().consensus.founding
    assert founding is not None and decode_founding(founding).rules == version
    schedule = Schedule(
        cluster=decode_founding(founding).cluster, members=(), rules=RULES, mirror=store
    )
    store.close()
    assert schedule.rules.version == version


def test_backup_of_rules_that_this_release_lacks_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    make_backup(tmp_path / "backup", rules=9)
    with pytest.raises(UnknownRules) as caught:
        restore(tmp_path / "backup", tmp_path / "data")
    assert str(caught.value) == (
        f"the backup {str(tmp_path / 'backup')!r} is at version 9 of the rules, and this release "
        "can apply 1 to 2; start a release that can; see docs/operations.md, 'Upgrading'"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["replica.db", "results.db", "anything"])
def test_directory_that_holds_something_is_refused(tmp_path: Path, name: str) -> None:
    make_backup(tmp_path / "backup")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / name).write_text("precious")
    with pytest.raises(SettingsError, match=f"is not empty: it has '{name}'"):
        restore(tmp_path / "backup", data_dir)
    assert [each.name for each in data_dir.iterdir()] == [name]
    assert (data_dir / name).read_text() == "precious"


def test_damaged_backup_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    make_backup(tmp_path / "backup")
    data = (tmp_path / "backup").read_bytes()
    (tmp_path / "backup").write_bytes(data.replace(b"job 1", b"job 7").replace(b"an arch", b"AN"))
    with pytest.raises(StoreError) as caught:
        restore(tmp_path / "backup", tmp_path / "data")
    assert "record 1 (2 rows of table 'jobs') fails its checksum" in str(caught.value)
    assert str(caught.value).endswith("more; use another backup")
    assert not (tmp_path / "data").exists()


def test_replica_number_that_is_none_is_refused(tmp_path: Path) -> None:
    for number in (0, 2**63):
        with pytest.raises(UsageError, match=f"--id {number} is not from 1 to 2"):
            restore(tmp_path / "backup", tmp_path / "data", id=number)


@pytest.mark.parametrize(
    ("full", "spared"), [("replica.db-wal", 5), ("replica.db-wal", 60), ("replica.db", 5)]
)
def test_full_disk_is_said_and_gets_its_space_back(
    full: str, spared: int, tmp_path: Path
) -> None:
    """It may be full from the first write on, or only when all of it goes into the file."""
    state = make_backup(tmp_path / "backup")
    with failing_disk() as failing:
        failing.full, failing.spared = full, spared
        with pytest.raises(DiskFull) as caught:
            restore(tmp_path / "backup", tmp_path / "data")
    assert str(caught.value).endswith(
        "replica.db': the disk is full; free some space and restore the backup again"
    )
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["restore.lock"]
    restore(tmp_path / "backup", tmp_path / "data")
    check_restored(tmp_path / "data", state)


# --- interrupted ---

# What a restore does, in order; it is killed before or after each of them.
STEPS: tuple[tuple[Any, str], ...] = (
    (ReplicaStore, "open"),
    (ReplicaStore, "begin_copy"),
    (ReplicaStore, "add_copied"),
    (ReplicaStore, "put_blob"),
    (ReplicaStore, "install_copy"),
    (ReplicaStore, "begin_anew"),
    (ReplicaStore, "close_whole"),
    (os, "replace"),
    (restore_module, "sync_directory"),
    (shutil, "rmtree"),
    (Path, "unlink"),
)


@pytest.mark.slow
@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize(("where", "name"), STEPS, ids=lambda value: str(value)[:20])
def test_restore_that_is_killed_leaves_nothing_that_is_served_by_halves(
    where: Any, name: str, is_before: bool, tmp_path: Path
) -> None:
    state = make_backup(tmp_path / "backup")
    data_dir = tmp_path / "data"
    child = os.fork()
    if child == 0:
        _die_at(where, name, is_before, lambda: restore(tmp_path / "backup", data_dir))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    if (data_dir / "replica.db").exists():
        check_restored(data_dir, state)
        return
    if data_dir.exists() and list(data_dir.iterdir()):
        with pytest.raises(SettingsError, match="holds a restore that was interrupted"):
            refuse_half_restored(data_dir)
    restore(tmp_path / "backup", data_dir)
    check_restored(data_dir, state)


def _die_at(where: Any, name: str, is_before: bool, work: Callable[[], object]) -> None:
    """Do something, in a process that is gone at once when it gets there."""
    try:
        original = getattr(where, name)

        def die(*arguments: Any, **options: Any) -> None:
            if not is_before:
                original(*arguments, **options)
            os._exit(9)

        setattr(where, name, die)
        work()
    finally:
        os._exit(1)
