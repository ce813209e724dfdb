"""A role's process as a whole: its log, its interpreter, its directory, its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from pathlib import Path

from tasksprint.errors import SettingsError
from tasksprint.process.directories import private_directory, state_directory
from tasksprint.process.orphans import reap_orphans
from tasksprint.process.signals import ending_signals
from tasksprint.process.terminal import PlainFormatter

__all__ = ["begin_process", "data_directory", "wait_for_end"]

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

# The writer's thread wants the interpreter for microseconds after each commit; with
# Python's default of 5 ms it waits for as long while the loop is busy.
_SWITCH_INTERVAL_S = 0.0005
# Python's collector looks for cycles each 700 objects, and now and then through all objects.
# For a state of many small objects without cycles this takes a fifth of the time.
_GARBAGE_THRESHOLDS = (50_000, 20, 100)


async def wait_for_end(stopped: asyncio.Future[None]) -> None:
    """Wait until `stopped` is done, or a signal arrives that ends this process."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in ending_signals():
        loop.add_signal_handler(number, stop)
    await stopped


def begin_process() -> Path:
    """Set what suits a process with one busy loop, a writer's thread and many live objects.

    Returns:
        The user's own directory.
    """
    _configure_log()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    reap_orphans()
    return state_directory()


def _configure_log() -> None:
    """Write the log to stderr, a line for each change of state."""
    level = os.environ.get("TASKSPRINT_LOG", "INFO")
    if level.upper() not in _LOG_LEVELS:
        raise SettingsError(
            f"TASKSPRINT_LOG is {level!r}, expected one of {', '.join(_LOG_LEVELS)}"
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper())


def data_directory(given: str | None, state: Path, name: str) -> Path:
    """Return the directory that is given, or one under the user's own, made if need be.

    That one is named after the machine: homes may be shared.
    """
    default = state / f"{name}@{socket.gethostname()}"
    return private_directory(default if given is None else Path(given))
