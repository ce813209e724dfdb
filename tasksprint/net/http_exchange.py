"""One request on its way through the server: judged, completed, asked, answered for.

Knows routes, the gate and limits, but no connection. It takes the parsed parts and returns the
answer. At each stage the request may be refused. Then `refusal` holds the answer, and the
handler is never asked.
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
from tasksprint.net.gate import (
    Access,
    CountedWarnings,
    Gate,
    Identity,
    Misaddressed,
    OtherLife,
    SignedHead,
)
from tasksprint.net.http_messages import parse_query
from tasksprint.net.keys import NO_BODY
from tasksprint.net.proofs import LIFE_HEADER, MISADDRESSED_HEADER, FrameWriter, proof_line
from tasksprint.net.router import (
    Later,
    Misdirected,
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
    """Things that all exchanges of one server share."""

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

    The order of calls: `judge` with the head; `take` for each piece of the body, and
    `complete`; then `ask`.
    """

    __slots__ = (
        "_answer_mac",
        "_body_bytes",
        "_body_bytes_max",
        "_hash",
        "_parts",
        "_peer",
        "_service",
        "_signed",
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
        self._signed: SignedHead | None = None  # its signature is good: answers are proved
        self._answer_mac = ""
        self._body_bytes_max = 0
        self._body_bytes = 0
        self._parts: list[bytes] | None = None  # of a body in several pieces
        self._hash: Any = None  # of those

    @property
    def is_head_only(self) -> bool:
        """Whether the answer goes without its body."""
        return self.request is not None and self.request.method == "HEAD"

    def judge(
        self,
        method: str,
        raw_target: bytes,
        headers: dict[str, str],
        *,
        head_may_be_big: bool,
        bound: Callable[[], tuple[str, int]],
    ) -> None:
        """Judge the head: route, sender, sizes. It may set `refusal`.

        Args:
            bound: The host and the port of our end of the connection.
        """
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
            self.route = route = self._find_route(request, target, bound)
            self._judge_body(route, request)
        except Exception as error:
            self.refusal = self.answer_to(error)

    def take(self, data: bytes) -> None:
        """Take a piece of the body. It may set `refusal`."""
        assert self.request is not None
        self._body_bytes += len(data)
        if self._body_bytes > self._body_bytes_max:
            self.refusal = self.answer_to(self._body_too_big(self.request))
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
        if self._parts is not None:
            assert self.request is not None
            self.request.body = b"".join(self._parts)
            self._parts = None

    def ask(self, *, may_upgrade: bool) -> Response | Upgrade | Later | Awaitable[Response]:
        """Return the refusal, or the handler's answer, or the answer to its exception."""
        if self.refusal is not None:
            return self.refusal
        request, route = self.request, self.route
        assert request is not None and route is not None
        try:
            if self._signed is not None and self._signed.body != NO_BODY:
                self._check_body(self._signed, request)
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
        """Return the answer to an exception of a handler or the gate; log it if it must be."""
        service, request = self._service, self.request
        method, path = (request.method, request.path) if request else ("?", "?")
        if not isinstance(error, TaskSprintError) or isinstance(error, LocalProtocolError):
            service.bugs.tell(f"{method} {path[:200]!r} of {self._peer}", error)
            return error_response(
                500,
                f"a bug in this process: {type(error).__name__}",
                hint="its log has the details",
            )
        if isinstance(error, Misdirected):
            return error.response()
        status = 500
        if isinstance(error, Refused):
            status = error.status or 403
            # (That one has to be told our life is no news.)
            if status in (401, 403) and service.gate is not None and type(error) is not OtherLife:
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
        elif isinstance(error, OtherLife) and service.gate is not None:
            response.headers = {**(response.headers or {}), LIFE_HEADER: service.gate.life}
        elif isinstance(error, Misaddressed) and self._signed is not None:
            # The asker believes this only of the process that it meant to ask.
            response.headers = {MISADDRESSED_HEADER: self._signed.host}
        return response

    # --- proving the answer ---

    @property
    def is_signed(self) -> bool:
        """Whether the asker proved the cluster key, and so gets answers that prove it."""
        return self._signed is not None

    def prove(self, kind: str, status: int, lines: bytes, body: bytes) -> str:
        """Return the line that proves an answer; "" if the asker can't check it.

        Args:
            kind: How the body is proved (proofs.py).
            lines: Of the answer's head, as they are written before the proof.
        """
        signed, gate = self._signed, self._service.gate
        if signed is None or gate is None:
            return ""
        self._answer_mac, line = proof_line(gate.key, signed.mac, kind, status, lines, body)
        return line

    def frame_writer(self) -> FrameWriter:
        """Return the framer for the body of an answer; its head was proved before."""
        assert self._service.gate is not None and self._answer_mac
        return FrameWriter(self._service.gate.key, self._answer_mac)

    # --- inside ---

    def _find_route(
        self, request: Request, target: str, bound: Callable[[], tuple[str, int]]
    ) -> Route:
        path = request.path
        if not path.startswith("/"):
            raise Refused(f"the request's path {path!r} doesn't begin with '/'", status=400)
        service = self._service
        gate = service.gate
        if gate is None:
            route, request.segments = service.router.find(request.method, path)
            request.identity = Identity.CLUSTER
            return route
        self._signed = gate.signed_head(request.method, target, request.headers)
        found: Route | None = None
        unknown: Refused | None = None
        try:
            found, request.segments = service.router.find(request.method, path)
        except Refused as refusal:
            unknown = refusal
        request.identity = gate.admit(
            request.method,
            request.headers,
            request.query,
            self._signed,
            access=Access.PROOF if found is None else found.access,
            bound=bound,
        )
        # After the gate: without a signature or a token one learns no paths.
        if found is None:
            raise cast(Refused, unknown)
        return found

    def _judge_body(self, route: Route, request: Request) -> None:
        settings = self._service.settings
        headers = request.headers
        limit = route.body_bytes_max
        self._body_bytes_max = settings.body_bytes_max if limit is None else limit
        signed = self._signed
        if request.identity is Identity.ANYONE:
            self._body_bytes_max = min(self._body_bytes_max, settings.unproven_body_bytes_max)
        length = _length_of(headers)
        if length > self._body_bytes_max:
            raise self._body_too_big(request)
        if signed is None:
            return
        has_body = length > 0 or "transfer-encoding" in headers
        if (signed.body != NO_BODY) != has_body:
            raise Refused(
                f"the signature says {signed.body!r} of the body, which isn't so",
                status=401,
                hint="sign with the SHA-256 of the body, or with nothing if there is none",
            )

    def _body_too_big(self, request: Request) -> Refused:
        return Refused(
            f"the body has more than {self._body_bytes_max} bytes, the most for {request.path!r}",
            status=413,
        )

    def _check_body(self, signed: SignedHead, request: Request) -> None:
        if self._hash is not None:
            digest = cast(str, self._hash.hexdigest())
        else:
            digest = hashlib.sha256(request.body).hexdigest()
        if digest != signed.body:
            raise Refused(
                f"the body's digest is {digest}, the signature names {signed.body!r}", status=401
            )


def _length_of(headers: dict[str, str]) -> int:
    """Return what `Content-Length` says; 0: there is none."""
    text = headers.get("content-length")
    if text is None:
        return 0
    # (Headers are Latin-1: of its characters only 0 to 9 are decimal.)
    if not text.isdecimal() or len(text) > _LENGTH_DIGITS_MAX:
        raise Refused(f"Content-Length is {text[:40]!r}, expected a number of bytes", status=400)
    return int(text)
