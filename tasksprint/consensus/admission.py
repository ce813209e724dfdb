"""The door: founds or joins a cluster, and keeps those out who aren't who they say.

Knows the founding entry and incarnations; a message that gets past it comes from a
member in the life that the cluster knows.
"""

from __future__ import annotations

from tasksprint.consensus.founding import (
    Foundation,
    Founding,
    decode_founding,
    encode_founding,
    lost_disk,
)
from tasksprint.consensus.members import Members
from tasksprint.consensus.messages import Envelope, Found, Hello, Stranger
from tasksprint.consensus.outbox import Outbox
from tasksprint.ids import Incarnation, ReplicaId

__all__ = ["Admission"]


class Admission:
    """Who belongs to the cluster, as far as this replica knows."""

    def __init__(
        self,
        *,
        incarnation: Incarnation,
        foundation: Foundation,
        founding: bytes | None,
        outbox: Outbox,
    ) -> None:
        self._me = outbox.me
        self._incarnation = incarnation
        self._foundation = foundation
        self._outbox = outbox
        self.founding: Founding | None = None
        self.members = Members(None)
        outbox.peers = foundation.peers
        if founding is None:
            self.try_found()
            return
        self._join(decode_founding(founding))
        known = self.members.incarnations.get(self._me)
        if known != incarnation:
            assert self.founding is not None
            outbox.fatal = lost_disk(self._me, incarnation, known, self.founding.cluster)

    @property
    def is_founder(self) -> bool:
        """Whether this replica writes the founding entry: it has the lowest id."""
        return self._me == self._foundation.members[0]

    def greet_all(self) -> None:
        """Say hello to every peer."""
        cluster = None if self.founding is None else self.founding.cluster
        for peer in self._outbox.peers:
            self._outbox.send(peer, self._foundation.hello(peer, cluster))

    def try_found(self) -> None:
        """Found the cluster if that is ours to do, and everything for it was heard."""
        founding = self._foundation.try_found()
        if founding is None:
            return
        self._join(founding)
        data = encode_founding(founding)
        self._outbox.write_founding(data)
        self._outbox.send_all_after_persist(Found(data))
        names = ", ".join(str(member.replica) for member in founding.members)
        self._outbox.note(f"founded cluster {founding.cluster} with members {names}")

    def _join(self, founding: Founding) -> None:
        self.founding = founding
        self.members = Members(founding)
        self._outbox.peers = tuple(peer for peer in self.members.ids if peer != self._me)

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
            case _ if self.founding is not None:
                self._refuse(source, envelope.source_incarnation, self.founding)
            case _:
                pass  # Unfounded: nothing that replicas say concerns us yet.

    def _hear_hello(self, source: ReplicaId, incarnation: Incarnation, hello: Hello) -> None:
        warning = self._foundation.hear(source, incarnation, hello)
        founding = self.founding
        if founding is None:
            if warning is not None:
                self._outbox.note_once(warning)
            if hello.heard != self._incarnation:
                self._outbox.send(source, self._foundation.hello(source, None))
            self.try_found()
        elif self.members.incarnations.get(source) != incarnation:
            self._refuse(source, incarnation, founding)
        elif hello.cluster is None:
            # Our own founding entry may be on its way to the disk still.
            self._outbox.send_after_persist(source, Found(encode_founding(founding)))
        elif hello.cluster != founding.cluster:
            self._outbox.note_once(
                f"replica {source} belongs to cluster {hello.cluster!r}, this replica to "
                f"{founding.cluster!r}; start them with the peers of their own cluster"
            )

    def _hear_found(self, source: ReplicaId, message: Found) -> None:
        founding = decode_founding(message.founding)
        if self.founding is not None:
            if self.founding.cluster != founding.cluster:
                self._outbox.note_once(
                    f"replica {source} offered cluster {founding.cluster!r}, but this replica "
                    f"belongs to {self.founding.cluster!r}; one of them needs its own data"
                )
            return
        for member in founding.members:
            if member.replica == self._me and member.incarnation == self._incarnation:
                self._join(founding)
                self._outbox.write_founding(message.founding)
                self._outbox.note(f"joined cluster {founding.cluster}")
                return
            if member.replica == self._me:
                self._outbox.fatal = lost_disk(
                    self._me, self._incarnation, member.incarnation, founding.cluster
                )
                return

    def _hear_stranger(self, source: ReplicaId, message: Stranger) -> None:
        if message.found != self._incarnation:
            return  # Said about a former life of this directory.
        if self.founding is not None and self.founding.cluster != message.cluster:
            self._outbox.note_once(
                f"replica {source} of cluster {message.cluster!r} refuses this replica of "
                f"{self.founding.cluster!r}; start them with the peers of their own cluster"
            )
            return
        self._outbox.fatal = lost_disk(
            self._me, self._incarnation, message.expected, message.cluster
        )

    def _refuse(self, source: ReplicaId, incarnation: Incarnation, founding: Founding) -> None:
        expected = self.members.incarnations.get(source)
        self._outbox.send_after_persist(source, Stranger(founding.cluster, expected, incarnation))
        what = lost_disk(source, incarnation, expected, founding.cluster)
        self._outbox.note_once(f"refuses messages: {what}")
