"""`python -m tests.torture --minutes M`: real processes under load, killed, stopped and cut off.

Five coordinators, two clients, a job submitted every second, members that change, and what
`faults.py` has in store. At the end all is healed. Exit code 0 says that all of this holds:

- No acknowledged job is lost: each id that anybody was told is in every mirror and in the
  list at the end, its job has ended, and there is no job that nobody asked for.
- No job is made twice: a request that was repeated has one id.
- No job is run twice: it started the tasks of one run and no more, its scheduler was told of
  each once, over all its restarts and replays (it counts, and the mirrors' events, read while
  the run lasts, say the same), and it ended once: cancelled by somebody, or finished with
  the one right result, or, where chance decides, with one that all of its tasks agree on.
  That a node runs a task's program once is not claimed: what a lost client was at is done
  again, and one attempt counts.
- The history of all people is linearizable: submits, cancels, statuses, results and lists
  of jobs (`tests/linearizability/job_store.py`), changes and lists of members
  (`tests/linearizability/member_list.py`).
- All members have applied the same slot and have the same digest, and their mirrors name the
  same jobs. There are as many voters as at first; who was removed has stopped, unless it lost
  its disk and nobody is left who knows it: then it belongs to no cluster.
- No process ended by itself, wrote a traceback, ended with an error when asked to end, or
  stayed behind.
- After a run of 5 minutes or more: a leader that is stopped for 60 s under load declares no
  client dead, nor does its successor.
"""

from __future__ import annotations

import argparse
import json
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
from tests.linearizability.member_list import check_members
from tests.torture.audit import Audit
from tests.torture.faults import Faults, plan
from tests.torture.findings import check_files, settle
from tests.torture.load import Load
from tests.torture.machines import CLIENT_HOST, Machines, copy_of_checkout, number_of
from tests.torture.membership import Operator
from tests.torture.network import Network, why_not
from tests.torture.report import report

__all__ = ["main"]

_JOB = Path(__file__).parent / "job"
_START_LIMIT_S = 30.0
_SETTLE_S = 90.0
_TOLD_MAX = 20
# How many slots each coordinator keeps behind its mirror: so few that who was away for
# seconds needs a copy of the mirror, or so many that nobody does.
_LOG_TAILS = (20, 200, 20_000)
# More than a client may be silent for: a leader that wakes would declare it dead by then.
_AFTER_STALL_S = 7.0


def main() -> int:
    """Run the torture as the command line says."""
    options = _parse()
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="tasksprint-torture-"))
    what = f"{options.minutes:g} min with seed {options.seed}"
    try:
        wrong = _run(options, folder)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        print("interrupted", file=sys.stderr)
        return 130
    except BaseException:
        print(f"FAILED: {what}: the torture itself broke; files are in {folder}", flush=True)
        raise
    if wrong:
        for text in wrong[:_TOLD_MAX]:
            print(f"WRONG: {text}")
        print(
            f"FAILED: {what}: {len(wrong)} things are wrong, the first: "
            f"{wrong[0].splitlines()[0]:.200}; files are in {folder}"
        )
        return 1
    if options.keep:
        print(f"files are in {folder}")
    else:
        shutil.rmtree(folder)
    print(f"HOLDS: {what}: no job lost or run twice, linearizable, one digest")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    tail = random.choice(_LOG_TAILS)
    reason = "asked for" if options.no_network else why_not()
    tell(
        f"seed {options.seed}, {options.minutes:g} min, {options.coordinators} coordinators, "
        f"{options.clients} clients, {tail} slots of the log kept, "
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
            command = copy_of_checkout(folder / "code")
        machines = stack.enter_context(
            Machines(
                folder / "cluster",
                command=command,
                coordinators=options.coordinators,
                clients=options.clients,
                nodes=1,
                network=network,
                environment={"TASKSPRINT_SETTINGS": json.dumps({"log_tail_slots": tail})},
            )
        )
        machines.start_all()
        manifest = read_job(_JOB)
        archive, _ = pack(_JOB, archive_bytes_max=Settings().archive_bytes_max)
        _upload(machines, archive)
        load = Load(
            machines.member_addresses,
            machines.key,
            manifest,
            archive,
            Random(random.random()),
            submits_per_s=options.submits,
        )
        operator, audit = Operator(machines, load, tell), Audit()

        def progress() -> str:
            return (
                f"... {len(load.acknowledged)} of {len(load.requests)} jobs acknowledged, "
                f"longest time without {load.longest_wait_s():.1f} s, "
                f"{operator.changes} members replaced"
            )

        what = plan(options.seed, seconds, has_network=network is not None)
        faults = Faults(machines, what, operator, tell, progress)
        stack.callback(faults.heal)
        stack.callback(load.stop)
        load.start()
        load.run(lambda chance: audit.run(machines, lambda: load.is_over, chance))
        faults.run(seconds)
        faults.heal()
        tell("healed")
        wrong = list(faults.wrong)

        def see_who_ended() -> None:
            wrong.extend(each for each in machines.ended_wrongly() if each not in wrong)

        # Each time before whoever is down is started again.
        see_who_ended()
        if options.stall and not wrong:
            wrong += _stall(machines, options.stall, tell)
        load.stop()
        faults.take_changes()
        see_who_ended()
        if not wrong:
            machines.start_all()
            limit_s = _SETTLE_S + seconds / 2
            wrong += settle(machines, load, random, tell, limit_s=limit_s, operator=operator)
        wrong += load.wrong
        checked_s = time.monotonic()
        wrong += check_history(load.history)
        wrong += check_members(load.history, map(number_of, machines.founders))
        tell(
            f"{len(load.history)} operations checked in {time.monotonic() - checked_s:.1f} s: "
            + ("not all is well" if wrong else "linearizable")
        )
        see_who_ended()
        codes = machines.end_all()
        wrong += [f"{name} ended with exit code {code}" for name, code in codes.items() if code]
        logs = {name: machines.log(name) for name in machines.processes}
        wrong += [f"{name} wrote a traceback" for name in logs if "Traceback" in logs[name]]
        if not wrong:
            wrong += check_files(machines, load.acknowledged, audit)
            wrong += [f"a process stayed behind: {each}" for each in machines.left_over()]
        for line in report(machines, load, faults, operator, audit):
            print(line)
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
        states = machines.client_states()
    leader = machines.leader()
    if leader is None:
        return ["nobody leads after healing"]
    ends = {name: len(machines.log(name)) for name in machines.coordinators}
    tell(f"{leader}, which leads, is stopped for {seconds:g} s")
    machines.stop(leader)
    time.sleep(seconds)  # Real time: the fault is that it passes without the leader.
    machines.resume(leader)
    time.sleep(_AFTER_STALL_S)  # Real time: a client would be declared dead within it.
    lines = [line for name in ends for line in machines.log(name)[ends[name] :].splitlines()]
    return [f"a client was declared dead: {line}" for line in lines if " dead: " in line]


def _upload(machines: Machines, archive: bytes) -> None:
    """Hand in the job's program, once the cluster is up."""
    deadline_s = time.monotonic() + _START_LIMIT_S
    cluster = machines.connect()
    while True:
        try:
            cluster.request("POST", "/v1/programs", body=archive)
            return
        except PeerUnreachable:
            if time.monotonic() > deadline_s:
                raise


if __name__ == "__main__":
    sys.exit(main())
