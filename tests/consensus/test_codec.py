"""Every consensus message travels between replicas unchanged."""

from __future__ import annotations

import typing

import pytest

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
from tasksprint.consensus.codec import decode, encode
from tasksprint.consensus.skips import Skip, encode_skips
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.release import Speaks

BALLOT = Ballot(7, ReplicaId(2))
ENTRIES = (
    LogEntry(Slot(3), BALLOT, b"\n\x00\xff"),
    LogEntry(Slot(4), Ballot(1, ReplicaId(1)), b""),
)

MESSAGES: list[Message] = [
    Hello("10.0.0.1:7070", None, None, (ReplicaId(1), ReplicaId(2))),
    Hello("10.0.0.1:7070", Incarnation("aa"), "c9f1", (ReplicaId(1),)),
    Hello("h", None, "c9f1", (), encode_skips([Skip(Slot(17), 3, "ab" * 32)])),
    Hello("h", None, None, (), speaks=Speaks("0.3.0", (1, 2), (2, 3), (1, 2))),
    Found(b'{"version":1}\n', b'{"version":1,"number":0}'),
    Stranger("c9f1", None, Incarnation("bb"), b'{"version":1}'),
    Canvass(11, Slot(5)),
    CanvassReply(11, True, 6, Slot(5)),
    Prepare(BALLOT, Slot(9)),
    Promise(BALLOT, Slot(3), ENTRIES),
    Promise(BALLOT, Slot(3), ()),
    Nack(BALLOT, Ballot(8, ReplicaId(3))),
    Accept(BALLOT, Slot(9), b"\n[1]\n", Slot(8)),
    Accepted(BALLOT, (Slot(8), Slot(9))),
    ChosenNotice(BALLOT, Slot(9)),
    Heartbeat(BALLOT, 4, Slot(9)),
    HeartbeatReply(BALLOT, 4, Slot(9)),
    Resign(BALLOT, "its disk is slow"),
    CatchUpRequest(Slot(1)),
    CatchUpReply(Slot(3), ENTRIES, Slot(9), Slot(1)),
    Forward((b"[1]", b"", b"\n")),
    Stale("c0ffee", 12, 45, 17),
    Marks(((Incarnation("aa"), 12, 3, 45), (Incarnation("bb"), -1, 7, 0))),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_comes_out_as_it_went_in(message: Message) -> None:
    envelope = Envelope(ReplicaId(1), Incarnation("aa"), ReplicaId(2), message, Mark(9, 3, 5))
    assert decode(encode(envelope), source=ReplicaId(1), target=ReplicaId(2)) == envelope


def test_every_kind_of_message_is_covered() -> None:
    assert {type(message) for message in MESSAGES} == set(typing.get_args(Message))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            b'[[1,"aa","found"],[0]]\n',
            "speaks version 1 of the replicas' protocol, expected 2",
        ),
        (b'[[2,"aa",9,3,5,"gossip"],[]]\n', "frame from replica 1 can't be understood"),
        (b'[[2,"aa",9,3,5,"accept",1],[]]\n', "frame from replica 1 can't be understood"),
        (b'[[2,"aa",9,3,-1,"found"],[0]]\n', "frame from replica 1 can't be understood"),
        (b'[[2,"aa",9,3,5,"marks",[[1]]],[]]\n', "frame from replica 1 can't be understood"),
        (b"[[],[]]\n", "frame from replica 1 can't be understood"),
    ],
)
def test_frame_that_carries_no_message_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frame, source=ReplicaId(1), target=ReplicaId(2))
    assert message in str(caught.value)
