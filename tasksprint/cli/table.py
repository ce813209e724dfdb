"""The command line as a table: each command with its options, its help and what runs it.

Loaded once a command has to be parsed. The table only names the function of each command; it
is loaded when the command is known. An attached node must not wait for a coordinator's modules.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

from tasksprint.net.tokens import Scope

__all__ = ["COMMANDS", "EPILOG", "Command", "Option"]

EPILOG = """\
examples:
  %(prog)s run examples/montecarlo          a private cluster for one job, here and now
  %(prog)s coordinator                      the centre of a cluster (start 3 or 5 with --peers)
  %(prog)s client                           a worker: joins, starts nodes
  %(prog)s submit --wait examples/montecarlo
  %(prog)s status

exit codes: 0 done; 1 the job failed or was cancelled; 64 wrong usage; 65 a coordinator whose state
is wrong; 69 no coordinator answers; 74 a disk or database error; 75 too little disk space; 76 a
broken protocol; 77 refused; 78 a setting, key, port or data directory must be changed;
130 interrupted; 141 whoever reads the output (| head) wants no more
"""


@dataclass(frozen=True, slots=True)
class Option:
    """One option or argument: the names and keywords of `ArgumentParser.add_argument`.

    Args:
        variable: Of the environment, whose value is the default.
    """

    names: tuple[str, ...]
    keywords: dict[str, Any]
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """One command, or one action of a command.

    Args:
        example: Without the program's name.
        run: "module:function" in this package, called with the options.
        asks: It asks a running cluster; the function gets that as well, first.
    """

    name: str
    help: str
    example: str
    run: str = ""
    options: tuple[Option, ...] = ()
    actions: tuple[Command, ...] = ()
    asks: bool = False


def _option(*names: str, variable: str | None = None, **keywords: Any) -> Option:
    return Option(names, keywords, variable)


def _flag(name: str, text: str) -> Option:
    return Option((name,), {"action": "store_true", "help": text})


def _directory(text: str) -> str:
    if not text:  # Else it would be the current one: a variable of a script was empty.
        raise argparse.ArgumentTypeError("it is empty, expected a directory")
    return _path(text)


def _path(text: str) -> str:
    # Once, here: programs run in directories of their own.
    return os.path.abspath(os.path.expanduser(text)) if text else text


def _client(text: str) -> str:
    return text if text.isascii() and text.isdigit() else _directory(text)


def _data_dir(text: str, *, required: bool = True) -> Option:
    return _option("--data-dir", metavar="DIR", type=_directory, required=required, help=text)


# --- options of several commands ---

_KEY = _option(
    "--key-file",
    metavar="FILE",
    type=_path,
    help="the cluster's key (default: TASKSPRINT_KEY_FILE, else this user's own)",
)
_COORDINATORS = _option(
    "--coordinators",
    variable="TASKSPRINT_COORDINATORS",
    metavar="HOST:PORT,…",
    default="127.0.0.1:7070",
    help="where the coordinators listen (default: TASKSPRINT_COORDINATORS, else 127.0.0.1:7070)",
)
_CLUSTER = _option(
    "--cluster",
    variable="TASKSPRINT_CLUSTER",
    metavar="NAME",
    help="ask only coordinators of this cluster (default: TASKSPRINT_CLUSTER, else any)",
)
_JSON = _flag("--json", "print one JSON value")
_ASKING = (_KEY, _COORDINATORS, _CLUSTER)
_READING = (*_ASKING, _JSON)
_JOB = (
    _option("job", metavar="JOB", help="a job directory, or its tasksprint.json"),
    _option(
        "--param",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a parameter of the job; the value is JSON, or else a string",
    ),
    _option("--seed", type=int, help="the job's seed (default: its manifest's, else chance)"),
    _flag(
        "--check-determinism",
        "run a second copy of its scheduler (another hash seed), and warn if it differs",
    ),
)
_JOB_ID = _option("job_id", type=int, metavar="JOB_ID")
_LOGS = _flag("--logs", "while waiting, show what nodes write to stderr")
_ID = _option("--id", type=int, default=1, help="this replica's number (default 1)")
_ADVERTISE = _option(
    "--advertise",
    metavar="HOST:PORT",
    action="append",
    help="address that others reach it by (default: --listen); may be repeated: the first "
    "is told to others, calls by any of them are answered",
)
_LISTEN_7070 = "127.0.0.1:7070"
_OF_COORDINATOR = _data_dir("of a coordinator")
_REPLICA = _option("replica", type=int, metavar="ID")
_NEW_MEMBER = _option(
    "new", metavar="ID=HOST:PORT", help="the new coordinator, started with --id ID --join"
)
_TIMEOUT = _option(
    "--timeout",
    type=float,
    default=60.0,
    metavar="S",
    help="how long to wait until the change is done (default 60); it goes on after that",
)

# --- the table ---

COMMANDS = (
    Command(
        "coordinator",
        "run one coordinator: a replica of the log, the schedule and the jobs' schedulers",
        "coordinator --id 1 --listen 10.0.0.1:7070 "
        "--peers 1=10.0.0.1:7070,2=10.0.0.2:7070,3=10.0.0.3:7070",
        "roles.coordinator.process:run_role",
        (
            _KEY,
            _ID,
            _option(
                "--listen",
                metavar="HOST:PORT",
                default=_LISTEN_7070,
                help="address to listen at (default 127.0.0.1:7070)",
            ),
            _ADVERTISE,
            _option(
                "--peers",
                metavar="ID=HOST:PORT,…",
                help="all founding members, this one too (default: a cluster of one)",
            ),
            _data_dir(
                "where the log is kept (default: under $XDG_STATE_HOME/tasksprint)",
                required=False,
            ),
            _option(
                "--join",
                metavar="HOST:PORT,…",
                help="coordinators of a running cluster that will add this one ('member add')",
            ),
            _option("--listen-fd", type=int, help=argparse.SUPPRESS),
        ),
    ),
    Command(
        "client",
        "run one client: it starts nodes, moves data, reports",
        "client --coordinators 10.0.0.1:7070,10.0.0.2:7070,10.0.0.3:7070 --listen 10.0.0.4:7071",
        "roles.client.process:run_role",
        (
            _KEY,
            _COORDINATORS,
            _option(
                "--listen",
                metavar="HOST:PORT",
                default="127.0.0.1:0",
                help="address at which other clients fetch values (default: 127.0.0.1, any port)",
            ),
            _ADVERTISE,
            _option(
                "--nodes",
                type=int,
                metavar="N",
                help="how many nodes at once (default: by CPUs and memory)",
            ),
            _data_dir(
                "where results are kept (default: under $XDG_STATE_HOME/tasksprint)",
                required=False,
            ),
        ),
    ),
    Command(
        "node",
        "attach a program to the client on this machine, as a node",
        "node --exec ./mynode.py",
        "roles.node:run_role",
        (
            _KEY,
            _option(
                "--exec", metavar="PROGRAM", dest="program", required=True, help="the node program"
            ),
            _option(
                "--name",
                help="the name that jobs ask for as attached:NAME (default: the file's stem)",
            ),
            _option(
                "--client",
                metavar="PID|DIR",
                type=_client,
                help="process id or data directory of the client to join "
                "(default: the only live one)",
            ),
            _option("arguments", nargs="*", help="arguments of the program"),
        ),
    ),
    Command(
        "run",
        "run one job on a private cluster on this machine",
        "run examples/montecarlo --coordinators 3 --clients 2",
        "cli.run:run_job",
        (
            *_JOB,
            _JSON,
            _option(
                "--coordinators", type=int, default=1, metavar="N", help="how many (default 1)"
            ),
            _option("--clients", type=int, default=1, metavar="M", help="how many (default 1)"),
            _option(
                "--nodes",
                type=int,
                metavar="N",
                help="nodes of each client (default: the machine's, shared out)",
            ),
            _option(
                "--keep",
                metavar="DIR",
                type=_directory,
                help="keep the cluster's files in this new directory",
            ),
            _LOGS,
        ),
    ),
    Command(
        "submit",
        "hand a job to the cluster",
        "submit --wait examples/montecarlo",
        "cli.job_commands:submit",
        (*_JOB, *_READING, _flag("--wait", "wait for its end, with progress"), _LOGS),
        asks=True,
    ),
    Command(
        "status",
        "show coordinators, clients and jobs, or how one job stands and what it waits for",
        "status 1",
        "cli.cluster_commands:status",
        (*_READING, _option("job_id", type=int, nargs="?", metavar="JOB_ID")),
        asks=True,
    ),
    Command(
        "jobs", "list the jobs", "jobs", "cli.job_commands:list_jobs", _READING, asks=True
    ),
    Command(
        "clients",
        "list the clients",
        "clients",
        "cli.cluster_commands:list_clients",
        _READING,
        asks=True,
    ),
    Command(
        "result",
        "print the result of a job, or the values of one task",
        "result 1 --task 11",
        "cli.job_commands:result",
        (
            *_READING,
            _JOB_ID,
            _option(
                "--task", type=int, metavar="TID", help="the values that this task returned"
            ),
            _option("--key", help="only the value under this key, as its bytes"),
            _flag("--wait", "wait for the job's end"),
            _LOGS,
        ),
        asks=True,
    ),
    Command(
        "logs",
        "print what a job's schedulers and nodes wrote",
        "logs 1 4",
        "cli.job_commands:logs",
        (
            *_READING,
            _JOB_ID,
            _option(
                "task", type=int, nargs="?", metavar="TID", help="only the attempts at this task"
            ),
            _flag("--raw", "print control characters too: a terminal obeys them"),
        ),
        asks=True,
    ),
    Command(
        "cancel",
        "end a job without a result",
        "cancel 1",
        "cli.job_commands:cancel",
        (*_READING, _JOB_ID),
        asks=True,
    ),
    Command(
        "member",
        "list, add, remove or replace coordinators of a running cluster",
        "member add 4=10.0.0.4:7070",
        actions=(
            Command(
                "list",
                "list the coordinators and how far they are",
                "member list",
                "cli.member_commands:list_members",
                _READING,
                asks=True,
            ),
            Command(
                "add",
                "take up a new coordinator; it votes once it has caught up",
                "member add 4=…",
                "cli.member_commands:add",
                (*_READING, _NEW_MEMBER, _TIMEOUT),
                asks=True,
            ),
            Command(
                "remove",
                "remove a coordinator for good; it stops",
                "member remove 2",
                "cli.member_commands:remove",
                (*_READING, _REPLICA, _TIMEOUT),
                asks=True,
            ),
            Command(
                "replace",
                "take up a new coordinator, and remove another once the new one votes",
                "member replace 2 4=10.0.0.4:7070",
                "cli.member_commands:replace",
                (*_READING, _REPLICA, _NEW_MEMBER, _TIMEOUT),
                asks=True,
            ),
        ),
    ),
    Command(
        "upgrade",
        "raise the rules of the log, once all coordinators run a release that has newer ones",
        "upgrade",
        "cli.upgrade_command:upgrade",
        (
            *_READING,
            _flag("--dry-run", "only show each coordinator's release, and what is missing"),
            _TIMEOUT,
        ),
        asks=True,
    ),
    Command(
        "job",
        "forget a job that has ended, with all that is kept of it",
        "job forget 1",
        "cli.job_commands:forget",
        (*_READING, _option("action", choices=["forget"], metavar="forget"), _JOB_ID),
        asks=True,
    ),
    Command(
        "backup",
        "write the state of the cluster to a file, while it serves",
        "backup /backups/tasksprint-monday",
        "rescue.backup:run_backup",
        (*_READING, _option("file", metavar="FILE"), _flag("--force", "overwrite FILE")),
        asks=True,
    ),
    Command(
        "restore",
        "make the data directory of a new cluster of one out of a backup",
        "restore /backups/tasksprint-monday --data-dir /var/lib/tasksprint/1",
        "rescue.restore:run_restore",
        (
            _JSON,
            _option("file", metavar="FILE"),
            _data_dir("a new or an empty directory"),
            _option("--id", type=int, default=1, help="the replica's number (default 1)"),
            _option(
                "--listen",
                metavar="HOST:PORT",
                default=_LISTEN_7070,
                help="address at which it will listen (default 127.0.0.1:7070)",
            ),
            _option(
                "--advertise",
                metavar="HOST:PORT",
                help="address that others will reach it by (default: --listen)",
            ),
        ),
    ),
    Command(
        "log",
        "look into the log and the state of a coordinator, or into a backup",
        "log verify --data-dir /var/lib/tasksprint/1",
        actions=(
            Command(
                "verify",
                "check every checksum of a coordinator's data (it may be running) or of a backup",
                "log verify --data-dir /var/lib/tasksprint/1",
                "cli.log_commands:verify_log",
                (
                    _JSON,
                    _option("file", metavar="FILE", nargs="?", help="a backup"),
                    _data_dir("of a coordinator", required=False),
                ),
            ),
            Command(
                "show",
                "print the entries of the log that a coordinator keeps",
                "log show --data-dir /var/lib/tasksprint/1 --slot 17..20",
                "cli.log_commands:show_log",
                (
                    _JSON,
                    _OF_COORDINATOR,
                    _option("--slot", metavar="A..B", help="only these (default: all)"),
                ),
            ),
            Command(
                "skip",
                "leave out a command that no coordinator can apply; for each, while all are "
                "stopped",
                "log skip 4711 0 9f86d081… --data-dir /var/lib/tasksprint/1",
                "rescue.log_skip:run_skip",
                (
                    *_READING,
                    _option("slot", metavar="SLOT", type=int, help="of the log"),
                    _option(
                        "command_index",
                        metavar="COMMAND",
                        type=int,
                        help="in the slot, from 0",
                    ),
                    _option("digest", metavar="DIGEST", help="the SHA-256 of its bytes"),
                    _OF_COORDINATOR,
                    _flag("--undo", "apply it after all"),
                ),
            ),
        ),
    ),
    Command(
        "recover",
        "make a cluster of one out of a survivor's data, when the majority is lost for good",
        "recover --data-dir /var/lib/tasksprint/3 --dry-run",
        "rescue.recover:run_recover",
        (
            _JSON,
            _data_dir("of a stopped coordinator"),
            _flag(
                "--dry-run", "only say what it holds, what would be done and what may be lost"
            ),
            _option(
                "--yes-lose",
                metavar="CLUSTER",
                help="the cluster's name, in place of typing it: what others knew is lost",
            ),
            _option(
                "--advertise",
                metavar="HOST:PORT",
                help="address that others will reach it by (default: as before)",
            ),
        ),
    ),
    Command(
        "stop",
        "stop every client and coordinator of the cluster",
        "stop",
        "cli.cluster_commands:stop",
        _ASKING,
        asks=True,
    ),
    Command(
        "token",
        "print a short-lived token for curl and browsers",
        "token --scope submit --minutes 60",
        "cli.cluster_commands:token",
        (
            _KEY,
            _option(
                "--minutes", type=int, default=60, help="how long it is good for (default 60)"
            ),
            _option(
                "--scope",
                choices=[scope.value for scope in Scope],
                default=Scope.READ.value,
                help="what its bearer may do: look; hand in, cancel and forget jobs too; or also "
                "change the members and stop processes (default read)",
            ),
        ),
    ),
)
