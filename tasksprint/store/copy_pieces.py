"""Pieces of a copy of the mirror, as they travel: each proves itself and all before it."""

from __future__ import annotations

import hashlib
from typing import Any

from tasksprint.coordination.rows import TABLES
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.store.mirror_snapshot import CopyPiece

__all__ = ["check_piece", "piece_body"]


def piece_body(piece: CopyPiece, number: int, whole: str) -> bytes:
    """Return a piece as it travels.

    Args:
        whole: The SHA-256 of the rows of this piece and all before it.
    """
    header = {
        "number": number,
        "table": piece.table,
        "rows": piece.rows,
        "sha256": hashlib.sha256(piece.text).hexdigest(),
        "whole": whole,
        "is_last": piece.next_place is None,
    }
    return encode_json(header) + b"\n" + piece.text


def check_piece(body: bytes, number: int, hasher: Any, *, who: str) -> tuple[str, bytes, bool]:
    """Return table, rows, and whether it is the last piece; count it into `hasher`.

    Raises:
        RemoteProtocolError: It isn't the piece asked for, or not as it was sent.
    """
    line, _, text = body.partition(b"\n")
    header = decode_json(line)
    if not isinstance(header, dict) or header.get("number") != number:
        raise RemoteProtocolError(f"{who} sent {line!r:.80}, expected piece {number} of its state")
    if header.get("table") not in TABLES:
        raise RemoteProtocolError(
            f"{who} sent rows of a table {header.get('table')!r} that this release doesn't know; "
            "run the same release everywhere"
        )
    if hashlib.sha256(text).hexdigest() != header.get("sha256"):
        raise RemoteProtocolError(f"piece {number} of the state from {who} fails its checksum")
    hasher.update(text)
    if hasher.hexdigest() != header.get("whole"):
        raise RemoteProtocolError(f"the state from {who} fails its checksum at piece {number}")
    return header["table"], text, bool(header.get("is_last"))
