"""What a release can do: which versions of the rules it applies, and what it says of itself.

Members of two releases form one cluster while it is upgraded. Each says what it can, and
nothing is asked of it beyond that: so the log is raised to newer rules only once every
member has them (docs/architecture.md, "Rules with versions").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasksprint import __version__
from tasksprint.errors import UnknownRules
from tasksprint.settings import RULES_BY_VERSION, Rules

__all__ = ["THIS_RELEASE", "Release"]


@dataclass(frozen=True, slots=True)
class Release:
    """What one release can apply; tests and the simulator make others."""

    name: str
    rules: Mapping[int, Rules]  # by version; Invariant: versions without a gap, rising

    def find_rules(self, version: int, what: str) -> Rules:
        """Return a version of the rules.

        Args:
            what: Is at this version, for the sentence.

        Raises:
            UnknownRules: This release doesn't have it.
        """
        found = self.rules.get(version)
        if found is None:
            raise UnknownRules(what, version, [*self.rules])
        return found


THIS_RELEASE = Release(__version__, RULES_BY_VERSION)
