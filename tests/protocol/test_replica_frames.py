"""What frames between replicas hold comes out as it went in, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.replica_frames import decode_body, encode_body
from tests.protocol.steady import steady


def decode(body: bytes, codec: Any = decode_json) -> tuple[list[Any], list[bytes]]:
    return decode_body(body, decode_json=codec, who="replica 2")


@steady
@given(
    st.lists(st.integers(0, 2**40) | st.text(max_size=5) | st.none(), max_size=4),
    st.lists(st.binary(max_size=50), max_size=4),
)
def test_header_and_parts_come_out_as_they_went_in(header: list[Any], parts: list[bytes]) -> None:
    try:
        body = encode_body(header, parts, encode_json=encode_json)
    except TypeError:  # half a surrogate pair, which orjson refuses
        return
    assert decode(body) == (header, parts)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "frame from replica 2 has no header line"),
        (b"[[],[]]", "frame from replica 2 has no header line"),
        (b"hello\n", "not JSON"),
        (b"[]\n", "frame from replica 2 has no header and lengths"),
        (b'{"a":1}\n', "frame from replica 2 has no header and lengths"),
        (b"[1,[]]\n", "frame from replica 2 has no header and lengths"),
        (b"[[],[5]]\nabc", "names a part of 5 bytes, 3 are left"),
        (b"[[],[-1]]\nabc", "names a part of -1 bytes, 3 are left"),
        (b'[[],["1"]]\nabc', "names a part of '1' bytes"),
        (b"[[],[1]]\nabc", "frame from replica 2 has 2 bytes behind its parts"),
    ],
)
def test_wrong_body_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(body)
    assert message in str(caught.value)


@pytest.mark.parametrize("codec", [decode_json, json.loads])
@steady
@given(body=st.binary(max_size=60))
def test_garbage_gives_a_body_or_a_protocol_error(codec: Any, body: bytes) -> None:
    try:
        decode(body, codec)
    except RemoteProtocolError:
        pass
