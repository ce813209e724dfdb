"""The abilities of a release: the versions of the rules that it applies, and how it names them.

Members of two releases form one cluster while it is upgraded. Each says what it can do, and is
asked for nothing more. So the log is raised to newer rules only once every member has them
(docs/architecture.md, "Rules with versions").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tasksprint import __version__
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError, UnknownRules
from tasksprint.settings import RULES_BY_VERSION, Rules

__all__ = [
    "SILENT",
    "THIS_RELEASE",
    "Release",
    "Speaks",
    "common_rules",
    "decode_speaks",
    "encode_speaks",
    "read_speaks",
]

_Range = tuple[int, int]  # the oldest version and the newest
_NAME_LENGTH_MAX = 40


@dataclass(frozen=True, slots=True)
class Speaks:
    """A member's word on its release; ranges are (oldest version, newest)."""

    release: str
    rules: _Range
    # A frame names the oldest version whose readers understand it. Newer parts of it stand
    # where those readers don't look.
    frames: _Range
    commands: _Range  # of the log, by the rules that brought them

    def has_rules(self, version: int) -> bool:
        """Whether it can go on by a version of the rules."""
        return self.rules[0] <= version <= self.rules[1]

    @property
    def in_words(self) -> str:
        """What follows "replica 3" in a sentence about its rules."""
        first, last = self.rules
        return f"runs release {self.release}, which has the rules {first} to {last}"


# A member that says nothing is of a release that doesn't speak of itself.
SILENT = Speaks("0.2.0 or older", (1, 1), (2, 2), (1, 1))


def common_rules(all_speak: Iterable[Speaks]) -> int | None:
    """Return the newest version of the rules that each of them has; None: there is none."""
    ranges = [speaks.rules for speaks in all_speak]
    newest = min([last for _, last in ranges], default=0)
    return newest if ranges and newest >= max([first for first, _ in ranges]) else None


def encode_speaks(speaks: Speaks) -> str:
    """Return it as JSON text; readers pass over members of the object that they don't know."""
    return encode_json(asdict(speaks)).decode()


def decode_speaks(text: str | None) -> Speaks:
    """Return the word of a member from its text; `SILENT` for None.

    Raises:
        RemoteProtocolError: The text says something else.
    """
    if text is None:
        return SILENT
    if type(text) is not str:
        raise RemoteProtocolError("what is no text doesn't say what a release can")
    return read_speaks(decode_json(text.encode()))


def read_speaks(told: Any) -> Speaks:
    """Do as `decode_speaks`, but take JSON that was read already."""
    if told is None:
        return SILENT
    try:
        release = told["release"]
        if type(release) is not str or not release.isprintable():
            raise ValueError("a release's name is a line of text")
        return Speaks(
            release[:_NAME_LENGTH_MAX],
            _range(told["rules"]),
            _range(told["frames"]),
            _range(told["commands"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError("what it says doesn't say what a release can") from error


def _range(told: Any) -> _Range:
    first, last = told  # (Never shown: it may be nested so deeply that this can't be.)
    if type(first) is not int or type(last) is not int or not 0 < first <= last:
        raise ValueError("a range has its first and its last version")
    return first, last


@dataclass(frozen=True, slots=True)
class Release:
    """The name and the rules of one release; tests and the simulator make others."""

    name: str
    rules: Mapping[int, Rules]  # by version; Invariant: versions without a gap, rising

    @property
    def speaks(self) -> Speaks:
        """The word of its members on it."""
        known = min(self.rules), max(self.rules)
        return Speaks(self.name, known, _FRAMES, known)

    def rules_of_beginning(self, version: int) -> Rules:
        """Return the rules by which a log begins.

        If this release lacks them, it can't apply that log. A copy of a later state may still
        take the log's place, so nothing is raised.
        """
        return self.rules.get(version) or Rules(version)

    def find_rules(self, version: int, what: str) -> Rules:
        """Return a version of the rules.

        Args:
            what: The thing that is at this version; it begins the error's sentence.

        Raises:
            UnknownRules: This release doesn't have it.
        """
        found = self.rules.get(version)
        if found is None:
            raise UnknownRules(what, version, [*self.rules])
        return found


_FRAMES = (2, 3)
THIS_RELEASE = Release(__version__, RULES_BY_VERSION)
