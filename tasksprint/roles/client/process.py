"""`client`: starts one client process, and stops it in good order."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tasksprint.asking.rota import parse_addresses
from tasksprint.errors import EXIT_OK, Refused, UnprovenAnswer, UsageError
from tasksprint.net.addresses import parse_address
from tasksprint.net.gate import Gate
from tasksprint.net.http_server import HttpServer
from tasksprint.net.keys import ClusterKey, find_key_file, open_key
from tasksprint.net.own_key import note_own_key, own_key_hint
from tasksprint.process.attach import register_client, socket_path
from tasksprint.process.clock import wall_ms
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.free_space import FreeSpace
from tasksprint.process.open_files import fit_client, raise_limit
from tasksprint.process.program import programs_in_cgroups
from tasksprint.process.resources import measure
from tasksprint.roles.client.client import Client
from tasksprint.roles.client.ports import logger
from tasksprint.roles.client.surroundings import ClientOptions
from tasksprint.roles.loop_watch import watch_loop
from tasksprint.roles.whole_process import begin_process, data_directory, wait_for_end
from tasksprint.store.result_store import ResultStore

__all__ = ["run_role"]

_NODES_MAX = 1_000

def run_role(options: argparse.Namespace) -> int:
    """Run one client until it is told to stop."""
    state = begin_process()
    key_file, _ = find_key_file(options.key_file, state_dir=state)
    was_there = key_file.exists()
    key = open_key(options.key_file, state_dir=state, may_create=True)
    if not was_there:
        note_own_key(key_file)
    coordinators = parse_addresses(options.coordinators)
    _, port = parse_address(options.listen)
    advertised: list[str] = options.advertise or []
    for address in advertised:
        parse_address(address)
    if options.nodes is not None and not 1 <= options.nodes <= _NODES_MAX:
        raise UsageError(f"--nodes {options.nodes} is not from 1 to {_NODES_MAX}")
    resources = measure(options.nodes)
    logger.info("%s", resources.how)
    name = f"client-{port}" if port else "client"
    data_dir = data_directory(options.data_dir, state, name)
    try:
        with programs_in_cgroups():
            return asyncio.run(
                _serve(
                    coordinators,
                    key,
                    data_dir,
                    resources.nodes,
                    listen=options.listen,
                    advertised=advertised,
                    state=state,
                )
            )
    except UnprovenAnswer as error:
        # (So a client ends only at its first start, by its key.)
        if not (hint := own_key_hint(key_file)):
            raise
        raise Refused(f"{error}: {hint}") from error


async def _serve(
    coordinators: list[str],
    key: ClusterKey,
    data_dir: Path,
    capacity: int,
    *,
    listen: str,
    advertised: list[str],
    state: Path,
) -> int:
    watch_loop()
    settings, lowered = fit_client(settings_from_environment(), raise_limit(), nodes=capacity)
    if lowered is not None:
        logger.warning("%s", lowered)
    FreeSpace(settings, data_dir).require("client")
    store = ResultStore.open(data_dir, now_ms=wall_ms(), settings=settings)
    gate = Gate(key, addresses=advertised)
    client = Client(ClientOptions(coordinators, data_dir, key, capacity), settings, store)
    asyncio.get_running_loop().set_exception_handler(client.bugs.handle)
    server = HttpServer(client.router, gate, settings, bugs=client.bugs)
    registered: Path | None = None
    try:
        address = await server.listen(listen)
        client.address = advertised[0] if advertised else address
        logger.info("listens on %s, data in %s", address, data_dir)
        await client.start()
        # Only once it listens: before, others would take it for a killed one.
        registered = register_client(state, data_dir, socket_path(data_dir))
        await wait_for_end(client.stopped)
    finally:
        if registered is not None:
            registered.unlink(missing_ok=True)
        await server.close()
        await client.close()
    return EXIT_OK
