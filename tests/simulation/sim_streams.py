"""Streams between simulated replicas: `net/streams.py` on simulated connections.

Who is called when, visitors, pauses and what is told of broken connections are the real
class's; only a connection itself is another one. Frames aren't signed.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.ids import ReplicaId
from tasksprint.net.gate import Identity
from tasksprint.net.router import Request, Response
from tasksprint.net.streams import STREAM_PATH, PeerStreams
from tests.simulation.machines import Process
from tests.simulation.wire import Connection, Wire

__all__ = ["SimStreams"]


class SimStreams(PeerStreams):
    """The streams of one simulated coordinator."""

    def __init__(self, wire: Wire, process: Process, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.wire = wire
        self.process = process
        process.streams = self

    async def connect(self, peer: ReplicaId, address: str) -> Any:
        """As `PeerStreams.connect`, to another simulated process."""
        wire, process = self.wire, self.process
        machine = wire.machines.get(address)
        if machine is None:
            raise PeerUnreachable("no such machine")
        made: asyncio.Future[_SimSender] = process.loop.create_future()
        request = Request(
            "POST",
            STREAM_PATH,
            {name: str(value) for name, value in self.query_for(peer, "0" * 32).items()},
            {},
            b"",
            process.address,
            Identity.CLUSTER,
            {},
        )

        def fail(error: Exception) -> None:
            if not made.done():
                made.set_exception(error)
                made.exception()

        def answer(outcome: _SimSender | Exception) -> None:
            """Take what became of it; on this process's loop."""
            if isinstance(outcome, Exception):
                fail(outcome)
            elif made.done():
                outcome.close()
            else:
                made.set_result(outcome)

        def send_back(outcome: _SimSender | Exception) -> None:
            assert machine is not None
            wire.carry(
                machine,
                process.machine,
                lambda: process.loop.call_soon(answer, outcome),
                lambda: None,
            )

        def accept(target: Process) -> None:
            """Take the request; on the loop of the other side."""
            streams = target.streams
            if streams is None or not process.is_alive:
                send_back(PeerUnreachable("connection refused"))
                return
            assert isinstance(streams, SimStreams)
            try:
                accepted = streams._accept(request)
            except Exception as error:
                send_back(error)
                return
            assert not isinstance(accepted, Response)
            sender = _SimSender(self, peer, target, streams)
            streams.receiver_made(cast(Any, sender.receiver))
            send_back(sender)

        def arrive() -> None:
            target = machine.process
            if target is None or not target.is_alive or target.streams is None:
                send_back(PeerUnreachable("connection refused"))
            else:
                target.loop.call_soon(accept, target)

        wire.carry(process.machine, machine, arrive, lambda: None)
        return await made


class _SimSender:
    """As `_Sender`: the side that sends frames."""

    def __init__(
        self, streams: SimStreams, peer: ReplicaId, target: Process, target_streams: SimStreams
    ) -> None:
        self._streams = streams
        self.peer = peer
        self.lost: asyncio.Future[str] = streams.process.loop.create_future()
        self._frames: list[bytes] = []
        self.receiver = _SimReceiver(target_streams, streams)
        self._connection = Connection(
            streams.wire,
            streams.process,
            target,
            take=self.receiver.take,
            source_lost=self._lose,
            target_lost=self.receiver.lose,
        )
        self.receiver.connection = self._connection

    def send(self, frame: bytes) -> bool:
        if self.lost.done():
            return False
        if not self._frames:
            self._streams.mark(cast(Any, self))
        self._frames.append(frame)
        return True

    def flush(self) -> None:
        if self._frames and not self.lost.done():
            self._connection.send(self._frames)
        self._frames = []

    def close(self) -> None:
        self._connection.close()
        if not self.lost.done():
            self.lost.cancel()

    def _lose(self, cause: str) -> None:
        if not self.lost.done():
            self.lost.set_result(cause)


class _SimReceiver:
    """As `_Receiver`: the side that gets frames."""

    def __init__(self, streams: SimStreams, source: SimStreams) -> None:
        self._streams = streams
        self.source = source.me
        self.life = source.life
        self.speaks = source.speaks
        self.connection: Connection | None = None
        self._is_open = True

    def take(self, frames: list[bytes]) -> None:
        for frame in frames:
            if not self._is_open:
                return
            try:
                self._streams.on_frame(self.source, frame)
            except RemoteProtocolError as error:
                # Replicas of one release understand each other: the process decides.
                self._streams.process.refused(str(error))
                self.close()
        self._streams.on_frames_end()

    def lose(self, cause: str) -> None:
        if self._is_open:
            self._is_open = False
            self._streams.receiver_lost(cast(Any, self), cause)

    def close(self) -> None:
        if self._is_open:
            assert self.connection is not None
            self.connection.close_target()
            # As a transport that is aborted: it tells in the next iteration.
            self._streams.process.loop.call_soon(self.lose, "it closed the connection")
