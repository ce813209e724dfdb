"""Taking large values in without stopping anybody: from a file, or piece by piece.

Bytes are hashed and written on threads of the loop's executor. Both let go of Python's global
lock; the loop only hands pieces over. A bounded number of bytes waits for the disk: the source
is told when to stop for a while.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tasksprint.errors import NodeFailed
from tasksprint.store.result_records import CHUNK_BYTES, FileValue
from tasksprint.store.value_files import ValueFiles, ValueWriter

__all__ = ["Staging", "on_thread", "stage_file"]

# Bytes handed to the thread at once, and bytes that may wait for it before the source must stop.
_PIECE_BYTES = CHUNK_BYTES
_WAITING_BYTES_MAX = 8 * CHUNK_BYTES

ResultT = TypeVar("ResultT")


def on_thread(function: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
    """Call a function on a thread of the loop's executor."""
    return asyncio.get_running_loop().run_in_executor(None, function)


class Staging:
    """A value that comes in pieces; they are hashed and written behind the loop's back.

    One thread works for it at a time, in order.
    """

    def __init__(self, files: ValueFiles) -> None:
        self._writer: ValueWriter = files.begin()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._work: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._done: list[asyncio.Future[None]] = []  # those who wait for the thread
        self.size = 0  # of what was put

    def put(self, data: bytes) -> None:
        """Add bytes to the end."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self.size += len(data)
        if self._work is None and self._waiting_bytes >= _PIECE_BYTES:
            self._start()

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the disk that nothing more should be put (see `drain`)."""
        return self._waiting_bytes >= _WAITING_BYTES_MAX

    async def drain(self) -> None:
        """Wait until more may be put."""
        while self.is_full and self._work is not None:
            await self._wait()

    async def finish(self) -> FileValue:
        """Write the rest and return the value; from then on the caller keeps or discards it.

        Raises:
            StoreError: It wasn't written, and nothing of it stays.
        """
        while self._waiting or self._work is not None:
            if self._work is None:
                self._start()
            if self._work is not None:
                await self._wait()
        if self._failure is not None:
            raise self._failure
        return await on_thread(self._writer.finish)

    def abandon(self) -> None:
        """Forget what came."""
        self._waiting.clear()
        self._waiting_bytes = 0
        on_thread(self._writer.abandon)

    def _start(self) -> None:
        pieces, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        writer = self._writer
        if self._failure is None:
            self._work = on_thread(lambda: writer.append(pieces))
            self._work.add_done_callback(self._written)

    def _written(self, work: asyncio.Future[None]) -> None:
        self._work = None
        if not work.cancelled() and (error := work.exception()) is not None:
            self._failure = error
        if self._waiting_bytes >= _PIECE_BYTES:
            self._start()
        waiting, self._done = self._done, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _wait(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.append(done)
        await done


async def stage_file(files: ValueFiles, path: Path, *, bytes_max: int) -> FileValue:
    """Take the content of a file that a node named; the file is left alone.

    Args:
        files: Where it goes.
        path: The file. Its content at the moment of reading is taken.
        bytes_max: `Settings.value_bytes_max`.

    Returns:
        The value; put it with a result, or discard it.

    Raises:
        NodeFailed: The file can't be read, or is too large.
        StoreError: The store can't keep it.
    """
    writer = files.begin()
    try:
        await on_thread(lambda: _check(path, bytes_max))
        while await on_thread(lambda: _append_part(writer, path)):
            if writer.size > bytes_max:
                raise _too_large(path, bytes_max)
        return await on_thread(writer.finish)
    except BaseException as error:
        on_thread(writer.abandon)
        if isinstance(error, OSError):
            raise NodeFailed(
                f"cannot take the content of file {str(path)!r}: {error.strerror}",
                hint="a node must leave the file in place until its next task",
            ) from error
        raise


def _append_part(writer: ValueWriter, path: Path) -> bool:
    """Take some more of a file; False: that was all."""
    with open(path, "rb", buffering=0) as file:
        file.seek(writer.size)
        data = file.read(_PIECE_BYTES)
    if data:
        writer.append((data,))
    return bool(data)


def _check(path: Path, bytes_max: int) -> None:
    """Refuse sources without an end, or that keep the thread waiting: a device, a pipe."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise NodeFailed(f"{str(path)!r} is no regular file, so it has no content to take")
    if found.st_size > bytes_max:
        raise _too_large(path, bytes_max)


def _too_large(path: Path, bytes_max: int) -> NodeFailed:
    return NodeFailed(
        f"file {str(path)!r} has more than {bytes_max} bytes (value_bytes_max)",
        hint="split the value into several",
    )
