"""One connection of the HTTP server: receives requests, answers them in order.

An `Exchange` judges each request; this module knows bytes, turns, pauses and the end. The
answer of a plain handler is written in the turn of the loop in which its request arrived. For
other handlers a task waits; it writes no faster than the peer reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial
from typing import Any, cast

import httptools

from tasksprint.errors import LocalProtocolError, ValueSpoiled
from tasksprint.net.addresses import format_address, tune_socket
from tasksprint.net.connections import Connections
from tasksprint.net.gate import Identity
from tasksprint.net.http_exchange import Exchange, Service, log
from tasksprint.net.http_messages import response_head, response_lines
from tasksprint.net.proofs import DIGEST, DIGEST_HEADER, FRAME_BYTES, FRAMES, LINE, WHOLE
from tasksprint.net.reading import BufferedReader
from tasksprint.net.router import Later, Response, Upgrade, error_response

__all__ = ["Connection"]

# Bigger bodies are written in slices, so that they aren't copied into the transport; proved
# ones of these in frames.
_SLICE_BYTES = FRAME_BYTES
# If a request is refused while it still arrives, the rest is read and dropped for so long. Else
# a reset could destroy the answer (RFC 9112, section 9.6).
_LINGER_S = 2.0
# More than browsers send; each costs more memory than it has bytes.
_HEADERS_MAX = 100
# Names of headers as our own processes spell them.
_USUAL_NAMES = {
    name.encode(): name.lower()
    for name in ("Host", "Authorization", "Content-Type", "Content-Length")
}
# Bytes that may wait for a stranger while it doesn't read.
_STRANGER_WRITE_BYTES = 4 * 1024


class Connection(BufferedReader):
    """One connection of a peer."""

    __slots__ = (
        "_barren_bytes",
        "_connections",
        "_current",
        "_drained",
        "_feed_bytes",
        "_feeding",
        "_head_bytes",
        "_head_is_split",
        "_header_count",
        "_headers",
        "_in_head",
        "_is_discarding",
        "_is_lost",
        "_is_stranger",
        "_linger",
        "_loop",
        "_out",
        "_parser",
        "_reading_paused",
        "_receiving",
        "_service",
        "_transport",
        "_upgrade",
        "_url",
        "_waiting",
        "moved_at",
        "peer",
        "stranger_since",
        "task",
    )

    def __init__(self, service: Service, connections: Connections) -> None:
        super().__init__(connections.stranger_read_buffer)
        self._service = service
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)  # None: the connection is lost
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until made
        self.peer = ""
        self.moved_at = self._loop.time()
        # Whether it has proved nothing, and since when it has got no answer.
        self._is_stranger = True
        self.stranger_since = self.moved_at
        self.task: asyncio.Task[None] | None = None  # of the exchange that is answered
        # The request that is being received:
        self._receiving: Exchange | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._in_head = False
        self._head_is_split = False
        self._head_bytes = 0  # of feeds that a head took, after its first
        self._barren_bytes = 0  # since the last piece of a body: trailers and the like
        self._header_count = 0
        self._feed_bytes = 0
        # The request that is answered, and those that wait for their turn:
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._is_lost = False
        self._is_discarding = False  # Input is not looked at any more.
        self._feeding = False
        self._out: list[bytes] = []  # Answers of one turn are written at once.
        self._reading_paused = False
        self._drained: asyncio.Future[None] | None = None  # set while the peer doesn't read
        self._upgrade: Upgrade | None = None
        self._linger: asyncio.TimerHandle | None = None  # set while it waits for its end

    # --- asyncio's events ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        try:
            self._begin(transport)
        except Exception as error:
            self._give_up("beginning with", error)

    def _begin(self, transport: asyncio.BaseTransport) -> None:
        settings = self._service.settings
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # A peer may be gone already: the next read tells.
            with contextlib.suppress(OSError):
                tune_socket(
                    connection, unacknowledged_timeout_ms=settings.unacknowledged_timeout_ms
                )
        name = transport.get_extra_info("peername")
        self.peer = format_address(name[0], name[1]) if isinstance(name, tuple) else "local"
        self._transport.set_write_buffer_limits(high=_STRANGER_WRITE_BYTES)
        has_room = self._connections.try_add(self)
        if self._service.is_closing:
            # As if it were closed already: an answer before the request can prove nothing.
            self._is_discarding = True
            self._transport.close()
        elif not has_room:
            self._is_discarding = True
            exchange = Exchange(self._service, self.peer, version="1.1", keep_alive=False)
            response = error_response(503, "too many connections", hint="try again later")
            self._write_bytes(exchange, response, cast(bytes, response.body))
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.remove(self)
        self._is_lost = True
        self._is_discarding = True
        self._waiting.clear()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._cancel()
        # The parser holds this object by its methods: without this they would keep each
        # other, and all that was received, until the collector comes by.
        self._receiving = None
        self._headers = {}
        self._parser = None
        if self._linger is not None:
            self._linger.cancel()

    def eof_received(self) -> bool:
        return False  # Close: an asker that hangs up wants no answer.

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()
        # No more requests while the peer doesn't read the answers. While one is answered reading
        # goes on, though: only so the end of the connection is seen.
        if self._current is None and not self._reading_paused:
            self._pause_reading()

    def resume_writing(self) -> None:
        self.moved_at = self._loop.time()
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
        if self._current is None and not self._waiting:
            self._resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_discarding:
            return
        self.moved_at = self._loop.time()
        try:
            self._take(data)
        except Exception as error:
            self._give_up("reading from", error)

    def _take(self, data: bytes) -> None:
        self._feeding = True
        self._feed_bytes = len(data)
        self._barren_bytes += len(data)
        self._head_is_split = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._leave_http(data[error.args[0] :])
        except httptools.HttpParserCallbackError as error:
            self._give_up("reading from", error.__context__ or error)
        except httptools.HttpParserError as error:
            if not self._is_discarding:
                self._refuse_rest(error_response(400, f"this is not HTTP/1.1: {error}"))
        if self._in_head or self._receiving is not None:
            self._bound_what_is_begun(len(data))
        self._feeding = False
        if self._out:
            self._flush()
        if self._waiting and not self._reading_paused:
            self._pause_reading()

    def _bound_what_is_begun(self, size: int) -> None:
        """Refuse a head that is too big, and too many bytes that are neither head nor body."""
        if self._is_discarding:
            return
        limit = self._service.settings.head_bytes_max
        if self._in_head and self._head_is_split:
            self._head_bytes += size
            if self._head_bytes > limit:
                self._in_head = False
                self._refuse_rest(self._service.head_too_big())
        elif self._barren_bytes > 2 * limit and self._receiving is not None:
            self._refuse_rest(error_response(400, "there is much beside the request's body"))

    # --- httptools' events ---

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._in_head = True
        self._head_is_split = False
        self._head_bytes = 0
        self._header_count = 0

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_discarding:
            return
        if not self._in_head:  # The gate has judged without it.
            self._refuse_rest(error_response(400, "headers behind a body aren't taken"))
            return
        self._header_count += 1
        if self._header_count > _HEADERS_MAX:
            self._refuse_rest(
                error_response(431, f"the request has more than {_HEADERS_MAX} headers")
            )
            return
        key = _USUAL_NAMES.get(name) or name.decode("latin-1").lower()
        if key in self._headers:
            # Repeated headers are one list (RFC 9110, section 5.2); a repeated Host or
            # Authorization so becomes one that nobody accepts.
            self._headers[key] += ", " + value.decode("latin-1")
        else:
            self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._barren_bytes = 0
        if self._is_discarding:
            return
        parser, headers = self._parser, self._headers
        wants_upgrade = parser.should_upgrade()
        self._receiving = exchange = Exchange(
            self._service,
            self.peer,
            version=parser.get_http_version(),
            keep_alive=parser.should_keep_alive() and not wants_upgrade,
        )
        exchange.judge(
            parser.get_method().decode("ascii"),
            self._url,
            headers,
            head_may_be_big=self._head_is_split
            or self._feed_bytes > self._service.settings.head_bytes_max,
            bound=self._bound,
        )
        if self._is_stranger:
            self._look_who_it_is(exchange)
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        if wants_upgrade and exchange.refusal is None:
            self._judge_upgrade(exchange, has_body=has_body)
        if exchange.refusal is not None:
            if has_body:
                self._refuse_rest(exchange.refusal)  # Without reading its body.
            return
        # While another answer is due, the peer sends its body unasked, a while later.
        if "expect" in headers and self._current is None:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        exchange = self._receiving
        if self._is_discarding or exchange is None:
            return
        self._barren_bytes = 0
        exchange.take(data)
        if exchange.refusal is not None:
            self._refuse_rest(exchange.refusal)

    def on_message_complete(self) -> None:
        if self._is_discarding or self._receiving is None:
            return
        exchange, self._receiving = self._receiving, None
        exchange.complete()
        self._enqueue(exchange)

    # --- receiving ---

    def _judge_upgrade(self, exchange: Exchange, *, has_body: bool) -> None:
        assert exchange.route is not None
        if has_body:
            # The parser takes a body for the bytes of the other protocol.
            exchange.refusal = error_response(400, "a request to upgrade can't have a body")
        elif exchange.route.upgrade is not None and (self._current or self._waiting):
            exchange.refusal = error_response(
                400, "a request to upgrade can't follow others unanswered"
            )

    def _bound(self) -> tuple[str, int]:
        name = self._transport.get_extra_info("sockname")
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)

    def _refuse_rest(self, response: Response) -> None:
        """Answer the incoming request with a refusal, and look at nothing after it."""
        exchange = self._receiving or Exchange(
            self._service, self.peer, version="1.1", keep_alive=False
        )
        self._receiving = None
        self._is_discarding = True
        exchange.keep_alive = False
        exchange.refusal = response
        self._enqueue(exchange)

    def _look_who_it_is(self, exchange: Exchange) -> None:
        """Give a connection its full share once a request on it has proved something."""
        request = exchange.request
        if request is not None and request.identity is not Identity.ANYONE:
            self._is_stranger = False
            self._connections.proved(self)
            self._read_buffer = self._connections.read_buffer
            high = self._service.settings.write_buffer_bytes_max
            self._transport.set_write_buffer_limits(high=high)

    def _enqueue(self, exchange: Exchange) -> None:
        if self._current is None and not self._waiting:
            self._start(exchange)
        else:
            self._waiting.append(exchange)

    def _pause_reading(self) -> None:
        self._reading_paused = True
        self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    # --- answering ---

    def _start(self, exchange: Exchange) -> None:
        """Answer one exchange; at once if its handler can."""
        self._current = exchange
        answer = exchange.ask(may_upgrade=self._parser.should_upgrade())
        if self._is_stranger:
            self._look_who_it_is(exchange)
        if type(answer) is Response and type(answer.body) is bytes:
            if len(answer.body) <= _SLICE_BYTES:
                self._write_bytes(exchange, answer, answer.body)
                self._finish(exchange)
                return
        elif type(answer) is Upgrade:
            self._upgrade = answer  # Follows when the parser says where HTTP ends.
            return
        elif type(answer) is Later:
            if answer.response is None:
                answer.wait(partial(self._answered, exchange))
            else:
                self._answer(exchange, answer.response)
            return
        self.task = self._loop.create_task(self._run(exchange, answer))

    def _answered(self, exchange: Exchange, response: Response) -> None:
        """Write an answer that was not there when it was asked for."""
        if self._transport.is_closing():
            return
        try:
            self._feeding = True  # First all is put together, then it is written.
            self._answer(exchange, response)
            self._feeding = False
            if self._waiting:
                self._next()
            else:
                self._flush()
        except Exception as error:  # No affair of this answer's receiver.
            self._give_up("answering", error)

    def _answer(self, exchange: Exchange, response: Response) -> None:
        assert isinstance(response.body, bytes), "a later answer is bytes"
        self._write_bytes(exchange, response, response.body)
        self._finish(exchange)

    async def _run(
        self, exchange: Exchange, answer: Response | Upgrade | Later | Awaitable[Response]
    ) -> None:
        """Wait for a handler, write its answer no faster than the peer reads."""
        try:
            if not isinstance(answer, (Response, Upgrade, Later)):
                try:
                    answer = await answer
                except Exception as error:
                    answer = exchange.answer_to(error)
            if not isinstance(answer, Response):
                raise LocalProtocolError(f"a handler returned {answer!r}, expected a Response")
            body = answer.body
            if isinstance(body, bytes) and len(body) <= _SLICE_BYTES:
                self._write_bytes(exchange, answer, body)
                self._flush()
                await self._drain()
            elif isinstance(body, bytes):
                answer.body_bytes = len(body)
                await self._write_stream(exchange, answer, _slices(body), whole=body)
            else:
                await self._write_stream(exchange, answer, body)
        except asyncio.CancelledError:
            # The connection is gone, or the server closes; there is nobody to tell.
            self.task = None
            self.abort()
            raise
        except ValueSpoiled as error:
            log.warning("answering %s ended early: %s", self.peer, error)
            self.task = None
            self.abort()
        except Exception as error:
            # Part of the answer may be out: only the end of the connection says so.
            self.task = None
            self._give_up("answering", error)
        self.task = None
        if not self._transport.is_closing():
            try:
                self._finish(exchange)
            except Exception as error:
                self._give_up("answering", error)

    def _finish(self, exchange: Exchange) -> None:
        """Close after an answer, or go on with the next request that waits."""
        self._current = None
        self.stranger_since = self.moved_at
        if not self._keeps(exchange):
            self._close_gently()
        elif self._waiting and not self._feeding:
            self._next()
        elif self._reading_paused:
            self._resume_reading()

    def _next(self) -> None:
        self._feeding = True  # Answers of this turn are written at once.
        while self._waiting and self._current is None and not self._transport.is_closing():
            self._start(self._waiting.popleft())
        self._feeding = False
        if self._out:
            self._flush()
        if not self._waiting and self._current is None:
            self._resume_reading()

    def _keeps(self, exchange: Exchange) -> bool:
        return exchange.keep_alive and not self._service.is_closing

    def _connection_header(self, exchange: Exchange) -> str:
        if not self._keeps(exchange):
            return "close"
        return "keep-alive" if exchange.version == "1.0" else ""

    def _write_bytes(self, exchange: Exchange, response: Response, body: bytes) -> None:
        size = len(body)
        headers, kind = response.headers, WHOLE
        if exchange.is_head_only:
            size = response.body_bytes or size
            body = b""
        elif response.covers_line:
            kind = LINE
        elif response.digest is not None:
            kind, headers = DIGEST, {**(headers or {}), DIGEST_HEADER: response.digest}
        lines = response_lines(
            response.status,
            content_type=response.content_type if size else "",
            body_bytes=size,
            headers=headers,
        )
        head = response_head(
            response.status,
            lines,
            proof=exchange.prove(kind, response.status, lines, body),
            connection=self._connection_header(exchange),
        )
        self._write(head + body)

    async def _write_stream(
        self,
        exchange: Exchange,
        response: Response,
        body: AsyncIterator[bytes],
        *,
        whole: bytes = b"",
    ) -> None:
        """Write an answer whose body comes in pieces.

        Args:
            whole: The body of which they are pieces, if it is there.
        """
        size, headers = response.body_bytes, response.headers
        kind = FRAMES
        if exchange.is_head_only:
            kind, whole = WHOLE, b""
        elif response.covers_line:
            kind = LINE
        elif response.digest is not None:
            kind, headers = DIGEST, {**(headers or {}), DIGEST_HEADER: response.digest}
        is_framed = kind == FRAMES and exchange.is_signed
        if is_framed:
            size = None  # The frames have more bytes than the body.
        is_chunked = size is None and exchange.version == "1.1"
        if size is None and not is_chunked:
            exchange.keep_alive = False  # HTTP/1.0 knows the end by the connection's.
        lines = response_lines(
            response.status,
            content_type=response.content_type,
            body_bytes=size,
            headers=headers,
        )
        self._write(
            response_head(
                response.status,
                lines,
                proof=exchange.prove(kind, response.status, lines, whole),
                connection=self._connection_header(exchange),
                is_chunked=is_chunked,
            )
        )
        self._flush()
        try:
            if not exchange.is_head_only:
                await self._write_pieces(
                    exchange, body, response.body_bytes, is_framed=is_framed, is_chunked=is_chunked
                )
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    async def _write_pieces(
        self,
        exchange: Exchange,
        body: AsyncIterator[bytes],
        size: int | None,
        *,
        is_framed: bool,
        is_chunked: bool,
    ) -> None:
        written = 0
        framer = exchange.frame_writer() if is_framed else None
        async for piece in body:
            if not piece:
                continue
            written += len(piece)
            if size is not None and written > size:
                break
            self._write_piece([piece] if framer is None else framer.frames(piece), is_chunked)
            await self._drain()
        if size is not None and written != size:
            raise LocalProtocolError(f"a body announced {size} bytes and had {written} or more")
        if framer is not None:
            self._write_piece([framer.end()], is_chunked)
        if is_chunked:
            self._transport.write(b"0\r\n\r\n")
        await self._drain()

    def _write_piece(self, parts: Sequence[bytes | memoryview], is_chunked: bool) -> None:
        if is_chunked:
            size = sum([len(part) for part in parts])
            parts = [b"%x\r\n" % size, *parts, b"\r\n"]
        if len(parts) > 1:
            self._transport.write(b"".join(parts))
        else:
            self._transport.write(parts[0])

    async def _drain(self) -> None:
        if self._drained is not None:
            await self._drained
        if self._transport.is_closing():
            raise asyncio.CancelledError
        self.moved_at = self._loop.time()

    def _write(self, data: bytes) -> None:
        if self._feeding:
            self._out.append(data)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._out:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()

    # --- leaving ---

    def _leave_http(self, rest: bytes) -> None:
        """Hand the connection to the protocol that the handler chose."""
        upgrade, self._upgrade = self._upgrade, None
        if upgrade is None:
            self._is_discarding = True  # It closes after the answer, which is a refusal.
            return
        self._flush()
        headers = {"Upgrade": upgrade.protocol_name, **upgrade.headers}
        lines = response_lines(101, body_bytes=None, headers=headers)
        exchange = self._current
        proof = "" if exchange is None else exchange.prove(WHOLE, 101, lines, b"")
        self._transport.write(response_head(101, lines, proof=proof, connection="Upgrade"))
        self._connections.remove(self)
        self._connections.keep_upgraded(self._transport)
        self._is_discarding = True
        protocol = upgrade.make_protocol()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

    def _close_gently(self) -> None:
        is_sending = self._is_discarding or self._receiving is not None
        self._waiting.clear()
        self._is_discarding = True
        self._flush()
        if is_sending:
            # The peer is still sending: let it read the answer before the end.
            if not self._transport.get_write_buffer_size():
                try:
                    self._transport.write_eof()
                except OSError:  # It has reset the connection: there is nobody to read.
                    self.abort()
                    return
            self._resume_reading()
            self._linger = self._loop.call_later(_LINGER_S, self.abort)
        else:
            self._transport.close()

    def is_stuck(self, now: float) -> bool:
        """Whether it is the peer that must move, and didn't for too long."""
        if now - self.moved_at <= self._service.settings.connection_idle_ms / 1000:
            return False
        if self._current is None or self._drained is not None:
            return True
        return self._receiving is not None and not self._reading_paused

    def close_when_idle(self) -> None:
        """Close now, or after the answer that is under way."""
        if self._current is None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._cancel()
        if not self._is_lost:  # (A lost transport of asyncio can't be aborted again.)
            self._transport.abort()

    def _give_up(self, what: str, error: BaseException) -> None:
        """End this connection, and nothing else, by a bug that was met in it."""
        self._service.bugs.tell(f"{what} {self.peer}", error)
        self._is_discarding = True
        self._in_head = self._feeding = False
        self._out.clear()
        self.abort()

    def _cancel(self) -> None:
        if self.task is not None:
            # Soon, not now: a task that never began would leave its handler's coroutine
            # behind unawaited.
            self._loop.call_soon(self.task.cancel)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), _SLICE_BYTES):
        yield cast(bytes, view[start : start + _SLICE_BYTES])
