"""Who may come in: signatures, replays, tokens, and requests that a browser was talked into.

The gate judges heads of requests; it knows no sockets and no paths. A refusal is a `Refused`
with status 401 (who are you?) or 403 (not from there). Its words help somebody who was refused
by mistake. Each kind of refusal is logged once for each peer and then counted.

A signed request counts once. It must be signed for this life of this process and for an address
of this process. Its number must be new from this sender. No clock is asked.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from tasksprint.errors import Refused
from tasksprint.net.addresses import host_of, parse_address
from tasksprint.net.keys import ClusterKey, authorization_of, new_life
from tasksprint.net.tokens import Scope, Token, cookie_token, read_token

__all__ = [
    "Access",
    "CountedWarnings",
    "Gate",
    "Identity",
    "Misaddressed",
    "OtherLife",
    "Repeated",
    "SignedHead",
]

log = logging.getLogger(__name__)

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_SIGNATURE = re.compile(
    r"TaskSprint life=[0-9a-f]{16},nonce=[0-9a-f]{32},body=(?:[0-9a-f]{64}|stream|),"
    r"mac=[0-9a-f]{64}"
)
_FORM = "'TaskSprint life=<16 hex>,nonce=<32 hex>,body=<digest>,mac=<64 hex>'"

# Kinds of warnings that are told within one interval, and the name of all others.
_KINDS_MAX = 200
_OTHERS = object()

# Requests of one sender may overtake each other by so many (several connections).
_WINDOW = 2_048
_FULL = (1 << _WINDOW) - 1  # a window without gaps
# Senders remembered in one life: some 60 MB at most. Each start of a process is one, and only
# holders of the key get in here. A script that asks each second for a day reaches this.
_SENDERS_MAX = 100_000
_PORT = 80  # of an address that names none (RFC 9110, section 4.2.1)


class OtherLife(Refused):
    """The request has to be signed anew, for the life that the answer tells."""


class Repeated(OtherLife):
    """The request was received before; mostly somebody recorded it."""


class Misaddressed(Refused):
    """The request was signed for another process; a stranger may have brought it here."""


class Access(Enum):
    """Who may use a route."""

    KEY = "key"  # only holders of the cluster key
    READ = "read"  # the same, and bearers of a token of this scope, or of one that covers it
    SUBMIT = "submit"
    OPERATE = "operate"
    PROOF = "proof"  # holders of the key, and bearers of any token: it reads nothing
    OPEN = "open"  # everybody


class Identity(Enum):
    """The proof that a request carried."""

    CLUSTER = "cluster"  # it was signed with the cluster key
    BEARER = "bearer"  # it bears a valid token of a scope that is enough
    ANYONE = "anyone"  # nothing was asked


class SignedHead(NamedTuple):
    """The signed facts in the head of a request; it was signed with the cluster key."""

    host: str
    life: str
    sender: str
    number: str  # of the request, in hex
    body: str  # digest of the body, or `NO_BODY`
    mac: str


class Gate:
    """Judges requests by the cluster key.

    Args:
        addresses: This process may be called by these, and by those on which it listens.
        wall_ms: The clock of the machine, in milliseconds since 1970; for tokens only.
        life: Names this start of this process.
    """

    def __init__(
        self,
        key: ClusterKey,
        *,
        addresses: Iterable[str] = (),
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        life: str | None = None,
        senders_max: int = _SENDERS_MAX,
    ) -> None:
        self.key = key
        self.life = life or new_life()
        self._addresses: set[tuple[str, int]] = set()
        self._hosts = set(_LOOPBACK_HOSTS)
        self._known: set[str] = set()  # Host headers as they came, found to be our addresses
        self._known_hosts: set[str] = set()  # and those with one of our hosts
        self._wall_ms = wall_ms
        self._senders_max = senders_max
        self._windows: dict[str, tuple[int, int]] = {}  # sender -> (highest count, window)
        self._warnings = CountedWarnings(log)
        for address in addresses:
            self.allow(address)

    def allow(self, address: str) -> None:
        """Allow one more address by which this process may be called."""
        host, port = parse_address(address)
        self._addresses.add((_plain_host(host), port))
        self._hosts.add(_plain_host(host))

    def signed_head(
        self, method: str, target: str, headers: Mapping[str, str]
    ) -> SignedHead | None:
        """Check that a head was signed with the key; return the facts in it.

        From then on each refusal can carry a proof.

        Returns:
            None: it isn't signed.

        Raises:
            Refused: With status 401: it is signed by another key, or malformed.
        """
        authorization = headers.get("authorization")
        if authorization is None or not authorization.startswith("TaskSprint "):
            return None
        # Cut where the parts of our form stand, put together again, and compared as a whole.
        # (To match the pattern first would take as long as all the rest.)
        host, life, nonce = headers.get("host", ""), authorization[16:32], authorization[39:71]
        body = authorization[77:-69]
        mac = self.key.request_mac(method, target, host, life=life, nonce=nonce, body=body)
        expected = authorization_of(life, nonce, body, mac)
        if not (authorization.isascii() and hmac.compare_digest(authorization, expected)):
            if _SIGNATURE.fullmatch(authorization) is None:
                raise _malformed()
            raise Refused(
                "wrong key: the signature doesn't fit the request",
                status=401,
                hint="both sides must use the same key file (--key-file, TASKSPRINT_KEY_FILE)",
            )
        return SignedHead(host, life, nonce[:16], nonce[16:], body, mac)

    def admit(
        self,
        method: str,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        signed: SignedHead | None,
        *,
        access: Access,
        bound: Callable[[], tuple[str, int]],
    ) -> Identity:
        """Judge a head by its target, its origin, and its sender's proof.

        Args:
            signed: The result of `signed_head`.
            bound: The host and the port of this end of the connection: one may call a
                process that listens on all interfaces by any of its numbers.

        Raises:
            Refused: With status 401 or 403.
        """
        host = headers.get("host", "")
        if signed is not None:
            # The whole address: another process of this key may listen beside this one.
            if host not in self._known:
                self._check_address(host, bound)
        # A page from elsewhere can make its browser send requests here, under a name of
        # the page's choice (DNS rebinding). So the name must be ours.
        elif host not in self._known_hosts:
            self._check_host(host, bound)
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise Refused(
                f"requests from pages of {origin!r} are refused",
                status=403,
                hint="only pages of this process itself may send requests to it",
            )
        if signed is not None:
            self._check_life(signed)
            return Identity.CLUSTER
        if access is Access.OPEN:
            return Identity.ANYONE
        return self._admit_token(method, headers, query, access)

    def _check_life(self, signed: SignedHead) -> None:
        """Refuse a request that was signed for another life, or was received before."""
        if signed.life != self.life:
            raise OtherLife(
                f"the request was signed for life {signed.life} of this process, this is life "
                f"{self.life}",
                status=401,
                hint="sign it anew for this one",
            )
        if len(self._windows) >= self._senders_max and signed.sender not in self._windows:
            # Forgotten requests must not come in again. They were signed for the life that
            # ends here, so none does. Everybody is told the new life.
            self.life = new_life()
            self._windows.clear()
            self._check_life(signed)
        try:
            count = int(signed.number, 16)
        except ValueError:
            raise _malformed() from None
        if not self._is_new(signed.sender, count):
            raise Repeated(
                "this request was received before (its nonce is used)",
                status=401,
                hint="sign each request anew",
            )

    def _is_new(self, sender: str, count: int) -> bool:
        """Remember a request; return whether it was not received before.

        For each sender: the highest number seen, and a bit for each of the numbers below
        it (the window of RFC 4303, section 3.4.3).
        """
        seen = self._windows.get(sender)
        # Senders count from 1: nothing can come that is below the first of them.
        highest, window = seen or (count - 1, _FULL if count == 1 else 0)
        ahead = count - highest
        if ahead == 1 and window is _FULL:
            self._windows[sender] = (count, _FULL)  # Mostly so: no arithmetic of long numbers.
            return True
        if ahead > 0:
            highest = count
            window = (window << ahead | 1) & _FULL if ahead < _WINDOW else 1
        elif -ahead >= _WINDOW or window >> -ahead & 1:
            return False
        else:
            window |= 1 << -ahead
        self._windows[sender] = (highest, _FULL if window == _FULL else window)
        return True

    def report(self, peer: str, method: str, path: str, refusal: Refused) -> None:
        """Log a refusal: the first of its kind from a peer, and then how many followed."""
        message = refusal.args[0]
        self._warnings.warn(
            (peer, refusal.status, message[:24]),
            f"peer={peer} refused {method} {path[:200]!r} with {refusal.status}: {message:.400}",
        )

    def _check_address(self, host: str, bound: Callable[[], tuple[str, int]]) -> None:
        """Refuse a signed request that was addressed to another process than this one."""
        called = _address_in(host)
        if called in self._addresses:
            if len(self._known) < 100:  # An address can be written in many ways.
                self._known.add(host)
            return
        bound_host, bound_port = bound()
        bound_host = _plain_host(bound_host)
        is_own_host = called[0] == bound_host or (
            called[0] in _LOOPBACK_HOSTS and _is_loopback(bound_host)
        )
        if not is_own_host or called[1] != bound_port:
            raise Misaddressed(
                f"the request was signed for {host!r}, which is no address of this process",
                status=401,
                hint="call it by the address on which it listens, or name that one with "
                "--advertise, which may be given several times",
            )

    def _check_host(self, host: str, bound: Callable[[], tuple[str, int]]) -> None:
        bare = host_of(host)
        if bare in self._hosts:
            if len(self._known_hosts) < 100:
                self._known_hosts.add(host)
        elif bare != bound()[0].lower():
            raise Refused(
                f"this process is not called {host!r}",
                status=403,
                hint="call it by the address on which it listens, or name that host with "
                "--advertise",
            )

    def _admit_token(
        self,
        method: str,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        access: Access,
    ) -> Identity:
        token = self._judge_token(_token_text(method, headers, query))
        if access is Access.PROOF:
            return Identity.BEARER
        needed = _SCOPES.get(access)
        if needed is None:
            raise Refused(
                f"a token is not enough for {method} on this path",
                status=403,
                hint="it is for processes of the cluster, which sign with its key",
            )
        if not token.scope.covers(needed):
            raise Refused(
                f"this token is not enough for {method} on this path: {token.describe()}",
                status=403,
                hint=f"make one with `tasksprint token --scope {needed.value}`",
            )
        return Identity.BEARER

    def _judge_token(self, text: str) -> Token:
        token = read_token(self.key, text)
        if token is None:
            raise Refused(
                "wrong token: it was not made with this cluster's key",
                status=401,
                hint="make one with `tasksprint token`",
            )
        late_s = self._wall_ms() // 1000 - token.expiry_s
        if late_s >= 0:
            raise Refused(
                f"the token ended {late_s} s ago",
                status=401,
                hint="make another one with `tasksprint token`",
            )
        return token


_SCOPES = {Access.READ: Scope.READ, Access.SUBMIT: Scope.SUBMIT, Access.OPERATE: Scope.OPERATE}


def _token_text(method: str, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """Return the token that a request shows: in a header, a cookie, or (to read) its query.

    Raises:
        Refused: It shows none, or shows it in a way that another page could bring about.
    """
    authorization = headers.get("authorization")
    if authorization is not None:
        if not authorization.startswith("Bearer "):
            raise Refused(
                f"unknown kind of Authorization {authorization.partition(' ')[0][:20]!r}, "
                "expected 'TaskSprint' or 'Bearer'",
                status=401,
            )
        return authorization[7:].strip()
    is_reading = method in ("GET", "HEAD")
    if "token" in query and is_reading:
        return query["token"]
    cookie = cookie_token(headers.get("cookie", ""))
    if cookie is None:
        raise Refused(
            "no Authorization",
            status=401,
            hint="sign the request with the cluster key, or show a token (`tasksprint token`) "
            "where one is enough",
        )
    # A browser sends a cookie with any page's request. The page's origin tells which page it
    # was, and no page can choose that. (An Origin that isn't ours was refused before.)
    if not is_reading and "origin" not in headers:
        raise Refused(
            f"a cookie is not enough for {method} without an Origin",
            status=403,
            hint="send the token as 'Authorization: Bearer …'",
        )
    return cookie


class CountedWarnings:
    """Logs the first warning of each kind, and later how often it came again.

    The number of kinds within an interval is bounded; later ones count as one kind. A peer with
    many addresses can make up many kinds, but it fills neither memory nor log.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        interval_ms: int = 60_000,
        now_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._logger = logger
        self._interval_ms = interval_ms
        self._now_ms = now_ms
        self._kinds: dict[object, tuple[int, int]] = {}  # kind -> (last line at, unsaid since)

    def warn(self, kind: object, message: str) -> None:
        """Log the message, or count it if one of this kind was logged a short while ago."""
        now_ms = self._now_ms()
        if kind not in self._kinds and len(self._kinds) >= _KINDS_MAX:
            self._kinds = {
                known: (last_ms, unsaid)
                for known, (last_ms, unsaid) in self._kinds.items()
                if now_ms - last_ms < self._interval_ms
            }
            if len(self._kinds) >= _KINDS_MAX:
                kind = _OTHERS
        last_ms, unsaid = self._kinds.get(kind, (None, 0))
        if last_ms is not None and now_ms - last_ms < self._interval_ms:
            self._kinds[kind] = (last_ms, unsaid + 1)
            return
        self._kinds[kind] = (now_ms, 0)
        if unsaid:
            message = f"{message} (and {unsaid} more like it before)"
        self._logger.warning("%s", message)


def _malformed() -> Refused:
    return Refused(f"the Authorization is malformed, expected {_FORM}", status=401)


def _address_in(host: str) -> tuple[str, int]:
    """Return the host and the port of a Host header; ("", 0) if it isn't an address."""
    bare = host_of(host)
    end = host.rpartition("]")[2].rpartition(":")
    if not bare or not end[1]:
        return _plain_host(bare), _PORT if bare else 0
    return _plain_host(bare), int(end[2] or _PORT)


def _plain_host(host: str) -> str:
    """Return a host in the one form in which hosts are compared."""
    host = host.lower()
    if ":" not in host:
        return host
    try:
        number = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(number.ipv4_mapped or number)


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")
