"""Heads, queries, ranges and answers."""

from __future__ import annotations

import pytest

from tasksprint.errors import LocalProtocolError, Refused, RemoteProtocolError
from tasksprint.net import http_messages
from tasksprint.net.http_messages import (
    HttpResponse,
    parse_query,
    parse_range,
    request_head,
    response_lines,
    target_of,
)


def test_query_survives_the_way_through_a_target() -> None:
    query = {"key": "a b&c=d/é+%", "n": 5, "empty": ""}
    path, _, text = target_of("/v1/x", query).partition("?")
    assert path == "/v1/x"
    assert parse_query(text) == {"key": "a b&c=d/é+%", "n": "5", "empty": ""}


def test_only_short_values_of_queries_are_kept() -> None:
    """A long one says something once: what doesn't go on, or what runs for long."""
    target_of("/v1/x", {"cid": 1, "short": "é" * 64})
    before = http_messages._quote_again.cache_info()
    assert target_of("/v1/x", {"short": "é" * 64}) == f"/v1/x?short={'%C3%A9' * 64}"
    assert target_of("/v1/x", {"short": "é" * 65}) == f"/v1/x?short={'%C3%A9' * 65}"
    after = http_messages._quote_again.cache_info()
    assert (after.misses, after.currsize) == (before.misses, before.currsize)
    assert after.hits == before.hits + 3  # two names, and the short one


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=5-500", (5, 10)),
        ("bytes=4-2", None),  # RFC 9110, 14.1.1: invalid, so ignored
        ("bytes=0-1,4-5", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
        ("bytes=٣-", None),
    ],
)
def test_range_of_ten_bytes(header: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_range_behind_the_end_is_refused(header: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_range(header, 10)
    assert caught.value.status == 416
    assert "of 10 bytes" in str(caught.value)


def test_head_of_a_request_names_what_it_carries() -> None:
    head = request_head("POST", "/v1/x?a=1", "h:1", authorization="T", body_bytes=3)
    assert head == (
        b"POST /v1/x?a=1 HTTP/1.1\r\nHost: h:1\r\nAuthorization: T\r\n"
        b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n"
    )
    assert request_head("GET", "/", "h") == b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "a", ""])
def test_target_that_would_break_the_head_is_our_bug(target: str) -> None:
    with pytest.raises(LocalProtocolError, match="is not percent-encoded"):
        request_head("GET", target, "h")


def test_header_that_would_break_the_head_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError, match="header 'X-Name' can't carry"):
        response_lines(200, headers={"X-Name": "a\r\nSet-Cookie: b"})


def test_refusal_of_a_server_keeps_its_words() -> None:
    response = HttpResponse(
        409, {"content-type": "application/json"}, b'{"error":"job 3 has ended","hint":"see jobs"}'
    )
    with pytest.raises(Refused) as caught:
        response.checked()
    assert str(caught.value) == "job 3 has ended; see jobs"
    assert caught.value.status == 409


def test_refusal_without_json_says_the_status() -> None:
    with pytest.raises(Refused, match="answered with status 502"):
        HttpResponse(502, {"content-type": "text/html"}, b"<html>").checked()
    with pytest.raises(Refused, match="answered with status 502"):
        HttpResponse(502, {"content-type": "application/json"}, b"<html>").checked()


def test_refusal_whose_words_are_no_text_says_the_status() -> None:
    """Python can't write nested lists of a thousand levels."""
    deep = b"[" * 1_000 + b"]" * 1_000
    for body in b'{"error":%s,"hint":%s}' % (deep, deep), b'{"error":"","hint":7}':
        with pytest.raises(Refused) as caught:
            HttpResponse(409, {"content-type": "application/json"}, body).checked()
        assert str(caught.value) == "answered with status 409"


def test_good_answer_is_returned_and_read_as_json() -> None:
    assert HttpResponse(200, {}, b'{"a":1}').checked().json() == {"a": 1}
    with pytest.raises(RemoteProtocolError, match="not JSON"):
        HttpResponse(200, {}, b"{").json()


@pytest.mark.parametrize("body", [b"null", b"[]", b'"ok"', b"5", b"", b"<html>"])
def test_answer_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="JSON"):
        HttpResponse(200, {}, body).json_object()
    assert HttpResponse(200, {}, b'{"a":1}').json_object() == {"a": 1}
