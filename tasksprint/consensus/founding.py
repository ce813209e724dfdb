"""How a cluster comes to exist, and with which members, each in one life.

A data directory has a random incarnation. The founding entry is written once. It binds each
member's id to one incarnation. So a replica that lost its disk, and its promises with it,
can't vote under its old name. Knows nothing of ballots and slots.

The race that `Hello.heard` prevents:

1. Replicas 1 and 2 found cluster A; `Found` for 3 is still on its way. A chooses
   commands with the quorum {1, 2}.
2. Replica 1 loses its disk, and starts anew as 1'. It hears a late `Hello` of 2, which says:
   2 is unfounded.
3. Without the echo of its incarnation, 1' would now found cluster B with itself, 2 and 3.
   {1', 3} would be a quorum of B, and know nothing of A's commands.

The echo prevents it. If a `Hello` repeats the incarnation of 1', it was said after 1' began.
In such a `Hello` 2 says that it is founded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus.messages import Hello
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.release import SILENT, Speaks, common_rules

__all__ = [
    "Foundation",
    "Founding",
    "Member",
    "decode_founding",
    "encode_founding",
    "lost_disk",
    "older_disk",
    "was_removed",
]

# Releases before 0.3.0 lack rules above 1, so they must not read the entry of a cluster that
# begins with later ones. Such an entry has the second version: they refuse it.
_FORMAT_VERSION, _VERSION_WITH_RULES = 2, 3


@dataclass(frozen=True, slots=True)
class Member:
    """One member, in the one life that the cluster knows."""

    replica: ReplicaId
    incarnation: Incarnation
    address: str


@dataclass(frozen=True, slots=True)
class Founding:
    """The founding entry: the cluster's name, and its members in the order of ids.

    A cluster that was recovered, or restored from a backup, has a name of its own and one
    member in a new life. The former cluster's members may come back: their words don't count
    here, and those of this cluster don't count there.
    """

    cluster: str
    members: tuple[Member, ...]
    # The clusters before it, whose state it took over, in their order; none: it began empty.
    origins: tuple[str, ...] = ()
    retired: tuple[ReplicaId, ...] = ()  # ids of the former cluster, never used again; sorted
    rules: int = 1  # the version by which the log is applied from its beginning


def encode_founding(founding: Founding) -> bytes:
    """Return the bytes of a founding entry, for the store and for messages."""
    members = [[m.replica, m.incarnation, m.address] for m in founding.members]
    fields = {
        "version": _FORMAT_VERSION,
        "cluster": founding.cluster,
        "members": members,
        "origins": founding.origins,
        "retired": founding.retired,
    }
    if founding.rules > 1:
        fields |= {"version": _VERSION_WITH_RULES, "rules": founding.rules}
    return encode_json(fields)


def decode_founding(data: bytes) -> Founding:
    """Return the founding entry that `data` encodes.

    Raises:
        RemoteProtocolError: It is no founding entry, or one of another version.
    """
    fields = decode_json(data)
    try:
        version = fields["version"]
        if version not in (_FORMAT_VERSION, _VERSION_WITH_RULES):
            raise RemoteProtocolError(
                f"founding entry has version {bounded_repr(version)}, expected "
                f"{_VERSION_WITH_RULES}; use the TaskSprint release that wrote it, or a later one"
            )
        members = tuple(
            Member(ReplicaId(int(replica)), Incarnation(str(incarnation)), str(address))
            for replica, incarnation, address in fields["members"]
        )
        return Founding(
            str(fields["cluster"]),
            members,
            tuple(str(origin) for origin in fields["origins"]),
            tuple(ReplicaId(int(replica)) for replica in fields["retired"]),
            int(fields.get("rules", 1)),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"not a founding entry: {data[:200]!r}") from error


def lost_disk(
    me: ReplicaId, mine: Incarnation, expected: Incarnation | None, cluster: str = ""
) -> str:
    """Return the last sentence of a replica whose incarnation the cluster doesn't know."""
    if expected is None:
        return (
            f"replica {me} is not a member of cluster {cluster!r}; "
            "add it as a member, or start it with the peers of its own cluster"
        )
    return (
        f"replica {me} lost its disk (its incarnation is {mine}, the cluster knows {expected}); "
        "replace it by a new one: start that with a new --id and --join, then "
        f"tasksprint member replace {me} ID=HOST:PORT"
    )


def older_disk(me: ReplicaId, found: int, who: str, seen: int) -> str:
    """Return the last sentence of a replica whose disk went back in time."""
    return (
        f"replica {me} returned with an older disk (durable number {found}, {who} has "
        f"seen {seen}): it counts as lost; start a new one with a new --id and --join, then "
        f"tasksprint member replace {me} ID=HOST:PORT"
    )


def was_removed(replica: ReplicaId, cluster: str) -> str:
    """Return the last sentence of a replica that was removed from its cluster."""
    return (
        f"replica {replica} was removed from cluster {cluster!r}; its data directory can go, "
        "and its id is never used again"
    )


class Foundation:
    """The greetings that an unfounded replica has heard, until it founds or joins a cluster."""

    def __init__(
        self,
        *,
        me: ReplicaId,
        incarnation: Incarnation,
        address: str,
        members: Iterable[ReplicaId],
        random: Random,
        speaks: Speaks = SILENT,
    ) -> None:
        self._me = me
        self._incarnation = incarnation
        self._address = address
        self._random = random
        self.members: tuple[ReplicaId, ...] = tuple(sorted({me, *members}))
        self.peers = tuple(member for member in self.members if member != me)
        self.skips = b""  # commands that aren't applied here (skips.py)
        self._heard: dict[ReplicaId, Incarnation] = {}
        self._unfounded: dict[ReplicaId, tuple[Member, Speaks]] = {}
        self._speaks = speaks

    def hello(self, target: ReplicaId, cluster: str | None) -> Hello:
        """Return the greeting for `target`."""
        heard = self._heard.get(target)
        return Hello(self._address, heard, cluster, self.members, self.skips, self._speaks)

    def hear(self, source: ReplicaId, incarnation: Incarnation, hello: Hello) -> str | None:
        """Take note of a greeting.

        Returns:
            A note for the operator if the two were started with different members.
        """
        self._heard[source] = incarnation
        self._unfounded.pop(source, None)
        if hello.cluster is not None or source not in self.peers:
            return None
        if hello.members != self.members:
            return (
                f"replica {source} was started with the members {_names(hello.members)}, "
                f"replica {self._me} with {_names(self.members)}; start all with the same"
            )
        if hello.heard == self._incarnation:
            member = Member(source, incarnation, hello.address)
            self._unfounded[source] = member, hello.speaks
        return None

    def note(self, source: ReplicaId, incarnation: Incarnation) -> None:
        """Remember the life in which a replica spoke, for the next `hello`."""
        self._heard[source] = incarnation

    def try_found(self) -> Founding | str | None:
        """Return a new founding entry; None: another replica writes it, or it is too early.

        Only the replica with the lowest id writes it. First every other member must have told
        it, in this life, that it is unfounded. A text says why they can't found one together.
        """
        if self._me != self.members[0] or len(self._unfounded) < len(self.peers):
            return None
        own = Member(self._me, self._incarnation, self._address), self._speaks
        found = [own, *[self._unfounded[peer] for peer in self.peers]]
        # The newest rules that all of them have: nobody would have to raise them.
        rules = common_rules([speaks for _, speaks in found])
        if rules is None:
            told = [f"replica {member.replica} {speaks.in_words}" for member, speaks in found]
            return f"can't found a cluster: {'; '.join(told)}; start all with the same release"
        members = tuple([member for member, _ in found])
        return Founding(f"{self._random.getrandbits(64):016x}", members, rules=rules)


def _names(members: tuple[ReplicaId, ...]) -> str:
    return ", ".join(str(member) for member in members)
