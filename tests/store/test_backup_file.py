"""A backup's file: what is written comes back, and no byte of it can change unnoticed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tasksprint.coordination.commands import Command, SubmitJob, Tick, encode_command
from tasksprint.coordination.rows import TABLES, Key
from tasksprint.coordination.schedule import Schedule
from tasksprint.encoding import encode_json
from tasksprint.errors import StoreError
from tasksprint.ids import ReplicaId, Slot
from tasksprint.settings import RULES_BY_VERSION
from tasksprint.store.backup_file import BackupReader, BackupWriter, check_backup
from tasksprint.store.mirror_tables import row_checksum

ARCHIVE = b"\x1f\x8b an archive \xff" * 10
PROGRAM = hashlib.sha256(ARCHIVE).hexdigest()


def make_backup(
    path: Path,
    *,
    jobs: int = 2,
    archives: tuple[bytes, ...] = (ARCHIVE,),
    rules_version: int = 1,
    **head: Any,
) -> Schedule:
    """Write the backup of a small state, and return the state."""
    rules = RULES_BY_VERSION[rules_version]
    schedule = Schedule(cluster="c0ffee", members=(ReplicaId(2),), rules=rules)
    rows: dict[tuple[str, Key], tuple[Any, ...]] = {}
    for slot in range(1, jobs + 2):
        command: Command = SubmitJob(
            "tester", slot, f"job {slot} ü", 7, "{}", PROGRAM, '{"node":"n"}'
        )
        if slot == jobs + 1:
            command = Tick(100, 1_000_000)
        for row in schedule.apply(Slot(slot), (encode_command(command),)).rows:
            assert row.columns is not None
            rows[row.table, row.key] = row.columns
    texts: dict[str, list[Any]] = defaultdict(list)
    for (table, key), columns in sorted(rows.items()):
        cells = (*key, *columns)
        texts[table].append([*cells, row_checksum(table, cells)])
    first = {
        "version": 1,
        "cluster": "c0ffee",
        "origins": ["before"],
        "replica": 2,
        "slot": schedule.applied_slot,
        "digest": schedule.digest,
        "rules": schedule.rules.version,
        "made_ms": 5,
        **head,
    }
    with path.open("wb") as file:
        writer = BackupWriter(file)
        writer.add("backup", **first)
        for table in TABLES:
            writer.add(
                "rows", encode_json(texts[table]), table=table, rows=len(texts[table])
            )
        for archive in archives:
            writer.add("archive", archive)
        writer.end()
    return schedule


def is_found(path: Path) -> bool:
    """Whether a check says that something is wrong."""
    try:
        return bool(check_backup(path).problems)
    except StoreError:
        return True


def test_what_is_written_is_read_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    schedule = make_backup(path)
    checked = check_backup(path)
    assert checked.problems == []
    assert checked.head["cluster"] == "c0ffee"
    assert checked.records == 1 + len(TABLES) + 1 + 1
    assert checked.archives == {PROGRAM}
    assert checked.size == path.stat().st_size
    contents = checked.contents
    assert (contents.jobs, contents.running, contents.wall_ms) == (2, {1, 2}, 1_000_000)
    assert contents.programs == {PROGRAM: [1, 2]}
    assert contents.problem(schedule.applied_slot, schedule.digest) is None
    with BackupReader(path) as reader:
        record = reader.next()
        assert (record.kind, record.fields["table"]) == ("rows", "jobs")
        assert reader.content(record).startswith('[[1,"job 1 ü","running",'.encode())


@pytest.mark.parametrize(
    "step", [pytest.param(13, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)]
)
def test_change_of_any_byte_is_found(tmp_path: Path, step: int) -> None:
    path = tmp_path / "backup"
    make_backup(path, jobs=1, archives=(ARCHIVE,))
    data = path.read_bytes()
    for position in range(0, len(data), step):
        changed = bytearray(data)
        changed[position] ^= (0x01, 0x20, 0x80, 0xFF)[position % 4]
        path.write_bytes(changed)
        assert is_found(path), f"byte {position}, {data[position]:#x}: {changed[position]:#x}"


@pytest.mark.slow
@pytest.mark.parametrize("step", [17])
def test_missing_end_is_found_wherever_it_begins(tmp_path: Path, step: int) -> None:
    path = tmp_path / "backup"
    make_backup(path, jobs=1, archives=(b"",))
    data = path.read_bytes()
    for size in (*range(0, len(data), step), *range(len(data) - 100, len(data))):
        path.write_bytes(data[:size])
        assert is_found(path), f"only {size} of {len(data)} bytes"


@pytest.mark.parametrize("more", [b"\n", b"x", b"\0" * 5_000])
def test_anything_behind_the_end_is_found(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "backup"
    make_backup(path)
    with path.open("ab") as file:
        file.write(more)
    assert check_backup(path).problems == [
        f"backup {str(path)!r} is damaged: there is more, or less, than its last record says"
    ]


def records(path: Path) -> list[bytes]:
    """Return the records of a backup, as they stand there."""
    data, found, start = path.read_bytes(), [], 0
    with BackupReader(path) as reader:
        ends = [data.index(b"\n", 0) + 2]
        while (record := reader.next()).kind != "end":
            reader.content(record)
            ends.append(data.index(b"\n", ends[-1]) + 1 + record.size + 1)
    for end in [*ends, len(data)]:
        found.append(data[start:end])
        start = end
    return found


def test_record_that_is_missing_or_comes_twice_is_found(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    make_backup(path)
    whole = records(path)
    assert b"".join(whole) == path.read_bytes() and len(whole) == 3 + len(TABLES)
    for number in range(len(whole)):
        path.write_bytes(b"".join(whole[:number] + whole[number + 1 :]))
        assert is_found(path)
        path.write_bytes(b"".join(whole[: number + 1] + whole[number:]))
        assert is_found(path)


def test_all_damaged_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    make_backup(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"job 1")] ^= 1
    data[data.index(b" an archive")] ^= 1
    path.write_bytes(data)
    who = f"backup {str(path)!r} is damaged: "
    number = 1 + len(TABLES)
    assert check_backup(path).problems == [
        f"{who}record 1 (2 rows of table 'jobs') fails its checksum",
        f"{who}record {number} (the archive {PROGRAM[:12]}…) fails its checksum",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slot": 2}, "the rows are of "),
        ({"digest": "00"}, "expected slot 3 and digest '00'"),
        ({"archives": ()}, f"it lacks the archive {PROGRAM} of job 1"),
    ],
)
def test_backup_that_is_whole_but_not_right_is_found(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    make_backup(tmp_path / "backup", **changes)
    (problem,) = check_backup(tmp_path / "backup").problems
    assert words in problem


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    for data in (b"", b"SQLite format 3\0", b"\0" * 10_000, b"00000000 {}\n\n"):
        path.write_bytes(data)
        with pytest.raises(StoreError, match="is no backup, or its first line is damaged"):
            check_backup(path)
    with pytest.raises(StoreError, match="No such file or directory"):
        check_backup(tmp_path / "nothing")
    make_backup(path, version=2)
    with pytest.raises(StoreError, match="has version 2, expected 1; use the release"):
        check_backup(path)


def test_file_that_cannot_be_read_any_more_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take the name and refuse the content, wherever."""
    path = tmp_path / "backup"
    make_backup(path)
    sentence = f"cannot read backup {str(path)!r}: Input/output error"

    class File(io.BytesIO):
        left = 0  # reads that succeed

        def _count(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def readline(self, size: int | None = -1) -> bytes:
            self._count()
            return super().readline(size)

        def read(self, size: int | None = -1) -> bytes:
            self._count()
            return super().read(size)

    data = path.read_bytes()
    monkeypatch.setattr(Path, "open", lambda *_: File(data))
    found = []
    for File.left in range(100):
        try:
            problems = check_backup(path).problems
        except StoreError as error:
            problems = [str(error)]
        found.append(problems[0] if problems else "whole")
    first_whole = found.index("whole")
    assert first_whole > 2 * len(TABLES)
    assert found[:first_whole] == [sentence] * first_whole
