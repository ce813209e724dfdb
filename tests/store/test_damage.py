"""What a replica does about damage to its file: nothing goes unnoticed, and what is left is right.

The contract tests run on both twins; the others spoil a real file, block by block and bit by
bit, and look at what the next starts make of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tasksprint.consensus import Founding, Member, Persist, decode_founding, encode_founding
from tasksprint.consensus.membership import with_learner
from tasksprint.consensus.voters import Memberships
from tasksprint.coordination.rows import Row
from tasksprint.coordination.state_rows import digest_row
from tasksprint.errors import StoreDamaged, StoreError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tasksprint.store.mirror_snapshot import FIRST_PLACE
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.verify import verify
from tests.store.conftest import FilePlace, MemoryPlace
from tests.store.helpers import accept, blob_name, entry, promise

PAGE = 4096
APPLIED, CHOSEN, END = 20, 24, 28  # slots from 1 on are applied, chosen, open below these
ARCHIVE = bytes(range(256)) * 40

Place = FilePlace | MemoryPlace


def founding(count: int) -> bytes:
    members = tuple(
        Member(ReplicaId(each), Incarnation(f"of {each}"), f"h:{each}")
        for each in range(1, count + 1)
    )
    return encode_founding(Founding("c", members))


def value(slot: int) -> bytes:
    return b"value %d," % slot * (500 if slot % 5 == 0 else 3)


def fill(store: Any, *, members: int = 3, log_start: int = 1) -> None:
    """Write a history: some applied, some chosen, some open."""
    store.commit(Commit((promise(7), Persist(founding=founding(members))), cluster="c"))
    for slot in range(1, END):
        line = f"event {slot}," * (90 if slot % 4 else 1)
        rows = [Row("events", (1, slot), (line,))]
        rows.append(Row("senders", (f"person {slot % 7}",), ("[" + "1," * slot * 9 + "1]",)))
        chosen_end = slot if slot <= CHOSEN else None
        persist = (accept(entry(slot, value(slot)), chosen_end=chosen_end),)
        if slot < APPLIED:
            rows.append(digest_row(Slot(slot), f"digest {slot}"))
            point = AppliedPoint(slot, f"digest {slot}")
            store.commit(Commit(persist, tuple(rows), point))
        else:
            store.commit(Commit(persist))
    if log_start > 1:
        store.commit(Commit(truncate_below=log_start))
    store.put_blob(blob_name(ARCHIVE), ARCHIVE)


def spoil_slot(place: Place, slot: int) -> None:
    if isinstance(place, MemoryPlace):
        place.directory.damaged_slots.add(slot)
    else:
        change(place, f"UPDATE log SET value = x'00' WHERE slot = {slot}")


def spoil_row(place: Place, table: str, key: tuple[Any, ...], where: str) -> None:
    if isinstance(place, MemoryPlace):
        place.directory.damaged_rows.add((table, key))
    else:
        change(place, f"UPDATE {table} SET checksum = checksum + 1 WHERE {where}")


def spoil_progress(place: Place) -> None:
    if isinstance(place, MemoryPlace):
        place.directory.is_progress_damaged = True
    else:
        change(place, "UPDATE progress SET promised_round = 6")


def change(place: FilePlace, statement: str) -> None:
    connection = apsw.Connection(str(place.directory / "replica.db"))
    connection.execute(statement)
    connection.close()


def opened(place: Any, **options: Any) -> Any:
    """Open a store as a coordinator does: once more, if that meets damage."""
    try:
        store = place.open(**options)
        try:
            list(store.recover().rows)
        except StoreDamaged as error:
            store.note_damage(error)
            place.close()
            raise
    except StoreDamaged:
        return place.open(**options)
    return store


def slots(store: Any) -> list[int]:
    return [each.slot for each in store.recover().consensus.accepted]


# --- on both twins ---


def test_chosen_entry_that_is_spoiled_is_left_out_and_remembered_as_chosen(place: Any) -> None:
    fill(place.open())
    place.close()
    spoil_slot(place, 22)
    store = place.open()
    core = store.recover().consensus
    assert (core.applied_end, core.chosen_end, core.known_end) == (APPLIED, 22, CHOSEN)
    assert slots(store) == [slot for slot in range(1, END) if slot != 22]
    # It comes again from another member, and all is as before.
    store.commit(Commit((accept(entry(22, value(22))),)))
    place.close()
    assert place.open().recover().consensus.chosen_end == CHOSEN


def test_only_member_cannot_have_a_chosen_entry_again(place: Any) -> None:
    fill(place.open(), members=1)
    place.close()
    spoil_slot(place, 22)
    with pytest.raises(StoreError) as caught:
        place.open()
    assert not isinstance(caught.value, StoreDamaged)
    assert str(caught.value).endswith(
        " is damaged: slot 22 of table 'log' is gone or fails its checksum, and no other member "
        "has it; bring back a backup: tasksprint restore FILE --data-dir DIR"
    )


@pytest.mark.parametrize("slot", [CHOSEN, END - 1])
def test_open_acceptance_that_is_spoiled_is_a_lost_disk(place: Any, slot: int) -> None:
    fill(place.open())
    place.close()
    spoil_slot(place, slot)
    with pytest.raises(StoreError, match=f"slot {slot} .* counts as lost") as caught:
        place.open()
    assert not isinstance(caught.value, StoreDamaged)


def test_spoiled_promise_is_a_lost_disk(place: Any) -> None:
    fill(place.open())
    place.close()
    spoil_progress(place)
    with pytest.raises(StoreError) as caught:
        place.open()
    assert "the row of table 'progress' fails its checksum; this replica counts as lost" in str(
        caught.value
    )


@pytest.mark.parametrize("members", [1, 3])
def test_spoiled_entry_that_was_applied_shortens_the_log(place: Any, members: int) -> None:
    fill(place.open(), members=members)
    place.close()
    spoil_slot(place, 3)
    spoil_slot(place, 9)
    with pytest.raises(StoreDamaged, match="slot 3 of table 'log' fails its checksum"):
        place.open().recover()
    place.close()
    store = place.open()
    with pytest.raises(StoreDamaged) as caught:
        store.read_log(1, 15, 10**9)
    store.note_damage(caught.value)
    place.close()
    store = place.open()
    assert store.repairs == ("its log begins at slot 10 now: some before is lost",)
    assert store.recover().consensus.log_start == 10
    assert slots(store) == list(range(10, END))
    assert store.applied.slot == APPLIED - 1
    place.close()
    assert place.open().repairs == ()


def test_spoiled_row_of_the_mirror_is_met_by_whoever_reads_it(place: Any) -> None:
    fill(place.open())
    place.close()
    spoil_row(place, "events", (1, 7), "number = 7")
    store = place.open()
    message = r"row \(1, 7\) of table 'events' fails its checksum; start this replica again: it "
    with pytest.raises(StoreDamaged, match=message):
        list(store.read_range("events"))
    with pytest.raises(StoreDamaged, match=message):
        list(store.read_range("events", (1,)))
    with pytest.raises(StoreDamaged, match=message):
        store.read_page("events", (1, 5), (2,), rows_max=100, bytes_max=10**6)
    assert len(store.read_page("events", (1, 8), (2,), rows_max=100, bytes_max=10**6)) == 12
    snapshot = store.open_snapshot()
    place_of = FIRST_PLACE
    with pytest.raises(StoreDamaged, match=message):
        while True:
            piece = snapshot.piece(place_of, rows_max=100, bytes_max=10**6)
            place_of = piece.next_place
    assert place_of[0] == "events"
    snapshot.close()


def test_copy_says_who_votes_as_it_was_written(file_place: FilePlace) -> None:
    """Rotten since, it would decide who votes where the copy goes."""
    store = file_place.open()
    fill(store)
    add_learner(store, 3)
    header, applied = store.recover().consensus, store.applied
    change(file_place, "UPDATE header SET memberships = x'7b7d', cluster = 'd'")
    change(file_place, "UPDATE progress SET applied_slot = 7, digest = 'another'")
    snapshot = store.open_snapshot()
    assert (snapshot.memberships, snapshot.applied) == (header.memberships, applied)
    assert snapshot.cluster == "c"
    snapshot.close()


def test_state_that_is_spoiled_is_dropped_and_the_promise_stays(place: Any) -> None:
    fill(place.open(), log_start=15)
    place.close()
    spoil_row(place, "senders", ("person 3",), "sender = 'person 3'")
    store = opened(place)
    assert store.repairs == (
        "its state is dropped, for a copy of another member's: row ('person 3',) of table "
        "'senders' fails its checksum",
        *store.repairs[1:],
    )
    recovery = store.recover()
    core = recovery.consensus
    assert list(recovery.rows) == [] and recovery.applied == AppliedPoint(0, "")
    assert (core.applied_end, core.chosen_end, core.log_start) == (1, 1, 1)
    assert (core.known_end, core.promised) == (CHOSEN, promise(7).promised)
    assert core.founding == founding(3)
    assert slots(store) == list(range(CHOSEN, END))
    assert store.read_blob(blob_name(ARCHIVE)) == ARCHIVE
    # A copy takes the place of what was dropped.
    store.begin_copy()
    store.install_copy(AppliedPoint(CHOSEN + 1, "d"))
    place.close()
    core = place.open().recover().consensus
    assert (core.applied_end, core.chosen_end, core.known_end) == (CHOSEN + 2,) * 3


@pytest.mark.parametrize("members", [1, 3])
def test_repair_does_not_count_the_slots_that_went_with_a_state(
    tmp_path: Path, members: int
) -> None:
    """After long lives there are more of them than memory has room for."""
    place = FilePlace(tmp_path)
    store = place.open()
    fill(store, members=members)
    far = 10**15
    store.commit(Commit((accept(entry(far, b"open"), chosen_end=far),)))
    store.note_damage(StoreDamaged("somewhere"))
    place.close()
    if members == 1:
        with pytest.raises(StoreError, match=f"slot {far - 1} of table 'log' is gone"):
            place.open()
        return
    store = place.open()
    assert store.repairs == ()
    assert store.recover().consensus.known_end == far


def test_copy_of_less_than_was_known_leaves_the_rest_to_be_fetched(place: Any) -> None:
    fill(place.open(), log_start=15)
    place.close()
    spoil_row(place, "senders", ("person 3",), "sender = 'person 3'")
    store = opened(place)
    store.begin_copy()
    store.install_copy(AppliedPoint(CHOSEN - 3, "d"))
    place.close()
    core = place.open().recover().consensus
    assert (core.applied_end, core.chosen_end) == (CHOSEN - 2, CHOSEN - 2)
    assert core.known_end == CHOSEN


@pytest.mark.parametrize("members", [1, 3])
def test_state_is_made_again_from_a_whole_log(place: Any, members: int) -> None:
    fill(place.open(), members=members)
    place.close()
    spoil_row(place, "senders", ("person 3",), "sender = 'person 3'")
    store = opened(place)
    assert store.repairs[0].startswith("its state is made again from the log: row ('person 3',)")
    core = store.recover().consensus
    assert (core.applied_end, core.chosen_end, core.known_end) == (1, CHOSEN, CHOSEN)
    assert slots(store) == list(range(1, END))


def test_only_member_cannot_have_its_state_again(place: Any) -> None:
    fill(place.open(), members=1, log_start=15)
    place.close()
    spoil_row(place, "senders", ("person 3",), "sender = 'person 3'")
    for _ in range(2):  # Nothing is changed: it stays so.
        with pytest.raises(StoreError) as caught:
            opened(place)
        place.close()
        assert str(caught.value).endswith(
            " is damaged: row ('person 3',) of table 'senders' fails its checksum, and no other "
            "member has it; bring back a backup: tasksprint restore FILE --data-dir DIR"
        )


def add_learner(store: Any, members: int = 1) -> None:
    number = members + 1
    learner = Member(ReplicaId(number), Incarnation(f"of {number}"), f"h:{number}")
    memberships = Memberships()
    memberships.found(decode_founding(founding(members)))
    memberships.note(Slot(5), with_learner(memberships.newest, learner))
    store.commit(Commit((Persist(memberships=memberships.encode()),)))


def test_learner_does_not_have_what_an_only_voter_lost(place: Any) -> None:
    """It is in no quorum: nothing says that it got any of it."""
    store = place.open()
    fill(store, members=1, log_start=15)
    add_learner(store)
    place.close()
    spoil_row(place, "senders", ("person 3",), "sender = 'person 3'")
    for _ in range(2):
        with pytest.raises(StoreError, match="and no other member has it; bring back a backup"):
            opened(place)
        place.close()


def test_learner_does_not_have_what_an_only_voter_chose(place: Any) -> None:
    store = place.open()
    fill(store, members=1)
    add_learner(store)
    store.note_damage(StoreDamaged("somewhere"))
    place.close()
    spoil_slot(place, 22)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"slot 22 .* and no other member has it; bring back"):
            place.open()


def test_note_without_damage_changes_nothing(place: Any) -> None:
    store = place.open()
    fill(store, log_start=15)
    before = store.recover().consensus, list(store.recover().rows)
    store.note_damage(StoreDamaged("nothing"))
    place.close()
    store = place.open()
    assert (store.recover().consensus, list(store.recover().rows)) == before


def test_row_that_is_written_again_is_whole(place: Any) -> None:
    fill(place.open())
    place.close()
    spoil_row(place, "events", (1, 7), "number = 7")
    spoil_slot(place, 21)
    store = place.open()
    store.commit(
        Commit((accept(entry(21, value(21))),), (Row("events", (1, 7), ("{}",)),)),
    )
    assert len(list(store.read_range("events"))) == APPLIED - 1
    assert len(slots(store)) == END - 1


# --- on real files ---


def check_left(directory: Path, before: Any, rows_before: list[Row]) -> str:
    """Open a spoiled file as often as a coordinator would; return what became of it.

    Whatever it says must be true: a promise or an open acceptance that is missing, or a row
    or an entry that is another, is a wrong answer.
    """
    for _ in range(3):
        try:
            store = ReplicaStore.open(directory, 1, now_ms=0)
        except StoreDamaged:
            continue
        except StoreError:
            return "lost"
        try:
            recovery = store.recover()
            core, rows = recovery.consensus, list(recovery.rows)
            store.read_log(1, core.chosen_end, 10**9)
        except StoreDamaged as error:
            store.note_damage(error)
            continue
        finally:
            store.close()
        assert (core.promised, core.founding) == (before.promised, before.founding)
        assert core.known_end == before.known_end
        assert set(core.accepted) <= set(before.accepted)
        open_slots = [each for each in before.accepted if each.slot >= before.known_end]
        assert set(open_slots) <= set(core.accepted)
        if core.applied_end == before.applied_end:
            assert rows == rows_before
            return "whole" if core == before else "mended"
        assert core.applied_end == 1 and rows == []
        return "without its state"
    raise AssertionError(f"{directory} can't be opened, and isn't given up")


def spoil_everywhere(
    tmp_path: Path, log_start: int, spoiled: Callable[[bytes], list[bytes]]
) -> dict[str, int]:
    """Spoil the file in many ways; return how often what became of it."""
    store = ReplicaStore.open(tmp_path / "whole", 1, now_ms=0)
    fill(store, log_start=log_start)
    recovery = store.recover()
    before, rows = recovery.consensus, list(recovery.rows)
    store.close()
    counts: dict[str, int] = {}
    for number, data in enumerate(spoiled((tmp_path / "whole" / "replica.db").read_bytes())):
        directory = tmp_path / f"spoiled {number}"
        directory.mkdir()
        path = directory / "replica.db"
        path.write_bytes(data)
        problems = list(verify(path))
        outcome = check_left(directory, before, rows)
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome != "whole":
            assert problems, f"{outcome}, and verify saw nothing"
        if outcome in ("mended", "without its state"):
            # It is whole but for entries and archives that are still to be fetched.
            left = [each for each in verify(path) if not each.startswith("archive ")]
            assert all("table 'log'" in each for each in left), left
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("log_start", [1, 15])
def test_zeroed_block_gives_no_wrong_answer(tmp_path: Path, log_start: int) -> None:
    def zeroed(data: bytes) -> list[bytes]:
        return [
            data[:start] + bytes(PAGE) + data[start + PAGE :]
            for start in range(0, len(data), PAGE)
        ]

    counts = spoil_everywhere(tmp_path, log_start, zeroed)
    assert counts["lost"] and counts["without its state"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_flipped_bits_give_no_wrong_answer(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    def flipped(data: bytes) -> list[bytes]:
        found = []
        for _ in range(120):
            copy = bytearray(data)
            for _ in range(chance.choice((1, 1, 8))):
                copy[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            found.append(bytes(copy))
        return found

    counts = spoil_everywhere(tmp_path, 15, flipped)
    assert counts["whole"] and counts["without its state"]


def test_page_of_chosen_entries_that_is_spoiled_is_left_out(tmp_path: Path) -> None:
    """As a single one is: the other members have them."""
    path = tmp_path / "replica.db"
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    fill(store)
    entries = [entry(slot, b"value %d," % slot * 150) for slot in range(END, 2 * END)]
    store.commit(Commit((accept(*entries, chosen_end=2 * END - 4),)))
    before = store.recover().consensus
    store.close()
    data = path.read_bytes()
    for start in range(0, len(data), PAGE):
        page = data[start : start + PAGE]
        lost = {int(number) for number in re.findall(rb"value (\d+),", page)}
        if lost and page[0] == 13 and min(lost) >= END and max(lost) < 2 * END - 4:
            break
    path.write_bytes(data[:start] + bytes(PAGE) + data[start + PAGE :])
    with pytest.raises(StoreDamaged):
        ReplicaStore.open(tmp_path, 1, now_ms=0)
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    core = store.recover().consensus
    assert (core.applied_end, core.chosen_end) == (before.applied_end, min(lost))
    assert (core.known_end, core.promised) == (before.known_end, before.promised)
    assert {*slots(store)} == {*range(1, 2 * END)} - lost
    store.close()


def test_interrupted_repair_is_finished_by_the_next_start(tmp_path: Path) -> None:
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    fill(store, log_start=15)
    store.note_damage(StoreDamaged("somewhere"))
    store.close()
    whole = (tmp_path / "replica.db").read_bytes()
    # Killed after the new file was named, and the old one's log was deleted or not.
    (tmp_path / "replica.db.repaired").write_bytes(whole)
    (tmp_path / "replica.db").write_bytes(b"spoiled")
    (tmp_path / "replica.db-wal").write_bytes(b"of the spoiled one")
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    assert slots(store) == list(range(15, END))
    store.close()
    # The damaged one is kept, with its log.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "replica.db",
        "replica.db.damaged",
        "replica.db.damaged-wal",
        "replica.lock",
    ]
    assert (tmp_path / "replica.db.damaged").read_bytes() == b"spoiled"
    # And what was cut off before the old one's log had gone with it.
    (tmp_path / "replica.db").rename(tmp_path / "replica.db.repaired")
    (tmp_path / "replica.db-wal").write_bytes(b"of the spoiled one")
    store = ReplicaStore.open(tmp_path, 1, now_ms=0)
    assert slots(store) == list(range(15, END))
    store.close()


def test_verify_says_what_is_wrong_and_nothing_of_a_whole_file(tmp_path: Path) -> None:
    place = FilePlace(tmp_path)
    store = place.open()
    fill(store)
    assert list(verify(store.path)) == []  # While it is open, too.
    place.close()
    for statement in (
        "UPDATE log SET value = x'00' WHERE slot = 22",
        "DELETE FROM log WHERE slot = 5",
        "DELETE FROM log WHERE slot = 26",
        "UPDATE events SET line = '{}' WHERE number = 7",
        "UPDATE blob_chunks SET data = x'00'",
        "DELETE FROM facts WHERE name = 'digest'",
    ):
        change(place, statement)
    assert list(verify(store.path)) == [
        "table 'log' lacks the chosen slots 5 to 5",
        "slot 22 of table 'log' fails its checksum",
        "table 'log' has 3 whole values accepted from slot 24 on, expected 4 with another sum",
        "the mirror says [] of how far it goes, expected [('[19,\"digest 19\"]',)]",
        "row (1, 7) of table 'events' fails its checksum",
        f"archive {blob_name(ARCHIVE)} isn't what its name says",
    ]
    (tmp_path / "other").write_bytes(b"not a database" * 999)
    assert list(verify(tmp_path / "other")) == [
        f"cannot open replica store {str(tmp_path / 'other')!r}: it is not an SQLite database, or "
        "its beginning is damaged; move it away or give another --data-dir"
    ]


# --- looking before it is needed ---


def test_quiet_moments_find_a_rotten_row_before_anybody_reads_it(tmp_path: Path) -> None:
    place = FilePlace(tmp_path)
    settings = Settings(scrub_step_ms=0, scrub_pause_ms=3_600_000, wal_idle_bytes=10**9)
    store = place.open(settings=settings)
    fill(store)
    steps = 0
    while store.idle_work_is_due:
        store.do_idle_work()
        steps += 1
    assert store._scrub.passes == 1 and steps > 5
    place.close()
    spoil_row(place, "events", (1, 7), "number = 7")
    store = place.open(settings=settings)
    with pytest.raises(StoreDamaged, match=r"row \(1, 7\) of table 'events'"):
        while store.idle_work_is_due:
            store.do_idle_work()
    place.close()
    change(place, "UPDATE events SET checksum = checksum - 1 WHERE number = 7")
    spoil_slot(place, 3)
    store = place.open(settings=settings)
    with pytest.raises(StoreDamaged, match="slot 3 of table 'log'"):
        while store.idle_work_is_due:
            store.do_idle_work()
    place.close()


def test_quiet_moments_pass_over_what_is_left_out_already(tmp_path: Path) -> None:
    """A chosen entry that is to be fetched again must not stop the replica until it comes."""
    place = FilePlace(tmp_path)
    settings = Settings(scrub_step_ms=0, scrub_pause_ms=3_600_000, wal_idle_bytes=10**9)
    fill(place.open())
    place.close()
    spoil_slot(place, 22)
    spoil_slot(place, 23)
    store = place.open(settings=settings)
    while store.idle_work_is_due:
        store.do_idle_work()
    assert store._scrub.passes == 1
    assert store.recover().consensus.chosen_end == 22
    place.close()
