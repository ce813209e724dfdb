"""Batches of commands as the value of a slot."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasksprint.consensus import NOOP, decode_batch, encode_batch
from tasksprint.consensus.batch import ALONE_MARK, MEMBERSHIP_MARK, encode_alone
from tasksprint.consensus.membership import decode_membership, decode_membership_value
from tasksprint.errors import RemoteProtocolError


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=300), max_size=30))
def test_batch_comes_back_as_it_was(commands: list[bytes]) -> None:
    assert decode_batch(encode_batch(commands)) == tuple(commands)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_cut_batch_is_refused_or_ends_between_commands(
    commands: list[bytes], data: st.DataObject
) -> None:
    whole = encode_batch(commands)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        decoded = decode_batch(cut)
    except RemoteProtocolError:
        return
    assert decoded == tuple(commands[: len(decoded)])


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_garbage_is_refused_or_is_a_batch(garbage: bytes) -> None:
    try:
        commands = decode_batch(garbage)
    except RemoteProtocolError:
        return
    assert encode_batch(commands) == garbage or garbage.startswith(MEMBERSHIP_MARK)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_command_that_stands_alone_comes_back_and_is_no_membership(text: str) -> None:
    try:
        command = text.encode()
    except UnicodeEncodeError:
        return
    assert decode_batch(encode_alone(command)) == (command,)
    assert decode_membership_value(encode_alone(command)) is None


def test_releases_that_do_not_know_lone_commands_take_them_for_another_version() -> None:
    """They read a value with the mark as a membership; so they stop, and pass over nothing."""
    value = encode_alone(b'["rules",2]')
    with pytest.raises(RemoteProtocolError) as caught:
        decode_membership(value[len(MEMBERSHIP_MARK) :])
    assert str(caught.value) == (
        "a membership has version 'none: it raises the rules', expected 1; "
        "run the same release everywhere"
    )


@pytest.mark.parametrize("rest", [b"", b"[1]}", b'"a"', b'"a"}}', b'"\xff"}'])
def test_spoiled_lone_command_is_refused(rest: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_batch(ALONE_MARK + rest)


def test_empty_batch_is_the_no_op() -> None:
    assert encode_batch([]) == NOOP
    assert decode_batch(NOOP) == ()


def test_refusal_says_what_is_wrong() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_batch(b"\0\0\0\x09abc")
    assert str(caught.value) == (
        "a batch of 7 bytes ends within a command, expected 13 bytes; "
        "a replica runs another version, or its disk is damaged"
    )
