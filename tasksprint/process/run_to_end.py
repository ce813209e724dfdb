"""A command that is run to its end, with nothing left behind: a job's setup.

It leads a group of its own. The group is killed while the command is a zombie: as soon as it
is reaped, its process id may name somebody else's group.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from tasksprint.process.orphans import own_children
from tasksprint.process.program import (
    DRAIN_S,
    KILLED_S,
    doesnt_end,
    signal_group,
    watch_exit,
)

__all__ = ["run_to_end"]

_log = logging.getLogger(__name__)


class _Tail(asyncio.Protocol):
    """Keeps the end of the output."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.data = b""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data = (self.data + data)[-self._bytes_max :]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def run_to_end(
    argv: Sequence[str], *, timeout_s: float, tail_bytes_max: int, **options: Any
) -> tuple[int, bytes]:
    """Run a command without input, and return its exit code and the end of its output.

    Its children that stay in its group are ended with it, also if this is cancelled. If the
    kernel doesn't end a process, it is left to itself after a while, with a warning.

    Args:
        options: More of them for `subprocess.Popen`.

    Raises:
        OSError, ValueError: It can't be started.
        asyncio.TimeoutError: It took longer; it was killed.
    """
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[None] = loop.create_future()
    tail = _Tail(tail_bytes_max)

    def ended() -> None:
        if not exited.done():
            exited.set_result(None)

    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )
    assert child.stdout is not None
    own_children.add(child.pid)
    transport: asyncio.BaseTransport | None = None
    try:
        watch_exit(loop, child.pid, ended)
        transport, _ = await loop.connect_read_pipe(lambda: tail, child.stdout)
        done, _ = await asyncio.wait([exited], timeout=timeout_s)
        if not done:
            raise asyncio.TimeoutError
    finally:
        # In this order: until it is reaped, its id names no other group.
        signal_group(child.pid, signal.SIGKILL)
        cancelled = await _wait_though_cancelled(exited, KILLED_S)
        if child.poll() is None:
            _log.warning("%s", doesnt_end(child.pid))
            exited.add_done_callback(lambda _: _reap(child))
        else:
            own_children.discard(child.pid)
        if transport is None:
            child.stdout.close()
        else:
            # Only a descendant that fled its group still holds the pipe then.
            cancelled = await _wait_though_cancelled(tail.closed, DRAIN_S) or cancelled
            transport.close()
        if cancelled is not None:
            raise cancelled
    return child.returncode, tail.data


def _reap(child: subprocess.Popen[bytes]) -> None:
    child.wait()
    own_children.discard(child.pid)


async def _wait_though_cancelled(
    future: asyncio.Future[None], limit_s: float
) -> asyncio.CancelledError | None:
    """Wait for a future, but not for ever; return the last cancellation that came meanwhile."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + limit_s
    cancelled: asyncio.CancelledError | None = None
    while not future.done() and (left_s := deadline_s - loop.time()) > 0:
        try:
            await asyncio.wait([future], timeout=left_s)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
