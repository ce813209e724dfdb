"""Steps of a core that are taken for a connection: a bug in one stops the whole role.

If a connection's own code has a bug, only that connection ends (`net/bugs.py`). If a core fails
in the middle of a change, its state can't be explained any more.
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
        """Call the method and return its result; errors about a peer's mistakes come through.

        Raises:
            PeerUnreachable: The method failed by a bug, so this process stops.
        """
        try:
            return method(*arguments)
        except Exception as error:
            if isinstance(error, TaskSprintError) and not isinstance(error, LocalProtocolError):
                raise
            self._fail(error)
            raise PeerUnreachable("this process stops: it met a bug in its core") from error
