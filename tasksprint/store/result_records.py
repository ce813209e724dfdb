"""Plain data that a client's store takes and gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tasksprint.errors import ValueSpoiled

__all__ = [
    "CHUNK_BYTES",
    "ROW_VALUE_BYTES_MAX",
    "BoundedText",
    "FileValue",
    "LogText",
    "Result",
    "ResultCommit",
    "Value",
    "ValueInfo",
    "checked",
]

# Values up to this size stand in the row with their names. Larger ones stand in files beside
# the database: so a look at a row never reads megabytes.
ROW_VALUE_BYTES_MAX = 64 * 1024
# Large values are read and written in pieces of this size: less than a millisecond each.
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileValue:
    """The content of a value that stands in a file of the store (value_files.py)."""

    number: int
    size: int
    digest: str  # SHA-256 of the content, in hex


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a result that is to be kept."""

    key: str
    kind: str  # "json" or "bytes"
    content: bytes | FileValue
    digest: str  # SHA-256 of the content, in hex

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


@dataclass(frozen=True, slots=True)
class Result:
    """All values of one task."""

    job: int
    tid: int
    digest: str  # the result digest, which names all values
    manifest: bytes  # JSON: the list that the digest is made of
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class LogText:
    """The output of a node during one attempt, or a piece of it."""

    job: int
    tid: int
    attempt: int
    text: bytes


@dataclass(frozen=True, slots=True)
class ResultCommit:
    """Changes that are kept together, or not at all."""

    results: tuple[Result, ...] = ()
    logs: tuple[LogText, ...] = ()


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """The facts about a value that are known without reading it."""

    kind: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class BoundedText:
    """The first and the last part of a text that may be long."""

    head: bytes = b""
    tail: bytes = b""
    left_out: int = 0  # bytes between them

    def add(self, text: bytes, bytes_max: int) -> BoundedText:
        """Return this text with more of it: half of the limit for each part."""
        room = bytes_max // 2 - len(self.head)
        head = self.head + text[:room] if room > 0 else self.head
        tail = self.tail + (text[room:] if room > 0 else text)
        excess = max(0, len(tail) - (bytes_max - bytes_max // 2))
        return BoundedText(head, tail[excess:], self.left_out + excess)

    def render(self) -> bytes:
        """Return the text, with a line of its own where something is left out."""
        if not self.left_out:
            return self.head + self.tail
        return self.head + b"\n[%d bytes left out]\n" % self.left_out + self.tail


def checked(pieces: Iterable[bytes], digest: str, *, what: str) -> Iterator[bytes]:
    """Yield the pieces of a value, and compare their digest at the end.

    Args:
        digest: SHA-256 of all of them together, in hex.
        what: The value, for the error.

    Raises:
        ValueSpoiled: They have another digest.
    """
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
        yield piece
    if found.hexdigest() != digest:
        raise ValueSpoiled(f"{what!r} has SHA-256 {found.hexdigest()}, expected {digest}")
