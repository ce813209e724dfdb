"""Small commands through the log: rate and latency, by the number of submitters.

Each submitter is a client that has joined, with one connection to the leader and one request
under way: `POST /v1/commands` with a report of 256 bytes. It is answered once it is durable
on two of three replicas and applied; it changes that client's row in the table `senders`.
Requests are signed before the counted time: real clients sign on machines of their own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from bench import peer_etcd, peer_pysyncobj
from bench.http_load import closed_loop
from tasksprint.asking.cluster import Cluster
from tasksprint.cli.run import PrivateCluster
from tasksprint.coordination.commands import Failure, JoinClient, Report, encode_command
from tasksprint.encoding import value_digest
from tasksprint.ids import ClientId, Incarnation, JobId, TaskId
from tasksprint.net.addresses import parse_address
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.keys import ClusterKey, load_key
from tasksprint.settings import Settings

__all__ = ["COMMAND_BYTES", "measure"]

COMMAND_BYTES = 256
_WARM_UP_S = 1.0
_PATH = "/v1/commands"
# Requests signed ahead for each second; the rest is signed under way.
_SIGNED_PER_S = 12_000
_JOB = JobId(999_999_999)  # there is none


def measure(submitters: Sequence[int], seconds: float, *, peers: bool = True) -> dict[str, Any]:
    """Return the figures of ours, and of the peers that are installed."""
    figures: dict[str, Any] = {
        "command_bytes": COMMAND_BYTES,
        "seconds": seconds,
        "load_before": round(os.getloadavg()[0], 2),
        "submitters": {str(count): _tasksprint(count, seconds) for count in submitters},
    }
    if peers:
        figures["etcd"] = _etcd(submitters, seconds)
        figures["pysyncobj"] = _pysyncobj(submitters, seconds)
    return figures


def _tasksprint(count: int, seconds: float) -> dict[str, float]:
    with PrivateCluster(coordinators=3, clients=0, nodes=1) as private:
        cluster = private.connect(Settings())
        leader = _leader(cluster, private.addresses)
        address = private.addresses[leader]
        incarnation = Incarnation(f"{count:016x}")
        requests = []
        for number in range(count):
            join = JoinClient(f"{number:032x}", incarnation, None, "bench", 1)
            reply = cluster.request("POST", _PATH, body=encode_command(join)).json()
            # A key object of its own: to the server each client is a sender of its own. It
            # must hear the server's life before it can sign for it.
            key = load_key(private.directory / "key")
            request_blocking(address, "GET", "/healthz", key=key, settings=Settings())
            reports = _reports(key, address, ClientId(reply["cid"]), incarnation)
            ahead = int(_SIGNED_PER_S * (seconds + _WARM_UP_S) / count)
            requests.append(itertools.chain(list(itertools.islice(reports, ahead)), reports))
        names = [f"coordinator-{index + 1}" for index in range(3)]
        names.insert(0, names.pop(leader))
        watch = _CpuWatch([private.pid(name) for name in names])
        host, port = parse_address(address)
        load = closed_loop(
            (host, port), requests, seconds=seconds, warm_up_s=_WARM_UP_S, counted=watch
        )
    answered = len(load.latencies_ns)
    return {
        **load.figures(),
        "leader_us": round(watch.used_us[0] / answered, 1),
        "followers_us": round(sum(watch.used_us[1:]) / answered, 1),
    }


def _leader(cluster: Cluster, addresses: list[str]) -> int:
    for _ in range(300):
        found = [cluster.direct(address, "GET", "/v1/status").json() for address in addresses]
        for index, status in enumerate(found):
            if status["consensus"]["role"] == "leader":
                return index
    raise SystemExit("no coordinator leads")


def _reports(
    key: ClusterKey, address: str, cid: ClientId, incarnation: Incarnation
) -> Iterator[bytes]:
    """Yield the signed requests of one client, each with a new number."""
    for number in itertools.count(1):
        command = _report(cid, incarnation, number, "x")
        command = _report(cid, incarnation, number, "x" * (COMMAND_BYTES + 1 - len(command)))
        signed = key.sign("POST", _PATH, address, body=value_digest(command)).authorization
        head = (
            f"POST {_PATH} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {signed}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(command)}\r\n\r\n"
        )
        yield head.encode() + command


def _report(cid: ClientId, incarnation: Incarnation, number: int, error: str) -> bytes:
    failure = Failure(_JOB, TaskId(0), 1, error, fatal=False)
    return encode_command(Report(cid, incarnation, number, number, failures=(failure,)))


class _CpuWatch:
    """Processor time of some processes over the counted time, user and system."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self.used_us = [0.0] * len(pids)

    def __call__(self, begins: bool) -> None:
        for index, process in enumerate(self._processes):
            times = process.cpu_times()
            now_us = 1e6 * (times.user + times.system)
            self.used_us[index] = now_us if begins else now_us - self.used_us[index]


def _etcd(submitters: Sequence[int], seconds: float) -> dict[str, Any]:
    command = peer_etcd.etcd_command()
    if command is None:
        return {"submitters": None, "note": peer_etcd.MISSING}
    figures: dict[str, Any] = {}
    for count in submitters:
        with peer_etcd.Etcd(command) as cluster:
            leader = cluster.steady_leader()
            watch = _CpuWatch(cluster.pids)
            prepared = [peer_etcd.put_request(f"k{number:09d}") for number in range(20_000)]
            shared = itertools.cycle(prepared)
            load = closed_loop(
                ("127.0.0.1", cluster.ports[leader]),
                [shared] * count,
                seconds=seconds,
                warm_up_s=_WARM_UP_S,
                counted=watch,
            )
        figures[str(count)] = {
            **load.figures(),
            "members_us": round(sum(watch.used_us) / len(load.latencies_ns), 1),
        }
    return {"submitters": figures}


def _pysyncobj(submitters: Sequence[int], seconds: float) -> dict[str, Any]:
    python = peer_pysyncobj.pysyncobj_python()
    if python is None:
        return {"submitters": None, "note": peer_pysyncobj.MISSING}
    return {
        "submitters": _each(python, "batched", submitters, seconds),
        "direct": _each(python, "direct", submitters, seconds),
        "note": "submitters inside the leader's process; its journal is never synced to disk",
    }


def _each(python: str, mode: str, submitters: Sequence[int], seconds: float) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for count in submitters:
        with peer_pysyncobj.PySyncObj(python, mode) as cluster:
            figures[str(count)] = cluster.closed_loop(count, seconds, _WARM_UP_S)
    return figures
