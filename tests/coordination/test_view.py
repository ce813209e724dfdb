"""Views as bytes: whole round trips, and bad bytes."""

from __future__ import annotations

import pytest

from tasksprint.coordination.view import (
    Assignment,
    ClientAddress,
    Drop,
    DropJob,
    Input,
    JobEntry,
    Stop,
    View,
    decode_view,
    encode_view,
)
from tasksprint.errors import RemoteProtocolError

VIEW = View(
    17,
    True,
    (JobEntry(1, "pp", "node.py"),),
    (
        Assignment(1, 4, 2, "merge", '["ж",1e400]', (Input(3, "r", None, (1,)),), (), 2**62, None),
        Assignment(1, 5, 1, "map", "[]", (Input(2, "k", "dd", (1, 2)),), ("a", "b"), 0, 500),
    ),
    (Stop(1, 2, 3),),
    (Drop(1, 0, "ee"), Drop(1, 1, None)),
    (DropJob(2, (5, 7), "failed"),),
    (ClientAddress(1, "host:1"), ClientAddress(2, None)),
)  # type: ignore[arg-type]


def test_a_view_survives_its_encoding() -> None:
    assert decode_view(encode_view(VIEW)) == VIEW


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"[1,true,[],[],[],[],[]]",
        b"[1,true,[[1]],[],[],[],[],[]]",
        b"[1,true,[],[[1,2]],[],[],[],[]]",
        b"[1,true,[],[[1,2,3,4,5,[1],7,8,9]],[],[],[],[]]",
        b"[1,true,[],[],[[1]],[],[],[]]",
        b"[1,true,[],[],[],[],[[1,2]],[]]",
    ],
)
def test_bytes_that_are_no_view_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_view(data)


def test_a_view_without_changes_is_empty() -> None:
    assert View(5, False, (), (), (), (), (), ()).is_empty
    assert not View(5, True, (), (), (), (), (), ()).is_empty
