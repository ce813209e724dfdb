"""Whom to ask next in search of the leading coordinator; reads its answers and addresses.

Clients and commands share it: clients ask on a loop, commands block and load no asyncio. A
coordinator that doesn't lead answers 421, and names the leader if it knows.
"""

from __future__ import annotations

from typing import Any

from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError, UsageError
from tasksprint.ids import REPLICA_ID_MAX, ReplicaId
from tasksprint.net.addresses import parse_address
from tasksprint.net.http_messages import HttpResponse

__all__ = [
    "Rota",
    "check_replica_id",
    "error_words",
    "leader_hint",
    "other_cluster",
    "parse_addresses",
    "parse_member",
]

_DIGITS_MAX = 1_000  # far more than any id has; Python converts no more than 4,300
# Pause between two rounds of asking while nobody leads. An election takes tens of
# milliseconds, so a long pause would be most of a fail-over.
_PAUSE_MIN_S = 0.01
_PAUSE_MAX_S = 0.25


def parse_addresses(text: str) -> list[str]:
    """Return the addresses of a list such as "10.0.0.1:7070,10.0.0.2:7070"."""
    addresses = [part.strip() for part in text.split(",") if part.strip()]
    if not addresses:
        raise UsageError("no coordinator named", hint="give --coordinators HOST:PORT,…")
    for address in addresses:
        parse_address(address)
    return addresses


def parse_member(text: str) -> tuple[ReplicaId, str] | None:
    """Return the id and the address of "4=10.0.0.4:7070"; None: it isn't of this form."""
    number, equals, address = text.partition("=")
    if not equals or not number.isdecimal() or len(number) > _DIGITS_MAX:
        return None
    replica = check_replica_id(int(number), "replica")
    parse_address(address)
    return replica, address


def check_replica_id(number: int, what: str) -> ReplicaId:
    """Return a number of the command line if a replica can have it."""
    if not 1 <= number <= REPLICA_ID_MAX:
        raise UsageError(f"{what} {number} is not from 1 to 2**63 - 1")
    return ReplicaId(number)


class Rota:
    """Whom to ask next, and after which pause."""

    def __init__(self, addresses: list[str]) -> None:
        self._configured = list(addresses)
        self._learned: list[str] = []
        self._next = 0
        self._hinted: str | None = None
        self._failures = 0

    @property
    def address(self) -> str:
        """The address to ask now."""
        if self._hinted is not None:
            return self._hinted
        return self.known[self._next % len(self.known)]

    @property
    def known(self) -> list[str]:
        """All addresses that may be asked."""
        return [*self._configured, *self._learned]

    def learn(self, addresses: list[str]) -> None:
        """Ask these, too, in place of those that were learned before."""
        self._learned = [each for each in addresses if each not in self._configured]

    def add(self, addresses: list[str]) -> None:
        """Ask these, too."""
        self._configured += addresses

    def answered(self) -> None:
        """The address asked leads: go on with it."""
        self._failures = 0

    def failed(self) -> float:
        """The address asked doesn't answer: return the seconds to wait before the next."""
        if self._hinted is not None:
            self._hinted = None
        else:
            self._next += 1
        return self._pause()

    def redirected(self, leader: str | None) -> float:
        """The address asked doesn't lead: return the seconds to wait before the next."""
        if leader is not None and leader != self.address:
            self._hinted = leader
            self._failures += 1
            # A hint may be stale: two members that point at each other must not spin.
            return 0.0 if self._failures < 3 else self._pause()
        return self.failed()

    def _pause(self) -> float:
        self._failures += 1
        if self._failures < len(self._configured) + len(self._learned):
            return 0.0
        return min(_PAUSE_MIN_S * (1 + self._failures // 4), _PAUSE_MAX_S)


def leader_hint(response: HttpResponse) -> str | None:
    """Return the leader's address that a 421 names, or None."""
    leader = _told(response).get("leader")
    return leader if isinstance(leader, str) else None


def error_words(response: HttpResponse) -> str:
    """Return the error text of an answer, or ""."""
    words = _told(response).get("error")
    return words if isinstance(words, str) else ""


def other_cluster(response: HttpResponse) -> str | None:
    """Return the answerer's cluster, if the answer is a 421 because of it; else None."""
    cluster = _told(response).get("cluster")
    return cluster if isinstance(cluster, str) else None


def _told(response: HttpResponse) -> dict[str, Any]:
    """Return the members of an answer; none if it isn't a JSON object."""
    try:
        value = decode_json(response.body)
    except RemoteProtocolError:
        return {}
    return value if isinstance(value, dict) else {}
