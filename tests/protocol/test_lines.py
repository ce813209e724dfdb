"""Lines and raw bytes come out as they were sent, however the chunks fall."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.lines import LineBuffer
from tests.protocol.steady import steady


def buffer(limit: int = 1 << 20) -> LineBuffer:
    return LineBuffer(who="node 3", line_bytes_max=limit, remedy="send large results as frames")


def lines(buffer: LineBuffer) -> list[bytes]:
    found = []
    while (line := buffer.next_line()) is not None:
        found.append(line)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@steady
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20))
def test_lines_are_the_same_for_every_way_to_cut_the_stream(
    data: bytes, places: list[int]
) -> None:
    box = buffer()
    found = []
    for chunk in cut(data, places):
        box.feed(chunk)
        found += lines(box)
    *expected, rest = data.split(b"\n")
    assert found == expected
    assert box.pending_bytes == len(rest)


@steady
@given(st.lists(st.binary(max_size=30), max_size=6), st.lists(st.integers(0, 400), max_size=20))
def test_raw_bytes_after_a_line_may_hold_newlines(frames: list[bytes], places: list[int]) -> None:
    data = b"".join(b"%d\n%b" % (len(frame), frame) for frame in frames)
    box = buffer()
    found: list[bytes] = []
    size: int | None = None
    for chunk in cut(data, places):
        box.feed(chunk)
        while True:
            if size is None:
                line = box.next_line()
                if line is None:
                    break
                size = int(line)
            raw = box.take(size)
            if raw is None:
                break
            found.append(raw)
            size = None
    assert found == frames
    assert box.pending_bytes == 0


def test_chunk_that_was_not_taken_completely_is_kept() -> None:
    box = buffer()
    box.feed(b"one\ntwo\nth")
    assert box.next_line() == b"one"
    box.feed(b"ree\n")
    assert lines(box) == [b"two", b"three"]


def test_pattern_takes_only_whole_lines_at_the_start_of_one() -> None:
    pattern = re.compile(rb"(\d+)\n")
    box = buffer()
    box.feed(b"12\n3")
    found = box.match(pattern)
    assert found is not None and found[1] == b"12"
    assert box.match(pattern) is None
    assert box.next_line() is None
    box.feed(b"4\n")
    # The line began in the chunk before.
    assert box.match(pattern) is None
    assert box.next_line() == b"34"


MESSAGE = "line from node 3 has more than 10 bytes (line_bytes_max); send large results as frames"


def test_line_of_the_largest_length_passes() -> None:
    box = buffer(10)
    box.feed(b"0123456789\n")
    assert lines(box) == [b"0123456789"]


def test_longer_line_is_refused_when_it_is_complete() -> None:
    box = buffer(10)
    box.feed(b"01234567890\n")
    with pytest.raises(RemoteProtocolError) as caught:
        box.next_line()
    assert str(caught.value) == MESSAGE


def test_longer_line_is_refused_before_it_ends() -> None:
    box = buffer(10)
    for byte in b"0123456789":
        box.feed(bytes([byte]))
        assert box.next_line() is None
    box.feed(b"0")
    with pytest.raises(RemoteProtocolError) as caught:
        box.next_line()
    assert str(caught.value) == MESSAGE


def test_long_line_in_small_chunks_costs_what_its_length_costs() -> None:
    """Searching or joining all of it at each chunk would take minutes."""
    box = buffer(1 << 24)
    began = time.process_time()
    for _ in range(100_000):
        box.feed(b"x" * 50)
        assert box.next_line() is None
    box.feed(b"\n")
    line = box.next_line()
    assert line is not None and len(line) == 5_000_000
    assert time.process_time() - began < 5
