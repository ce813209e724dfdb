"""Jobs' programs on one client: fetched from the cluster, unpacked, set up.

A folder is named after the digest of its archive and is used as it is once it is
there; so a client that starts again fetches nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasksprint.encoding import decode_json
from tasksprint.errors import NodeFailed
from tasksprint.installation import sdk_directory
from tasksprint.process.archive import unpack
from tasksprint.process.command_line import (
    UMASK,
    child_environment,
    explain_start_error,
    hash_seed_of,
)
from tasksprint.process.open_files import with_first_limit
from tasksprint.process.program import DRAIN_S, die_with_parent
from tasksprint.roles.clock import monotonic_ms
from tasksprint.roles.last_use import (
    LastUse,
    delete_folders,
    folders_in,
    leftovers_in,
    take_away,
)

if TYPE_CHECKING:
    from tasksprint.roles.client import Client

__all__ = ["ClientPrograms"]

_SETUP_TAIL_BYTES = 4_000
_READ_BYTES = 64 * 1024


class ClientPrograms:
    """The programs of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._root = client.options.data_dir / "programs"
        self._gone = leftovers_in(self._root)  # what is to be deleted
        self._uses = LastUse(client.settings.program_unused_max_ms)

    async def sweep(self) -> None:
        """Delete folders of programs that nothing here has used for a while."""
        for digest in self._uses.expired(folders_in(self._root), (), monotonic_ms()):
            if not self._client.workbench.forget_program(digest):
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
            NodeFailed: The setup failed; with what it wrote to stderr.
        """
        if not digest:
            return
        self._uses.use(digest, monotonic_ms())
        if not self.directory(digest).is_dir():
            response = await self._client.leader.request("GET", f"/v1/archives/{digest}")
            archive = response.checked().body
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, lambda: unpack(archive, digest, self._root))
        start = decode_json(command.encode())
        if setup := start.get("setup"):
            await self._set_up(digest, setup, start.get("environment", {}))

    async def _set_up(
        self, digest: str, setup: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        directory = self.directory(digest)
        done = self._root / f"{digest}.setup"
        text = shlex.join(setup)
        if done.is_file() and done.read_text(encoding="utf-8") == text:
            return
        try:
            process = await asyncio.create_subprocess_exec(
                *setup,
                cwd=directory,
                env=child_environment(
                    sdk_directory=Path(sdk_directory()),
                    hash_seed=hash_seed_of(digest),
                    directory=directory,
                    extra=environment,
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=with_first_limit(die_with_parent()),
                umask=UMASK,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            raise explain_start_error(
                error if isinstance(error, OSError) else OSError(0, str(error)),
                setup[0],
                name=None,
                cwd=directory,
                what="setup command",
                failure=NodeFailed,
            ) from error
        try:
            output = await asyncio.wait_for(
                _run(process), self._client.settings.setup_timeout_ms / 1000
            )
        except asyncio.TimeoutError:
            raise NodeFailed(
                f"setup {text!r} ran longer than {self._client.settings.setup_timeout_ms} ms "
                "(setup_timeout_ms)"
            ) from None
        finally:
            # Whatever it started, too; in good order this finds nobody.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.communicate(), DRAIN_S)
        if process.returncode != 0:
            tail = output.decode(errors="replace").strip()
            raise NodeFailed(f"setup {text!r} ended with exit code {process.returncode}: {tail}")
        done.write_text(text, encoding="utf-8")


async def _run(process: asyncio.subprocess.Process) -> bytes:
    """Wait for the end of a process and return the tail of what it wrote."""
    assert process.stdout is not None
    tail = b""
    while data := await process.stdout.read(_READ_BYTES):
        tail = (tail + data)[-_SETUP_TAIL_BYTES:]
    await process.wait()
    return tail
