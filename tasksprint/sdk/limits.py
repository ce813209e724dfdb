"""`@timeout(seconds)`: a method that runs for longer is interrupted by `TimeoutError`.

It rests on the alarm timer of the process, so it works in the main thread only. It interrupts
Python code and system calls, but not a long computation inside a C library. Limits may be
nested. If an outer limit ends while an inner method runs, the inner method doesn't catch it:
the error passes the inner `except TimeoutError` and reaches the outer method.

A method may catch its own `TimeoutError` and return what it has. If it goes on instead, it
gets another one after as long again: a loop that forgives every error still ends.

If somebody used the alarm before, they get it back afterwards.
"""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

__all__ = ["forget_limits", "hold_alarms", "timeout", "without_limit"]

# How soon an alarm that came at a bad moment rings again.
_AGAIN_SECONDS = 0.001


class _Limit:
    """One run of a method with a limit."""

    __slots__ = ("deadline", "is_over", "name", "seconds")

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.deadline = monotonic() + seconds
        self.is_over = False  # the method has ended

    def error(self) -> TimeoutError:
        return TimeoutError(f"{self.name} ran for more than {self.seconds:g} s")


class _OuterLimitReached(BaseException):
    """An outer method's time is over while an inner one with a limit of its own runs."""

    def __init__(self, limit: _Limit) -> None:
        super().__init__(f"{limit.name} ran for more than {limit.seconds:g} s")
        self.limit = limit


# The limits of the methods that run now, the innermost last.
_active: list[_Limit] = []
_is_held = False


def hold_alarms(is_held: bool) -> None:
    """Put off alarms while the SDK must not be interrupted."""
    global _is_held
    _is_held = is_held


def _on_alarm(signum: int, frame: Any) -> None:
    if _is_held:
        import signal

        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        return
    now = monotonic()
    for limit in _active:
        if not limit.is_over and limit.deadline <= now:
            limit.deadline = now + limit.seconds
            _set_alarm()
            if limit is _active[-1]:
                raise limit.error()
            raise _OuterLimitReached(limit)
    _set_alarm()


def _set_alarm() -> None:
    """Ring at the earliest deadline, or never."""
    import signal

    waiting = [limit.deadline for limit in _active if not limit.is_over]
    if waiting:
        left = min(waiting) - monotonic()
        # Not 0, for that means never. And not more than a timer can hold.
        signal.setitimer(signal.ITIMER_REAL, min(max(left, 1e-6), 1e6))
    else:
        signal.setitimer(signal.ITIMER_REAL, 0)


def forget_limits() -> None:
    """Drop limits that an interrupted clean-up left behind; for use between tasks."""
    if _active:
        del _active[:]
        _set_alarm()


def without_limit(function: Any) -> Any:
    """Return the function under `@timeout`, or `function` itself if it has none."""
    # By identity: decorators copy a function's attributes to their wrapper.
    while getattr(function, "_limited", None) is function:
        function = function.__wrapped__  # type: ignore[union-attr]
    return function


def timeout(seconds: float) -> Callable[[Function], Function]:
    """Return a decorator: the method gets a `TimeoutError` once it has run for so long.

    Args:
        seconds: Above 0; fractions count.

    Raises:
        ValueError: It isn't a number above 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ValueError(f"timeout({seconds!r}): expected seconds above 0, as in @timeout(5)")

    def decorate(function: Function) -> Function:
        name = getattr(function, "__name__", "the method")

        def limited(*args: Any, **kwargs: Any) -> Any:
            import signal

            limit = _Limit(name, seconds)
            depth = len(_active)
            began = monotonic()
            try:
                old_handler = signal.signal(signal.SIGALRM, _on_alarm)
            except ValueError:
                raise RuntimeError(
                    f"@timeout({seconds:g}) of {name} works only in the main thread"
                ) from None
            old_delay, old_interval = signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                _active.append(limit)
                _set_alarm()
                return function(*args, **kwargs)
            except _OuterLimitReached as error:
                if error.limit is limit:
                    raise limit.error() from None
                raise
            finally:
                # First of all: an alarm that rings from here on finds nothing to raise.
                limit.is_over = True
                del _active[depth:]
                if _active:
                    _set_alarm()
                else:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(
                        signal.SIGALRM, signal.SIG_DFL if old_handler is None else old_handler
                    )
                    if old_delay:
                        left = max(old_delay - (monotonic() - began), 1e-6)
                        signal.setitimer(signal.ITIMER_REAL, left, old_interval)

        limited.__name__ = name
        limited.__qualname__ = getattr(function, "__qualname__", name)
        limited.__doc__ = function.__doc__
        limited.__module__ = getattr(function, "__module__", __name__)
        limited.__wrapped__ = function  # type: ignore[attr-defined]
        limited._limited = limited  # type: ignore[attr-defined]
        return limited  # type: ignore[return-value]

    return decorate
