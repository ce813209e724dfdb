"""Frames between replicas: a JSON header and raw parts, each with its length.

A frame is four bytes of length (big endian) and a body. The body is one line of JSON,
`[header, [length, …]]`, its newline, and the parts, one after the other. What the
header means is not known here; the JSON codec is passed in. Integrity is added below,
by `net/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tasksprint.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["LENGTH_BYTES", "FrameDecoder", "decode_body", "encode_body", "encode_frame"]

LENGTH_BYTES = 4


def encode_frame(
    header: Sequence[Any],
    parts: Sequence[bytes],
    *,
    encode_json: Callable[[Any], bytes],
    frame_bytes_max: int,
) -> bytes:
    """Return one frame.

    Raises:
        LocalProtocolError: It would be longer than any replica accepts.
    """
    line = encode_json([header, [len(part) for part in parts]])
    if b"\n" in line:
        raise LocalProtocolError("the JSON codec wrote a newline into a frame's header")
    size = len(line) + 1 + sum(map(len, parts))
    if size > frame_bytes_max:
        raise LocalProtocolError(
            f"frame {header[:1]!r} has {size} bytes, expected at most {frame_bytes_max} "
            "(frame_bytes_max)"
        )
    return b"".join((size.to_bytes(LENGTH_BYTES, "big"), line, b"\n", *parts))


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
                f"frame from {who} names a part of {length!r} bytes, {len(body) - at} are left"
            )
        parts.append(body[at : at + length])
        at += length
    if at != len(body):
        raise RemoteProtocolError(f"frame from {who} has {len(body) - at} bytes behind its parts")
    return header, parts


class FrameDecoder:
    """Reads the frames of one stream, from chunks of any size."""

    def __init__(
        self, *, who: str, decode_json: Callable[[bytes], Any], frame_bytes_max: int
    ) -> None:
        """
        Args:
            who: The sender, for messages: "replica 2".
            decode_json: Raises `RemoteProtocolError` or `ValueError` for what isn't JSON.
            frame_bytes_max: A longer frame ends the connection before it is read.
        """
        self._who = who
        self._decode_json = decode_json
        self._frame_bytes_max = frame_bytes_max
        self._pieces: list[bytes] = []
        self._piece_bytes = 0  # Invariant: the sum of their lengths.
        self._needed = LENGTH_BYTES  # Bytes until the next step can be taken.
        self._is_length = True  # What the next step reads.

    @property
    def is_inside_frame(self) -> bool:
        """Whether the stream broke in the middle of a frame, if it broke now."""
        return self._piece_bytes > 0 or not self._is_length

    def feed(self, data: bytes) -> list[tuple[list[Any], list[bytes]]]:
        """Return the frames that are complete with this chunk, each (header, parts).

        Raises:
            RemoteProtocolError: The stream isn't made of frames.
        """
        frames: list[tuple[list[Any], list[bytes]]] = []
        self._pieces.append(data)
        self._piece_bytes += len(data)
        if self._piece_bytes < self._needed:
            return frames
        data = b"".join(self._pieces) if len(self._pieces) > 1 else data
        at = 0
        while len(data) - at >= self._needed:
            step = data[at : at + self._needed]
            at += self._needed
            if self._is_length:
                self._needed = int.from_bytes(step, "big")
                self._is_length = False
                if self._needed > self._frame_bytes_max:
                    raise RemoteProtocolError(
                        f"frame from {self._who} has {self._needed} bytes, expected at most "
                        f"{self._frame_bytes_max} (frame_bytes_max)"
                    )
            else:
                self._needed = LENGTH_BYTES
                self._is_length = True
                frames.append(decode_body(step, decode_json=self._decode_json, who=self._who))
        self._pieces = [data[at:]] if at < len(data) else []
        self._piece_bytes = len(data) - at
        return frames
