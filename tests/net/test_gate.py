"""Who is let in, and what the others are told."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tasksprint.errors import Refused
from tasksprint.net.gate import Access, Claim, CountedWarnings, Gate, Identity, _Nonces
from tasksprint.net.keys import EMPTY_DIGEST, ClusterKey
from tasksprint.net.tokens import Scope, make_token
from tests.net.support import KEY, OTHER_KEY, SETTINGS

NOW_MS = 1_700_000_000_000
HOST = "127.0.0.1:7070"


class _Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


def _gate(clock: _Clock | None = None, hosts: tuple[str, ...] = ()) -> Gate:
    return Gate(KEY, SETTINGS, hosts=hosts, wall_ms=clock or _Clock())


def _admit(
    gate: Gate,
    headers: dict[str, str],
    *,
    method: str = "GET",
    target: str = "/v1/x",
    query: dict[str, str] | None = None,
    access: Access = Access.KEY,
    bound: str = "10.0.0.5",
) -> Claim | Identity:
    return gate.admit(
        method,
        target,
        {"host": HOST, **headers},
        query or {},
        access=access,
        bound_host=lambda: bound,
    )


def _send(
    gate: Gate,
    *,
    method: str = "POST",
    key: ClusterKey = KEY,
    time_ms: int = NOW_MS,
    digest: str = EMPTY_DIGEST,
    authorization: str | None = None,
) -> Identity:
    if authorization is None:
        authorization = key.sign(method, "/v1/x", HOST, time_ms=time_ms)
    claim = _admit(gate, {"authorization": authorization}, method=method)
    assert isinstance(claim, Claim)
    return gate.verify(claim, digest)


def _refusal(gate: Gate, status: int, **arguments: object) -> str:
    with pytest.raises(Refused) as caught:
        _send(gate, **arguments)  # type: ignore[arg-type]
    assert caught.value.status == status
    return str(caught.value)


def test_signed_request_is_let_in() -> None:
    assert _send(_gate()) is Identity.CLUSTER
    assert _send(_gate(), method="GET") is Identity.CLUSTER


def test_open_path_asks_for_nothing() -> None:
    assert _admit(_gate(), {}, access=Access.OPEN) is Identity.ANYONE


def test_request_without_authorization_is_told_how_to_get_one() -> None:
    with pytest.raises(Refused) as caught:
        _admit(_gate(), {})
    assert caught.value.status == 401
    assert str(caught.value) == (
        "no Authorization; sign the request with the cluster key, or show a token "
        "(`tasksprint token`) where one is enough"
    )


def test_wrong_key_is_named() -> None:
    assert _refusal(_gate(), 401, key=OTHER_KEY) == (
        "wrong key: the signature doesn't fit the request; both sides must use the same key file "
        "(--key-file, TASKSPRINT_KEY_FILE)"
    )


def test_other_body_is_refused() -> None:
    assert "wrong key" in _refusal(_gate(), 401, digest="0" * 64)


@pytest.mark.parametrize("change", ["method", "target", "host"])
def test_signature_fits_its_request_only(change: str) -> None:
    gate = _gate()
    claim = _admit(gate, {"authorization": KEY.sign("POST", "/v1/x", HOST, time_ms=NOW_MS)})
    assert isinstance(claim, Claim)
    claim = replace(claim, **{"method": "POST", change: "PUT"})
    with pytest.raises(Refused, match="wrong key"):
        gate.verify(claim, EMPTY_DIGEST)


@pytest.mark.parametrize(
    ("off_ms", "words"), [(400_000, "ahead"), (-400_000, "behind"), (300_001, "ahead")]
)
def test_clock_that_differs_is_told_by_how_much(off_ms: int, words: str) -> None:
    seconds = round(abs(off_ms) / 1000)
    assert _refusal(_gate(), 401, time_ms=NOW_MS + off_ms) == (
        f"clock differs by {seconds} s, allowed 300 s: the sender's is {words}; "
        "set the clocks of both machines"
    )


@pytest.mark.parametrize("off_ms", [300_000, -300_000])
def test_clock_may_differ_a_little(off_ms: int) -> None:
    assert _send(_gate(), time_ms=NOW_MS + off_ms) is Identity.CLUSTER


@pytest.mark.parametrize(
    "authorization",
    [
        "TaskSprint ",
        "TaskSprint time=1,nonce=2,mac=3",
        f"TaskSprint time=-1,nonce={'a' * 32},mac={'b' * 64}",
        f"TaskSprint time=1,nonce={'a' * 32},mac={'b' * 64}\n",
        f"TaskSprint time=1,nonce={'a' * 32},mac={'b' * 64}, TaskSprint time=1",
        f"TaskSprint nonce={'a' * 32},time=1,mac={'b' * 64}",
    ],
)
def test_malformed_authorization_is_told_the_form(authorization: str) -> None:
    assert _refusal(_gate(), 401, authorization=authorization) == (
        "the Authorization is malformed, expected "
        "'TaskSprint time=<ms>,nonce=<32 hex digits>,mac=<64 hex digits>'"
    )


def test_other_kind_of_authorization_is_refused() -> None:
    with pytest.raises(Refused, match="unknown kind of Authorization 'Basic', expected"):
        _admit(_gate(), {"authorization": "Basic dXNlcg=="})


def test_repeated_request_is_refused_and_a_repeated_read_is_not() -> None:
    gate = _gate()
    for method in ("POST", "PUT", "DELETE"):
        authorization = KEY.sign(method, "/v1/x", HOST, time_ms=NOW_MS)
        _send(gate, method=method, authorization=authorization)
        assert _refusal(gate, 401, method=method, authorization=authorization) == (
            "this request was received before (its nonce is used); sign each request anew"
        )
    authorization = KEY.sign("GET", "/v1/x", HOST, time_ms=NOW_MS)
    for _ in range(2):
        _send(gate, method="GET", authorization=authorization)


def test_repetition_is_refused_for_as_long_as_its_time_is_good() -> None:
    """The worst case: signed by a clock that is ahead as far as allowed."""
    clock = _Clock()
    gate = _gate(clock)
    ahead = KEY.sign("POST", "/v1/x", HOST, time_ms=NOW_MS + 300_000)
    _send(gate, authorization=ahead)
    for minute in range(1, 11):
        clock.now_ms = NOW_MS + minute * 60_000
        _send(gate, time_ms=clock.now_ms)  # Others go on; generations change.
        assert "received before" in _refusal(gate, 401, authorization=ahead)
    clock.now_ms += 1
    assert "clock differs" in _refusal(gate, 401, authorization=ahead)


# --- what is remembered of nonces ---


def test_requests_of_one_sender_may_overtake_each_other_within_the_window() -> None:
    nonces = _Nonces(1_000)

    def is_new(count: int) -> bool:
        return nonces.is_new("s", count, signed_ms=5, now_ms=5)

    assert is_new(3_000)
    assert is_new(953)  # 2,047 behind
    assert not is_new(952)  # 2,048 behind: it could have come before
    assert not is_new(953)
    assert is_new(5_000)
    assert is_new(2_999)  # wasn't seen, and is still in the window
    assert not is_new(3_000)
    assert is_new(1 << 63)
    assert not is_new(5_000)


def test_every_number_is_accepted_once_in_any_order_within_the_window() -> None:
    nonces = _Nonces(1_000)
    order = [number ^ 0x2A for number in range(512)]
    assert all(nonces.is_new("s", count, signed_ms=5, now_ms=5) for count in order)
    assert not any(nonces.is_new("s", count, signed_ms=5, now_ms=5) for count in order)


def test_too_many_senders_forget_nobody_whose_request_could_come_again() -> None:
    nonces = _Nonces(1_000_000, senders_max=10)
    for number in range(35):
        assert nonces.is_new(f"s{number}", 1, signed_ms=100 + number, now_ms=100 + number)
    for number in range(35):
        assert not nonces.is_new(f"s{number}", 1, signed_ms=100 + number, now_ms=200)
    assert len(nonces._young) <= 10 and len(nonces._old) <= 10


# --- tokens ---


def _token(scope: Scope = Scope.READ, valid_s: int = 60, key: ClusterKey = KEY) -> str:
    return make_token(key, scope, valid_s, now_s=NOW_MS // 1000)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_token_reads_where_tokens_are_allowed(method: str) -> None:
    for headers, query in (
        ({"authorization": f"Bearer {_token()}"}, {}),
        ({"cookie": f"theme=dark; tasksprint_token={_token()}"}, {}),
        ({}, {"token": _token()}),
    ):
        found = _admit(_gate(), headers, method=method, query=query, access=Access.READ)
        assert found is Identity.BEARER


def test_token_does_what_its_scope_says() -> None:
    accesses = (Access.READ, Access.SUBMIT, Access.OPERATE)
    for reach, scope in enumerate(Scope):
        bearer = {"authorization": f"Bearer {_token(scope)}"}
        for access in accesses[: reach + 1]:
            assert _admit(_gate(), bearer, method="POST", access=access) is Identity.BEARER
        for access in accesses[reach + 1 :]:
            assert _token_refusal(_token(scope), access=access).status == 403


def _token_refusal(token: str, *, access: Access = Access.READ) -> Refused:
    with pytest.raises(Refused) as caught:
        _admit(_gate(), {"authorization": f"Bearer {token}"}, method="POST", access=access)
    return caught.value


def _cookie_refusal(headers: dict[str, str]) -> Refused:
    with pytest.raises(Refused) as caught:
        _admit(_gate(), headers, method="POST", access=Access.OPERATE)
    return caught.value


def test_token_that_is_not_enough_says_what_it_may_do() -> None:
    reading = _token_refusal(_token(), access=Access.SUBMIT)
    assert str(reading) == (
        "this token is not enough for POST on this path: it may only read; "
        "make one with `tasksprint token --scope submit`"
    )
    submitting = _token_refusal(_token(Scope.SUBMIT), access=Access.OPERATE)
    assert "it may read, and hand in, cancel and forget jobs" in str(submitting)
    internal = _token_refusal(_token(Scope.OPERATE), access=Access.KEY)
    assert (internal.status, str(internal)) == (
        403,
        "a token is not enough for POST on this path; it is for processes of the cluster, "
        "which sign with its key",
    )


def test_cookie_changes_something_only_for_pages_of_this_process() -> None:
    """A browser sends cookies for any page that asks it to; the origin tells which one did."""
    cookie = {"cookie": f"tasksprint_token={_token(Scope.OPERATE)}"}
    unknown = _cookie_refusal(cookie)
    assert (unknown.status, str(unknown)) == (
        403,
        "a cookie is not enough for POST without an Origin; "
        "send the token as 'Authorization: Bearer …'",
    )
    foreign = _cookie_refusal({**cookie, "origin": "http://evil.example"})
    assert foreign.status == 403 and "evil.example" in str(foreign)
    other_port = _cookie_refusal({**cookie, "origin": "http://127.0.0.1:1"})
    assert other_port.status == 403
    ours = {**cookie, "origin": f"http://{HOST}"}
    assert _admit(_gate(), ours, method="POST", access=Access.OPERATE) is Identity.BEARER


def test_token_in_the_path_only_reads() -> None:
    with pytest.raises(Refused, match="no Authorization"):
        query = {"token": _token(Scope.OPERATE)}
        _admit(_gate(), {}, method="POST", query=query, access=Access.OPERATE)


def test_token_that_ended_or_is_foreign_is_refused() -> None:
    ended = _token_refusal(_token(valid_s=-30))
    assert (ended.status, str(ended)) == (
        401,
        "the token ended 30 s ago; make another one with `tasksprint token`",
    )
    foreign = _token_refusal(_token(key=OTHER_KEY))
    assert (foreign.status, str(foreign)) == (
        401,
        "wrong token: it was not made with this cluster's key; make one with `tasksprint token`",
    )


# --- where it was sent, and from which page ---


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:7070",
        "LOCALHOST:1",
        "127.0.0.1",
        "[::1]:7070",
        "lab1:7070",
        "lab1",
        "10.0.0.5:7070",
        "[fe80::1]",
    ],
)
def test_own_hosts_are_known(host: str) -> None:
    gate = _gate(hosts=("lab1:7070", "fe80::1"))
    for _ in range(2):
        assert _admit(gate, {"host": host}, access=Access.OPEN) is Identity.ANYONE


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7070", "127.0.0.1.evil", "", "a, b"]
)
def test_foreign_host_is_refused_even_on_open_paths(host: str) -> None:
    with pytest.raises(Refused) as caught:
        _admit(_gate(), {"host": host}, access=Access.OPEN)
    assert caught.value.status == 403
    assert str(caught.value) == (
        f"this process is not called {host!r}; call it by the address on which it listens, "
        "or name that host with --advertise"
    )


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1", ""]
)
def test_foreign_origin_is_refused(origin: str) -> None:
    with pytest.raises(Refused) as caught:
        _admit(_gate(), {"origin": origin}, access=Access.OPEN)
    assert caught.value.status == 403
    assert f"requests from pages of {origin!r} are refused" in str(caught.value)


def test_own_pages_may_ask() -> None:
    assert _admit(_gate(), {"origin": f"http://{HOST}"}, access=Access.OPEN) is Identity.ANYONE


# --- what is logged ---


def test_refusals_are_logged_once_and_then_counted(caplog: pytest.LogCaptureFixture) -> None:
    gate = _gate()
    refusal = Refused("wrong key: the signature doesn't fit", status=401, hint="secret hint")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            gate.report("10.0.0.9", "POST", "/v1/x", refusal)
        gate.report("10.0.0.7", "POST", "/v1/x", refusal)
    assert caplog.messages == [
        "peer=10.0.0.9 refused POST '/v1/x' with 401: wrong key: the signature doesn't fit",
        "peer=10.0.0.7 refused POST '/v1/x' with 401: wrong key: the signature doesn't fit",
    ]


def test_repeated_warning_says_how_often_it_came(caplog: pytest.LogCaptureFixture) -> None:
    now = [0]
    warnings = CountedWarnings(logging.getLogger("test"), interval_ms=100, now_ms=lambda: now[0])
    for at in (0, 10, 20, 100, 110, 300):
        now[0] = at
        warnings.warn("kind", f"at {at}")
    assert caplog.messages == [
        "at 0",
        "at 100 (and 2 more like it before)",
        "at 300 (and 1 more like it before)",
    ]


def test_made_up_kinds_of_warnings_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0]
    warnings = CountedWarnings(logging.getLogger("test"), interval_ms=100, now_ms=lambda: now[0])
    for number in range(5_000):
        warnings.warn(number, f"kind {number}")
    assert caplog.messages == [f"kind {number}" for number in range(201)]
    now[0] = 100
    warnings.warn("kind", "afterwards")
    assert caplog.messages[201:] == ["afterwards"]
