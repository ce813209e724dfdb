"""The thread that owns one store, and group commit.

A role has one event loop; a store waits for disks. Between them stands one thread: the
loop hands over commits and reads, the thread does them in order. While it writes, more
commits gather, and all that gathered share the next transaction. The loop hears of a
transaction once, however many commits were in it.

The way to the thread and back costs more than a small write on a quick disk. So a commit
may be written by the loop itself (`may_block`), while the thread has nothing to do and
the disk has been quick for a while. One slow write ends that for a while.

Knows loops and threads, not the stored data. A store is anything with `commit_all` and
upkeep (`GroupStore`).

A failed write is the end: promises can't be kept any more. All that waits fails with
the same error, `on_failure` is told once, and nothing more is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tasksprint.errors import StoreDamaged

__all__ = ["GroupStore", "HandedCall", "HandedCommit", "WriteTimes", "WriterThread"]

# A transaction takes at most so many commits: its first one must not wait for ever. Beyond
# this number a transaction's fixed costs don't count any more.
_COMMITS_MAX = 500
# A store may do its upkeep after this much silence.
_QUIET_S = 0.05
# Transactions over which percentiles of their times are taken.
_TIMES_KEPT = 1_000
# A write that takes longer than this must not hold up the loop again soon: not before so
# many quick ones in a row. Shorter or more: busy machines never write on the loop.
_QUICK_NS = 20_000_000
_QUICK_WRITES = 50

CommitT = TypeVar("CommitT")
CommitT_contra = TypeVar("CommitT_contra", contravariant=True)
StoreT = TypeVar("StoreT", bound="GroupStore[Any]")
ResultT = TypeVar("ResultT")


class GroupStore(Protocol[CommitT_contra]):
    """The part of a store that a writer thread needs."""

    def commit_all(self, commits: Sequence[CommitT_contra], /) -> None:
        """Make all of them durable, in order, in one transaction."""

    def checkpoint_if_due(self) -> bool:
        """Do what can't be put off any longer, after a commit."""

    @property
    def idle_work_is_due(self) -> bool:
        """Whether a quiet moment should be used for `do_idle_work`."""

    def do_idle_work(self) -> None:
        """Do a piece of upkeep, some milliseconds long."""

    @property
    def failure(self) -> BaseException | None:
        """The failed write after which nothing more is written; None: there was none."""

    def close(self) -> None:
        """Give back the file."""


@dataclass(frozen=True, slots=True)
class WriteTimes:
    """How long transactions took; percentiles are over the last ones only."""

    count: int  # since the start
    sum_s: float  # since the start
    p50_s: float | None  # None: there was none yet
    p99_s: float | None


class _Times:
    """The ring behind `WriteTimes`: written by the writing thread, read by the loop."""

    __slots__ = ("_count", "_last_ns", "_quick_writes", "_sum_ns")

    def __init__(self) -> None:
        self._count = 0
        self._sum_ns = 0
        self._last_ns: deque[int] = deque(maxlen=_TIMES_KEPT)
        self._quick_writes = 0  # in a row

    def add(self, time_ns: int) -> None:
        self._count += 1
        self._sum_ns += time_ns
        self._last_ns.append(time_ns)
        self._quick_writes = self._quick_writes + 1 if time_ns < _QUICK_NS else 0

    @property
    def are_quick(self) -> bool:
        """Whether the next one can be expected to be quick, too."""
        return self._quick_writes >= _QUICK_WRITES

    def summary(self) -> WriteTimes:
        last_ns = sorted(self._last_ns.copy())  # The thread may append meanwhile.
        if not last_ns:
            return WriteTimes(0, 0.0, None, None)
        return WriteTimes(
            self._count,
            self._sum_ns / 1e9,
            last_ns[len(last_ns) // 2] / 1e9,
            last_ns[len(last_ns) * 99 // 100] / 1e9,
        )


class HandedCommit:
    """A commit that waits, with the callback or future to tell."""

    __slots__ = ("commit", "done", "future")

    def __init__(
        self,
        commit: Any,
        done: Callable[[], None] | None,
        future: asyncio.Future[None] | None,
    ) -> None:
        self.commit = commit
        self.done = done
        self.future = future

    def tell(self, error: BaseException | None) -> None:
        """Tell that it is durable, or has failed; on the loop."""
        future = self.future
        if future is None:
            if error is None and self.done is not None:
                self.done()
        elif not future.done():  # Else: its owner doesn't wait any more.
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # `on_failure` was told; no second complaint


class HandedCall:
    """A waiting call of a function on the thread, with the future to tell."""

    __slots__ = ("arguments", "function", "future")

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        future: asyncio.Future[Any],
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future

    def tell(self, result: object, error: BaseException | None) -> None:
        """Tell what came of it; on the loop."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Nudge:
    """Nothing to do now, but upkeep is due when it is quiet."""

    __slots__ = ()


class _Close(HandedCall):
    """The last item: close the store and end."""

    __slots__ = ()


_Item = HandedCommit | HandedCall | _Nudge


class WriterThread(Generic[StoreT, CommitT]):
    """One thread that owns one store; to be used from one event loop.

    Args:
        store: Used by nobody else from now on.
        on_failure: Called once, on the loop, when a write failed. The role must stop:
            its core has counted on that write.
        name: Of the thread, for people who look at it.
    """

    def __init__(
        self,
        store: StoreT,
        *,
        on_failure: Callable[[BaseException], None],
        name: str = "store",
    ) -> None:
        self._store = store
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._is_closing = False
        self._times = _Times()
        # Handed over, and not yet reported as done. Belongs to the loop.
        self._pending = 0
        # Held by the thread that uses the store. The loop never waits for it.
        self._owned = threading.Lock()
        # Under the lock: whether the thread knows that upkeep is due, and when the loop
        # wrote last.
        self._is_nudged = False
        self._written_s = 0.0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    # --- on the loop ---

    @property
    def waiting(self) -> int:
        """Commits and calls that the thread has not taken up yet."""
        return self._queue.qsize()

    def write_times(self) -> WriteTimes:
        """Return how long transactions took, from the first statement until they were durable."""
        return self._times.summary()

    def commit(self, commit: CommitT) -> asyncio.Future[None]:
        """Hand over a commit.

        Returns:
            A future that is done when the commit is durable, or has the failure. It
            needn't be awaited: `on_failure` is told as well.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._put(HandedCommit(commit, None, future))
        return future

    def post(
        self, commit: CommitT, done: Callable[[], None], *, may_block: bool = False
    ) -> None:
        """Hand over a commit and call `done` on the loop once it is durable.

        Cheaper than `commit`, and one turn of the loop sooner. After a failure `done`
        is never called; `on_failure` is.

        Args:
            may_block: The commit is small, and all other work of the loop can wait for the
                disk, even if the disk begins to hang now. Then, when this returns, the
                commit may be durable already, and `done` called.
        """
        if not (may_block and self._times.are_quick and self._try_own()):
            self._put(HandedCommit(commit, done, None))
            return
        try:
            is_written = self._write_here(commit)
        finally:
            self._owned.release()
        if is_written:
            done()

    def _try_own(self) -> bool:
        # Everything handed over was reported: the thread does upkeep at most.
        return self._pending == 0 and self._owned.acquire(blocking=False)

    def _write_here(self, commit: CommitT) -> bool:
        assert not self._is_closing, "a writer that is being closed takes nothing more"
        if self._failure is None:
            self._commit_all([commit])
            self._written_s = time.monotonic()
            if not self._is_nudged and self._store.idle_work_is_due:
                self._is_nudged = True
                self._queue.put(_Nudge())
        return self._failure is None

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> asyncio.Future[ResultT]:
        """Call `function(store, *arguments)` on the thread, after all earlier commits.

        For reads, and for the rare writes that aren't commits. The future raises the
        function's exception. This alone doesn't end the writer, unless it is `StoreDamaged`,
        or a failed write ended the store.
        """
        future: asyncio.Future[ResultT] = self._loop.create_future()
        self._put(HandedCall(function, (self._store, *arguments), future))
        return future

    def _put(self, item: HandedCommit | HandedCall) -> None:
        assert not self._is_closing, "a writer that is being closed takes nothing more"
        self._pending += 1
        self._queue.put(item)

    async def close(self) -> None:
        """Finish all that was handed over, close the store, and end the thread.

        Raises:
            StoreError: Closing failed. Failed writes were told before.
        """
        assert not self._is_closing, "a writer is closed once"
        self._is_closing = True
        ended: asyncio.Future[None] = self._loop.create_future()
        self._pending += 1
        self._queue.put(_Close(self._store.close, (), ended))
        try:
            await ended
        finally:
            # The thread ends right after it has told; joining waits for microseconds.
            self._thread.join()

    # --- on the thread ---

    def _work(self) -> None:
        while True:
            items = self._gather()
            with self._owned:
                for item in items:
                    if isinstance(item, _Close):
                        self._call(item)
                        return
                    self._do(item)
                self._keep_up(self._store.checkpoint_if_due)

    def _gather(self) -> list[list[HandedCommit] | HandedCall]:
        """Wait for something to do, and return all that there is, commits in groups."""
        item = self._wait()
        found: list[list[HandedCommit] | HandedCall] = []
        while True:
            if isinstance(item, HandedCall):
                found.append(item)
            elif isinstance(item, HandedCommit):
                if found and isinstance(found[-1], list) and len(found[-1]) < _COMMITS_MAX:
                    found[-1].append(item)
                else:
                    found.append([item])
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return found

    def _wait(self) -> _Item:
        while self._has_upkeep():
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_QUIET_S)
            with self._owned:
                is_quiet = time.monotonic() - self._written_s >= _QUIET_S
                self._keep_up(
                    self._store.do_idle_work if is_quiet else self._store.checkpoint_if_due
                )
        return self._queue.get()

    def _has_upkeep(self) -> bool:
        with self._owned:
            self._is_nudged = False
            self._keep_up(self._look_for_upkeep)
            return self._is_nudged

    def _look_for_upkeep(self) -> None:
        self._is_nudged = self._store.idle_work_is_due

    def _commit_all(self, commits: Sequence[CommitT]) -> None:
        begun_ns = time.perf_counter_ns()
        try:
            self._store.commit_all(commits)
        except BaseException as error:
            self._fail(error)
        self._times.add(time.perf_counter_ns() - begun_ns)

    def _do(self, item: list[HandedCommit] | HandedCall) -> None:
        if isinstance(item, list):
            if self._failure is None:
                self._commit_all([waiting.commit for waiting in item])
            self._tell(self._tell_committed, item, self._failure)
        elif self._failure is not None:
            self._tell(self._tell_called, item, None, self._failure)
        else:
            self._call(item)

    def _call(self, call: HandedCall) -> None:
        try:
            result = call.function(*call.arguments)
        except BaseException as error:
            failure = error if isinstance(error, StoreDamaged) else self._store.failure
            if failure is not None and self._failure is None:
                self._fail(failure)
            self._tell(self._tell_called, call, None, error)
        else:
            self._tell(self._tell_called, call, result, None)

    def _keep_up(self, work: Callable[[], object]) -> None:
        if self._failure is None:
            try:
                work()
            except BaseException as error:  # Also our bugs: nobody else would hear of them.
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._tell(self._on_failure, error)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        # The loop is closed: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- on the loop again ---

    def _tell_committed(self, group: list[HandedCommit], error: BaseException | None) -> None:
        self._pending -= len(group)
        for waiting in group:
            waiting.tell(error)

    def _tell_called(
        self, call: HandedCall, result: object, error: BaseException | None
    ) -> None:
        self._pending -= 1
        call.tell(result, error)
