"""The thread that owns a store: order, groups, failures, and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import apsw
import pytest

from tasksprint.coordination.rows import Row
from tasksprint.errors import DiskFull, StoreError
from tasksprint.settings import Settings
from tasksprint.store import writer as writer_module
from tasksprint.store.records import Commit
from tasksprint.store.writer import WriterThread
from tests.store.conftest import FilePlace
from tests.store.helpers import accept, blob_name, entry
from tests.store.memory_store import MemoryDirectory, MemoryReplicaStore

Writer = WriterThread[Any, Commit]


def run(
    store: Any,
    test: Callable[[Writer], Coroutine[Any, Any, None]],
    *,
    on_failure: Callable[[BaseException], None] | None = None,
    is_closed: bool = True,
) -> None:
    def unexpected(error: BaseException) -> None:
        raise AssertionError from error

    async def main() -> None:
        writer: Writer = WriterThread(store, on_failure=on_failure or unexpected)
        await asyncio.wait_for(test(writer), 20)
        if is_closed:
            await asyncio.wait_for(writer.close(), 20)

    asyncio.run(main())


def fact(number: int) -> Commit:
    return Commit(rows=(Row("facts", (f"{number:03}",), ("",)),))


def facts(store: Any) -> list[str]:
    return [row.key[0] for row in store.read_range("facts")]


class Gate:
    """Holds a writer's thread until it is opened.

    Returns once the thread stands at it: what is handed over from then on gathers.
    """

    def __init__(self, writer: Writer) -> None:
        self.is_open = threading.Event()
        is_reached = threading.Event()

        def stand(_: Any) -> None:
            is_reached.set()
            assert self.is_open.wait(20)

        self.passed = writer.run(stand)
        assert is_reached.wait(20)

    def open(self) -> None:
        self.is_open.set()


def test_commits_that_gather_share_one_transaction(place: Any) -> None:
    store = place.open()
    told: list[int] = []

    async def test(writer: Writer) -> None:
        gate = Gate(writer)
        for number in range(10):
            writer.post(fact(number), lambda number=number: told.append(number))
        last = writer.commit(fact(10))
        assert not last.done()
        gate.open()
        await last
        assert told == list(range(10))
        assert store.transactions == 1
        assert await writer.run(facts) == [f"{number:03}" for number in range(11)]

    run(store, test)


def test_loop_is_told_once_for_each_transaction() -> None:
    calls = 0

    async def test(writer: Writer) -> None:
        nonlocal calls
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*arguments, **options)

        gate = Gate(writer)
        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        commits = [writer.commit(fact(number)) for number in range(50)]
        gate.open()
        await asyncio.gather(*commits)
        loop.call_soon_threadsafe = original  # type: ignore[method-assign]

    run(MemoryReplicaStore.open(MemoryDirectory(), 1, now_ms=0), test)
    assert calls == 2  # the gate's call, and the transaction


def test_group_has_a_limit() -> None:
    store = MemoryReplicaStore.open(MemoryDirectory(), 1, now_ms=0)

    async def test(writer: Writer) -> None:
        gate = Gate(writer)
        commits = [writer.commit(fact(number)) for number in range(1200)]
        gate.open()
        await asyncio.gather(*commits)

    run(store, test)
    assert store.transactions == 3


def test_reads_see_earlier_commits_and_not_later_ones(place: Any) -> None:
    store = place.open()

    async def test(writer: Writer) -> None:
        gate = Gate(writer)
        writer.post(fact(0), lambda: None)
        first = writer.run(facts)
        writer.post(fact(1), lambda: None)
        second = writer.run(facts)
        gate.open()
        assert (await first, await second) == (["000"], ["000", "001"])
        assert store.transactions == 2

    run(store, test)


def test_waiting_counts_what_is_not_taken_up(place: Any) -> None:
    async def test(writer: Writer) -> None:
        gate = Gate(writer)
        writer.post(fact(0), lambda: None)
        assert writer.waiting == 1
        gate.open()
        await writer.run(facts)
        assert writer.waiting == 0

    run(place.open(), test)


def test_read_that_raises_fails_alone(place: Any) -> None:
    def wrong(store: Any, name: str) -> None:
        raise ValueError(name)

    async def test(writer: Writer) -> None:
        with pytest.raises(ValueError, match="argument"):
            await writer.run(wrong, "argument")
        await writer.commit(fact(0))

    run(place.open(), test)


def test_failed_write_ends_the_writer_and_is_told_once() -> None:
    directory = MemoryDirectory("imagined")
    store = MemoryReplicaStore.open(directory, 1, now_ms=0)
    failures: list[BaseException] = []
    told: list[int] = []

    async def test(writer: Writer) -> None:
        await writer.commit(fact(0))
        gate = Gate(writer)
        directory.is_full = True
        writer.post(fact(1), lambda: told.append(1))
        second = writer.commit(fact(2))
        read = writer.run(facts)
        gate.open()
        for future in (second, read, writer.commit(fact(3))):
            with pytest.raises(StoreError, match="the disk is full"):
                await future
        directory.is_full = False
        with pytest.raises(StoreError, match="the disk is full"):
            await writer.commit(fact(4))

    run(store, test, on_failure=failures.append)
    assert [str(error).startswith("cannot write replica store") for error in failures] == [True]
    assert told == []
    assert facts(MemoryReplicaStore.open(directory, 1, now_ms=0)) == ["000"]


def test_failed_upkeep_ends_the_writer_too() -> None:
    class Broken(MemoryReplicaStore):
        def checkpoint_if_due(self) -> bool:
            raise StoreError("cannot checkpoint")

    directory = MemoryDirectory()
    store = Broken.open(directory, 1, now_ms=0)
    failures: list[BaseException] = []

    async def test(writer: Writer) -> None:
        await writer.commit(fact(0))
        with pytest.raises(StoreError, match="cannot checkpoint"):
            await writer.run(facts)

    run(store, test, on_failure=failures.append)
    assert [str(error) for error in failures] == ["cannot checkpoint"]


def test_bug_in_the_upkeep_ends_the_writer_too() -> None:
    class Broken(MemoryReplicaStore):
        def do_idle_work(self) -> None:
            raise KeyError("a bug")

        @property
        def idle_work_is_due(self) -> bool:
            return True

    store = Broken.open(MemoryDirectory(), 1, now_ms=0)
    told = asyncio.Event()
    failures: list[BaseException] = []

    def note(error: BaseException) -> None:
        failures.append(error)
        told.set()

    async def test(writer: Writer) -> None:
        await writer.commit(fact(0))
        await told.wait()
        with pytest.raises(KeyError, match="a bug"):
            await writer.commit(fact(1))

    run(store, test, on_failure=note)
    assert [type(error) for error in failures] == [KeyError]


WRITES: dict[str, Callable[[Any], None]] = {
    "put_blob": lambda store: store.put_blob(blob_name(b"x" * 9_000_000), b"x" * 9_000_000),
    "drop_blob": lambda store: store.drop_blob(blob_name(b"kept")),
    "begin_copy": lambda store: store.begin_copy(),
}


@pytest.mark.parametrize("name", WRITES)
def test_write_beside_the_commits_that_fails_ends_the_writer(place: Any, name: str) -> None:
    """The store takes nothing more after it, so who waits must hear why, and the role must."""
    store = place.open()
    failures: list[BaseException] = []

    async def test(writer: Writer) -> None:
        await writer.run(lambda store: store.put_blob(blob_name(b"kept"), b"kept"))
        fill_disk(store)
        with pytest.raises(DiskFull):
            await writer.run(WRITES[name])
        with pytest.raises(DiskFull, match="the disk is full; free some space"):
            await writer.commit(fact(0))

    run(store, test, on_failure=failures.append)
    assert [type(error) for error in failures] == [DiskFull]


def fill_disk(store: Any) -> None:
    if isinstance(store, MemoryReplicaStore):
        store._directory.is_full = True
        return

    def refuse(*arguments: Any) -> bool:
        raise apsw.FullError("database or disk is full")

    store._database.connection.set_commit_hook(refuse)


def test_close_finishes_what_was_handed_over(file_place: FilePlace) -> None:
    told: list[int] = []

    async def test(writer: Writer) -> None:
        for number in range(20):
            writer.post(fact(number), lambda number=number: told.append(number))

    run(file_place.open(), test)
    assert told == list(range(20))
    file_place.open_stores.clear()
    assert len(facts(file_place.open())) == 20  # The lock was given back as well.


def test_closing_writer_takes_nothing_more(place: Any) -> None:
    async def test(writer: Writer) -> None:
        closing = asyncio.ensure_future(writer.close())
        await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="takes nothing more"):
            writer.post(fact(0), lambda: None)
        await closing
        with pytest.raises(AssertionError, match="closed once"):
            await writer.close()

    run(place.open(), test, is_closed=False)


def test_error_of_closing_is_raised() -> None:
    class Broken(MemoryReplicaStore):
        def close(self) -> None:
            raise StoreError("cannot close")

    async def test(writer: Writer) -> None:
        with pytest.raises(StoreError, match="cannot close"):
            await writer.close()

    run(Broken.open(MemoryDirectory(), 1, now_ms=0), test, is_closed=False)


def test_cancelled_wait_leaves_the_others(place: Any) -> None:
    async def test(writer: Writer) -> None:
        gate = Gate(writer)
        gone, stays = writer.commit(fact(0)), writer.commit(fact(1))
        read = writer.run(facts)
        gone.cancel()
        gate.open()
        await stays
        assert await read == ["000", "001"]  # It was handed over and is written all the same.

    run(place.open(), test)


def test_quiet_moment_is_used_for_upkeep() -> None:
    class Untidy(MemoryReplicaStore):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.untidy = 0
            self.is_tidy = threading.Event()

        def commit_all(self, commits: Sequence[Commit]) -> None:
            super().commit_all(commits)
            self.untidy = 3

        @property
        def idle_work_is_due(self) -> bool:
            return self.untidy > 0

        def do_idle_work(self) -> None:
            self.untidy -= 1
            if not self.untidy:
                self.is_tidy.set()

    store = Untidy.open(MemoryDirectory(), 1, now_ms=0)
    assert isinstance(store, Untidy)

    async def test(writer: Writer) -> None:
        await writer.commit(fact(0))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, store.is_tidy.wait, 20)
        await writer.commit(fact(1))

    run(store, test)


@pytest.mark.slow
def test_many_commits_under_load_are_durable_in_order(file_place: FilePlace) -> None:
    """Small logs, so that checkpoints happen among them."""
    limits = Settings(wal_idle_bytes=50_000, wal_bytes_max=200_000)
    store = file_place.open(settings=limits)
    told: list[int] = []

    async def test(writer: Writer) -> None:
        for slot in range(1, 1001):
            persist = accept(entry(slot, b"%d" % slot * 50), chosen_end=slot)
            writer.post(Commit((persist,)), lambda slot=slot: told.append(slot))
            if slot % 7 == 0:
                await asyncio.sleep(0)
        await writer.run(facts)

    run(store, test)
    assert told == list(range(1, 1001))
    assert store.transactions < 1000
    file_place.open_stores.clear()
    core = file_place.open().recover().consensus
    assert [each.slot for each in core.accepted] == list(range(1, 1001))


# --- the loop writes itself ---


class QuickStore(MemoryReplicaStore):
    """Notes who writes, and can be slow on a clock of its own."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.on_loop: list[bool] = []
        self.clock_ns = 0
        self.next_takes_ns = 0

    def commit_all(self, commits: Sequence[Commit]) -> None:
        super().commit_all(commits)
        self.on_loop += [threading.current_thread() is threading.main_thread()] * len(commits)
        self.clock_ns += self.next_takes_ns
        self.next_takes_ns = 0


@pytest.fixture
def quick_store(monkeypatch: pytest.MonkeyPatch) -> QuickStore:
    store = QuickStore.open(MemoryDirectory(), 1, now_ms=0)
    assert isinstance(store, QuickStore)
    monkeypatch.setattr(writer_module.time, "perf_counter_ns", lambda: store.clock_ns)
    # The thread looks for upkeep when it likes; here the loop waits for it, to have its turn.
    monkeypatch.setattr(
        WriterThread, "_try_own", lambda self: self._pending == 0 and self._owned.acquire()
    )
    return store


async def warm_up(writer: Writer, store: QuickStore) -> None:
    """Write until the loop may."""
    for number in range(writer_module._QUICK_WRITES):
        assert await posted(writer, number) is False
    store.on_loop.clear()


async def posted(writer: Writer, number: int) -> bool:
    """Post a commit that may block; return whether it was durable at once."""
    done = asyncio.Event()
    writer.post(fact(number), done.set, may_block=True)
    was_done = done.is_set()
    await done.wait()
    return was_done


def test_loop_writes_itself_once_the_disk_has_been_quick(quick_store: QuickStore) -> None:
    async def test(writer: Writer) -> None:
        await warm_up(writer, quick_store)
        assert await posted(writer, 100)
        assert quick_store.on_loop == [True]
        assert "100" in await writer.run(facts)
        count = writer_module._QUICK_WRITES
        assert writer.write_times().count == quick_store.transactions == count + 1
        # Who can't wait for the disk doesn't.
        await writer.commit(fact(101))
        assert quick_store.on_loop == [True, False]

    run(quick_store, test)


def test_slow_write_sends_the_next_ones_to_the_thread(quick_store: QuickStore) -> None:
    async def test(writer: Writer) -> None:
        await warm_up(writer, quick_store)
        quick_store.next_takes_ns = writer_module._QUICK_NS
        assert await posted(writer, 100)
        await warm_up(writer, quick_store)
        assert await posted(writer, 101)

    run(quick_store, test)


def test_loop_writes_nothing_past_what_waits_for_the_thread(quick_store: QuickStore) -> None:
    async def test(writer: Writer) -> None:
        await warm_up(writer, quick_store)
        order: list[int] = []
        is_read = threading.Event()
        writer.post(fact(100), lambda: order.append(100))
        read = writer.run(lambda store: (facts(store), is_read.set())[0])
        assert is_read.wait(20)
        # The thread has done all of it by now, and the loop hasn't heard.
        writer.post(fact(101), lambda: order.append(101), may_block=True)
        assert order == []
        assert "101" not in await read
        await writer.run(facts)
        assert order == [100, 101]
        assert quick_store.on_loop == [False, False]

    run(quick_store, test)


def test_failed_write_of_the_loop_is_told_as_any_other(quick_store: QuickStore) -> None:
    failures: list[BaseException] = []
    told: list[int] = []

    async def test(writer: Writer) -> None:
        await warm_up(writer, quick_store)

        def fail(commits: Sequence[Commit]) -> None:
            raise StoreError("the disk is full")

        quick_store.commit_all = fail  # type: ignore[method-assign]
        writer.post(fact(100), lambda: told.append(100), may_block=True)
        writer.post(fact(101), lambda: told.append(101), may_block=True)
        with pytest.raises(StoreError, match="the disk is full"):
            await writer.commit(fact(102))

    run(quick_store, test, on_failure=failures.append)
    assert [str(error) for error in failures] == ["the disk is full"]
    assert told == []


def test_upkeep_that_writes_of_the_loop_make_due_is_done(
    file_place: FilePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_QUICK_WRITES", 0)
    store = file_place.open(settings=Settings(wal_idle_bytes=100_000, wal_bytes_max=10**9))
    is_tidy = threading.Event()
    do_idle_work = store.do_idle_work

    def tidy() -> None:
        do_idle_work()
        is_tidy.set()

    store.do_idle_work = tidy

    async def test(writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while not store.idle_work_is_due:
            assert await posted(writer, number % 1000)
            number += 1
        assert await loop.run_in_executor(None, is_tidy.wait, 20)
        assert not store.idle_work_is_due
        assert await posted(writer, 0)

    run(store, test)
