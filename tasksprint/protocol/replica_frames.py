"""The body of a frame between replicas: a JSON header and raw parts, each with its length.

One line of JSON, `[header, [length, …]]`, its newline, and the parts, one after the other.
This module doesn't know the meaning of the header; the JSON codec is passed in.
`net/streams.py` knows where a frame begins and ends, and sees that nobody changed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tasksprint.bounded_text import bounded_repr
from tasksprint.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["decode_body", "encode_body"]


def encode_body(
    header: Sequence[Any], parts: Sequence[bytes], *, encode_json: Callable[[Any], bytes]
) -> bytes:
    """Return a frame's body: the inverse of `decode_body`."""
    line = encode_json([header, [len(part) for part in parts]])
    if b"\n" in line:
        raise LocalProtocolError("the JSON codec wrote a newline into a frame's header")
    return b"".join((line, b"\n", *parts))


def decode_body(
    body: bytes, *, decode_json: Callable[[bytes], Any], who: str
) -> tuple[list[Any], list[bytes]]:
    """Return the header and the parts of a frame's body.

    Raises:
        RemoteProtocolError: It isn't a header line and exactly the parts that it names.
    """
    end = body.find(b"\n")
    if end < 0:
        raise RemoteProtocolError(f"frame from {who} has no header line")
    try:
        outer = decode_json(body[:end])
    except RemoteProtocolError:
        raise
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(
            f"frame from {who} has a header that isn't JSON: {error}"
        ) from error
    if not isinstance(outer, list) or len(outer) != 2:
        raise RemoteProtocolError(f"frame from {who} has no header and lengths")
    header, lengths = outer
    if not isinstance(header, list) or not isinstance(lengths, list):
        raise RemoteProtocolError(f"frame from {who} has no header and lengths")
    parts: list[bytes] = []
    at = end + 1
    for length in lengths:
        if type(length) is not int or length < 0 or at + length > len(body):
            raise RemoteProtocolError(
                f"frame from {who} names a part of {bounded_repr(length)} bytes, "
                f"{len(body) - at} are left"
            )
        parts.append(body[at : at + length])
        at += length
    if at != len(body):
        raise RemoteProtocolError(f"frame from {who} has {len(body) - at} bytes behind its parts")
    return header, parts
