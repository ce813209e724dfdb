"""Results and output on their way to the disk, and values in memory meanwhile.

One transaction is under way at a time. Commits that gather behind it share the next one. The
workbench reports a result once it is in the store. Nodes that are faster than the disk aren't
read while too much waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tasksprint.encoding import encode_json
from tasksprint.execution.effects import StoreResult
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import JobId, TaskId
from tasksprint.roles.client.held import HeldValues
from tasksprint.roles.client.ports import Turns, Writer
from tasksprint.roles.client.values import CachedValue, NodeValues, ValueCache
from tasksprint.roles.waiters import Waiters
from tasksprint.settings import Settings
from tasksprint.store.result_records import FileValue, LogText, Result, ResultCommit, Value
from tasksprint.store.result_store import ResultStore

__all__ = ["Durable"]

# Job, task and attempt of a result.
_Name = tuple[JobId, TaskId, int]


class Durable:
    """The results that one client keeps, and those that aren't durable yet."""

    def __init__(
        self,
        turns: Turns,
        workbench: Workbench,
        writer: Writer,
        held: HeldValues,
        settings: Settings,
    ) -> None:
        self._turns = turns
        self._workbench = workbench
        self._writer = writer
        self._held = held
        self._bytes_max = settings.value_cache_bytes_max
        self.values = ValueCache(
            bytes_max=settings.value_cache_bytes_max, load=self._load, discard=held.discard
        )
        self.unstored_bytes = 0  # of values in memory that no transaction has kept yet
        self._results: list[tuple[Result, _Name]] = []
        self._logs: list[LogText] = []
        self._is_writing = False
        self._waiters: Waiters[None] = Waiters()

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the disk that nodes must."""
        return self.unstored_bytes > self._bytes_max

    def keep_result(self, effect: StoreResult, values: NodeValues) -> None:
        """Keep the values that a node answered with."""
        kept: list[Value] = []
        for (key, kind, content), (_, _, _, digest) in zip(values, effect.manifest, strict=True):
            kept.append(Value(key, kind, content, digest))
        manifest = encode_json(effect.manifest)
        result = Result(effect.job, effect.tid, effect.digest, manifest, tuple(kept))
        in_memory = [item for item in values if isinstance(item[2], bytes)]
        self.values.put(effect.job, effect.tid, effect.digest, in_memory)  # type: ignore[arg-type]
        self._results.append((result, (effect.job, effect.tid, effect.attempt)))
        self.unstored_bytes += _bytes_in_memory(result)

    def keep_log(self, text: LogText) -> None:
        """Keep a node's output."""
        self._logs.append(text)
        self.write()

    def write(self) -> None:
        """Write all that waits, in one transaction, unless one is under way."""
        if self._is_writing or not (self._results or self._logs):
            return
        results, self._results = self._results, []
        logs, self._logs = self._logs, []
        commit = ResultCommit(tuple([result for result, _ in results]), tuple(logs))
        self._is_writing = True
        self._writer.post(commit, lambda: self._stored(results))

    def _stored(self, results: list[tuple[Result, _Name]]) -> None:
        self._is_writing = False
        self._waiters.wake_all()
        names = [name for _, name in results]
        for result, (job, tid, _) in results:
            self.values.stored(job, tid, result.digest)
            self.unstored_bytes -= _bytes_in_memory(result)
        self._workbench.results_stored(names)
        self._turns.turn()

    def drop(self, job: JobId, tids: tuple[TaskId, ...]) -> None:
        """Forget the results of these tasks."""
        self.values.drop(job, tids)
        self._discard_unwritten(lambda name: name[0] == job and name[1] in tids)
        self._change(lambda store: store.drop_tasks(job, tids))

    def drop_job(self, job: JobId, keep: tuple[TaskId, ...]) -> None:
        """Forget the results of a job that has ended, but those of these tasks."""
        self.values.drop_job(job, keep)
        self._discard_unwritten(lambda name: name[0] == job and name[1] not in keep)
        self._change(lambda store: store.drop_job(job, keep=keep, with_logs=False))

    def _discard_unwritten(self, is_dropped: Callable[[_Name], bool]) -> None:
        """Forget results that wait for a transaction."""
        kept = []
        for result, name in self._results:
            if not is_dropped(name):
                kept.append((result, name))
                continue
            self.unstored_bytes -= _bytes_in_memory(result)
            for value in result.values:
                if isinstance(value.content, FileValue):
                    self._held.discard(value.content)
        self._results = kept

    def _change(self, change: Callable[[ResultStore], None]) -> None:
        self._writer.run(change).add_done_callback(self._check_done)

    def _check_done(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._turns.fail(error)

    async def _load(
        self, job: JobId, tid: TaskId, digest: str, key: str
    ) -> CachedValue | None:
        # A value from a file was never in memory. Its result may still wait for the
        # transaction under way: then the one after that has it.
        while any(name[:2] == (job, tid) for _, name in self._results):
            await self._waiters.wait(None)
        return await self._held.load(job, tid, digest, key)


def _bytes_in_memory(result: Result) -> int:
    return sum([len(one.content) for one in result.values if isinstance(one.content, bytes)])
