"""Tokens for people: with one a browser or curl comes in without the cluster key.

A token is `<scope>.<expiry>.<mac>`. The scope says what its bearer may do. The expiry is the
second since 1970 at which it ends. The mac is the hex of HMAC-SHA256 with the cluster key over
"tasksprint-token\\n<scope>\\n<expiry>". Any holder of the key makes tokens; nobody keeps a list.
So a token can't be withdrawn before it ends, but by another key.

Wall time is right here: people say how long a token is good for. A wrong clock shortens or
prolongs just that.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from enum import Enum

from tasksprint.net.keys import ClusterKey

__all__ = ["COOKIE", "Scope", "Token", "cookie_token", "make_token", "read_token"]

# The name of the cookie that holds a token.
COOKIE = "tasksprint_token"


class Scope(Enum):
    """The rights of a token's bearer; each scope includes the scopes before it."""

    READ = "read"  # look at jobs, results, clients, members
    SUBMIT = "submit"  # hand in, cancel and forget jobs
    OPERATE = "operate"  # change the members, stop processes

    def covers(self, needed: Scope) -> bool:
        """Return whether this scope includes the needed one."""
        return _ORDER.index(self) >= _ORDER.index(needed)


_ORDER = tuple(Scope)
_DOES = {
    Scope.READ: "it may only read",
    Scope.SUBMIT: "it may read, and hand in, cancel and forget jobs",
    Scope.OPERATE: "it may read, hand in jobs, change the members and stop processes",
}


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was made with the cluster's key; perhaps it has ended."""

    scope: Scope
    expiry_s: int  # since 1970

    def describe(self) -> str:
        """Return in a few words what its bearer may do."""
        return _DOES[self.scope]


def make_token(key: ClusterKey, scope: Scope, valid_s: int, *, now_s: int | None = None) -> str:
    """Return a token that is good for `valid_s` seconds."""
    expiry_s = (int(time.time()) if now_s is None else now_s) + valid_s
    return f"{scope.value}.{expiry_s}.{key.token_mac(scope.value, expiry_s)}"


def read_token(key: ClusterKey, text: str) -> Token | None:
    """Return what a token says; None: it was not made with this key."""
    scope_text, _, rest = text.partition(".")
    expiry_text, _, mac = rest.partition(".")
    if not (expiry_text.isascii() and expiry_text.isdigit() and len(expiry_text) < 16):
        return None
    try:
        scope = Scope(scope_text)
    except ValueError:
        return None
    expiry_s = int(expiry_text)
    expected = key.token_mac(scope.value, expiry_s)
    if not hmac.compare_digest(expected, mac.encode("ascii", "replace").decode()):
        return None
    return Token(scope, expiry_s)


def cookie_token(header: str) -> str | None:
    """Return the token in a `Cookie` header; None: it holds none."""
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return None
