"""Tells whether a process made its cluster key itself; then nobody else has this key.

A client on a new machine makes a key if there is none: so one machine alone works at once. A
cluster elsewhere refuses this key, and "wrong key" doesn't say what happened. So a note with
the key's digest lies beside it. If another key was copied over it since, the digest differs:
that key isn't our own.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

__all__ = ["note_own_key", "own_key_hint"]

_SUFFIX = ".made-here"


def note_own_key(path: Path) -> None:
    """Leave the note that this process has just made the key in a file."""
    with contextlib.suppress(OSError):  # Only a hint is lost.
        _note(path).write_text(_digest(path) + "\n", encoding="ascii")


def own_key_hint(path: Path) -> str:
    """Return advice about a key that was made here; "": it wasn't."""
    try:
        is_own = _note(path).read_text(encoding="ascii").strip() == _digest(path)
    except (OSError, ValueError):
        return ""
    if not is_own:
        return ""
    return (
        f"this client made its own key at its first start, {str(path)!r}; copy the cluster's key "
        "there from a machine of the cluster, mode 0600, or name it with --key-file"
    )


def _note(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _digest(path: Path) -> str:
    # Of 32 random bytes: it tells nothing of them.
    return hashlib.sha256(path.read_bytes().strip()).hexdigest()
