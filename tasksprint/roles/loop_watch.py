"""Measures how long one turn holds the loop, and finds the code that holds it.

While a turn runs nothing else does: no heartbeat, no poll, no answer. So the longest hold is
measured. A hold of more than 100 ms is told at DEBUG, with its place in the code. For this a
thread looks at the loop's stack a few times a second, but only if lines of DEBUG are logged.

A hold lasts from the return of the loop's selector until it is asked again. This takes two
readings of the clock in a turn. A loop without a selector (the simulator's) isn't watched.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["LoopWatch", "longest_hold_s", "watch_loop"]

_log = logging.getLogger("tasksprint.loop")

_TOLD_S = 0.1
# The thread looks so often; a place is kept if the turn has lasted for half of the limit.
_LOOK_S = 0.05
_FRAMES_MAX = 6

_watches: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWatch]
_watches = weakref.WeakKeyDictionary()


def watch_loop() -> LoopWatch:
    """Watch the running loop from now on, if it isn't watched yet."""
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = LoopWatch(loop)
    return watch


def longest_hold_s() -> float:
    """Return the longest hold of the running loop, in seconds; 0: nobody measures."""
    try:
        watch = _watches.get(asyncio.get_running_loop())
    except RuntimeError:
        return 0.0
    return 0.0 if watch is None else watch.longest_s


class LoopWatch:
    """Watches one loop, of this thread, until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.longest_s = 0.0  # so far
        self._loop = weakref.ref(loop)
        self._since: float | None = None  # when the turn under way began; None: it waits
        self._place = ""  # where it was seen last
        self._thread_id = threading.get_ident()
        selector: Any = getattr(loop, "_selector", None)
        if selector is None:
            return
        selector.select = self._watched(selector.select)
        if _log.isEnabledFor(logging.DEBUG):
            threading.Thread(target=self._look, name="loop watch", daemon=True).start()

    def _watched(self, select: Callable[..., Any]) -> Callable[..., Any]:
        """Return a selector's method that measures the time between its calls."""
        monotonic = time.monotonic  # (The loop turns several times for each task.)

        def watched_select(timeout: float | None = None) -> Any:
            since = self._since
            if since is not None:
                held_s = monotonic() - since
                self._since = None
                if held_s > self.longest_s:
                    self.longest_s = held_s
                if held_s > _TOLD_S:
                    self._tell(held_s)
            found = select(timeout)
            self._since = monotonic()
            return found

        return watched_select

    def _tell(self, held_s: float) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            place, self._place = self._place, ""
            _log.debug("the loop was held for %d ms by %s", held_s * 1000, place or "?")

    def _look(self) -> None:
        while (loop := self._loop()) is not None and not loop.is_closed():
            del loop
            time.sleep(_LOOK_S)
            since = self._since
            if since is None or time.monotonic() - since < _TOLD_S / 2:
                continue
            place = _describe(sys._current_frames().get(self._thread_id))
            if self._since == since:  # Else it has gone on meanwhile.
                self._place = place


def _describe(frame: FrameType | None) -> str:
    """Return the innermost frames, down to the turn of the loop."""
    names: list[str] = []
    while frame is not None and len(names) < _FRAMES_MAX:
        code = frame.f_code
        module = frame.f_globals.get("__name__", "?")
        if module.startswith("asyncio."):
            break
        names.append(f"{module}.{code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(names) or "the loop itself"
