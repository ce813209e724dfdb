"""Coordinators in this process, on imagined disks and real sockets, and requests to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tasksprint.ids import ReplicaId
from tasksprint.net.gate import Gate
from tasksprint.net.http_client import HttpClient
from tasksprint.net.http_messages import HttpResponse
from tasksprint.net.http_server import HttpServer
from tasksprint.release import THIS_RELEASE
from tasksprint.roles.coordinator.coordinator import Coordinator
from tasksprint.roles.coordinator.surroundings import REAL, CoordinatorOptions
from tasksprint.settings import Settings
from tasksprint.store.replica_store import ReplicaStore
from tests.net.support import KEY
from tests.store.memory_store import MemoryDirectory, MemoryReplicaStore

__all__ = ["Member", "Members", "answering", "members"]



class Member:
    """One coordinator: its disk stays over `crash`, its address too."""

    def __init__(self, number: int, of: Members) -> None:
        self.number = ReplicaId(number)
        self.directory = MemoryDirectory(f"replica {number}")
        self.join: tuple[str, ...] = ()
        self.bugs_expected = 0
        self.release = THIS_RELEASE
        self._of = of
        self._listener = _listen(0)
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        self.coordinator: Coordinator = cast(Coordinator, None)  # until started
        self._server: HttpServer = cast(HttpServer, None)

    async def start(self) -> None:
        """Start it, as `coordinator` does."""
        of = self._of
        store = MemoryReplicaStore.open(self.directory, self.number, now_ms=0)
        options = CoordinatorOptions(
            me=self.number,
            advertise=self.address,
            peers={} if self.join else {member.number: member.address for member in of.all},
            data_dir=of.folder / f"replica-{self.number}",
            key=KEY,
            join=self.join,
        )
        # The store in memory passes the same contract tests.
        self.coordinator = Coordinator(
            options, of.settings, cast(ReplicaStore, store), replace(REAL, release=self.release)
        )
        gate = Gate(KEY, addresses=[self.address])
        bugs = self.coordinator.standing.bugs
        self._server = HttpServer(self.coordinator.router, gate, of.settings, bugs=bugs)
        if self._listener.fileno() < 0:
            self._listener = _listen(int(self.address.rpartition(":")[2]))
        await self._server.listen(self.address, inherited=self._listener)
        self.coordinator.start()

    async def stop(self) -> None:
        """Stop it in good order."""
        if self.coordinator.turns.stopped.done():
            self.coordinator.turns.stopped.exception()
        else:
            self.coordinator.turns.stop()
        self.coordinator.release_waiting()
        await self._server.close(grace_ms=50)
        await self.coordinator.close()
        assert self.coordinator.standing.bugs.count == self.bugs_expected

    async def ask(self, method: str, path: str, **options: Any) -> HttpResponse:
        """Send it a signed request."""
        options = {"checks_rest": "/mirror/" in path, **options}
        return await self._of.http.request(self.address, method, path, **options)

    @property
    def failure(self) -> BaseException | None:
        """Why it stopped by itself; None: it didn't."""
        stopped = self.coordinator.turns.stopped
        return stopped.exception() if stopped.done() else None


class Members:
    """All coordinators of one cluster."""

    def __init__(self, count: int, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.http = HttpClient(KEY, settings)
        self.all: list[Member] = []
        self.all += [Member(number, self) for number in range(1, count + 1)]

    async def leader(self) -> Member:
        """Wait until somebody leads and may answer, and return it."""
        while True:
            for member in self.all:
                if member.coordinator.replica.is_established:
                    return member
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def members(
    count: int, folder: Path, settings: Settings | None = None
) -> AsyncIterator[Members]:
    """Run so many coordinators."""
    found = Members(count, folder, settings or Settings())
    for member in found.all:
        await member.start()
    try:
        yield found
    finally:
        await found.http.close()
        for member in found.all:
            await member.stop()


@contextlib.asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """Run something else that speaks HTTP, and answers everything so; yield its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener
