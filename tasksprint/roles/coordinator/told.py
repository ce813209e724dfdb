"""A coordinator process's knowledge of running jobs, beyond the replicated state.

With its polls a client tells of jobs that it can't go on with, and why. It also tells of tasks
that have been running for long. Schedulers on this replica may be silent. All this is looked up
when somebody wants to know how a job stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tasksprint.coordination.long_runs import LongRun, decode_runs
from tasksprint.coordination.obstacles import Stall, Told, decode_stalls
from tasksprint.encoding import decode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ClientId, JobId
from tasksprint.roles.coordinator.runners import Runners

__all__ = ["ToldHere"]

# A living client polls sooner. After this its words don't hold any more.
_STALL_VALID_MS = 3_000
_COMPLAINT_VALID_MS = 20_000  # for some polls: it is shown for minutes
_COMPLAINT_CHARS = 200

_NOTHING = "[]"


class _Said(NamedTuple):
    """The words of a client."""

    text: str  # as it came: read when somebody asks, which hardly anybody does
    first_ms: int  # when it said so first
    last_ms: int


class ToldHere:
    """Keeps what clients said last; the leader's is current."""

    def __init__(self, now_ms: Callable[[], int], runners: Runners) -> None:
        self._now_ms = now_ms
        self._runners = runners
        self._stalls: dict[ClientId, _Said] = {}
        self._runs: dict[ClientId, _Said] = {}
        self._complaints: dict[ClientId, _Said] = {}

    def heard(self, cid: ClientId, query: Mapping[str, str]) -> None:
        """Note the words that came with a client's poll.

        Args:
            query: The query of the request. `stalls`: jobs that don't go on; `runs`: tasks that
                run for long. If one of these is missing, it is as before; `[]`: there are none
                any more. `complaint`: an answer that no coordinator should have given; if it
                is missing, there is none.
        """
        if (complaint := query.get("complaint")) is not None:
            self._keep(self._complaints, cid, complaint[:_COMPLAINT_CHARS], _COMPLAINT_VALID_MS)
        elif self._complaints:
            self._complaints.pop(cid, None)
        if (text := query.get("stalls")) is not None:
            self._keep(self._stalls, cid, text, _STALL_VALID_MS)
        if (text := query.get("runs")) is not None:
            self._keep(self._runs, cid, text, _STALL_VALID_MS)

    def _keep(self, table: dict[ClientId, _Said], cid: ClientId, text: str, valid_ms: int) -> None:
        """Note the words of a client, behind earlier words of others."""
        now_ms = self._now_ms()
        before = table.pop(cid, None)
        if text != _NOTHING:
            first_ms = now_ms
            if before is not None and before.text == text:
                first_ms = before.first_ms
            table[cid] = _Said(text, first_ms, now_ms)
        # Those of clients that died, perhaps, though nobody may ever ask.
        while table and now_ms - next(iter(table.values())).last_ms > valid_ms:
            del table[next(iter(table))]

    def complaint_of(self, cid: ClientId) -> str | None:
        """Return the complaint of a client's last poll, if that was lately."""
        if (found := self._complaints.get(cid)) is None:
            return None
        if self._now_ms() - found.last_ms <= _COMPLAINT_VALID_MS:
            return found.text
        del self._complaints[cid]
        return None

    def of(self, *jobs: JobId) -> Told:
        """Return the words about these jobs, or about all."""
        now_ms, runners = self._now_ms(), self._runners
        found = runners.items()
        if jobs:
            found = [(job, runner) for job in jobs if (runner := runners.get(job)) is not None]
        silences = {
            job: silence
            for job, runner in found
            if (silence := runner.silence(now_ms)) is not None
        }
        stalls: list[Stall] = []
        for cid, _, listed in _read(self._stalls, jobs, now_ms):
            stalls += decode_stalls(cid, listed)
        runs: list[LongRun] = []
        for cid, age_ms, listed in _read(self._runs, jobs, now_ms):
            runs += decode_runs(cid, listed, age_ms)
        if jobs:
            stalls = [stall for stall in stalls if stall.job in jobs]
            runs = [run for run in runs if run.job in jobs]
        return Told(silences, tuple(stalls), tuple(runs))


def _read(
    table: dict[ClientId, _Said], jobs: tuple[JobId, ...], now_ms: int
) -> Iterator[tuple[ClientId, int, Any]]:
    """Read the clients' words about these jobs, or about any, if they are recent.

    Returns:
        The client, the milliseconds since it said so first, and the JSON of it.
    """
    # Each entry begins with its job. Of a thousand clients few run tasks of one job. Reading
    # the words of all would take milliseconds, in each second in which somebody looks.
    speaks_of = re.compile(rf"\[(?:{'|'.join(map(str, jobs))})," if jobs else "").search
    for cid, said in list(table.items()):
        if now_ms - said.last_ms > _STALL_VALID_MS:
            del table[cid]
        elif speaks_of(said.text):
            yield cid, now_ms - said.first_ms, _decode(said.text)


def _decode(text: str) -> Any:
    """Return JSON of a client; None if it isn't any: a poll is answered all the same."""
    try:
        return decode_json(text.encode())
    except RemoteProtocolError:
        return None
