"""Frames between replicas come out as they went in, or not at all."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import LocalProtocolError, RemoteProtocolError
from tasksprint.protocol.replica_frames import FrameDecoder, encode_frame
from tests.protocol.steady import steady

LIMIT = 1_000_000


def encode(header: list[Any], parts: list[bytes], limit: int = LIMIT) -> bytes:
    return encode_frame(header, parts, encode_json=encode_json, frame_bytes_max=limit)


def decoder(limit: int = LIMIT) -> FrameDecoder:
    return FrameDecoder(who="replica 2", decode_json=decode_json, frame_bytes_max=limit)


frames = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2**40) | st.text(max_size=5) | st.none(), max_size=4),
        st.lists(st.binary(max_size=50), max_size=4),
    ),
    max_size=4,
)


@steady
@given(frames, st.lists(st.integers(0, 2_000), max_size=10))
def test_frames_are_the_same_for_every_way_to_cut_the_stream(
    sent: list[tuple[list[Any], list[bytes]]], places: list[int]
) -> None:
    try:
        data = b"".join(encode(header, parts) for header, parts in sent)
    except TypeError:  # half a surrogate pair, which orjson refuses
        return
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    made = decoder()
    found = []
    for start, end in pairwise(edges):
        found += made.feed(data[start:end])
    assert found == [(header, parts) for header, parts in sent]
    assert not made.is_inside_frame


def test_frame_byte_by_byte_with_the_next_behind() -> None:
    data = encode(["accept", 7], [b"\n\n", b"", b"x" * 300]) + encode([], [])
    made = decoder()
    found = []
    for byte in data:
        found += made.feed(bytes([byte]))
    assert found == [(["accept", 7], [b"\n\n", b"", b"x" * 300]), ([], [])]
    made.feed(data[:3])
    assert made.is_inside_frame


def test_stream_that_breaks_after_a_length_broke_inside_a_frame() -> None:
    made = decoder()
    assert made.feed(encode(["x"], [])[:4]) == []
    assert made.is_inside_frame


def test_frame_over_the_limit_is_refused_by_its_sender_and_before_it_is_read() -> None:
    with pytest.raises(LocalProtocolError) as local:
        encode(["catch-up"], [b"x" * 100], 100)
    assert str(local.value) == (
        "frame ['catch-up'] has 121 bytes, expected at most 100 (frame_bytes_max)"
    )
    with pytest.raises(RemoteProtocolError) as remote:
        decoder(100).feed((101).to_bytes(4, "big"))
    assert str(remote.value) == (
        "frame from replica 2 has 101 bytes, expected at most 100 (frame_bytes_max)"
    )


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
        decoder().feed(len(body).to_bytes(4, "big") + body)
    assert message in str(caught.value)


@pytest.mark.parametrize("codec", [decode_json, json.loads])
@steady
@given(data=st.lists(st.binary(max_size=40), max_size=4), framed=st.booleans())
def test_garbage_gives_frames_or_a_protocol_error(
    codec: Any, data: list[bytes], framed: bool
) -> None:
    made = FrameDecoder(who="replica 2", decode_json=codec, frame_bytes_max=1_000)
    try:
        for chunk in data:
            made.feed(len(chunk).to_bytes(4, "big") + chunk if framed else chunk)
    except RemoteProtocolError:
        pass
