"""When a leader raises the rules of the log: once every member has newer ones, for a while.

A member says what its release can do when it opens its stream to the leader. Nothing is known
of a member that isn't connected. The leader looks for the newest version that all of them have.
This version is proposed once nothing has changed for a time. So a process may be replaced, and
put back soon, without harm. If somebody asks for the version, it is proposed at once.

This module only decides. The shell knows the members, and proposes.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasksprint.ids import ReplicaId
from tasksprint.release import Speaks, common_rules

__all__ = ["Raising", "Said", "lacking", "version_of_all"]

# The word of each voter and learner on its release; None: it isn't connected.
Said = Mapping[ReplicaId, Speaks | None]


def version_of_all(said: Said) -> int | None:
    """Return the newest version of the rules that every member has; None: there is none."""
    heard = [speaks for speaks in said.values() if speaks is not None]
    return common_rules(heard) if len(heard) == len(said) else None


def lacking(said: Said, version: int) -> dict[ReplicaId, str]:
    """Return the members that can't go on by a version of the rules, each with the reason."""
    found: dict[ReplicaId, str] = {}
    for replica, speaks in sorted(said.items()):
        if speaks is None:
            found[replica] = f"replica {replica} isn't connected with the leader"
        elif not speaks.has_rules(version):
            found[replica] = f"replica {replica} {speaks.in_words}"
    return found


class Raising:
    """The words of the members as a leader saw them last, and since when they are so.

    Args:
        settle_ms: They must be the same for so long.
    """

    def __init__(self, settle_ms: int) -> None:
        self._settle_ms = settle_ms
        self._said: Said = {}
        self._since_ms = 0

    def look(self, now_ms: int, at: int, said: Said) -> int | None:
        """Return the version to which the rules are to be raised now; None: none, or not yet.

        Args:
            at: The version that the log is at.
        """
        if said != self._said:
            self._said, self._since_ms = dict(said), now_ms
        version = version_of_all(said)
        if version is None or version <= at or now_ms - self._since_ms < self._settle_ms:
            return None
        return version
