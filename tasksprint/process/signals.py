"""The signals that end a process of ours in good order: SIGTERM, SIGINT and SIGHUP.

SIGHUP comes when the terminal is closed. If it was ignored at the start, it is left alone: that
is the purpose of `nohup`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["ending_signals", "interrupted_by_signals"]


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return which signals end this process."""
    asked = (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return asked
    return (*asked, signal.SIGHUP)


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let each of them raise KeyboardInterrupt inside the block, as SIGINT does."""
    numbers = [number for number in ending_signals() if number != signal.SIGINT]
    previous = [signal.signal(number, _interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
