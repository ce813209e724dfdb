"""`node --exec PROGRAM`: attaches a program to the client on this machine, and becomes it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import NoReturn

from tasksprint import __version__
from tasksprint.errors import NodeFailed, UsageError
from tasksprint.process.attach import attach_and_exec, find_client
from tasksprint.process.command_line import UMASK, child_environment, command_line, hash_seed_of
from tasksprint.process.directories import state_directory

__all__ = ["run_role"]


def run_role(options: argparse.Namespace) -> NoReturn:
    """Attach and never return, unless it fails."""
    program = Path(options.program)
    if not program.exists():
        raise UsageError(f"no node program {options.program!r}")
    try:
        _attach(program, options)
    except NodeFailed as error:
        # No task's failure: the user must name another program.
        raise UsageError(str(error)) from error


def _attach(program: Path, options: argparse.Namespace) -> NoReturn:
    argv = command_line(
        (os.path.abspath(program), *options.arguments),
        directory=Path.cwd(),
        what="node",
        failure=NodeFailed,
    )
    client = find_client(state_directory(), options.client)
    name = options.name or program.stem
    os.umask(UMASK)
    attach_and_exec(
        argv,
        name=name,
        version=__version__,
        socket_file=client.socket,
        env=child_environment(
            hash_seed=hash_seed_of(name),
            directory=Path.cwd(),
            extra={"TASKSPRINT_ATTACHED": name},
        ),
        program=options.program,
        note=(
            f"tasksprint: attached as {name!r} to client {client.pid} of this machine (data in "
            f"{client.data_directory!r}); it serves jobs whose tasksprint.json says "
            f"{json.dumps({'node': f'attached:{name}'})}"
        ),
    )
