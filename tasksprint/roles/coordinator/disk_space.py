"""A coordinator's behaviour when the disk with its data directory fills.

First it says so. Then it takes no new jobs. At last it stops, while the files can still be closed
and opened again. A leader that is short of space hands over first, if another member has enough.
Running jobs go on meanwhile: their end gives space back.

process/free_space.py knows the limits; this module only acts on them.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from tasksprint.consensus import Replica
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.net.deadlines import within
from tasksprint.net.http_client import HttpClient
from tasksprint.process.free_space import CHECK_S, FreeSpace, Level, measure
from tasksprint.roles.coordinator.ports import Turns, logger
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.settings import Settings

__all__ = ["INSUFFICIENT_STORAGE", "DiskSpace"]

INSUFFICIENT_STORAGE = 507  # RFC 4918, section 11.5
# A leader that is short asks the others for space so often, and waits so long for an answer.
_ASK_EACH = 10
_ASK_S = 1.0


class DiskSpace:
    """The free space of one coordinator."""

    def __init__(
        self,
        data_dir: Path,
        settings: Settings,
        turns: Turns,
        roster: Roster,
        replica: Replica,
        http: HttpClient,
    ) -> None:
        self._turns = turns
        self._roster = roster
        self._replica = replica
        self._http = http
        self.free = FreeSpace(settings, data_dir)
        self._checks = 0
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_short(self) -> bool:
        """Whether nothing new is to be taken on."""
        return self.free.level >= Level.SHORT

    def require(self) -> None:
        """Refuse what would only fill the disk further.

        Raises:
            Refused: There is too little space.
        """
        if self.is_short:
            raise Refused(
                f"replica {self._roster.me} takes no new jobs: "
                f"{self.free.describe()}",
                status=INSUFFICIENT_STORAGE,
                hint="free some space there",
            )

    async def watch(self) -> None:
        """Look each second, for ever."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_S)

    async def check(self) -> None:
        """Check once, and act on it."""
        free, me = self.free, self._roster.me
        before = free.level
        has_changed = free.found(*await measure(free.directory))
        if free.level is Level.SPENT:
            self._turns.fail(free.spent(f"replica {me}"))
            return
        if has_changed:
            is_less = free.level > before
            what = {
                Level.PLENTY: "there is enough space again",
                Level.LOW: "the disk fills" if is_less else "takes new jobs again",
                Level.SHORT: "takes no new jobs",
            }[free.level]
            level = logging.WARNING if is_less else logging.INFO
            logger.log(level, "replica=%d %s: %s", me, what, free.describe())
            self._checks = 0
        if self.is_short and self._replica.is_leader:
            if self._checks % _ASK_EACH == 0 and self._asking is None:
                # Done beside the checks: if others hang, a spent disk must be noticed still.
                self._asking = self._turns.background(self._hand_over())
            self._checks += 1

    async def _hand_over(self) -> None:
        """Let another one lead, if one has space."""
        asks = [
            self._turns.spawn(self._has_space(voter.address))
            for voter in self._roster.voters
            if voter.replica != self._roster.me
        ]
        for answered in asyncio.as_completed(asks):
            if await answered and self.is_short:
                cause = f"its disk is nearly full: {self.free.describe()}"
                if self._replica.hand_over(cause, self._turns.now_ms()):
                    self._turns.wake()
                break
        self._asking = None

    async def _has_space(self, address: str) -> bool:
        """Whether a voter is up, and has more space than it needs to take jobs."""
        try:
            response = await within(
                _ASK_S,
                self._http.request(address, "GET", "/v1/status"),
                discard=lambda _: None,
            )
            space = response.checked().json_object().get("free_space")
        except (PeerUnreachable, Refused, RemoteProtocolError, asyncio.TimeoutError):
            return False
        return isinstance(space, dict) and space.get("level") in ("plenty", "low")
