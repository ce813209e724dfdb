"""`coordinator`: starts one coordinator process, and stops it in good order."""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
from collections.abc import Callable

from tasksprint.asking.rota import check_replica_id, parse_addresses, parse_member
from tasksprint.errors import EXIT_OK, CommandFailed, SettingsError, StoreDamaged, UsageError
from tasksprint.ids import ReplicaId
from tasksprint.net.addresses import parse_address
from tasksprint.net.gate import Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.keys import open_key
from tasksprint.process.clock import wall_ms
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.free_space import FreeSpace
from tasksprint.process.open_files import fit_coordinator, raise_limit
from tasksprint.process.program import programs_in_cgroups
from tasksprint.rescue.log_skip import explain
from tasksprint.rescue.restore import refuse_half_restored
from tasksprint.roles.coordinator.coordinator import Coordinator
from tasksprint.roles.coordinator.ports import logger
from tasksprint.roles.coordinator.surroundings import REAL, CoordinatorOptions, Surroundings
from tasksprint.roles.loop_watch import watch_loop
from tasksprint.roles.whole_process import begin_process, data_directory, wait_for_end
from tasksprint.settings import Settings
from tasksprint.store.replica_store import ReplicaStore

__all__ = [
    "open_coordinator",
    "parse_peers",
    "run_role",
]


def run_role(options: argparse.Namespace) -> int:
    """Run one coordinator until it is told to stop."""
    state = begin_process()
    key = open_key(options.key_file, state_dir=state, may_create=True)
    _, port = parse_address(options.listen)
    advertised = options.advertise or [options.listen]
    for address in advertised:
        parse_address(address)
    me = check_replica_id(options.id, "--id")
    if options.join is not None and options.peers is not None:
        raise UsageError(
            "--join goes without --peers", hint="--peers founds a cluster, --join waits for one"
        )
    join = tuple(parse_addresses(options.join)) if options.join is not None else ()
    peers = parse_peers(options.peers, me, advertised[0])
    data_dir = data_directory(options.data_dir, state, f"coordinator-{me}-{port}")
    coordinator_options = CoordinatorOptions(
        me=me,
        advertise=peers[me],
        peers=peers,
        data_dir=data_dir,
        key=key,
        join=join,
    )
    try:
        with programs_in_cgroups():
            return asyncio.run(
                _serve(coordinator_options, options.listen, options.listen_fd, advertised)
            )
    except CommandFailed as error:
        logger.error("replica=%d can't go on", me, exc_info=error)
        raise explain(error, data_dir, settings_from_environment()) from error


async def _serve(
    options: CoordinatorOptions, listen: str, listen_fd: int | None, advertised: list[str]
) -> int:
    watch_loop()
    settings, lowered = fit_coordinator(settings_from_environment(), raise_limit())
    if lowered is not None:
        logger.warning("replica=%d %s", options.me, lowered)
    refuse_half_restored(options.data_dir)
    FreeSpace(settings, options.data_dir).require(f"replica {options.me}")
    coordinator = open_coordinator(
        options,
        settings,
        lambda: ReplicaStore.open(
            options.data_dir, options.me, now_ms=wall_ms(), settings=settings
        ),
    )
    # Restored objects mostly stay: the collector needn't look through them again and again.
    gc.freeze()
    gate = Gate(options.key, addresses=[options.advertise, *advertised])
    bugs = coordinator.standing.bugs
    asyncio.get_running_loop().set_exception_handler(bugs.handle)
    server = HttpServer(coordinator.router, gate, settings, bugs=bugs)
    try:
        _check_members(coordinator)
        inherited = None if listen_fd is None else socket.socket(fileno=listen_fd)
        address = await server.listen(listen, inherited=inherited)
        logger.info(
            "replica=%d listens on %s, data in %s, members %s",
            options.me,
            address,
            options.data_dir,
            ", ".join(f"{who}={where}" for who, where in coordinator.roster.addresses().items()),
        )
        coordinator.start()
        coordinator.turns.background(coordinator.disk_space.watch())
        if options.join:
            coordinator.turns.background(coordinator.members.look_for_cluster())
        await wait_for_end(coordinator.turns.stopped)
    finally:
        coordinator.release_waiting()
        await server.close()
        await coordinator.close()
    return EXIT_OK


def open_coordinator(
    options: CoordinatorOptions,
    settings: Settings,
    open_store: Callable[[], ReplicaStore],
    surroundings: Surroundings = REAL,
) -> Coordinator:
    """Make a coordinator from its store's contents; damage that is met here is mended first.

    Raises:
        StoreError: The rest of the store isn't enough.
    """
    try:
        return _make_coordinator(options, settings, open_store(), surroundings)
    except StoreDamaged as error:
        # It is noted: opening the store once more looks for whole parts.
        logger.warning("replica=%d %s", options.me, error.args[0])
    return _make_coordinator(options, settings, open_store(), surroundings)


def _make_coordinator(
    options: CoordinatorOptions,
    settings: Settings,
    store: ReplicaStore,
    surroundings: Surroundings,
) -> Coordinator:
    for text in store.repairs:
        logger.warning("replica=%d repaired its store: %s", options.me, text)
    if store.doubts is not None:
        logger.warning(
            "replica=%d acknowledged work may be missing from %r: %s; if that isn't what "
            "you meant to do, keep a copy of %r, or bring back a backup (docs/operations.md, "
            "'When a disk fails')",
            options.me,
            str(store.path),
            store.doubts,
            str(options.data_dir),
        )
    try:
        return Coordinator(options, settings, store, surroundings)
    except StoreDamaged as error:
        store.note_damage(error)
        store.close()
        raise


def _check_members(coordinator: Coordinator) -> None:
    """Refuse a data directory if its cluster's members aren't those of the command line.

    Such a replica would wait for ever for processes that belong to another cluster.
    """
    founding = coordinator.replica.founding
    if founding is None:
        return
    options = coordinator.options
    known = [member.replica for member in founding.members]
    if options.join or options.me not in known or founding.origins:
        return  # It was added later, or the cluster was recovered: --peers isn't about it.
    if known != sorted(options.peers):
        raise SettingsError(
            f"data directory {str(options.data_dir)!r} belongs to replica {options.me} of cluster "
            f"{founding.cluster!r} with the members {_listed(known)}, but --peers names "
            f"{_listed(sorted(options.peers))}",
            hint="name the founding members, or give this replica its own --data-dir",
        )


def _listed(members: list[ReplicaId]) -> str:
    return ", ".join(map(str, members))


def parse_peers(text: str | None, me: ReplicaId, advertise: str) -> dict[ReplicaId, str]:
    """Return the founding members of --peers, such as "1=10.0.0.1:7070,2=10.0.0.2:7070"."""
    if text is None:
        return {me: advertise}
    peers: dict[ReplicaId, str] = {}
    for part in text.split(","):
        member = parse_member(part.strip())
        if member is None:
            raise UsageError(
                f"--peers has {part.strip()!r}, expected ID=HOST:PORT",
                hint="for example 1=10.0.0.1:7070,2=10.0.0.2:7070,3=10.0.0.3:7070",
            )
        replica, address = member
        if replica in peers:
            raise UsageError(f"--peers names replica {replica} twice")
        peers[replica] = address
    if me not in peers:
        raise UsageError(f"--peers doesn't name this replica, {me}")
    if len(set(peers.values())) < len(peers):
        raise UsageError("--peers names an address twice")
    return peers
