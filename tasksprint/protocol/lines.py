"""Splits chunks of bytes into lines, and into raw bytes where a line announced some.

It knows newlines and a limit, and nothing of the meaning of lines. Each byte is
looked at once, however small the chunks are and however long the line is.
"""

from __future__ import annotations

import re

from tasksprint.errors import RemoteProtocolError

__all__ = ["LineBuffer"]


class LineBuffer:
    """Bytes that arrived and were not taken yet.

    The owner feeds a chunk and then takes lines (and raw bytes) until it gets
    `None`. Only an incomplete rest stays here.
    """

    __slots__ = ("_at", "_chunk", "_line_bytes_max", "_piece_bytes", "_pieces", "_remedy", "_who")

    def __init__(self, *, who: str, line_bytes_max: int, remedy: str) -> None:
        """
        Args:
            who: The sender, for messages: "node 3".
            line_bytes_max: A longer line ends the connection.
            remedy: A better way for the sender than longer lines, for messages.
        """
        self._who = who
        self._line_bytes_max = line_bytes_max
        self._remedy = remedy
        self._pieces: list[bytes] = []  # beginning of an unfinished line or of raw bytes
        self._piece_bytes = 0  # Invariant: the sum of their lengths.
        self._chunk = b""
        self._at = 0  # Bytes of the chunk that were taken.

    @property
    def pending_bytes(self) -> int:
        """The number of bytes that wait for the rest of their line or frame."""
        return self._piece_bytes + len(self._chunk) - self._at

    def pending_head(self, count: int) -> bytes:
        """Return the first of the waiting bytes, at most `count`."""
        return (self._pieces[0] if self._pieces else self._chunk[self._at :])[:count]

    def feed(self, data: bytes) -> None:
        """Add a chunk that arrived."""
        if self._at < len(self._chunk):
            self._chunk = self._chunk[self._at :] + data
        else:
            self._chunk = data
        self._at = 0

    def match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Take the bytes that `pattern` matches, if the next line begins in this chunk.

        The pattern must end with the newline, so that it takes whole lines.
        """
        if self._pieces:
            return None
        found = pattern.match(self._chunk, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def next_long_line(self, bytes_min: int) -> list[bytes] | None:
        """Take the next line in pieces, if it is complete and so long; see `next_line`.

        Raises:
            RemoteProtocolError: It is longer than allowed.
        """
        if self._piece_bytes + len(self._chunk) - self._at < bytes_min:
            return None
        end = self._chunk.find(b"\n", self._at)
        length = self._piece_bytes + end - self._at
        if end < 0 or length < bytes_min:
            return None
        pieces = [*self._pieces, self._chunk[self._at : end]]
        self._at = end + 1
        self._pieces = []
        self._piece_bytes = 0
        self._check_length(length)
        return pieces

    def next_line(self) -> bytes | None:
        """Take the next line, without its newline; `None` if it isn't complete.

        Raises:
            RemoteProtocolError: It is longer than allowed, complete or not.
        """
        end = self._chunk.find(b"\n", self._at)
        if end < 0:
            self._keep_chunk()
            self._check_length(self._piece_bytes)
            return None
        line = self._chunk[self._at : end]
        self._at = end + 1
        if self._pieces:
            self._pieces.append(line)
            line = self._join()
        self._check_length(len(line))
        return line

    def take(self, count: int) -> bytes | None:
        """Take exactly `count` raw bytes; `None` if they aren't all here."""
        missing = count - self._piece_bytes
        if len(self._chunk) - self._at < missing:
            self._keep_chunk()
            return None
        raw = self._chunk[self._at : self._at + missing]
        self._at += missing
        if self._pieces:
            self._pieces.append(raw)
            raw = self._join()
        return raw

    def take_some(self, count_max: int) -> bytes:
        """Take the raw bytes that are here, up to so many; perhaps none."""
        assert not self._pieces, "raw bytes are taken in one way or the other"
        some = self._chunk[self._at : self._at + count_max]
        self._at += len(some)
        return some

    def _keep_chunk(self) -> None:
        if self._at < len(self._chunk):
            piece = self._chunk[self._at :] if self._at else self._chunk
            self._pieces.append(piece)
            self._piece_bytes += len(piece)
        self._chunk = b""
        self._at = 0

    def _join(self) -> bytes:
        joined = b"".join(self._pieces)
        self._pieces.clear()
        self._piece_bytes = 0
        return joined

    def _check_length(self, length: int) -> None:
        if length > self._line_bytes_max:
            raise RemoteProtocolError(
                f"line from {self._who} has more than {self._line_bytes_max} bytes "
                f"(line_bytes_max); {self._remedy}"
            )
