"""The entry of the installed command `tasksprint`; the same as `python -m tasksprint`."""

from __future__ import annotations

import sys

from tasksprint.cli.main import main

__all__ = ["start"]


def start() -> int:
    """Run the command line that this process was started with."""
    return main(sys.argv[1:])
