"""What is handed to a replica's store, and what it gives back.

Plain data that both twins share. What comes from the consensus core is taken by the
names of its attributes, so this module knows the core's words and not its classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tasksprint.coordination.rows import Row

__all__ = [
    "AppliedPoint",
    "BallotLike",
    "BallotPair",
    "Commit",
    "LogEntryLike",
    "LogRow",
    "PersistLike",
    "Recovery",
]


class BallotLike(Protocol):
    """A ballot of the consensus core."""

    @property
    def round(self) -> int: ...

    @property
    def replica(self) -> int: ...


class LogEntryLike(Protocol):
    """An accepted value of the consensus core."""

    @property
    def slot(self) -> int: ...

    @property
    def ballot(self) -> BallotLike: ...

    @property
    def value(self) -> bytes: ...


class PersistLike(Protocol):
    """What the consensus core wants durable before it speaks."""

    @property
    def promised(self) -> BallotLike | None: ...

    @property
    def accepted(self) -> tuple[LogEntryLike, ...]: ...

    @property
    def chosen_end(self) -> int | None: ...

    @property
    def founding(self) -> bytes | None: ...


class BallotPair(NamedTuple):
    """A ballot as the store gives it back; compares as ballots do."""

    round: int
    replica: int


@dataclass(frozen=True, slots=True)
class LogRow:
    """One accepted value as the store gives it back."""

    slot: int
    ballot: BallotPair
    value: bytes


@dataclass(frozen=True, slots=True)
class AppliedPoint:
    """How far the mirror goes: the last applied slot and the state's digest there."""

    slot: int  # 0: nothing was applied
    digest: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What becomes durable together, or not at all.

    Several commits may share a transaction; the effect is that of one after the other.
    """

    persists: tuple[PersistLike, ...] = ()  # in the order in which the core gave them
    rows: tuple[Row, ...] = ()  # changes of the mirror; of equal keys the last one holds
    applied: AppliedPoint | None = None  # Invariant: `rows` lead exactly up to here.
    truncate_below: int | None = None  # entries below this slot may be forgotten
    cluster: str | None = None  # the cluster's name, given with the founding entry
    blobs: tuple[tuple[str, bytes], ...] = ()  # (SHA-256 in hex, content)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a store remembers."""

    incarnation: str  # random, made with the directory
    cluster: str | None
    founding: bytes | None
    promised: BallotPair | None
    accepted: tuple[LogRow, ...]  # in the order of slots
    log_start: int  # the first slot that was not truncated
    chosen_end: int  # the first slot not known chosen; Invariant: applied.slot < chosen_end
    applied: AppliedPoint
    rows: Iterator[Row]  # the mirror, table by table; use it up before the next commit
