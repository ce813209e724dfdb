"""The setup of one program on one machine: run once in its folder, before anything of it runs.

Clients run it before a job's first node. Coordinators run it only if their scheduler needs it:
the scheduler, or the interpreter that the manifest names, isn't in the archive. (So a setup
that compiles the node needs no compiler where only schedulers run.)

A file beside the folder says how far the setup is. It is empty while the setup runs: a setup
that was cut off is run again. Afterwards it holds the command that was run.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasksprint.errors import NodeFailed, SchedulerFailed
from tasksprint.process.command_line import (
    UMASK,
    child_environment,
    explain_start_error,
    hash_seed_of,
    is_of_the_job,
)
from tasksprint.process.open_files import with_first_limit
from tasksprint.process.program import die_with_parent
from tasksprint.process.run_to_end import run_to_end

__all__ = ["scheduler_needs_setup", "set_up"]

_TAIL_BYTES = 4_000


def scheduler_needs_setup(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether a job's scheduler can't run in its unpacked folder as it is."""
    if not manifest.get("setup"):
        return False
    if _marker(directory).is_file():
        return True  # It has been begun, and perhaps done.
    interpreter = manifest.get("interpreter")
    names = [manifest["scheduler"][0]]
    if interpreter is not None and is_of_the_job(interpreter):
        names.append(interpreter)
    return not all((directory / name).exists() for name in names)


async def set_up(
    directory: Path,
    setup: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout_ms: int,
    failure: type[NodeFailed | SchedulerFailed],
) -> None:
    """Run a program's setup in its folder, unless it was run already.

    Args:
        directory: Named after the archive's digest.
        setup: A program and its arguments.
        environment: The variables that the manifest sets.
        failure: The class of the exception.

    Raises:
        failure: It can't be run, takes too long, or fails; with its output.
    """
    done = _marker(directory)
    text = shlex.join(setup)
    if done.is_file() and done.read_text(encoding="utf-8") == text:
        return
    done.write_text("", encoding="utf-8")
    try:
        code, output = await run_to_end(
            setup,
            timeout_s=timeout_ms / 1000,
            tail_bytes_max=_TAIL_BYTES,
            cwd=directory,
            env=child_environment(
                hash_seed=hash_seed_of(directory.name),
                directory=directory,
                extra=environment,
            ),
            preexec_fn=with_first_limit(die_with_parent()),
            umask=UMASK,
        )
    except asyncio.TimeoutError:  # (It is an OSError in newer Pythons.)
        raise failure(
            f"setup {text!r} ran longer than {timeout_ms} ms (setup_timeout_ms)"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        raise explain_start_error(
            error if isinstance(error, OSError) else OSError(0, str(error)),
            setup[0],
            name=None,
            cwd=directory,
            what="setup command",
            failure=failure,
        ) from error
    if code != 0:
        tail = output.decode(errors="replace").strip()
        raise failure(f"setup {text!r} ended with exit code {code}: {tail}")
    done.write_text(text, encoding="utf-8")


def _marker(directory: Path) -> Path:
    return directory.parent / f"{directory.name}.setup"
