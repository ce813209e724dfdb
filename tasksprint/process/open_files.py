"""The limit of open files: it is raised as far as it goes, and a process's work is fitted to it.

Shells give each process a soft limit, which may be lowered and raised again, below a hard one,
which may not be raised. Our children get back the soft limit that we got. So a program meets
the limit it was written for, even one for 1,024 descriptors (`select`), or one that closes all
possible descriptors.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace

from tasksprint.errors import SettingsError
from tasksprint.settings import Settings

__all__ = [
    "fit_client",
    "fit_coordinator",
    "raise_limit",
    "reachable_limit",
    "with_first_limit",
]

# The standard streams, the loop, listeners, a database, its connections in other threads,
# folders that are gone through, and a child that is being started.
_BASE = 48
# Two for its socket, one for its stderr, one for its process.
_PER_PROGRAM = 4
# Connections that ask a client, or that a coordinator needs for peers and people, at least.
_CONNECTIONS_MIN = 32
_FETCHES_MIN = 4
# Of a coordinator's descriptors, for schedulers: nobody knows how many jobs will run.
_SCHEDULERS_SHARE = 4
_STRANGERS_SHARE = 4
# Beyond this it is no limit for us; systems without one say 2**63.
_ENOUGH = 1 << 20
# macOS takes no more than this for a process, whatever it says (OPEN_MAX).
_OPEN_MAX = 10_240

_first: list[tuple[int, int]] = []  # The limits before they were raised.


def reachable_limit() -> int:
    """Return how many descriptors this process may have once `raise_limit` was called."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)


def raise_limit() -> int:
    """Raise the soft limit to the hard one, if possible, and return the new one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, _OPEN_MAX):
        if soft == hard or (soft >= wanted and wanted != resource.RLIM_INFINITY):
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue  # Less may do; if not, the rest of the setup fits under the present limit.
        _first.append((soft, hard))
        break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENOUGH if soft == resource.RLIM_INFINITY else min(soft, _ENOUGH)


def with_first_limit(then: Callable[[], None] | None) -> Callable[[], None] | None:
    """Return a `preexec_fn` that gives a child the limits of our own start.

    Args:
        then: Is called after that.
    """
    if not _first:
        return then
    limits, which, set_limits = _first[0], resource.RLIMIT_NOFILE, resource.setrlimit

    def before_exec() -> None:
        set_limits(which, limits)
        if then is not None:
            then()

    return before_exec


def fit_client(settings: Settings, limit: int, *, nodes: int) -> tuple[Settings, str | None]:
    """Return settings under which a client of so many nodes has descriptors enough.

    Returns:
        The settings, and a description of all lowered ones, if any.

    Raises:
        SettingsError: The limit is too small for the nodes.
    """
    least = _BASE + 2 * _FETCHES_MIN + _CONNECTIONS_MIN
    need = least + _PER_PROGRAM * nodes
    if limit < need:
        fewer = (limit - least) // _PER_PROGRAM
        hint = f"raise it (ulimit -n {need})"
        if fewer > 0:
            hint += f", or start at most {fewer} (--nodes {fewer})"
        what = "1 node needs" if nodes == 1 else f"{nodes} nodes need"
        raise SettingsError(f"the limit of open files is {limit}, {what} {need}", hint=hint)
    left = limit - _BASE - _PER_PROGRAM * nodes
    # A fetch has a connection; a peer that was asked keeps another for the next one.
    fetches = min(settings.fetches_max, max(_FETCHES_MIN, left // 10))
    fitted = replace(settings, fetches_max=fetches)
    return _with_connections(fitted, left - 2 * fetches, limit, settings)


def fit_coordinator(settings: Settings, limit: int) -> tuple[Settings, str | None]:
    """Return settings under which a coordinator has descriptors enough. As `fit_client`."""
    need = _BASE + 2 * _CONNECTIONS_MIN
    if limit < need:
        raise SettingsError(
            f"the limit of open files is {limit}, a coordinator needs {need}",
            hint=f"raise it (ulimit -n {need})",
        )
    left = limit - _BASE
    return _with_connections(settings, left - left // _SCHEDULERS_SHARE, limit, settings)


def _with_connections(
    fitted: Settings, most: int, limit: int, asked: Settings
) -> tuple[Settings, str | None]:
    if most >= asked.connections_max:
        return fitted, None
    strangers = min(asked.unproven_connections_max, most // _STRANGERS_SHARE)
    fitted = replace(fitted, connections_max=most, unproven_connections_max=strangers)
    return fitted, (
        f"the limit of open files is {limit}: takes at most {most} connections, not "
        f"{asked.connections_max} (connections_max); raise it with ulimit -n"
    )
