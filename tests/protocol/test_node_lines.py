"""What a client says to a node and hears from it."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol import node_lines
from tasksprint.protocol.long_lines import take_values_out
from tasksprint.protocol.node_lines import (
    FilePath,
    InPieces,
    NodeFailure,
    NodeLongLine,
    NodeMessage,
    NodePiece,
    NodeReader,
    NodeReady,
    NodeReply,
    encode_task,
)
from tasksprint.task_spec import TaskSpec
from tests.protocol.steady import steady

READY = b'{"ready":{},"frames":true,"window":64}\n'


def reader(ready: bytes = READY, limit: int = 1 << 20) -> NodeReader:
    made = NodeReader(who="node 3", line_bytes_max=limit, value_bytes_max=1_000_000)
    if ready:
        assert len(made.feed(ready)) == 1
    return made


def refused(line: bytes, ready: bytes = READY) -> str:
    one = reader(ready)
    with pytest.raises(RemoteProtocolError) as caught:
        one.feed(line)
        assert one.refusal is not None
        raise one.refusal
    return str(caught.value)


# --- tasks ---


def test_task_without_inputs_is_one_line_with_the_base_as_it_was_written() -> None:
    base = '[ 1.0e5, "نص", 1180591620717411303424 ]'
    buffers = encode_task(1, 3, 17, 2, TaskSpec("map", base), (), 123, True)
    assert b"".join(buffers).decode() == (
        f'{{"id":1,"job":3,"task":17,"attempt":2,"name":"map","args":{base},"seed":123}}\n'
    )


@pytest.mark.parametrize("base", ["[]", "[ ]", " [] ", "[1]", " [ 1 , [2, 3] ] "])
def test_inputs_follow_the_arguments_of_the_scheduler(base: str) -> None:
    inputs = [("json", b"1.50"), ("json", b'{"a":2}')]
    line = b"".join(
        encode_task(1, 3, 17, 1, TaskSpec("f", base), inputs, 5, True)
    )
    assert json.loads(line)["args"] == [*json.loads(base), 1.5, {"a": 2}]
    assert b"1.50" in line
    assert line.endswith(b"\n") and line.count(b"\n") == 1


def test_bytes_follow_the_line_raw_for_a_node_that_speaks_frames() -> None:
    big = b"\n" * 100_000
    buffers = encode_task(
        1,
        3,
        17,
        1,
        TaskSpec("f", '["x",[1,2]]'),
        [("bytes", b"ab"), ("json", b"7"), ("bytes", big)],
        5,
        True,
    )
    assert any(buffer is big for buffer in buffers), "big bytes must not be copied"
    line, raw = b"".join(buffers).split(b"\n", 1)
    assert raw == b"ab" + big
    assert json.loads(line) == {
        "id": 1, "job": 3, "task": 17, "attempt": 1, "name": "f",
        "args": ["x", [1, 2], None, 7, None], "seed": 5, "frames": [[2, 2], [4, 100_000]],
    }  # fmt: skip


def test_bytes_are_base64_for_any_other_node() -> None:
    line = b"".join(
        encode_task(
            1, 3, 17, 1, TaskSpec("f"), [("bytes", b"\xff\x00"), ("bytes", b"")], 5, False
        )
    )
    task = json.loads(line)
    assert task["args"] == [base64.b64encode(b"\xff\x00").decode(), ""]
    assert task["base64"] == [0, 1]
    assert "frames" not in task


def test_name_with_quotes_and_other_alphabets_stays_one_line() -> None:
    line = b"".join(encode_task(1, 1, 1, 1, TaskSpec('a"\\\nبـ'), (), 1, True))
    assert json.loads(line)["name"] == 'a"\\\nبـ'
    assert line.count(b"\n") == 1


# --- ready ---


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"ready":{}}', NodeReady(False, 1)),
        (b'{"ready":{},"frames":true,"window":64}', NodeReady(True, 64)),
        (b'{"ready":{},"takes":["a later member"]}', NodeReady(False, 1)),
        (b' { "window" : 2 , "ready" : {"sdk":"mine"} } \r', NodeReady(False, 2)),
    ],
)
def test_node_says_what_it_can_do(line: bytes, expected: NodeReady) -> None:
    made = reader(b"")
    assert made.ready is None
    assert made.feed(line + b"\n") == [expected]
    assert made.ready == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b"loading model ...",
            "node 3 began with 'loading model ...', expected {\"ready\":{}} as its first line; "
            "print to stderr, stdout carries the protocol",
        ),
        (b'{"id":1}', 'node 3 began with \'{"id":1}\', expected {"ready":{}} as its first line'),
        (b"\xff\xfe", "node 3 began with '\ufffd\ufffd', expected"),
        (b'{"ready":{}} x', 'expected {"ready":{}} as its first line'),
        (b'{"ready":{},"frame":true}', "said ready with 'frame', expected only 'frames', "),
        (b'{"ready":{},"frames":1}', "said ready with frames 1, expected true or false"),
        (b'{"ready":{},"window":0}', "said ready with window 0, expected how many tasks"),
        (b'{"ready":{},"window":true}', "said ready with window True, expected how many"),
        (b'{"ready":{},"takes":"name"}', "said ready with takes 'name', expected a list of mem"),
        (b'{"ready":{},"takes":[1]}', "said ready with takes [1], expected a list of members"),
    ],
)
def test_wrong_first_line_is_refused(line: bytes, message: str) -> None:
    assert message in refused(line + b"\n", b"")


def test_members_of_a_task_that_came_later_go_to_nodes_that_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(node_lines._ADDED, "limit", lambda spec: str(spec.timeout_ms))
    spec = TaskSpec("f", "[1]", timeout_ms=500)
    lines = {
        b'{"ready":{}}\n': b'"args":[1%b],"seed":5',
        b'{"ready":{},"takes":["other","limit"]}\n': b'"args":[1%b],"seed":5,"limit":500',
    }
    for ready, expected in lines.items():
        made = reader(ready).ready
        assert made is not None
        for inputs, end in ([], b""), ([("json", b"2")], b",2"):
            buffers = encode_task(1, 3, 17, 1, spec, inputs, 5, False, made.takes)
            line = b"".join([each for each in buffers if isinstance(each, bytes)])
            assert line.endswith(expected % end + b"}\n")
    buffers = encode_task(1, 3, 17, 1, spec, [("bytes", b"x")], 5, True, ("limit",))
    assert buffers[-2:] == [b'],"seed":5,"limit":500,"frames":[[1,1]]}\n', b"x"]


# --- replies ---

# Each stream and what it means; also fed byte by byte and with the next message behind.
STREAMS: list[tuple[bytes, list[NodeMessage]]] = [
    (b'{"id":1}\n', [NodeReply(1, ())]),
    (b'{"id":1,"values":{}}\n', [NodeReply(1, ())]),
    (b'{"id":7,"values":{"result":3.14}}\n', [NodeReply(7, (("result", "json", b"3.14"),))]),
    (b'{"id":7,"values":{"a b":"x"}}\n', [NodeReply(7, (("a b", "json", b'"x"'),))]),
    (
        b'{"id":7,"values":{"result":{"in":1,"all":[1.0e5]}}}\n',
        [NodeReply(7, (("result", "json", b'{"in":1,"all":[1.0e5]}'),))],
    ),
    (
        '{"values": {"z" : [ 1 ], "نتيجة": 1180591620717411303424}, "id": 8 }\n'.encode(),
        [NodeReply(8, (("z", "json", b"[ 1 ]"), ("نتيجة", "json", b"1180591620717411303424")))],
    ),
    (
        '{"id":9,"values":{"k":"é"}}\n'.encode(),
        [NodeReply(9, (("k", "json", '"é"'.encode()),))],
    ),
    (
        b'{"id":1,"values":{"n":1},"frames":[["b",3],["a",0]]}\n\n{\n',
        [NodeReply(1, (("a", "bytes", b""), ("b", "bytes", b"\n{\n"), ("n", "json", b"1")))],
    ),
    (b'{"id":1,"frames":[]}\n', [NodeReply(1, ())]),
    (
        b'{"id":1,"base64":{"b":"AP8="},"files":{"f":"/tmp/x"}}\n',
        [NodeReply(1, (("b", "bytes", b"\x00\xff"), ("f", "bytes", FilePath("/tmp/x"))))],
    ),
    (
        b'{"id":1,"error":"ValueError: no"}\n',
        [NodeFailure(1, "ValueError: no", None, True)],
    ),
    (
        b'{"id":1,"error":"x","traceback":"a\\nb","retry":false}\r\n',
        [NodeFailure(1, "x", "a\nb", False)],
    ),
    (b'{"id":1,"error":"\\ud800","traceback":null}\n', [NodeFailure(1, "?", None, True)]),
]


@pytest.mark.parametrize(("stream", "expected"), STREAMS)
def test_reply_is_read_whole_in_pieces_and_before_others(
    stream: bytes, expected: list[NodeMessage]
) -> None:
    assert reader().feed(stream) == expected
    assert reader().feed(stream + stream) == expected + expected

    slow = reader()
    found: list[NodeMessage] = []
    for byte in stream * 2:
        found += slow.feed(bytes([byte]))
    assert found == expected + expected
    assert not slow.is_inside_message

    half = reader()
    half.feed(stream[:-1])
    assert half.is_inside_message
    assert half.feed(stream[-1:] + b'{"id":5}\n') == [*expected, NodeReply(5, ())]


def test_all_streams_in_one_chunk() -> None:
    chunk = b"".join(stream for stream, _ in STREAMS)
    assert reader().feed(chunk) == [message for _, messages in STREAMS for message in messages]


@steady
@given(
    st.lists(st.sampled_from(STREAMS), max_size=6),
    st.lists(st.integers(0, 1_000), max_size=10),
)
def test_chunks_may_fall_anywhere(
    streams: list[tuple[bytes, list[NodeMessage]]], places: list[int]
) -> None:
    data = b"".join(stream for stream, _ in streams)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    made = reader()
    found: list[NodeMessage] = []
    for start, end in pairwise(edges):
        found += made.feed(data[start:end])
    assert found == [message for _, messages in streams for message in messages]


@steady
@given(st.text(max_size=8), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
))  # fmt: skip
def test_short_cuts_and_the_long_way_read_the_same(key: str, value: object) -> None:
    """The same reply, spelled as the SDK does and with a space more, gives the same values."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        quoted = json.dumps(key, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    short = b'{"id":12,"values":{%b:%b}}\n' % (quoted, text)
    long = b'{ "id":12,"values":{%b:%b}}\n' % (quoted, text)
    assert reader().feed(short) == reader().feed(long) == [NodeReply(12, ((key, "json", text),))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b"done!",
            "line from node 3 isn't a JSON object: 'done!'; "
            "print to stderr, stdout carries the protocol",
        ),
        (b"", "line from node 3 isn't a JSON object: ''"),
        (b'{"id":1}{"id":2}', "line from node 3 goes on after its JSON object: '{\"id\":2}'"),
        (b'{"id":1,"values":{"a":\xff}}', "line from node 3 isn't UTF-8: byte 0xff"),
        (b'{"values":{}}', "node 3 answered without 'id': '{\"values\":{}}'; every answer"),
        (b'{"id":"1"}', "node 3 answered with id '1', expected the number that its task's line"),
        (b'{"id":1.0}', "node 3 answered with id 1.0, expected the number"),
        (b'{"id":true}', "node 3 answered with id True, expected the number"),
        (b'{"id":-1}', "node 3 answered with id -1, expected the number"),
        (
            b'{"id":17,"resutl":1}',
            "node 3 answered id 17 with 'resutl', "
            "expected 'values', 'frames', 'base64' and 'files', or 'error'",
        ),
        (b'{"id":17,"values":[1]}', "node 3 answered id 17 with values '[1]', expected an object"),
        (b'{"id":17,"values":{"a":1,"a":2}}', "line from node 3 names key 'a' twice"),
        (b'{"id":17,"values":{"a":1},"base64":{"a":""}}', "answered id 17 with key 'a' twice"),
        (b'{"id":17,"base64":{"a":"","a":""}}', "names key 'a' twice under key 'base64'"),
        (b'{"id":17,"base64":{"a":"?"}}', "with base64 under key 'a' that can't be decoded"),
        (b'{"id":17,"base64":{"a":1}}', "with base64 1 under key 'a', expected a string"),
        (b'{"id":17,"base64":[]}', "with base64 [], expected an object of keys and strings"),
        (b'{"id":17,"files":{"a":"x/y"}}', "with file 'x/y' under key 'a', expected an absolute"),
        (b'{"id":17,"files":{"\\ud800":"/x"}}', "with key '\\ud800', which isn't Unicode text"),
        (b'{"id":17,"frames":{"a":1}}', "with frames {'a': 1}, expected a list of [key, bytes]"),
        (b'{"id":17,"frames":[["a",-1]]}', "with frame ['a', -1], expected [key, bytes]"),
        (b'{"id":17,"frames":[["a"]]}', "with frame ['a'], expected [key, bytes]"),
        (
            b'{"id":17,"frames":[["a",1000001]]}',
            "node 3 answered id 17 with 1000001 bytes under key 'a', "
            "expected at most 1000000 (value_bytes_max)",
        ),
        (
            b'{"id":17,"error":"x","values":{}}',
            "answered id 17 with 'error' and 'values', expected only 'traceback' and 'retry'",
        ),
        (b'{"id":17,"error":5}', "node 3 answered id 17 with error 5, expected a string"),
        (b'{"id":17,"error":"x","traceback":5}', "with traceback 5, expected a string"),
        (b'{"id":17,"error":"x","retry":0}', "with retry 0, expected true or false"),
    ],
)
def test_wrong_reply_is_refused_with_a_sentence(line: bytes, message: str) -> None:
    assert message in refused(line + b"\n")


def test_frames_that_were_not_announced_are_refused() -> None:
    assert refused(b'{"id":1,"frames":[["a",1]]}\nx', b'{"ready":{}}\n') == (
        "node 3 answered id 1 with 'frames', which it didn't announce; "
        'begin with {"ready":{},"frames":true}'
    )


def test_nan_fails_the_task_and_not_the_node() -> None:
    """Whoever sends NaN is told the key; the node goes on, and no attempt is repeated."""
    made = reader()
    assert made.feed(b'{"id":4,"values":{"a":1,"result":[NaN]}}\n{"id":5}\n') == [
        NodeFailure(
            4,
            "value under key 'result' holds NaN, which JSON doesn't have; "
            "return None or a string instead",
            None,
            False,
        ),
        NodeReply(5, ()),
    ]


def test_nan_without_a_task_to_blame_is_refused_with_the_key() -> None:
    assert "holds -Infinity under key 'result'" in refused(
        b'{"values":{"result":-Infinity},"id":1}\n'
    )


def test_line_over_the_limit_is_refused_with_the_remedy() -> None:
    made = reader(READY, 100)
    with pytest.raises(RemoteProtocolError) as caught:
        made.feed(b'{"id":1,"values":{"a":"' + b"x" * 100)
    assert str(caught.value) == (
        "line from node 3 has more than 100 bytes (line_bytes_max); "
        "send large results as frames or files"
    )


@steady
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_gives_messages_or_a_protocol_error(chunks: list[bytes]) -> None:
    for ready in (b"", READY):
        made = reader(ready)
        try:
            for chunk in chunks:
                made.feed(chunk)
            made.feed(b"\n")
        except RemoteProtocolError:
            pass


@steady
@given(
    st.sampled_from([stream for stream, _ in STREAMS]),
    st.integers(0, 100),
    st.binary(max_size=3),
)
def test_damaged_reply_gives_messages_or_a_protocol_error(
    stream: bytes, place: int, damage: bytes
) -> None:
    at = place % len(stream)
    for data in (stream[:at] + damage + stream[at:], stream[:at] + damage + stream[at + 1 :]):
        try:
            reader().feed(data + b"\n")
        except RemoteProtocolError:
            pass


def test_error_as_long_as_a_line_is_cut_before_it_reaches_the_log() -> None:
    line = json.dumps({"id": 1, "error": "e" * 100_000, "traceback": "t" * 100_000})
    (failure,) = reader().feed(line.encode() + b"\n")
    assert isinstance(failure, NodeFailure) and failure.traceback is not None
    assert len(failure.error) <= 4_000 and len(failure.traceback) <= 32_000


def test_many_small_frames_are_taken_in_linear_time() -> None:
    count = 50_000
    frames = ",".join(f'["k{number}",1]' for number in range(count))
    line = f'{{"id":1,"frames":[{frames}]}}\n'.encode()
    assert len(values_of(line + b"x" * count, 1 << 24)[0]) == count


# --- what is large ---


def values_of(stream: bytes, chunk: int) -> tuple[dict[str, tuple[str, bytes]], int]:
    """Return (kind, bytes) of each value of one reply, however it came, and the most at once."""
    one = reader(limit=1 << 24)
    pieces: dict[int, bytearray] = {}
    most = 0
    for at in range(0, len(stream), chunk):
        messages = one.feed(stream[at : at + chunk])
        while messages and isinstance(messages[-1], NodeLongLine):
            line, found = take_values_out(b"".join(messages.pop().pieces), who="node 3")
            messages += one.take_long(line, [(key, bytes(text)) for key, text in found])
        for message in messages:
            if isinstance(message, NodePiece):
                pieces.setdefault(message.number, bytearray()).extend(message.data)
                most = max(most, len(message.data))
            else:
                assert isinstance(message, NodeReply)
                values = {}
                for key, kind, data in message.values:
                    if isinstance(data, InPieces):
                        data = bytes(pieces.pop(data.number))
                    assert isinstance(data, bytes)
                    values[key] = (kind, data)
                return values, most
    raise AssertionError("no reply")


LIST = b'[{"a":["\\"]"]},' + b'[1,"a"],' * 70_000 + b"{}]"


@pytest.mark.parametrize("chunk", [100_000, 1 << 24])
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("bytes", [999_999]),
        ("bytes", [60_000] * 200),
        ("json", [70_000, 3, 900_000]),
        ("json", [2]),
    ],
)
def test_large_frames_come_in_pieces(kind: str, sizes: list[int], chunk: int) -> None:
    expected = {}
    raw = []
    for number, size in enumerate(sizes):
        data = b'"' + b"x" * (size - 2) + b'"'
        expected[f"k{number}"] = (kind, data)
        raw.append(data)
    more = ',"json"' if kind == "json" else ""
    frames = ",".join(f'["{key}",{len(data)}{more}]' for key, (_, data) in expected.items())
    stream = f'{{"id":1,"values":{{}},"frames":[{frames}]}}\n'.encode() + b"".join(raw)
    found, most = values_of(stream, chunk)
    assert found == expected
    assert most <= max(sizes)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"[1,\n2]", "answered id 1 with JSON in a frame under key 'a' that holds a newline"),
        (b'"\xff"', "answered id 1 with JSON in a frame under key 'a' that isn't UTF-8"),
        (b'"' + b"x" * 70_000 + b'\n"', "under key 'a' that holds a newline"),
        (b'"' + b"\xc3" * 70_000 + b'"', "under key 'a' that isn't UTF-8"),
        (b'"' + b"x" * 70_000 + b"\xc3", "under key 'a' that isn't UTF-8"),
        (b"[1", "answered id 1 with a frame under key 'a' that isn't JSON: '[1'"),
        (b"1 2", "that isn't JSON: '1 2'"),
        (b"NaN", "that isn't JSON: 'NaN'"),
        (b"", "that isn't JSON: ''"),
    ],
)
def test_json_in_frames_can_break_nobody_else_s_line(frame: bytes, message: str) -> None:
    line = b'{"id":1,"frames":[["a",%d,"json"]]}\n' % len(frame)
    assert message in refused(line + frame)


@pytest.mark.parametrize("chunk", [100_000, 1 << 24])
def test_long_line_gives_its_values_as_any_other(chunk: int) -> None:
    values = {"é": LIST, "s": b'"' + b"\\\\" * 300_000 + b'"', "n": b"1" * 9_000, "": b"null"}
    members = b",".join(json.dumps(key).encode() + b" : " + text for key, text in values.items())
    line = b'{"base64":{"b":"AP8="}, "values" :{' + members + b'} ,"id":1}\n'
    found, _ = values_of(line, chunk)
    assert found == {key: ("json", text) for key, text in values.items()} | {
        "b": ("bytes", b"\x00\xff")
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id":1,"values":{"a":' + LIST, "isn't JSON: no end of a value at byte"),
        (b'{"id":1,"values":{"a":' + LIST[:-1] + b"}}", "isn't JSON: no ',' or '}' at byte"),
        (b'{"id":1,"values":{"a":' + LIST + b',"a":1}}', "the key 'a' a second time at byte"),
        (b'{"id":1,"values":{"a":' + LIST + b'},"values":{}}', "the key 'values' a second time"),
        (b'{"id":1,"values":{"\\ud800":' + LIST + b"}}", "has key '\\ud800', which isn't Unicode"),
        (b'{"id":1,"values":{a:' + LIST + b"}}", "isn't JSON: no key in double quotes at byte"),
        (b'{"id":1,"values":{"a" ' + LIST + b"}}", "isn't JSON: no ':' at byte"),
        (b'{"id":1,"values":{"a":,"b":' + LIST + b"}}", "isn't JSON: no value at byte"),
        (b'{"id":1,"values":{"a":"' + b"x" * 600_000, "isn't JSON: no end of a string at byte"),
        (b'["id",' + LIST + b"]", "isn't JSON: no object at byte 1 of"),
        (b'{"id":1,"values":{"a":' + LIST + b',"b":"\xff"}}', "line from node 3 isn't UTF-8"),
        (b'{"id":1,"values":{"a":' + LIST + b'},"x":1}', "node 3 answered id 1 with 'x', "),
        (b'{"id":1,"values":{"a":' + LIST + b'},"error":"x"}', "with 'error' and 'values'"),
        (
            b'{"id":1,"base64":{"a":"' + b"A" * 9_000_000 + b'"}}',
            "bytes beside its values; send large results as frames or files",
        ),
    ],
)
def test_long_line_that_is_wrong_is_refused_with_a_sentence(line: bytes, message: str) -> None:
    one = NodeReader(who="node 3", line_bytes_max=1 << 24, value_bytes_max=1_000_000)
    one.feed(READY)
    with pytest.raises(RemoteProtocolError) as caught:
        (long,) = one.feed(line + b"\n")
        assert isinstance(long, NodeLongLine)
        assert one.is_inside_message
        left, found = take_values_out(b"".join(long.pieces), who="node 3")
        one.take_long(left, [(key, bytes(text)) for key, text in found])
    assert message in str(caught.value)


def test_answers_before_a_mistake_count() -> None:
    one = reader()
    assert one.feed(b'{"id":1}\nprinted\n{"id":2}\n') == [NodeReply(1, ())]
    assert "line from node 3 isn't a JSON object: 'printed'" in str(one.refusal)


def test_long_answer_before_a_mistake_counts() -> None:
    one = reader(limit=1 << 24)
    values = b'{"id":1,"values":{"a":' + LIST + b"}}\n"
    (long,) = one.feed(values + b"printed\n")
    assert isinstance(long, NodeLongLine)
    left, found = take_values_out(b"".join(long.pieces), who="node 3")
    messages = one.take_long(left, [(key, bytes(text)) for key, text in found])
    assert messages == [NodeReply(1, (("a", "json", LIST),))]
    assert "line from node 3 isn't a JSON object: 'printed'" in str(one.refusal)


@pytest.mark.parametrize(
    ("end", "message"),
    [(b'\n\xff"', "holds a newline"), (b'\xff\n"', "isn't UTF-8"), (b'\xc3\n"', "isn't UTF-8")],
)
@pytest.mark.parametrize("chunk", [1 << 20, 70_000, 1])
def test_of_two_mistakes_in_a_frame_the_first_is_told(
    end: bytes, message: str, chunk: int
) -> None:
    frame = b'"' + b"x" * 70_000 + end
    data = b'{"id":1,"frames":[["a",%d,"json"]]}\n' % len(frame) + frame
    one = reader()
    with pytest.raises(RemoteProtocolError, match=message):
        for start in range(0, len(data), chunk):
            one.feed(data[start : start + chunk])
            if one.refusal is not None:
                raise one.refusal
