"""`upgrade`: raise the rules of the log, once every coordinator runs a release that has them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from tasksprint.asking.cluster import Cluster
from tasksprint.errors import EXIT_OK, PeerUnreachable, Refused, UsageError
from tasksprint.process.terminal import print_answer, table_lines

__all__ = ["upgrade"]

_POLL_S = 0.1
_NOT_FOUND = 404


def upgrade(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `upgrade`."""
    if not options.timeout >= 0:
        raise UsageError(f"--timeout {options.timeout} is below 0")
    deadline_s = time.monotonic() + options.timeout
    found = _ask(cluster, "GET")
    is_refused = bool(found["missing"]) and found["rules"] < found["newest"]
    if not options.dry_run and not is_refused:
        found = _raise(cluster, found, deadline_s)
    print_answer(found, _lines(found), as_json=options.json)
    if is_refused and not options.dry_run:
        _ask(cluster, "POST")  # It says why not.
    return EXIT_OK


def _raise(cluster: Cluster, found: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    """Ask for the rules to be raised; again, while the members are being changed."""
    while found["rules"] < found["newest"]:
        try:
            found = _ask(cluster, "POST")
        except Refused as error:
            if "under way" not in str(error) or time.monotonic() >= deadline_s:
                raise
        if found["rules"] < found["newest"] and time.monotonic() >= deadline_s:
            raise PeerUnreachable(
                f"the rules are still at version {found['rules']}",
                hint="see 'tasksprint upgrade --dry-run'",
            )
        time.sleep(_POLL_S)
    return found


def _ask(cluster: Cluster, method: str) -> dict[str, Any]:
    try:
        # (A follower of a release before 0.3.0 doesn't know that path. It knows this one, and
        # answers who leads.)
        cluster.request("GET", "/v1/members")
        found = cluster.request(method, "/v1/upgrade").json_object()
    except Refused as error:
        if error.status != _NOT_FOUND:
            raise
        raise Refused(
            "the coordinator that leads runs a release before 0.3.0, which can't raise rules",
            hint="'tasksprint status' shows which one it is: replace its process first",
        ) from error
    # The coordinator that was asked first may be stopped next.
    cluster.also_ask([member["address"] for member in found["members"]])
    return found


def _lines(found: dict[str, Any]) -> Iterator[str]:
    heads = ["REPLICA", "ADDRESS", "ROLE", "RELEASE", "RULES", "COMMANDS", "FRAMES"]
    rows = []
    for member in found["members"]:
        speaks = member["speaks"]
        told = ["-"] * 4
        if speaks is not None:
            ranges = [speaks[name] for name in ("rules", "commands", "frames")]
            told = [speaks["release"], *[f"{first} to {last}" for first, last in ranges]]
        role = "leader" if member["is_leader"] else member["role"]
        rows.append([str(member["replica"]), member["address"], role, *told])
    yield from table_lines(heads, rows)
    rules, newest = found["rules"], found["newest"]
    if rules >= newest:
        yield f"the log is at version {rules} of the rules, the newest that the leader has"
        return
    yield f"the log is at version {rules} of the rules, and the leader has version {newest}"
    for missing in found["missing"]:
        yield f"missing: {missing}"
