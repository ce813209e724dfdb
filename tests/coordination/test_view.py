"""Views as bytes: whole round trips, and bad bytes."""

from __future__ import annotations

from dataclasses import replace

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
from tasksprint.task_spec import TaskSpec

MERGE = TaskSpec("merge", '["ж",1e400]', (3,), ("r",))  # type: ignore[arg-type]
MAP = TaskSpec("map", "[]", (2,), ("k",), ("a", "b"), None, 500)  # type: ignore[arg-type]
VIEW = View(
    17,
    True,
    (JobEntry(1, "pp", "node.py"),),
    (
        Assignment(1, 4, 2, MERGE, (Input(3, "r", None, (1,)),), 2**62),
        Assignment(1, 5, 1, MAP, (Input(2, "k", "dd", (1, 2)),), 0),
    ),
    (Stop(1, 2, 3),),
    (Drop(1, 0, "ee"), Drop(1, 1, None)),
    (DropJob(2, (5, 7), "failed"),),
    (ClientAddress(1, "host:1"), ClientAddress(2, None)),
)  # type: ignore[arg-type]


def test_a_view_survives_its_encoding() -> None:
    assert decode_view(encode_view(VIEW)) == VIEW


def test_a_view_leaves_out_what_clients_are_not_told() -> None:
    one = replace(VIEW.run[0], spec=replace(MERGE, retries=3))
    assert decode_view(encode_view(replace(VIEW, run=(one, *VIEW.run[1:])))) == VIEW


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
