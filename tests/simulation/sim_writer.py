"""The writer's thread of a simulated process: a store behind a disk that takes its time.

As `store/writer.py`: commits in order, those that gathered in one transaction, calls in
between; some that may block are durable at once, as if the loop had written them. Any other
transaction is durable after a drawn time; until then the disk holds nothing of it. A crash in
mid-write keeps all of the transaction or nothing, and what waited is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tasksprint.errors import StoreDamaged
from tasksprint.store.writer import HandedCall, HandedCommit, WriteTimes
from tests.simulation.machines import Process
from tests.simulation.timeline import Timeline

__all__ = ["SimDisk", "SimWriter"]

_COMMITS_MAX = 500
_QUIET_MS = 50.0


class SimDisk:
    """How one machine's disk behaves; it stays when processes go."""

    def __init__(self, timeline: Timeline, random: Random) -> None:
        self.timeline = timeline
        self.random = random
        self.latency = (0.1, 1.0)  # milliseconds of one transaction, at least and at most
        self.hangs_until = 0.0
        self.lost = 0  # commits that a crash lost
        self.kept = 0  # that became durable without anyone knowing
        # Told of what became durable: the commits of one transaction.
        self.on_durable: Callable[[Sequence[Any]], None] = _ignore
        # … and of what a crash met while it was written, and lost.
        self.on_torn: Callable[[Sequence[Any]], None] = _ignore

    def delay(self) -> float:
        """Draw how long the next transaction takes."""
        delay = self.random.uniform(*self.latency)
        return delay + max(self.hangs_until - self.timeline.now, 0.0)


def _ignore(commits: Sequence[Any]) -> None:
    pass


class SimWriter:
    """As `WriterThread`, for the store of one simulated process."""

    def __init__(
        self,
        disk: SimDisk,
        process: Process,
        store: Any,
        *,
        on_failure: Callable[[BaseException], None],
        name: str = "store",
    ) -> None:
        self._disk = disk
        self._process = process
        self._store = store
        self._on_failure = on_failure
        self._queue: deque[HandedCommit | HandedCall] = deque()
        self._under_way: list[HandedCommit] | HandedCall | None = None
        self._failure: BaseException | None = None
        self._is_closed = False
        self._pending = 0  # What was handed over and hasn't been told of.
        self._count = 0
        self._quiet_since = 0.0
        process.at_end.append(self._crash)

    @property
    def waiting(self) -> int:
        """Commits and calls that nobody has taken up yet."""
        return len(self._queue)

    def write_times(self) -> WriteTimes:
        """As `WriterThread.write_times`; nobody measured."""
        return WriteTimes(self._count, 0.0, None, None)

    def commit(self, commit: Any) -> asyncio.Future[None]:
        """As `WriterThread.commit`."""
        future: asyncio.Future[None] = self._process.loop.create_future()
        self._put(HandedCommit(commit, None, future))
        return future

    def post(self, commit: Any, done: Callable[[], None], *, may_block: bool = False) -> None:
        """As `WriterThread.post`."""
        assert not self._is_closed, "a writer that is being closed takes nothing more"
        item = HandedCommit(commit, done, None)
        is_free = self._pending == 0 and self._disk.hangs_until <= self._disk.timeline.now
        if may_block and is_free and self._failure is None and self._disk.random.random() < 0.5:
            if self._write([item]) is None:
                done()
            return
        self._put(item)

    def run(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """As `WriterThread.run`."""
        future: asyncio.Future[Any] = self._process.loop.create_future()
        self._put(HandedCall(function, (self._store, *arguments), future))
        return future

    async def close(self) -> None:
        """As `WriterThread.close`."""
        await self.run(lambda store: store.close())
        self._is_closed = True

    # --- the thread ---

    def _put(self, item: HandedCommit | HandedCall) -> None:
        assert not self._is_closed, "a writer that is being closed takes nothing more"
        self._pending += 1
        self._queue.append(item)
        if self._under_way is None:
            self._next()

    def _next(self) -> None:
        """Take up what waits, as the thread does: it runs while the process isn't stopped."""
        if self._under_way is not None or not self._process.is_alive or self._is_closed:
            return
        if not self._queue:
            if self._failure is None and self._store.idle_work_is_due:
                self._quiet_since = self._disk.timeline.now
                self._process.loop.call_later(_QUIET_MS / 1000, self._use_quiet_moment)
            return
        item = self._queue.popleft()
        if isinstance(item, HandedCall):
            self._under_way = item
            # Reads come from the cache mostly; what writes waits for the disk by itself.
            delay = self._disk.delay() if self._disk.random.random() < 0.5 else 0.02
        else:
            group = [item]
            while self._queue and len(group) < _COMMITS_MAX:
                following = self._queue[0]
                if not isinstance(following, HandedCommit):
                    break
                self._queue.popleft()
                group.append(following)
            self._under_way = group
            delay = self._disk.delay()
        self._disk.timeline.after(delay, self._finish)

    def _use_quiet_moment(self) -> None:
        is_quiet = self._disk.timeline.now - self._quiet_since >= _QUIET_MS * 0.9
        if self._under_way is None and not self._queue and is_quiet and not self._is_closed:
            try:
                self._store.do_idle_work()
            except Exception as error:
                self._fail(error)
            self._next()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._process.loop.call_soon(self._on_failure, error)

    def _finish(self) -> None:
        if not self._process.is_alive:
            return  # (Whatever a crash kept is on the disk already.)
        item, self._under_way = self._under_way, None
        call_soon = self._process.loop.call_soon
        if isinstance(item, HandedCall):
            self._call(item)
        elif item is not None:
            error = self._failure
            if error is None:
                error = self._write(item)
            call_soon(self._tell, item, error)
        if self._queue or item is not None:
            call_soon(self._next)

    def _write(self, group: list[HandedCommit]) -> BaseException | None:
        commits = [waiting.commit for waiting in group]
        try:
            self._store.commit_all(commits)
            self._store.checkpoint_if_due()
        except Exception as error:
            self._fail(error)
            return error
        self._count += 1
        self._disk.on_durable(commits)
        return None

    def _call(self, item: HandedCall) -> None:
        result, error = None, self._failure
        if error is None:
            try:
                result = item.function(*item.arguments)
            except Exception as raised:
                error = raised
                failure = raised if isinstance(raised, StoreDamaged) else self._store.failure
                if failure is not None:
                    self._fail(failure)
        self._process.loop.call_soon(self._tell_called, item, result, error)

    def _crash(self) -> None:
        """The process is gone: what is under way is written whole or not at all."""
        disk, item = self._disk, self._under_way
        if isinstance(item, list) and self._failure is None:
            if disk.random.random() < 0.5:
                if self._write(item) is None:
                    disk.kept += len(item)
            else:
                disk.lost += len(item)
                disk.on_torn([waiting.commit for waiting in item])
        disk.lost += sum(isinstance(waiting, HandedCommit) for waiting in self._queue)
        self._queue.clear()

    # --- the loop again ---

    def _tell(self, group: list[HandedCommit], error: BaseException | None) -> None:
        self._pending -= len(group)
        for waiting in group:
            waiting.tell(error)

    def _tell_called(
        self, call: HandedCall, result: object, error: BaseException | None
    ) -> None:
        self._pending -= 1
        call.tell(result, error)
