"""The command line: every role and command, and what a mistake looks like.

Nothing heavy is imported before the command is known: `--version` and `--help`
answer at once, and a node that is attached starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from tasksprint import __version__
from tasksprint.errors import EXIT_OK, JobFailed, StoreError, TaskSprintError, UsageError
from tasksprint.net.tokens import Scope
from tasksprint.next_steps import as_started, program_command
from tasksprint.plain_text import plain_lines
from tasksprint.process.standard_streams import STDOUT_NAME, let_go_of_readers, prepare_streams

if TYPE_CHECKING:
    import argparse

__all__ = ["main", "parse_command"]

_EXIT_INTERRUPTED = 130  # as shells report SIGINT
_EXIT_PIPE = 141  # as shells report SIGPIPE

_EPILOG = """\
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


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` name, and return its exit code."""
    prepare_streams()
    if not __debug__:
        print(
            "tasksprint: python -O is refused: the checks are part of the design", file=sys.stderr
        )
        return UsageError.exit_code
    try:
        exit_code = _end_of(arguments)
        sys.stdout.flush()  # Here, and not behind us, where nobody says what failed.
        return exit_code
    except BrokenPipeError:
        let_go_of_readers()
        return _EXIT_PIPE
    except OSError as error:
        if error.filename is None:
            raise  # Not about a file that somebody could put right: our bug.
        what = f"cannot use {os.fsdecode(error.filename)!r}"
        if error.filename == STDOUT_NAME:
            what = "cannot write to stdout"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What is still to be written.
        print(f"tasksprint: {what}: {error.strerror}", file=sys.stderr)
        return StoreError.exit_code


def _end_of(arguments: list[str]) -> int:
    """Run the command, and return its exit code also if it ended with an error of ours."""
    if arguments == ["--version"]:
        print(f"tasksprint {__version__}")
        return EXIT_OK
    try:
        return _run(arguments)
    except TaskSprintError as error:
        # It may quote what a user's program wrote.
        text = str(error) if isinstance(error, JobFailed) else as_started(str(error))
        print(f"tasksprint: {plain_lines(text)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tasksprint: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except SystemExit as end:  # of --help
        assert end.code in (None, EXIT_OK), end.code
        return EXIT_OK


def _run(arguments: list[str]) -> int:
    with _interrupts_just_end():
        options = parse_command(arguments)
        if options.command is None:
            _parser().print_help()
            return UsageError.exit_code
        run = _load(options.command)
    return run(options)


def _load(command: str) -> Callable[[argparse.Namespace], int]:
    """Return what runs a command, and load all that it needs."""
    if command == "coordinator":
        from tasksprint.roles.coordinator import process as coordinator_role

        return coordinator_role.run_role
    if command == "client":
        from tasksprint.roles.client import process as client_role

        return client_role.run_role
    if command == "node":
        from tasksprint.roles import node

        return node.run_role
    if command == "run":
        from tasksprint.cli import run

        return run.run_job
    if command == "recover":
        from tasksprint.rescue import recover

        return recover.run_recover
    if command == "log":
        from tasksprint.cli import log_commands

        return log_commands.run_log_command
    if command == "restore":
        from tasksprint.rescue import restore

        return restore.run_restore
    from tasksprint.cli import commands

    return commands.run_command


@contextlib.contextmanager
def _interrupts_just_end() -> Iterator[None]:
    """Let SIGINT end this process without a word: there is nothing yet to end in good order.

    A KeyboardInterrupt while modules are loaded is a traceback, and libraries in C crash by it.
    """
    # (The one file has begun it; where SIGINT is ignored, as by nohup, it stays so.)
    ours = (signal.default_int_handler, signal.SIG_DFL)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) not in ours:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def parse_command(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line; paths in them are absolute.

    Raises:
        UsageError: It isn't one.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(
            f"unrecognized arguments: {' '.join(unknown)}", hint=_meant(parser, options, unknown)
        )
    return options


def _meant(
    parser: argparse.ArgumentParser, options: argparse.Namespace, unknown: list[str]
) -> str:
    """Return the option that was meant by the first unknown one, or where to look."""
    import argparse
    import difflib

    found, chosen = parser, [options.command, getattr(options, "action", None)]
    for name in chosen:
        for action in found._actions:
            if isinstance(action, argparse._SubParsersAction) and name in action.choices:
                found = action.choices[name]
                break
    word = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
    known = [option for option in found._option_string_actions if option.startswith("--")]
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"see '{found.prog} --help'"


def _parser() -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        """Ends with the documented exit code of wrong usage."""

        def error(self, message: str) -> NoReturn:
            raise UsageError(message, hint=f"see '{self.prog} --help'")

    def directory(text: str) -> str:
        if not text:  # Else it would be the current one: a variable of a script was empty.
            raise argparse.ArgumentTypeError("it is empty, expected a directory")
        return path(text)

    def path(text: str) -> str:
        # Once, here: programs run in directories of their own.
        return os.path.abspath(os.path.expanduser(text)) if text else text

    def client(text: str) -> str:
        return text if text.isascii() and text.isdigit() else directory(text)

    def common() -> argparse.ArgumentParser:
        shared = argparse.ArgumentParser(add_help=False)
        shared.add_argument(
            "--key-file",
            metavar="FILE",
            type=path,
            help="the cluster's key (default: TASKSPRINT_KEY_FILE, else this user's own)",
        )
        return shared

    def reaching(*, names_cluster: bool = True) -> argparse.ArgumentParser:
        shared = argparse.ArgumentParser(add_help=False)
        shared.add_argument(
            "--coordinators",
            metavar="HOST:PORT,…",
            default=os.environ.get("TASKSPRINT_COORDINATORS", "127.0.0.1:7070"),
            help="where the coordinators listen (default: TASKSPRINT_COORDINATORS, "
            "else 127.0.0.1:7070)",
        )
        if names_cluster:
            shared.add_argument(
                "--cluster",
                metavar="NAME",
                default=os.environ.get("TASKSPRINT_CLUSTER"),
                help="ask only coordinators of this cluster (default: TASKSPRINT_CLUSTER, "
                "else any)",
            )
        return shared

    def reading() -> argparse.ArgumentParser:
        shared = argparse.ArgumentParser(add_help=False)
        shared.add_argument("--json", action="store_true", help="print one JSON value")
        return shared

    def job_options() -> argparse.ArgumentParser:
        shared = argparse.ArgumentParser(add_help=False)
        shared.add_argument("job", metavar="JOB", help="a job directory, or its tasksprint.json")
        shared.add_argument(
            "--param",
            metavar="NAME=VALUE",
            action="append",
            default=[],
            help="a parameter of the job; the value is JSON, or else a string",
        )
        shared.add_argument(
            "--seed", type=int, help="the job's seed (default: its manifest's, else chance)"
        )
        shared.add_argument(
            "--check-determinism",
            action="store_true",
            help="run a second copy of its scheduler (another hash seed), and warn if it differs",
        )
        return shared

    logs: Any = {
        "action": "store_true",
        "help": "while waiting, show what nodes write to stderr",
    }

    parser = Parser(
        prog=program_command(),
        description="Fault-tolerant distributed computation: a scheduler, a node, and one file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tasksprint {__version__}")
    prog = parser.prog.replace("%", "%%")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(
        name: str, help_text: str, example: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=f"example: {prog} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # It is to be pasted.
            parents=list(parents),  # type: ignore[arg-type]
        )

    sub = add(
        "coordinator",
        "run one coordinator: a replica of the log, the schedule and the jobs' schedulers",
        "coordinator --id 1 --listen 10.0.0.1:7070 "
        "--peers 1=10.0.0.1:7070,2=10.0.0.2:7070,3=10.0.0.3:7070",
        common(),
    )
    sub.add_argument("--id", type=int, default=1, help="this replica's number (default 1)")
    sub.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:7070",
        help="address to listen at (default 127.0.0.1:7070)",
    )
    sub.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        action="append",
        help="address that others reach it by (default: --listen); may be repeated: the first "
        "is told to others, calls by any of them are answered",
    )
    sub.add_argument(
        "--peers",
        metavar="ID=HOST:PORT,…",
        help="all founding members, this one too (default: a cluster of one)",
    )
    sub.add_argument(
        "--data-dir",
        metavar="DIR",
        type=directory,
        help="where the log is kept (default: under $XDG_STATE_HOME/tasksprint)",
    )
    sub.add_argument(
        "--join",
        metavar="HOST:PORT,…",
        help="coordinators of a running cluster that will add this one ('member add')",
    )
    sub.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)

    sub = add(
        "client",
        "run one client: it starts nodes, moves data, reports",
        "client --coordinators 10.0.0.1:7070,10.0.0.2:7070,10.0.0.3:7070 --listen 10.0.0.4:7071",
        common(),
        reaching(names_cluster=False),
    )
    sub.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:0",
        help="address at which other clients fetch values (default: 127.0.0.1, any port)",
    )
    sub.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        action="append",
        help="address that others reach it by (default: --listen); may be repeated: the first "
        "is told to others, calls by any of them are answered",
    )
    sub.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="how many nodes at once (default: by CPUs and memory)",
    )
    sub.add_argument(
        "--data-dir",
        metavar="DIR",
        type=directory,
        help="where results are kept (default: under $XDG_STATE_HOME/tasksprint)",
    )

    sub = add(
        "node",
        "attach a program to the client on this machine, as a node",
        "node --exec ./mynode.py",
        common(),
    )
    sub.add_argument(
        "--exec", metavar="PROGRAM", dest="program", required=True, help="the node program"
    )
    sub.add_argument(
        "--name", help="the name that jobs ask for as attached:NAME (default: the file's stem)"
    )
    sub.add_argument(
        "--client",
        metavar="PID|DIR",
        type=client,
        help="process id or data directory of the client to join (default: the only live one)",
    )
    sub.add_argument("arguments", nargs="*", help="arguments of the program")

    sub = add(
        "run",
        "run one job on a private cluster on this machine",
        "run examples/montecarlo --coordinators 3 --clients 2",
        job_options(),
        reading(),
    )
    sub.add_argument(
        "--coordinators", type=int, default=1, metavar="N", help="how many (default 1)"
    )
    sub.add_argument("--clients", type=int, default=1, metavar="M", help="how many (default 1)")
    sub.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="nodes of each client (default: the machine's, shared out)",
    )
    sub.add_argument(
        "--keep",
        metavar="DIR",
        type=directory,
        help="keep the cluster's files in this new directory",
    )
    sub.add_argument("--logs", **logs)

    sub = add(
        "submit",
        "hand a job to the cluster",
        "submit --wait examples/montecarlo",
        job_options(),
        common(),
        reaching(),
        reading(),
    )
    sub.add_argument("--wait", action="store_true", help="wait for its end, with progress")
    sub.add_argument("--logs", **logs)

    sub = add(
        "status",
        "show coordinators, clients and jobs, or how one job stands and what it waits for",
        "status 1",
        common(),
        reaching(),
        reading(),
    )
    sub.add_argument("job_id", type=int, nargs="?", metavar="JOB_ID")
    add("jobs", "list the jobs", "jobs", common(), reaching(), reading())
    add("clients", "list the clients", "clients", common(), reaching(), reading())

    sub = add(
        "result",
        "print the result of a job, or the values of one task",
        "result 1 --task 11",
        common(),
        reaching(),
        reading(),
    )
    sub.add_argument("job_id", type=int, metavar="JOB_ID")
    sub.add_argument("--task", type=int, metavar="TID", help="the values that this task returned")
    sub.add_argument("--key", help="only the value under this key, as its bytes")
    sub.add_argument("--wait", action="store_true", help="wait for the job's end")
    sub.add_argument("--logs", **logs)

    sub = add(
        "logs",
        "print what a job's schedulers and nodes wrote",
        "logs 1 4",
        common(),
        reaching(),
        reading(),
    )
    sub.add_argument("job_id", type=int, metavar="JOB_ID")
    sub.add_argument(
        "task", type=int, nargs="?", metavar="TID", help="only the attempts at this task"
    )
    sub.add_argument(
        "--raw",
        action="store_true",
        help="print control characters too: a terminal obeys them",
    )

    sub = add("cancel", "end a job without a result", "cancel 1", common(), reaching(), reading())
    sub.add_argument("job_id", type=int, metavar="JOB_ID")

    sub = add(
        "member",
        "list, add, remove or replace coordinators of a running cluster",
        "member add 4=10.0.0.4:7070",
    )
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)

    def act(
        name: str, help_text: str, example: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=f"example: {prog} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # It is to be pasted.
            parents=list(parents) or [common(), reaching(), reading()],
        )

    def new_member(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "new",
            metavar="ID=HOST:PORT",
            help="the new coordinator, started with --id ID --join",
        )

    def waiting(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--timeout",
            type=float,
            default=60.0,
            metavar="S",
            help="how long to wait until the change is done (default 60); it goes on after that",
        )

    act("list", "list the coordinators and how far they are", "member list")
    sub = act("add", "take up a new coordinator; it votes once it has caught up", "member add 4=…")
    new_member(sub)
    waiting(sub)
    sub = act("remove", "remove a coordinator for good; it stops", "member remove 2")
    sub.add_argument("replica", type=int, metavar="ID")
    waiting(sub)
    sub = act(
        "replace",
        "take up a new coordinator, and remove another once the new one votes",
        "member replace 2 4=10.0.0.4:7070",
    )
    sub.add_argument("replica", type=int, metavar="ID")
    new_member(sub)
    waiting(sub)

    sub = add(
        "job",
        "forget a job that has ended, with all that is kept of it",
        "job forget 1",
        common(),
        reaching(),
        reading(),
    )
    sub.add_argument("action", choices=["forget"], metavar="forget")
    sub.add_argument("job_id", type=int, metavar="JOB_ID")

    sub = add(
        "backup",
        "write the state of the cluster to a file, while it serves",
        "backup /backups/tasksprint-monday",
        common(),
        reaching(),
        reading(),
    )
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--force", action="store_true", help="overwrite FILE")

    sub = add(
        "restore",
        "make the data directory of a new cluster of one out of a backup",
        "restore /backups/tasksprint-monday --data-dir /var/lib/tasksprint/1",
        reading(),
    )
    sub.add_argument("file", metavar="FILE")
    sub.add_argument(
        "--data-dir",
        metavar="DIR",
        type=directory,
        required=True,
        help="a new or an empty directory",
    )
    sub.add_argument("--id", type=int, default=1, help="the replica's number (default 1)")
    sub.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:7070",
        help="address at which it will listen (default 127.0.0.1:7070)",
    )
    sub.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        help="address that others will reach it by (default: --listen)",
    )

    sub = add(
        "log",
        "look into the log and the state of a coordinator, or into a backup",
        "log verify --data-dir /var/lib/tasksprint/1",
    )
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    sub = act(
        "verify",
        "check every checksum of a coordinator's data (it may be running) or of a backup",
        "log verify --data-dir /var/lib/tasksprint/1",
        reading(),
    )
    sub.add_argument("file", metavar="FILE", nargs="?", help="a backup")
    sub.add_argument("--data-dir", metavar="DIR", type=directory, help="of a coordinator")
    sub = act(
        "show",
        "print the entries of the log that a coordinator keeps",
        "log show --data-dir /var/lib/tasksprint/1 --slot 17..20",
        reading(),
    )
    sub.add_argument(
        "--data-dir", metavar="DIR", type=directory, required=True, help="of a coordinator"
    )
    sub.add_argument("--slot", metavar="A..B", help="only these (default: all)")
    sub = act(
        "skip",
        "leave out a command that no coordinator can apply; for each, while all are stopped",
        "log skip 4711 0 9f86d081… --data-dir /var/lib/tasksprint/1",
    )
    sub.add_argument("slot", metavar="SLOT", type=int, help="of the log")
    sub.add_argument("command_index", metavar="COMMAND", type=int, help="in the slot, from 0")
    sub.add_argument("digest", metavar="DIGEST", help="the SHA-256 of its bytes")
    sub.add_argument(
        "--data-dir", metavar="DIR", type=directory, required=True, help="of a coordinator"
    )
    sub.add_argument("--undo", action="store_true", help="apply it after all")

    sub = add(
        "recover",
        "make a cluster of one out of a survivor's data, when the majority is lost for good",
        "recover --data-dir /var/lib/tasksprint/3 --dry-run",
        reading(),
    )
    sub.add_argument(
        "--data-dir",
        metavar="DIR",
        type=directory,
        required=True,
        help="of a stopped coordinator",
    )
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what it holds, what would be done and what may be lost",
    )
    sub.add_argument(
        "--yes-lose",
        metavar="CLUSTER",
        help="the cluster's name, in place of typing it: what others knew is lost",
    )
    sub.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        help="address that others will reach it by (default: as before)",
    )

    add("stop", "stop every client and coordinator of the cluster", "stop", common(), reaching())

    sub = add(
        "token",
        "print a short-lived token for curl and browsers",
        "token --scope submit --minutes 60",
        common(),
    )
    sub.add_argument(
        "--minutes", type=int, default=60, help="how long it is good for (default 60)"
    )
    sub.add_argument(
        "--scope",
        choices=[scope.value for scope in Scope],
        default=Scope.READ.value,
        help="what its bearer may do: look; hand in, cancel and forget jobs too; or also change "
        "the members and stop processes (default read)",
    )
    return parser
