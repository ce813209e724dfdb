"""Tokens: what they say, and that nobody without the key can make or change one."""

from __future__ import annotations

import pytest

from tasksprint.net.keys import ClusterKey
from tasksprint.net.tokens import Scope, Token, cookie_token, make_token, read_token

KEY = ClusterKey(b"k" * 32)
OTHER_KEY = ClusterKey(b"o" * 32)


@pytest.mark.parametrize("scope", list(Scope))
def test_token_tells_its_scope_and_end_to_who_has_the_key(scope: Scope) -> None:
    token = make_token(KEY, scope, 60, now_s=1000)
    assert read_token(KEY, token) == Token(scope, 1060)
    assert read_token(OTHER_KEY, token) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "1060", "read.1060", "read.1060.", "all.1060.a", "x.y.z"),
        *("read." + "9" * 30 + ".a", "read.1060.é", "read.٣.a"),
    ],
)
def test_token_that_is_none(text: str) -> None:
    assert read_token(KEY, text) is None


def test_token_with_a_later_end_or_another_scope_is_none() -> None:
    scope, end, mac = make_token(KEY, Scope.READ, 60, now_s=1000).split(".")
    assert read_token(KEY, f"{scope}.{end}.{mac}") is not None
    assert read_token(KEY, f"{scope}.9999.{mac}") is None
    assert read_token(KEY, f"operate.{end}.{mac}") is None


def test_scopes_are_an_order() -> None:
    covered = [[one.covers(other) for other in Scope] for one in Scope]
    assert covered == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("", None),
        ("theme=dark", None),
        ("tasksprint_token=read.1.a", "read.1.a"),
        ("theme=dark; tasksprint_token=read.1.a;x", "read.1.a"),
        ("not_tasksprint_token=a", None),
    ],
)
def test_token_stands_in_a_cookie(header: str, token: str | None) -> None:
    assert cookie_token(header) == token
