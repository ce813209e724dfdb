"""A client's news for its cluster: reports of its work, attached nodes, their runtimes."""

from __future__ import annotations

import asyncio
from typing import Any

from tasksprint.asking.leader import LeaderFinder
from tasksprint.coordination.commands import (
    Completion,
    Failure,
    JobObserved,
    Lost,
    NodesAttached,
    Report,
    encode_command,
)
from tasksprint.coordination.observations import NODE_RUNTIME
from tasksprint.errors import TaskSprintError
from tasksprint.execution.effects import SendReport
from tasksprint.execution.workbench import LOST_UNREPORTED, Workbench
from tasksprint.ids import Incarnation, JobId
from tasksprint.net.http_messages import HttpResponse
from tasksprint.roles.client.incarnations import Incarnations
from tasksprint.roles.client.ports import Turns, logger
from tasksprint.roles.client.values import ValueCache

__all__ = ["Reporting"]

_REPORTS_PAUSE_S = 0.01
_REPORTS_PAUSES_MAX = 100
# For so many jobs it is known which runtimes were told. For older ones they are told again.
_RUNTIMES_MAX = 1_000
_RUNTIME_MS = 5_000


class Reporting:
    """The news that one client has to tell."""

    def __init__(
        self,
        turns: Turns,
        workbench: Workbench,
        leader: LeaderFinder,
        incarnations: Incarnations,
        values: ValueCache,
    ) -> None:
        self._turns = turns
        self._workbench = workbench
        self._leader = leader
        self._incarnations = incarnations
        self._values = values
        self._report: SendReport | None = None  # the last one that was ordered
        self._report_given = asyncio.Event()
        self._attached_changed = asyncio.Event()
        self._runtimes_told: dict[tuple[JobId, str], None] = {}  # the oldest first

    # --- reports ---

    def send(self, report: SendReport) -> None:
        """Bring a report to the coordinator, in place of the one before."""
        self._report = report
        self._report_given.set()

    async def send_reports(self) -> None:
        """Bring each report to the coordinator, the same bytes until it is applied."""
        while True:
            await self._report_given.wait()
            self._report_given.clear()
            effect = self._report
            if effect is None:
                continue
            body = await self._encode_report(effect)
            reply = await self._leader.ask("POST", "/v1/commands", _read_reply, body=body)
            if "error" in reply:
                # Dead, or of an older incarnation: the poll learns it too, and joins anew.
                logger.warning(
                    "cid=%d report %d refused: %s",
                    self._workbench.cid,
                    effect.request,
                    reply["error"],
                )
                continue
            self._workbench.report_acknowledged(effect.incarnation, effect.request)
            self._turns.turn()

    async def _encode_report(self, effect: SendReport) -> bytes:
        completions: list[Completion] = []
        failures = [
            Failure(one.job, one.tid, one.attempt, one.error, one.fatal, dict(one.detail))
            for one in effect.failures
        ]
        for one in effect.completions:
            inline: dict[str, tuple[str, str]] = {}
            if one.inline:
                found = self._values.inline(one)
                if found is None:
                    found = await self._values.load_inline(one)
                if found is None:  # The store lost it since: unshown, it can't count.
                    failures.append(
                        Failure(one.job, one.tid, one.attempt, LOST_UNREPORTED, False, {})
                    )
                    continue
                inline = found
            completions.append(
                Completion(
                    one.job,
                    one.tid,
                    one.attempt,
                    one.digest,
                    one.size_bytes,
                    one.inputs_digest,
                    one.run_us,
                    inline,
                )
            )
        return encode_command(
            Report(
                cid=self._workbench.cid,
                incarnation=effect.incarnation,
                request=effect.request,
                acknowledged=effect.request,
                completions=tuple(completions),
                failures=tuple(failures),
                lost=tuple([Lost(job, tid) for job, tid in effect.lost]),
            )
        )

    # --- attached nodes ---

    def attached_changed(self) -> None:
        """Note that nodes came or went, or that another coordinator must know them."""
        self._attached_changed.set()

    async def tell_attached(self) -> None:
        """Tell the coordinator which nodes are attached here, each time that this changes."""
        workbench = self._workbench
        told: tuple[Incarnation, dict[str, int]] = (Incarnation(""), {})
        request = 0
        while True:
            await self._attached_changed.wait()
            self._attached_changed.clear()
            await self._incarnations.is_joined.wait()
            # Tasks on a node that is gone have failed: this counts only if it is told first.
            for _ in range(_REPORTS_PAUSES_MAX):
                if not workbench.has_unreported:
                    break
                await asyncio.sleep(_REPORTS_PAUSE_S)
            incarnation, nodes = workbench.incarnation, workbench.attached_nodes()
            if told == (incarnation, nodes) or (told[0] != incarnation and not nodes):
                continue
            request += 1
            command = NodesAttached(workbench.cid, incarnation, request, tuple(nodes.items()))
            body = encode_command(command)
            reply = await self._leader.ask("POST", "/v1/commands", _read_reply, body=body)
            if "error" not in reply:
                told = (incarnation, nodes)
            else:  # If it isn't known any more, it joins anew, and tells then.
                logger.warning(
                    "cid=%d its attached nodes aren't taken: %s", command.cid, reply["error"]
                )

    # --- what nodes run on ---

    def tell_runtime(self, job: JobId, runtime: str) -> None:
        """Tell the cluster the nodes' runtimes for a job, once: equal bytes need equal versions.

        If it can't be told now, it is told with the next node.
        """
        if (job, runtime) in self._runtimes_told:
            return
        self._runtimes_told[job, runtime] = None
        if len(self._runtimes_told) > _RUNTIMES_MAX:
            del self._runtimes_told[next(iter(self._runtimes_told))]
        self._turns.background(self._tell_runtime(job, runtime))

    async def _tell_runtime(self, job: JobId, runtime: str) -> None:
        source = f"client {self._workbench.cid}"
        body = encode_command(JobObserved(job, NODE_RUNTIME, source, runtime))
        try:
            response = await self._leader.request(
                "POST", "/v1/commands", body=body, give_up_ms=_RUNTIME_MS
            )
            response.checked()
        except TaskSprintError as error:
            logger.debug("job=%d what its nodes run on isn't told: %s", job, error)
            self._runtimes_told.pop((job, runtime), None)


def _read_reply(response: HttpResponse) -> dict[str, Any]:
    return response.checked().json_object()
