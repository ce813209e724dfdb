"""Consensus messages as frames between replicas, and back.

A frame is a header (JSON) and raw parts (protocol/replica_frames.py): values of slots
and forwarded commands travel as the bytes that they are. The frame names no sender and no
receiver: the stream knows both. So one frame serves all peers that are told the same.
"""

from __future__ import annotations

from tasksprint.arrays import Arrays
from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus import (
    Accept,
    Accepted,
    Ballot,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    ChosenNotice,
    Envelope,
    Forward,
    Found,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Mark,
    Marks,
    Message,
    Nack,
    Prepare,
    Promise,
    Resign,
    Stale,
    Stranger,
)
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.protocol.replica_frames import decode_body, encode_body

__all__ = ["TAGS", "decode", "encode"]

# A reader of this version understands our frames (release.py, `Speaks.frames`).
FORMAT_VERSION = 2

TAGS: dict[type, str] = {
    Accept: "accept",
    Accepted: "accepted",
    Canvass: "canvass",
    CanvassReply: "canvass-reply",
    CatchUpReply: "catch-up-reply",
    CatchUpRequest: "catch-up",
    ChosenNotice: "chosen",
    Forward: "forward",
    Found: "found",
    Heartbeat: "heartbeat",
    HeartbeatReply: "heartbeat-reply",
    Hello: "hello",
    Marks: "marks",
    Nack: "nack",
    Prepare: "prepare",
    Promise: "promise",
    Resign: "resign",
    Stale: "stale",
    Stranger: "stranger",
}
_ARRAYS = Arrays(TAGS, flat=(Ballot,), beside=True)
_MESSAGES = _ARRAYS.tagged(Message)
_read_head = _ARRAYS.reader(tuple[Incarnation, int, int, int])


def encode(envelope: Envelope) -> bytes:
    """Return the body of the frame that carries this envelope, to any receiver."""
    message = envelope.message
    kind = type(message)
    header = [FORMAT_VERSION, envelope.source_incarnation, *envelope.mark]
    header += _ARRAYS.writer(kind)(message)
    return encode_body(header, _ARRAYS.parts(kind)(message), encode_json=encode_json)


def decode(frame: bytes, *, source: ReplicaId, target: ReplicaId) -> Envelope:
    """Return the envelope of a frame's body.

    Args:
        source: The replica at the other end of the stream.
        target: This replica.

    Raises:
        RemoteProtocolError: This release doesn't understand it.
    """
    who = f"replica {source}"
    header, parts = decode_body(frame, decode_json=decode_json, who=who)
    try:
        if header[0] != FORMAT_VERSION:
            raise RemoteProtocolError(
                f"{who} speaks version {bounded_repr(header[0])} of the replicas' protocol, "
                f"expected {FORMAT_VERSION}; run the same release everywhere"
            )
        incarnation, life, start, number = _read_head(parts, *header[1:5])
        message = _ARRAYS.reader(_MESSAGES[header[5]])(parts, *header[5:])
        return Envelope(source, incarnation, target, message, Mark(life, start, number))
    except (LookupError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"frame from {who} can't be understood: {error!r}") from error
