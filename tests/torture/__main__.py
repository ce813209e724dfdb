"""`python -m tests.torture --minutes M`: real processes under load, killed, stopped and cut off.

At the end everything is healed, and these must hold, or the exit code isn't 0: no
acknowledged job is lost and none is made twice; every job ends, with the result that its
seed gives; each task is told once; the histories of all people are linearizable; all replicas
have applied the same slot and have the same digest; no process ended by itself or stayed behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import FrameType

from tasksprint.errors import PeerUnreachable
from tasksprint.process.job_directory import pack, read_job
from tasksprint.settings import Settings
from tests.linearizability.job_store import check_history
from tests.torture.faults import Faults, plan
from tests.torture.findings import check_files, settle
from tests.torture.load import Load
from tests.torture.machines import CLIENT_HOST, Machines, copy_of_checkout
from tests.torture.network import Network, why_not

__all__ = ["main"]

_JOB = Path(__file__).parent / "job"
_START_LIMIT_S = 30.0
# More than a client may be silent for: a leader that wakes would declare it dead by then.
_AFTER_STALL_S = 7.0


def main() -> int:
    """Run the torture as the command line says."""
    options = _parse()
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="tasksprint-torture-"))
    try:
        wrong = _run(options, folder)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        print("interrupted", file=sys.stderr)
        return 130
    for text in wrong:
        print(f"WRONG: {text}")
    if wrong:
        print(f"files are in {folder}; again with --seed {options.seed}")
        return 1
    if options.keep:
        print(f"files are in {folder}")
    else:
        shutil.rmtree(folder)
    print("all of it holds")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="of the plan; default: by chance")
    parser.add_argument("--coordinators", type=int, default=5)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--submits", type=float, default=1.0, help="jobs a second (default 1)")
    parser.add_argument(
        "--stall",
        type=float,
        default=None,
        metavar="S",
        help="afterwards stop the leader for so long, and see that no client is declared dead "
        "(default: 60 if the run takes 5 minutes or more)",
    )
    parser.add_argument("--archive", help="a tasksprint.pyz; default: a copy of the checkout")
    parser.add_argument("--no-network", action="store_true", help="no namespaces, no partitions")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    if options.stall is None:
        options.stall = 60.0 if options.minutes >= 5 else 0.0
    return options


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, folder: Path) -> list[str]:
    """Torture one cluster; return what is wrong."""
    began_s = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - began_s:6.1f}] {text}", flush=True)

    random = Random(options.seed)
    seconds = options.minutes * 60
    reason = "asked for" if options.no_network else why_not()
    tell(
        f"seed {options.seed}, {options.minutes:g} min, {options.coordinators} coordinators, "
        f"{options.clients} clients, "
        + ("partitions too" if reason is None else f"no partitions: {reason}")
    )
    with ExitStack() as stack:
        network = None
        if reason is None:
            hosts = [*range(1, options.coordinators + 1)]
            hosts += [CLIENT_HOST + n for n in range(1, options.clients + 1)]
            network = stack.enter_context(Network(hosts))
        if options.archive:
            command = [sys.executable, str(Path(options.archive).resolve())]
        else:
            (folder / "code").mkdir()
            command = copy_of_checkout(folder / "code")
        machines = stack.enter_context(
            Machines(
                folder / "cluster",
                command=command,
                coordinators=options.coordinators,
                clients=options.clients,
                nodes=1,
                network=network,
            )
        )
        machines.start_all()
        manifest = read_job(_JOB)
        archive, _ = pack(_JOB, archive_bytes_max=Settings().archive_bytes_max)
        program = _upload(machines, archive)
        load = Load(
            list(machines.addresses.values()),
            machines.key,
            manifest,
            program,
            Random(random.random()),
            submits_per_s=options.submits,
        )
        faults = Faults(
            machines, plan(options.seed, seconds, has_network=network is not None), tell
        )
        stack.callback(faults.heal)
        stack.callback(load.stop)
        load.start()
        faults.run(seconds)
        faults.heal()
        wrong = list(faults.wrong)
        tell(f"healed; {', '.join(f'{n} {what}' for what, n in sorted(faults.counts.items()))}")
        if options.stall and not wrong:
            wrong += _stall(machines, options.stall, tell)
        load.stop()
        if not wrong:
            machines.start_all()
            wrong += settle(machines, load, random, tell, limit_s=60 + seconds / 2)
        tell(f"operations: {', '.join(f'{n} {what}' for what, n in sorted(load.counts.items()))}")
        checked_s = time.monotonic()
        wrong += load.wrong
        wrong += check_history(load.history)
        tell(f"history checked in {time.monotonic() - checked_s:.1f} s")
        codes = machines.end_all()
        wrong += [f"{name} ended with exit code {code}" for name, code in codes.items() if code]
        logs = {name: machines.log(name) for name in codes}
        wrong += [f"{name} wrote a traceback" for name in logs if "Traceback" in logs[name]]
        if not wrong:
            wrong += check_files(machines, load.acknowledged)
            wrong += [f"a process stayed behind: {each}" for each in machines.left_over()]
        if wrong:
            lines = [each.describe() for each in sorted(load.history, key=lambda o: o.invoked)]
            (folder / "history.txt").write_text("\n".join(lines), encoding="utf-8")
        return wrong


def _stall(machines: Machines, seconds: float, tell: Callable[[str], None]) -> list[str]:
    """Stop the leader for long; no client may be declared dead by a judge that was stalled."""
    machines.start_all()
    deadline_s = time.monotonic() + _START_LIMIT_S
    states: list[str] = []
    while states != ["alive"] * len(machines.clients):
        if time.monotonic() > deadline_s:
            return [f"the clients are {states} {_START_LIMIT_S:.0f} s after healing"]
        time.sleep(0.2)
        states = _client_states(machines)
    leader = machines.leader()
    if leader is None:
        return ["nobody leads after healing"]
    ends = {name: len(machines.log(name)) for name in machines.coordinators}
    tell(f"{leader}, which leads, is stopped for {seconds:g} s")
    machines.stop(leader)
    time.sleep(seconds)
    machines.resume(leader)
    time.sleep(_AFTER_STALL_S)
    lines = [line for name in ends for line in machines.log(name)[ends[name] :].splitlines()]
    return [f"a client was declared dead: {line}" for line in lines if " dead: " in line]


def _client_states(machines: Machines) -> list[str]:
    try:
        found = machines.connect().request("GET", "/v1/clients", give_up_ms=300).json()
    except PeerUnreachable:
        return []
    return [str(client["state"]) for client in found]


def _upload(machines: Machines, archive: bytes) -> str:
    """Hand in the job's program, once the cluster is up."""
    deadline_s = time.monotonic() + _START_LIMIT_S
    cluster = machines.connect()
    while True:
        try:
            digest = cluster.request("POST", "/v1/programs", body=archive).json()["digest"]
        except PeerUnreachable:
            if time.monotonic() > deadline_s:
                raise
        else:
            assert isinstance(digest, str)
            return digest


if __name__ == "__main__":
    sys.exit(main())
