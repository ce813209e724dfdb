"""What a coordinator's process knows of running jobs beyond the replicated state.

Clients say with each poll which jobs they can't go on with, and why; schedulers on this
replica may be silent. Both are asked for when somebody wants to know how a job stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasksprint.coordination.obstacles import Stall, Told, decode_stalls
from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, JobId

if TYPE_CHECKING:
    from tasksprint.roles.coordinator import Coordinator

__all__ = ["ToldHere"]

# A client that lives polls sooner; what it said before is no longer so.
_STALL_VALID_MS = 3_000


class ToldHere:
    """Keeps what clients said last; the leader's is current."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._stalls: dict[ClientId, tuple[int, tuple[Stall, ...]]] = {}

    def heard(self, cid: ClientId, text: str | None) -> None:
        """Take what a client says with its poll; None: all of its jobs go on."""
        if text is None:
            if self._stalls:
                self._stalls.pop(cid, None)
            return
        try:
            stalls = decode_stalls(cid, decode_json(text.encode()))
        except RemoteProtocolError:
            return  # For people only: a poll is answered all the same.
        now_ms = self._coordinator.monotonic_ms()
        self._stalls.pop(cid, None)
        self._stalls[cid] = (now_ms, stalls)
        # Those of clients that died, perhaps, though nobody may ever ask.
        while now_ms - next(iter(self._stalls.values()))[0] > _STALL_VALID_MS:
            del self._stalls[next(iter(self._stalls))]

    def of(self, *jobs: JobId) -> Told:
        """Return what is told of these jobs, or of all."""
        coordinator = self._coordinator
        now_ms = coordinator.monotonic_ms()
        runners = coordinator.runners
        found = runners.items()
        if jobs:
            found = [(job, runner) for job in jobs if (runner := runners.get(job)) is not None]
        silences = {
            job: silence
            for job, runner in found
            if (silence := runner.silence(now_ms)) is not None
        }
        stalls: list[Stall] = []
        for cid, (at_ms, listed) in list(self._stalls.items()):
            if now_ms - at_ms > _STALL_VALID_MS:
                del self._stalls[cid]
            else:
                stalls += listed
        return Told(silences, tuple(stalls))
