"""Accepting connections, also when the process has no descriptor left.

asyncio's own accept loop logs a traceback for each connection that it can't accept, and tries
again at once. At the limit of open files this costs half a core, and megabytes of log a second.
Here the socket rests for a moment, the server makes room, and the newcomers wait in the
kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial

from tasksprint.net.bugs import Bugs
from tasksprint.net.gate import CountedWarnings

__all__ = ["BACKLOG", "Listener"]

# Newcomers that the kernel keeps; it may allow fewer (net.core.somaxconn).
BACKLOG = 4_096
# Accepted in one turn of the loop: a crowd must not keep the others waiting, nor take
# descriptors faster than those of dropped strangers are closed.
_ACCEPTS_MAX = 16
# Rest after a connection that couldn't be accepted. Meanwhile the descriptor of a dropped
# connection becomes free; if none was dropped, somebody else may close one.
_SHORT_PAUSE_S = 0.01
_LONG_PAUSE_S = 0.25
# accept(2): the process, or the machine, is short of descriptors or memory.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Accepts on one socket, until it is closed.

    Args:
        sock: Bound, listening and non-blocking; it is closed with this.
        make_room: Drops a connection that isn't worth its descriptor; False: there is none.
    """

    def __init__(
        self,
        sock: socket.socket,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        *,
        make_room: Callable[[], bool],
        warnings: CountedWarnings,
        bugs: Bugs,
    ) -> None:
        self._socket = sock
        self._make_protocol = make_protocol
        self._make_room = make_room
        self._warnings = warnings
        self._bugs = bugs
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and close accepted sockets that have no connection yet."""
        for task in self._starting:
            task.cancel()
        if self._pause is not None:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_MAX):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _SHORTAGES:
                    self._rest(error)
                    return
                continue  # This one is gone already, or its network: accept(2), "Error handling".
            task = self._loop.create_task(self._start(accepted))
            self._starting.add(task)
            task.add_done_callback(partial(self._started, accepted))

    def _started(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if task.cancelled():
            accepted.close()

    async def _start(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_protocol, accepted)
        except OSError:
            accepted.close()  # It is gone already.
        except Exception as error:
            accepted.close()
            self._bugs.tell("accepting a connection", error)

    def _rest(self, error: OSError) -> None:
        has_room = self._make_room()
        self._warnings.warn(
            ("accept", error.errno),
            f"a connection can't be accepted now: {error.strerror}; raise the limit (ulimit -n)",
        )
        self._loop.remove_reader(self._socket.fileno())
        pause_s = _SHORT_PAUSE_S if has_room else _LONG_PAUSE_S
        self._pause = self._loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)
