"""`member list | add | remove | replace`: the coordinators of a running cluster."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from tasksprint.asking.cluster import Cluster
from tasksprint.asking.leader import check_replica_id, parse_member
from tasksprint.encoding import encode_json
from tasksprint.errors import EXIT_OK, PeerUnreachable, Refused, UsageError
from tasksprint.ids import ReplicaId
from tasksprint.process.terminal import print_json, print_plain, print_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["parse_new", "run_member_command"]

_POLL_S = 0.1


def run_member_command(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `member ACTION`."""
    if options.action == "list":
        return _show(_listing(cluster), options)
    if options.timeout < 0:
        raise UsageError(f"--timeout {options.timeout} is below 0")
    deadline_s = time.monotonic() + options.timeout
    if options.action != "add":
        check_replica_id(options.replica, "replica")
    if options.action == "remove":
        replica = options.replica
        body: dict[str, Any] = {"change": "remove", "replica": replica}
        return _change(
            cluster,
            options,
            body,
            deadline_s,
            lambda listing: replica in listing["retired"],
            f"removed replica {replica}",
        )
    new, address = parse_new(options.new)
    if options.action == "add":
        body = {"change": "add", "replica": new, "address": address}
        return _change(
            cluster,
            options,
            body,
            deadline_s,
            lambda listing: _role(listing, new) == "voter",
            f"added replica {new}",
        )
    old = options.replica
    body = {"change": "replace", "replica": old, "with": new, "address": address}
    return _change(
        cluster,
        options,
        body,
        deadline_s,
        lambda listing: _role(listing, new) == "voter" and old in listing["retired"],
        f"replaced replica {old} by {new}",
    )


def parse_new(text: str) -> tuple[ReplicaId, str]:
    """Return the id and address of "4=10.0.0.4:7070"."""
    member = parse_member(text)
    if member is None:
        raise UsageError(
            f"new member {text!r} is not ID=HOST:PORT", hint="for example 4=10.0.0.4:7070"
        )
    return member


def _role(listing: dict[str, Any], replica: int) -> str | None:
    for member in listing["members"]:
        if member["replica"] == replica:
            return str(member["role"])
    return None


def _listing(cluster: Cluster) -> dict[str, Any]:
    listing = cluster.request("GET", "/v1/members").json()
    assert isinstance(listing, dict)
    # Whoever was asked first may be leaving.
    cluster.also_ask([member["address"] for member in listing["members"]])
    return listing


def _change(
    cluster: Cluster,
    options: argparse.Namespace,
    body: dict[str, Any],
    deadline_s: float,
    is_done: Callable[[dict[str, Any]], bool],
    what: str,
) -> int:
    listing = _listing(cluster)
    if not is_done(listing):
        _ask(cluster, body, deadline_s)
    told = ""
    while not (is_done(listing := _listing(cluster)) and listing["is_settled"]):
        state = _progress(listing)
        if state != told:
            print_plain(state, file=sys.stderr)
            told = state
        if time.monotonic() >= deadline_s:
            raise PeerUnreachable(
                f"not done within {options.timeout:g} s, but under way: {state}",
                hint="it goes on by itself; see 'tasksprint member list'",
            )
        time.sleep(_POLL_S)
    if options.json:
        return _show(listing, options)
    print_plain(what)
    return EXIT_OK


def _ask(cluster: Cluster, body: dict[str, Any], deadline_s: float) -> None:
    """Ask for the change; again, while another one is under way."""
    while True:
        try:
            cluster.request("POST", "/v1/members", body=encode_json(body))
            return
        except Refused as error:
            if "under way" not in str(error) or time.monotonic() >= deadline_s:
                raise
            time.sleep(_POLL_S)


def _progress(listing: dict[str, Any]) -> str:
    parts: list[str] = []
    for member in listing["members"]:
        if member["role"] == "learner":
            end = member["chosen_end"] or 1
            parts.append(
                f"replica {member['replica']} learns: {end - 1} of {listing['chosen_end'] - 1}"
            )
        if member["is_leaving"]:
            parts.append(f"replica {member['replica']} is to leave")
    return "; ".join(parts) or "the new membership is about to govern"


def _show(listing: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        print_json(listing)
        return EXIT_OK
    heads = ["REPLICA", "ADDRESS", "ROLE", "CHOSEN", "HEARD"]
    rows = []
    for member in listing["members"]:
        role = "leader" if member["is_leader"] else member["role"]
        if member["is_leaving"]:
            role += ", to leave"
        if member["replaces"] is not None and member["role"] == "learner":
            role += f", to replace {member['replaces']}"
        heard_ms, end = member["heard_ms"], member["chosen_end"]
        rows.append(
            [
                str(member["replica"]),
                member["address"],
                role,
                "-" if end is None else str(end - 1),
                "never" if heard_ms is None else f"{heard_ms / 1000:.1f} s ago",
            ]
        )
    print_table(heads, rows)
    if listing["retired"]:
        print_plain(f"removed: {', '.join(map(str, listing['retired']))}")
    if not listing["is_settled"]:
        print_plain("a change is under way")
    return EXIT_OK
