"""The door: founds or joins a cluster, and hears only its members.

Knows the founding entry and incarnations. Each message behind the door comes from a member,
in the life that the cluster knows.

A replica with an older membership than its peer's must not judge. A replica that was away
while all others were replaced would send the new ones home. So a refusal (`Stranger`) names
the membership that it rests on. A refused replica that knows a newer one answers with it
(`Found`), and is heard from then on.

A removed replica stops once a majority of the membership without it has said so. A member
says so when it knows, durably, that this membership governs. Why one word isn't enough:

1. Members 1, 2, 3, 4; an entry removes 1. Only 2 knows that it governs.
2. Suppose that 1 stops at the word of 2, and then 2 dies. 3 and 4 would wait for a majority
   of the four for ever.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasksprint.consensus.founding import (
    Foundation,
    Founding,
    decode_founding,
    encode_founding,
    lost_disk,
    older_disk,
    was_removed,
)
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.membership import Membership, decode_membership, encode_membership
from tasksprint.consensus.messages import Envelope, Found, Hello, Marks, Stale, Stranger
from tasksprint.consensus.outbox import Outbox
from tasksprint.consensus.skips import describe_skips
from tasksprint.consensus.voters import Memberships, Voters
from tasksprint.ids import Incarnation, ReplicaId

__all__ = ["Admission"]


class Admission:
    """The members of the cluster, as far as this replica knows.

    Args:
        is_joining: This replica founds nothing: it waits until a cluster adds it.
    """

    def __init__(
        self,
        *,
        incarnation: Incarnation,
        foundation: Foundation,
        founding: bytes | None,
        skips: bytes,
        memberships: Memberships,
        learner: Learner,
        outbox: Outbox,
        is_joining: bool,
    ) -> None:
        self._me = outbox.me
        self._incarnation = incarnation
        self._foundation = foundation
        foundation.skips = skips
        self._refused: set[ReplicaId] = set()  # members that skip other commands than this one
        self._memberships = memberships
        self._learner = learner
        self._outbox = outbox
        self._is_joining = is_joining
        self.founding: Founding | None = None
        # Messages of these count: all that have or will have a part, each in this very life.
        self.incarnations: Mapping[ReplicaId, Incarnation] = {}
        self._known: Mapping[ReplicaId, Incarnation] = {}  # the same, and `_refused`
        self.addresses: dict[ReplicaId, str] = {}  # of the same, without this one
        self._older: dict[ReplicaId, Stale] = {}  # the last refusals of members' older disks
        self._sent_home_by: set[ReplicaId] = set()  # they said that this replica was removed
        outbox.peers = foundation.peers
        if outbox.numbers.is_lost:
            seen, found = outbox.numbers.seen(incarnation), outbox.numbers.last.start
            outbox.fatal = older_disk(self._me, found, "another one", seen)
        elif founding is None:
            self.try_found()
        if founding is None:
            return
        self.founding = decode_founding(founding)
        self.refresh()
        known = self.incarnations.get(self._me)
        if known is not None and known != incarnation:
            outbox.fatal = lost_disk(self._me, incarnation, known)

    @property
    def skips(self) -> bytes:
        """The commands of the log that aren't applied here (skips.py)."""
        return self._foundation.skips

    def connected(self, peer: ReplicaId) -> None:
        """Tell a peer which commands aren't applied here, and what is known of the peer's disk.

        The commands come first: other messages rest on them. And a peer must hear of its disk
        from every member. Otherwise a replica whose disk went back in time could vote on:

        1. Replica 2 returns with an older disk, and asks replica 3 whether it may stand.
        2. Replica 3 refuses it (`Stale`), but isn't connected with it yet. The refusal is lost.
        3. Replica 1 has heard nothing of the writes that 2 forgot. It becomes the leader. From
           now on 2 speaks with 1 alone, and would be believed.
        """
        if self.founding is None or self._outbox.fatal is not None:
            return
        if self.skips:
            self._outbox.send(peer, self._foundation.hello(peer, self.founding.cluster))
        if peer in self._older:
            self._outbox.send(peer, self._older[peer])
        known = self._outbox.numbers.of(self.incarnations.get(peer))
        if known is not None:
            self._outbox.send(peer, Marks((known,)))

    @property
    def is_founder(self) -> bool:
        """Whether this replica writes the founding entry: it has the lowest id."""
        return not self._is_joining and self._me == self._foundation.members[0]

    @property
    def is_leaving(self) -> bool:
        """Whether a membership without this replica governs."""
        return self.founding is not None and self._me in self._governing().retired

    def _governing(self) -> Membership:
        return self._memberships.governing(self._learner.chosen_end)

    def greet_all(self) -> None:
        """Say hello to every peer, unless this replica is to stop."""
        if self._outbox.fatal is not None:
            return
        cluster = None if self.founding is None else self.founding.cluster
        for peer in self._outbox.peers:
            self._outbox.send(peer, self._foundation.hello(peer, cluster))

    def try_found(self) -> None:
        """Found the cluster if this replica is to do it, and has heard all that it needs."""
        founding = None if self._is_joining else self._foundation.try_found()
        if isinstance(founding, str):
            self._outbox.note_once(founding)
            return
        if founding is None:
            return
        self._join(founding)
        data = encode_founding(founding)
        self._outbox.write_founding(data)
        self._outbox.send_all_after_persist(Found(data, encode_membership(self._governing())))
        names = ", ".join(str(member.replica) for member in founding.members)
        self._outbox.note(f"founded cluster {founding.cluster} with members {names}")

    def _join(self, founding: Founding) -> None:
        self.founding = founding
        self._memberships.found(founding)
        self.refresh()

    def refresh(self) -> None:
        """Take over the present members of the cluster."""
        roster = self._memberships.roster(self._learner.chosen_end)
        self._known = {replica: member.incarnation for replica, member in roster.items()}
        self.incarnations = {
            replica: incarnation
            for replica, incarnation in self._known.items()
            if replica not in self._refused
        }
        self.addresses = {
            replica: member.address for replica, member in roster.items() if replica != self._me
        }
        for replica in self._older.keys() - self.addresses.keys():
            del self._older[replica]
        self._outbox.peers = tuple(self.addresses)
        self._outbox.numbers.keep(self._known.values())

    # --- disks that went back in time ---

    def refuse_older(self, envelope: Envelope) -> None:
        """Tell a member that it counts as lost; if a former life spoke, nobody hears it."""
        founding, source, mark = self.founding, envelope.source, envelope.mark
        assert founding is not None, "nobody is known before"
        seen = self._outbox.numbers.seen(envelope.source_incarnation)
        stale = Stale(founding.cluster, mark.life, seen, mark.start)
        self._older[source] = stale
        self._outbox.send(source, stale)

    def _hear_marks(self, source: ReplicaId, message: Marks) -> None:
        numbers = self._outbox.numbers
        seen = numbers.take(message.known)
        if seen is not None:
            self._hear_older(source, numbers.last.life, seen)

    def _hear_older(self, source: ReplicaId, life: int, seen: int) -> None:
        mine = self._outbox.numbers.last
        if life == mine.life:  # Else: said about a former life.
            text = older_disk(self._me, mine.start, f"replica {source}", seen)
            self._outbox.stop_as_lost(text, seen)

    # --- who comes ---

    def hear(self, envelope: Envelope) -> None:
        """Take a greeting, or any message from outside the membership."""
        message, source = envelope.message, envelope.source
        if envelope.target != self._me or source == self._me:
            return
        match message:
            case Hello():
                self._hear_hello(source, envelope.source_incarnation, message)
            case Found():
                self._hear_found(source, message)
            case Stranger():
                self._hear_stranger(source, message)
            case Stale():
                # An older disk may not know the members of now. So anybody of this cluster is
                # believed, but nobody of the cluster that it was recovered from.
                if self.founding is None or self.founding.cluster == message.cluster:
                    self._hear_older(source, message.life, message.seen)
            case Marks() if self.incarnations.get(source) == envelope.source_incarnation:
                self._hear_marks(source, message)
            case _ if source in self._refused:
                pass  # It has heard why.
            case _ if self.founding is not None:
                self._refuse(source, envelope.source_incarnation, self.founding)
            case _:
                # The sender thinks that we know it: it has added this replica, or knows us from
                # a life before our disk was lost. All founding members may have left meanwhile.
                self._foundation.note(source, envelope.source_incarnation)
                self._outbox.send(source, self._foundation.hello(source, None))

    def _hear_hello(self, source: ReplicaId, incarnation: Incarnation, hello: Hello) -> None:
        founding = self.founding
        if founding is None and self._is_joining:
            return
        warning = self._foundation.hear(source, incarnation, hello)
        if founding is None:
            if warning is not None:
                self._outbox.note_once(warning)
            if hello.heard != self._incarnation:
                self._outbox.send(source, self._foundation.hello(source, None))
            self.try_found()
        elif self._known.get(source) != incarnation:
            self._refuse(source, incarnation, founding)
        elif hello.cluster is None:
            # Our own founding entry may be on its way to the disk still.
            self._outbox.send_after_persist(source, self._introduction(founding))
        elif hello.cluster != founding.cluster:
            self._outbox.note_once(
                f"replica {source} belongs to cluster {hello.cluster!r}, this replica to "
                f"{founding.cluster!r}; start them with the peers of their own cluster"
            )
        else:
            self._compare_skips(source, hello)

    def _compare_skips(self, source: ReplicaId, hello: Hello) -> None:
        """Hear a member only if it leaves out the same commands; otherwise states would differ."""
        is_refused = hello.skips != self.skips
        if is_refused:
            self._outbox.note_once(
                f"refuses messages of replica {source}: it skips other commands of the log "
                f"({describe_skips(hello.skips)}) than replica {self._me} "
                f"({describe_skips(self.skips)}); stop both, and let 'tasksprint log skip' mark "
                "the same ones in the data directories of all members"
            )
            if hello.heard != self._incarnation:
                assert self.founding is not None
                answer = self._foundation.hello(source, self.founding.cluster)
                self._outbox.send(source, answer)
        if is_refused != (source in self._refused):
            self._refused ^= {source}
            self.refresh()

    def _introduction(self, founding: Founding) -> Found:
        membership = encode_membership(self._governing())
        return Found(encode_founding(founding), membership, self.skips)

    def _hear_found(self, source: ReplicaId, message: Found) -> None:
        founding = decode_founding(message.founding)
        membership = decode_membership(message.membership)
        if self.founding is not None:
            if self.founding.cluster != founding.cluster:
                self._outbox.note_once(
                    f"replica {source} offered cluster {founding.cluster!r}, but this replica "
                    f"belongs to {self.founding.cluster!r}; one of them needs its own data"
                )
            else:
                self._introduce(membership)
            return
        member = membership.member(self._me)
        if member is None:
            return
        if member.incarnation != self._incarnation:
            self._outbox.fatal = lost_disk(self._me, self._incarnation, member.incarnation)
            return
        self._foundation.skips = message.skips
        self._join(founding)
        self._introduce(membership)
        self._outbox.write_founding(message.founding)
        self._outbox.write_skips(message.skips)
        self._outbox.note(f"joined cluster {founding.cluster}")

    def _introduce(self, membership: Membership) -> None:
        """Speak from now on with the members of a newer membership than is known here."""
        if self._memberships.introduce(membership):
            self._outbox.write_memberships(self._memberships.encode())
            self._outbox.note(f"hears of membership {membership.number}: {membership.describe()}")
            self.refresh()

    def _hear_stranger(self, source: ReplicaId, message: Stranger) -> None:
        if message.found != self._incarnation:
            return  # Said about a former life of this directory.
        founding = self.founding
        if founding is not None and founding.cluster != message.cluster:
            self._outbox.note_once(
                f"replica {source} of cluster {message.cluster!r} refuses this replica of "
                f"{founding.cluster!r}; start them with the peers of their own cluster"
            )
            return
        if message.expected is not None:
            # An id is never used for another incarnation. So this holds, however old the
            # sender's knowledge is.
            self._outbox.fatal = lost_disk(self._me, self._incarnation, message.expected)
            return
        membership = decode_membership(message.membership)
        is_removed = self._me in membership.retired
        if founding is None:
            if is_removed:
                self._stop_removed(message.cluster)
            elif self._is_joining:
                self._outbox.note_once(
                    f"waits until cluster {message.cluster!r} adds it: "
                    f"tasksprint member add {self._me}=HOST:PORT"
                )
            else:
                self._outbox.fatal = lost_disk(self._me, self._incarnation, None, message.cluster)
        elif membership.number < self._memberships.number:
            # The sender can't know better yet.
            self._outbox.send_after_persist(source, self._introduction(founding))
        elif is_removed:
            self._introduce(membership)
            self._sent_home_by.add(source)
            if Voters(membership.voters).is_quorum(self._sent_home_by):
                self._stop_removed(founding.cluster)

    def _stop_removed(self, cluster: str) -> None:
        self._outbox.is_removed = True
        self._outbox.fatal = was_removed(self._me, cluster)

    def _refuse(self, source: ReplicaId, incarnation: Incarnation, founding: Founding) -> None:
        expected = self._known.get(source)
        governing = self._governing()
        self._outbox.send_after_persist(
            source,
            Stranger(founding.cluster, expected, incarnation, encode_membership(governing)),
        )
        if source in governing.retired:
            what = was_removed(source, founding.cluster)
        else:
            what = lost_disk(source, incarnation, expected, founding.cluster)
        self._outbox.note_once(f"refuses messages: {what}")
