"""What a coordinator does when the disk with its data directory fills.

It says so; then it takes no new jobs; then it stops, while the files can still be closed and
opened again. A leader that is short of space hands over first, if another member isn't.
Running jobs go on meanwhile: ending them gives space back.

Knows what to do; how much is how little is known to process/free_space.py.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.process.free_space import CHECK_S, FreeSpace, Level, measure

if TYPE_CHECKING:
    from tasksprint.roles.coordinator import Coordinator

__all__ = ["INSUFFICIENT_STORAGE", "DiskSpace"]

_log = logging.getLogger("tasksprint.coordinator")

INSUFFICIENT_STORAGE = 507  # RFC 4918, section 11.5
# A leader that is short asks the others so often whether one of them isn't.
_ASK_EACH = 10


class DiskSpace:
    """The free space of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self.free = FreeSpace(coordinator.settings, coordinator.options.data_dir)
        self._checks = 0

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
                f"replica {self._coordinator.options.me} takes no new jobs: "
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
        """Look once, and do what follows."""
        coordinator, free = self._coordinator, self.free
        has_changed = free.found(*await measure(free.directory))
        me = coordinator.options.me
        if free.level is Level.SPENT:
            coordinator.fail(free.spent(f"replica {me}"))
            return
        if has_changed:
            what = {
                Level.PLENTY: "there is enough space again",
                Level.LOW: "the disk fills",
                Level.SHORT: "takes no new jobs",
            }[free.level]
            level = logging.INFO if free.level is Level.PLENTY else logging.WARNING
            _log.log(level, "replica=%d %s: %s", me, what, free.describe())
            self._checks = 0
        if self.is_short and coordinator.replica.is_leader:
            if self._checks % _ASK_EACH == 0 and await self._another_has_space():
                cause = f"its disk is nearly full: {free.describe()}"
                if coordinator.replica.hand_over(cause, coordinator.monotonic_ms()):
                    coordinator.wake()
            self._checks += 1

    async def _another_has_space(self) -> bool:
        """Whether another voter is up and has more than it needs to take jobs."""
        coordinator = self._coordinator
        membership = coordinator.replica.membership
        if membership is None:
            return False
        for member in membership.voters:
            if member.replica == coordinator.options.me:
                continue
            try:
                response = await coordinator.http.request(member.address, "GET", "/v1/status")
                space = response.checked().json_object().get("free_space")
            except (PeerUnreachable, Refused, RemoteProtocolError):
                continue
            if isinstance(space, dict) and space.get("level") in ("plenty", "low"):
                return True
        return False
