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
from tasksprint.encoding import encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ReplicaId
from tasksprint.protocol.node_lines import NodeReader
from tasksprint.protocol.scheduler_lines import SchedulerReader
from tasksprint.settings import RULES, RULES_BY_VERSION
from tasksprint.store.backup_file import BackupReader, BackupWriter, check_backup
from tests.coordination.mirror_rows import MirrorRows
from tests.coordination.world import MEMBERS, World
from tests.golden import programs
from tests.golden.golden import FOLDER, RELEASED, Record, differences, parse, render, shape_of
from tests.golden.samples import KINDS
from tests.store.test_backup_file import make_backup


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "version", "make"), KINDS)
def test_what_is_written_is_what_was_written_in_this_version(
    kind: str, version: int, make: Callable[[], list[Record]], request: pytest.FixtureRequest
) -> None:
    path = FOLDER / f"{kind}-{version}.txt"
    text = render(kind, version, make())
    is_released = path.stem in RELEASED
    if request.config.getoption("--rewrite") and not is_released:
        path.write_text(text, encoding="utf-8")
    found = differences(path, text, is_released=is_released)
    if found:
        pytest.fail(found, pytrace=False)  # Whole, as pytest would cut it.


def test_of_each_kind_only_the_newest_version_may_be_of_no_release() -> None:
    names = {path.stem for path in FOLDER.glob("*.txt")}
    assert names >= RELEASED
    newest: dict[str, int] = {}
    for kind, version in (name.rsplit("-", 1) for name in names):
        newest[kind] = max(newest.get(kind, 0), int(version))
    assert names - RELEASED <= {f"{kind}-{version}" for kind, version in newest.items()}


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
    assert differences(path, render("kind", 1, [Record(shape_of(_Was))]), is_released=True) == ""
    changed = render("kind", 1, [Record(shape_of(dataclasses.make_dataclass("_Was", fields)))])
    assert "other releases rely on it" in differences(path, changed, is_released=True)
    assert "tests/golden --rewrite" in differences(path, changed, is_released=False)


def test_changed_bytes_are_found_and_so_is_a_version_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kind-1.txt"
    path.write_text(render("kind", 1, [Record("x", (b"[1]\n\xff",))]), encoding="utf-8")
    assert parse(path.read_text(encoding="utf-8")) == [Record("x", (b"[1]\n\xff",))]
    changed = render("kind", 1, [Record("x", (b"[1,null]\n\xff",))])
    assert differences(path, changed, is_released=True) != ""
    assert differences(tmp_path / "kind-2.txt", "", is_released=False) != ""


# --- reading what other releases wrote ---


def samples_of(kind: str, version: int = 2**63) -> Iterator[bytes]:
    """Yield all samples of a kind, of all versions that there were up to this one."""
    paths = sorted(FOLDER.glob(f"{kind}-*.txt"))
    assert paths
    for path in paths:
        if int(path.stem.rpartition("-")[2]) > version:
            continue
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
        schedule = Schedule(
            cluster="c1", members=MEMBERS, rules=RULES, mirror=MirrorRows(rows)
        )
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


# --- what later releases may add ---

MORE = {"later": [1]}


def grown(value: Any, places: Any) -> Any:
    """Return a JSON value with a member more behind those of the arrays at these places.

    Args:
        places: What to do with the members of an array: {index: places}, with "each" for all of
            a list; a place that is named has its own array grown, too.
    """
    if "each" in places:
        return [grown(one, places["each"]) for one in value]
    changed = [
        grown(one, places[index]) if index in places else one for index, one in enumerate(value)
    ]
    return [*changed, MORE]


@pytest.mark.parametrize("version", RULES_BY_VERSION)
def test_a_command_with_more_than_the_rules_know_is_none(version: int) -> None:
    parts = {2: {"each": {4: {"each": {}}}}}
    nested = {"report": {5: {"each": {}}}, "answer": parts, "tick": {3: {"each": {}}}}
    for data in samples_of("commands", version):
        decode_command(data, version)
        value = json.loads(data)
        wrong = [[*value, None]]
        if any(type(each) is list and each for each in value) and value[0] in nested:
            wrong.append(grown(value, nested[value[0]])[:-1])
        for each in wrong:
            with pytest.raises(RemoteProtocolError):
                decode_command(encode_json(each), version)


@pytest.mark.parametrize("version", RULES_BY_VERSION)
def test_what_is_no_command_yet_changes_nothing_and_is_noted(version: int) -> None:
    world = World(rules=RULES_BY_VERSION[version])
    world.tick()
    digest = world.schedule.digest
    applied = world.apply(b'["later",1]', b'["tick",500,1,[],null,[],null]')
    assert world.schedule.digest == digest
    assert [row.key for row in applied.rows] == [("digest",)]
    assert len(applied.notes) == 2


def test_more_in_a_view_is_ignored() -> None:
    each = {"each": {}}
    places = {n: each for n in (2, 4, 5, 6, 7)} | {3: {"each": {5: each}}}
    for data in samples_of("views"):
        assert decode_view(encode_json(grown(json.loads(data), places))) == decode_view(data)


def test_more_in_a_frame_is_ignored() -> None:
    who = {"source": ReplicaId(1), "target": ReplicaId(2)}
    heads = {"promise": 9, "catch-up-reply": 7, "marks": 6}
    for data in samples_of("frames"):
        line, _, parts = data.partition(b"\n")
        header, lengths = json.loads(line)
        if header[5] == "hello" and len(header) == 10:
            header.append(None)  # It is known by now.
        places = {heads[header[5]]: {"each": {}}} if header[5] in heads else {}
        more = encode_json([grown(header, places), lengths]) + b"\n" + parts
        assert frames_codec.decode(more, **who) == frames_codec.decode(data, **who)


def test_more_in_a_backup_is_ignored(tmp_path: Path) -> None:
    make_backup(tmp_path / "backup", later=MORE)
    with BackupReader(tmp_path / "backup") as reader, (tmp_path / "more").open("wb") as file:
        writer = BackupWriter(file)
        writer.add("backup", **{key: reader.head[key] for key in list(reader.head)[4:]})
        while (record := reader.next()).kind != "end":
            fields = {key: record.fields[key] for key in list(record.fields)[4:]}
            writer.add(record.kind, reader.content(record), **fields, later=MORE)
        writer.add("a later kind", b"content")
        writer.end()
    checked = check_backup(tmp_path / "more")
    assert (checked.problems, checked.head["later"], checked.contents.jobs) == ([], MORE, 2)


@pytest.mark.slow
def test_programs_of_the_sdk_ignore_more_in_their_lines() -> None:
    assert programs.node_says(b',"later":[1]}\n') == programs.node_says()
    assert programs.scheduler_says(None, b',"later":[1]}\n') == programs.scheduler_says()
