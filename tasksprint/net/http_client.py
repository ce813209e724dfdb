"""The HTTP/1.1 client: signed requests over kept connections, with deadlines.

It speaks to our own servers: it follows no redirects (the caller learns where the
leader is from the answer), decodes no encodings and keeps no cookies. All of our requests
may be repeated (they carry request numbers, or only read); so one that met a kept
connection that was just being closed is sent once more, on a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO, cast

import httptools

from tasksprint.errors import PeerUnreachable, RemoteProtocolError
from tasksprint.net.addresses import cause_of, parse_address, tune_socket
from tasksprint.net.deadlines import within
from tasksprint.net.http_messages import (
    BODY_DIGEST_HEADER,
    DIGEST_NAMED_BYTES,
    JSON_TYPE,
    HttpResponse,
    request_head,
    target_of,
)
from tasksprint.net.keys import EMPTY_DIGEST, STREAM_DIGEST, ClusterKey
from tasksprint.net.reading import BufferedReader, new_read_buffer
from tasksprint.settings import Settings

__all__ = ["HttpClient", "StreamedResponse"]

# Bigger bodies are written in slices, no faster than the other end reads.
_SLICE_BYTES = 256 * 1024
# Bodies of this size are hashed on a thread, so that the loop goes on.
_THREAD_HASH_BYTES = 1024 * 1024


class HttpClient:
    """Sends requests to any number of addresses.

    Args:
        key: Signs each request; None for a server without a gate.
    """

    def __init__(self, key: ClusterKey | None, settings: Settings) -> None:
        self._key = key
        self.settings = settings
        self.read_buffer = new_read_buffer()
        self._pool: dict[str, list[_Connection]] = {}  # unused ones; the last used is last
        self._in_use: set[_Connection] = set()
        self._closed = False

    async def request(
        self,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        body_bytes: int | None = None,
        content_type: str = JSON_TYPE,
        headers: Mapping[str, str] | None = None,
        wait_ms: int = 0,
        answer_timeout_ms: int | None = None,
        repeatable: bool = True,
    ) -> HttpResponse:
        """Send one request and return its whole answer, whatever the status.

        Args:
            path: Percent-encoded where it must be.
            body: An iterator is sent as a stream and signed without its digest.
            body_bytes: Size of a body that is an iterator; None: it is sent in chunks.
            wait_ms: How much longer than usual the answer may take (long polls).
            answer_timeout_ms: Instead of the setting of that name.
            repeatable: Whether doing it twice is doing it once.

        Raises:
            PeerUnreachable: There was no connection, no answer in time, or half of one.
            RemoteProtocolError: The answer isn't HTTP, or is too big.
        """
        connection = await self._exchange(
            address,
            method,
            target_of(path, query),
            body,
            body_bytes,
            content_type,
            headers,
            wait_ms=wait_ms,
            answer_timeout_ms=answer_timeout_ms,
            repeatable=repeatable,
            streams=False,
        )
        response = HttpResponse(connection.status, connection.headers, connection.take_body())
        self._release(connection)
        return response

    @contextlib.asynccontextmanager
    async def stream(
        self,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        wait_ms: int = 0,
        repeatable: bool = True,
    ) -> AsyncIterator[StreamedResponse]:
        """Send one request; the answer's body is read as it comes, while in the context.

        Leaving the context before the end of the body closes the connection.

        Raises:
            PeerUnreachable, RemoteProtocolError: As for `request`; later ones come from
                the answer's methods.
        """
        connection = await self._exchange(
            address,
            method,
            target_of(path, query),
            body,
            None,
            JSON_TYPE,
            headers,
            wait_ms=wait_ms,
            repeatable=repeatable,
            streams=True,
        )
        try:
            yield StreamedResponse(connection)
        finally:
            self._release(connection)

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._closed = True
        connections = [*self._in_use, *(c for unused in self._pool.values() for c in unused)]
        for connection in connections:
            connection.abort()
        while any(connection.is_open for connection in connections):
            await asyncio.sleep(0)

    async def _exchange(
        self,
        address: str,
        method: str,
        target: str,
        body: bytes | AsyncIterator[bytes],
        body_bytes: int | None,
        content_type: str,
        headers: Mapping[str, str] | None,
        *,
        wait_ms: int,
        repeatable: bool,
        streams: bool,
        answer_timeout_ms: int | None = None,
    ) -> _Connection:
        digest = EMPTY_DIGEST
        if not isinstance(body, bytes):
            digest = STREAM_DIGEST
            repeatable = False
        elif body:
            body_bytes = len(body)
            if self._key is not None:
                digest = await _digest_of(body)
                if body_bytes > DIGEST_NAMED_BYTES:
                    headers = {**(headers or {}), BODY_DIGEST_HEADER: digest}
        else:
            body_bytes = 0
        connection = self._take(address) if repeatable else None
        is_kept = connection is not None
        while True:
            if connection is None:
                connection = await self._connect(address)
            self._in_use.add(connection)
            try:
                # Signed for each try, and only now: a nonce counts once.
                authorization = ""
                if self._key is not None:
                    authorization = self._key.sign(method, target, address, body_digest=digest)
                head = request_head(
                    method,
                    target,
                    address,
                    authorization=authorization,
                    body_bytes=body_bytes,
                    content_type=content_type,
                    headers=headers,
                )
                await connection.exchange(
                    head,
                    body,
                    body_bytes,
                    method=method,
                    wait_ms=wait_ms,
                    answer_timeout_ms=answer_timeout_ms or self.settings.answer_timeout_ms,
                    streams=streams,
                )
                return connection
            except _NothingReceived:
                self._drop(connection)
                if not is_kept or self._closed:
                    raise
                # The other end had closed the kept connection before it read the request.
                connection, is_kept = None, False
            except BaseException:
                self._drop(connection)
                raise

    def _take(self, address: str) -> _Connection | None:
        unused = self._pool.get(address)
        if not unused:
            return None
        idle_s = self.settings.pooled_connection_idle_ms / 1000
        now = asyncio.get_running_loop().time()
        while unused:
            connection = unused.pop()
            if connection.is_open and now - connection.unused_since < idle_s:
                return connection
            connection.abort()
        return None

    async def _connect(self, address: str) -> _Connection:
        if self._closed:
            raise PeerUnreachable(f"cannot reach {address}: this process is closing")
        host, port = parse_address(address)
        loop = asyncio.get_running_loop()
        timeout_ms = self.settings.connect_timeout_ms
        try:
            _, connection = await within(
                timeout_ms / 1000,
                loop.create_connection(lambda: _Connection(self, address), host, port),
                discard=lambda made: made[0].abort(),
            )
        except asyncio.TimeoutError as error:  # (Another class than TimeoutError in 3.10.)
            raise PeerUnreachable(
                f"cannot reach {address}: no connection within {timeout_ms} ms"
            ) from error
        except OSError as error:
            raise PeerUnreachable(f"cannot reach {address}: {cause_of(error)}") from error
        return connection

    def _release(self, connection: _Connection) -> None:
        """Keep a connection for the next request, if its answer was read to the end."""
        self._in_use.discard(connection)
        if not connection.try_finish() or self._closed:
            connection.abort()
            return
        connection.unused_since = asyncio.get_running_loop().time()
        unused = self._pool.setdefault(connection.address, [])
        unused.append(connection)
        if len(unused) > self.settings.pooled_connections_max:
            unused.pop(0).abort()

    def _drop(self, connection: _Connection) -> None:
        self._in_use.discard(connection)
        connection.abort()

    def forget(self, connection: _Connection) -> None:
        """Take note that an unused connection was closed by the other end."""
        unused = self._pool.get(connection.address)
        if unused is not None and connection in unused:
            unused.remove(connection)
            if not unused:
                del self._pool[connection.address]


class StreamedResponse:
    """An answer whose body is still coming."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body, piece by piece; reading slowly slows the sender.

        Raises:
            PeerUnreachable: The rest doesn't come.
        """
        while True:
            chunk = await self._connection.read_chunk()
            if chunk is None:
                return
            yield chunk

    async def read(self) -> HttpResponse:
        """Return the whole answer; for the short ones, such as refusals."""
        limit = self._connection.settings.body_bytes_max
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise self._connection.too_big(limit)
            parts.append(chunk)
        return HttpResponse(self.status, self.headers, b"".join(parts))

    async def save(self, file: BinaryIO) -> int:
        """Write the body to a file and return its size; never holds more than a piece."""
        size = 0
        async for chunk in self.chunks():
            file.write(chunk)
            size += len(chunk)
        return size


class _NothingReceived(PeerUnreachable):
    """The connection ended before the first byte of an answer."""


class _Connection(BufferedReader):
    """One connection, and the request that is under way on it."""

    __slots__ = (
        "_answer_bytes",
        "_bytes_max",
        "_chunks",
        "_client",
        "_complete",
        "_deadline",
        "_drained",
        "_error",
        "_head_complete",
        "_is_head_request",
        "_is_paused",
        "_is_producing",
        "_keep_alive",
        "_loop",
        "_moved",
        "_parser",
        "_streams",
        "_timeout_ms",
        "_transport",
        "_under_way",
        "_wait_ms",
        "_waiter",
        "_written",
        "address",
        "headers",
        "is_open",
        "settings",
        "status",
        "unused_since",
    )

    def __init__(self, client: HttpClient, address: str) -> None:
        super().__init__(client.read_buffer)
        self._client = client
        self.settings = client.settings
        self.address = address
        self.unused_since = 0.0
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until made
        self._parser = httptools.HttpResponseParser(self)
        self._drained: asyncio.Future[None] | None = None  # set while the peer doesn't read
        self._is_paused = False
        self._under_way = False
        self._reset(streams=False, is_head_request=False)

    def _reset(self, *, streams: bool, is_head_request: bool) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._streams = streams
        self._is_head_request = is_head_request
        self._chunks: deque[bytes] = deque()
        self._answer_bytes = 0  # received, head and all
        self._head_complete = False
        self._complete = False
        self._keep_alive = True
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._is_producing = False  # Waiting for our own next piece, not for the peer.
        self._written = 0  # bytes of the body
        self._moved = 0
        self._wait_ms = 0
        self._timeout_ms = self.settings.answer_timeout_ms

    # --- asyncio's events ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self.settings.write_buffer_bytes_max)
        self.is_open = True
        # The peer may be gone already: the next read tells.
        with contextlib.suppress(OSError):
            tune_socket(
                transport.get_extra_info("socket"),
                unacknowledged_timeout_ms=self.settings.unacknowledged_timeout_ms,
            )

    def data_received(self, data: bytes) -> None:
        if not self._under_way or self._complete:
            self.abort()  # Nobody asked.
            return
        self._answer_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(RemoteProtocolError(f"{self.address} upgrades unasked"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__ or error
            self._fail(
                RemoteProtocolError(f"{self.address} answered what can't be taken: {cause!r}")
            )
        except httptools.HttpParserError as error:
            self._fail(
                RemoteProtocolError(f"{self.address} answered what is not HTTP/1.1: {error}")
            )
        limit = self.settings.head_bytes_max
        if not self._head_complete and self._answer_bytes > 2 * limit:
            self._fail(
                RemoteProtocolError(
                    f"the head of {self.address}'s answer has more than {limit} bytes "
                    "(head_bytes_max)"
                )
            )

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if not self._under_way:
            self._client.forget(self)
            return
        cause = f" ({cause_of(error)})" if isinstance(error, OSError) else ""
        if self._answer_bytes == 0:
            self._fail(
                _NothingReceived(
                    f"cannot reach {self.address}: it closed the connection without an "
                    f"answer{cause}"
                )
            )
        elif not self._complete:
            self._fail(
                PeerUnreachable(
                    f"cannot reach {self.address}: the connection closed in the middle of the "
                    f"answer{cause}"
                )
            )
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # --- httptools' events ---

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False  # Nobody asked for a second answer.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._head_complete = True
        self._keep_alive = self._parser.should_keep_alive()
        if self._is_head_request:
            # The parser would wait for the body that the head announces.
            self._parser = httptools.HttpResponseParser(self)
            self._complete = True
        if self._streams or self._complete:
            self._wake()

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        self._chunks.append(data)
        if self._streams:
            waiting = sum(len(chunk) for chunk in self._chunks)
            if waiting > self.settings.write_buffer_bytes_max and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
            self._wake()
        elif self._answer_bytes > self.settings.body_bytes_max + self.settings.head_bytes_max:
            self._fail(self.too_big(self.settings.body_bytes_max))

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self.status < 200:  # "100 Continue" comes before the answer.
            self.headers = {}
            return
        self._complete = True
        self._wake()

    # --- for the client ---

    def try_finish(self) -> bool:
        """End the exchange; return whether another request may follow on this connection."""
        if self._complete and not self._chunks:
            self._end()
        return self.is_open and self._keep_alive and not self._under_way

    async def exchange(
        self,
        head: bytes,
        body: bytes | AsyncIterator[bytes],
        body_bytes: int | None,
        *,
        method: str,
        wait_ms: int,
        answer_timeout_ms: int,
        streams: bool,
    ) -> None:
        """Send a request and wait for its answer, or with `streams` for the answer's head."""
        self._reset(streams=streams, is_head_request=method == "HEAD")
        self._under_way = True
        if not self.is_open:
            raise _NothingReceived(f"cannot reach {self.address}: it closed the connection")
        self._wait_ms = wait_ms
        self._timeout_ms = answer_timeout_ms
        if isinstance(body, bytes) and len(body) <= _SLICE_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._arm(answer_timeout_ms)
            self._transport.write(head)
            if isinstance(body, bytes):
                await self._send_slices(body)
            else:
                await self._send_stream(body, body_bytes)
            self._disarm()
        self._arm(wait_ms + answer_timeout_ms)
        while not (self._complete or (streams and self._head_complete)):
            await self._wait()
        if self._complete and not streams:
            self._end()

    async def read_chunk(self) -> bytes | None:
        """Return the next piece of the body; None at its end."""
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                if self._is_paused and len(self._chunks) < 2:
                    self._is_paused = False
                    self._transport.resume_reading()
                return chunk
            if self._complete:
                self._end()
                return None
            await self._wait()

    def take_body(self) -> bytes:
        """Return the whole body."""
        chunks, self._chunks = self._chunks, deque()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def too_big(self, limit: int) -> RemoteProtocolError:
        """Return the error for an answer with too many bytes."""
        return RemoteProtocolError(
            f"the answer of {self.address} has more than {limit} bytes (body_bytes_max)"
        )

    def abort(self) -> None:
        """Close at once."""
        self._disarm()
        if self.is_open:  # (A lost transport of asyncio can't be aborted again.)
            self._transport.abort()

    # --- inside ---

    async def _send_slices(self, body: bytes) -> None:
        view = memoryview(body)
        for start in range(0, len(body), _SLICE_BYTES):
            if self._head_complete:  # Refused before all was sent: the answer counts.
                self._keep_alive = False
                return
            await self._send_piece(view[start : start + _SLICE_BYTES])

    async def _send_stream(self, body: AsyncIterator[bytes], body_bytes: int | None) -> None:
        sent = 0
        self._is_producing = True
        async for chunk in body:
            self._is_producing = False
            if self._head_complete:
                self._keep_alive = False
                return
            if not chunk:
                continue
            sent += len(chunk)
            is_chunked = body_bytes is None
            await self._send_piece(
                b"%x\r\n" % len(chunk) + chunk + b"\r\n" if is_chunked else chunk
            )
            self._is_producing = True
        self._is_producing = False
        assert body_bytes is None or sent == body_bytes, f"{sent} of {body_bytes} bytes to send"
        if body_bytes is None:
            self._transport.write(b"0\r\n\r\n")

    async def _send_piece(self, piece: bytes | memoryview) -> None:
        self._transport.write(piece)
        self._written += len(piece)
        if self._drained is not None:
            await self._drained
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        # What was received before an error still counts.
        error = cast("Exception | None", self._error)
        if error is not None and not self._chunks:
            raise error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._keep_alive = False
        self._wake()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self.abort()

    def _end(self) -> None:
        self._under_way = False
        self._disarm()
        if self._transport.get_write_buffer_size():
            self._keep_alive = False  # Answered before all was sent.

    def _arm(self, timeout_ms: int) -> None:
        self._moved = self._count_moved()
        self._deadline = self._loop.call_later(timeout_ms / 1000, self._check_progress)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check_progress(self) -> None:
        """Fail if nothing moved since the last look; a slow transfer isn't a dead one."""
        timeout_ms = self._timeout_ms
        if self._is_paused or self._is_producing or self._count_moved() > self._moved:
            self._arm(timeout_ms)
            return
        what = "more of the answer" if self._answer_bytes else "answer"
        self._fail(
            PeerUnreachable(
                f"cannot reach {self.address}: no {what} within {timeout_ms + self._wait_ms} ms "
                "(answer_timeout_ms)"
            )
        )

    def _count_moved(self) -> int:
        """Return the bytes that the kernel took or gave; unread ones of ours don't count."""
        return self._answer_bytes + self._written - self._transport.get_write_buffer_size()


async def _digest_of(body: bytes) -> str:
    if len(body) < _THREAD_HASH_BYTES:
        return hashlib.sha256(body).hexdigest()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda: hashlib.sha256(body).hexdigest())
