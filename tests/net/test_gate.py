"""Who is let in, and what the others are told."""

from __future__ import annotations

import logging
import re

import pytest

from tasksprint.errors import Refused
from tasksprint.net.gate import Access, CountedWarnings, Gate, Identity, OtherLife, Repeated
from tasksprint.net.keys import UNKNOWN_LIFE, ClusterKey
from tasksprint.net.tokens import Scope, make_token
from tests.net.support import KEY, OTHER_KEY

SECRET = bytes(range(32))  # of KEY

NOW_MS = 1_700_000_000_000
HOST = "127.0.0.1:7070"
LIFE = "0123456789abcdef"


def _now_ms() -> int:
    return NOW_MS


def _gate(*addresses: str, key: ClusterKey = KEY, senders_max: int = 100) -> Gate:
    gate = Gate(
        key, addresses=addresses, wall_ms=_now_ms, life=LIFE, senders_max=senders_max
    )
    gate.allow(HOST)
    return gate


def _admit(
    gate: Gate,
    headers: dict[str, str],
    *,
    method: str = "GET",
    target: str = "/v1/x",
    query: dict[str, str] | None = None,
    access: Access = Access.KEY,
    bound: tuple[str, int] = ("10.0.0.5", 7070),
) -> Identity:
    headers = {"host": HOST, **headers}
    signed = gate.signed_head(method, target, headers)
    return gate.admit(
        method, headers, query or {}, signed, access=access, bound=lambda: bound
    )


def _sign(
    method: str = "POST", *, secret: bytes = SECRET, host: str = HOST, life: str = LIFE
) -> str:
    """Sign as another process does, whose first request this is."""
    key = ClusterKey(secret)
    key.learn_life(host, life, signed_for="")
    return key.sign(method, "/v1/x", host).authorization


def _send(
    gate: Gate,
    *,
    method: str = "POST",
    authorization: str | None = None,
    host: str = HOST,
    bound: tuple[str, int] = ("10.0.0.5", 7070),
) -> Identity:
    if authorization is None:
        authorization = _sign(method, host=host)
    headers = {"authorization": authorization, "host": host}
    return _admit(gate, headers, method=method, bound=bound)


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
    assert _refusal(_gate(), 401, authorization=_sign(secret=bytes(32))) == (
        "wrong key: the signature doesn't fit the request; both sides must use the same key file "
        "(--key-file, TASKSPRINT_KEY_FILE)"
    )


@pytest.mark.parametrize("change", ["method", "target", "host", "life", "nonce", "body"])
def test_signature_fits_its_request_only(change: str) -> None:
    authorization = _sign()
    of_head = {"method": "POST", "target": "/v1/x", "host": HOST}
    if change in of_head:
        of_head[change] = "PUT"
    else:
        start = authorization.index(f"{change}=") + len(change) + 1
        end = authorization.index(",", start)
        other = authorization[start:end].replace("0", "1") or "a" * 64
        authorization = authorization[:start] + other + authorization[end:]
    with pytest.raises(Refused, match="wrong key"):
        _gate().signed_head(
            of_head["method"],
            of_head["target"],
            {"host": of_head["host"], "authorization": authorization},
        )


_MAC = "b" * 64


@pytest.mark.parametrize(
    "authorization",
    [
        "TaskSprint ",
        "TaskSprint life=1,nonce=2,body=,mac=3",
        f"TaskSprint life={LIFE},nonce={'a' * 32},mac={_MAC}",
        f"TaskSprint life={LIFE},nonce={'a' * 32},body=,mac={_MAC}\n",
        f"TaskSprint life={LIFE},nonce={'a' * 32},body=none,mac={_MAC}",
        f"TaskSprint life={LIFE},nonce={'a' * 32},body=,mac={_MAC}, TaskSprint life={LIFE}",
        f"TaskSprint nonce={'a' * 32},life={LIFE},body=,mac={_MAC}",
        f"TaskSprint time=1,nonce={'a' * 32},mac={_MAC}",
    ],
)
def test_malformed_authorization_is_told_the_form(authorization: str) -> None:
    assert _refusal(_gate(), 401, authorization=authorization) == (
        "the Authorization is malformed, expected "
        "'TaskSprint life=<16 hex>,nonce=<32 hex>,body=<digest>,mac=<64 hex>'"
    )


def test_other_kind_of_authorization_is_refused() -> None:
    with pytest.raises(Refused, match="unknown kind of Authorization 'Basic', expected"):
        _admit(_gate(), {"authorization": "Basic dXNlcg=="})


# --- once, and for this life only ---


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET", "HEAD"])
def test_request_counts_once(method: str) -> None:
    gate, authorization = _gate(), _sign(method)
    _send(gate, method=method, authorization=authorization)
    assert _refusal(gate, 401, method=method, authorization=authorization) == (
        "this request was received before (its nonce is used); sign each request anew"
    )


def test_request_for_another_life_is_told_this_one() -> None:
    gate = _gate()
    with pytest.raises(OtherLife) as caught:
        _send(gate, authorization=_sign(life=UNKNOWN_LIFE))
    assert str(caught.value) == (
        f"the request was signed for life {UNKNOWN_LIFE} of this process, this is life {LIFE}; "
        "sign it anew for this one"
    )


def test_life_of_each_start_is_another() -> None:
    lives = {Gate(KEY).life for _ in range(10)}
    assert len(lives) == 10 and all(re.fullmatch("[0-9a-f]{16}", life) for life in lives)


def test_wall_time_says_nothing_of_signed_requests() -> None:
    now_ms = [NOW_MS]
    gate = Gate(KEY, wall_ms=lambda: now_ms[0], addresses=[HOST], life=LIFE)
    for year in (0, 50, -20):
        now_ms[0] = NOW_MS + year * 31_536_000_000
        assert _send(gate) is Identity.CLUSTER


def _is_new(gate: Gate, number: int, sender: str = "ab" * 8) -> bool:
    """Whether a request with this number is taken."""
    nonce = f"{sender}{number:016x}"
    mac = KEY.request_mac("POST", "/v1/x", HOST, life=gate.life, nonce=nonce, body="")
    text = f"TaskSprint life={gate.life},nonce={nonce},body=,mac={mac}"
    try:
        _send(gate, authorization=text)
    except Repeated:
        return False
    return True


def test_requests_of_one_sender_may_overtake_each_other_within_the_window() -> None:
    gate = _gate()
    assert _is_new(gate, 3_000)
    assert _is_new(gate, 953)  # 2,047 behind
    assert not _is_new(gate, 952)  # 2,048 behind: it could have come before
    assert not _is_new(gate, 953)
    assert _is_new(gate, 5_000)
    assert _is_new(gate, 2_999)  # wasn't seen, and is still in the window
    assert not _is_new(gate, 3_000)
    assert _is_new(gate, 1 << 63)
    assert not _is_new(gate, 5_000)


def test_every_number_is_accepted_once_in_any_order_within_the_window() -> None:
    gate = _gate()
    order = [number ^ 0x2A for number in range(512)]
    assert all([_is_new(gate, number) for number in order])
    assert not any([_is_new(gate, number) for number in order])


@pytest.mark.parametrize("first", [1, 2])
def test_every_number_is_accepted_once_in_order_with_a_gap(first: int) -> None:
    gate = _gate()
    order = [*range(first, 3_000), 3_001, 3_002, 3_000, *range(3_003, 3_100)]
    assert all([_is_new(gate, number) for number in order])
    assert not any([_is_new(gate, number) for number in order])
    assert _is_new(gate, 3_101) and _is_new(gate, 3_100) and not _is_new(gate, 3_101)


def test_too_many_senders_begin_a_new_life_in_which_no_old_request_counts() -> None:
    gate = _gate(senders_max=10)
    recorded = [_sign() for _ in range(11)]
    for authorization in recorded[:10]:
        _send(gate, authorization=authorization)
    first = gate.life
    with pytest.raises(OtherLife):  # The eleventh is told the new life, and signs anew.
        _send(gate, authorization=recorded[10])
    assert gate.life != first
    for authorization in recorded:
        with pytest.raises(OtherLife, match="was signed for life"):
            _send(gate, authorization=authorization)
    assert _send(gate, authorization=_sign(life=gate.life)) is Identity.CLUSTER


def test_known_sender_is_taken_when_there_is_no_place_for_others() -> None:
    gate = _gate(senders_max=1)
    assert _is_new(gate, 1) and _is_new(gate, 2)
    assert gate.life == LIFE


# --- the address that was called ---


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        (HOST, ("127.0.0.1", 7070)),
        ("LAB1:7070", ("10.0.0.5", 7070)),
        ("lab1:17070", ("172.17.0.2", 7070)),  # a port map, advertised
        ("10.0.0.5:7070", ("10.0.0.5", 7070)),  # listens on all: any number of its own
        ("10.0.0.5:7070", ("::ffff:10.0.0.5", 7070)),
        ("localhost:7070", ("127.0.0.1", 7070)),
        ("localhost:7070", ("::1", 7070)),
        ("127.0.0.1:7070", ("::1", 7070)),
        ("[::1]:7070", ("::1", 7070)),
        ("[FE80:0:0::1]:7070", ("fe80::1", 7070)),
        ("lab1", ("10.0.0.5", 80)),
    ],
)
def test_request_counts_at_the_addresses_of_this_process(
    host: str, bound: tuple[str, int]
) -> None:
    gate = _gate("lab1:7070", "lab1:17070", "lab1:80")
    for _ in range(2):
        assert _send(gate, host=host, bound=bound) is Identity.CLUSTER


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("127.0.0.1:7071", ("127.0.0.1", 7070)),  # the client's port beside it
        ("lab1:7071", ("10.0.0.5", 7070)),
        ("lab2:7070", ("10.0.0.5", 7070)),
        ("localhost:7070", ("10.0.0.5", 7070)),  # of whoever sent it, not ours
        ("10.0.0.6:7070", ("10.0.0.5", 7070)),
        ("lab1", ("10.0.0.5", 7070)),
        ("[::2]:7070", ("::1", 7070)),
        ("", ("127.0.0.1", 7070)),
    ],
)
def test_request_to_another_address_counts_nowhere_else(
    host: str, bound: tuple[str, int]
) -> None:
    assert _refusal(_gate("lab1:7070"), 401, host=host, bound=bound) == (
        f"the request was signed for {host!r}, which is no address of this process; call it by "
        "the address on which it listens, or name that one with --advertise, which may be given "
        "several times"
    )


def test_loopback_address_means_a_process_of_each_machine() -> None:
    """The exception of docs/security.md: whoever carries it there finds the same address."""
    here, there = [Gate(KEY, wall_ms=_now_ms, life=16 * digit) for digit in "ab"]
    caller = ClusterKey(SECRET)
    for gate, bound in ((here, ("127.0.0.1", 7070)), (there, ("::1", 7070))):
        caller.learn_life(HOST, gate.life, signed_for="")
        authorization = caller.sign("POST", "/v1/x", HOST).authorization
        assert _send(gate, authorization=authorization, bound=bound) is Identity.CLUSTER
        assert "was received before" in _refusal(
            gate, 401, authorization=authorization, bound=bound
        )


def test_life_is_not_told_to_who_called_another_address() -> None:
    with pytest.raises(Refused) as caught:
        _send(_gate(), authorization=_sign(life=UNKNOWN_LIFE, host="h:1"), host="h:1")
    assert not isinstance(caught.value, OtherLife)


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
    gate = _gate("lab1:7070", "[fe80::1]:7070")
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
