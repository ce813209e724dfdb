"""The HTTP/1.1 server: an address to listen on, and the life of its connections.

httptools parses, the router finds the handler, and the gate decides who may come in. A
connection answers its requests one at a time, in the order in which they came. The answer of a
plain handler is written in the turn of the loop in which its request arrived; no task is made
for it.

A peer is bounded in several ways. Heads and bodies have a largest size, connections a largest
number and an idle time. A big body is read only from a sender with a proof. More of an answer
is produced only when the peer has read the rest. A peer without a proof gets less of all
(`connections`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial

from tasksprint.errors import SettingsError
from tasksprint.net.addresses import format_address, parse_address
from tasksprint.net.bugs import Bugs
from tasksprint.net.connections import Connections
from tasksprint.net.gate import Gate
from tasksprint.net.http_connection import Connection
from tasksprint.net.http_exchange import Service
from tasksprint.net.listener import BACKLOG, Listener
from tasksprint.net.router import Router
from tasksprint.settings import Settings

__all__ = ["HttpServer"]

# Cancelled handlers get so long to clean up.
_CANCEL_S = 1.0


class HttpServer:
    """Listens on one address and answers by a router.

    Args:
        gate: Who may come in; None lets everybody in (tests).
        bugs: Told about each exception that should never have been raised; None: its own.
    """

    def __init__(
        self,
        router: Router,
        gate: Gate | None,
        settings: Settings,
        *,
        bugs: Bugs | None = None,
    ) -> None:
        self.settings = settings
        self.address = ""  # with the real port, once it listens
        self._service = Service(router, gate, settings, bugs or Bugs())
        self._connections = Connections(settings, self._service.warnings)
        self._listeners: list[Listener] = []
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def connection_count(self) -> int:
        """How many connections there are, without those that left HTTP."""
        return len(self._connections.open)

    async def listen(self, address: str, *, inherited: socket.socket | None = None) -> str:
        """Listen on an address and return it; port 0 gets a free port, which it tells.

        Args:
            inherited: A socket that is bound to the address and listens already.

        Raises:
            SettingsError: The address can't be listened on.
        """
        host, port = parse_address(address)
        connections = self._connections
        if inherited is not None:
            inherited.listen(BACKLOG)  # With this queue of newcomers, not its maker's.
            sockets = [inherited]
        else:
            sockets = await self._bind(host, port, address)
        for listener in sockets:
            listener.setblocking(False)
            self._listeners.append(
                Listener(
                    listener,
                    lambda: Connection(self._service, self._connections),
                    make_room=partial(connections.try_drop_stranger, "no descriptor is left"),
                    warnings=self._service.warnings,
                    bugs=self._service.bugs,
                )
            )
        port = sockets[0].getsockname()[1]
        self.address = format_address(host, port)
        gate = self._service.gate
        if gate is not None:
            gate.allow(self.address)
            for bound in sockets:  # "localhost" has several numbers.
                gate.allow(format_address(*bound.getsockname()[:2]))
        self._sweep()
        return self.address

    async def close(self, *, grace_ms: int = 1_000) -> None:
        """Stop listening, let running answers end within the grace, then close everything."""
        connections = self._connections
        self._service.is_closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(connections.open):
            connection.close_when_idle()
        tasks = connections.tasks()
        if tasks and grace_ms:
            await asyncio.wait(tasks, timeout=grace_ms / 1000)
        tasks = connections.tasks()
        for connection in list(connections.open):
            connection.abort()
        for transport in connections.upgraded:
            if not transport.is_closing():
                transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)
        while connections.open:  # They need a turn of the loop to get lost.
            await asyncio.sleep(0)

    async def _bind(self, host: str, port: int, address: str) -> list[socket.socket]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {address}: {host!r} is not a host of this machine "
                f"({error.strerror})"
            ) from error
        listeners: list[socket.socket] = []
        refused: OSError | None = None
        for family, kind, protocol, _, where in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((where[0], port, *where[2:]))
                listener.listen(BACKLOG)
            except OSError as error:
                listener.close()
                # "localhost" may name an IPv6 address that the machine hasn't got.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or not listeners:
                    refused = refused or error
                continue
            listeners.append(listener)
            port = listener.getsockname()[1]  # The same one for all, if it was 0.
        if refused is not None and (not listeners or refused.errno == errno.EADDRINUSE):
            for listener in listeners:
                listener.close()
            raise _cannot_listen(address, refused) from refused
        return listeners

    def _sweep(self) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        self._connections.sweep(loop.time(), self._service.bugs.tell)
        shortest_ms = min(settings.connection_idle_ms, settings.unproven_deadline_ms)
        self._sweeper = loop.call_later(max(shortest_ms / 8_000, 0.01), self._sweep)


def _cannot_listen(address: str, error: OSError) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        return SettingsError(
            f"cannot listen on {address}: the port is in use",
            hint="stop the process that uses it, or choose another one with --listen HOST:PORT",
        )
    if error.errno == errno.EACCES:
        return SettingsError(
            f"cannot listen on {address}: this user may not use that port",
            hint="choose one above 1023 with --listen HOST:PORT",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return SettingsError(
            f"cannot listen on {address}: this machine has no such address",
            hint="choose one of its own with --listen HOST:PORT",
        )
    return SettingsError(f"cannot listen on {address}: {error.strerror}")
