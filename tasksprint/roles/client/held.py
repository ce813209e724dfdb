"""The results that a client holds, as its store has them: reading, checking, losing.

If a value of a result is gone, or doesn't have its digest, the result is dropped here and
reported as lost. Then the cluster computes it again, and the other results stay. Damage shows
in three ways: a task takes the value, a peer fetches it, or a peer says that it received other
bytes. Only this client's own finding counts: a peer's word is a reason to look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from tasksprint.encoding import decode_json, result_digest
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError, ValueSpoiled
from tasksprint.execution.effects import Manifest, RunTask
from tasksprint.execution.records import KeptResult
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import JobId, TaskId
from tasksprint.roles.client.ports import Turns, Writer, logger
from tasksprint.roles.steps import Step
from tasksprint.store.result_records import ROW_VALUE_BYTES_MAX, FileValue
from tasksprint.store.result_store import HeldName, ResultStore
from tasksprint.store.staging import on_thread

__all__ = ["HeldValues", "Seen"]

ResultT = TypeVar("ResultT")
# The results that a task's inputs were read from, by pretask; None: not made here.
Seen = dict[TaskId, "KeptResult | None"]

# Looks that may wait. A peer with more complaints finds out by itself, or tells later.
_LOOKS_MAX = 100
_UNAVAILABLE = 503


class HeldValues:
    """The contents of one client's store."""

    def __init__(
        self,
        turns: Turns,
        workbench: Workbench,
        store: ResultStore,
        writer: Writer,
    ) -> None:
        self._turns = turns
        self._workbench = workbench
        self._writer = writer
        self._step = Step(turns.fail)
        self._is_closed = False
        self.files = store.files
        self._looks: set[HeldName] = set()  # results that are being compared with their digests
        self._looking = asyncio.Semaphore(1)
        loop = asyncio.get_running_loop()
        store.on_rebuilt = lambda damage, left: loop.call_soon_threadsafe(
            self.rebuilt, damage, left
        )

    async def close(self) -> None:
        """Write all that waits, and give back the files."""
        self._is_closed = True
        await self._writer.close()

    # --- reading ---

    def read(
        self, function: Callable[..., ResultT], *arguments: Any
    ) -> asyncio.Future[ResultT]:
        """Call `function(store, *arguments)` on the store's thread; damage is mended.

        Raises:
            Refused: This client stops.
        """
        if self._is_closed:
            raise Refused(f"client {self._workbench.cid} stops", status=_UNAVAILABLE)
        return self._writer.run(lambda store: store.ask(function, *arguments))

    async def manifest(self, job: JobId, tid: TaskId, digest: str | None) -> Manifest | None:
        """Return the manifest of a stored result, or None if there is none with this digest."""
        return await self.read(_manifest, job, tid, digest)

    async def load(
        self, job: JobId, tid: TaskId, digest: str, key: str
    ) -> tuple[str, bytes | FileValue] | None:
        """Return kind and content of a value; None: it isn't here, or not any more."""
        seen = self.seen(job, tid)
        try:
            return await self.read(_read_value, job, tid, digest, key)
        except ValueSpoiled as error:
            self.spoiled(job, tid, digest, str(error), seen=seen)
            return None

    def discard(self, value: FileValue) -> None:
        """Give back the disk space of a value that no result of this client has."""
        if not self._is_closed:
            self._writer.run(lambda store: store.discard(value))

    async def into_memory(self, value: FileValue) -> bytes | FileValue:
        """Return the bytes of a value that turned out to be small; its file goes.

        Raises:
            ValueSpoiled: The file's bytes have changed since; it goes as well.
        """
        if value.size > ROW_VALUE_BYTES_MAX:
            return value
        try:
            return b"".join([piece async for piece in self.pieces_of(value)])
        finally:
            self.discard(value)

    async def pieces_of(
        self, value: FileValue, part: tuple[int, int] | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a large value, or the part from one byte to another, piece by piece.

        Raises:
            ValueSpoiled: Before the last piece of a whole value: it doesn't have its digest.
        """
        with contextlib.closing(await on_thread(lambda: self.files.open(value))) as opened:
            pieces = opened.checked_pieces() if part is None else opened.pieces(*part)
            # One behind: the last piece is only given if all of it is as it should be.
            piece = await on_thread(lambda: next(pieces, None))
            while piece is not None:
                following = await on_thread(lambda: next(pieces, None))
                yield piece
                piece = following

    # --- lost and spoiled values ---

    def seen(self, job: JobId, tid: TaskId) -> KeptResult | None:
        """Return the stored result of a task, to be named if the value read now turns out bad.

        1. Somebody asks for a value; its result isn't there, or is spoiled. 2. The task ends
        here, again perhaps, with the same digest, and its result is stored. 3. The answer of the
        store, or the end of the file, comes: it says nothing of the result that is there now.
        """
        return self._workbench.stored_result(job, tid)

    def seen_inputs(self, run: RunTask) -> Seen:
        """Return the answer of `seen` for each input of a task."""
        return {tid: self.seen(run.assignment.job, tid) for tid, _, _ in run.inputs}

    def spoiled(
        self, job: JobId, tid: TaskId, digest: str, why: str, *, seen: KeptResult | None
    ) -> None:
        """Drop a result with a missing or spoiled value, and report it as lost.

        Args:
            seen: The answer of `seen` before the reading; another result isn't dropped.
        """
        if seen is None or self.seen(job, tid) is not seen:
            return
        if self._step(self._workbench.result_lost, job, tid, digest):
            logger.warning("job=%d tid=%d its result is lost: %s", job, tid, why)
            self._turns.turn()

    def look(self, job: JobId, tid: TaskId, digest: str) -> None:
        """Look whether a result is as it was stored; a peer has received something else.

        Raises:
            Refused: Too many wait to be looked at.
        """
        if (job, tid, digest) in self._looks:
            return  # Enough: one look at a time.
        if len(self._looks) >= _LOOKS_MAX:
            raise Refused(
                f"{len(self._looks)} results here wait to be looked at; this one isn't, unless "
                "somebody receives other bytes of it again",
                status=_UNAVAILABLE,
            )
        self._looks.add((job, tid, digest))
        self._turns.background(self._look(job, tid, digest))

    async def _look(self, job: JobId, tid: TaskId, digest: str) -> None:
        seen: KeptResult | None = None
        try:
            async with self._looking:
                seen = self.seen(job, tid)
                found = await self.read(_contents, job, tid, digest)
                if found is None:
                    self.missing(job, tid, digest, seen=seen)
                    return
                for content in found:
                    await on_thread(partial(self.files.check, content))
                logger.warning(
                    "job=%d tid=%d a peer received other bytes; those that are here are whole",
                    job,
                    tid,
                )
        except ValueSpoiled as error:
            self.spoiled(job, tid, digest, str(error), seen=seen)
        finally:
            self._looks.discard((job, tid, digest))

    def missing(self, job: JobId, tid: TaskId, digest: str, *, seen: KeptResult | None) -> None:
        """Report a result that the store hasn't, though somebody counts on it."""
        why = "it isn't in the store, or with another digest"
        self.spoiled(job, tid, digest, why, seen=seen)
        self._step(self._workbench.result_missing, job, tid)
        self._turns.turn()

    def rebuilt(self, damage: str, left: list[HeldName]) -> None:
        """The database was damaged and made anew: results missing in it are lost."""
        whole = {(job, tid): digest for job, tid, digest in left}
        lost = [
            (job, tid, digest)
            for job, tid, digest in self._workbench.held_results()
            if whole.get((job, tid)) != digest
        ]
        logger.warning("%s; made anew without %d lost results", damage, len(lost))
        try:
            for job, tid, digest in lost:
                self._step(self._workbench.result_lost, job, tid, digest)
        except PeerUnreachable:
            return  # A bug in the core: the client stops.
        self._turns.turn()


def _manifest(
    store: ResultStore, job: JobId, tid: TaskId, digest: str | None
) -> Manifest | None:
    """Return the manifest of a stored result, or None if there is none with this digest."""
    found = store.reader.read_manifest(job, tid)
    if found is None:
        return None
    try:
        items = [(str(k), str(kind), int(size), str(d)) for k, kind, size, d in decode_json(found)]
    except (RemoteProtocolError, TypeError, ValueError):
        return None  # Spoiled on the disk: it has no digest that anybody could ask for.
    if digest is not None and result_digest(items) != digest:
        return None
    return tuple(items)


def _read_value(
    store: ResultStore, job: JobId, tid: TaskId, digest: str, key: str
) -> tuple[str, bytes | FileValue] | None:
    """Read a value of the result with this digest, or None."""
    manifest = _manifest(store, job, tid, digest)
    named = next((item for item in manifest or () if item[0] == key), None)
    if named is None:
        return None
    return named[1], _content(store, job, tid, named)


def _content(
    store: ResultStore, job: JobId, tid: TaskId, named: tuple[str, str, int, str]
) -> bytes | FileValue:
    """Return the value that a manifest names; its row must say the same of it."""
    found = store.reader.find_value(job, tid, named[0])
    if found is None:
        raise ValueSpoiled(f"value {named[0]!r} of task {tid} of job {job} is gone")
    info, content = found
    if (info.kind, info.size, info.digest) != named[1:]:
        raise ValueSpoiled(f"value {named[0]!r} of task {tid} of job {job} isn't the one stored")
    return content


def _contents(
    store: ResultStore, job: JobId, tid: TaskId, digest: str
) -> list[FileValue] | None:
    """Check the small values of a result, and return the large ones."""
    manifest = _manifest(store, job, tid, digest)
    if manifest is None:
        return None
    found = [_content(store, job, tid, named) for named in manifest]
    return [content for content in found if isinstance(content, FileValue)]
