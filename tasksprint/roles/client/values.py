"""The values that a client has in memory, beside the copies on its disk.

Knows bytes by (job, tid, result digest, key): values made by nodes, copies fetched from other
clients, and values read back from the store. Two kinds can't be evicted: values that aren't
stored yet, and copies that the workbench still needs (it limits those). All others go when they
are old and room is needed.

Large values stand in files of the store (`FileValue`), never in memory. Files of fetched copies
belong to the cache; it says when one isn't needed any more. Files of this client's own results
belong to the store, and aren't cached at all.

Doesn't know the store: the maker of a cache gives it a function that reads a value. This module
also puts together a task's line and a report's inline values from bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from tasksprint.execution.effects import AttemptDone, Manifest, RunTask
from tasksprint.ids import JobId, TaskId
from tasksprint.protocol.node_lines import Carried, encode_task
from tasksprint.store.result_records import FileValue

__all__ = [
    "CachedValue",
    "LoadValue",
    "NodeValues",
    "ValueCache",
    "base64_pieces",
    "task_buffers",
]

CachedValue = tuple[str, "bytes | FileValue"]  # kind, content
# (key, kind, content) of each value of one reply.
NodeValues = tuple[tuple[str, str, "bytes | FileValue"], ...]
# Reads a value of a result held by this client: (job, tid, result digest, key) -> value.
# None: the store doesn't have it.
LoadValue = Callable[[JobId, TaskId, str, str], Awaitable["CachedValue | None"]]

# The cost of a value beside its bytes; else a million empty ones would count as nothing.
_OVERHEAD_BYTES = 400

_ValueKey = tuple[JobId, TaskId, str, str]


class _Result:
    """The values in memory of one result."""

    __slots__ = ("is_needed", "is_unstored", "manifest", "values")

    def __init__(self) -> None:
        self.values: dict[str, CachedValue] = {}
        self.manifest: Manifest | None = None  # of a copy
        self.is_unstored = False  # made here, and not in the store yet
        self.is_needed = False  # a copy that the workbench hasn't released


class ValueCache:
    """Values in memory, bounded, over the client's store."""

    def __init__(
        self, *, bytes_max: int, load: LoadValue, discard: Callable[[FileValue], object]
    ) -> None:
        """Begin empty.

        Args:
            bytes_max: `Settings.value_cache_bytes_max`.
            load: Reads a value of this client's own results from the store.
            discard: Deletes the file of a copy.
        """
        self._bytes_max = bytes_max
        self._load = load
        self._discard = discard
        self._results: dict[JobId, dict[TaskId, dict[str, _Result]]] = {}
        # Values that may be evicted, with their costs; the longest unused first.
        self._evictable: OrderedDict[_ValueKey, int] = OrderedDict()
        self._bytes = 0  # of everything, with overhead; files of copies count like memory

    @property
    def is_half_full(self) -> bool:
        """Whether further copies should rather stand in files."""
        return self._bytes > self._bytes_max // 2

    @property
    def total_bytes(self) -> int:
        """The memory of the values, roughly."""
        return self._bytes

    # --- values made here ------------------------------------------------------------

    def put(
        self, job: JobId, tid: TaskId, digest: str, values: Iterable[tuple[str, str, bytes]]
    ) -> None:
        """Keep (key, kind, content) of a new result, at least until `stored`."""
        result = self._result(job, tid, digest)
        if not result.is_unstored:
            result.is_unstored = True
            self._pin(result, job, tid, digest)
        self._add(result, job, tid, digest, values)
        self._evict()

    def stored(self, job: JobId, tid: TaskId, digest: str) -> None:
        """Note that a result can be read from the store: it may be evicted."""
        result = self._find(job, tid, digest)
        if result is not None and result.is_unstored:
            result.is_unstored = False
            self._unpin(result, job, tid, digest)

    def drop(self, job: JobId, tids: Iterable[TaskId]) -> None:
        """Forget all values of these tasks, but for copies that are still needed."""
        of_job = self._results.get(job)
        if of_job is None:
            return
        for tid in tids:
            for digest in list(of_job.get(tid, ())):
                self._drop(job, tid, digest)

    def drop_job(self, job: JobId, keep: Sequence[TaskId]) -> None:
        """Forget all values of a job, but for these tasks and copies still needed."""
        of_job = self._results.get(job)
        if of_job is not None:
            kept = set(keep)
            self.drop(job, [tid for tid in of_job if tid not in kept])

    # --- copies ----------------------------------------------------------------------

    def put_copy(
        self,
        job: JobId,
        tid: TaskId,
        digest: str,
        manifest: Manifest,
        values: Iterable[tuple[str, str, bytes | FileValue]],
    ) -> None:
        """Keep fetched values, verified by the caller, at least until they are released."""
        result = self._result(job, tid, digest)
        if not result.is_needed:
            result.is_needed = True
            self._pin(result, job, tid, digest)
        result.manifest = manifest
        self._add(result, job, tid, digest, values)
        self._evict()

    def find_copy(
        self, job: JobId, tid: TaskId, digest: str, keys: Iterable[str]
    ) -> Manifest | None:
        """Return the manifest of a copy if the values under `keys` are here; it is kept again.

        Keys that the result doesn't have are not asked for. None: it must be fetched.
        """
        result = self._find(job, tid, digest)
        if result is None or result.manifest is None:
            return None
        has = {item[0] for item in result.manifest}
        for key in keys:
            if key in has and key not in result.values:
                return None
        if not result.is_needed:
            result.is_needed = True
            self._pin(result, job, tid, digest)
        return result.manifest

    def release_copies(self, copies: Iterable[tuple[JobId, TaskId, str]]) -> None:
        """Note that the workbench needs these copies no more: they may be evicted."""
        for job, tid, digest in copies:
            result = self._find(job, tid, digest)
            if result is not None and result.is_needed:
                result.is_needed = False
                self._unpin(result, job, tid, digest)

    # --- reading ---------------------------------------------------------------------

    def get(self, job: JobId, tid: TaskId, digest: str, key: str) -> CachedValue | None:
        """Return kind and content of a value, or None if it isn't in memory."""
        result = self._find(job, tid, digest)
        if result is None:
            return None
        if not (result.is_unstored or result.is_needed):
            value_key = (job, tid, digest, key)
            if value_key in self._evictable:
                self._evictable.move_to_end(value_key)
        return result.values.get(key)

    async def read(self, job: JobId, tid: TaskId, digest: str, key: str) -> CachedValue | None:
        """Return a value from memory or the store; None: this client doesn't have it."""
        value = self.get(job, tid, digest, key)
        if value is not None:
            return value
        value = await self._load(job, tid, digest, key)
        if value is not None and isinstance(value[1], bytes):
            result = self._result(job, tid, digest)
            self._add(result, job, tid, digest, ((key, *value),))
            self._evict()
        return value

    def inputs(self, run: RunTask) -> list[CachedValue] | None:
        """Return the values of a task's inputs, in order; None: not all are in memory."""
        job = run.assignment.job
        values: list[CachedValue] = []
        for tid, key, digest in run.inputs:
            value = self.get(job, tid, digest, key)
            if value is None:
                return None
            values.append(value)
        return values

    async def load_inputs(self, run: RunTask) -> tuple[list[CachedValue], tuple[TaskId, ...]]:
        """Return the values of a task's inputs, and the pretasks with a missing value.

        For `Workbench.run_refused`, the caller asks its store for the manifests of
        those.
        """
        job = run.assignment.job
        values: list[CachedValue] = []
        missing: dict[TaskId, None] = {}
        for tid, key, digest in run.inputs:
            value = await self.read(job, tid, digest, key)
            if value is None:
                missing[tid] = None
            else:
                values.append(value)
        return values, tuple(missing)

    def inline(self, completion: AttemptDone) -> dict[str, tuple[str, str]] | None:
        """Return the values that a report carries; None: not all are in memory."""
        job, tid, digest = completion.job, completion.tid, completion.digest
        found: dict[str, tuple[str, str]] = {}
        for key, _ in completion.inline:
            value = self.get(job, tid, digest, key)
            if value is None:
                return None
            found[key] = _inline(value)
        return found

    async def load_inline(self, completion: AttemptDone) -> dict[str, tuple[str, str]] | None:
        """Return the values that a report carries; None: the store has lost one."""
        job, tid, digest = completion.job, completion.tid, completion.digest
        found: dict[str, tuple[str, str]] = {}
        for key, _ in completion.inline:
            value = await self.read(job, tid, digest, key)
            if value is None:
                return None
            found[key] = _inline(value)
        return found

    def check(self) -> None:
        """Assert the invariants."""
        total = 0
        evictable: set[_ValueKey] = set()
        for job, of_job in self._results.items():
            assert of_job
            for tid, of_task in of_job.items():
                assert of_task
                for digest, result in of_task.items():
                    is_pinned = result.is_unstored or result.is_needed
                    assert result.values or is_pinned, "nothing is kept of it"
                    for key, (_, content) in result.values.items():
                        total += _cost(content)
                        if not is_pinned:
                            evictable.add((job, tid, digest, key))
        assert total == self._bytes
        assert evictable == set(self._evictable)
        assert self._bytes <= self._bytes_max or not self._evictable

    # --- private ---------------------------------------------------------------------

    def _find(self, job: JobId, tid: TaskId, digest: str) -> _Result | None:
        of_job = self._results.get(job)
        if of_job is None:
            return None
        of_task = of_job.get(tid)
        return of_task.get(digest) if of_task is not None else None

    def _result(self, job: JobId, tid: TaskId, digest: str) -> _Result:
        of_job = self._results.get(job)
        if of_job is None:
            of_job = self._results[job] = {}
        of_task = of_job.get(tid)
        if of_task is None:
            of_task = of_job[tid] = {}
        result = of_task.get(digest)
        if result is None:
            result = of_task[digest] = _Result()
        return result

    def _add(
        self,
        result: _Result,
        job: JobId,
        tid: TaskId,
        digest: str,
        values: Iterable[tuple[str, str, bytes | FileValue]],
    ) -> None:
        is_pinned = result.is_unstored or result.is_needed
        for key, kind, content in values:
            if key in result.values:
                if isinstance(content, FileValue):
                    self._discard(content)
                continue  # The same digest means the same bytes.
            result.values[key] = (kind, content)
            cost = _cost(content)
            self._bytes += cost
            if not is_pinned:
                self._evictable[job, tid, digest, key] = cost
        if not (result.values or is_pinned):
            self._forget(job, tid, digest)

    def _pin(self, result: _Result, job: JobId, tid: TaskId, digest: str) -> None:
        for key in result.values:
            self._evictable.pop((job, tid, digest, key), None)

    def _unpin(self, result: _Result, job: JobId, tid: TaskId, digest: str) -> None:
        if result.is_unstored or result.is_needed:
            return
        for key, (_, content) in result.values.items():
            self._evictable[job, tid, digest, key] = _cost(content)
        if not result.values:
            self._forget(job, tid, digest)
        self._evict()

    def _evict(self) -> None:
        while self._bytes > self._bytes_max and self._evictable:
            (job, tid, digest, key), cost = self._evictable.popitem(last=False)
            self._bytes -= cost
            result = self._results[job][tid][digest]
            self._give_back(result.values.pop(key)[1])
            if not result.values:
                self._forget(job, tid, digest)

    def _drop(self, job: JobId, tid: TaskId, digest: str) -> None:
        result = self._results[job][tid][digest]
        result.is_unstored = False
        if result.is_needed:
            return  # Its task still wants the copy; it is evicted like any other later.
        for key, (_, content) in result.values.items():
            self._evictable.pop((job, tid, digest, key), None)
            self._bytes -= _cost(content)
            self._give_back(content)
        self._forget(job, tid, digest)

    def _give_back(self, content: bytes | FileValue) -> None:
        if isinstance(content, FileValue):
            self._discard(content)

    def _forget(self, job: JobId, tid: TaskId, digest: str) -> None:
        of_job = self._results[job]
        of_task = of_job[tid]
        del of_task[digest]
        if not of_task:
            del of_job[tid]
            if not of_job:
                del self._results[job]


def _cost(content: bytes | FileValue) -> int:
    return _OVERHEAD_BYTES + (len(content) if isinstance(content, bytes) else content.size)


def task_buffers(
    run: RunTask, inputs: Sequence[CachedValue], *, frames: bool, takes: tuple[str, ...] = ()
) -> list[bytes | Carried]:
    """Return the buffers for a node's pipe that hand it a task.

    Args:
        inputs: From `ValueCache.inputs` or `load_inputs`, one for each of `run.inputs`.
            If one stands in a file, the content of its `Carried` is the index here.
        frames: The node speaks frames.
        takes: Members of the line that this node reads and not all nodes do.
    """
    assert len(inputs) == len(run.inputs)
    assignment = run.assignment
    carried = [
        (kind, content if isinstance(content, bytes) else Carried(index, content.size))
        for index, (kind, content) in enumerate(inputs)
    ]
    return encode_task(
        run.id,
        assignment.job,
        assignment.tid,
        assignment.attempt,
        assignment.spec,
        carried,
        assignment.seed,
        frames,
        takes,
    )


async def base64_pieces(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield one base64 text of all pieces together, whatever their sizes are.

    Only the end of the text may be padded. So bytes that don't fill a group of three go to the
    next piece.
    """
    rest = b""
    async for piece in pieces:
        data = rest + piece
        end = len(data) - len(data) % 3
        rest = data[end:]
        if end:
            yield binascii.b2a_base64(memoryview(data)[:end], newline=False)
    if rest:
        yield binascii.b2a_base64(rest, newline=False)


def _inline(value: CachedValue) -> tuple[str, str]:
    kind, content = value
    assert isinstance(content, bytes), "values that reports carry are small"
    return kind, content.decode() if kind == "json" else base64.b64encode(content).decode()
