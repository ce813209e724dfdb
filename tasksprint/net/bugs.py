"""Bugs that were met in one connection, or by one callback of the loop.

A peer's bytes, or its way of hanging up, must never end a process. So an unexpected exception
ends its connection or callback and is reported here. The process goes on. That is right where
only the connection's own state may be broken. The step of a core needs more: wrap it, as
`roles/steps.py` does. After a bug in a core nothing can be explained.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tasksprint.net.gate import CountedWarnings

__all__ = ["Bugs"]

log = logging.getLogger(__name__)

# Places of bugs that are remembered; no program has so many.
_PLACES_MAX = 100


class Bugs:
    """Logs each bug once with its traceback, and counts.

    Args:
        on_bug: Is told each one, too (tests).
    """

    def __init__(self, on_bug: Callable[[BaseException], None] | None = None) -> None:
        self.count = 0
        self._on_bug = on_bug
        self._places: set[object] = set()
        self._warnings = CountedWarnings(log)

    def tell(self, what: str, error: BaseException) -> None:
        """Take note of a bug that was met during `what`."""
        self.count += 1
        place = _place_of(error)
        if place in self._places:
            self._warnings.warn(place, f"{what} failed again with a {type(error).__name__}")
        else:
            if len(self._places) < _PLACES_MAX:
                self._places.add(place)
            log.error("%s failed", what, exc_info=error)
        if self._on_bug is not None:
            self._on_bug(error)

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what nobody caught on a loop: for `loop.set_exception_handler`."""
        error = context.get("exception")
        message = str(context.get("message", "a callback"))
        if isinstance(error, BaseException):
            self.tell(message, error)
        else:
            self.count += 1
            self._warnings.warn(message, message)


def _place_of(error: BaseException) -> tuple[str, str, int]:
    """Return where an exception was raised: so that the same bug is known again."""
    traceback = error.__traceback__
    if traceback is None:
        return type(error).__name__, "", 0
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return type(error).__name__, traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
