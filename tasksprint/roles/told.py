"""What a coordinator's process knows of running jobs beyond the replicated state.

Clients say with each poll which jobs they can't go on with, and why, and which tasks have
been running for long; schedulers on this replica may be silent. All of it is asked for when
somebody wants to know how a job stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from tasksprint.coordination.long_runs import LongRun, decode_runs
from tasksprint.coordination.obstacles import Stall, Told, decode_stalls
from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, JobId

if TYPE_CHECKING:
    from tasksprint.roles.coordinator import Coordinator

__all__ = ["ToldHere"]

# A client that lives polls sooner; what it said before is no longer so.
_STALL_VALID_MS = 3_000
_COMPLAINT_VALID_MS = 20_000  # for some polls: it is shown for minutes
_COMPLAINT_CHARS = 200

_Said = TypeVar("_Said")


class ToldHere:
    """Keeps what clients said last; the leader's is current."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._stalls: dict[ClientId, tuple[int, tuple[Stall, ...]]] = {}
        self._runs: dict[ClientId, tuple[int, tuple[LongRun, ...]]] = {}
        self._complaints: dict[ClientId, tuple[int, str]] = {}

    def heard(self, cid: ClientId, query: Mapping[str, str]) -> None:
        """Take what a client says with its poll.

        Args:
            query: Of the request. `stalls`: of jobs that don't go on; `runs`: of tasks that
                run for long; `complaint`: of an answer that no coordinator should have given
                it. What isn't there is no longer so.
        """
        if (complaint := query.get("complaint")) is not None:
            self._keep(self._complaints, cid, complaint[:_COMPLAINT_CHARS], _COMPLAINT_VALID_MS)
        elif self._complaints:
            self._complaints.pop(cid, None)
        if (text := query.get("stalls")) is not None:
            self._keep(self._stalls, cid, decode_stalls(cid, _decode(text)), _STALL_VALID_MS)
        elif self._stalls:
            self._stalls.pop(cid, None)
        if (text := query.get("runs")) is not None:
            self._keep(self._runs, cid, decode_runs(cid, _decode(text)), _STALL_VALID_MS)
        elif self._runs:
            self._runs.pop(cid, None)

    def _keep(
        self, table: dict[ClientId, tuple[int, _Said]], cid: ClientId, said: _Said, valid_ms: int
    ) -> None:
        """Note what a client says, behind what others said before it."""
        now_ms = self._coordinator.monotonic_ms()
        table.pop(cid, None)
        table[cid] = (now_ms, said)
        # Those of clients that died, perhaps, though nobody may ever ask.
        while now_ms - next(iter(table.values()))[0] > valid_ms:
            del table[next(iter(table))]

    def complaint_of(self, cid: ClientId) -> str | None:
        """Return what a client complained of with its last poll, if that was lately."""
        if (found := self._complaints.get(cid)) is None:
            return None
        at_ms, complaint = found
        if self._coordinator.monotonic_ms() - at_ms <= _COMPLAINT_VALID_MS:
            return complaint
        del self._complaints[cid]
        return None

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
        runs: list[LongRun] = []
        for cid, (at_ms, told) in list(self._runs.items()):
            age_ms = now_ms - at_ms
            if age_ms > _STALL_VALID_MS:
                del self._runs[cid]
            else:
                runs += [replace(run, run_ms=run.run_ms + age_ms) for run in told]
        return Told(silences, tuple(stalls), tuple(runs))


def _decode(text: str) -> Any:
    """Return JSON of a client; None if it isn't any: a poll is answered all the same."""
    try:
        return decode_json(text.encode())
    except RemoteProtocolError:
        return None
