"""One coordinator's part in changing the members of a running cluster.

Here a request is checked against the world: does the new member answer, and is it the right
one? The replica core decides whether the cluster can bear the change. It also makes the changes
that follow by themselves: a learner that has caught up votes, and a replaced member goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus import Member, Membership, Ready, Replica
from tasksprint.consensus.changes import used_before
from tasksprint.consensus.founding import lost_disk, was_removed
from tasksprint.errors import (
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SettingsError,
    StoreError,
    TaskSprintError,
)
from tasksprint.hosting.raising import lacking
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.net.addresses import parse_address
from tasksprint.net.deadlines import within
from tasksprint.net.http_client import HttpClient
from tasksprint.net.streams import PeerStreams
from tasksprint.next_steps import program_command
from tasksprint.release import Speaks, read_speaks
from tasksprint.roles.coordinator.archives import Archives
from tasksprint.roles.coordinator.ports import Log, Turns, logger
from tasksprint.roles.coordinator.roster import membership_of
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions

__all__ = ["MemberChanges", "reason_to_stop"]

ResultT = TypeVar("ResultT")

_CONFLICT = 409
_NO_MEMBERSHIP = -1
# An answer waits at most so long until the archives of running jobs are where they must be.
_SPREAD_S = 3.0
# Pause between two tries of a new coordinator to reach its cluster, and the longest.
_LOOK_S = 0.5
_LOOK_MAX_S = 10.0


def reason_to_stop(ready: Ready) -> TaskSprintError | None:
    """Return the error with which a coordinator ends; None: its replica may go on."""
    if ready.fatal is None:
        return None
    return SettingsError(ready.fatal) if ready.is_removed else StoreError(ready.fatal)


@dataclass(frozen=True, slots=True)
class _Identity:
    """The process at an address, in its own words."""

    replica: ReplicaId
    incarnation: Incarnation
    cluster: str | None
    is_joining: bool
    incarnations: dict[str, str]  # of the members that it knows
    retired: list[ReplicaId]
    speaks: Speaks


def _identity_in(answer: dict[str, Any]) -> _Identity:
    """Return who answered.

    Raises:
        RemoteProtocolError: It isn't a coordinator: anything may listen at an address.
    """
    replica, cluster = answer.get("replica"), answer.get("cluster")
    incarnation, is_joining = answer.get("incarnation"), answer.get("is_joining")
    incarnations, retired = answer.get("incarnations"), answer.get("retired")
    if (
        type(replica) is not int
        or not isinstance(incarnation, str)
        or not incarnation
        or not isinstance(cluster, str | None)
        or not isinstance(is_joining, bool)
        or not isinstance(incarnations, dict)
        or not all(isinstance(each, str) for each in incarnations.values())
        or not isinstance(retired, list)
        or not all(type(each) is int for each in retired)
    ):
        said = bounded_repr(answer, 80)
        raise RemoteProtocolError(f"what answers is no coordinator, but says {said}")
    return _Identity(
        ReplicaId(replica),
        Incarnation(incarnation),
        cluster,
        is_joining,
        incarnations,
        retired,
        read_speaks(answer.get("speaks")),
    )


class MemberChanges:
    """One coordinator's knowledge of the members, and its changes to them."""

    def __init__(
        self,
        options: CoordinatorOptions,
        turns: Turns,
        log: Log,
        replica: Replica,
        streams: PeerStreams,
        http: HttpClient,
        archives: Archives,
    ) -> None:
        self._options = options
        self._turns = turns
        self._log = log
        self._replica = replica
        self._streams = streams
        self._http = http
        self._archives = archives
        self._connected: dict[ReplicaId, str] = {}  # whom the streams were told of last
        self._waiters: list[asyncio.Future[None]] = []
        self._prepared: int | None = None  # the membership whose next step may follow
        self._preparing: asyncio.Task[None] | None = None
        replica.members_prepared(_NO_MEMBERSHIP)

    # --- asking ---

    def identity(self) -> dict[str, Any]:
        """Return this coordinator's identity, and the members that it knows now or knew before."""
        founding, membership = self._replica.founding, self._replica.membership
        members = () if membership is None else (*membership.voters, *membership.learners)
        return {
            "replica": self._options.me,
            "address": self._options.advertise,
            "incarnation": self._replica.incarnation,
            "cluster": None if founding is None else founding.cluster,
            "is_joining": bool(self._options.join),
            "incarnations": {str(each.replica): each.incarnation for each in members},
            "retired": [] if membership is None else list(membership.retired),
            "speaks": asdict(self._streams.speaks),
        }

    def listing(self) -> dict[str, Any]:
        """Return the members as this coordinator knows them."""
        replica = self._replica
        membership, founding = replica.membership, replica.founding
        assert membership is not None and founding is not None
        status = replica.status()
        leaving = {old for _, old in membership.replaces}
        replaces = dict(membership.replaces)
        members: list[dict[str, Any]] = []
        for member in sorted(
            (*membership.voters, *membership.learners), key=lambda each: each.replica
        ):
            number = member.replica
            peer = status.peers.get(number)
            is_me = number == self._options.me
            members.append(
                {
                    "replica": number,
                    "address": member.address,
                    "incarnation": member.incarnation,
                    "role": "voter" if membership.is_voter(number) else "learner",
                    "is_leader": number == replica.leader,
                    "is_leaving": number in leaving,
                    "replaces": replaces.get(number),
                    "chosen_end": status.chosen_end
                    if is_me
                    else (None if peer is None else peer.chosen_end),
                    "heard_ms": 0 if is_me else (None if peer is None else peer.heard_ms),
                }
            )
        return {
            "cluster": founding.cluster,
            "number": membership.number,
            "is_settled": replica.membership_governs,
            "leader": replica.leader,
            "chosen_end": status.chosen_end,
            "members": members,
            "retired": list(membership.retired),
        }

    def connect(self) -> None:
        """Keep streams to all peers that the replica wants to speak with."""
        replica = self._replica
        if replica.founding is not None and replica.addresses is not self._connected:
            self._connected = replica.addresses
            self._streams.cluster = replica.founding.cluster
            self._streams.set_peers(self._connected)
        membership = replica.membership
        if membership is not None and (membership.learners or membership.replaces):
            self._prepare_soon(membership)
        else:
            self._prepared = None

    # --- before somebody votes or goes ---

    def _prepare_soon(self, membership: Membership) -> None:
        if not self._replica.is_leader:
            self._prepared = None
        elif self._prepared != membership.number and self._preparing is None:
            self._preparing = self._turns.background(self._prepare(membership))

    async def _prepare(self, membership: Membership) -> None:
        """Let the next step follow once its voters hold the running jobs' archives."""
        leaving = {old for _, old in membership.replaces}
        members = (*membership.voters, *membership.learners)
        try:
            await self._archives.spread([m for m in members if m.replica not in leaving])
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            logger.info("replica=%d changes no members yet: %s", self._options.me, error)
            await asyncio.sleep(_LOOK_S)
        else:
            if self._replica.is_leader:
                self._prepared = membership.number
                self._replica.members_prepared(membership.number)
        finally:
            self._preparing = None
        self._turns.wake()

    # --- changing ---

    async def add(
        self, replica: ReplicaId, address: str, *, replaces: ReplicaId | None = None
    ) -> None:
        """Add a new coordinator as a learner; return once the log says so.

        Raises:
            NotLeader: This replica doesn't lead, or stopped leading meanwhile.
            Refused: With the reason.
        """
        self._require_leader()
        parse_address(address)
        # Before it is asked for its identity: a removed member doesn't answer any more.
        reason = used_before(membership_of(self._replica), replica)
        if reason is not None:
            raise Refused(reason, status=_CONFLICT)
        member = await self._identify(replica, address)
        self._require_leader()
        add = partial(self._replica.add_member, replaces=replaces)
        self._check(self._turns.step(add, member, self._turns.now_ms()))
        while not self._is_member(member):
            await self._wait()

    async def remove(self, replica: ReplicaId) -> None:
        """Remove a member; return once the log says so. Raises as `add`."""
        self._require_leader()
        if not self._is_retired(replica):
            voters = membership_of(self._replica).voters
            left = [voter for voter in voters if voter.replica != replica]
            try:
                await within(_SPREAD_S, self._archives.spread(left), discard=lambda _: None)
            except asyncio.TimeoutError:
                # The spreading goes on. But the asker would give up soon, and not know why.
                text = "those who stay get the archives of running jobs: that is under way"
                raise Refused(text, status=_CONFLICT, hint="ask again") from None
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                raise Refused(str(error), status=_CONFLICT) from error
            self._require_leader()
        remove = self._replica.remove_member
        self._check(self._turns.step(remove, replica, self._turns.now_ms()))
        while not self._is_retired(replica):
            await self._wait()

    def _is_member(self, member: Member) -> bool:
        return membership_of(self._replica).member(member.replica) == member

    def _is_retired(self, replica: ReplicaId) -> bool:
        return replica in membership_of(self._replica).retired

    def _require_leader(self) -> None:
        if not self._replica.is_leader:
            raise self._log.not_leader()

    def _check(self, reason: str | None) -> None:
        if reason is not None:
            raise Refused(reason, status=_CONFLICT)
        self._turns.wake()

    async def _wait(self) -> None:
        """Wait until the members changed; or raise, if this replica can't say any more."""
        self._require_leader()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future

    async def while_leading(self, work: Awaitable[ResultT]) -> ResultT:
        """Return the result of some work that waits for this replica's own disk.

        Raises:
            NotLeader: It stopped leading, perhaps as its disk is slow or full: ask another one.
        """
        task = asyncio.ensure_future(work)
        while not task.done():
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            try:
                self._require_leader()
                self._waiters.append(changed)
                await asyncio.wait((task, changed), return_when=asyncio.FIRST_COMPLETED)
            except BaseException:
                task.cancel()
                raise
            finally:
                if changed in self._waiters:
                    self._waiters.remove(changed)
        try:
            return task.result()
        except StoreError as error:  # It stops; another one may serve.
            self._turns.fail(error)
            raise self._log.not_leader() from error

    def changed(self) -> None:
        """Take note that the members changed, or the leadership."""
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    async def _identify(self, replica: ReplicaId, address: str) -> Member:
        """Ask a new coordinator who it is."""
        hint = f"start it first: tasksprint coordinator --id {replica} --join …"
        try:
            found = await self._ask_identity(address)
        except (PeerUnreachable, RemoteProtocolError, Refused) as error:
            raise Refused(
                f"replica {replica} doesn't answer at {address}: {error}",
                status=_CONFLICT,
                hint=hint,
            ) from error
        if found.replica != replica:
            raise Refused(
                f"at {address} answers replica {found.replica}, expected {replica}",
                status=_CONFLICT,
                hint=hint,
            )
        founding = self._replica.founding
        assert founding is not None
        if found.cluster not in (None, founding.cluster):
            raise Refused(
                f"replica {replica} at {address} belongs to cluster {found.cluster!r}, this one "
                f"is {founding.cluster!r}",
                status=_CONFLICT,
                hint="start it with an empty --data-dir and --join",
            )
        if found.cluster is None and not found.is_joining:
            raise Refused(
                f"replica {replica} at {address} was started to found a cluster of its own",
                status=_CONFLICT,
                hint="start it with --join in place of --peers",
            )
        version = (await self._log.confirm_read()).rules.version
        if missing := lacking({replica: found.speaks}, version):
            raise Refused(
                f"{missing[replica]}, and this cluster is at version {version}",
                status=_CONFLICT,
                hint="start a release that has them; see docs/operations.md, 'Upgrading'",
            )
        return Member(replica, found.incarnation, address)

    async def _ask_identity(self, address: str) -> _Identity:
        response = await self._http.request(address, "GET", "/v1/identity")
        return _identity_in(response.checked().json_object())

    # --- joining ---

    async def look_for_cluster(self) -> None:
        """Tell the operator whether the cluster to join answers, and what to do next.

        Stops this coordinator if the cluster knows its id from another life. The members of
        that time may never connect to it again to tell it so.
        """
        options = self._options
        pause_s = _LOOK_S
        is_told = False
        while self._replica.founding is None:
            for address in options.join:
                try:
                    found = await self._ask_identity(address)
                except (PeerUnreachable, RemoteProtocolError, Refused) as error:
                    if not is_told:
                        words = (options.me, address, error)
                        logger.warning("replica=%d cannot join by %s: %s", *words)
                    continue
                cluster = found.cluster
                if cluster is None:
                    continue  # It waits itself; it may even be this one.
                self._check_unused(cluster, found)
                if not is_told:
                    is_told = True
                    logger.info(
                        "replica=%d waits until cluster %s adds it: "
                        "%s %d=%s --coordinators %s",
                        options.me,
                        cluster,
                        program_command("member", "add"),
                        options.me,
                        options.advertise,
                        ",".join(options.join),
                    )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MAX_S)

    def _check_unused(self, cluster: str, found: _Identity) -> None:
        """Raise what this coordinator ends with if its id was used by another one."""
        replica = self._replica
        me = self._options.me
        known = found.incarnations.get(str(me))
        if me in found.retired:
            raise SettingsError(was_removed(me, cluster))
        if known is not None and known != replica.incarnation:
            raise StoreError(lost_disk(me, replica.incarnation, Incarnation(known)))
