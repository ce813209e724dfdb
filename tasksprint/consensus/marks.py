"""Durable numbers: they show the others that a replica's disk went back in time.

A disk may be put back from an older copy, or lose writes that it had reported. It has then
forgotten promises and acceptances that others rely on, and it looks as good as any. So each
write has a number, one higher than the last. And every message carries a `Mark` with three
members:

- the life of the process, drawn at random at its start;
- the number that its disk had at that start;
- the number of the last write that is durable now.

Of two lives of one replica, one begins where the other ended, or later. If neither does,
the disk went back in between, and the replica counts as lost:

1. Replica 2, in its life A, began at 5. It said something that rested on write 45.
2. It comes back in life B, with its disk as it was after write 17. B's start, 17, is less than
   A's 45. And A's start, 5, is less than B's present number: both lives wrote 18.

A late message of A with number 12 proves nothing: 12 is less than B's 17.

Nobody can vouch for a number that nobody heard. So the leader tells the others the marks that
it knows (`Marks`), and each writes them down with its next write. And a replica tells each peer,
when the two connect, what it knows of the peer.

When a replica hears that its disk is an older one, it writes that down, and then stops. Otherwise
it could be started again and be believed. Before it heard it, B may have written on, from 17 up
to 45. A life that begins at 45 looks like one that goes on with A.

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

# In place of a life: the disk went back in time. The mark's start is then the highest number
# that was seen of it.
_LOST_LIFE = -1


class Mark(NamedTuple):
    """The life and the durable numbers behind a message."""

    life: int  # of the process; random
    start: int  # the durable number of its disk when it began
    number: int  # of the last write that is durable


NO_MARK = Mark(0, 0, 0)


# A replica's incarnation, and the last mark that was heard of it, as it is sent and stored.
# A life may be -1.
KnownMark = tuple[Incarnation, Annotated[int, Through(int)], int, int]


class DurableNumbers:
    """This replica's own numbers, and the last known marks of the others.

    Args:
        life: Drawn at random for this start of the process.
        number: As the disk remembers.
        known: Bytes of an earlier `take_unwritten`; None: nothing is known.
    """

    def __init__(
        self, *, incarnation: Incarnation, life: int, number: int, known: bytes | None
    ) -> None:
        self._incarnation = incarnation
        self._last = Mark(life, number, number)  # handed to the disk
        self.now = self._last  # durable: for messages that go out at once
        self._known: dict[Incarnation, Mark] = {} if known is None else _decode(known)
        self._is_written = True
        self._is_told = not self._known

    # --- this replica's own ---

    @property
    def last(self) -> Mark:
        """The mark of messages that wait until all writes handed to the disk are durable."""
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
        """Take the mark of a message; False: the message doesn't count."""
        known = self._known.get(source)
        if known is not None and known.life == mark.life:
            if mark.number > known.number:
                self._note(source, mark)
            return True
        self._meet(source, mark)
        return self._known[source].life == mark.life

    def _meet(self, source: Incarnation, mark: Mark) -> None:
        """Take the mark of a life; it may be another one than the known life."""
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
        """Take the marks that another member knows.

        Returns:
            A number of this very replica, from another life, if it is beyond the number that
            the disk had at this start: then the disk is an older one. Else None.
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
        """Remember that this very replica's disk is an older one: others have seen this number."""
        self._note(self._incarnation, Mark(_LOST_LIFE, seen, 0))

    @property
    def is_lost(self) -> bool:
        """Whether this replica's disk remembers that it is an older one."""
        return self._incarnation in self._known

    def seen(self, source: Incarnation) -> int:
        """Return the highest number that was heard of a replica, in any life."""
        known = self._known.get(source, NO_MARK)
        return known.start if known.life == _LOST_LIFE else known.number

    def of(self, source: Incarnation | None) -> KnownMark | None:
        """Return the known mark of a replica, or None."""
        known = None if source is None else self._known.get(source)
        return None if source is None or known is None else (source, *known)

    def _note(self, source: Incarnation, mark: Mark) -> None:
        self._known[source] = mark
        self._is_written = self._is_told = False

    def keep(self, sources: Iterable[Incarnation]) -> None:
        """Forget all others: they aren't members any more. The rest is to be told again."""
        wanted = {self._incarnation, *sources}
        for source in [source for source in self._known if source not in wanted]:
            del self._known[source]
        self._is_told = not self._known

    def take_untold(self) -> tuple[KnownMark, ...]:
        """Return all known marks if some are new since the last call; else ()."""
        if self._is_told:
            return ()
        self._is_told = True
        return self._all()

    def take_unwritten(self) -> bytes | None:
        """Return all known marks, encoded to be written, if some are new; else None."""
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
