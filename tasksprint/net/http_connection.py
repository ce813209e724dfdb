"""One connection of the HTTP server: receives requests, answers them in order.

What happens to a request: its head is judged (route, gate, sizes), then its body is
read, its signature is checked with the body's digest, and its handler is asked. Each stage
may refuse it; the refusal is answered in the request's turn, like any answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import httptools

from tasksprint.encoding import decode_json
from tasksprint.errors import (
    LocalProtocolError,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    TaskSprintError,
    UsageError,
)
from tasksprint.net.addresses import format_address, tune_socket
from tasksprint.net.gate import Access, Claim, CountedWarnings, Gate, Identity
from tasksprint.net.http_body import BodyFeeder
from tasksprint.net.http_messages import BODY_DIGEST_HEADER, parse_query, response_head
from tasksprint.net.keys import EMPTY_DIGEST, STREAM_DIGEST
from tasksprint.net.router import Request, Response, Route, Router, Upgrade, error_response
from tasksprint.settings import Settings

__all__ = ["Connection", "Service"]

log = logging.getLogger(__name__)

# Bigger bodies are written in slices, so that they aren't copied into the transport.
_SLICE_BYTES = 256 * 1024
# After a refusal whose request is still arriving: read on for so long, unseen, so that
# the answer isn't destroyed by a reset (RFC 9112, section 9.6).
_LINGER_S = 2.0
_CHUNKED = {"Transfer-Encoding": "chunked"}


class Service:
    """What all connections of one server share."""

    def __init__(
        self,
        router: Router,
        gate: Gate | None,
        settings: Settings,
        on_bug: Callable[[BaseException], None] | None,
    ) -> None:
        self.router = router
        self.gate = gate
        self.settings = settings
        self.on_bug = on_bug
        self.connections: set[Connection] = set()
        self.upgraded: set[asyncio.Transport] = set()  # left HTTP; closed with the server
        self.warnings = CountedWarnings(log)
        self.is_closing = False  # Connections end after the answer that they owe.

    def tell_bug(self, what: str, error: BaseException) -> None:
        """Log an exception that should never have been raised, and tell the role."""
        log.error("%s failed", what, exc_info=error)
        if self.on_bug is not None:
            self.on_bug(error)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of the answers under way."""
        return [connection.task for connection in self.connections if connection.task]

    def keep_upgraded(self, transport: asyncio.Transport) -> None:
        """Remember a connection that left HTTP."""
        self.upgraded = {known for known in self.upgraded if not known.is_closing()}
        self.upgraded.add(transport)


class _Exchange:
    """One request under way, and what became of it at each stage."""

    __slots__ = (
        "body_digest",
        "claim",
        "declared_digest",
        "feeder",
        "keep_alive",
        "refusal",
        "request",
        "route",
        "version",
    )

    def __init__(self) -> None:
        self.request: Request | None = None
        self.route: Route | None = None
        self.claim: Claim | None = None
        self.refusal: Response | None = None  # Decided before the handler was asked.
        self.keep_alive = True
        self.version = "1.1"
        self.declared_digest: str | None = None
        self.body_digest = EMPTY_DIGEST
        self.feeder: BodyFeeder | None = None


class Connection(asyncio.Protocol):
    """One connection of a peer."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_bytes_max",
        "_body_hash",
        "_body_parts",
        "_current",
        "_drained",
        "_feed_bytes",
        "_feeding",
        "_head_bytes",
        "_head_is_split",
        "_headers",
        "_in_head",
        "_is_discarding",
        "_is_lost",
        "_loop",
        "_out",
        "_parser",
        "_peer",
        "_reading_paused",
        "_receiving",
        "_service",
        "_transport",
        "_upgrade",
        "_url",
        "_waiting",
        "moved_at",
        "task",
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until made
        self._peer = ""
        self.moved_at = self._loop.time()
        self.task: asyncio.Task[None] | None = None  # of the exchange that is answered
        # The request that is being received:
        self._receiving: _Exchange | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._in_head = False
        self._head_is_split = False
        self._head_bytes = 0  # of feeds that a head took, after its first
        self._feed_bytes = 0
        self._body = b""
        self._body_parts: list[bytes] | None = None
        self._body_hash: Any = None
        self._body_bytes = 0
        self._body_bytes_max = 0
        # What is answered, and what waits for its turn:
        self._current: _Exchange | None = None
        self._waiting: deque[_Exchange] = deque()
        self._is_lost = False
        self._is_discarding = False  # What comes in is not looked at any more.
        self._feeding = False
        self._out: list[bytes] = []  # Answers of one turn are written at once.
        self._reading_paused = False
        self._drained: asyncio.Future[None] | None = None  # set while the peer doesn't read
        self._upgrade: Upgrade | None = None

    # --- asyncio's events ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = self._service.settings
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # A peer may be gone already: the next read tells.
            with contextlib.suppress(OSError):
                tune_socket(
                    connection, unacknowledged_timeout_ms=settings.unacknowledged_timeout_ms
                )
        name = transport.get_extra_info("peername")
        self._peer = format_address(name[0], name[1]) if isinstance(name, tuple) else "local"
        self._transport.set_write_buffer_limits(high=settings.write_buffer_bytes_max)
        self._service.connections.add(self)
        if self._service.is_closing or len(self._service.connections) > settings.connections_max:
            self._is_discarding = True
            self._service.warnings.warn("full", f"peer={self._peer} refused: too many connections")
            response = error_response(503, "too many connections", hint="try again later")
            self._write_bytes(response, cast(bytes, response.body), keep_alive=False)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._service.connections.discard(self)
        self._is_lost = True
        self._is_discarding = True
        self._waiting.clear()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._receiving is not None and self._receiving.feeder is not None:
            self._receiving.feeder.fail(PeerUnreachable(f"{self._peer} closed the connection"))
        self._cancel()

    def eof_received(self) -> bool:
        return False  # Close: who asks and hangs up wants no answer.

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()
        # No more requests for who doesn't read the answers. While one is answered reading
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
        self._feeding = True
        self._feed_bytes = len(data)
        self._head_is_split = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._leave_http(data[error.args[0] :])
        except httptools.HttpParserCallbackError as error:
            self._service.tell_bug(f"reading from {self._peer}", error.__context__ or error)
            self.abort()
        except httptools.HttpParserError as error:
            if not self._is_discarding:
                self._refuse_rest(error_response(400, f"this is not HTTP/1.1: {error}"))
        if self._in_head and self._head_is_split:
            self._head_bytes += len(data)
            if self._head_bytes > self._service.settings.head_bytes_max:
                self._in_head = False
                self._refuse_rest(self._head_too_big())
        self._feeding = False
        if self._out:
            self._flush()
        if self._waiting and not self._reading_paused:
            self._pause_reading()

    # --- httptools' events ---

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._in_head = True
        self._head_is_split = False
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        if key in self._headers:
            # Repeated headers are one list (RFC 9110, section 5.2); a repeated Host or
            # Authorization so becomes one that nobody accepts.
            self._headers[key] += ", " + value.decode("latin-1")
        else:
            self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._is_discarding:
            return
        exchange = _Exchange()
        parser = self._parser
        self._receiving = exchange
        exchange.keep_alive = parser.should_keep_alive() and not parser.should_upgrade()
        exchange.version = parser.get_http_version()
        self._body = b""
        self._body_parts = None
        self._body_bytes = 0
        try:
            self._open_exchange(exchange)
        except Refused as refusal:
            exchange.refusal = self._answer_to(exchange, refusal)
        except UnicodeDecodeError:
            exchange.refusal = error_response(400, "the path is not ASCII")
        headers = self._headers
        if exchange.refusal is not None:
            if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
                self._refuse_rest(exchange.refusal)  # Without reading its body.
            return
        # While another answer is due, the peer sends its body unasked, a while later.
        if "expect" in headers and self._current is None:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if exchange.feeder is not None:
            self._enqueue(exchange)

    def on_body(self, data: bytes) -> None:
        if self._is_discarding or self._receiving is None:
            return
        exchange = self._receiving
        self._body_bytes += len(data)
        if self._body_bytes > self._body_bytes_max:
            self._refuse_rest(self._answer_to(exchange, self._body_too_big(exchange)))
            return
        if exchange.feeder is not None:
            exchange.feeder.feed(data)
        elif not self._body:
            self._body = data
        else:
            # The digest grows with the body: hashing 64 MiB at the end would hold up
            # every other connection.
            if self._body_parts is None:
                self._body_parts = [self._body]
                self._body_hash = hashlib.sha256(self._body)
            self._body_parts.append(data)
            self._body_hash.update(data)

    def on_message_complete(self) -> None:
        if self._is_discarding or self._receiving is None:
            return
        exchange, self._receiving = self._receiving, None
        if exchange.feeder is not None:
            exchange.feeder.end()
            return
        request = exchange.request
        if request is not None:
            if self._body_parts is not None:
                request.body = b"".join(self._body_parts)
                exchange.body_digest = self._body_hash.hexdigest()
                self._body_parts = self._body_hash = None
            elif self._body:
                request.body = self._body
                if exchange.claim is not None or exchange.declared_digest is not None:
                    exchange.body_digest = hashlib.sha256(self._body).hexdigest()
            self._body = b""
        self._enqueue(exchange)

    # --- receiving ---

    def _open_exchange(self, exchange: _Exchange) -> None:
        """Judge a head. Refused: the request is refused without its body."""
        service = self._service
        settings = service.settings
        method = self._parser.get_method().decode("ascii")
        target = self._url.decode("ascii")
        headers = self._headers
        path, _, query_text = target.partition("?")
        query = parse_query(query_text) if query_text else {}
        # A stand-in until the route is known: refusals are logged with the path.
        request = Request(method, path, query, headers, b"", self._peer, Identity.ANYONE, {})
        exchange.request = request
        if self._head_is_split or self._feed_bytes > settings.head_bytes_max:
            size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers.items())
            if size > settings.head_bytes_max:
                exchange.refusal = self._head_too_big()
                exchange.keep_alive = False
                return
        if not path.startswith("/"):
            raise Refused(f"the request's path {path!r} doesn't begin with '/'", status=400)
        route: Route | None
        if service.gate is None:
            route, request.segments = service.router.find(method, path)
            request.identity = Identity.CLUSTER
        else:
            # Who was called by a wrong name, or has no key, learns no paths.
            try:
                route, request.segments = service.router.find(method, path)
                access, unknown = route.access, None
            except Refused as refusal:
                route, access, unknown = None, Access.KEY, refusal
            admitted = service.gate.admit(
                method, target, headers, query, access=access, bound_host=self._bound_host
            )
            if unknown is not None:
                raise unknown
            if type(admitted) is Identity:
                request.identity = admitted
            else:
                exchange.claim = cast(Claim, admitted)
        assert route is not None
        exchange.route = route
        if self._parser.should_upgrade():
            has_body = "content-length" in headers or "transfer-encoding" in headers
            if has_body and headers.get("content-length") != "0":
                raise Refused("a request to upgrade can't have a body", status=400)
            if route.upgrade is not None and (self._current is not None or self._waiting):
                raise Refused("a request to upgrade can't follow others unanswered", status=400)
        self._open_body(exchange, route, request)

    def _open_body(self, exchange: _Exchange, route: Route, request: Request) -> None:
        settings = self._service.settings
        headers = request.headers
        limit = route.body_bytes_max
        self._body_bytes_max = settings.body_bytes_max if limit is None else limit
        length_text = headers.get("content-length")
        is_chunked = "transfer-encoding" in headers
        if length_text is None and not is_chunked and not route.streams_body:
            return
        if length_text is not None and int(length_text) > self._body_bytes_max:
            raise self._body_too_big(exchange)
        claim = exchange.claim
        if route.streams_body:
            if claim is not None:
                self._verify(exchange, claim, STREAM_DIGEST)
            exchange.feeder = BodyFeeder(
                buffer_bytes_max=settings.write_buffer_bytes_max,
                hold=self._hold_reading,
                go_on=self._go_on_reading,
            )
            request.stream = exchange.feeder
        elif claim is not None:
            declared = headers.get(BODY_DIGEST_HEADER)
            if declared is not None:
                self._verify(exchange, claim, declared)
                exchange.declared_digest = declared
            elif is_chunked or int(length_text or 0) > settings.unproven_body_bytes_max:
                self._body_bytes_max = min(self._body_bytes_max, settings.unproven_body_bytes_max)
                if not is_chunked:
                    raise Refused(
                        f"a body of {length_text} bytes must name its digest in its head",
                        status=401,
                        hint=f"send the header {BODY_DIGEST_HEADER}: <SHA-256 in hex> with bodies "
                        f"of more than {settings.unproven_body_bytes_max} bytes",
                    )

    def _verify(self, exchange: _Exchange, claim: Claim, digest: str) -> None:
        assert self._service.gate is not None and exchange.request is not None
        exchange.request.identity = self._service.gate.verify(claim, digest)
        exchange.claim = None

    def _bound_host(self) -> str:
        name = self._transport.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    def _body_too_big(self, exchange: _Exchange) -> Refused:
        path = exchange.request.path if exchange.request else ""
        return Refused(
            f"the body has more than {self._body_bytes_max} bytes, the most for {path!r}",
            status=413,
        )

    def _head_too_big(self) -> Response:
        return error_response(
            431,
            f"the head of the request has more than {self._service.settings.head_bytes_max} bytes "
            "(head_bytes_max)",
        )

    def _refuse_rest(self, response: Response) -> None:
        """Answer what is being received with a refusal, and look at nothing after it."""
        exchange = self._receiving or _Exchange()
        self._receiving = None
        self._is_discarding = True
        exchange.keep_alive = False
        if exchange.feeder is not None:  # Its handler is at work: let it answer.
            text = decode_json(cast(bytes, response.body))["error"]
            exchange.feeder.fail(Refused(text, status=response.status))
        else:
            exchange.refusal = response
            self._enqueue(exchange)

    def _enqueue(self, exchange: _Exchange) -> None:
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

    def _start(self, exchange: _Exchange) -> None:
        """Answer one exchange; at once if its handler can."""
        self._current = exchange
        answer = exchange.refusal or self._ask(exchange)
        if type(answer) is Response and type(answer.body) is bytes:
            if len(answer.body) <= _SLICE_BYTES:
                self._write_bytes(answer, answer.body, keep_alive=self._keeps(exchange))
                self._finish(exchange)
                return
        elif type(answer) is Upgrade:
            self._upgrade = answer  # Follows when the parser says where HTTP ends.
            return
        self.task = self._loop.create_task(self._run(exchange, answer))

    def _ask(self, exchange: _Exchange) -> Response | Upgrade | Awaitable[Response]:
        request, route = exchange.request, exchange.route
        assert request is not None and route is not None
        try:
            if exchange.claim is not None:
                self._verify(exchange, exchange.claim, exchange.body_digest)
            elif exchange.declared_digest not in (None, exchange.body_digest):
                raise Refused(
                    f"the body's digest is {exchange.body_digest}, the head named "
                    f"{exchange.declared_digest}",
                    status=400,
                )
            answer = route.handler(request)
            if type(answer) is Upgrade and not self._parser.should_upgrade():
                return error_response(
                    426,
                    f"{request.path!r} speaks {answer.protocol_name} only",
                    hint="send Connection: upgrade",
                )
            return answer
        except Exception as error:
            return self._answer_to(exchange, error)

    async def _run(
        self, exchange: _Exchange, answer: Response | Upgrade | Awaitable[Response]
    ) -> None:
        """Wait for a handler, write its answer no faster than the peer reads."""
        try:
            if not isinstance(answer, (Response, Upgrade)):
                try:
                    answer = await answer
                except Exception as error:
                    answer = self._answer_to(exchange, error)
            if not isinstance(answer, Response):
                raise LocalProtocolError(f"a handler returned {answer!r}, expected a Response")
            body = answer.body
            if isinstance(body, bytes) and len(body) <= _SLICE_BYTES:
                self._write_bytes(answer, body, keep_alive=self._keeps(exchange))
                self._flush()
                await self._drain()
            elif isinstance(body, bytes):
                answer.body_bytes = len(body)
                await self._write_stream(exchange, answer, _slices(body))
            else:
                await self._write_stream(exchange, answer, body)
        except asyncio.CancelledError:
            # The connection is gone, or the server closes; there is nobody to tell.
            self.task = None
            self.abort()
            raise
        except Exception as error:
            # Part of the answer may be out: only the end of the connection says so.
            self._service.tell_bug(f"answering {self._peer}", error)
            self.task = None
            self.abort()
        self.task = None
        if not self._transport.is_closing():
            self._finish(exchange)

    def _finish(self, exchange: _Exchange) -> None:
        """Close after an answer, or go on with the next request that waits."""
        self._current = None
        if not exchange.keep_alive or self._service.is_closing or self._is_unread(exchange):
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

    def _keeps(self, exchange: _Exchange) -> bool:
        return (
            exchange.keep_alive and not self._service.is_closing and not self._is_unread(exchange)
        )

    def _is_unread(self, exchange: _Exchange) -> bool:
        """Whether a handler left a part of the body that streams in."""
        return exchange.feeder is not None and not exchange.feeder.is_complete

    def _write_bytes(self, response: Response, body: bytes, *, keep_alive: bool) -> None:
        exchange = self._current
        size = len(body)
        if exchange is not None and exchange.request and exchange.request.method == "HEAD":
            size = response.body_bytes or size
            body = b""
        head = response_head(
            response.status,
            content_type=response.content_type if size else "",
            body_bytes=size,
            headers=response.headers,
            connection=_connection(exchange, keep_alive),
        )
        self._write(head + body)

    async def _write_stream(
        self, exchange: _Exchange, response: Response, body: AsyncIterator[bytes]
    ) -> None:
        request = exchange.request
        size = response.body_bytes
        is_chunked = size is None and exchange.version == "1.1"
        if size is None and not is_chunked:
            exchange.keep_alive = False  # HTTP/1.0 knows the end by the connection's.
        headers = {**(response.headers or {}), **(_CHUNKED if is_chunked else {})}
        self._write(
            response_head(
                response.status,
                content_type=response.content_type,
                body_bytes=size,
                headers=headers,
                connection=_connection(exchange, self._keeps(exchange)),
            )
        )
        self._flush()
        try:
            if request is None or request.method != "HEAD":
                await self._write_chunks(body, size, is_chunked)
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    async def _write_chunks(
        self, body: AsyncIterator[bytes], size: int | None, is_chunked: bool
    ) -> None:
        written = 0
        async for chunk in body:
            if not chunk:
                continue
            written += len(chunk)
            if size is not None and written > size:
                break
            if is_chunked:
                self._transport.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
            else:
                self._transport.write(chunk)
            await self._drain()
        if size is not None and written != size:
            raise LocalProtocolError(f"a body announced {size} bytes and had {written} or more")
        if is_chunked:
            self._transport.write(b"0\r\n\r\n")
        await self._drain()

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

    def _answer_to(self, exchange: _Exchange, error: Exception) -> Response:
        """Return the answer for what a handler or the gate raised; log what must be."""
        request = exchange.request
        method, path = (request.method, request.path) if request else ("?", "?")
        if not isinstance(error, TaskSprintError) or isinstance(error, LocalProtocolError):
            self._service.tell_bug(f"{method} {path!r} of {self._peer}", error)
            return error_response(
                500,
                f"a bug in this process: {type(error).__name__}",
                hint="its log has the details",
            )
        status = 500
        if isinstance(error, Refused):
            status = error.status or 403
            if status in (401, 403) and self._service.gate is not None:
                self._service.gate.report(self._peer.rpartition(":")[0], method, path, error)
        elif isinstance(error, (RemoteProtocolError, UsageError)):
            status = 400
        elif isinstance(error, PeerUnreachable):
            status = 503
        else:
            log.error("%s %r of %s failed: %s", method, path, self._peer, error)
        response = error_response(status, str(error.args[0]), hint=error.hint)
        if status == 405:
            response.headers = {"Allow": self._service.router.allowed(path)}
        return response

    # --- leaving ---

    def _leave_http(self, rest: bytes) -> None:
        """Hand the connection to the protocol that the handler chose."""
        upgrade, self._upgrade = self._upgrade, None
        if upgrade is None:
            self._is_discarding = True  # It closes after the answer, which is a refusal.
            return
        self._flush()
        self._transport.write(
            response_head(
                101,
                body_bytes=None,
                headers={"Upgrade": upgrade.protocol_name, **upgrade.headers},
                connection="Upgrade",
            )
        )
        self._service.connections.discard(self)
        self._service.keep_upgraded(self._transport)
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
        if is_sending and self._transport.can_write_eof():
            # The peer is still sending: let it read the answer before the end.
            self._transport.write_eof()
            self._resume_reading()
            self._loop.call_later(_LINGER_S, self.abort)
        else:
            self._transport.close()

    def is_stuck(self) -> bool:
        """Whether it is the peer that must move."""
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

    def _cancel(self) -> None:
        if self.task is not None:
            # Soon, not now: a task that never began would leave its handler's coroutine
            # behind unawaited.
            self._loop.call_soon(self.task.cancel)

    # --- for the body's feeder ---

    def _hold_reading(self) -> None:
        """Stop reading: the handler has enough of the body in hand."""
        if not self._reading_paused:
            self._pause_reading()

    def _go_on_reading(self) -> None:
        """Read on: the handler wants more of the body."""
        self.moved_at = self._loop.time()
        self._resume_reading()


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), _SLICE_BYTES):
        yield cast(bytes, view[start : start + _SLICE_BYTES])


def _connection(exchange: _Exchange | None, keep_alive: bool) -> str:
    if not keep_alive:
        return "close"
    return "keep-alive" if exchange is not None and exchange.version == "1.0" else ""
