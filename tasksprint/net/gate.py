"""Who may come in: signatures, replays, tokens, and requests that a browser was talked into.

The gate judges heads of requests; it knows no sockets and no paths. A refusal is
a `Refused` with status 401 (who are you?) or 403 (not from there), and words that
help the one who was refused by mistake. Each kind of refusal is logged once for
each peer and then counted.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from tasksprint.errors import Refused
from tasksprint.net.addresses import host_of
from tasksprint.net.keys import ClusterKey
from tasksprint.net.tokens import Scope, Token, cookie_token, read_token
from tasksprint.settings import Settings

__all__ = ["Access", "Claim", "CountedWarnings", "Gate", "Identity"]

log = logging.getLogger(__name__)

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_SIGNATURE = re.compile(
    r"TaskSprint time=([0-9]{1,15}),nonce=([0-9a-f]{16})([0-9a-f]{16}),mac=([0-9a-f]{64})"
)

# Kinds of warnings that are told within one interval, and what stands for the rest.
_KINDS_MAX = 200
_OTHERS = object()

# Requests of one sender may overtake each other by so many (several connections).
_WINDOW = 2_048
# Senders remembered in one generation. Each start of a process is one; only holders of
# the key get in here, so this is a bound for the worst case, not a working limit.
_SENDERS_MAX = 200_000


class Access(Enum):
    """Who may use a route."""

    KEY = "key"  # only who proves the cluster key
    READ = "read"  # the same, and who bears a token of this scope, or of one that covers it
    SUBMIT = "submit"
    OPERATE = "operate"
    OPEN = "open"  # everybody


class Identity(Enum):
    """What a request proved."""

    CLUSTER = "cluster"  # it was signed with the cluster key
    BEARER = "bearer"  # it bears a valid token of a scope that is enough
    ANYONE = "anyone"  # nothing was asked


@dataclass(slots=True)  # One for each request: made twice as fast as a frozen one.
class Claim:
    """What the head of a request says about its sender, still to be verified."""

    method: str
    target: str
    host: str
    time_ms: int
    sender: str
    count: str
    mac: str


class Gate:
    """Judges requests by the cluster key.

    Args:
        hosts: Hosts by which this process may be called: of its listening and its
            advertised address. Loopback names are always allowed.
        wall_ms: The clock of the machine, in milliseconds since 1970.
    """

    def __init__(
        self,
        key: ClusterKey,
        settings: Settings,
        *,
        hosts: Iterable[str] = (),
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._key = key
        self._settings = settings
        self._hosts = set(_LOOPBACK_HOSTS)
        self._known: set[str] = set()  # Host headers as they came, found to be ours
        self._wall_ms = wall_ms
        self._nonces = _Nonces(2 * settings.clock_skew_max_ms)
        self._warnings = CountedWarnings(log)
        self.allow_hosts(hosts)

    def allow_hosts(self, hosts: Iterable[str]) -> None:
        """Allow more hosts (or addresses with a port) by which this process may be called."""
        for host in hosts:
            bare = host_of(host) if host.startswith("[") or host.count(":") == 1 else host.lower()
            if bare:
                self._hosts.add(bare)

    def admit(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        *,
        access: Access,
        bound_host: Callable[[], str],
    ) -> Claim | Identity:
        """Judge a head: where it was sent, from where, and what it says about its sender.

        Args:
            bound_host: The host of this end of the connection: one may call a process
                that listens on all interfaces by any of its numbers.

        Returns:
            What was proved; or the claim to hand to `verify` once the digest of the
            body is known.

        Raises:
            Refused: With status 401 or 403.
        """
        host = headers.get("host", "")
        # A page that a browser loaded from elsewhere can make it send requests here
        # under a name of the page's choice (DNS rebinding): so the name must be ours.
        if host not in self._known:
            self._check_host(host, bound_host)
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise Refused(
                f"requests from pages of {origin!r} are refused",
                status=403,
                hint="only pages of this process itself may send requests to it",
            )
        if access is Access.OPEN:
            return Identity.ANYONE
        authorization = headers.get("authorization")
        if authorization is not None and authorization.startswith("TaskSprint "):
            match = _SIGNATURE.fullmatch(authorization)
            if match is None:
                raise Refused(
                    "the Authorization is malformed, expected "
                    "'TaskSprint time=<ms>,nonce=<32 hex digits>,mac=<64 hex digits>'",
                    status=401,
                )
            time_text, sender, count, mac = match.groups()
            return Claim(method, target, host, int(time_text), sender, count, mac)
        return self._admit_token(method, headers, query, access)

    def verify(self, claim: Claim, body_digest: str) -> Identity:
        """Judge a claim by the digest of its request's body.

        Raises:
            Refused: With status 401: another key, another time, or a repetition.
        """
        mac = self._key.request_mac(
            claim.method,
            claim.target,
            claim.host,
            time_ms=claim.time_ms,
            nonce=claim.sender + claim.count,
            body_digest=body_digest,
        )
        if not hmac.compare_digest(mac, claim.mac):
            raise Refused(
                "wrong key: the signature doesn't fit the request",
                status=401,
                hint="both sides must use the same key file (--key-file, TASKSPRINT_KEY_FILE)",
            )
        now_ms = self._wall_ms()
        skew_ms = claim.time_ms - now_ms
        skew_max_ms = self._settings.clock_skew_max_ms
        if not -skew_max_ms <= skew_ms <= skew_max_ms:
            raise Refused(
                f"clock differs by {abs(skew_ms) / 1000:.0f} s, allowed {skew_max_ms // 1000} s: "
                f"the sender's is {'ahead' if skew_ms > 0 else 'behind'}",
                status=401,
                hint="set the clocks of both machines",
            )
        # Reading twice does no harm; everything else counts once.
        if claim.method not in ("GET", "HEAD") and not self._nonces.is_new(
            claim.sender, int(claim.count, 16), signed_ms=claim.time_ms, now_ms=now_ms
        ):
            raise Refused(
                "this request was received before (its nonce is used)",
                status=401,
                hint="sign each request anew",
            )
        return Identity.CLUSTER

    def report(self, peer: str, method: str, path: str, refusal: Refused) -> None:
        """Log a refusal: the first of its kind from a peer, and then how many followed."""
        message = refusal.args[0]
        self._warnings.warn(
            (peer, refusal.status, message[:24]),
            f"peer={peer} refused {method} {path[:200]!r} with {refusal.status}: {message:.400}",
        )

    def _check_host(self, host: str, bound_host: Callable[[], str]) -> None:
        bare = host_of(host)
        if bare in self._hosts:
            if len(self._known) < 100:  # A port can be written in many ways.
                self._known.add(host)
        elif bare != bound_host().lower():
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
        token = read_token(self._key, text)
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
        Refused: It shows none, or in a way in which somebody else could have it shown.
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
    # A browser sends a cookie whoever made it send the request; the page's origin, which no
    # page can choose, says who did. (That a given Origin is ours was seen before.)
    if not is_reading and "origin" not in headers:
        raise Refused(
            f"a cookie is not enough for {method} without an Origin",
            status=403,
            hint="send the token as 'Authorization: Bearer …'",
        )
    return cookie


class CountedWarnings:
    """Logs the first warning of each kind, and later how often it came again.

    Kinds are bounded within an interval, and those that come after count as one: who
    can make them up, as a peer with many addresses, fills neither memory nor log.
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


class _Nonces:
    """Remembers which requests were received, for as long as they would be accepted.

    For each sender: the highest number seen, and a bit for each of the numbers below
    it (the window of RFC 4303, section 3.4.3). Senders live in two generations; a
    used one moves to the young generation, so what is dropped was not used for a
    whole span, and its requests are too old to be accepted.

    Invariant: every request accepted with a time after `_floor_ms` is remembered.
    """

    def __init__(self, span_ms: int, *, senders_max: int = _SENDERS_MAX) -> None:
        self._span_ms = span_ms
        self._senders_max = senders_max
        self._young: dict[str, tuple[int, int]] = {}  # sender -> (highest, window)
        self._old: dict[str, tuple[int, int]] = {}
        self._young_since_ms = 0
        self._young_newest_ms = 0  # the latest signed time in each generation
        self._old_newest_ms = 0
        self._floor_ms = -1

    def is_new(self, sender: str, count: int, *, signed_ms: int, now_ms: int) -> bool:
        """Remember a request; return whether it was not received before."""
        if now_ms - self._young_since_ms >= self._span_ms or len(self._young) >= self._senders_max:
            self._rotate(now_ms)
        if signed_ms <= self._floor_ms:
            return False
        seen = self._young.get(sender) or self._old.get(sender)
        if seen is None:
            seen = (count, 1)
        else:
            highest, window = seen
            ahead = count - highest
            if ahead > 0:
                window = (window << ahead | 1) & (1 << _WINDOW) - 1 if ahead < _WINDOW else 1
                seen = (count, window)
            elif -ahead >= _WINDOW or window >> -ahead & 1:
                return False
            else:
                seen = (highest, window | 1 << -ahead)
        self._young[sender] = seen
        if signed_ms > self._young_newest_ms:
            self._young_newest_ms = signed_ms
        return True

    def _rotate(self, now_ms: int) -> None:
        # Two cases: 1. The span is over: what is dropped is too old by itself, and the
        # floor changes nothing. 2. There are too many senders: what is dropped early must
        # not come in again, so everything signed before is refused from now on.
        self._floor_ms = max(self._floor_ms, self._old_newest_ms if self._old else -1)
        self._old, self._young = self._young, {}
        self._old_newest_ms, self._young_newest_ms = self._young_newest_ms, 0
        self._young_since_ms = now_ms
