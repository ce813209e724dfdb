"""When things were last used: unused ones can be deleted after a while.

Knows names and times. A name that is seen for the first time counts as used then: nobody knows
how long it lay there before a restart.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container, Iterable
from pathlib import Path

__all__ = ["LastUse", "delete_folders", "folders_in", "leftovers_in", "take_away"]


class LastUse:
    """When each of some things was last used."""

    def __init__(self, unused_max_ms: int) -> None:
        self._unused_max_ms = unused_max_ms
        self._used_ms: dict[str, int] = {}

    def use(self, name: str, now_ms: int) -> None:
        """Note that something is used now."""
        self._used_ms[name] = now_ms

    def expired(self, names: Iterable[str], in_use: Container[str], now_ms: int) -> list[str]:
        """Return names that nobody has used for long; forget names that aren't there."""
        known: dict[str, int] = {}
        found: list[str] = []
        for name in names:
            used_ms = now_ms if name in in_use else self._used_ms.get(name, now_ms)
            known[name] = used_ms
            if now_ms - used_ms >= self._unused_max_ms:
                found.append(name)
        self._used_ms = known
        return found


def folders_in(root: Path) -> list[str]:
    """Return the names of the programs that are unpacked in a folder; none if it can't be read.

    The next look may find them again: nothing is lost but time until they are deleted.
    """
    try:
        return sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[:1] != "."
        )
    except OSError:
        return []


def leftovers_in(root: Path) -> list[Path]:
    """Return leftovers of a process that was killed while it unpacked or deleted a program.

    The caller has the data directory to itself, and hasn't unpacked anything yet.
    """
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if entry.name[:1] == ".")


def delete_folders(folders: Iterable[Path]) -> None:
    """Delete folders, as far as that can be done; on a thread, as it may take long."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def take_away(root: Path, name: str) -> Path:
    """Take an unpacked program away from its name, and return the folder to delete.

    One step: nobody finds half of a program, and unpacking it anew isn't disturbed.

    Raises:
        OSError: It stays.
    """
    gone = Path(tempfile.mkdtemp(prefix=".gone.", dir=root))
    os.rename(root / name, gone)
    (root / f"{name}.setup").unlink(missing_ok=True)
    return gone
