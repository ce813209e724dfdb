"""Frames between replicas, on connections that heal themselves.

Each replica opens one connection to every peer and sends its frames on it. It receives frames
on the connections that its peers opened. A connection begins as

    POST /v1/replica?source=1&target=2&nonce=<32 hex digits>&life=<number>&speaks=<JSON>
    Upgrade: tasksprint-replica, Connection: Upgrade, Authorization: …

signed and answered like any request: 101 with the header `Stream-Nonce`, the nonce of the
other side, and a `Proof` (proofs.py). Then come
frames, from the opener only:

    4 bytes  size of the body, big-endian
    16 bytes the first half of HMAC-SHA256 over the frame's number (8 bytes, from 0) and body
    body

The HMAC's key is derived from the cluster key, both nonces, source and target. So nobody can
send a frame again, leave one out, change it or move it to another connection unnoticed. A frame
that doesn't fit ends the connection.

A process that isn't among the peers, but knows the key, may connect as well. It names its
address. It may be a new member that this replica hasn't heard of, or a removed one. It is called
back for as long as its connection lasts, so that it can be told. A process of another cluster
is refused. Each process names its life, a random number. If a second process says that it is
the same replica, it is refused (423) while the first one's connection lives. Each process also
says what its release can (release.py).

Frames may be lost (with a connection, or when a peer doesn't read): consensus sends
again what matters. Order holds within a connection. Nothing here knows the meaning of a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import struct
from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import cast

import httptools

from tasksprint.errors import (
    LocalProtocolError,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SettingsError,
)
from tasksprint.ids import ReplicaId
from tasksprint.net.addresses import cause_of, parse_address, tune_socket
from tasksprint.net.deadlines import wait_at_most, within
from tasksprint.net.gate import CountedWarnings
from tasksprint.net.http_messages import HttpResponse, request_head, target_of
from tasksprint.net.keys import ClusterKey, Mac
from tasksprint.net.proofs import WHOLE, AnswerProof, SignedRequest
from tasksprint.net.reading import BufferedReader, new_read_buffer
from tasksprint.net.router import Request, Response, Router, Upgrade
from tasksprint.release import SILENT, Speaks, decode_speaks, encode_speaks
from tasksprint.settings import Settings

__all__ = ["PROTOCOL_NAME", "STREAM_PATH", "PeerStreams"]

log = logging.getLogger(__name__)

STREAM_PATH = "/v1/replica"
PROTOCOL_NAME = "tasksprint-replica"

_HEAD = struct.Struct(">I16s")
_NUMBER = struct.Struct(">Q")
_MAC_BYTES = 16
# Replicas that aren't among the peers and may be connected at once.
_VISITORS_MAX = 16
_TWIN = 423  # the status of the refusal of a second process
# Frames are joined to writes of about this size.
_WRITE_BYTES = 256 * 1024


class PeerStreams:
    """The connections of one replica with its peers.

    Args:
        peers: Address of each other replica.
        address: Where this replica itself can be called back.
        on_frame: Takes (source, frame) in the turn of the loop in which it arrived.
            `RemoteProtocolError` from it ends that connection; any other exception is a bug,
            ends it too, and goes to the loop's exception handler.
        on_frames_end: Told when all frames were handed over that arrived at once.
        on_connected: A peer takes frames now.
        on_disconnected: A connection to or from a peer broke. It is called for each, so twice
            when the peer's process dies.
        life: The life of this process.
        on_knock: Asked before a process is heard, as (source, life, life of the process that
            is heard as this source now, address, abilities of its release); returns why not.
        on_twin: A peer refused this process in favour of another one, with these words.
        speaks: The abilities of this process's release.
    """

    def __init__(
        self,
        me: ReplicaId,
        peers: Mapping[ReplicaId, str],
        key: ClusterKey,
        settings: Settings,
        random: Random,
        *,
        on_frame: Callable[[ReplicaId, bytes], None],
        on_frames_end: Callable[[], None],
        on_connected: Callable[[ReplicaId], None],
        on_disconnected: Callable[[ReplicaId], None],
        address: str | None = None,
        life: int = 0,
        on_knock: Callable[[ReplicaId, int, int | None, str, Speaks], str | None] | None = None,
        on_twin: Callable[[ReplicaId, str], None] | None = None,
        speaks: Speaks = SILENT,
    ) -> None:
        self.me = me
        self.key = key
        self.settings = settings
        self.random = random
        self.on_frame = on_frame
        self.on_frames_end = on_frames_end
        self.on_connected = on_connected
        self.on_disconnected = on_disconnected
        self.life = life
        self._on_knock = on_knock
        self.on_twin = on_twin
        self.speaks = speaks
        self.warnings = CountedWarnings(log)
        self.read_buffer = new_read_buffer()
        self._openers: dict[ReplicaId, _Opener] = {}
        self._incoming: dict[ReplicaId, _Receiver] = {}
        self._peers = dict(peers)
        self._visitors: dict[ReplicaId, str] = {}  # others that are connected: their addresses
        self.address = address
        self.cluster: str | None = None  # to which this replica belongs; set once it does
        self._started = False
        self._dirty: list[_Sender] = []  # senders with frames of this turn of the loop

    def add_to(self, router: Router) -> None:
        """Answer peers that open their stream to this replica."""
        router.add("POST", STREAM_PATH, self._accept, upgrade=PROTOCOL_NAME, body_bytes_max=0)

    def start(self) -> None:
        """Open a connection to every peer, and keep doing so."""
        self._started = True
        self.set_peers(self._peers)

    def set_peers(self, peers: Mapping[ReplicaId, str]) -> None:
        """Change who the peers are; connections with the others are closed."""
        self._peers = {peer: address for peer, address in peers.items() if peer != self.me}
        if not self._started:
            return
        self._open_all()

    def _open_all(self) -> None:
        wanted = {**self._visitors, **self._peers}
        for peer, opener in list(self._openers.items()):
            if wanted.get(peer) != opener.address:
                opener.close()
                del self._openers[peer]
        for peer, receiver in list(self._incoming.items()):
            if peer not in wanted:
                receiver.close()
        for peer, address in wanted.items():
            if peer not in self._openers:
                self._openers[peer] = _Opener(self, peer, address)

    async def close(self) -> None:
        """Close every connection and open no more; nobody is told."""
        self._started = False
        openers, self._openers = list(self._openers.values()), {}
        for opener in openers:
            opener.close()
        for receiver in list(self._incoming.values()):
            receiver.close()
        self._incoming.clear()
        if openers:
            await asyncio.wait([opener.task for opener in openers])

    def send(self, peer: ReplicaId, frame: bytes) -> bool:
        """Send a frame at the end of this turn of the loop, or at the next `flush`.

        Returns:
            False: dropped, for there is no connection or the peer doesn't read.
        """
        size = len(frame)
        if size > self.settings.frame_bytes_max:
            raise LocalProtocolError(
                f"a frame of {size} bytes for replica {peer}, at most "
                f"{self.settings.frame_bytes_max} (frame_bytes_max)"
            )
        opener = self._openers.get(peer)
        sender = opener.sender if opener is not None else None
        if sender is None:
            return False
        return sender.send(frame)

    def flush(self) -> None:
        """Send now the frames that wait for the end of the turn."""
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            for sender in dirty:
                sender.flush()

    def is_connected(self, peer: ReplicaId) -> bool:
        """Whether frames to this peer would be sent now."""
        opener = self._openers.get(peer)
        return opener is not None and opener.sender is not None

    def said_by(self, peer: ReplicaId) -> Speaks | None:
        """Return the abilities of a peer's release; None: no process is heard as this peer."""
        receiver = self._incoming.get(peer)
        return None if receiver is None else receiver.speaks

    # --- for the connections ---

    async def connect(self, peer: ReplicaId, address: str) -> _Sender:
        """Open a connection to a peer, on which frames can be sent.

        Raises:
            OSError, PeerUnreachable, Refused, RemoteProtocolError: It can't be had.
        """
        host, port = parse_address(address)
        loop = asyncio.get_running_loop()
        nonce = os.urandom(16).hex()
        target = target_of(STREAM_PATH, self.query_for(peer, nonce))
        signed = SignedRequest(self.key, "POST", target, address)
        while True:
            _, sender = await loop.create_connection(lambda: _Sender(self, peer), host, port)
            try:
                if await sender.open(address, signed, nonce):
                    return sender
            except BaseException:
                sender.close()
                raise
            sender.close()

    def query_for(self, peer: ReplicaId, nonce: str) -> dict[str, str | int]:
        """Return this replica's words about itself when it asks for a connection."""
        query: dict[str, str | int] = {"source": self.me, "target": peer, "nonce": nonce}
        query["life"] = self.life
        if self.address is not None:
            query["address"] = self.address
        if self.cluster is not None:
            query["cluster"] = self.cluster
        if self.speaks != SILENT:
            query["speaks"] = encode_speaks(self.speaks)
        return query

    def mark(self, sender: _Sender) -> None:
        """Flush this sender at the end of the turn."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self.flush)
        self._dirty.append(sender)

    def broke(self, peer: ReplicaId, what: str) -> None:
        """Take note that a connection with a peer is gone."""
        if self._started and peer in self._peers:
            log.info("replica=%d peer=%d stream broke: %s", self.me, peer, what)
            self.on_disconnected(peer)

    def receiver_lost(self, receiver: _Receiver, cause: str) -> None:
        """Take note that the connection from a peer is gone."""
        if self._incoming.get(receiver.source) is receiver:
            del self._incoming[receiver.source]
            if self._visitors.pop(receiver.source, None) is not None and self._started:
                self._open_all()
            self.broke(receiver.source, f"from it: {cause}")

    def receiver_made(self, receiver: _Receiver) -> None:
        """Take a new connection of a peer; an older one of it is dead, known or not."""
        older = self._incoming.get(receiver.source)
        self._incoming[receiver.source] = receiver
        if older is not None:
            older.close()
        # It is there: no need to wait any longer before calling it.
        opener = self._openers.get(receiver.source)
        if opener is not None:
            opener.hurry()

    def _may_visit(self, source: ReplicaId, address: str) -> bool:
        try:
            parse_address(address)
        except SettingsError:
            return False
        is_known = source in self._visitors
        return self._started and source > 0 and (is_known or len(self._visitors) < _VISITORS_MAX)

    def _accept(self, request: Request) -> Response | Upgrade:
        source = ReplicaId(request.query_integer("source", 0))
        target = request.query_integer("target", 0)
        nonce = request.query.get("nonce", "")
        if target != self.me:
            raise Refused(
                f"this is replica {self.me}, not {target}",
                status=409,
                hint="the addresses of the replicas are mixed up: check --peers",
            )
        cluster = request.query.get("cluster")
        if cluster is not None and self.cluster is not None and cluster != self.cluster:
            raise Refused(
                f"replica {self.me} belongs to cluster {self.cluster!r}, replica {source} "
                f"to {cluster!r}",
                status=409,
                hint="start each with the peers of its own cluster",
            )
        address = request.query.get("address")
        is_visitor = source not in self._peers
        if is_visitor and (address is None or not self._may_visit(source, address)):
            raise Refused(
                f"replica {source} is no peer of replica {self.me}",
                status=409,
                hint="check --peers and --id of both",
            )
        if len(nonce) != 32:
            raise Refused("a stream needs a nonce of 32 hex digits", status=400)
        life = request.query_integer("life", 0)
        speaks = decode_speaks(request.query.get("speaks"))
        self._refuse_twin(source, life, address or request.peer, speaks)
        if is_visitor and address is not None:
            self._visitors[source] = address
            self._open_all()
        own_nonce = os.urandom(16).hex()
        mac = _stream_mac(self.key, source, self.me, nonce, own_nonce)
        return Upgrade(
            PROTOCOL_NAME,
            {"Stream-Nonce": own_nonce},
            lambda: _Receiver(self, source, mac, life, speaks),
        )

    def _refuse_twin(self, source: ReplicaId, life: int, address: str, speaks: Speaks) -> None:
        receiver = self._incoming.get(source)
        connected = None if receiver is None else receiver.life
        if self._on_knock is None:
            return
        reason = self._on_knock(source, life, connected, address, speaks)
        if reason is not None:
            raise Refused(
                reason,
                status=_TWIN,
                hint="end one of the two processes; if a data directory was copied, remove the "
                "copy, or make it a new replica (a new --id, --join, an empty --data-dir)",
            )


class _Opener:
    """Keeps the connection to one peer open, until it is closed."""

    def __init__(self, streams: PeerStreams, peer: ReplicaId, address: str) -> None:
        self._streams = streams
        self.peer = peer
        self.address = address
        self.sender: _Sender | None = None  # while connected
        self._wakeup: asyncio.Event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run())
        self.task.add_done_callback(self._ended)

    def hurry(self) -> None:
        """End the present pause before the next try."""
        self._wakeup.set()

    def close(self) -> None:
        """Close the connection and open no other."""
        self.task.cancel()
        if self.sender is not None:
            self.sender.close()
            self.sender = None

    async def _run(self) -> None:
        settings = self._streams.settings
        pause_ms = settings.reconnect_pause_min_ms
        while True:
            self._wakeup.clear()
            try:
                sender = await within(
                    settings.connect_timeout_ms / 1000,
                    self._streams.connect(self.peer, self.address),
                    discard=lambda made: made.close(),
                )
            except asyncio.TimeoutError:
                self._warn(f"no answer within {settings.connect_timeout_ms} ms")
            except OSError as error:
                self._warn(cause_of(error))
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                self._warn(str(error))
                on_twin = self._streams.on_twin
                if isinstance(error, Refused) and error.status == _TWIN and on_twin is not None:
                    on_twin(self.peer, str(error))
            except Exception as error:  # A bug ends this try, not the stream for good.
                self._tell_bug(error)
            else:
                self.sender = sender
                log.info("replica=%d peer=%d connected", self._streams.me, self.peer)
                self._streams.on_connected(self.peer)
                since = self._loop.time()
                cause = await sender.lost
                self.sender = None
                # A connection may break as soon as it is made: two processes with the same id
                # take it from each other. It must not be made again in a hot loop.
                if (self._loop.time() - since) * 1000 > settings.reconnect_pause_max_ms:
                    pause_ms = settings.reconnect_pause_min_ms
                self._streams.broke(self.peer, f"to it: {cause}")
            jitter = 1 + self._streams.random.random() / 2
            await wait_at_most(self._wakeup, pause_ms * jitter / 1000)
            pause_ms = min(2 * pause_ms, settings.reconnect_pause_max_ms)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell_bug(error)

    def _tell_bug(self, error: BaseException) -> None:
        what = f"the stream to replica {self.peer}"
        self._loop.call_exception_handler({"message": what, "exception": error})

    def _warn(self, cause: str) -> None:
        self._streams.warnings.warn(
            (self.peer, cause),
            f"replica={self._streams.me} peer={self.peer} cannot reach {self.address}: {cause}",
        )


class _Sender(BufferedReader):
    """The connection to a peer: first HTTP, then frames."""

    def __init__(self, streams: PeerStreams, peer: ReplicaId) -> None:
        super().__init__(streams.read_buffer)
        self._streams = streams
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until made
        self._buffer_bytes_max = streams.settings.stream_buffer_bytes_max
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._answer_bytes = 0
        self._headers: dict[str, str] = {}
        self._body = b""
        self._proof: AnswerProof | None = None  # of the answer, while there is none
        self._answer: asyncio.Future[HttpResponse] = self._loop.create_future()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._is_open = False
        self._mac = Mac(bytes(32))
        self._number = 0  # of the next frame
        # Frames wait here and not in the transport: a big buffer of asyncio costs a copy of
        # itself for each write (before Python 3.12).
        self._parts: deque[bytes] = deque()
        self._parts_bytes = 0
        self._is_marked = False  # A flush comes at the end of this turn.
        self._is_paused = False  # The transport has enough.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True
        settings = self._streams.settings
        self._transport.set_write_buffer_limits(high=settings.write_buffer_bytes_max)
        _tune(transport, settings)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self._lose("it sent what nobody asked for")
            return
        self._answer_bytes += len(data)
        if self._answer_bytes > 2 * self._streams.settings.head_bytes_max:
            self._lose("its answer doesn't end")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._parser = None
            if len(data) > error.args[0]:
                self._lose("it sent what nobody asked for")
        except httptools.HttpParserError as error:
            self._lose(f"it answered what is not HTTP/1.1: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._is_open = False
        self._lose(cause_of(error) if isinstance(error, OSError) else "it closed the connection")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._proof is None or self._proof.add_line(name, value):
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body = (self._body + data)[: self._streams.settings.head_bytes_max]

    def on_message_complete(self) -> None:
        if self._parser is not None and not self._answer.done():
            status = self._parser.get_status_code()
            self._answer.set_result(HttpResponse(status, self._headers, self._body))

    async def open(self, address: str, signed: SignedRequest, nonce: str) -> bool:
        """Ask for the stream and check that the other side knows the key.

        Args:
            nonce: Our own, which the request names.

        Returns:
            False: its life was another one than it was thought to be; ask anew.

        Raises:
            PeerUnreachable, Refused, RemoteProtocolError: It can't be had.
        """
        headers = {"Upgrade": PROTOCOL_NAME, "Connection": "Upgrade"}
        authorization = signed.sign()
        self._proof = proof = signed.proof
        self._transport.write(
            request_head(
                "POST", signed.target, address, authorization=authorization, headers=headers
            )
        )
        answer = await self._answer
        proof.check_head(answer.status, answer.headers)
        if proof.kind != WHOLE:
            raise proof.unproven()
        proof.check_body(answer.body)
        if signed.must_go_again(answer.status, answer.headers, answer.body):
            return False
        if answer.status != 101:
            answer.checked()
            raise RemoteProtocolError(f"answered with status {answer.status}, expected 101")
        peer_nonce = answer.headers.get("stream-nonce", "")
        streams = self._streams
        self._mac = _stream_mac(streams.key, streams.me, self._peer, nonce, peer_nonce)
        return True

    def send(self, frame: bytes) -> bool:
        waiting = self._parts_bytes
        if waiting > self._buffer_bytes_max or self.lost.done():
            self._streams.warnings.warn(
                (self._peer, "dropped"),
                f"replica={self._streams.me} peer={self._peer} doesn't read: frames are dropped, "
                f"{waiting} bytes wait (stream_buffer_bytes_max {self._buffer_bytes_max})",
            )
            return False
        mac = self._mac.digest(_NUMBER.pack(self._number), frame)
        self._number += 1
        size = len(frame)
        self._parts.append(_HEAD.pack(size, mac[:_MAC_BYTES]))
        self._parts.append(frame)
        self._parts_bytes += _HEAD.size + size
        if not self._is_marked and not self._is_paused:
            self._is_marked = True
            self._streams.mark(self)
        return True

    def flush(self) -> None:
        self._is_marked = False
        parts = self._parts
        if not self._is_open:
            parts.clear()
        if self._parts_bytes <= _WRITE_BYTES and not self._is_paused:
            data = b"".join(parts)
            parts.clear()
            self._parts_bytes = 0
            self._transport.write(data)
            return
        while parts and not self._is_paused:
            batch = [parts.popleft()]
            size = len(batch[0])
            while parts and size + len(parts[0]) <= _WRITE_BYTES:
                size += len(parts[0])
                batch.append(parts.popleft())
            self._parts_bytes -= size
            self._transport.write(b"".join(batch))

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self.flush()

    def close(self) -> None:
        if not self.lost.done():
            self.lost.cancel()
        if not self._answer.done():
            self._answer.cancel()
        self._abort()

    def _lose(self, cause: str) -> None:
        if not self._answer.done():
            self._answer.set_exception(PeerUnreachable(cause))
            # The asker may have been cancelled before it waited: nothing to complain of.
            self._answer.exception()
        if not self.lost.done():
            self.lost.set_result(cause)
        self._abort()

    def _abort(self) -> None:
        if self._is_open:  # (A lost transport of asyncio can't be aborted again.)
            self._transport.abort()


class _Receiver(BufferedReader):
    """The connection on which a peer sends its frames."""

    def __init__(
        self, streams: PeerStreams, source: ReplicaId, mac: Mac, life: int, speaks: Speaks
    ) -> None:
        super().__init__(streams.read_buffer)
        self._streams = streams
        self.source = source
        self.life = life
        self.speaks = speaks
        self._mac = mac
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until made
        self._frame_bytes_max = streams.settings.frame_bytes_max
        self._number = 0  # of the next frame
        self._pieces: list[bytes] = []  # of the frame that isn't complete
        self._pieces_bytes = 0
        self._wanted = _HEAD.size  # bytes that must be there before a look pays
        self._cause = "it closed the connection"
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True
        _tune(transport, self._streams.settings)
        self._streams.receiver_made(self)

    def data_received(self, data: bytes) -> None:
        if self._pieces:
            self._pieces.append(data)
            self._pieces_bytes += len(data)
            if self._pieces_bytes < self._wanted:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        used = self._take_frames(data)
        if used < len(data):
            self._pieces.append(data[used:] if used else data)
            self._pieces_bytes = len(data) - used
        self._streams.on_frames_end()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_open = False
        if isinstance(error, OSError):
            self._cause = cause_of(error)
        self._streams.receiver_lost(self, self._cause)

    def close(self) -> None:
        if self._is_open:  # (A lost transport of asyncio can't be aborted again.)
            self._transport.abort()

    def _take_frames(self, data: bytes) -> int:
        """Hand over the whole frames in `data`; return how many bytes they took."""
        start = 0
        end = len(data)
        head_size = _HEAD.size
        on_frame = self._streams.on_frame
        try:
            while end - start >= head_size:
                size, mac = _HEAD.unpack_from(data, start)
                if size > self._frame_bytes_max:
                    raise RemoteProtocolError(
                        f"it sent a frame of {size} bytes, at most {self._frame_bytes_max} "
                        "(frame_bytes_max)"
                    )
                frame_end = start + head_size + size
                if frame_end > end:
                    self._wanted = head_size + size
                    return start
                frame = data[start + head_size : frame_end]
                expected = self._mac.digest(_NUMBER.pack(self._number), frame)
                if not hmac.compare_digest(expected[:_MAC_BYTES], mac):
                    raise RemoteProtocolError(f"frame {self._number} has a wrong signature")
                self._number += 1
                start = frame_end
                on_frame(self.source, frame)
                if self._transport.is_closing():
                    return end
        except (PeerUnreachable, RemoteProtocolError) as error:
            self._cause = str(error)
            self._streams.warnings.warn(
                (self.source, "frame"),
                f"replica={self._streams.me} peer={self.source} stream closed: {error}",
            )
            self.close()
            return end
        self._wanted = head_size
        return start


def _stream_mac(
    key: ClusterKey, source: ReplicaId, target: ReplicaId, source_nonce: str, target_nonce: str
) -> Mac:
    return key.derive(f"stream {source} {target} {source_nonce} {target_nonce}")


def _tune(transport: asyncio.BaseTransport, settings: Settings) -> None:
    # The peer may be gone already: the next read tells.
    with contextlib.suppress(OSError):
        tune_socket(
            transport.get_extra_info("socket"),
            unacknowledged_timeout_ms=settings.unacknowledged_timeout_ms,
        )
