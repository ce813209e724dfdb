"""What every part that creates or renames files must do so that a crash can't undo it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_directory"]


def sync_directory(directory: Path) -> None:
    """Make durable which files a directory has: a file's own fsync doesn't.

    Source: fsync(2), "calling fsync() does not necessarily ensure that the entry in the
    directory containing the file has also reached disk".

    Raises:
        OSError: It can't be had.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
