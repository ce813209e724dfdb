"""What only the real file of a client can show: damage, space, large files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasksprint.errors import NodeFailed, StoreError, ValueSpoiled
from tasksprint.store.result_records import ResultCommit
from tasksprint.store.result_store import ResultStore
from tasksprint.store.staging import stage_file
from tasksprint.store.value_files import ValueFiles
from tasksprint.store.writer import WriterThread
from tests.store.conftest import FilePlace
from tests.store.helpers import put_results, read_value, result, value
from tests.store.memory_result_store import MemoryResults, MemoryResultStore
from tests.store.test_replica_file import flip_byte

MIB = 1024 * 1024


def flip(path: Path, where: bytes) -> None:
    """Change the bytes of a value, wherever they stand."""
    for file in [path, *(path.parent / "values").iterdir()]:
        if where in file.read_bytes():
            flip_byte(file, where)


@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_flipped_byte_in_a_value_is_reported(file_place: FilePlace, size: int) -> None:
    data = b"unmistakable" + bytes(size - 12)
    store = file_place.open_results()
    put_results(store, [result(1, 7, value("a", data))])
    file_place.close()
    flip(store.path, b"unmistakable")
    store = file_place.open_results()
    with pytest.raises(ValueSpoiled) as caught:
        read_value(store, 1, 7, "a")
    name = f"value 'a' of task 7 of job 1 in {str(store.path)!r}"
    if size > 100:
        name = repr(str(store.files.path(1)))
    assert str(caught.value).startswith(f"{name} has SHA-256 ")
    assert str(caught.value).endswith(f", expected {hashlib.sha256(data).hexdigest()}")


@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_twin_reports_spoiled_values_and_a_full_disk_with_the_same_words(size: int) -> None:
    directory = MemoryResults("imagined")
    store = MemoryResultStore.open(directory, now_ms=0)
    put_results(store, [result(1, 7, value("a", b"good" + bytes(size)))])
    if size == 100:
        directory.contents[1, 7, "a"] = b"evil" + bytes(size)
        match = "value 'a' of task 7 of job 1 in 'imagined' has SHA-256"
    else:
        directory.files[1][:4] = b"evil"
        match = "'1' has SHA-256 "
    with pytest.raises(ValueSpoiled, match=match):
        read_value(store, 1, 7, "a")
    directory.is_full = True
    with pytest.raises(StoreError, match="cannot write result store 'imagined': the disk is full"):
        put_results(store, [result(1, 8)])
    assert store.reader.read_manifest(1, 8) is None


def test_result_whose_file_is_gone_or_short_is_dropped_at_the_start(file_place: FilePlace) -> None:
    store = file_place.open_results()
    for tid in range(4):
        put_results(store, [result(1, tid, value("a", os.urandom(2 * MIB)), value("b", b"1"))])
    file_place.close()
    store.files.path(1).unlink()
    os.truncate(store.files.path(3), MIB)
    store = file_place.open_results()
    assert [tid for _, tid, _ in store.reader.held()] == [1, 3]
    assert store.found_at_start == [
        f"job=1 tid={tid} its result is dropped: a file of it is gone or too short"
        for tid in (0, 2)
    ]
    assert store.total_bytes == 2 * (2 * MIB + 1)
    while store.idle_work_is_due:
        store.do_idle_work()
    assert sorted(path.name for path in store.files.folder.iterdir()) == ["2", "4"]


def test_files_that_were_there_at_the_start_are_not_remembered(file_place: FilePlace) -> None:
    store = file_place.open_results()
    put_results(store, [result(1, tid, value("a", bytes(100_000))) for tid in range(9)])
    store.close()
    assert len(ValueFiles(file_place.directory).take_found()) == 9
    assert not file_place.open_results().files.take_found()


def test_full_disk_leaves_the_store_usable(file_place: FilePlace) -> None:
    """A client may drop something and go on: nothing was promised to anybody."""
    store = file_place.open_results()
    put_results(store, [result(1, 0, value("a", bytes(100)))])
    connection = store._database.connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    values = [value(key, bytes(60 * 1024)) for key in "bcdef"]
    with pytest.raises(StoreError) as caught:
        put_results(store, [result(1, 1, value("a", bytes(2 * MIB)), *values)])
    assert str(caught.value) == (
        f"cannot write result store {str(store.path)!r}: the disk is full; "
        "free some space and start again; nothing that was acknowledged is lost"
    )
    assert (store.total_bytes, store.reader.total_bytes()) == (100, 100)
    connection.pragma("max_page_count", 1_000_000)
    put_results(store, [result(1, 1, value("a", bytes(2 * MIB)))])
    assert read_value(store, 1, 1, "a") == bytes(2 * MIB)
    assert store.total_bytes == 100 + 2 * MIB
    store.checkpoint_if_due()
    assert [path.stat().st_size for path in store.files.folder.iterdir()] == [2 * MIB]


@pytest.mark.parametrize("size", [60 * 1024, 3 * MIB])
def test_disk_of_dropped_values_comes_back(file_place: FilePlace, size: int) -> None:
    """Both of rows and of files, once it is quiet."""
    store = file_place.open_results()
    count = 8 * MIB // size
    put_results(store, [result(1, tid, value("a", os.urandom(size))) for tid in range(count)])
    put_results(store, [result(2, 0, value("a", b"stays"))])
    store.do_idle_work()
    store.drop_job(1, with_logs=True)
    while store.idle_work_is_due:
        store.do_idle_work()
    assert store.path.stat().st_size < 2 * MIB
    assert list(store.files.folder.iterdir()) == []
    assert read_value(store, 2, 0, "a") == b"stays"


def test_busy_client_deletes_files_too(file_place: FilePlace) -> None:
    """Without a quiet moment: some after each commit."""
    store = file_place.open_results()
    for tid in range(20):
        put_results(store, [result(1, tid, value("a", bytes(65537)))])
    store.drop_job(1, with_logs=True)
    rounds = 0
    while list(store.files.folder.iterdir()):
        store.checkpoint_if_due()
        rounds += 1
    assert rounds == 3


@pytest.mark.parametrize("seed", range(6))
def test_damaged_database_is_made_anew_with_what_is_whole(
    file_place: FilePlace, seed: int
) -> None:
    """Wherever the damage is: nothing of it is served, what is served is right."""
    store = file_place.open_results()
    identity = store.identity
    contents = {tid: b"%d" % tid * 100 for tid in range(3_000)}
    put_results(store, [result(1, tid, value("a", data)) for tid, data in contents.items()])
    store.set_fact("cluster", "c1")
    file_place.close()
    file = bytearray(store.path.read_bytes())
    random = Random(seed)
    for _ in range(3):  # Not in the first page: that is the schema, and no database then.
        page = random.randrange(2, len(file) // 8192)
        file[page * 8192 : page * 8192 + 4096] = random.randbytes(4096)
    store.path.write_bytes(file)

    store = file_place.open_results()
    told: list[str] = []
    store.on_rebuilt = lambda damage, left: told.append(damage)
    found = {}
    for _, tid, _ in store.ask(lambda store: store.reader.held()):
        try:
            found[tid] = store.ask(lambda store, tid: read_value(store, 1, tid, "a"), tid)
        except ValueSpoiled:
            found[tid] = None
    whole = {tid: data for tid, data in found.items() if data is not None}
    assert all(contents[tid] == data for tid, data in whole.items())
    assert len(whole) > 300
    assert len(whole) < 3_000 and (told or store.found_at_start)
    put_results(store, [result(1, 0, value("a", b"again"))])
    assert read_value(store, 1, 0, "a") == b"again"
    assert store.identity == identity and store.get_fact("cluster") == "c1"
    ((line,),) = store._database.query("PRAGMA integrity_check")
    assert line == "ok"


def run(
    directory: Path,
    test: Callable[
        [WriterThread[ResultStore, ResultCommit], ValueFiles], Coroutine[Any, Any, None]
    ],
) -> None:
    async def main() -> None:
        store = ResultStore.open(directory, now_ms=0)
        writer: WriterThread[ResultStore, ResultCommit] = WriterThread(
            store, on_failure=lambda error: None
        )
        await test(writer, store.files)
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

    async def test(writer: WriterThread[ResultStore, ResultCommit], files: ValueFiles) -> None:
        taking = asyncio.ensure_future(stage_file(files, file, bytes_max=80 * MIB))
        for tid in range(5):
            await writer.commit(ResultCommit(results=(result(2, tid),)))
            committed_before_end.append(not taking.done())
        staged = await taking
        assert staged.size == 80 * MIB
        await writer.commit(ResultCommit(results=(result(1, 0, value("a", staged)),)))

        def read(store: ResultStore) -> None:
            found = store.reader.find_value(1, 0, "a")
            assert found is not None and found[1] == staged
            store.files.check(staged)
            assert store.files.open(staged).read(70 * MIB, 9) == b"something"

        await writer.run(read)

    run(tmp_path / "data", test)
    assert all(committed_before_end)


def test_file_that_is_missing_or_too_large_fails_the_attempt_only(tmp_path: Path) -> None:
    async def test(writer: WriterThread[ResultStore, ResultCommit], files: ValueFiles) -> None:
        missing = tmp_path / "missing"
        with pytest.raises(NodeFailed) as caught:
            await stage_file(files, missing, bytes_max=MIB)
        assert str(caught.value) == (
            f"cannot take the content of file {str(missing)!r}: No such file or directory; "
            "a node must leave the file in place until its next task"
        )
        large = tmp_path / "large"
        large.write_bytes(bytes(2 * MIB))
        with pytest.raises(NodeFailed) as caught:
            await stage_file(files, large, bytes_max=MIB)
        assert str(caught.value) == (
            f"file {str(large)!r} has more than {MIB} bytes (value_bytes_max); "
            "split the value into several"
        )
        await writer.commit(ResultCommit(results=(result(1, 0),)))

        assert list(files.folder.iterdir()) == []

    run(tmp_path / "data", test)


@pytest.mark.slow
def test_killed_client_keeps_what_was_put(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from tasksprint.store.result_store import ResultStore\n"
        "from tests.store.helpers import put_results, result, value\n"
        "store = ResultStore.open(pathlib.Path(sys.argv[1]), now_ms=0)\n"
        "for tid in range(100_000):\n"
        "    put_results(store, [result(1, tid, value('a', b'%d' % tid * (1 + tid % 30_000)))])\n"
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
        assert read_value(store, 1, tid, "a") == b"%d" % tid * (1 + tid % 30_000)
    store.close()
