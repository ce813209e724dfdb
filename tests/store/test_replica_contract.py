"""What both twins of the replica's store keep, give back, and refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tasksprint.consensus.effects import Persist
from tasksprint.coordination.rows import TABLES, Row
from tasksprint.errors import LocalProtocolError, SettingsError
from tasksprint.store.mirror_snapshot import FIRST_PLACE
from tasksprint.store.records import AppliedPoint, Commit
from tests.coordination.mirror_rows import MirrorRows
from tests.store.helpers import accept, ballot, blob_name, entry, promise


def sample_rows(number: int) -> list[Row]:
    """One row for each table, with every kind of cell."""
    rows = []
    for table in TABLES.values():
        words = {"INTEGER": number, "TEXT": f"слово {number} \x00 «🙂»", "BLOB": b"\x00\xff"}
        key = tuple(words[column.type] for column in table.key_columns)
        cells = tuple(words[column.type] for column in table.value_columns)
        rows.append(Row(table.name, key, cells))
    return rows


def test_new_store_remembers_only_its_incarnation(place: Any) -> None:
    recovery = place.open().recover()
    core = recovery.consensus
    assert len(core.incarnation) == 16 and int(core.incarnation, 16) >= 0
    assert (core.promised, core.accepted, core.founding) == (None, (), None)
    assert (core.chosen_end, core.applied_end, core.log_start) == (1, 1, 1)
    assert recovery.applied == AppliedPoint(0, "")
    assert recovery.cluster is None
    assert list(recovery.rows) == []


def test_incarnation_stays_over_a_crash_and_ends_with_the_disk(place: Any) -> None:
    first = place.open().recover().consensus.incarnation
    place.crash()
    assert place.open().recover().consensus.incarnation == first
    place.wipe()
    assert place.open().recover().consensus.incarnation != first


def test_marks_of_what_isnt_applied_are_there_after_a_crash(place: Any) -> None:
    store = place.open()
    assert store.recover().consensus.skips is None
    store.write_skips(b"not this")
    place.crash()
    assert place.open().recover().consensus.skips == b"not this"


def test_everything_of_a_commit_is_there_after_a_crash(place: Any) -> None:
    rows = sample_rows(7)
    archive = b"archive" * 400_000
    place.open().commit(
        Commit(
            persists=(
                promise(3, 2),
                accept(entry(2, b"two", ballot(3, 2)), entry(1, b""), chosen_end=3),
                Persist(founding=b"founding", memberships=b"before"),
                Persist(memberships=b"who votes", skips=b"what isn't applied"),
            ),
            rows=tuple(rows),
            applied=AppliedPoint(2, "d2"),
            cluster="c9f1",
            blobs=((blob_name(archive), archive),),
        )
    )
    place.crash()
    store = place.open()
    recovery = store.recover()
    core = recovery.consensus
    assert core.promised == ballot(3, 2)
    assert core.accepted == (entry(1, b""), entry(2, b"two", ballot(3, 2)))
    assert (core.chosen_end, core.applied_end) == (3, 3)
    assert core.founding == b"founding"
    assert core.memberships == b"who votes"
    assert core.skips == b"what isn't applied"
    assert recovery.cluster == "c9f1"
    assert recovery.applied == AppliedPoint(2, "d2")
    assert list(recovery.rows) == rows
    assert store.read_blob(blob_name(archive)) == archive


def test_later_value_of_a_slot_replaces_the_earlier_one(place: Any) -> None:
    store = place.open()
    store.commit(Commit((accept(entry(1, b"old", ballot(1))),)))
    store.commit(Commit((accept(entry(1, b"new", ballot(2))),)))
    assert store.recover().consensus.accepted == (entry(1, b"new", ballot(2)),)


def test_commits_in_one_transaction_act_as_one_after_the_other(place: Any) -> None:
    store = place.open()
    row = Row("facts", ("a",), ("1",))
    gone = Row("facts", ("b",), ("1",))
    store.commit_all(
        (
            Commit((promise(1), accept(entry(1, b"old"))), (row, gone), AppliedPoint(0, "x")),
            Commit(
                (promise(2), accept(entry(1, b"new", ballot(2)), chosen_end=2)),
                (Row("facts", ("a",), ("2",)), Row("facts", ("b",), None)),
                AppliedPoint(1, "y"),
            ),
            Commit(rows=(Row("facts", ("c",), None), Row("facts", ("c",), ("3",)))),
        )
    )
    assert store.transactions == 1
    recovery = store.recover()
    assert recovery.consensus.promised == ballot(2)
    assert recovery.consensus.accepted == (entry(1, b"new", ballot(2)),)
    assert recovery.applied == AppliedPoint(1, "y")
    assert list(recovery.rows) == [Row("facts", ("a",), ("2",)), Row("facts", ("c",), ("3",))]


def test_unchanged_parts_of_a_commit_stay(place: Any) -> None:
    store = place.open()
    store.commit(
        Commit(
            (promise(4), accept(entry(1, b"v"), chosen_end=2), Persist(founding=b"f")),
            applied=AppliedPoint(1, "d"),
            cluster="c",
        )
    )
    store.commit(Commit((Persist(),)))
    recovery = store.recover()
    core = recovery.consensus
    assert (core.promised, core.chosen_end, core.founding) == (ballot(4), 2, b"f")
    assert (recovery.applied, recovery.cluster) == (AppliedPoint(1, "d"), "c")


@pytest.mark.parametrize("count", [1, 2, 3, 127, 128, 129, 300])
def test_any_number_of_rows_is_written_and_deleted(place: Any, count: int) -> None:
    store = place.open()
    rows = [Row("tasks", (1, tid), ("n", "done", None, tid, "{}")) for tid in range(count)]
    store.commit(Commit((accept(*(entry(i + 1, b"%d" % i) for i in range(count))),), tuple(rows)))
    assert list(store.read_range("tasks")) == rows
    assert [int(each.value) for each in store.recover().consensus.accepted] == list(range(count))
    store.commit(Commit(rows=tuple(Row("tasks", row.key, None) for row in rows[1:])))
    assert list(store.read_range("tasks")) == rows[:1]


def test_what_was_applied_counts_as_chosen(place: Any) -> None:
    store = place.open()
    store.commit(Commit((accept(entry(1, b"v")),), applied=AppliedPoint(1, "d")))
    assert store.applied == AppliedPoint(1, "d")
    assert store.recover().consensus.chosen_end == 2


def test_recovery_may_leave_out_old_entries(place: Any) -> None:
    store = place.open()
    store.commit(Commit((accept(*(entry(slot, b"v") for slot in range(1, 6))),)))
    assert [each.slot for each in store.recover(after_slot=3).consensus.accepted] == [4, 5]


def test_log_is_read_in_ranges_bounded_by_bytes(place: Any) -> None:
    store = place.open()
    entries = [entry(slot, bytes(100)) for slot in range(1, 11)]
    store.commit(Commit((accept(*entries),)))
    assert store.read_log(3, 6, 10_000) == tuple(entries[2:5])
    assert store.read_log(3, 9, 250) == tuple(entries[2:4])
    assert store.read_log(3, 9, 1) == (entries[2],)
    assert store.read_log(8, 99, 10_000) == tuple(entries[7:])
    assert store.read_log(11, 99, 10_000) == ()


def test_truncated_entries_are_gone_and_the_start_is_remembered(place: Any) -> None:
    store = place.open()
    entries = [entry(slot, b"v") for slot in range(1, 6)]
    store.commit(Commit((accept(*entries, chosen_end=6),), applied=AppliedPoint(4, "d")))
    store.commit(Commit(truncate_below=3))
    store.commit(Commit(truncate_below=2))  # Later and lower: changes nothing.
    place.crash()
    store = place.open()
    core = store.recover().consensus
    assert (core.log_start, core.accepted) == (3, tuple(entries[2:]))
    assert store.read_log(1, 9, 10_000) == tuple(entries[2:])


def test_truncation_stands_in_the_transaction_of_what_was_applied(place: Any) -> None:
    store = place.open()
    store.commit(
        Commit(
            (accept(entry(1, b"v"), entry(2, b"v")),),
            applied=AppliedPoint(1, "d"),
            truncate_below=2,
        )
    )
    assert store.transactions == 1
    assert store.recover().consensus.accepted == (entry(2, b"v"),)


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 1024 * 1024 + 1, 5 * 1024 * 1024])
def test_archive_of_any_size_comes_back_to_the_byte(place: Any, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    store = place.open()
    assert not store.has_blob(blob_name(data))
    assert store.read_blob(blob_name(data)) is None
    store.put_blob(blob_name(data), data)
    store.put_blob(blob_name(data), data)  # Once more: stays.
    place.crash()
    store = place.open()
    assert store.has_blob(blob_name(data))
    assert store.read_blob(blob_name(data)) == data
    store.drop_blob(blob_name(data))
    store.drop_blob(blob_name(data))
    assert not store.has_blob(blob_name(data))
    assert store.read_blob(blob_name(data)) is None


@pytest.mark.parametrize(
    "commit",
    [
        Commit((promise(4),)),
        Commit((accept(chosen_end=2),)),
        Commit(applied=AppliedPoint(1, "d")),
        Commit(truncate_below=9),
        Commit(blobs=(("00", b"data"),)),
    ],
    ids=["promise", "chosen", "applied", "truncate", "blob"],
)
def test_what_goes_back_or_lies_is_our_bug_and_changes_nothing(place: Any, commit: Commit) -> None:
    store = place.open()
    store.commit(Commit((promise(5), accept(chosen_end=3)), applied=AppliedPoint(2, "d")))
    with pytest.raises(AssertionError):
        store.commit_all((Commit((promise(6),)), commit))
    place.crash()
    core = place.open().recover().consensus
    assert (core.promised, core.chosen_end, core.applied_end) == (ballot(5), 3, 3)


@pytest.mark.parametrize(
    "row",
    [
        Row("jobs", (1,), (b"bytes", "running", "{}")),
        Row("jobs", (1,), (None, "running", "{}")),
        Row("jobs", ("one",), ("name", "running", "{}")),
    ],
    ids=["bytes in text", "null", "text as a number"],
)
def test_cell_of_a_wrong_type_is_refused_with_all_of_its_commit(place: Any, row: Row) -> None:
    store = place.open()
    with pytest.raises(LocalProtocolError, match="refused what it was given"):
        store.commit(Commit((promise(1),), (Row("facts", ("a",), ("b",)), row)))
    with pytest.raises(LocalProtocolError, match="refused what it was given"):
        store.commit(Commit())
    place.crash()
    recovery = place.open().recover()
    assert recovery.consensus.promised is None
    assert list(recovery.rows) == []


def test_directory_of_another_replica_is_refused(place: Any) -> None:
    place.open(1).commit(Commit(cluster="c9f1"))
    place.crash()
    with pytest.raises(SettingsError) as caught:
        place.open(2)
    assert "it belongs to replica 1 of cluster 'c9f1', this is replica 2" in str(caught.value)
    assert str(caught.value).endswith("; give this replica its own --data-dir")
    place.open(1)


def test_second_owner_of_a_directory_is_refused(place: Any) -> None:
    store = place.open()
    with pytest.raises(
        SettingsError, match=r"is in use by process .*; stop that process, or give"
    ):
        place.open()
    store.close()
    if hasattr(place, "open_stores"):
        place.open_stores.clear()
    place.open()


def test_upkeep_changes_nothing_that_is_kept(place: Any) -> None:
    store = place.open()
    store.commit(Commit((accept(entry(1, bytes(100))),), tuple(sample_rows(1))))
    assert not store.checkpoint_if_due()
    store.do_idle_work()
    assert not store.idle_work_is_due
    place.crash()
    recovery = place.open().recover()
    assert len(recovery.consensus.accepted) == 1
    assert list(recovery.rows) == sample_rows(1)


# --- ranges ---


def test_rows_are_found_between_two_beginnings_of_keys(place: Any) -> None:
    store = place.open()
    rows = [
        Row("tasks", (job, tid), ("n", "done", None, 0, "{}"))
        for job in (1, 2)
        for tid in range(3)
    ]
    facts = [Row("facts", (name,), ("1",)) for name in ("a 1", "b 1 x", "b 1 y", "b 10 z", "c")]
    store.commit(Commit(rows=(*rows, *facts)))
    for mirror in (store, store.open_snapshot(), MirrorRows(store.recover().rows)):
        assert list(mirror.read_range("tasks")) == rows
        assert list(mirror.read_range("tasks", (2,))) == rows[3:]
        assert list(mirror.read_range("tasks", (1,), (2,))) == rows[:3]
        assert list(mirror.read_range("tasks", (1, 2), (2, 1))) == rows[2:4]
        assert list(mirror.read_range("facts", ("b 1 ",), ("b 1!",))) == facts[1:3]
        assert list(mirror.read_range("facts", ("d",))) == []
        if mirror is not store and hasattr(mirror, "close"):
            mirror.close()


@pytest.mark.parametrize(
    ("rows_max", "bytes_max"), [(3, 10_000), (100, 130), (100, 1), (4, 10_000)]
)
def test_pages_are_bounded_by_rows_and_bytes(place: Any, rows_max: int, bytes_max: int) -> None:
    store = place.open()
    rows = [Row("events", (1, number), ("x" * 40,)) for number in range(5)]
    store.commit(Commit(rows=(*rows, Row("events", (2, 0), ("other",)))))
    page = store.read_page("events", (1, 1), (2,), rows_max=rows_max, bytes_max=bytes_max)
    count = {(3, 10_000): 3, (100, 130): 3, (100, 1): 1, (4, 10_000): 4}[rows_max, bytes_max]
    assert page == [[1, number, "x" * 40] for number in range(1, 1 + count)]
    assert store.read_page("events", (3,), (4,), rows_max=9, bytes_max=9) == []


# --- garbage ---


def rows_of_job(job: int, count: int) -> list[Row]:
    """Rows of every sort that a job has, `count` of each."""
    rows: list[Row] = []
    for number in range(count):
        rows += [
            Row("tasks", (job, number), ("n", "done", None, 0, "{}")),
            Row("events", (job, number), ("{}",)),
            Row("answers", (job, number, 0), ("d", "{}")),
            Row("job_log", (job, number), ("said",)),
            Row("failures", (job, number), (0, "{}")),
            Row("facts", (f"base {job} {number}",), ("[]",)),
            Row("facts", (f"estimate {job} {number}",), ("1",)),
        ]
    return rows


def left_of(store: Any, job: int) -> dict[str, int]:
    counts = {
        name: len(list(store.read_range(name, (job,), (job + 1,))))
        for name in ("tasks", "events", "answers", "job_log", "failures")
    }
    counts["facts"] = len(
        [row for row in store.read_range("facts") if row.key[0].split(" ")[1] == str(job)]
    )
    return {name: count for name, count in counts.items() if count}


def test_history_of_an_ended_job_is_deleted_and_its_tasks_stay(place: Any) -> None:
    store = place.open()
    store.commit(Commit(rows=(*rows_of_job(1, 3), *rows_of_job(11, 3))))
    store.commit(Commit(rows=(Row("garbage", (1,), ("history",)),)))
    assert left_of(store, 1) == {"tasks": 3, "job_log": 3, "failures": 3, "facts": 3}
    assert left_of(store, 11) == {
        "tasks": 3,
        "events": 3,
        "answers": 3,
        "job_log": 3,
        "failures": 3,
        "facts": 6,
    }
    assert list(store.read_range("garbage")) == []
    assert not store.idle_work_is_due


def test_forgotten_job_is_deleted_piece_by_piece_over_crashes(place: Any) -> None:
    store = place.open()
    store.commit(Commit(rows=(*rows_of_job(1, 700), *rows_of_job(2, 1))))
    store.commit(Commit(rows=(Row("garbage", (1,), ("all",)),)))
    assert store.idle_work_is_due
    left = [sum(left_of(store, 1).values())]
    place.crash()
    store = place.open()
    while store.idle_work_is_due and left_of(store, 1):
        store.do_idle_work()
        left.append(sum(left_of(store, 1).values()))
    assert left == [4_800, 2_800, 800, 0]
    assert list(store.read_range("garbage")) == []
    assert sum(left_of(store, 2).values()) == 7


def test_garbage_of_a_word_that_is_not_known_is_left_alone(place: Any) -> None:
    store = place.open()
    store.commit(Commit(rows=(*rows_of_job(1, 1), Row("garbage", (1,), ("something",)))))
    assert not store.idle_work_is_due
    assert sum(left_of(store, 1).values()) == 7
    assert len(list(store.read_range("garbage"))) == 1


# --- copies ---


def copy_over(source: Any, target: Any, *, rows_max: int = 100, bytes_max: int = 10_000) -> Any:
    """Copy a mirror from store to store and return what the snapshot was of."""
    snapshot = source.open_snapshot()
    target.begin_copy()
    following = FIRST_PLACE
    while following is not None:
        piece = snapshot.piece(following, rows_max=rows_max, bytes_max=bytes_max)
        assert piece.rows <= rows_max
        target.add_copied(piece.table, piece.text)
        target.add_copied(piece.table, piece.text)  # Once more: changes nothing.
        following = piece.next_place
    snapshot.close()
    return snapshot.applied


@pytest.mark.parametrize(("rows_max", "bytes_max"), [(1, 10), (7, 10_000), (1_000, 300)])
def test_copy_has_every_cell_whatever_the_pieces(
    place: Any, other_place: Any, rows_max: int, bytes_max: int
) -> None:
    source, target = place.open(), other_place.open(2)
    rows = [row for number in (1, 2, 2**62) for row in sample_rows(number)]
    rows += [Row("tasks", (1, tid), ("n", "done", None, tid, "x" * tid)) for tid in range(50)]
    source.commit(Commit(rows=tuple(rows), applied=AppliedPoint(9, "d9"), cluster="c"))
    applied = copy_over(source, target, rows_max=rows_max, bytes_max=bytes_max)
    assert target.read_copied("facts", sample_rows(1)[-2].key) == sample_rows(1)[-2]
    assert target.read_copied("facts", ("none",)) is None
    assert list(target.recover().rows) == []
    target.install_copy(applied)
    assert target.applied == AppliedPoint(9, "d9")
    assert list(target.recover().rows) == list(source.recover().rows)
    other_place.crash()
    assert list(other_place.open(2).recover().rows) == list(source.recover().rows)


def test_snapshot_stays_as_it_was_while_commits_go_on(place: Any) -> None:
    store = place.open()
    row = Row("facts", ("a",), ("1",))
    store.commit(Commit(rows=(row,), applied=AppliedPoint(1, "d1"), cluster="c"))
    snapshot = store.open_snapshot()
    store.commit(Commit(rows=(Row("facts", ("a",), ("2",)),), applied=AppliedPoint(2, "d2")))
    assert (snapshot.applied, snapshot.cluster) == (AppliedPoint(1, "d1"), "c")
    assert list(snapshot.read_range("facts")) == [row]
    snapshot.close()


def test_installing_a_copy_keeps_promise_and_later_entries(place: Any, other_place: Any) -> None:
    source, target = place.open(), other_place.open(2)
    source.commit(Commit(rows=(Row("facts", ("a",), ("1",)),), applied=AppliedPoint(5, "d5")))
    entries = [entry(slot, b"v", ballot(7)) for slot in range(1, 9)]
    target.commit(
        Commit(
            (promise(7), accept(*entries, chosen_end=3)),
            rows=(Row("facts", ("b",), ("old",)),),
            applied=AppliedPoint(2, "d2"),
            cluster="c",
        )
    )
    target.install_copy(copy_over(source, target))
    target.commit(Commit((accept(entry(9, b"v", ballot(7)), chosen_end=4),)))
    other_place.crash()
    recovery = other_place.open(2).recover()
    core = recovery.consensus
    assert core.promised == ballot(7)
    assert core.accepted == (*entries[5:], entry(9, b"v", ballot(7)))
    assert (core.chosen_end, core.applied_end, core.log_start) == (6, 6, 6)
    assert list(recovery.rows) == [Row("facts", ("a",), ("1",))]
    assert (recovery.applied, recovery.cluster) == (AppliedPoint(5, "d5"), "c")


def test_copy_that_leads_back_is_our_bug(place: Any, other_place: Any) -> None:
    source, target = place.open(), other_place.open(2)
    source.commit(Commit(applied=AppliedPoint(5, "d5")))
    target.commit(Commit(applied=AppliedPoint(5, "d5")))
    with pytest.raises(AssertionError, match="a copy leads on, never back"):
        target.install_copy(copy_over(source, target))


def test_copy_that_a_crash_cut_off_leaves_nothing(place: Any, other_place: Any) -> None:
    source, target = place.open(), other_place.open(2)
    source.commit(Commit(rows=tuple(rows_of_job(1, 5)), applied=AppliedPoint(5, "d5")))
    copy_over(source, target)
    other_place.crash()
    target = other_place.open(2)
    assert list(target.recover().rows) == []
    target.install_copy(copy_over(source, target))
    assert target.applied == AppliedPoint(5, "d5")


def test_copy_that_was_given_up_leaves_nothing(place: Any, other_place: Any) -> None:
    source, target = place.open(), other_place.open(2)
    source.commit(Commit(rows=tuple(rows_of_job(1, 5)), applied=AppliedPoint(5, "d5")))
    copy_over(source, target)
    target.drop_copy()
    assert list(target.recover().rows) == []
    assert target.applied == AppliedPoint(0, "")


def test_archives_are_listed(place: Any) -> None:
    store = place.open()
    assert store.blobs() == []
    names = sorted(blob_name(data) for data in (b"one", b"two"))
    store.commit(Commit(blobs=tuple((blob_name(data), data) for data in (b"one", b"two"))))
    assert store.blobs() == names
