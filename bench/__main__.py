"""`python -m bench`: what TaskSprint costs here, on real processes.

    python -m bench noop --tasks 10000
    python -m bench noop --idle-jobs 1000 --idle-clients 1000
    python -m bench chain --links 500
    python -m bench commit --submitters 1,64,256
    python -m bench failover --kills 20
    python -m bench restart --finished 1000000

Each starts a private cluster, measures, and prints the figures (`--json`: one object). `noop` and
`chain` warm it up with a small job, `commit` with a second of load. Nothing is switched off
for them: commands are durable before they are acknowledged, results before they are reported.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench import commit, failover, idle, restart, throughput


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)

    sub = commands.add_parser("noop", help="independent tasks that do nothing, per second")
    sub.add_argument("--tasks", type=int, default=10_000)
    sub.add_argument("--idle-jobs", type=int, default=0, help="that wait beside it")
    sub.add_argument("--idle-clients", type=int, default=0, help="simulated, without slots")
    sub.set_defaults(measure=_noop)
    _add_shape(sub)
    sub = commands.add_parser("chain", help="dependent tasks, ms a link")
    sub.add_argument("--links", type=int, default=500)
    sub.set_defaults(
        measure=lambda options: throughput.chain(
            options.links, runs=options.runs, **_shape(options)
        )
    )
    _add_shape(sub)
    sub = commands.add_parser(
        "failover", help="from the loss of the leader to the next acknowledgement"
    )
    sub.add_argument("--kills", type=int, default=20, help="rounds of each way to lose it")
    sub.add_argument("--restarts", type=int, default=5, help="times that all are started again")
    sub.add_argument("--no-peers", action="store_true", help="ours only")
    sub.set_defaults(
        measure=lambda options: failover.measure(
            options.kills, restarts=options.restarts, peers=not options.no_peers
        )
    )

    sub = commands.add_parser("commit", help="small commands through the log, per second")
    sub.add_argument("--submitters", type=_counts, default=[1, 64, 256], metavar="N,N,…")
    sub.add_argument("--seconds", type=float, default=10.0, help="counted, for each number")
    sub.add_argument("--no-peers", action="store_true", help="ours only")
    sub.set_defaults(
        measure=lambda options: commit.measure(
            options.submitters, options.seconds, peers=not options.no_peers
        )
    )

    sub = commands.add_parser("restart", help="a coordinator with a long past starts again")
    sub.add_argument("--finished", type=int, default=1_000_000, help="tasks that are done")
    sub.add_argument("--live", type=int, default=100_000, help="tasks that wait for a client")
    sub.add_argument("--no-catch-up", action="store_true", help="without the empty replica")
    sub.set_defaults(
        measure=lambda options: restart.measure(
            options.finished, options.live, catch_up=not options.no_catch_up
        )
    )

    for sub in commands.choices.values():
        sub.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    figures = options.measure(options)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")
    return 0


def _noop(options: argparse.Namespace) -> dict[str, Any]:
    if not (options.idle_jobs or options.idle_clients):
        return dict(throughput.noop(options.tasks, runs=options.runs, **_shape(options)))
    return idle.measure(
        options.tasks,
        runs=options.runs,
        idle_jobs=options.idle_jobs,
        idle_clients=options.idle_clients,
        **_shape(options),
    )


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--coordinators", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=2, help="of each client")
    parser.add_argument("--runs", type=int, default=3, help="counted runs; the median is printed")


def _shape(options: argparse.Namespace) -> dict[str, int]:
    return {
        "coordinators": options.coordinators,
        "clients": options.clients,
        "nodes": options.nodes,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
