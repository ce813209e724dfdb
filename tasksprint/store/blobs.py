"""Archives of jobs in SQL: chunks under the SHA-256 of the whole.

Knows bytes and digests, but not the contents of an archive.
"""

from __future__ import annotations

import hashlib

from tasksprint.store.database import Cursor, Database, damaged_store

__all__ = ["blob_digests", "drop_blob", "read_blob", "write_blob"]

_CHUNK_BYTES = 1024 * 1024


def write_blob(cursor: Cursor, digest: str, data: bytes) -> None:
    """Keep an archive; one that is there stays."""
    assert hashlib.sha256(data).hexdigest() == digest, "a blob is named by its SHA-256"
    cursor.execute(
        "INSERT INTO blobs VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1", (digest, len(data))
    )
    if cursor.fetchone() is None:
        return
    view = memoryview(data)
    for number, first in enumerate(range(0, len(data), _CHUNK_BYTES)):
        cursor.execute(
            "INSERT INTO blob_chunks (digest, number, data) VALUES (?, ?, ?)",
            (digest, number, view[first : first + _CHUNK_BYTES]),
        )


def read_blob(database: Database, digest: str) -> bytes:
    """Return an archive that is there.

    Raises:
        StoreDamaged: It doesn't have its digest.
    """
    chunks = database.query(
        "SELECT data FROM blob_chunks WHERE digest = ? ORDER BY number", (digest,)
    )
    data = b"".join([chunk for (chunk,) in chunks if isinstance(chunk, bytes)])
    if hashlib.sha256(data).hexdigest() != digest:
        what = f"blob {digest} of table 'blob_chunks' fails its checksum"
        raise damaged_store(database.path, database.kind, what)
    return data


def blob_digests(database: Database) -> list[str]:
    """Return the digests of all archives."""
    found = database.query("SELECT digest FROM blobs ORDER BY digest")
    return [str(digest) for (digest,) in found]


def drop_blob(cursor: Cursor, digest: str) -> None:
    """Forget an archive; one that isn't there is no error."""
    cursor.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
