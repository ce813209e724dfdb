"""Archives for tests: small ones of our own kind, and tars with anything in their headers."""

from __future__ import annotations

import gzip
import tarfile

__all__ = ["END", "header", "member", "packed", "pax", "zipped"]

BLOCK = 512
END = bytes(2 * BLOCK)


def packed(content: bytes = b"a program") -> bytes:
    """Return the archive of one file with this content."""
    return zipped(member("program", content), END)


def member(name: str, content: bytes = b"", kind: bytes = b"0") -> bytes:
    """Return one member: its header, and its content up to the end of a block."""
    return header(name, kind, len(content)) + content + bytes(-len(content) % BLOCK)


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    """Return an extended header, for the member behind it."""
    content = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode()
        size = len(rest) + 1
        while size != len(rest) + len(str(size)):
            size = len(rest) + len(str(size))
        content += str(size).encode() + rest
    return member("PaxHeaders/x", content, kind)


def header(
    name: str, kind: bytes = b"0", size: int = 0, *, fields: dict[int, bytes] | None = None
) -> bytes:
    """Return one header, with a checksum that is right.

    Args:
        fields: Where -> what: written over it before the checksum is made.
    """
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    assert len(block) == BLOCK
    for at, data in (fields or {}).items():
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def zipped(*parts: bytes) -> bytes:
    """Return the gzip of these parts, as it always is."""
    return gzip.compress(b"".join(parts), mtime=0)
