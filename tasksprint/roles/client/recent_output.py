"""The nodes' latest lines on stderr, for people who watch a job while it runs.

Pieces are numbered over all jobs of this client's life. The oldest go when there are too many
bytes. Everything is kept with its attempt on disk as well, but for the middle of long output.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from tasksprint.store.result_records import LogText

__all__ = ["RecentOutput"]


class RecentOutput:
    """The last pieces of output, up to a number of bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._pieces: deque[tuple[int, LogText]] = deque()  # (number, piece)
        self._bytes = 0
        self._next = 0

    def add(self, piece: LogText) -> None:
        """Keep a piece, in place of the oldest ones if need be."""
        self._pieces.append((self._next, piece))
        self._next += 1
        self._bytes += len(piece.text)
        while self._bytes > self._bytes_max and len(self._pieces) > 1:
            self._bytes -= len(self._pieces.popleft()[1].text)

    def since(self, job: int, first: int) -> dict[str, Any]:
        """Return a job's pieces from a number on, and the number to ask for the next time."""
        return {
            "next": self._next,
            "parts": [
                {
                    "tid": piece.tid,
                    "attempt": piece.attempt,
                    "text": piece.text.decode(errors="replace"),
                }
                for number, piece in self._pieces
                if number >= first and piece.job == job
            ],
        }
