"""What only the real file of a client can show: damage, space, large files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tasksprint.errors import NodeFailed, StoreError
from tasksprint.store.memory_result_store import MemoryResults, MemoryResultStore
from tasksprint.store.result_records import ResultCommit
from tasksprint.store.result_store import ResultReader, ResultStore
from tasksprint.store.staging import stage_file
from tasksprint.store.writer import WriterThread
from tests.store.conftest import FilePlace
from tests.store.helpers import result, value
from tests.store.test_replica_file import flip_byte

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_flipped_byte_in_a_value_is_reported(file_place: FilePlace, size: int) -> None:
    data = b"unmistakable" + bytes(size - 12)
    store = file_place.open_results()
    store.put_results([result(1, 7, value("a", data))])
    file_place.close()
    flip_byte(store.path, b"unmistakable")
    reader = file_place.open_results().reader
    with pytest.raises(StoreError) as caught:
        reader.read_value(1, 7, "a")
    assert str(caught.value).startswith(
        f"result store {str(store.path)!r} is damaged: value 'a' of task 7 of job 1 has SHA-256 "
    )
    expected = hashlib.sha256(data).hexdigest()
    assert str(caught.value).endswith(
        f", expected {expected}; check the disk; move this data directory away and start anew"
    )
    if size == 100:
        with pytest.raises(StoreError, match="value 'a' of task 7 of job 1 has SHA-256"):
            reader.read_small_values([(1, 7, "a")])


def test_twin_reports_a_spoiled_value_and_a_full_disk_with_the_same_words() -> None:
    directory = MemoryResults("imagined")
    store = MemoryResultStore.open(directory, now_ms=0)
    store.put_results([result(1, 7, value("a", b"good"))])
    directory.contents[1, 7, "a"] = b"evil"
    with pytest.raises(
        StoreError, match="result store 'imagined' is damaged: value 'a' of task 7"
    ):
        store.reader.read_value(1, 7, "a")
    directory.is_full = True
    with pytest.raises(StoreError, match="cannot write result store 'imagined': the disk is full"):
        store.put_results([result(1, 8)])
    assert store.reader.read_manifest(1, 8) is None


def test_full_disk_leaves_the_store_usable(file_place: FilePlace) -> None:
    """A client may drop something and go on: nothing was promised to anybody."""
    store = file_place.open_results()
    store.put_results([result(1, 0, value("a", bytes(100)))])
    connection = store._database.connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    with pytest.raises(StoreError) as caught:
        store.put_results([result(1, 1, value("a", bytes(2 * MIB)), value("b", b"1"))])
    assert str(caught.value) == (
        f"cannot write result store {str(store.path)!r}: the disk is full; "
        "free some space and start again; nothing that was acknowledged is lost"
    )
    assert (store.total_bytes, store.reader.total_bytes()) == (100, 100)
    connection.pragma("max_page_count", 1_000_000)
    store.put_results([result(1, 1, value("a", bytes(2 * MIB)))])
    assert store.reader.read_value(1, 1, "a") == bytes(2 * MIB)
    assert store.total_bytes == 100 + 2 * MIB


def test_space_of_dropped_values_is_used_again(file_place: FilePlace) -> None:
    store = file_place.open_results()
    for tid in range(4):
        store.put_results([result(1, tid, value("a", os.urandom(3 * MIB)))])
        store.drop_tasks(1, [tid])
        while store.idle_work_is_due:
            store.do_idle_work()
    assert store.path.stat().st_size < 4 * MIB
    assert store.reader.reusable_bytes() > 2.9 * MIB


def test_busy_client_collects_garbage_too(file_place: FilePlace) -> None:
    """Without a quiet moment: a piece after each commit."""
    store = file_place.open_results()
    store.put_results([result(1, 0, value("a", bytes(20 * MIB)))])
    store.drop_tasks(1, [0])
    pieces = 0
    while store._garbage:
        store.checkpoint_if_due()
        pieces += 1
    assert pieces == 3
    assert store._database.query("SELECT count(*) FROM chunks") == [(0,)]


def test_reader_without_a_store_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        ResultReader.open(tmp_path)
    assert str(caught.value).startswith(
        f"cannot write result store {str(tmp_path / 'results.db')!r}"
    )


def run(
    directory: Path,
    test: Callable[[WriterThread[ResultStore, ResultCommit]], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        writer: WriterThread[ResultStore, ResultCommit] = WriterThread(
            ResultStore.open(directory, now_ms=0), on_failure=lambda error: None
        )
        await test(writer)
        await writer.close()

    asyncio.run(main())


@pytest.mark.slow
def test_large_file_is_taken_in_pieces_while_others_commit(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with open(file, "wb") as made:
        made.truncate(80 * MIB)
        made.seek(70 * MIB)
        made.write(b"something")
    committed_before_end = []

    async def test(writer: WriterThread[ResultStore, ResultCommit]) -> None:
        taking = asyncio.ensure_future(stage_file(writer, file, bytes_max=80 * MIB))
        for tid in range(5):
            await writer.commit(ResultCommit(results=(result(2, tid),)))
            committed_before_end.append(not taking.done())
        staged = await taking
        assert staged.size == 80 * MIB
        await writer.commit(ResultCommit(results=(result(1, 0, value("a", staged)),)))

        def read(store: ResultStore) -> None:
            digest = hashlib.sha256()
            for chunk in store.reader.read_chunks(1, 0, "a") or ():
                digest.update(chunk)
            assert digest.hexdigest() == staged.digest
            part = store.reader.read_value(1, 0, "a", offset=70 * MIB, length=9)
            assert part == b"something"

        await writer.run(read)

    run(tmp_path / "data", test)
    assert all(committed_before_end)


def test_file_that_is_missing_or_too_large_fails_the_attempt_only(tmp_path: Path) -> None:
    async def test(writer: WriterThread[ResultStore, ResultCommit]) -> None:
        missing = tmp_path / "missing"
        with pytest.raises(NodeFailed) as caught:
            await stage_file(writer, missing, bytes_max=MIB)
        assert str(caught.value) == (
            f"cannot take the content of file {str(missing)!r}: No such file or directory; "
            "a node must leave the file in place until its next task"
        )
        large = tmp_path / "large"
        large.write_bytes(bytes(2 * MIB))
        with pytest.raises(NodeFailed) as caught:
            await stage_file(writer, large, bytes_max=MIB)
        assert str(caught.value) == (
            f"file {str(large)!r} has more than {MIB} bytes (value_bytes_max); "
            "split the value into several"
        )
        await writer.commit(ResultCommit(results=(result(1, 0),)))

        def collect(store: ResultStore) -> None:
            while store.idle_work_is_due:
                store.do_idle_work()
            assert store._database.query("SELECT count(*) FROM chunks") == [(0,)]

        await writer.run(collect)

    run(tmp_path / "data", test)


@pytest.mark.slow
def test_killed_client_keeps_what_was_put(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from tasksprint.store.result_store import ResultStore\n"
        "from tests.store.helpers import result, value\n"
        "store = ResultStore.open(pathlib.Path(sys.argv[1]), now_ms=0)\n"
        "for tid in range(100_000):\n"
        "    store.put_results([result(1, tid, value('a', b'%d' % tid * (1 + tid % 30_000)))])\n"
        "    print(tid, flush=True)\n"
        "    store.checkpoint_if_due()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    last = 0
    while last < 100:
        last = int(child.stdout.readline())
    child.kill()
    for line in child.stdout:
        last = int(line)
    child.wait()
    child.stdout.close()
    store = ResultStore.open(tmp_path, now_ms=0)
    held = [tid for _, tid, _ in store.reader.held()]
    assert held == list(range(len(held))) and len(held) in (last + 1, last + 2)
    for tid in held:
        assert store.reader.read_value(1, tid, "a") == b"%d" % tid * (1 + tid % 30_000)
    store.close()
