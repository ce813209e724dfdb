"""Being one of a cluster's clients: joining, following the view, joining anew, leaving."""

from __future__ import annotations

import socket
from collections.abc import Callable
from random import Random
from typing import Any

from tasksprint.asking.leader import MEMBERS_HEADER, LeaderFinder
from tasksprint.bounded_text import bounded_repr
from tasksprint.coordination.commands import Held, JoinClient, LeaveClient, encode_command
from tasksprint.coordination.view import View, decode_view
from tasksprint.encoding import encode_json
from tasksprint.errors import RemoteProtocolError, SettingsError, TaskSprintError
from tasksprint.execution.workbench import Workbench
from tasksprint.ids import ClientId, Incarnation
from tasksprint.net.http_client import HttpClient
from tasksprint.net.http_messages import HttpResponse
from tasksprint.roles.client.incarnations import Incarnations
from tasksprint.roles.client.ports import Turns, Writer, logger
from tasksprint.roles.client.surroundings import ClientOptions
from tasksprint.settings import Settings
from tasksprint.store.result_store import ResultStore

__all__ = ["Joining", "StallNews", "leader_of"]

_CONFLICT = 409
_LEAVE_MS = 500
_STALLS_MS = 500  # between two looks for stalled jobs
# Bytes of one offered result in the joining command, at most.
_HELD_BYTES_MAX = 112


def leader_of(
    options: ClientOptions,
    store: ResultStore,
    http: HttpClient,
    random: Random,
    now_ms: Callable[[], int],
) -> LeaderFinder:
    """Return how a client asks whoever leads its cluster, which it may have joined before."""

    def refuse(cluster: str) -> SettingsError:
        return SettingsError(
            f"data directory {str(options.data_dir)!r} belongs to a client of cluster "
            f"{leader.cluster!r}, this is cluster {cluster!r}",
            hint="give this client its own --data-dir",
        )

    leader = LeaderFinder(options.coordinators, http, random, now_ms, refuse=refuse)
    # A cluster may have taken this client with this key. Then a process that calls the key
    # wrong is no coordinator of it.
    leader.ends_by_wrong_key = store.get_fact("key") != options.key.fingerprint
    leader.cluster = store.get_fact("cluster")
    return leader


class StallNews:
    """Notes that polls carry about stalled jobs here, and about tasks that run for long."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self._told = {"stalls", "runs"}  # A former process here may have told some.
        self._due_ms = 0

    def find(self, now_ms: int) -> dict[str, str]:
        """Return the notes for the next poll.

        It looks, and tells, only now and then: a busy client polls a thousand times a second.
        """
        if now_ms < self._due_ms:
            return {}
        self._due_ms = now_ms + _STALLS_MS
        found = {"stalls": self._workbench.stalls(), "runs": self._workbench.long_runs(now_ms)}
        # Said the last time and not true any more: it is taken back by `[]`.
        told, self._told = self._told, {name for name in found if found[name]}
        return {
            name: encode_json(found[name]).decode()
            for name in found
            if found[name] or name in told
        }


class Joining:
    """The place of one client in its cluster.

    Args:
        new_incarnation: Returns a new one, at random.
        on_joined: Called each time that it has joined.
    """

    def __init__(
        self,
        options: ClientOptions,
        settings: Settings,
        turns: Turns,
        workbench: Workbench,
        leader: LeaderFinder,
        incarnations: Incarnations,
        writer: Writer,
        identity: str,
        new_incarnation: Callable[[], str],
        on_joined: Callable[[], None],
    ) -> None:
        self._options = options
        self._settings = settings
        self._turns = turns
        self._workbench = workbench
        self._leader = leader
        self._incarnations = incarnations
        self._writer = writer
        self._identity = identity
        self._new_incarnation = new_incarnation
        self._on_joined = on_joined
        self._news = StallNews(workbench)
        # Where other clients listen; None: nowhere.
        self.addresses: dict[ClientId, str | None] = {}

    async def follow(self, address: str | None) -> None:
        """Poll the view for ever; join first, and anew when this incarnation isn't known.

        Args:
            address: Where other clients reach this one; None: nowhere.
        """
        await self._join(address)
        workbench = self._workbench
        wait_ms = self._settings.view_poll_max_ms
        while True:
            query: dict[str, str | int] = {
                "cid": workbench.cid,
                "incarnation": workbench.incarnation,
                "since": workbench.version,
                "wait_ms": wait_ms,
            }
            query.update(self._news.find(self._turns.now_ms()))
            if (complaint := self._leader.complaint) is not None:
                query["complaint"] = complaint
            view, members = await self._leader.ask(
                "GET", "/v1/view", _read_view, query=query, wait_ms=wait_ms
            )
            if not isinstance(view, View):
                self._incarnations.give_way(workbench.cid, view)
                logger.warning("cid=%d was declared dead, joins anew", workbench.cid)
                await self._incarnations.pause(self._turns.now_ms())
                await self._join(address)
                continue
            if members:
                self._leader.learn(members)
            for client in view.clients:
                self.addresses[client.cid] = client.address
            workbench.view_changed(view, self._turns.now_ms())
            self._turns.turn()

    async def leave(self) -> None:
        """Tell the cluster that this client ends, if it still answers."""
        if not self._incarnations.is_joined.is_set():
            return
        cid = self._workbench.cid
        body = encode_command(LeaveClient(cid, self._workbench.incarnation))
        try:
            await self._leader.request("POST", "/v1/commands", body=body, give_up_ms=_LEAVE_MS)
        except TaskSprintError as error:
            logger.warning("cid=%d left without a word: %s", cid, error)

    async def _join(self, address: str | None) -> None:
        """Join, or join anew: under a new incarnation, with the results in the store."""
        incarnation = self._incarnations.begin(Incarnation(self._new_incarnation()))
        held = self._workbench.held_results()
        most = self._settings.command_bytes_max // _HELD_BYTES_MAX
        if len(held) > most:
            # The latest: those not offered count as lost, and are made again if needed.
            logger.warning("holds %d results, offers the last %d of them", len(held), most)
            held = held[-most:]
        capacity = self._options.capacity
        command = JoinClient(
            identity=self._identity,
            incarnation=incarnation,
            address=address,
            hostname=socket.gethostname(),
            slots=capacity,
            held=tuple(Held(job, tid, digest) for job, tid, digest in held),
        )
        body = encode_command(command)
        cluster, cid = await self._leader.ask("POST", "/v1/commands", _read_joined, body=body)
        await self._note_cluster(cluster)
        now_ms = self._turns.now_ms()
        self._workbench.reset(cid, incarnation, now_ms)
        self._incarnations.joined(now_ms)
        self._on_joined()
        logger.info("cid=%d joined cluster %s with %d nodes", cid, cluster, capacity)
        self._turns.turn()

    async def _note_cluster(self, cluster: str) -> None:
        """Note the cluster that took this client, and the key, if that is news."""
        leader = self._leader
        former, facts = leader.cluster, {"cluster": cluster}
        if cluster != former and former is not None:
            # Our cluster has gone on under this name: former coordinators don't count any more.
            logger.warning("cluster %s went on as cluster %s", former, cluster)
        if leader.ends_by_wrong_key:
            leader.ends_by_wrong_key = False
            facts["key"] = self._options.key.fingerprint
        if cluster != former or len(facts) > 1:
            leader.cluster = cluster
            await self._writer.run(_set_facts, facts)


def _set_facts(store: ResultStore, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        store.set_fact(name, value)


def _read_joined(response: HttpResponse) -> tuple[str, ClientId]:
    """Return the cluster and the number that a join was answered with."""
    reply = response.checked().json_object()
    if "error" in reply:
        raise SettingsError(f"the cluster refuses this client: {reply['error']}")
    cluster, number = reply.get("cluster"), reply.get("cid")
    if not isinstance(cluster, str) or type(number) is not int:
        raise RemoteProtocolError(f"says {bounded_repr(reply, 80)} to a join")
    return cluster, ClientId(number)


def _read_view(response: HttpResponse) -> tuple[View | dict[str, Any], list[str]]:
    """Return a view and the coordinators' addresses, or the answer to a dead client."""
    if response.status == _CONFLICT:
        return response.json_object(), []
    members = response.headers.get(MEMBERS_HEADER, "")
    return decode_view(response.checked().body), members.split(",") if members else []
