"""Which process speaks for a replica: the first one, for as long as it lives.

If somebody copies a data directory and starts it beside its original, two processes have one
identity, and each would vote. Marks (marks.py) show that only once both have written, and
then both may have voted. This module keeps the second out before it is heard at all:

1. Replica 2 runs, and its connection to replica 3 lives. A copy of its directory is started.
2. The copy asks replica 3 to listen to it. It names another life than the one that is heard.
   Replica 3 refuses, and counts nothing of the copy's words.

A process that ends closes its connections, so the next one in its place is heard at once. If
it couldn't close them (its machine lost power), its connection is found dead in seconds.

One member may have heard only the one life, and another member only the other. Then marks
show it once the members compare them, and both lives count as lost.
"""

from __future__ import annotations

from tasksprint.ids import ReplicaId
from tasksprint.release import Speaks
from tasksprint.settings import Settings

__all__ = ["Lives"]

# Releases that read these frames read an entry in which a command stands alone (batch.py).
_FRAMES_WITH_ALONE = 3


class Lives:
    """The life of each replica that was heard last, and when it was heard.

    Args:
        own: This replica's own life.
    """

    def __init__(self, settings: Settings, *, own: int) -> None:
        self.own = own
        # What the release can of the process that is heard as each replica; the shell sets it.
        self.speaks: dict[ReplicaId, Speaks] = {}
        # A life lives if it was heard within this span, unless its connection broke.
        self._span_ms = settings.election_timeout_max_ms
        self._life: dict[ReplicaId, int] = {}
        self._heard_ms: dict[ReplicaId, int] = {}

    def greet(
        self, source: ReplicaId, life: int, now_ms: int, *, connected: int | None
    ) -> str | None:
        """Decide whether a process may speak for this replica, in this life.

        Args:
            connected: The life that the replica is connected in now; None: it isn't.

        Returns:
            The reason to refuse it; None: from now on this life counts, and no other.
        """
        if connected is not None and connected != life:
            return "is connected"
        if self.is_twin(source, life, now_ms):
            return "was heard a moment ago"
        self.hear(source, life, now_ms)
        return None

    def reads_alone(self, source: ReplicaId) -> bool:
        """Whether who is heard as this replica can go on behind a command that stands alone."""
        speaks = self.speaks.get(source)
        return speaks is None or speaks.frames[1] >= _FRAMES_WITH_ALONE

    def is_twin(self, source: ReplicaId, life: int, now_ms: int) -> bool:
        """Whether another life of this replica lives."""
        return (
            self._life.get(source, life) != life
            and now_ms - self._heard_ms[source] < self._span_ms
        )

    def hear(self, source: ReplicaId, life: int, now_ms: int) -> None:
        """Note that a replica was heard in this life."""
        self._life[source] = life
        self._heard_ms[source] = now_ms

    def end(self, source: ReplicaId) -> None:
        """Note that a connection with a replica broke: its process may have ended."""
        self._life.pop(source, None)

    def age_ms(self, source: ReplicaId, now_ms: int) -> int | None:
        """Return the time since a replica was heard; None: never."""
        heard_ms = self._heard_ms.get(source)
        return None if heard_ms is None else now_ms - heard_ms
