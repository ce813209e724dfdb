"""The words that both sides of HTTP share: heads, queries, answers, ranges.

Pure functions and plain objects; no socket and no loop, so that the command line
can use them without loading asyncio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote_plus

from tasksprint.encoding import decode_json
from tasksprint.errors import LocalProtocolError, Refused, RemoteProtocolError

__all__ = [
    "JSON_TYPE",
    "MISDIRECTED",
    "HttpResponse",
    "parse_query",
    "parse_range",
    "request_head",
    "response_head",
    "response_lines",
    "target_of",
]

JSON_TYPE = "application/json"
MISDIRECTED = 421  # RFC 9110, section 15.5.20: ask somebody else

# Values of queries that are kept as they were encoded: ids, incarnations, digests.
_KEPT_CHARS = 64

_STATUS_LINES = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer as a client got it."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """Return the body's JSON.

        Raises:
            RemoteProtocolError: The body isn't JSON.
        """
        return decode_json(self.body)

    def json_object(self) -> dict[str, Any]:
        """Return the body's JSON, which is an object.

        Raises:
            RemoteProtocolError: It isn't: a stranger answered.
        """
        value = decode_json(self.body)
        if not isinstance(value, dict):
            raise RemoteProtocolError(f"answered {self.body!r:.80}, expected a JSON object")
        return value

    def checked(self) -> HttpResponse:
        """Return itself if the status is 2xx.

        Raises:
            Refused: The status is another one; with the server's own words.
        """
        if 200 <= self.status < 300:
            return self
        error, hint = f"answered with status {self.status}", ""
        if self.headers.get("content-type", "").startswith(JSON_TYPE):
            try:
                value = decode_json(self.body)
            except RemoteProtocolError:
                value = None
            if isinstance(value, dict):
                words, more = value.get("error"), value.get("hint")
                error = words if isinstance(words, str) and words else error
                hint = more if isinstance(more, str) else ""
        raise Refused(error, status=self.status, hint=hint)


def target_of(path: str, query: Mapping[str, str | int] | None = None) -> str:
    """Return the request target: the path, and the query behind a question mark.

    The path must be percent-encoded where it needs to be; query values are encoded here.
    """
    if not query:
        return path
    pairs = [
        f"{_quote_again(name)}={value if type(value) is int else _quote(str(value))}"
        for name, value in query.items()
    ]
    return f"{path}?{'&'.join(pairs)}"


# For names, and values that are asked for again and again.
_quote_again = lru_cache(maxsize=256)(quote)


def _quote(value: str) -> str:
    """Return a value, encoded; a long one is said once, and mustn't be kept."""
    return _quote_again(value) if len(value) <= _KEPT_CHARS else quote(value)


def parse_query(text: str) -> dict[str, str]:
    """Return the names and values of a query; the last of a repeated name stands."""
    query: dict[str, str] = {}
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        if name:
            if "%" in pair or "+" in pair:
                name, value = unquote_plus(name), unquote_plus(value)
            query[name] = value
    return query


def request_head(
    method: str,
    target: str,
    host: str,
    *,
    authorization: str = "",
    body_bytes: int = 0,
    content_type: str = JSON_TYPE,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return the head of a request, up to and with the empty line."""
    if " " in target or "\n" in target or not target.startswith("/"):
        raise LocalProtocolError(f"request target {target!r} is not percent-encoded")
    lines = [f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n"]
    if authorization:
        lines.append(f"Authorization: {authorization}\r\n")
    if body_bytes:
        lines.append(f"Content-Type: {content_type}\r\nContent-Length: {body_bytes}\r\n")
    elif method not in ("GET", "HEAD"):
        lines.append("Content-Length: 0\r\n")
    if headers:
        lines.append(_header_lines(headers))
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def response_head(
    status: int, lines: bytes, *, proof: str = "", connection: str = "", is_chunked: bool = False
) -> bytes:
    """Return the head of an answer, up to and with the empty line.

    Args:
        lines: The result of `response_lines` for the same status.
        proof: The line that proves the answer and these lines; those behind it
            belong to the connection.
    """
    text = proof
    if connection:
        text += f"Connection: {connection}\r\n"
    if is_chunked:
        text += "Transfer-Encoding: chunked\r\n"
    start = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()
    return b"%b%b%b\r\n" % (start, lines, text.encode("latin-1"))


def response_lines(
    status: int,
    *,
    content_type: str = "",
    body_bytes: int | None = 0,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return the lines of an answer's head that say something of the answer itself.

    Args:
        body_bytes: Size of the body; None: none is announced (chunks, or until the end
            of the connection).
    """
    if headers:
        return _lines(status, content_type, body_bytes) + _header_lines(headers).encode("latin-1")
    return _lines(status, content_type, body_bytes)


@lru_cache(maxsize=1024)  # Most answers are small, and alike but for their sizes.
def _lines(status: int, content_type: str, body_bytes: int | None) -> bytes:
    text = ""
    if content_type:
        text = f"Content-Type: {content_type}\r\n"
    if body_bytes is not None and status >= 200 and status != 204:
        text += f"Content-Length: {body_bytes}\r\n"
    return text.encode("latin-1")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (first byte, end) of the one range that a `Range` header asks for.

    Returns:
        None: send the whole value. There is no header, another unit, several ranges, or
        a malformed one (RFC 9110, section 14.2, lets a server ignore those).

    Raises:
        Refused: The range lies behind the value's end (status 416).
    """
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first_text, dash, last_text = header[6:].strip().partition("-")
    digits = first_text + last_text
    if not dash or not (digits.isascii() and digits.isdigit()):
        return None
    if not first_text:  # the last n bytes
        count = min(int(last_text), size)
        if count == 0:
            raise Refused(f"range {header!r} holds nothing of {size} bytes", status=416)
        return size - count, size
    first = int(first_text)
    end = int(last_text) + 1 if last_text else size
    if last_text and end <= first:
        return None
    if first >= size:
        raise Refused(f"range {header!r} begins behind the last of {size} bytes", status=416)
    return first, min(end, size)


def _header_lines(headers: Mapping[str, str]) -> str:
    text = ""
    for name, value in headers.items():
        if "\r" in value or "\n" in value or not value.isascii():
            raise LocalProtocolError(f"header {name!r} can't carry {value!r}")
        text += f"{name}: {value}\r\n"
    return text
