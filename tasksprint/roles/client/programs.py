"""Jobs' programs on one client: fetched from the cluster, unpacked, set up.

A folder is named after the digest of its archive. Once it is there, it is used as it is. So a
client that starts again fetches nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from tasksprint.asking.leader import LeaderFinder
from tasksprint.encoding import decode_json
from tasksprint.errors import NodeFailed
from tasksprint.execution.workbench import Workbench
from tasksprint.net.http_messages import HttpResponse
from tasksprint.process.archive import unpack
from tasksprint.process.clock import monotonic_ms
from tasksprint.process.program_setup import set_up
from tasksprint.roles.last_use import (
    LastUse,
    delete_folders,
    folders_in,
    leftovers_in,
    take_away,
)
from tasksprint.settings import Settings

__all__ = ["ClientPrograms"]

_NOT_FOUND = 404
_SWEEP_S = 5.0  # between two looks for unused programs


class ClientPrograms:
    """The programs of one client.

    Args:
        root: The folder that they stand in.
    """

    def __init__(
        self, root: Path, workbench: Workbench, leader: LeaderFinder, settings: Settings
    ) -> None:
        self._root = root
        self._workbench = workbench
        self._leader = leader
        self._setup_timeout_ms = settings.setup_timeout_ms
        self._gone = leftovers_in(root)  # folders to delete
        self._uses = LastUse(settings.program_unused_max_ms)

    async def keep_swept(self) -> None:
        """Look for unused programs, now and then; deleting one may take long."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            await self.sweep()

    async def sweep(self) -> None:
        """Delete folders of programs that nothing here has used for a while."""
        for digest in self._uses.expired(folders_in(self._root), (), monotonic_ms()):
            if not self._workbench.forget_program(digest):
                self._uses.use(digest, monotonic_ms())
                continue
            with contextlib.suppress(OSError):  # The next sweep tries again.
                self._gone.append(take_away(self._root, digest))
        gone_now, self._gone = self._gone, []
        if gone_now:
            await asyncio.get_running_loop().run_in_executor(None, delete_folders, gone_now)

    def directory(self, digest: str) -> Path:
        """Return the folder of a program that was prepared."""
        return self._root / digest

    async def prepare(self, digest: str, command: str) -> None:
        """Fetch and unpack an archive, unless it is there, and run its setup once.

        Args:
            digest: Of the archive; "" for attached nodes, which bring their program along.
            command: The manifest's "node", as views carry it.

        Raises:
            Refused: The cluster doesn't have it.
            NodeFailed: The setup failed; with its stderr.
        """
        if not digest:
            return
        self._uses.use(digest, monotonic_ms())
        if not self.directory(digest).is_dir():
            response = await self._leader.ask(
                "GET", f"/v1/archives/{digest}", _read_archive, digest=digest
            )
            archive = response.checked().body
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, lambda: unpack(archive, digest, self._root))
        start = decode_json(command.encode())
        if setup := start.get("setup"):
            await set_up(
                self.directory(digest),
                setup,
                start.get("environment", {}),
                timeout_ms=self._setup_timeout_ms,
                failure=NodeFailed,
            )


def _read_archive(response: HttpResponse) -> HttpResponse:
    return response if response.status == _NOT_FOUND else response.checked()
