"""Jobs' programs on one client: fetched from the cluster, unpacked, set up.

A folder is named after the digest of its archive and is used as it is once it is
there; so a client that starts again fetches nothing twice.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasksprint.errors import NodeFailed
from tasksprint.installation import sdk_directory
from tasksprint.process.command_line import child_environment
from tasksprint.process.job_directory import unpack

if TYPE_CHECKING:
    from tasksprint.roles.client import Client

__all__ = ["ClientPrograms"]

_SETUP_TAIL_BYTES = 4_000


class ClientPrograms:
    """The programs of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._root = client.options.data_dir / "programs"
        self._setups: dict[tuple[str, tuple[str, ...]], asyncio.Task[None]] = {}

    def directory(self, digest: str) -> Path:
        """Return the folder of a program that was prepared."""
        return self._root / digest

    async def prepare(self, digest: str) -> None:
        """Fetch and unpack an archive, unless it is there.

        Raises:
            Refused: The cluster doesn't have it.
        """
        if not digest or self.directory(digest).is_dir():
            return  # Attached nodes bring their program along: the digest is empty.
        response = await self._client.leader.request("GET", f"/v1/archives/{digest}")
        archive = response.checked().body
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: unpack(archive, digest, self._root))

    async def set_up(self, digest: str, setup: Sequence[str]) -> None:
        """Run a program's setup command once, before its first node.

        Raises:
            NodeFailed: It failed; with what it wrote to stderr.
        """
        if not setup:
            return
        name = (digest, tuple(setup))
        task = self._setups.get(name)
        if task is None:
            task = asyncio.ensure_future(self._run_setup(digest, tuple(setup)))
            self._setups[name] = task
        try:
            await asyncio.shield(task)
        except NodeFailed:
            self._setups.pop(name, None)  # The next attempt tries it again.
            raise

    async def _run_setup(self, digest: str, setup: tuple[str, ...]) -> None:
        directory = self.directory(digest)
        done = self._root / f"{digest}.setup"
        text = shlex.join(setup)
        if done.is_file() and done.read_text(encoding="utf-8") == text:
            return
        process = await asyncio.create_subprocess_exec(
            *setup,
            cwd=directory,
            env=child_environment(sdk_directory=Path(sdk_directory())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = await asyncio.wait_for(
                process.communicate(), self._client.settings.setup_timeout_ms / 1000
            )
        except asyncio.TimeoutError:
            process.kill()
            raise NodeFailed(
                f"setup {text!r} ran longer than {self._client.settings.setup_timeout_ms} ms "
                "(setup_timeout_ms)"
            ) from None
        if process.returncode != 0:
            tail = output[-_SETUP_TAIL_BYTES:].decode(errors="replace").strip()
            raise NodeFailed(f"setup {text!r} ended with exit code {process.returncode}: {tail}")
        done.write_text(text, encoding="utf-8")
