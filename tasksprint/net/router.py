"""Finds the handler for a path; the request that a handler gets, and the answer that it gives.

A handler is a function of a `Request`. A plain handler returns a `Response`, which is sent
within the same turn of the loop; no task is made. An `async` handler runs in a task. The task
is cancelled when the connection closes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import LocalProtocolError, Refused
from tasksprint.net.gate import Access, Identity
from tasksprint.net.http_messages import JSON_TYPE, MISDIRECTED
from tasksprint.net.reading import BufferedReader

__all__ = [
    "Handler",
    "Later",
    "Misdirected",
    "Request",
    "Response",
    "Route",
    "Router",
    "Upgrade",
    "error_response",
    "json_response",
]


@dataclass(slots=True)  # Made for each request: a frozen one costs twice as much.
class Request:
    """One request, as its handler sees it. Nobody changes it."""

    method: str
    path: str  # percent-decoding is done for each segment, not here
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    peer: str  # address of the other end
    identity: Identity
    segments: dict[str, str]  # what the pattern's segments matched, decoded

    def json(self) -> Any:
        """Return the body's JSON.

        Raises:
            RemoteProtocolError: The body isn't JSON; answered with status 400.
        """
        return decode_json(self.body)

    def integer(self, name: str) -> int:
        """Return an integer segment of the path."""
        return int(self.segments[name])

    def text(self, name: str) -> str:
        """Return a segment of the path."""
        return self.segments[name]

    def query_integer(
        self, name: str, default: int, *, minimum: int = 0, maximum: int = 2**63 - 1
    ) -> int:
        """Return an integer of the query.

        Raises:
            Refused: It isn't an integer in the range; with status 400.
        """
        text = self.query.get(name)
        if text is None:
            return default
        digits = text[1:] if text.startswith("-") else text
        if digits.isascii() and digits.isdigit() and len(digits) < 20:
            value = int(text)
            if minimum <= value <= maximum:
                return value
        raise Refused(
            f"query {name}={text!r} is not an integer from {minimum} to {maximum}", status=400
        )


@dataclass(slots=True)
class Response:
    """One answer.

    `body` is bytes, or an iterator of bytes. An iterator is read no faster than the other end
    reads. With `body_bytes` its size is announced and must be kept; without, it goes in chunks.

    If the asker proves the key, the answer is proved, body and all. This costs nothing for a
    body that a digest covers: `digest` names it (of a 2xx answer), or `covers_line` says that
    the body's first line holds digests of all that follows it.
    """

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] | None = None
    body_bytes: int | None = None
    digest: str | None = None  # SHA-256 of the whole body
    covers_line: bool = False


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The answer by which a connection leaves HTTP.

    `make_protocol` is called after the 101 was written. The protocol that it returns gets
    `connection_made` and all further bytes.
    """

    protocol_name: str
    headers: Mapping[str, str]
    make_protocol: Callable[[], BufferedReader]


class Later:
    """An answer that comes later, by a call: no task waits for it.

    For handlers whose answer comes with a batch of others; at thousands of requests a
    second a task for each would cost more than the answer. A handler makes one, keeps it
    and returns it; the owner of the answer calls `answer`, once, in any turn of the loop.
    """

    __slots__ = ("_take", "response")

    def __init__(self) -> None:
        self.response: Response | None = None
        self._take: Callable[[Response], None] | None = None

    def answer(self, response: Response) -> None:
        """Give the answer; its body is bytes. Nobody may be left who waits for it."""
        assert self.response is None, "an answer is given once"
        self.response = response
        if self._take is not None:
            self._take(response)

    def wait(self, take: Callable[[Response], None]) -> None:
        """Call `take` with the answer, which isn't there yet."""
        self._take = take


Handler = Callable[[Request], Response | Upgrade | Later | Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path or pattern."""

    method: str
    pattern: str
    handler: Handler
    access: Access
    body_bytes_max: int | None  # None: Settings.body_bytes_max
    upgrade: str | None  # name of the protocol that this route speaks after a 101


@dataclass(slots=True)
class _Place:
    """A node of the tree of patterns."""

    routes: dict[str, Route] = field(default_factory=dict)  # by method
    exact: dict[str, _Place] = field(default_factory=dict)
    integer: tuple[str, _Place] | None = None
    text: tuple[str, _Place] | None = None


class Router:
    """Maps (method, path) to a route.

    A pattern is a path whose segments may be `{name}` for a decimal integer or
    `{name:text}` for any one segment, be it empty, percent-decoded. A literal segment is
    preferred to an integer, an integer to a text. HEAD falls back to GET.
    """

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._root = _Place()

    def add(
        self,
        method: str,
        pattern: str,
        handler: Handler,
        *,
        access: Access = Access.KEY,
        body_bytes_max: int | None = None,
        upgrade: str | None = None,
    ) -> None:
        """Add a route; each (method, pattern) once."""
        assert pattern.startswith("/")
        if access is Access.READ and method not in ("GET", "HEAD"):
            raise LocalProtocolError(f"{method} {pattern} can't be allowed to who only reads")
        route = Route(method, pattern, handler, access, body_bytes_max, upgrade)
        if "{" not in pattern:
            routes = self._exact.setdefault(pattern, {})
        else:
            routes = self._place_of(pattern).routes
        if method in routes:
            raise LocalProtocolError(f"{method} {pattern} has two handlers")
        routes[method] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Return the route of a request, and the texts that its segments matched.

        Raises:
            Refused: With status 404 or 405.
        """
        routes = self._exact.get(path)
        segments: dict[str, str] = {}
        if routes is None:
            routes = self._walk(self._root, path.split("/"), 1, segments)
            if routes is None:
                raise Refused(f"no such path {path!r}", status=404)
        route = routes.get(method) or (routes.get("GET") if method == "HEAD" else None)
        if route is None:
            raise Refused(
                f"{method} is not possible on {path!r}",
                status=405,
                hint=f"possible: {self.allowed(path)}",
            )
        return route, segments

    def allowed(self, path: str) -> str:
        """Return the methods of a path, as the `Allow` header lists them."""
        routes = self._exact.get(path) or self._walk(self._root, path.split("/"), 1, {}) or {}
        return ", ".join(sorted(routes))

    def _place_of(self, pattern: str) -> _Place:
        place = self._root
        for segment in pattern.split("/")[1:]:
            if not segment.startswith("{"):
                place = place.exact.setdefault(segment, _Place())
                continue
            name, _, kind = segment[1:-1].partition(":")
            assert segment.endswith("}") and name and kind in ("", "text"), pattern
            known = place.text if kind else place.integer
            if known is None:
                known = (name, _Place())
                if kind:
                    place.text = known
                else:
                    place.integer = known
            assert known[0] == name, f"{pattern} calls {known[0]!r} {name!r}"
            place = known[1]
        return place

    def _walk(
        self, place: _Place, parts: list[str], index: int, segments: dict[str, str]
    ) -> dict[str, Route] | None:
        if index == len(parts):
            return place.routes or None
        part = parts[index]
        following = place.exact.get(part)
        if following is not None:
            routes = self._walk(following, parts, index + 1, segments)
            if routes is not None:
                return routes
        if place.integer is not None and _is_integer(part):
            name, following = place.integer
            routes = self._walk(following, parts, index + 1, segments)
            if routes is not None:
                segments[name] = part
                return routes
        if place.text is not None:
            name, following = place.text
            routes = self._walk(following, parts, index + 1, segments)
            if routes is not None:
                segments[name] = unquote(part) if "%" in part else part
                return routes
        return None


def _is_integer(part: str) -> bool:
    """Whether a segment is a number that a database takes too."""
    return part.isascii() and part.isdigit() and len(part) < 20 and int(part) < 2**63


class Misdirected(Refused):
    """A request that another process may serve.

    Args:
        told: Members of the answer beside the error: whom to ask, perhaps.
    """

    def __init__(self, message: str, **told: object) -> None:
        super().__init__(message, status=MISDIRECTED)
        self.told = told

    def response(self) -> Response:
        """Return the answer."""
        return json_response({"error": str(self.args[0]), **self.told}, status=self.status)


def json_response(value: Any, *, status: int = 200) -> Response:
    """Return an answer that holds a JSON value."""
    return Response(status, encode_json(value))


def error_response(status: int, error: str, *, hint: str = "") -> Response:
    """Return an answer that says why not: {"error": …, "hint": …}."""
    value = {"error": error, "hint": hint} if hint else {"error": error}
    headers = {"WWW-Authenticate": "TaskSprint, Bearer"} if status == 401 else None
    return Response(status, encode_json(value), JSON_TYPE, headers)
