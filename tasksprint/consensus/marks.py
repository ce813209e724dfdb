"""Durable numbers: by which the others notice that a replica's disk went back in time.

A disk that is put back from an older copy, or that lost what it had reported as written, has
forgotten promises and acceptances that others rely on, and looks as good as any. So each
write has a number, one higher than the last, and every message carries what is behind it:
its `Mark`. A mark names the life of the process, drawn at random at its start, the number that
its disk had then, and the number of the last write that is durable now.

Of two lives of one replica, one begins where the other ended, or later. If neither does,
its disk went back in between, and it counts as lost:

1. Replica 2, in its life A, began at 5 and said something that rested on write 45.
2. It comes back in life B with what it had after write 17. B's 17 is less than A's 45, and A's
   5 is less than what B has come to: both lives wrote 18.

A late message of A, said when its number was 12, proves nothing: it is less than B's 17.

Nobody can vouch for a number that nobody heard. So that not only the leader hears, it tells
the others what it knows (`Marks`), and everybody writes it down with its next write; and
whom a replica connects with hears what is known of itself.

A replica that hears of its older disk writes that down before it stops. Else it could return
with what it wrote after 17 (in B, that is, until it was told): a life that begins at 45 looks
like one that goes on with A.

Knows numbers, and nothing of what is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from tasksprint.arrays import Through
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation

__all__ = ["NO_MARK", "DurableNumbers", "KnownMark", "Mark"]

# In place of a life: a disk that went back in time; its mark's start is what was seen of it.
_LOST_LIFE = -1


class Mark(NamedTuple):
    """What stands behind a message."""

    life: int  # of the process; random
    start: int  # the durable number of its disk when it began
    number: int  # of the last write that is durable


NO_MARK = Mark(0, 0, 0)


# A replica's incarnation, and its mark as it was heard last: what travels, and is stored.
# A life may be -1.
KnownMark = tuple[Incarnation, Annotated[int, Through(int)], int, int]


class DurableNumbers:
    """This replica's own numbers, and what it knows of the others'.

    Args:
        life: Drawn at random for this start of the process.
        number: As the disk remembers.
        known: What `encode` gave before; None: nothing.
    """

    def __init__(
        self, *, incarnation: Incarnation, life: int, number: int, known: bytes | None
    ) -> None:
        self._incarnation = incarnation
        self._last = Mark(life, number, number)  # handed to the disk
        self.now = self._last  # for what is said at once: durable
        self._known: dict[Incarnation, Mark] = {} if known is None else _decode(known)
        self._is_written = True
        self._is_told = not self._known

    # --- this replica's own ---

    @property
    def last(self) -> Mark:
        """For what is said once all that was handed to the disk is durable."""
        return self._last

    def advance(self) -> int:
        """Return the number of the next write."""
        life, start, number = self._last
        self._last = Mark(life, start, number + 1)
        return number + 1

    def persisted(self, number: int) -> None:
        """Learn that the write of this number is durable, and all before it."""
        life, start, _ = self._last
        self.now = Mark(life, start, number)

    # --- the others' ---

    def hear(self, source: Incarnation, mark: Mark) -> bool:
        """Take the mark of a message; False: it isn't to be listened to."""
        known = self._known.get(source)
        if known is not None and known.life == mark.life:
            if mark.number > known.number:
                self._note(source, mark)
            return True
        self._meet(source, mark)
        return self._known[source].life == mark.life

    def _meet(self, source: Incarnation, mark: Mark) -> None:
        """Take the mark of a life that needn't be the one that is known."""
        known = self._known.get(source)
        if known is None:
            self._note(source, mark)
        elif known.life == _LOST_LIFE:
            pass
        elif known.life == mark.life:
            if mark.number > known.number:
                self._note(source, mark)
        elif mark.start >= known.number:
            self._note(source, mark)
        elif mark.number > known.start:
            # Neither began where the other ended.
            self._note(source, Mark(_LOST_LIFE, max(known.number, mark.number), 0))

    def take(self, marks: Iterable[KnownMark]) -> int | None:
        """Take what the leader knows.

        Returns:
            The number that it has heard of this very replica, in another life and beyond
            what the disk had at this start; None: nothing of the sort.
        """
        for source, life, start, number in marks:
            if source == self._incarnation:
                seen = start if life == _LOST_LIFE else number
                if life != self._last.life and seen > self._last.start:
                    return seen
            elif life != _LOST_LIFE:
                self._meet(source, Mark(life, start, number))
            elif self._known.get(source, NO_MARK).life != _LOST_LIFE:
                self._note(source, Mark(life, start, number))
        return None

    def lose(self, seen: int) -> None:
        """Remember that this very replica's disk is older than what was heard of it."""
        self._note(self._incarnation, Mark(_LOST_LIFE, seen, 0))

    @property
    def is_lost(self) -> bool:
        """Whether this replica's disk remembers that it is an older one."""
        return self._incarnation in self._known

    def seen(self, source: Incarnation) -> int:
        """Return the highest number that was heard of a replica, in whatever life."""
        known = self._known.get(source, NO_MARK)
        return known.start if known.life == _LOST_LIFE else known.number

    def of(self, source: Incarnation | None) -> KnownMark | None:
        """Return what is known of a replica; None: nothing."""
        known = None if source is None else self._known.get(source)
        return None if source is None or known is None else (source, *known)

    def _note(self, source: Incarnation, mark: Mark) -> None:
        self._known[source] = mark
        self._is_written = self._is_told = False

    def keep(self, sources: Iterable[Incarnation]) -> None:
        """Forget everybody else: they aren't members any more. Tell the rest again."""
        wanted = {self._incarnation, *sources}
        for source in [source for source in self._known if source not in wanted]:
            del self._known[source]
        self._is_told = not self._known

    def take_untold(self) -> tuple[KnownMark, ...]:
        """Return what is known, if there is news in it since the last call; else ()."""
        if self._is_told:
            return ()
        self._is_told = True
        return self._all()

    def take_unwritten(self) -> bytes | None:
        """Return what is known as it is to be written, if there is news; else None."""
        if self._is_written:
            return None
        self._is_written = True
        return encode_json(self._all())

    def _all(self) -> tuple[KnownMark, ...]:
        return tuple([(source, *mark) for source, mark in self._known.items()])


def _decode(data: bytes) -> dict[Incarnation, Mark]:
    try:
        return {
            Incarnation(str(source)): Mark(int(life), int(start), int(number))
            for source, life, start, number in decode_json(data)
        }
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not the marks of replicas: {data[:200]!r}") from error
