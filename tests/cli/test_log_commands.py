"""`log verify` and `log show` on stores and backups, whole and damaged."""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tasksprint.cli.log_commands import show_log, verify_log
from tasksprint.consensus.membership import Membership, encode_membership_value, without
from tasksprint.errors import SettingsError, StoreError, UsageError
from tasksprint.ids import ReplicaId
from tests.rescue.test_recover import FOUNDING, make_store
from tests.store.test_backup_file import ARCHIVE, make_backup


def run(capsys: pytest.CaptureFixture[str], action: str, **given: Any) -> str:
    """Return what a command prints."""
    options: dict[str, Any] = {"json": False, "file": None, "data_dir": None, "slot": None}
    for name in ("file", "data_dir"):
        if name in given:
            given[name] = str(given[name])
    command = {"show": show_log, "verify": verify_log}[action]
    assert command(argparse.Namespace(**{**options, **given})) == 0
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], **given: Any) -> tuple[list[str], str]:
    """Return the problems that `log verify` prints, and with what it ends."""
    with pytest.raises(StoreError) as caught:
        run(capsys, "verify", json=True, **given)
    assert caught.value.exit_code == 74
    return json.loads(capsys.readouterr().out)["problems"], str(caught.value)


def test_whole_store_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_store(tmp_path / "data")
    text = run(capsys, "verify", data_dir=folder)
    assert text.startswith(
        "checked the store of replica 3 of cluster c0ffee: its name and its promise, 6 entries "
        "of the log up to slot 15, 9 rows of the state at slot 10, 0 archives, "
    )
    found = json.loads(run(capsys, "verify", data_dir=folder, json=True))
    assert (found["problems"], found["rows"]["jobs"], found["promised"]) == ([], 2, [2, 2])
    assert (found["log_start"], found["chosen_end"], found["applied_slot"]) == (10, 13, 10)


def test_each_damage_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_store(tmp_path / "data")
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE jobs SET name = 'another' WHERE job = 1")
        database.execute("UPDATE log SET value = x'00' WHERE slot = 12")
        database.commit()
    problems, error = failed(capsys, data_dir=folder)
    assert problems == [
        "slot 12 of table 'log' fails its checksum",
        "row (1,) of table 'jobs' fails its checksum",
    ]
    assert "isn't as it was written: 2 problems were found; check the disk" in error
    # It changed nothing, so it finds the same again.
    assert failed(capsys, data_dir=folder)[0] == problems


def test_store_whose_owner_is_not_known_is_still_looked_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_store(tmp_path / "data")
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE header SET cluster = 'beef'")
        database.execute("UPDATE jobs SET name = 'another' WHERE job = 1")
        database.commit()
    problems, _ = failed(capsys, data_dir=folder)
    assert "the row of table 'header' fails its checksum" in problems[0]
    assert problems[1] == "row (1,) of table 'jobs' fails its checksum"


def test_file_that_is_no_database_is_one_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_store(tmp_path / "data")
    (folder / "replica.db").write_bytes(b"garbage " * 1_000)
    problems, _ = failed(capsys, data_dir=folder)
    assert len(problems) == 1 and "it is not an SQLite database" in problems[0]


def test_backup_is_counted_and_its_damage_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "backup"
    make_backup(path)
    text = run(capsys, "verify", file=path)
    assert text.startswith("checked a backup of cluster c0ffee at slot 3: 13 records, ")
    data = path.read_bytes()
    path.write_bytes(data.replace(ARCHIVE[:5], b"other"))
    problems, error = failed(capsys, file=path)
    assert len(problems) == 1 and "fails its checksum" in problems[0]
    assert error.endswith("1 problem was found; use another backup")


def test_one_of_both_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ({}, {"file": "a", "data_dir": "b"}):
        with pytest.raises(UsageError, match="name a backup's FILE, or --data-dir DIR"):
            run(capsys, "verify", **given)
    with pytest.raises(SettingsError, match="holds no data of a coordinator"):
        run(capsys, "verify", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_entries_are_shown_with_their_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = without(Membership(0, FOUNDING.members), ReplicaId(1))
    values = {11: encode_membership_value(two), 12: b""}
    folder = make_store(tmp_path / "data", values=values)
    with contextlib.closing(sqlite3.connect(folder / "replica.db")) as database:
        database.execute("UPDATE log SET value = x'00' WHERE slot = 14")
        database.commit()
    lines = run(capsys, "show", data_dir=folder, slot="11..").splitlines()
    assert lines[:4] == [
        "11 1.2 membership 1: voters 2, 3",
        "12 1.2 nothing",
        '13 2.2 ["tick",100,1000013,[],null,[]]',
        "14 fails its checksum",
    ]
    assert lines[4] == '15 2.2 ["tick",100,1000015,[],null,[]]'
    assert lines[5].startswith('15 2.2 ["submit","tester",15,"job 15",7,') and lines[5][-1] == "…"
    found = json.loads(run(capsys, "show", data_dir=folder, slot="10..12", json=True))
    assert [each["slot"] for each in found] == [10, 11, 12]
    assert found[0]["value"][0] == ["tick", 100, 1_000_010, [], None, []]
    assert found[1]["value"] == {"membership": "voters 2, 3", "number": 1}
    assert run(capsys, "show", data_dir=folder, slot="13").count("\n") == 1
    assert run(capsys, "show", data_dir=folder, slot="..9") == ""
    for bad in ("", "x", "..", "1..x", "-1", "0", "0..2", "20..17", str(2**63 - 1), f"{2**64}.."):
        with pytest.raises(UsageError, match="is not A"):
            run(capsys, "show", data_dir=folder, slot=bad)
