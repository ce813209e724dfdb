"""Which route answers which path."""

from __future__ import annotations

import pytest

from tasksprint.errors import LocalProtocolError, Refused
from tasksprint.net.gate import Access, Identity
from tasksprint.net.router import Request, Response, Router


def _named(name: str):  # type: ignore[no-untyped-def]
    return lambda request: Response(200, name.encode())


def _router() -> Router:
    router = Router()
    for method, pattern in [
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs/{job}"),
        ("GET", "/v1/jobs/{job}/tasks/{tid}"),
        ("GET", "/v1/jobs/{job}/values/{key:text}"),
        ("GET", "/v1/jobs/last"),
        ("GET", "/v1/files/{name:text}"),
    ]:
        router.add(method, pattern, _named(f"{method} {pattern}"))
    return router


@pytest.mark.parametrize(
    ("method", "path", "pattern", "segments"),
    [
        ("GET", "/v1/jobs", "/v1/jobs", {}),
        ("POST", "/v1/jobs", "/v1/jobs", {}),
        ("HEAD", "/v1/jobs", "/v1/jobs", {}),
        ("GET", "/v1/jobs/12", "/v1/jobs/{job}", {"job": "12"}),
        ("GET", "/v1/jobs/last", "/v1/jobs/last", {}),
        ("GET", "/v1/jobs/3/tasks/17", "/v1/jobs/{job}/tasks/{tid}", {"job": "3", "tid": "17"}),
        (
            "GET",
            "/v1/jobs/3/values/a%2Fb%20%C3%A9",
            "/v1/jobs/{job}/values/{key:text}",
            {"job": "3", "key": "a/b é"},
        ),
        ("GET", "/v1/files/7", "/v1/files/{name:text}", {"name": "7"}),
        # A value may have the empty key.
        ("GET", "/v1/files/", "/v1/files/{name:text}", {"name": ""}),
    ],
)
def test_path_finds_its_route(
    method: str, path: str, pattern: str, segments: dict[str, str]
) -> None:
    route, found = _router().find(method, path)
    assert (route.pattern, found) == (pattern, segments)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/jobs/", "/v1/jobs/x", "/v1/jobs/-1", "/v1/jobs/٣", "/v1/jobs/3/tasks", "//"],
)
def test_unknown_path_is_refused(path: str) -> None:
    with pytest.raises(Refused) as caught:
        _router().find("GET", path)
    assert caught.value.status == 404
    assert str(caught.value) == f"no such path {path!r}"


def test_wrong_method_is_refused_with_the_possible_ones() -> None:
    with pytest.raises(Refused) as caught:
        _router().find("DELETE", "/v1/jobs")
    assert caught.value.status == 405
    assert str(caught.value) == "DELETE is not possible on '/v1/jobs'; possible: GET, POST"


def test_two_handlers_of_one_path_are_our_bug() -> None:
    router = _router()
    with pytest.raises(LocalProtocolError, match="has two handlers"):
        router.add("GET", "/v1/jobs/{job}", _named("again"))


def test_who_only_reads_can_only_be_allowed_to_read() -> None:
    with pytest.raises(LocalProtocolError, match="can't be allowed to who only reads"):
        Router().add("POST", "/x", _named("x"), access=Access.READ)


def _request(query: dict[str, str]) -> Request:
    return Request("GET", "/", query, {}, b"", "peer", Identity.ANYONE, {"job": "3"})


def test_integers_of_path_and_query() -> None:
    request = _request({"wait_ms": "250"})
    assert request.integer("job") == 3
    assert request.query_integer("wait_ms", 0, maximum=1000) == 250
    assert request.query_integer("since", 7) == 7


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "1001", "9" * 40, "٣"])
def test_query_that_is_no_integer_of_the_range_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        _request({"wait_ms": text}).query_integer("wait_ms", 0, maximum=1000)
    assert caught.value.status == 400
    assert str(caught.value) == f"query wait_ms={text!r} is not an integer from 0 to 1000"
