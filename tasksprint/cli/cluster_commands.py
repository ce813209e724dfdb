"""The commands of a cluster: status, clients, stop, token."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from tasksprint.asking.cluster import Cluster, status_of_coordinator
from tasksprint.asking.rota import parse_addresses
from tasksprint.cli.job_status import print_job_status
from tasksprint.cli.progress import counted, counts_in_words, with_hint
from tasksprint.cli.reaching import key_of
from tasksprint.errors import (
    EXIT_OK,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    TaskSprintError,
    UnprovenAnswer,
    UsageError,
)
from tasksprint.ids import JobId
from tasksprint.net.tokens import Scope, make_token
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.terminal import print_answer, print_plain, table_lines
from tasksprint.release import SILENT

__all__ = ["list_clients", "status", "stop", "token"]

_ELECTIONS_SHOWN = 3
# How long `stop` waits for clients to leave before it stops the coordinators.
_LEAVE_S = 3.0
_GIVE_UP_MS = 2_000


def status(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `status`."""
    as_json: bool = options.json
    if options.job_id is not None:
        return print_job_status(cluster, JobId(options.job_id), as_json=as_json)
    members = _members(cluster, parse_addresses(options.coordinators))
    if not as_json:  # First of all: the rest needs a majority of them.
        print_answer(members, _lines_of_members(members), as_json=False)
        sys.stdout.flush()
    clients = cluster.request("GET", "/v1/clients", give_up_ms=_GIVE_UP_MS).json()
    jobs = cluster.request("GET", "/v1/jobs", give_up_ms=_GIVE_UP_MS).json()
    told = {"coordinators": members, "clients": clients, "jobs": jobs}
    print_answer(told, _lines_of_work(members, clients, jobs), as_json=as_json)
    return EXIT_OK


def _lines_of_work(
    members: dict[str, dict[str, Any]], clients: list[Any], jobs: list[Any]
) -> Iterator[str]:
    alive = [client for client in clients if client["state"] == "alive"]
    nodes = sum(client["slots"] for client in alive)
    known = counted(len(clients), "client")
    yield f"{len(alive)} of {known} alive, with {counted(nodes, 'node')}"
    for member in members.values():
        for job, status in member.get("schedulers", {}).items():
            yield f"job {job}, scheduler on replica {member['replica']}: {status['text']}"
    running = [job for job in jobs if job["state"] == "running"]
    for job in running:
        counts = counts_in_words(job["tasks"], job["obstacle"])
        yield f"job {job['job']} {job['name']!r}: {counts}"
        if job["obstacle"]:
            yield f"job {job['job']} waits: {with_hint(job['obstacle'])}"
        if job["long_run"]:
            yield f"job {job['job']}: {with_hint(job['long_run'])}"
        for warning in job["warnings"]:
            yield f"job {job['job']} warning: {warning}"
    yield f"{len(running)} of {counted(len(jobs), 'job')} running"


def _lines_of_members(members: dict[str, dict[str, Any]]) -> Iterator[str]:
    heads = ["REPLICA", "ADDRESS", "ROLE", "BALLOT", "CHOSEN", "APPLIED", "LAG"]
    heads += ["ENTRIES", "FILES", "WRITES"]
    here = [member for member in members.values() if "error" not in member]
    chosen = max([member["consensus"]["chosen_end"] - 1 for member in here], default=0)
    rows = []
    for name, member in sorted(members.items()):
        if "error" in member:
            rows.append([name, "-", "unreachable", *["-"] * (len(heads) - 4), member["error"]])
        else:
            rows.append([name, *_member_cells(member, chosen)])
    yield from table_lines(heads, rows)
    for name, member in sorted(members.items()):
        space = member.get("free_space") or {"level": "plenty"}
        if space["level"] != "plenty":
            free = f"{space['free_bytes'] / 1e6:.0f} MB"
            yield f"replica {name}: {space['level']} disk space, {free} are free"
    releases = {name: _release_of(member) for name, member in sorted(members.items())}
    if len({release for release in releases.values() if release}) > 1:
        listed = ", ".join(f"replica {name} {said}" for name, said in releases.items() if said)
        yield f"releases: {listed}; see 'tasksprint upgrade'"
    elections = [
        (election["wall_ms"], election)
        for member in here
        for election in member["elections"]
        if election["cause"] is not None  # The elected one says why.
    ]
    for wall_ms, election in sorted(elections, key=lambda pair: pair[0])[-_ELECTIONS_SHOWN:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ms / 1000))
        ballot = "{}.{}".format(*election["ballot"])
        replica, cause = election["leader"], election["cause"]
        yield f"{when} replica {replica} was elected with ballot {ballot}: it {cause}"


def _release_of(member: dict[str, Any]) -> str:
    """Return the release of a coordinator; "" for one that doesn't answer."""
    speaks = member.get("speaks", {"release": SILENT.release})
    return "" if "error" in member else str(speaks["release"])


def _member_cells(member: dict[str, Any], chosen: int) -> list[str]:
    """Return a replica's row of `status`; `chosen`: the last slot that anyone knows chosen."""
    consensus, files, writes = member["consensus"], member["files"], member["writes"]
    applied = member["applied_slot"]
    kept = consensus["chosen_end"] + consensus["open_slots"] - consensus["log_start"]
    times = "-"
    if writes["p50_s"] is not None:
        times = f"{1000 * writes['p50_s']:.2f} ms, p99 {1000 * writes['p99_s']:.2f} ms"
    return [
        member["address"],
        consensus["role"],
        "{}.{}".format(*consensus["ballot"]),
        str(consensus["chosen_end"] - 1),
        str(applied),
        str(max(chosen - applied, 0)),
        str(kept),
        f"{(files['database_bytes'] + files['wal_bytes']) / 1e6:.1f} MB",
        times,
    ]


def _members(cluster: Cluster, known: list[str]) -> dict[str, dict[str, Any]]:
    """Return the status of every coordinator, by replica id."""
    found: dict[str, dict[str, Any]] = {}
    failure: TaskSprintError | None = None
    for address in known:
        try:
            addresses = status_of_coordinator(cluster, address)["members"]
            break
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            failure = error
    else:
        if isinstance(failure, (Refused, UnprovenAnswer)):
            raise failure
        raise PeerUnreachable(
            f"no coordinator answers at {', '.join(known)}: {failure}",
            hint="start one with 'tasksprint coordinator', or name others with --coordinators",
        )
    for replica, address in addresses.items():
        try:
            found[replica] = status_of_coordinator(cluster, address)
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            found[replica] = {"replica": int(replica), "address": address, "error": str(error)}
    return found


def stop(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `stop`."""
    members = _members(cluster, parse_addresses(options.coordinators))
    coordinators = [member["address"] for member in members.values() if "error" not in member]
    found = _living_clients(cluster)
    clients = found or []
    stopped = _stop_each(cluster, clients)
    # They leave in good order while somebody is there to hear it.
    deadline_s = time.monotonic() + _LEAVE_S
    while clients and _living_clients(cluster) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    stopped += _stop_each(cluster, coordinators)
    total = len(clients) + len(coordinators)
    print_plain(f"stopped {stopped} of {counted(total, 'process', 'processes')}")
    if found is None:
        raise PeerUnreachable(
            "no coordinator leads, so the clients aren't known; end those that still run by hand"
        )
    return EXIT_OK if stopped == total else PeerUnreachable.exit_code


def _living_clients(cluster: Cluster) -> list[str] | None:
    """Return the addresses of the clients that can be asked to stop; None: nobody knows."""
    try:
        clients = cluster.request("GET", "/v1/clients", give_up_ms=_GIVE_UP_MS).json()
    except PeerUnreachable:
        return None  # No quorum: all reachable ones are stopped all the same.
    return [one["address"] for one in clients if one["state"] == "alive" and one["address"]]


def _stop_each(cluster: Cluster, addresses: list[str]) -> int:
    stopped = 0
    for address in addresses:
        try:
            cluster.direct(address, "POST", "/v1/stop", repeatable=False)
            stopped += 1
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            print_plain(f"tasksprint: {address} didn't stop: {error}", file=sys.stderr)
    return stopped


def list_clients(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `clients`."""
    clients = cluster.request("GET", "/v1/clients").json()
    print_answer(clients, _lines_of_clients(clients), as_json=options.json)
    return EXIT_OK


def _lines_of_clients(clients: list[Any]) -> Iterator[str]:
    rows = [
        [
            str(client["cid"]),
            client["hostname"],
            client["address"] or "-",
            client["state"],
            str(client["slots"]),
            str(client["assigned"]),
            ", ".join(
                name if count == 1 else f"{name} x{count}"
                for name, count in client["attached"].items()
            )
            or "-",
        ]
        for client in clients
    ]
    heads = ["CLIENT", "HOST", "ADDRESS", "STATE", "NODES", "ASSIGNED", "ATTACHED"]
    yield from table_lines(heads, rows)
    for client in clients:
        if client["complaint"] is not None:
            yield f"client {client['cid']} disregarded an answer: {client['complaint']}"


def token(options: argparse.Namespace) -> int:
    """Carry out `token`."""
    settings_from_environment()  # A wrong setting fails here, as in each command.
    key = key_of(options)
    if options.minutes < 1:
        raise UsageError(f"--minutes {options.minutes} is not at least 1")
    print_plain(make_token(key, Scope(options.scope), options.minutes * 60))
    return EXIT_OK
