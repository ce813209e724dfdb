"""Makes new and renamed files outlive a crash: a file's own fsync isn't enough for that."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_directory"]


def sync_directory(directory: Path) -> None:
    """Make a directory's list of files durable.

    Source: fsync(2), "calling fsync() does not necessarily ensure that the entry in the
    directory containing the file has also reached disk".

    Raises:
        OSError: The directory can't be synced.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
