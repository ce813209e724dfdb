"""`member list | add | remove | replace`: the coordinators of a running cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tasksprint.asking.cluster import Cluster
from tasksprint.asking.rota import check_replica_id, parse_member
from tasksprint.encoding import encode_json
from tasksprint.errors import EXIT_OK, PeerUnreachable, Refused, UsageError
from tasksprint.ids import ReplicaId
from tasksprint.process.terminal import print_answer, print_plain, table_lines

__all__ = ["add", "list_members", "parse_new", "remove", "replace"]

_POLL_S = 0.1


def list_members(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `member list`."""
    listing = _listing(cluster)
    print_answer(listing, _lines_of(listing), as_json=options.json)
    return EXIT_OK


def add(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `member add`."""
    deadline_s = _deadline_s(options)
    new, address = parse_new(options.new)
    return _change(
        cluster,
        options,
        {"change": "add", "replica": new, "address": address},
        deadline_s,
        lambda listing: _role(listing, new) == "voter",
        f"added replica {new}",
    )


def remove(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `member remove`."""
    deadline_s = _deadline_s(options)
    replica = check_replica_id(options.replica, "replica")
    return _change(
        cluster,
        options,
        {"change": "remove", "replica": replica},
        deadline_s,
        lambda listing: replica in listing["retired"],
        f"removed replica {replica}",
    )


def replace(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `member replace`."""
    deadline_s = _deadline_s(options)
    old = check_replica_id(options.replica, "replica")
    new, address = parse_new(options.new)
    return _change(
        cluster,
        options,
        {"change": "replace", "replica": old, "with": new, "address": address},
        deadline_s,
        lambda listing: _role(listing, new) == "voter" and old in listing["retired"],
        f"replaced replica {old} by {new}",
    )


def _deadline_s(options: argparse.Namespace) -> float:
    timeout_s: float = options.timeout
    if timeout_s < 0:
        raise UsageError(f"--timeout {timeout_s} is below 0")
    return time.monotonic() + timeout_s


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
    # The coordinator that was asked first may be leaving.
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
    print_answer(listing, [what], as_json=options.json)
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


def _lines_of(listing: dict[str, Any]) -> Iterator[str]:
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
    yield from table_lines(heads, rows)
    if listing["retired"]:
        yield f"removed: {', '.join(map(str, listing['retired']))}"
    if not listing["is_settled"]:
        yield "a change is under way"
