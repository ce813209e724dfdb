"""Finds the replica with a state unlike the others', and stops it.

The same log must give the same state everywhere. A bug, or memory that flipped a bit, may break
this. A replica notices it in two ways. It applies a tick, and this claims another digest than
its own. Or another replica asks for its digest, and names a different one. Then it asks all
voters.

A replica stops if its state differs from that of a majority of the voters, even if it leads. The
replica that noticed isn't always the wrong one; a wrong leader notices when it is asked. If no
digest gets a majority in time, nobody can say which state is right. Then the replica that
noticed stops.

This module asks and stops; hosting/claims.py decides which digests are compared.
"""

from __future__ import annotations

import asyncio

from tasksprint.consensus.voters import Voters
from tasksprint.coordination.commands import Claim
from tasksprint.coordination.schedule import Applied
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError, StateDiffers
from tasksprint.hosting.claims import Claims, majority_digest
from tasksprint.ids import ReplicaId, Slot
from tasksprint.net.deadlines import within
from tasksprint.net.http_client import HttpClient
from tasksprint.net.router import Request, Response, Router, json_response
from tasksprint.roles.coordinator.ports import Turns, logger
from tasksprint.roles.coordinator.roster import Roster

__all__ = ["Agreement"]

# A round of asking takes so long, and no longer for a voter that hangs. One that lags, or is
# just being started, has the digest in question later; its next ticks are asked about then.
_ROUND_S = 0.5
_ROUNDS_MAX = 10
_SHOWN = 12  # characters of a digest that people are shown


class Agreement:
    """One coordinator's part in finding such a replica."""

    def __init__(self, turns: Turns, roster: Roster, http: HttpClient) -> None:
        self._turns = turns
        self._roster = roster
        self._http = http
        self._claims = Claims()
        self._disputed: Claim | None = None  # ours
        self._asking: asyncio.Task[None] | None = None

    def add_to(self, router: Router) -> None:
        """Answer others that ask for our digest."""
        router.add("GET", "/v1/digest", self._digest)

    @property
    def claim(self) -> Claim | None:
        """The next tick's claim about this replica."""
        return self._claims.newest

    def applied(self, slot: Slot, digest: str, applied: Applied) -> None:
        """Compare the claim of an entry's tick, if it has one, with this replica's state."""
        if applied.tick is not None:
            self._differs(self._claims.ticked(slot, digest, applied.tick.claim))

    def forget(self) -> None:
        """Take note: from here on a copy of another replica's state is ours."""
        self._claims.forget()
        self._disputed = None

    def _digest(self, request: Request) -> Response:
        """Tell another replica our digest after a slot; it names its own, too.

        A replica of another cluster may ask, at an address that it knows from before. Its state
        says nothing about ours.
        """
        mine = None
        if request.query.get("cluster") == self._roster.cluster:
            mine = self._claims.at(Slot(request.query_integer("slot", 0)))
        if mine is not None and request.query.get("digest") != mine.digest:
            self._differs(mine)
        return json_response(
            {
                "replica": self._roster.me,
                "digest": None if mine is None else mine.digest,
            }
        )

    def _differs(self, mine: Claim | None) -> None:
        if mine is not None:
            self._disputed = mine
            if self._asking is None:
                self._asking = self._turns.background(self._ask())

    async def _ask(self) -> None:
        """Ask the voters until a majority of them agrees; stop if we don't agree with it."""
        me = self._roster.me
        found: dict[ReplicaId, str] = {}
        mine = self._disputed
        for _ in range(_ROUNDS_MAX):
            started_ms = self._turns.now_ms()
            if self._disputed is None:  # A copy took its place.
                break
            mine = self._disputed
            members, voters = self._roster.voters, Voters(self._roster.voters)
            found = {me: mine.digest}
            majority = majority_digest(found, voters)
            asks = [
                self._turns.spawn(self._ask_one(member.address, mine))
                for member in members
                if member.replica != me
            ]
            for answered in asyncio.as_completed(asks):
                if (answer := await answered) is not None:
                    found[answer[0]] = answer[1]
                    majority = majority_digest(found, voters)
                if majority not in (None, mine.digest):
                    break  # A wrong one stops at once.
            if majority == mine.digest:
                others = [who for who, digest in found.items() if digest != mine.digest]
                logger.error(
                    "replica=%d slot=%d a majority has the same state, but not replica %s",
                    me,
                    mine.slot,
                    _listed(others),
                )
                break
            if majority is not None:
                self._turns.fail(_outvoted(me, mine, found, majority))
                return
            spent_s = (self._turns.now_ms() - started_ms) / 1000
            await asyncio.sleep(max(_ROUND_S - spent_s, 0))
        else:
            assert mine is not None
            self._turns.fail(_undecided(me, mine, found))
        self._asking = None

    async def _ask_one(self, address: str, mine: Claim) -> tuple[ReplicaId, str] | None:
        query: dict[str, str | int] = {"slot": mine.slot, "digest": mine.digest}
        query["cluster"] = self._roster.cluster or ""
        try:
            response = await within(
                _ROUND_S,
                self._http.request(address, "GET", "/v1/digest", query=query),
                discard=lambda _: None,
            )
            answer = response.checked().json_object()
        except (PeerUnreachable, Refused, RemoteProtocolError, asyncio.TimeoutError):
            return None
        replica, digest = answer.get("replica"), answer.get("digest")
        if type(replica) is not int or type(digest) is not str:
            return None
        return ReplicaId(replica), digest


def _outvoted(
    me: ReplicaId, mine: Claim, found: dict[ReplicaId, str], majority: str
) -> StateDiffers:
    others = [who for who, digest in found.items() if digest == majority]
    return StateDiffers(
        f"replica {me} has another state than a majority of the voters ({_listed(others)}): after "
        f"slot {mine.slot} its digest is {_short(mine.digest)}, theirs {_short(majority)}",
        hint="don't start it again: keep its data directory for the authors, and put a new one "
        f"in its place (tasksprint member replace {me} ID=HOST:PORT)",
    )


def _undecided(me: ReplicaId, mine: Claim, found: dict[ReplicaId, str]) -> StateDiffers:
    listed = ", ".join(f"{who}: {_short(digest)}" for who, digest in sorted(found.items()))
    return StateDiffers(
        f"replica {me} doesn't have the state of the others, and no majority of the voters could "
        f"be asked who is wrong; the digests after slot {mine.slot} are {listed}",
        hint="start all of them again, so that a majority decides; keep all data directories",
    )


def _listed(replicas: list[ReplicaId]) -> str:
    return ", ".join(map(str, sorted(replicas)))


def _short(digest: str) -> str:
    return digest[:_SHOWN]
