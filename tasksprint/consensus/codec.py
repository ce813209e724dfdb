"""Consensus messages as frames between replicas, and back.

A frame is a header (JSON) and raw parts (protocol/replica_frames.py): values of slots
and forwarded commands travel as the bytes that they are. It doesn't say whose it is and
for whom: the stream knows. So one frame serves all to whom the same is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    LogEntry,
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
from tasksprint.consensus.skips import decode_skips, encode_skips
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import LocalProtocolError, RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.protocol.replica_frames import decode_body, encode_body
from tasksprint.release import SILENT, decode_speaks, encode_speaks

__all__ = ["decode", "encode"]

# Whoever reads frames of this version understands ours (release.py, `Speaks.frames`).
FORMAT_VERSION = 2

# --- encoding: (kind, fields as JSON, raw parts) ---


def encode(envelope: Envelope) -> bytes:
    """Return the body of the frame that carries this envelope, to whomever."""
    kind, fields, parts = _encode_message(envelope.message)
    header = [FORMAT_VERSION, envelope.source_incarnation, *envelope.mark, kind, *fields]
    return encode_body(header, parts, encode_json=encode_json)


def _encode_message(message: Message) -> tuple[str, Sequence[Any], Sequence[bytes]]:
    match message:
        case Accept(ballot, slot, value, chosen_end):
            return "accept", (*_pair(ballot), slot, chosen_end), (value,)
        case Accepted(ballot, slots):
            return "accepted", (*_pair(ballot), slots), ()
        case ChosenNotice(ballot, chosen_end):
            return "chosen", (*_pair(ballot), chosen_end), ()
        case Heartbeat(ballot, beat, chosen_end):
            return "heartbeat", (*_pair(ballot), beat, chosen_end), ()
        case HeartbeatReply(ballot, beat, chosen_end):
            return "heartbeat-reply", (*_pair(ballot), beat, chosen_end), ()
        case Forward(commands):
            return "forward", (), commands
        case Hello(address, heard, cluster, members, skips, speaks):
            said = () if speaks == SILENT else (encode_speaks(speaks),)
            return "hello", (address, heard, cluster, members, *said), (skips,)
        case Found(founding, membership, skips):
            return "found", (), (founding, membership, skips)
        case Stranger(cluster, expected, found, membership):
            return "stranger", (cluster, expected, found), (membership,)
        case Stale(cluster, life, seen, found):
            return "stale", (cluster, life, seen, found), ()
        case Marks(known):
            return "marks", (known,), ()
        case Canvass(number, chosen_end):
            return "canvass", (number, chosen_end), ()
        case CanvassReply(number, is_welcome, round_, chosen_end):
            return "canvass-reply", (number, is_welcome, round_, chosen_end), ()
        case Prepare(ballot, first_slot):
            return "prepare", (*_pair(ballot), first_slot), ()
        case Promise(ballot, first_slot, entries):
            heads, values = _entries(entries)
            return "promise", (*_pair(ballot), first_slot, heads), values
        case Nack(ballot, promised):
            return "nack", (*_pair(ballot), *_pair(promised)), ()
        case Resign(ballot, cause):
            return "resign", (*_pair(ballot), cause), ()
        case CatchUpRequest(first_slot):
            return "catch-up", (first_slot,), ()
        case CatchUpReply(first_slot, entries, chosen_end, log_start):
            heads, values = _entries(entries)
            return "catch-up-reply", (first_slot, heads, chosen_end, log_start), values
        case _:
            raise LocalProtocolError(f"no frame for a {type(message).__name__}")


def _pair(ballot: Ballot) -> tuple[int, int]:
    return ballot.round, ballot.replica


def _entries(entries: Sequence[LogEntry]) -> tuple[list[tuple[int, int, int]], list[bytes]]:
    heads: list[tuple[int, int, int]] = [
        (entry.slot, entry.ballot.round, entry.ballot.replica) for entry in entries
    ]
    return heads, [entry.value for entry in entries]


# --- decoding ---

_Decoder = Callable[[list[Any], list[bytes]], Message]


def decode(frame: bytes, *, source: ReplicaId, target: ReplicaId) -> Envelope:
    """Return what a frame's body says, with who says it to whom.

    Raises:
        RemoteProtocolError: It says nothing that this release knows.
    """
    who = f"replica {source}"
    header, parts = decode_body(frame, decode_json=decode_json, who=who)
    try:
        if header[0] != FORMAT_VERSION:
            raise RemoteProtocolError(
                f"{who} speaks version {header[0]!r} of the replicas' protocol, "
                f"expected {FORMAT_VERSION}; run the same release everywhere"
            )
        _, incarnation, life, start, number, kind, *fields = header
        _check((incarnation, life, start, number), _HEAD_SHAPE)
        _check(fields, _SHAPES[kind])
        message = _DECODERS[kind](fields, parts)
        mark = Mark(life, start, number)
        return Envelope(source, Incarnation(incarnation), target, message, mark)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"frame from {who} can't be understood: {error!r}") from error


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_mark(value: Any) -> bool:
    is_list = type(value) is list and len(value) == 4 and _is_text(value[0])
    # A life of -1 is none: the replica counts as lost.
    return is_list and type(value[1]) is int and all(map(_is_number, value[2:]))


def _is_head(value: Any) -> bool:
    return type(value) is list and len(value) == 3 and all(map(_is_number, value))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "number": _is_number,
    "numbers": lambda value: type(value) is list and all(map(_is_number, value)),
    "heads": lambda value: type(value) is list and all(map(_is_head, value)),  # of entries
    "marks": lambda value: type(value) is list and all(map(_is_mark, value)),
    "text": _is_text,
    "text?": lambda value: value is None or type(value) is str,
    "bool": lambda value: type(value) is bool,
}


def _shape(words: str) -> tuple[Callable[[Any], bool], ...]:
    return tuple(_CHECKS[word] for word in words.split())


_HEAD_SHAPE = _shape("text number number number")
# The core relies on these types: a wrong one would be found in the middle of a change.
_SHAPES = {
    "accept": _shape("number number number number"),
    "accepted": _shape("number number numbers"),
    "chosen": _shape("number number number"),
    "heartbeat": _shape("number number number number"),
    "heartbeat-reply": _shape("number number number number"),
    "forward": (),
    "hello": _shape("text text? text? numbers"),
    "found": (),
    "stranger": _shape("text text? text"),
    "stale": _shape("text number number number"),
    "marks": _shape("marks"),
    "canvass": _shape("number number"),
    "canvass-reply": _shape("number bool number number"),
    "prepare": _shape("number number number"),
    "promise": _shape("number number number heads"),
    "nack": _shape("number number number number"),
    "resign": _shape("number number text"),
    "catch-up": _shape("number"),
    "catch-up-reply": _shape("number heads number number"),
}


def _check(fields: Sequence[Any], shape: tuple[Callable[[Any], bool], ...]) -> None:
    if len(fields) < len(shape):
        raise ValueError(f"{len(fields)} fields, expected {len(shape)}")
    for field, is_right in zip(fields, shape, strict=False):
        if not is_right(field):
            raise ValueError(f"unexpected {field!r:.50}")


def _checked_skips(data: bytes) -> bytes:
    if encode_skips(decode_skips(data)) != data:
        raise ValueError(f"unexpected {data!r:.50}")
    return data


def _decode_entries(heads: list[Any], values: list[bytes]) -> tuple[LogEntry, ...]:
    return tuple(
        LogEntry(slot, Ballot(round_, replica), value)
        for (slot, round_, replica), value in zip(heads, values, strict=True)
    )


_DECODERS: dict[str, _Decoder] = {
    "accept": lambda f, p: Accept(Ballot(f[0], f[1]), f[2], p[0], f[3]),
    "accepted": lambda f, p: Accepted(Ballot(f[0], f[1]), tuple(f[2])),
    "chosen": lambda f, p: ChosenNotice(Ballot(f[0], f[1]), f[2]),
    "heartbeat": lambda f, p: Heartbeat(Ballot(f[0], f[1]), f[2], f[3]),
    "heartbeat-reply": lambda f, p: HeartbeatReply(Ballot(f[0], f[1]), f[2], f[3]),
    "forward": lambda f, p: Forward(tuple(p)),
    "hello": lambda f, p: Hello(
        f[0], f[1], f[2], tuple(f[3]), _checked_skips(p[0]), decode_speaks(*f[4:5] or (None,))
    ),
    "found": lambda f, p: Found(p[0], p[1], _checked_skips(p[2])),
    "stranger": lambda f, p: Stranger(f[0], f[1], f[2], p[0]),
    "stale": lambda f, p: Stale(f[0], f[1], f[2], f[3]),
    "marks": lambda f, p: Marks(tuple([(source, *mark) for source, *mark in f[0]])),
    "canvass": lambda f, p: Canvass(f[0], f[1]),
    "canvass-reply": lambda f, p: CanvassReply(f[0], f[1], f[2], f[3]),
    "prepare": lambda f, p: Prepare(Ballot(f[0], f[1]), f[2]),
    "promise": lambda f, p: Promise(Ballot(f[0], f[1]), f[2], _decode_entries(f[3], p)),
    "nack": lambda f, p: Nack(Ballot(f[0], f[1]), Ballot(f[2], f[3])),
    "resign": lambda f, p: Resign(Ballot(f[0], f[1]), f[2]),
    "catch-up": lambda f, p: CatchUpRequest(f[0]),
    "catch-up-reply": lambda f, p: CatchUpReply(f[0], _decode_entries(f[1], p), f[2], f[3]),
}
