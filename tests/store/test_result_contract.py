"""What both twins of the client's store keep, give back, and refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tasksprint.errors import SettingsError, ValueSpoiled
from tasksprint.settings import Settings
from tasksprint.store.result_records import (
    BoundedText,
    LogText,
    Result,
    ResultCommit,
    Value,
    ValueInfo,
)
from tasksprint.store.value_files import ValueFiles
from tests.store.helpers import put_log, put_results, read_value, result, value

MIB = 1024 * 1024


def content(size: int, salt: int = 0) -> bytes:
    """Bytes without a short period that fits a chunk."""
    return (bytes((each * 7 + salt) % 251 for each in range(251)) * (size // 251 + 1))[:size]


def collect_all(store: Any) -> None:
    while store.idle_work_is_due:
        store.do_idle_work()


def test_identity_stays_over_a_crash_and_ends_with_the_disk(place: Any) -> None:
    first = place.open_results().identity
    assert len(first) == 32 and int(first, 16) >= 0
    place.crash()
    assert place.open_results().identity == first
    place.wipe()
    assert place.open_results().identity != first


def test_results_are_there_after_a_crash(place: Any) -> None:
    results = [
        result(1, 0, value("result", b"3.14"), value("سهم", b"\x00\xff", "bytes")),
        result(1, 2),
        result(2, 0, value("result", b"[]")),
    ]
    put_results(place.open_results(), results)
    place.crash()
    store = place.open_results()
    reader = store.reader
    assert reader.held() == [(each.job, each.tid, each.digest) for each in results]
    assert reader.read_manifest(1, 0) == results[0].manifest
    assert reader.read_manifest(1, 2) == b"[]"
    assert reader.read_manifest(1, 1) is None
    assert read_value(store, 1, 0, "result") == b"3.14"
    assert read_value(store, 1, 0, "سهم") == b"\x00\xff"
    assert read_value(store, 1, 0, "other") is None
    assert read_value(store, 1, 2, "result") is None
    digest = results[0].values[1].digest
    found = reader.find_value(1, 0, "سهم")
    assert found == (ValueInfo("bytes", 2, digest), b"\x00\xff")
    assert reader.find_value(1, 1, "سهم") is None
    assert store.total_bytes == reader.total_bytes() == 4 + 2 + 2


@pytest.mark.parametrize("size", [0, 1, 20 * 1024, 65536, 65537, MIB, MIB + 1, 5 * MIB])
def test_value_of_any_size_comes_back_to_the_byte(place: Any, size: int) -> None:
    data = content(size)
    put_results(place.open_results(), [result(1, 0, value("result", data, "bytes"))])
    place.crash()
    store = place.open_results()
    assert read_value(store, 1, 0, "result") == data
    info, kept = store.reader.find_value(1, 0, "result")
    assert (info.kind, info.size) == ("bytes", size)
    assert isinstance(kept, bytes) == (size <= 65536)


@pytest.mark.parametrize("size", [65537, MIB, MIB + 1, 5 * MIB])
def test_large_value_is_read_in_pieces(place: Any, size: int) -> None:
    data = content(size)
    store = place.open_results()
    put_results(store, [result(1, 0, value("result", data, "bytes"))])
    opened = store.files.open(store.reader.find_value(1, 0, "result")[1])
    pieces = list(opened.checked_pieces())
    assert b"".join(pieces) == data
    assert all(len(each) <= MIB for each in pieces)
    for first, end in [(0, 10), (size // 2, size), (MIB - 7, MIB - 1), (size - 5, size), (3, 3)]:
        end = min(end, size)
        assert b"".join(opened.pieces(first, end)) == data[first:end]
    opened.close()


def test_result_that_is_held_already_stays(place: Any) -> None:
    store = place.open_results()
    one = result(1, 0, value("result", b"same"))
    put_results(store, [one, one])
    put_results(store, [one])
    assert store.reader.held() == [(1, 0, one.digest)]
    assert store.total_bytes == 4


def test_result_with_another_digest_replaces_the_one_held(place: Any) -> None:
    store = place.open_results()
    old, new = content(2 * MIB), content(3 * MIB, 1)
    put_results(store, [result(1, 0, value("a", old), value("b", b"gone")), result(1, 1)])
    put_results(store, [result(1, 0, value("a", new))])
    collect_all(store)
    assert read_value(store, 1, 0, "a") == new
    assert read_value(store, 1, 0, "b") is None
    assert store.reader.read_manifest(1, 1) is not None
    assert store.total_bytes == 3 * MIB


def test_of_two_results_of_a_task_in_one_transaction_the_later_holds(place: Any) -> None:
    store = place.open_results()
    first, second = result(1, 0, value("a", b"1")), result(1, 0, value("b", b"22"))
    store.commit_all((ResultCommit(results=(first,)), ResultCommit(results=(second,))))
    assert store.transactions == 1
    assert store.reader.held() == [(1, 0, second.digest)]
    assert read_value(store, 1, 0, "a") is None
    assert store.total_bytes == 2


@pytest.mark.parametrize("count", [99, 101, 300])
def test_many_results_are_put_and_dropped_at_once(place: Any, count: int) -> None:
    store = place.open_results()
    results = [result(1, tid, value("result", b"%d" % tid)) for tid in range(count)]
    put_results(store, results)
    assert store.transactions == 1
    wanted = [(1, tid, "result") for tid in range(count)]
    assert [read_value(store, *name) for name in wanted] == [b"%d" % t for t in range(count)]
    store.drop_tasks(1, [*range(1, count), 10_000])
    assert store.reader.held() == [(1, 0, results[0].digest)]
    assert store.total_bytes == 1


def test_job_is_dropped_but_for_the_results_of_finish(place: Any) -> None:
    store = place.open_results()
    results = [result(1, tid, value("result", content(100 + tid))) for tid in range(10)]
    other = result(2, 3, value("result", b"other"))
    put_results(store, [*results, other])
    put_log(store, 1, 0, 1, b"printed")
    store.drop_job(1, keep=[3, 4, 9, 77], with_logs=False)
    kept = [results[3], results[4], results[9]]
    assert store.reader.held() == [(each.job, each.tid, each.digest) for each in [*kept, other]]
    assert store.total_bytes == 103 + 104 + 109 + 5
    assert read_value(store, 1, 9, "result") == content(109)
    assert len(store.reader.read_logs(1)) == 1
    store.drop_job(1, with_logs=True)
    assert store.reader.held() == [(2, 3, other.digest)]
    assert store.reader.read_logs(1) == []
    place.crash()
    assert place.open_results().total_bytes == 5


def test_value_in_a_file_is_put_with_its_result(place: Any) -> None:
    store = place.open_results()
    data = content(3 * MIB + 5)
    writer = store.files.begin()
    writer.append((data[:100], data[100:MIB]))
    writer.append((memoryview(data)[MIB:],))
    written = writer.finish()
    assert (written.size, written.digest) == (len(data), value("", data).digest)
    put_results(store, [result(1, 0, value("a", written, "bytes"), value("b", b"small"))])
    place.crash()
    store = place.open_results()
    collect_all(store)
    assert read_value(store, 1, 0, "a") == data
    assert store.total_bytes == len(data) + 5


def test_empty_file_is_a_value(place: Any) -> None:
    store = place.open_results()
    put_results(store, [result(1, 0, value("a", store.files.begin().finish()))])
    collect_all(store)
    place.crash()
    assert read_value(place.open_results(), 1, 0, "a") == b""


def test_what_is_being_written_when_the_process_dies_is_collected(place: Any) -> None:
    store = place.open_results()
    kept = content(2 * MIB)
    put_results(store, [result(1, 0, value("a", kept))])
    store.files.begin().append((content(3 * MIB),))
    fetched = store.files.write(content(MIB))
    place.crash()
    store = place.open_results()
    other = content(2 * MIB, 5)
    put_results(store, [result(1, 1, value("a", other))])
    collect_all(store)
    assert read_value(store, 1, 0, "a") == kept
    assert read_value(store, 1, 1, "a") == other
    with pytest.raises(ValueSpoiled, match="can't be read: No such file or directory"):
        store.files.open(fetched)


def test_discarded_and_superfluous_files_leave_nothing(place: Any) -> None:
    store = place.open_results()
    data = content(2 * MIB)
    begun = store.files.begin()
    begun.append((data,))
    begun.abandon()
    begun.append((data,))  # Too late: nothing comes of it.
    store.discard(store.files.write(data))
    put_results(store, [result(1, 0, value("a", store.files.write(data)))])
    put_results(store, [result(1, 0, value("a", store.files.write(data)))])  # held already
    twice = [
        result(1, 1, value("a", store.files.write(data)), value(key, b"")) for key in ("b", "c")
    ]
    put_results(store, twice)  # the first is replaced before it is written
    collect_all(store)
    assert read_value(store, 1, 0, "a") == data
    assert read_value(store, 1, 1, "a") == data
    if isinstance(store.files, ValueFiles):
        assert len(list(store.files.folder.iterdir())) == 2


def test_file_of_another_digest_is_our_bug(place: Any) -> None:
    store = place.open_results()
    lying = Value("a", "json", store.files.begin().finish(), value("a", b"not empty").digest)
    with pytest.raises(AssertionError, match="the file holds this value"):
        put_results(store, [result(1, 1), Result(1, 0, "d", b"[]", (lying,))])
    put_results(store, [result(1, 2)])
    assert [tid for _, tid, _ in store.reader.held()] == [2]


def test_value_that_is_dropped_while_it_is_read_is_read_to_its_end(place: Any) -> None:
    store = place.open_results()
    data = content(3 * MIB)
    put_results(store, [result(1, 0, value("a", data))])
    opened = store.files.open(store.reader.find_value(1, 0, "a")[1])
    pieces = opened.checked_pieces()
    assert next(pieces) == data[:MIB]
    store.drop_tasks(1, [0])
    collect_all(store)
    assert b"".join(pieces) == data[MIB:]
    opened.close()


def test_facts_are_small_texts_under_names(place: Any) -> None:
    store = place.open_results()
    assert store.get_fact("cid") is None
    store.set_fact("cid", "3")
    store.set_fact("cid", "4")
    store.set_fact("cluster", "c9f1")
    place.crash()
    store = place.open_results()
    assert (store.get_fact("cid"), store.get_fact("cluster")) == ("4", "c9f1")


def test_second_owner_of_a_directory_is_refused(place: Any) -> None:
    place.open_results()
    with pytest.raises(
        SettingsError, match=r"is in use by process .*; stop that process, or give"
    ):
        place.open_results()


def test_logs_are_kept_by_attempt_and_read_by_job_or_task(place: Any) -> None:
    store = place.open_results()
    put_log(store, 1, 2, 1, b"first ")
    store.commit_all(
        (
            ResultCommit(logs=(LogText(1, 2, 1, b"second "), LogText(1, 2, 1, b"third"))),
            ResultCommit(logs=(LogText(1, 0, 2, b"other"), LogText(2, 0, 1, b"job 2"))),
        )
    )
    place.crash()
    reader = place.open_results().reader
    whole = LogText(1, 2, 1, b"first second third")
    assert reader.read_logs(1) == [LogText(1, 0, 2, b"other"), whole]
    assert reader.read_logs(1, 2) == [whole]
    assert reader.read_logs(1, 1) == []
    assert reader.read_logs(3) == []


def test_long_log_keeps_its_first_and_last_half_with_a_line_between(place: Any) -> None:
    store = place.open_results(settings=Settings(log_bytes_per_attempt_max=10))
    put_log(store, 1, 0, 1, b"abcdefgh")
    put_log(store, 1, 0, 1, b"ijklmnopqrstuvwxyz")
    put_log(store, 1, 0, 2, b"0123456789")
    assert store.reader.read_logs(1) == [
        LogText(1, 0, 1, b"abcde\n[16 bytes left out]\nvwxyz"),
        LogText(1, 0, 2, b"0123456789"),
    ]


@pytest.mark.parametrize("cut", range(12))
def test_bounded_text_is_the_same_however_it_came(cut: int) -> None:
    text = b"hello, world"
    for bytes_max in range(14):
        whole = BoundedText().add(text, bytes_max)
        assert BoundedText().add(text[:cut], bytes_max).add(text[cut:], bytes_max) == whole
        assert len(whole.head) + whole.left_out + len(whole.tail) == len(text)
        assert len(whole.head) + len(whole.tail) == min(bytes_max, len(text))
        assert text.startswith(whole.head) and text.endswith(whole.tail)


def test_upkeep_changes_nothing_that_is_kept(place: Any) -> None:
    store = place.open_results(settings=Settings(wal_idle_bytes=1))
    put_results(store, [result(1, 0, value("a", content(2 * MIB)))])
    collect_all(store)
    assert not store.checkpoint_if_due()
    place.crash()
    assert read_value(place.open_results(), 1, 0, "a") == content(2 * MIB)
