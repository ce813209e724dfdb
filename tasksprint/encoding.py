"""JSON as our own processes write and read it, and digests.

JSON that a user's program made (an argument, a value) never passes through here
as an object: orjson would turn 2**70 into a float. Between our processes such a
text travels inside a JSON *string*. Only the edges (the node's and the scheduler's
lines) splice it in, and cut it out, as the bytes that it is.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from tasksprint.errors import RemoteProtocolError

__all__ = ["decode_json", "encode_json", "result_digest", "value_digest"]


def encode_json(value: Any) -> bytes:
    """Return compact UTF-8 JSON; dictionaries keep their order."""
    return orjson.dumps(value)


def decode_json(data: bytes | memoryview) -> Any:
    """Return the object that `data` encodes.

    Raises:
        RemoteProtocolError: It isn't JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RemoteProtocolError(f"not JSON: {error}") from error


def value_digest(data: bytes | memoryview) -> str:
    """Return the SHA-256 of a value's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def result_digest(manifest: list[tuple[str, str, int, str]]) -> str:
    """Return the digest that stands for all of a task's values.

    Args:
        manifest: (key, kind, size in bytes, value digest) for each value, sorted
            by key; kind is "json" or "bytes".
    """
    return hashlib.sha256(orjson.dumps(manifest)).hexdigest()
