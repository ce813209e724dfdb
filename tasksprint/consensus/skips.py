"""Commands of the log that operators have left out: no member applies them.

A command may raise an error when it is applied. That is a bug, the same on all replicas, and
would stop them at this slot for ever. So operators mark the command on each stopped member.
Members with different marks would come to different states, so they don't hear each other
(admission.py). A new member takes over the marks of the member that introduces it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from tasksprint.arrays import Through
from tasksprint.ids import Slot

__all__ = ["Skip", "Skips", "decode_skips", "describe_skips", "encode_skips", "first_slots"]


def _checked(data: bytes) -> bytes:
    """Return the marks as they came, if `encode_skips` wrote them so."""
    if encode_skips(decode_skips(data)) != data:
        raise ValueError(f"unexpected {data!r:.50}")
    return data


# The bytes of `encode_skips`, in a message.
Skips = Annotated[bytes, Through(_checked)]


class Skip(NamedTuple):
    """One command that isn't applied, nor the same bytes in any later slot."""

    slot: Slot
    command: int  # its index in the entry, for people
    digest: str  # SHA-256 of its bytes, hex


def encode_skips(skips: Iterable[Skip]) -> bytes:
    """Return the text of these marks; equal marks have equal texts. b"": there are none."""
    lines = [f"{slot} {command} {digest}" for slot, command, digest in sorted(set(skips))]
    return "\n".join(lines).encode()


def decode_skips(data: bytes | None) -> tuple[Skip, ...]:
    """Return the marks that `encode_skips` was given, sorted."""
    result = []
    for line in (data or b"").decode().splitlines():
        slot, command, digest = line.split(" ")
        result.append(Skip(Slot(int(slot)), int(command), digest))
    return tuple(result)


def first_slots(data: bytes | None) -> dict[str, Slot]:
    """Return the marks as the state machine needs them: digest -> first slot."""
    return {skip.digest: skip.slot for skip in reversed(decode_skips(data))}


def describe_skips(data: bytes | None) -> str:
    """Return the marks in words."""
    skips = decode_skips(data)
    return ", ".join([f"command {each.command} of slot {each.slot}" for each in skips]) or "none"
