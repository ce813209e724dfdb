"""Reads a command line by the table of commands, and loads what runs it."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from tasksprint import __version__
from tasksprint.cli.table import COMMANDS, EPILOG, Command
from tasksprint.errors import UsageError
from tasksprint.next_steps import program_command

__all__ = ["help_of_all", "load", "parse_command"]


class _Parser(argparse.ArgumentParser):
    """Ends with the documented exit code of wrong usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see '{self.prog} --help'")


def parse_command(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line; paths in them are absolute.

    Raises:
        UsageError: It isn't one.
    """
    parser = _parser(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(
            f"unrecognized arguments: {' '.join(unknown)}",
            hint=_meant(getattr(options, "parser", parser), unknown),
        )
    return options


def help_of_all() -> str:
    """Return what `--help` says without a command."""
    return _parser([]).format_help()


def load(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """Return the function for a parsed command, and load all that it needs."""
    command: Command = options.entry
    module, _, name = command.run.partition(":")
    run = getattr(importlib.import_module(f"tasksprint.{module}"), name)
    if command.asks:
        from tasksprint.cli.reaching import ask_cluster

        return partial(ask_cluster, run)
    return run  # type: ignore[no-any-return]


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """Return the parser of a command line, with the options of its command."""
    parser = _Parser(
        prog=program_command(),
        description="Fault-tolerant distributed computation: a scheduler, a node, and one file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tasksprint {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add(commands, COMMANDS, parser.prog.replace("%", "%%"), arguments)
    return parser


def _add(parsers: Any, commands: Iterable[Command], prog: str, arguments: list[str]) -> None:
    """Add commands, or the actions of one, each with a parser of its own."""
    for command in commands:
        sub = parsers.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"example: {prog} {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # People paste the example.
        )
        if command.name not in arguments:
            continue  # It is listed only; options take most of the time.
        for option in command.options:
            keywords = option.keywords
            if option.variable is not None:
                default = os.environ.get(option.variable, keywords.get("default"))
                keywords = {**keywords, "default": default}
            sub.add_argument(*option.names, **keywords)
        if command.actions:
            actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
            _add(actions, command.actions, prog, arguments)
        sub.set_defaults(entry=command, parser=sub)


def _meant(parser: argparse.ArgumentParser, unknown: list[str]) -> str:
    """Return the option that was meant by the first unknown one, or where to look."""
    import difflib

    word = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"see '{parser.prog} --help'"
