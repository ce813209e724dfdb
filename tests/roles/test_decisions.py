"""Who waits for which command, and what each is told."""

from __future__ import annotations

from tasksprint.coordination.commands import Tick, encode_command
from tasksprint.roles.coordinator.decisions import Decisions


def test_everybody_who_waits_for_equal_bytes_gets_the_reply() -> None:
    decisions = Decisions()
    told: list[tuple[str, bytes | None]] = []
    decisions.wait(b"a", lambda reply: told.append(("first", reply)))
    decisions.wait(b"a", lambda reply: told.append(("second", reply)))
    decisions.applied((b"other", b"a"), (b"x", b"y"))
    assert told == [] and len(decisions) == 0
    decisions.tell()
    assert told == [("first", b"y"), ("second", b"y")]


def test_a_command_without_a_reply_is_answered_with_an_empty_object() -> None:
    decisions = Decisions()
    told: list[bytes | None] = []
    decisions.wait(b"a", told.append)
    decisions.applied((b"a",), (None,))
    decisions.tell()
    assert told == [b"{}"]


def test_giving_up_tells_none_and_keeps_what_was_decided_before() -> None:
    decisions = Decisions()
    told: list[bytes | None] = []
    decisions.wait(b"a", told.append)
    decisions.wait(b"b", told.append)
    decisions.applied((b"a",), (b"done",))
    decisions.give_up()
    assert told == [b"done", None] and len(decisions) == 0


def test_a_command_is_decoded_once_and_forgotten() -> None:
    decisions = Decisions()
    command = Tick(5, 7)
    data = encode_command(command)
    decisions.wait(data, lambda reply: None, command)
    assert decisions.decode(data, 1) is command
    again = decisions.decode(data, 1)
    assert again == command and again is not command
