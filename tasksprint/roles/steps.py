"""Steps of a core that are taken for a connection: a bug in one stops the whole role.

A bug in what a connection does with its bytes ends that connection (`net/bugs.py`). Once it
is a core that failed in the middle of a change, its state can't be explained any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tasksprint.errors import LocalProtocolError, PeerUnreachable, TaskSprintError

__all__ = ["Step"]

ResultT = TypeVar("ResultT")


class Step:
    """Calls a method of a core.

    Args:
        fail: Stops the role.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail

    def __call__(self, method: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Return what the method returns; errors that say what a peer did wrong come through.

        Raises:
            PeerUnreachable: It failed by a bug, so this process stops.
        """
        try:
            return method(*arguments)
        except Exception as error:
            if isinstance(error, TaskSprintError) and not isinstance(error, LocalProtocolError):
                raise
            self._fail(error)
            raise PeerUnreachable("this process stops: it met a bug in its core") from error
