"""The voters of each slot, and their quorums: the only place that counts votes.

Knows nothing of the values that are voted on, nor of how a membership comes about
(membership.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from tasksprint.consensus.founding import Founding, Member, decode_founding
from tasksprint.consensus.membership import (
    ALPHA,
    Membership,
    from_fields,
    is_next_step,
    to_fields,
)
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import ReplicaId, Slot
from tasksprint.majority import majority

__all__ = ["Memberships", "Voters"]

_NEVER = Slot(1 << 62)
# So many memberships are kept though they govern no open slot any more. A copy of the state may
# begin before a change of the members, and end after it.
_PAST_KEPT = 4


class Voters:
    """The voters of one membership."""

    def __init__(self, voters: Iterable[Member]) -> None:
        self.ids: tuple[ReplicaId, ...] = tuple(member.replica for member in voters)
        self._id_set = frozenset(self.ids)
        self.quorum_size = majority(len(self.ids))

    def is_quorum(self, voters: AbstractSet[ReplicaId]) -> bool:
        """Whether these hold a majority; a set, so that nobody counts twice.

        Source: Lamport, "Paxos Made Simple", section 2.2: "any two majorities have at
        least one acceptor in common".
        """
        return len(voters & self._id_set) >= self.quorum_size

    def could_be_quorum_without(self, others: AbstractSet[ReplicaId]) -> bool:
        """Whether the members that aren't in `others` hold a majority."""
        return len(self._id_set - others) >= self.quorum_size


class Span(NamedTuple):
    """A membership and the first slot that it governs; it governs until the next one does."""

    first_slot: Slot
    membership: Membership
    members: Voters


_NOBODY = Voters(())


class Memberships:
    """All memberships that still matter: those of the log, and a newer one that others told of.

    The last membership that was chosen ALPHA slots or more before a slot governs it. Nothing
    is proposed ALPHA slots or more beyond the chosen prefix. So a replica that knows the prefix
    knows the voters of every open slot.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []  # in the order of slots; none: unfounded
        # A member told of it; it is newer than those in the log here. This replica speaks with
        # its members, and hears them. It decides no vote.
        self._introduced: Membership | None = None
        self.has_news = False  # something was noted since `advance`
        self.next_slot = _NEVER  # where the next of the known memberships begins to govern

    @classmethod
    def remembered(cls, founding: bytes | None, memberships: bytes | None) -> Memberships:
        """Return the memberships of a disk: of the founding entry, and the bytes of `encode`."""
        result = cls()
        if founding is not None:
            result.found(decode_founding(founding))
        if memberships is not None:
            result.restore(memberships)
        return result

    # --- filling ---

    def found(self, founding: Founding) -> None:
        """Begin with the founding members."""
        self._add(Slot(1), Membership(0, founding.members, retired=founding.retired))

    def restore(self, data: bytes) -> None:
        """Replace everything by the memberships that `encode` gave."""
        try:
            fields = decode_json(data)
            spans = [(Slot(int(slot)), from_fields(each)) for slot, each in fields["spans"]]
            introduced = fields["introduced"]
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"not the memberships of a log: {data[:200]!r}") from error
        self._spans.clear()
        for first_slot, membership in spans:
            self._add(first_slot, membership)
        self._introduced = None if introduced is None else from_fields(introduced)

    def take_copy(self, data: bytes | None) -> None:
        """Take the memberships of a copy of the state, if they are newer than those here."""
        if data is None:
            return
        copied = Memberships()
        copied.restore(data)
        if copied._spans[-1].membership.number > self._spans[-1].membership.number:
            self._spans = copied._spans
            self.has_news = True
        told = [each for each in (copied._introduced, self._introduced) if each is not None]
        self._introduced = None
        if told:
            self.introduce(max(told, key=lambda membership: membership.number))

    def encode(self) -> bytes:
        """Return the memberships as bytes; these must outlive the entries that carried them."""
        spans = [[span.first_slot, to_fields(span.membership)] for span in self._spans]
        introduced = self._introduced
        return encode_json(
            {"spans": spans, "introduced": None if introduced is None else to_fields(introduced)}
        )

    def note(self, slot: Slot, membership: Membership) -> None:
        """Take a membership that was chosen in a slot; known ones are skipped."""
        newest = self._spans[-1]
        if membership.number <= newest.membership.number:
            return
        assert is_next_step(newest.membership, membership), (
            f"slot {slot} has membership {membership}, after {newest.membership}"
        )
        first_slot = Slot(slot + ALPHA)
        assert first_slot > newest.first_slot
        self._add(first_slot, membership)
        self.has_news = True
        if self._introduced is not None and self._introduced.number <= membership.number:
            self._introduced = None

    def _add(self, first_slot: Slot, membership: Membership) -> None:
        self._spans.append(Span(first_slot, membership, Voters(membership.voters)))

    def introduce(self, membership: Membership) -> bool:
        """Take a membership that a member told of; return whether it is newer."""
        if membership.number <= self.number:
            return False
        self._introduced = membership
        return True

    def advance(self, chosen_end: Slot) -> None:
        """Take note of the end of the chosen prefix."""
        self.has_news = False
        spans = self._spans
        index = self._index(chosen_end)
        if index > _PAST_KEPT:
            del spans[: index - _PAST_KEPT]
            index = _PAST_KEPT
        self.next_slot = spans[index + 1].first_slot if index + 1 < len(spans) else _NEVER

    # --- who votes ---

    def _index(self, slot: Slot) -> int:
        """Return the place of the membership that governs a slot; -1: not known."""
        index = len(self._spans) - 1
        while index >= 0 and self._spans[index].first_slot > slot:
            index -= 1
        return index

    def at(self, slot: Slot) -> Voters:
        """Return the voters of a slot; none, if that isn't known."""
        index = self._index(slot)
        return self._spans[index].members if index >= 0 else _NOBODY

    def open(self, chosen_end: Slot) -> list[Voters]:
        """Return the voters of every membership that governs an open slot."""
        index = self._index(chosen_end)
        if index < 0:
            return [_NOBODY]
        return [span.members for span in self._spans[index:]]

    def is_quorum(self, voters: AbstractSet[ReplicaId], chosen_end: Slot) -> bool:
        """Whether these hold a majority of every membership that governs an open slot."""
        return all(members.is_quorum(voters) for members in self.open(chosen_end))

    def could_be_quorum_without(self, others: AbstractSet[ReplicaId], chosen_end: Slot) -> bool:
        """Whether the members that aren't in `others` hold such a majority."""
        return all(members.could_be_quorum_without(others) for members in self.open(chosen_end))

    def votes(self, replica: ReplicaId, chosen_end: Slot) -> bool:
        """Whether a replica has a vote in some open slot."""
        return any(replica in members.ids for members in self.open(chosen_end))

    # --- who is who ---

    @property
    def newest(self) -> Membership | None:
        """The last membership of the log; it may not govern yet. None: unfounded."""
        return self._spans[-1].membership if self._spans else None

    @property
    def newest_slot(self) -> Slot:
        """The first slot that the last membership of the log governs."""
        return self._spans[-1].first_slot if self._spans else Slot(1)

    @property
    def number(self) -> int:
        """The number of the newest known membership, from the log or from a member."""
        if self._introduced is not None:
            return self._introduced.number
        return self._spans[-1].membership.number if self._spans else -1

    def governing(self, chosen_end: Slot) -> Membership:
        """Return the membership that governs the first open slot, or a newer one if told."""
        if self._introduced is not None:
            return self._introduced
        return self._spans[max(self._index(chosen_end), 0)].membership

    def roster(self, chosen_end: Slot) -> dict[ReplicaId, Member]:
        """Return all replicas to speak with: members of open slots, and of newer memberships."""
        known: dict[ReplicaId, Member] = {}
        index = max(self._index(chosen_end), 0)
        memberships = [span.membership for span in self._spans[index:]]
        if self._introduced is not None:
            memberships.append(self._introduced)
        for membership in memberships:
            for member in (*membership.voters, *membership.learners):
                known[member.replica] = member
        return dict(sorted(known.items()))
