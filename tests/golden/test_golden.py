"""This release stores and sends what releases before it know, and reads what they wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasksprint.consensus import codec as frames_codec
from tasksprint.consensus import decode_batch, decode_founding
from tasksprint.consensus.membership import decode_membership_value
from tasksprint.consensus.voters import Memberships
from tasksprint.coordination.commands import Lost, decode_command, encode_command
from tasksprint.coordination.rows import Row
from tasksprint.coordination.schedule import Schedule
from tasksprint.coordination.view import decode_view, encode_view
from tasksprint.ids import ReplicaId
from tasksprint.protocol.node_lines import NodeReader
from tasksprint.protocol.scheduler_lines import SchedulerReader
from tasksprint.settings import RULES, RULES_BY_VERSION
from tasksprint.store.backup_file import check_backup
from tests.coordination.world import MEMBERS
from tests.golden.golden import FOLDER, Record, differences, parse, render, shape_of
from tests.golden.samples import KINDS


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "version", "make"), KINDS)
def test_what_is_written_is_what_was_written_in_this_version(
    kind: str, version: int, make: Callable[[], list[Record]], request: pytest.FixtureRequest
) -> None:
    path = FOLDER / f"{kind}-{version}.txt"
    text = render(kind, version, make())
    if request.config.getoption("--rewrite") and not path.exists():
        path.write_text(text, encoding="utf-8")
    assert differences(path, text) == ""


# --- the checker ---


@dataclasses.dataclass(frozen=True)
class _Was:
    job: int
    lost: tuple[Lost, ...] = ()


_LONGER = dataclasses.make_dataclass("Lost", [("job", int), ("tid", int), ("why", str, "")])


@pytest.mark.parametrize(
    "fields",
    [
        [("job", int), ("lost", tuple[Lost, ...], ()), ("more", "int | None", None)],
        [("job", int)],
        [("number", int), ("lost", tuple[Lost, ...], ())],
        [("job", str), ("lost", tuple[Lost, ...], ())],
        [("job", int, 1), ("lost", tuple[Lost, ...], ())],
        [("lost", tuple[Lost, ...]), ("job", int)],
        [("job", int), ("lost", tuple[_LONGER, ...], ())],
    ],
)
def test_a_changed_shape_is_found(tmp_path: Path, fields: list[Any]) -> None:
    """A field more, less, renamed, of another type, default or place, or deep inside."""
    path = tmp_path / "kind-1.txt"
    path.write_text(render("kind", 1, [Record(shape_of(_Was))]), encoding="utf-8")
    assert differences(path, render("kind", 1, [Record(shape_of(_Was))])) == ""
    changed = dataclasses.make_dataclass("_Was", fields)
    assert "other releases rely on it" in differences(
        path, render("kind", 1, [Record(shape_of(changed))])
    )


def test_changed_bytes_are_found_and_so_is_a_version_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kind-1.txt"
    path.write_text(render("kind", 1, [Record("x", (b"[1]\n\xff",))]), encoding="utf-8")
    assert parse(path.read_text(encoding="utf-8")) == [Record("x", (b"[1]\n\xff",))]
    assert differences(path, render("kind", 1, [Record("x", (b"[1,null]\n\xff",))])) != ""
    assert differences(tmp_path / "kind-2.txt", "") != ""


# --- reading what other releases wrote ---


def samples_of(kind: str) -> Iterator[bytes]:
    """Yield all samples of a kind, of all versions that there were."""
    paths = sorted(FOLDER.glob(f"{kind}-*.txt"))
    assert paths
    for path in paths:
        for record in parse(path.read_text(encoding="utf-8")):
            yield from record.samples


def test_commands_of_all_versions_are_read() -> None:
    for data in samples_of("commands"):
        assert encode_command(decode_command(data)) == data


def test_views_of_all_versions_are_read() -> None:
    for data in samples_of("views"):
        assert encode_view(decode_view(data)) == data


def test_frames_of_all_versions_are_read() -> None:
    for data in samples_of("frames"):
        envelope = frames_codec.decode(data, source=ReplicaId(1), target=ReplicaId(2))
        assert frames_codec.encode(envelope) == data


def test_what_replicas_stored_in_all_versions_is_read() -> None:
    founding, membership, memberships, *_, with_rules, alone = samples_of("stored")
    found = Memberships.remembered(founding, memberships)
    assert found.newest == decode_membership_value(membership)
    assert decode_founding(founding).origins == ("c0",)
    assert (decode_founding(founding).rules, decode_founding(with_rules).rules) == (1, 2)
    assert decode_batch(alone) == (b'["rules",2]',)


@pytest.mark.parametrize("version", RULES_BY_VERSION)
def test_rows_of_all_versions_are_read_and_the_log_goes_on_behind_them(version: int) -> None:
    """From any slot on, the rest of the golden log leads to the digest of its last slot."""
    path = FOLDER / f"rows-{version}.txt"
    slots = [r for r in parse(path.read_text(encoding="utf-8")) if r.shape.startswith("slot ")]
    log = parse((FOLDER / f"log-{version}.txt").read_text(encoding="utf-8"))
    mirror: dict[Any, Row] = {}
    digests = []
    for slot, record in enumerate(slots, start=1):
        for table, key, columns in map(json.loads, record.samples):
            mirror[table, tuple(key)] = Row(table, tuple(key), columns and tuple(columns))
        rows = [row for row in mirror.values() if row.columns is not None]
        schedule = Schedule(cluster="c1", members=MEMBERS, rules=RULES, rows=rows)
        schedule.check()
        assert schedule.applied_slot == slot
        for later, entry in enumerate(log[slot:], start=slot + 1):
            schedule.apply(later, entry.samples)  # type: ignore[arg-type]
        digests.append(schedule.digest)
    assert len(set(digests)) == 1


def test_backups_of_all_versions_are_read(tmp_path: Path) -> None:
    for source in FOLDER.glob("backup-*.txt"):
        (record,) = parse(source.read_text(encoding="utf-8"))
        path = tmp_path / source.name
        path.write_bytes(b"".join(record.samples))
        checked = check_backup(path)
        assert (checked.problems, checked.contents.jobs) == ([], 2)


def test_what_the_sdk_said_in_all_versions_is_read() -> None:
    for path in FOLDER.glob("*_lines-*.txt"):
        said = parse(path.read_text(encoding="utf-8"))[-1]
        reader: NodeReader | SchedulerReader
        if path.name.startswith("node"):
            reader = NodeReader(who="node", line_bytes_max=1 << 20, value_bytes_max=1 << 20)
        else:
            reader = SchedulerReader(who="scheduler", line_bytes_max=1 << 20)
        messages = reader.feed(b"".join(said.samples).replace(b'<998 times {"kill":1}>,', b""))
        assert len(messages) == len(said.samples) - said.samples.count(b"\x00\xff\n")
        assert not reader.is_inside_message
