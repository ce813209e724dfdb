"""How a cluster comes to exist, and who belongs to it in which life.

A data directory has a random incarnation. The founding entry, written once, binds
each member's id to one incarnation, so a replica that lost its disk (and with it its
promises) can't vote under its old name. Knows nothing of ballots and slots.

The race that `Hello.heard` prevents:

1. Replicas 1 and 2 found cluster A; `Found` for 3 is still on its way. A chooses
   commands with the quorum {1, 2}.
2. Replica 1 loses its disk, starts anew as 1', and hears a late `Hello` in which 2
   says that it is unfounded.
3. Without the echo of its incarnation, 1' would found cluster B with itself, 2 and 3,
   and {1', 3} would be a quorum of B that knows nothing of A's commands.

A `Hello` that repeats the incarnation of 1' was said after 1' began, so 2 says there
that it is founded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from tasksprint.consensus.messages import Hello
from tasksprint.encoding import decode_json, encode_json
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.release import SILENT, Speaks

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

# An entry whose cluster begins with rules that the releases before 0.3.0 lack isn't for them.
_FORMAT_VERSION, _VERSION_WITH_RULES = 2, 3


@dataclass(frozen=True, slots=True)
class Member:
    """One member, in the one life in which the cluster knows it."""

    replica: ReplicaId
    incarnation: Incarnation
    address: str


@dataclass(frozen=True, slots=True)
class Founding:
    """The founding entry: the cluster's name, and its members in the order of ids.

    A cluster that was recovered, or restored from a backup, has a name of its own and one
    member in a new life. So nothing that the members of the former cluster say counts here,
    nor the other way round, should all of them come back.
    """

    cluster: str
    members: tuple[Member, ...]
    # The clusters whose state it went on with, the last one last; none: it began empty.
    origins: tuple[str, ...] = ()
    retired: tuple[ReplicaId, ...] = ()  # ids of the former cluster, never used again; sorted
    rules: int = 1  # the version by which the log is applied from its beginning


def encode_founding(founding: Founding) -> bytes:
    """Return the bytes that are stored and sent."""
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
        RemoteProtocolError: It isn't one, or of another version.
    """
    fields = decode_json(data)
    try:
        version = fields["version"]
        if version not in (_FORMAT_VERSION, _VERSION_WITH_RULES):
            raise RemoteProtocolError(
                f"founding entry has version {version!r}, expected {_VERSION_WITH_RULES}; "
                "use the TaskSprint release that wrote it, or a later one"
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
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not a founding entry: {data[:200]!r}") from error


def lost_disk(
    me: ReplicaId, mine: Incarnation, expected: Incarnation | None, cluster: str = ""
) -> str:
    """Return the sentence with which a replica stops that isn't who the cluster knows."""
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
    """Return the sentence with which a replica stops whose disk went back in time."""
    return (
        f"replica {me} returned with an older disk (durable number {found}, {who} has "
        f"seen {seen}): it counts as lost; start a new one with a new --id and --join, then "
        f"tasksprint member replace {me} ID=HOST:PORT"
    )


def was_removed(replica: ReplicaId, cluster: str) -> str:
    """Return the sentence with which a replica stops that the cluster doesn't want any more."""
    return (
        f"replica {replica} was removed from cluster {cluster!r}; its data directory can go, "
        "and its id is never used again"
    )


class Foundation:
    """What an unfounded replica has heard, until it can found a cluster or join one."""

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
        """Return what to say to `target`."""
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
        """Remember in which life somebody spoke, for the next `hello`."""
        self._heard[source] = incarnation

    def try_found(self) -> Founding | None:
        """Return a new founding entry; None: it isn't for this replica to write, or not yet.

        Only the lowest id may, once every other member has told it, in this life, that
        it is unfounded.
        """
        if self._me != self.members[0] or len(self._unfounded) < len(self.peers):
            return None
        own = Member(self._me, self._incarnation, self._address), self._speaks
        found = [own, *[self._unfounded[peer] for peer in self.peers]]
        # The newest rules that all of them have: nobody would have to raise them.
        rules = min(speaks.rules[1] for _, speaks in found)
        members = tuple([member for member, _ in found])
        return Founding(f"{self._random.getrandbits(64):016x}", members, rules=rules)


def _names(members: tuple[ReplicaId, ...]) -> str:
    return ", ".join(str(member) for member in members)
