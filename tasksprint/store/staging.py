"""Bringing the content of a file into a client's store without stopping anybody.

Knows a writer thread and a path. A file may be large, so its content goes over piece by
piece, and other commits go between the pieces.
"""

from __future__ import annotations

import stat
from pathlib import Path

from tasksprint.errors import NodeFailed
from tasksprint.store.result_records import ResultCommit, StagedValue
from tasksprint.store.result_store import ResultStore
from tasksprint.store.writer import WriterThread

__all__ = ["stage_file"]

# Some milliseconds of work, during which other commits wait.
_PIECE_BYTES = 4 * 1024 * 1024


async def stage_file(
    writer: WriterThread[ResultStore, ResultCommit], path: Path, *, bytes_max: int
) -> StagedValue:
    """Take the content of a file that a node named; the file is left alone.

    Args:
        writer: Of the store that is to have it.
        path: The file. What it holds at the moment of reading is taken.
        bytes_max: `Settings.value_bytes_max`.

    Returns:
        The staged value with its size and digest; put it with a result, or abandon it.

    Raises:
        NodeFailed: The file can't be read, or is too large.
        StoreError: The store can't keep it.
    """
    staging = await writer.run(lambda store: store.stage())
    try:
        await writer.run(lambda _: _check(path, bytes_max))
        while True:
            taken = await writer.run(
                lambda _: staging.append_file(path, offset=staging.size, length=_PIECE_BYTES)
            )
            if staging.size > bytes_max:
                raise _too_large(path, bytes_max)
            if taken == 0:
                return await writer.run(lambda _: staging.finish())
    except OSError as error:
        writer.run(lambda _: staging.abandon())
        raise NodeFailed(
            f"cannot take the content of file {str(path)!r}: {error.strerror}",
            hint="a node must leave the file in place until its next task",
        ) from error
    except BaseException:
        writer.run(lambda _: staging.abandon())
        raise


def _check(path: Path, bytes_max: int) -> None:
    """Refuse what has no end, or would keep the thread waiting: a device, a pipe."""
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
