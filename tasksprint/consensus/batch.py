"""The value of a slot: a batch of commands, each behind a 4-byte big-endian length.

A command is opaque bytes. The empty batch is `NOOP`: it fills a slot that must be
decided though no command waits. A value that begins with `MEMBERSHIP_MARK` carries a
membership (membership.py) instead of commands.

A command may also stand alone, in a form of its own. Releases before 0.3.0 take such a value
for a membership of an unknown version. A follower of theirs stops there with a sentence. That is
the purpose: those releases pass over commands that they don't know. Passing over this one, they
would go on with another state. A leader of theirs doesn't stop by itself, so it is deposed
(`Candidate.depose`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tasksprint.bounded_text import bounded_repr
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError

__all__ = [
    "ALONE_MARK",
    "COMMAND_OVERHEAD_BYTES",
    "MEMBERSHIP_MARK",
    "NOOP",
    "decode_batch",
    "encode_alone",
    "encode_batch",
    "split_commands",
    "stands_alone",
]

NOOP = b""
COMMAND_OVERHEAD_BYTES = 4
# A batch begins with the length of its first command; no command is as long as this.
MEMBERSHIP_MARK = b"\xff\xff\xff\xff"
ALONE_MARK = MEMBERSHIP_MARK + b'{"version":"none: it raises the rules","command":'


def encode_batch(commands: Iterable[bytes]) -> bytes:
    """Return the value that carries these commands, in this order."""
    pieces: list[bytes] = []
    for command in commands:
        pieces.append(len(command).to_bytes(4, "big"))
        pieces.append(command)
    return b"".join(pieces)


def encode_alone(command: bytes) -> bytes:
    """Return the value of an entry that holds this command alone; it must be UTF-8 text."""
    return ALONE_MARK + encode_json(command.decode()) + b"}"


def stands_alone(value: bytes) -> bool:
    """Whether a value is of the form in which a command stands alone."""
    return value.startswith(ALONE_MARK)


def decode_batch(value: bytes) -> tuple[bytes, ...]:
    """Return the commands of a value; none, if it carries a membership.

    Raises:
        RemoteProtocolError: It ends within a command, or isn't one.
    """
    if stands_alone(value):
        command = decode_json(value[len(MEMBERSHIP_MARK) :])["command"]
        if not isinstance(command, str):
            raise RemoteProtocolError(f"{bounded_repr(command)} isn't a command's text")
        return (command.encode(),)
    if value.startswith(MEMBERSHIP_MARK):
        return ()
    commands: list[bytes] = []
    position = 0
    size = len(value)
    while position < size:
        start = position + 4
        position = start + int.from_bytes(value[position:start], "big")
        if position > size or start > size:
            raise RemoteProtocolError(
                f"a batch of {size} bytes ends within a command, expected {position} bytes; "
                "a replica runs another version, or its disk is damaged"
            )
        commands.append(value[start:position])
    return tuple(commands)


def split_commands(commands: Iterable[bytes], bytes_max: int) -> Iterator[tuple[bytes, ...]]:
    """Cut commands into pieces of at most so many bytes, or of one command."""
    piece: list[bytes] = []
    size = 0
    for command in commands:
        if piece and size + len(command) > bytes_max:
            yield tuple(piece)
            piece, size = [], 0
        piece.append(command)
        size += len(command)
    if piece:
        yield tuple(piece)
