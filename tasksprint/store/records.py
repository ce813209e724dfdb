"""Plain data that a replica's store takes and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tasksprint.consensus.effects import Persist, Recovered
from tasksprint.coordination.rows import Row

__all__ = ["AppliedPoint", "Commit", "Recovery"]


class AppliedPoint(NamedTuple):
    """How far the mirror goes: the last applied slot and the state's digest there."""

    slot: int  # 0: nothing was applied
    digest: str


class Commit(NamedTuple):
    """Changes that become durable together, or not at all.

    Several commits may share a transaction; the effect is that of one after the other.
    """

    persists: tuple[Persist, ...] = ()  # in the order in which the core gave them
    rows: tuple[Row, ...] = ()  # changes of the mirror; of equal keys the last one holds
    applied: AppliedPoint | None = None  # Invariant: `rows` lead exactly up to here.
    truncate_below: int | None = None  # entries below this slot may be forgotten
    cluster: str | None = None  # the cluster's name, given with the founding entry
    blobs: tuple[tuple[str, bytes], ...] = ()  # (SHA-256 in hex, content)


@dataclass(frozen=True, slots=True)
class Recovery:
    """The memory of a store, for a start."""

    # For the consensus core. Applied entries count as chosen, whatever their source;
    # `applied_end` is the slot after `applied.slot`.
    consensus: Recovered
    cluster: str | None
    applied: AppliedPoint
    rows: Iterator[Row]  # the mirror, table by table; use it up before the next commit
