"""What nodes of this client run on, told to the cluster: equal bytes need equal versions.

Once for each job and version; what can't be told now is told with the next node.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tasksprint.coordination.commands import JobObserved, encode_command
from tasksprint.coordination.observations import NODE_RUNTIME
from tasksprint.errors import TaskSprintError
from tasksprint.ids import JobId

if TYPE_CHECKING:
    from tasksprint.roles.client.client import Client

__all__ = ["Runtimes"]

_log = logging.getLogger("tasksprint.client")

# Jobs of which it is known what was told; of older ones it is told again.
_JOBS_MAX = 1_000
_GIVE_UP_MS = 5_000


class Runtimes:
    """What one client has told of its nodes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told: dict[tuple[JobId, str], None] = {}  # the oldest first

    def tell(self, job: JobId, runtime: str) -> None:
        """Tell the cluster what nodes run a job on, unless it was told."""
        if (job, runtime) in self._told:
            return
        self._told[job, runtime] = None
        if len(self._told) > _JOBS_MAX:
            del self._told[next(iter(self._told))]
        self._client.background(self._tell(job, runtime))

    async def _tell(self, job: JobId, runtime: str) -> None:
        client = self._client
        source = f"client {client.workbench.cid}"
        body = encode_command(JobObserved(job, NODE_RUNTIME, source, runtime))
        try:
            response = await client.leader.request(
                "POST", "/v1/commands", body=body, give_up_ms=_GIVE_UP_MS
            )
            response.checked()
        except TaskSprintError as error:
            _log.debug("job=%d what its nodes run on isn't told: %s", job, error)
            self._told.pop((job, runtime), None)
