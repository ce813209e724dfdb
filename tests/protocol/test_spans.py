"""JSON objects are cut into the texts of their members, byte for byte."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.spans import (
    NotFiniteError,
    cut_object,
    decode_line,
    excerpt,
    for_people,
    item_count,
    show,
    skip_space,
)
from tests.protocol.steady import steady

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def values_of(text: str) -> dict[str, str]:
    members, end = cut_object(text, 0, who="node 3", opened="values")
    assert skip_space(text, end) == len(text)
    inner, _, _ = members["values"]
    return {key: text[start:end] for key, (_, start, end) in inner.items()}


@pytest.mark.parametrize(
    "value",
    [
        str(2**70),
        "1.0e5",
        "-0.0",
        "1E400",
        "9" * 5_000,
        '"\\u0041\\ud83d\\ude00"',
        '"\\ud800"',
        '{ "b" : [ 1 , 2 ] , "a" : null }',
        '{"twice":1,"twice":2}',
        "[[[[]]]]",
        '"نص"',
        "true",
    ],
)
def test_value_comes_out_as_the_text_that_it_was(value: str) -> None:
    text = f'{{"id":1, "values" : {{ "نتيجة" : {value} , "b":1}} }}'
    assert values_of(text) == {"نتيجة": value, "b": "1"}


@pytest.mark.slow
@steady
@given(st.dictionaries(st.text(), json_values, max_size=5), st.booleans())
def test_any_object_is_cut_where_a_parser_cuts_it(values: dict[str, object], ascii: bool) -> None:
    try:
        text = json.dumps({"id": 1, "values": values}, ensure_ascii=ascii, indent=None)
        text.encode()
        for key in values:
            key.encode()
    except UnicodeEncodeError:
        return
    cut = values_of(text)
    assert list(cut) == list(values)
    assert {key: json.loads(value) for key, value in cut.items()} == values


def test_members_that_are_read_are_decoded_and_those_that_are_carried_are_not() -> None:
    text = '{"n":12,"big":%s,"list":[1]}' % ("9" * 5_000)
    members, _ = cut_object(text, 0, who="x", carried=frozenset(("big",)))
    assert members["n"][0] == 12
    assert members["list"][0] == [1]
    _, start, end = members["big"]
    assert text[start:end] == "9" * 5_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line from node 3 isn't a JSON object: ''"),
        ("hello", "line from node 3 isn't a JSON object: 'hello'"),
        ("[1]", "isn't a JSON object: '[1]'"),
        ("{", "isn't JSON: expected a key in double quotes at character 2 of 1"),
        ('{"a"}', "isn't JSON: expected ':' at character 5"),
        ('{"a":}', "isn't JSON: expected a value at character 6 of 6, found '}'"),
        ('{"a":1', "isn't JSON: expected ',' or '}'"),
        ('{"a":1]', "isn't JSON: expected ',' or '}' at character 7"),
        ('{"a":[1,]}', "isn't JSON"),
        ('{"a":1,}', "isn't JSON: expected a key in double quotes"),
        ("{'a':1}", "isn't JSON: expected a key in double quotes"),
        ('{"a":01}', "isn't JSON: expected ',' or '}' at character 7"),
        ('{"a":"x}', "isn't JSON: unterminated string starting at"),
        ('{"a":"\x01"}', "isn't JSON: invalid control character"),
        ('{"a":1,"a":2}', "names key 'a' twice"),
        ('{"a":{"b":1,"b":2}}', "names key 'b' twice under key 'a'"),
        ('{"values":{"a":1,"\\u0061":2}}', "names key 'a' twice"),
        ('{"\\ud800":1}', "has key '\\ud800', which isn't Unicode text"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply under key 'a'"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        cut_object(text, 0, who="node 3", opened="values")
    assert message in str(caught.value)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("form", ["{}", "[1,{}]", '{{"deep":[{}]}}'])
def test_nan_is_refused_with_the_key_of_its_value(constant: str, form: str) -> None:
    text = '{"id":1,"values":{"good":1,"bad":' + form.format(constant) + "}}"
    with pytest.raises(NotFiniteError) as caught:
        values_of(text)
    assert caught.value.key == "bad"
    assert str(caught.value) == (
        f"line from node 3 holds {constant} under key 'bad'; JSON has no {constant}, "
        "send null or a string instead"
    )


def test_number_with_too_many_digits_is_refused_only_where_it_is_read() -> None:
    with pytest.raises(RemoteProtocolError, match="a number under key 'n' that can't be read"):
        cut_object('{"n":' + "9" * 5_000 + "}", 0, who="node 3")


def test_line_that_is_no_utf8_is_refused_with_the_byte() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_line(b'{"a":"\xff"}', who="node 3")
    assert str(caught.value) == "line from node 3 isn't UTF-8: byte 0xff at offset 6"


@steady
@given(st.text())
def test_garbage_is_cut_or_refused_and_nothing_else(text: str) -> None:
    for candidate in (text, "{" + text, '{"a":' + text, '{"values":{"k":' + text):
        try:
            cut_object(candidate, 0, who="x", opened="values")
        except RemoteProtocolError:
            pass


def test_elements_are_counted() -> None:
    assert item_count("[]") == 0
    assert item_count(' [1, [2, 3], {"a": [4]}, "5,6"]') == 4


def test_what_others_sent_is_quoted_short() -> None:
    assert excerpt(b"\xff" * 1_000).endswith("…'")
    assert len(excerpt("x" * 1_000)) < 70
    assert len(show(["x"] * 1_000)) <= 60


def test_time_grows_with_the_length_of_the_line_and_not_faster() -> None:
    """Four times the length takes about four times as long; 16 times would be quadratic."""

    def seconds(count: int) -> float:
        text = '{"id":1,"values":{"r":[' + ",".join(["1.5"] * count) + "]}}"
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            values_of(text)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(80_000) < 10 * seconds(20_000) + 0.01


def test_text_for_people_is_cut_in_the_middle_and_made_printable() -> None:
    assert for_people("short", 10) == "short"
    assert for_people("a\ud800b", 10) == "a?b"
    cut = for_people("begin" + "x" * 1_000 + "end", 100)
    assert len(cut) <= 100
    assert cut.startswith("begin") and " … " in cut and cut.endswith("end")
