"""One request on its way through the server: judged, completed, asked, answered for.

Knows routes, the gate and limits, but no connection: it is told what was
parsed, and says what to answer. At each stage the request may be refused; then
`refusal` holds the answer, and its handler is never asked.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from tasksprint.errors import (
    LocalProtocolError,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    TaskSprintError,
    UsageError,
)
from tasksprint.net.bugs import Bugs
from tasksprint.net.gate import Access, Claim, CountedWarnings, Gate, Identity
from tasksprint.net.http_body import BodyFeeder
from tasksprint.net.http_messages import BODY_DIGEST_HEADER, parse_query
from tasksprint.net.keys import EMPTY_DIGEST, STREAM_DIGEST
from tasksprint.net.router import (
    Later,
    Request,
    Response,
    Route,
    Router,
    Upgrade,
    error_response,
)
from tasksprint.settings import Settings

__all__ = ["Exchange", "Service", "log"]

log = logging.getLogger(__name__)

_LENGTH_DIGITS_MAX = 18


class Service:
    """What all exchanges of one server share."""

    def __init__(
        self,
        router: Router,
        gate: Gate | None,
        settings: Settings,
        bugs: Bugs,
    ) -> None:
        self.router = router
        self.gate = gate
        self.settings = settings
        self.bugs = bugs
        self.warnings = CountedWarnings(log)
        self.is_closing = False  # Connections end after the answer that they owe.

    def head_too_big(self) -> Response:
        """Return the answer to a head that never seems to end."""
        limit = self.settings.head_bytes_max
        return error_response(
            431, f"the head of the request has more than {limit} bytes (head_bytes_max)"
        )


class Exchange:
    """One request and what becomes of it.

    The order of calls: `judge` with the head; `open_stream` if the route reads its
    body as a stream, else `take` for each piece of the body and `complete`; then `ask`.
    """

    __slots__ = (
        "_body_bytes",
        "_body_bytes_max",
        "_claim",
        "_declared_digest",
        "_hash",
        "_parts",
        "_peer",
        "_service",
        "feeder",
        "keep_alive",
        "refusal",
        "request",
        "route",
        "version",
    )

    def __init__(self, service: Service, peer: str, *, version: str, keep_alive: bool) -> None:
        self._service = service
        self._peer = peer
        self.version = version  # of HTTP, such as "1.1"
        self.keep_alive = keep_alive  # Whether the connection may go on after the answer.
        self.request: Request | None = None  # None: not even its head is good.
        self.route: Route | None = None
        self.refusal: Response | None = None
        self.feeder: BodyFeeder | None = None  # set if the body streams in
        self._claim: Claim | None = None  # of a signature that is still to be verified
        self._declared_digest: str | None = None  # verified; the body must have it
        self._body_bytes_max = 0
        self._body_bytes = 0
        self._parts: list[bytes] | None = None  # of a body in several pieces
        self._hash: Any = None  # of those

    @property
    def is_head_only(self) -> bool:
        """Whether the answer goes without its body."""
        return self.request is not None and self.request.method == "HEAD"

    @property
    def is_unread(self) -> bool:
        """Whether a part of the body that streams in was not received."""
        return self.feeder is not None and not self.feeder.is_complete

    def judge(
        self,
        method: str,
        raw_target: bytes,
        headers: dict[str, str],
        *,
        head_may_be_big: bool,
        bound_host: Callable[[], str],
    ) -> None:
        """Judge the head: route, sender, sizes. It may set `refusal`."""
        try:
            target = raw_target.decode("ascii")
        except UnicodeDecodeError:
            self.refusal = error_response(400, "the path is not ASCII")
            return
        path, _, query_text = target.partition("?")
        query = parse_query(query_text) if query_text else {}
        request = Request(method, path, query, headers, b"", self._peer, Identity.ANYONE, {})
        self.request = request
        if head_may_be_big:
            size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers.items())
            if size > self._service.settings.head_bytes_max:
                self.refusal = self._service.head_too_big()
                self.keep_alive = False
                return
        try:
            self.route = route = self._find_route(request, target, bound_host)
            self._judge_body(route, request)
        except Exception as error:
            self.refusal = self.answer_to(error)

    def open_stream(self, feeder: BodyFeeder) -> None:
        """Let the body stream in by a feeder."""
        assert self.request is not None
        self.feeder = self.request.stream = feeder

    def take(self, data: bytes) -> None:
        """Take a piece of the body. It may set `refusal`."""
        assert self.request is not None
        self._body_bytes += len(data)
        if self._body_bytes > self._body_bytes_max:
            self.refusal = self.answer_to(self._body_too_big(self.request))
        elif self.feeder is not None:
            self.feeder.feed(data)
        elif not self.request.body:
            self.request.body = data
        else:
            # The digest grows with the body: hashing 64 MiB at the end would hold up
            # every other connection.
            if self._parts is None:
                self._parts = [self.request.body]
                self._hash = hashlib.sha256(self.request.body)
            self._parts.append(data)
            self._hash.update(data)

    def complete(self) -> None:
        """Take the end of the body."""
        if self.feeder is not None:
            self.feeder.end()
        elif self._parts is not None:
            assert self.request is not None
            self.request.body = b"".join(self._parts)
            self._parts = None

    def ask(self, *, may_upgrade: bool) -> Response | Upgrade | Later | Awaitable[Response]:
        """Return the refusal, or what the handler returns, or the answer to what it raises."""
        if self.refusal is not None:
            return self.refusal
        request, route = self.request, self.route
        assert request is not None and route is not None
        try:
            if self._claim is not None:
                self._verify(self._claim, self._body_digest(request))
            elif self._declared_digest is not None:
                digest = self._body_digest(request)
                if digest != self._declared_digest:
                    raise Refused(
                        f"the body's digest is {digest}, the head named {self._declared_digest}",
                        status=400,
                    )
            answer = route.handler(request)
            if type(answer) is Upgrade and not may_upgrade:
                return error_response(
                    426,
                    f"{request.path!r} speaks {answer.protocol_name} only",
                    hint="send Connection: upgrade",
                )
            return answer
        except Exception as error:
            return self.answer_to(error)

    def answer_to(self, error: Exception) -> Response:
        """Return the answer for what a handler or the gate raised; log what must be."""
        service, request = self._service, self.request
        method, path = (request.method, request.path) if request else ("?", "?")
        if not isinstance(error, TaskSprintError) or isinstance(error, LocalProtocolError):
            service.bugs.tell(f"{method} {path[:200]!r} of {self._peer}", error)
            return error_response(
                500,
                f"a bug in this process: {type(error).__name__}",
                hint="its log has the details",
            )
        status = 500
        if isinstance(error, Refused):
            status = error.status or 403
            if status in (401, 403) and service.gate is not None:
                service.gate.report(self._peer.rpartition(":")[0], method, path, error)
        elif isinstance(error, (RemoteProtocolError, UsageError)):
            status = 400
        elif isinstance(error, PeerUnreachable):
            status = 503
        else:
            log.error("%s %r of %s failed: %s", method, path, self._peer, error)
        response = error_response(status, str(error.args[0]), hint=error.hint)
        if status == 405:
            response.headers = {"Allow": service.router.allowed(path)}
        return response

    # --- inside ---

    def _find_route(self, request: Request, target: str, bound_host: Callable[[], str]) -> Route:
        path = request.path
        if not path.startswith("/"):
            raise Refused(f"the request's path {path!r} doesn't begin with '/'", status=400)
        service = self._service
        if service.gate is None:
            route, request.segments = service.router.find(request.method, path)
            request.identity = Identity.CLUSTER
            return route
        found: Route | None = None
        unknown: Refused | None = None
        try:
            found, request.segments = service.router.find(request.method, path)
        except Refused as refusal:
            unknown = refusal
        admitted = service.gate.admit(
            request.method,
            target,
            request.headers,
            request.query,
            access=Access.KEY if found is None else found.access,
            bound_host=bound_host,
        )
        # After the gate: who shows neither signature nor token learns no paths.
        if found is None:
            raise cast(Refused, unknown)
        if type(admitted) is Identity:
            request.identity = admitted
        else:
            self._claim = cast(Claim, admitted)
        return found

    def _judge_body(self, route: Route, request: Request) -> None:
        settings = self._service.settings
        headers = request.headers
        limit = route.body_bytes_max
        self._body_bytes_max = settings.body_bytes_max if limit is None else limit
        length = _length_of(headers)
        is_chunked = "transfer-encoding" in headers
        claim = self._claim
        if claim is None and request.identity is Identity.ANYONE:
            self._body_bytes_max = min(self._body_bytes_max, settings.unproven_body_bytes_max)
        if length > self._body_bytes_max:
            raise self._body_too_big(request)
        if claim is None:
            return
        if route.streams_body:
            self._verify(claim, STREAM_DIGEST)
            return
        declared = headers.get(BODY_DIGEST_HEADER)
        if declared is not None:
            self._verify(claim, declared)
            self._declared_digest = declared
        elif is_chunked:
            self._body_bytes_max = min(self._body_bytes_max, settings.unproven_body_bytes_max)
        elif length > settings.unproven_body_bytes_max:
            raise Refused(
                f"a body of {length} bytes must name its digest in its head",
                status=401,
                hint=f"send the header {BODY_DIGEST_HEADER}: <SHA-256 in hex> with bodies of "
                f"more than {settings.unproven_body_bytes_max} bytes",
            )

    def _body_too_big(self, request: Request) -> Refused:
        return Refused(
            f"the body has more than {self._body_bytes_max} bytes, the most for {request.path!r}",
            status=413,
        )

    def _verify(self, claim: Claim, digest: str) -> None:
        assert self._service.gate is not None and self.request is not None
        self.request.identity = self._service.gate.verify(claim, digest)
        self._claim = None

    def _body_digest(self, request: Request) -> str:
        if self._hash is not None:
            return cast(str, self._hash.hexdigest())
        return hashlib.sha256(request.body).hexdigest() if request.body else EMPTY_DIGEST


def _length_of(headers: dict[str, str]) -> int:
    """Return what `Content-Length` says; 0: there is none."""
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()) or len(text) > _LENGTH_DIGITS_MAX:
        raise Refused(f"Content-Length is {text[:40]!r}, expected a number of bytes", status=400)
    return int(text)
