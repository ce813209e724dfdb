"""The table of commands: each has a runner, and what that needs of the command line."""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tasksprint.cli.parser import load, parse_command
from tasksprint.cli.table import COMMANDS, Command
from tasksprint.next_steps import COMMANDS as NAMES


def runnable(commands: Iterable[Command]) -> Iterator[Command]:
    for command in commands:
        yield from runnable(command.actions) if command.actions else (command,)


@pytest.mark.parametrize("command", [*runnable(COMMANDS)], ids=lambda command: command.example)
def test_what_runs_a_command_takes_what_it_is_called_with(command: Command) -> None:
    module, _, name = command.run.partition(":")
    function = getattr(importlib.import_module(f"tasksprint.{module}"), name)
    expected = ["cluster", "options"] if command.asks else ["options"]
    assert list(inspect.signature(function).parameters) == expected
    found = {name for option in command.options for name in option.names}
    reaching = {"--key-file", "--coordinators", "--cluster"}
    assert not command.asks or reaching <= found


@pytest.mark.parametrize("command", [*runnable(COMMANDS)], ids=lambda command: command.example)
def test_the_example_of_a_command_is_a_line_of_it(command: Command) -> None:
    assert parse_command(command.example.split()).entry is command


def test_argument_that_is_named_as_a_command_stays_an_argument() -> None:
    options = parse_command(["submit", "status", "--wait"])
    assert (options.command, options.job, options.wait) == ("submit", "status", True)


def test_sentences_know_each_command_of_the_table() -> None:
    assert sorted(command.name for command in COMMANDS) == sorted(NAMES)


def test_the_variable_of_an_option_is_its_default_when_a_line_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TASKSPRINT_COORDINATORS", "h:1")
    monkeypatch.delenv("TASKSPRINT_CLUSTER", raising=False)
    options = parse_command(["jobs"])
    assert (options.coordinators, options.cluster) == ("h:1", None)
    assert parse_command(["jobs", "--coordinators", "h:2"]).coordinators == "h:2"


def test_an_action_is_run_by_what_its_own_line_names(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[argparse.Namespace] = []
    monkeypatch.setattr("tasksprint.rescue.log_skip.run_skip", ran.append)
    options = parse_command(["log", "skip", "4", "0", "ab", "--data-dir", "d"])
    load(options)(options)
    assert ran == [options]


@pytest.mark.slow
def test_commands_that_ask_a_cluster_load_no_asyncio() -> None:
    """They start in a quarter less time without it: see net/http_blocking.py."""
    asking = {each.run.partition(":")[0] for each in runnable(COMMANDS) if each.asks}
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'tasksprint.{name}')\n"
        "assert 'asyncio' not in sys.modules, 'slow start'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "cli.parser", "cli.reaching", *sorted(asking)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
