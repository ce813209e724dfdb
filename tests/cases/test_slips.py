"""Mistakes of users, in programs, requests and on the command line: each is told at once."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasksprint.asking.cluster import parse_params
from tasksprint.cli import main
from tasksprint.cli.parser import parse_command
from tasksprint.coordination.view import JobEntry
from tasksprint.errors import JobFailed, Refused, RemoteProtocolError, UsageError
from tasksprint.ids import JobId
from tasksprint.plain_text import plain_json, plain_line, plain_lines
from tasksprint.process import terminal
from tasksprint.process.attach import socket_path
from tasksprint.process.job_directory import Manifest, parse_manifest, read_job
from tasksprint.protocol.node_lines import NodeReader
from tasksprint.protocol.scheduler_lines import SchedulerReader
from tasksprint.roles.coordinator.submitting import read_submit
from tasksprint.scheduler_commands import FailJob, WriteLog
from tasksprint.sdk.codec import encode
from tasksprint.task_spec import TaskSpec
from tests.coordination.world import World
from tests.roles.client_world import assignment, run, until, view, world
from tests.roles.members import members
from tests.sdk.programs import ROOT, NodeDriver, Program, SchedulerDriver, write_program

# A terminal's title, a wiped screen, C1's one-character CSI, DEL, and text that is read
# from right to left.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066"


class Terminal(io.TextIOWrapper):
    """A stdout that says that people read it."""

    def __init__(self, *, is_terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def taken(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


# --- text that a terminal would obey -------------------------------------------------


def test_control_characters_are_shown_and_not_sent() -> None:
    assert plain_line(HOSTILE) == SHOWN
    assert plain_lines(f"{HOSTILE}\nnext\tcolumn\r\nlast") == f"{SHOWN}\nnext\tcolumn\nlast"
    assert plain_line("a\nb\tc\rd\u2028e") == r"a\nb\tc\rd\u2028e"
    assert plain_lines("half \ud800, over\rwritten") == r"half \ud800, over\rwritten"
    assert plain_lines("naïve 漢字 🎲 \u200d") == "naïve 漢字 🎲 \u200d"


def test_every_control_character_is_covered() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        assert plain_line(chr(code)).isprintable(), hex(code)
        is_layout = chr(code) in "\n\t"
        assert (plain_lines(chr(code)) == chr(code)) == is_layout, hex(code)


def test_json_for_a_terminal_means_the_same() -> None:
    text = json.dumps({"k\x7f": ["\x1b", "\x9b2J", "\u202e", "漢"]}, ensure_ascii=False)
    shown = plain_json(text)
    assert shown.isprintable()
    assert json.loads(shown) == json.loads(text)
    assert json.loads(plain_json('{"a":\r1}')) == {"a": 1}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_json_is_exact_but_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stdout = Terminal(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    terminal.print_json_text(b'{"x":"\xc2\x9b2J"}')
    terminal.print_bytes(b"\xff\x1b[2J\n")
    if is_terminal:
        assert stdout.taken() == b'{"x":"\\u009b2J"}\n\\xff\\x1b[2J\n'
    else:
        assert stdout.taken() == b'{"x":"\xc2\x9b2J"}\n\xff\x1b[2J\n'


def test_a_table_keeps_each_cell_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["1", "a\n2       forged"], ["3", HOSTILE]]
    lines = terminal.table_lines(["CLIENT", "HOST"], rows)
    terminal.print_answer(None, lines, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "CLIENT  HOST",
        r"1       a\n2       forged",
        f"3       {SHOWN}",
    ]


def test_an_error_that_quotes_a_program_is_printed_plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise JobFailed(f"job 1 failed: {HOSTILE}\n  second line")

    monkeypatch.setattr(main, "_run", fail)
    assert main.main(["status"]) == 1
    assert capsys.readouterr().err == f"tasksprint: job 1 failed: {SHOWN}\n  second line\n"


def test_a_message_of_the_log_stays_one_line() -> None:
    formatter = terminal.PlainFormatter("%(levelname)s %(message)s")
    record = _record(f"job=1 failed: {HOSTILE}\nERROR forged")
    assert formatter.format(record) == f"WARNING job=1 failed: {SHOWN}\\nERROR forged"
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = _record("a bug", exc_info=sys.exc_info())
    lines = formatter.format(record).splitlines()
    assert lines[0] == "WARNING a bug"
    assert lines[-1] == f"ValueError: {SHOWN}"


def _record(message: str, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, __file__, 1, "%s", (message,), exc_info)


# --- calls of the SDK ----------------------------------------------------------------

SCHEDULER = """
    from TaskSprintCoordinator import *

    class Calls(TaskSprintCoordinator):
        def init(self, seed):
            self.start_task("noop")
        def task_done(self, tid, values):
            try:
                exec(values["code"], {"self": self})
            except ValueError as error:
                self.log(str(error))
    Calls().start()
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SchedulerDriver]:
    folder = tmp_path_factory.mktemp("scheduler")
    argv = write_program(folder / "scheduler.py", SCHEDULER)
    with Program(argv, stderr=folder / "stderr") as program:
        driver = SchedulerDriver(program)
        driver.init()
        yield driver


def called(scheduler: SchedulerDriver, code: str) -> Any:
    (command,) = scheduler.event("task_done", tid=0, values={"code": f"self.{code}"})
    return command


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (
                f"start_task('a', base={given})",
                f"start_task 'a': base is {kind}, expected a list of arguments; put a single one "
                "in [ ]",
            )
            for given, kind in [
                ("0", "int"),
                ("False", "bool"),
                ("0.0", "float"),
                ("''", "str"),
                ("7", "int"),
                ("bytearray(b'x')", "bytearray"),
            ]
        ],
        ("start_task('a', keys=0)", "start_task 'a': keys is 0, expected a list of strings"),
        (
            "start_task('a', pretasks=0, prekeys=['r'])",
            "start_task 'a': pretasks is 0, expected a list of tids",
        ),
        (
            "start_task('a', pretasks=[0], prekeys=0)",
            "start_task 'a': prekeys is 0, expected a list of strings",
        ),
        (
            "start_task('a', keys=['\\ud800'])",
            "start_task 'a': keys holds '\\ud800', no Unicode text",
        ),
        (
            "start_task('n' * 1025)",
            f"start_task: name '{'n' * 40}…' has 1025 bytes, expected at most 1024",
        ),
        (
            "start_task('a', keys=['é' * 513])",
            f"start_task 'a': keys holds '{'é' * 40}…' has 1026 bytes, expected at most 1024",
        ),
        (
            "start_task('a', retries=2**70)",
            "start_task 'a': retries is 1180591620717411303424, expected how often it may be "
            "tried again, an integer from 0 to 2**53 - 1",
        ),
        (
            "start_task('a', retries=10**5000)",
            "start_task 'a': retries is an int that is too long to be shown, expected how often "
            "it may be tried again, an integer from 0 to 2**53 - 1",
        ),
        ("finish(5)", "finish: taskids is 5, expected a list of tids"),
        (
            "finish({'total': 1})",
            "finish: taskids is a dict, expected a list of tids; name the result, as in "
            "finish(values={…})",
        ),
        ("release(0)", "release: tids is 0, expected a list of tids"),
        (
            "finish(values={1: 'one', '1': 'uno'})",
            "finish: values holds a dictionary with the keys 1 and '1', which are both \"1\" in "
            "JSON; use strings that differ",
        ),
        (
            "start_task('a', base=[0, [{None: 3, 'null': 4}]])",
            "start_task 'a': argument 1 of base holds a dictionary with the keys None and 'null', "
            'which are both "null" in JSON; use strings that differ',
        ),
    ],
)
def test_a_wrong_argument_is_a_value_error(
    scheduler: SchedulerDriver, call: str, message: str
) -> None:
    assert called(scheduler, call) == WriteLog(message)


def test_no_arguments_are_none_or_an_empty_list(scheduler: SchedulerDriver) -> None:
    tid = scheduler.reader.next_tid
    for base in ("()", "[]", "None", "iter([])"):
        command = called(
            scheduler, f"start_task('a', base={base}, pretasks=None, prekeys=[], keys=None)"
        )
        assert command == TaskSpec("a")
    assert scheduler.reader.next_tid == tid + 4


LONG = "1" * 5_000


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="it reads any integer")
def test_an_integer_that_python_cannot_read_fails_the_job_and_says_where(
    scheduler: SchedulerDriver,
) -> None:
    scheduler.program.send(
        b'{"event":%d,"kind":"task_done","time_ms":5,"tid":3,"values":{"a":1,"n":[%s]}}\n'
        % (scheduler.next_event, LONG.encode())
    )
    event, scheduler.next_event = scheduler.next_event, scheduler.next_event + 1
    (failed,) = scheduler.next().commands
    assert isinstance(failed, FailJob)
    assert failed.error.startswith(
        f"event {event} task_done(3) has an integer under key 'n' of values that is too long "
        "for this scheduler's Python: Exceeds the limit"
    )
    assert failed.error.endswith("let it come as a string")
    assert called(scheduler, "start_task('after')") == TaskSpec("after")


def test_nesting_that_python_cannot_read_fails_the_job(scheduler: SchedulerDriver) -> None:
    scheduler.program.send(
        b'{"event":%d,"kind":"task_done","time_ms":5,"tid":3,"values":{"a":%s}}\n'
        % (scheduler.next_event, b"[" * 200_000 + b"]" * 200_000)
    )
    event, scheduler.next_event = scheduler.next_event, scheduler.next_event + 1
    (failed,) = scheduler.next().commands
    assert isinstance(failed, FailJob)
    assert failed.error.startswith(f"event {event} holds what is nested too deeply for this sch")


NODE = """
    import functools
    from TaskSprintNode import *

    def twice(method):
        @functools.wraps(method)
        def call(self, x):
            return method(self, x, x)
        return call

    def anything(method):
        @functools.wraps(method)
        def call(self, *args, **more):
            return method(self, 1, 2)
        return call

    class Node(TaskSprintNode):
        def none(self): return {}
        def one(self, x): return {}
        def optional(self, x, y=1): return {}
        def many(self, x, *rest): return {}
        def named(self, x, *, scale): return {}
        def fails_inside(self, x): return self.one(1, 2)
        @timeout(60)
        def limited(self, x): return {}
        @twice
        @timeout(60)
        def doubled(self, x, y): return {}
        @anything
        def open(self, x, y): return {}
        @staticmethod
        def static(x): return {}
        @classmethod
        def of_class(cls, x): return {}
        builtin = len

        def collide(self): return {"r": [{"inner": ({1: "one", "1": "uno"},)}]}
        def numbers(self): return {"r": {1: 2, 3.5: 4, None: 5, True: 6}}
        def surrogate(self): return {"\\ud800": 1}
        def raw_surrogate(self): return {"\\udfff": b""}
    Node().start()
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeDriver]:
    folder = tmp_path_factory.mktemp("node")
    with Program(write_program(folder / "node.py", NODE), stderr=folder / "stderr") as program:
        yield NodeDriver(program)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("none", 1, "1 argument, and the method is none()"),
        ("one", 0, "0 arguments, and the method is one(x)"),
        ("one", 3, "3 arguments, and the method is one(x)"),
        ("optional", 3, "3 arguments, and the method is optional(x, y)"),
        ("many", 0, "0 arguments, and the method is many(x, *)"),
        ("named", 1, "1 argument, and the method is named(x, *, scale)"),
        ("limited", 2, "2 arguments, and the method is limited(x)"),
        ("doubled", 2, "2 arguments, and the method is doubled(x)"),
        ("static", 2, "2 arguments, and the method is static(x)"),
        ("of_class", 2, "2 arguments, and the method is of_class(x)"),
    ],
)
def test_a_wrong_number_of_arguments_fails_at_once(
    node: NodeDriver, name: str, given: int, message: str
) -> None:
    failure = node.failure(name, *range(given))
    assert failure.error == (
        f"task {name!r} was given {message}; its arguments are the base and then one for each "
        "pretask"
    )
    assert failure.retry is False


def test_what_can_be_called_is_called(node: NodeDriver) -> None:
    for name, given in [("optional", 1), ("optional", 2), ("many", 5), ("limited", 1)]:
        assert node.values(name, *range(given)) == {}
    assert node.values("doubled", 1) == node.values("open", 1, 2, 3) == {}
    assert node.values("static", 1) == node.values("of_class", 1) == {}


def test_an_error_of_a_call_inside_is_no_wrong_call(node: NodeDriver) -> None:
    failure = node.failure("fails_inside", 1)
    assert "one() takes 2 positional arguments but 3 were given" in failure.error
    assert failure.retry is True
    assert node.failure("builtin").retry is True


def test_keys_that_would_be_one_in_json_are_named(node: NodeDriver) -> None:
    failure = node.failure("collide")
    assert failure.error == (
        "value under key 'r' of collide holds a dictionary with the keys 1 and '1', which are "
        'both "1" in JSON; use strings that differ'
    )
    assert failure.retry is False
    assert node.values("numbers") == {"r": b'{"1":6,"3.5":4,"null":5}'}


@pytest.mark.parametrize(
    ("value", "first", "second"),
    [
        ({1: "one", "1": "uno"}, "1", "'1'"),
        ({"true": 2, True: 1}, "'true'", "True"),
        ({False: 1, "false": 2}, "False", "'false'"),
        ({None: 3, "null": 4}, "None", "'null'"),
        ({1.5: 1, "1.5": 2}, "1.5", "'1.5'"),
        ({"1e+16": 1, 1e16: 2}, "'1e+16'", "1e+16"),
        ([[{"a": {-1: 0, "-1": 0}}]], "-1", "'-1'"),
    ],
)
def test_every_collision_of_keys_is_found(value: object, first: str, second: str) -> None:
    with pytest.raises(ValueError, match="which are both") as caught:
        encode(value)
    assert f"the keys {first} and {second}," in str(caught.value)


def test_a_key_that_is_no_text_is_told_as_such(node: NodeDriver) -> None:
    for name, key in (("surrogate", "'\\ud800'"), ("raw_surrogate", "'\\udfff'")):
        failure = node.failure(name)
        assert failure.error == (
            f"{name} returned key {key}, which isn't Unicode text: it holds half of a surrogate "
            "pair"
        )
        assert failure.retry is False


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            b'{"\\ud800":1}',
            "line from it has key '\\ud800', which isn't Unicode text; it holds half of a "
            "surrogate pair; use another key",
        ),
        (b'{"id":1,"id":2}', "line from it names key 'id' twice"),
        (
            b'{"event":0,"commands":[],"event":0}',
            "line from it names key 'event' twice",
        ),
        (
            b"hello",
            "line from it isn't a JSON object: 'hello'; print to stderr, stdout carries the "
            "protocol",
        ),
    ],
)
def test_a_line_that_is_json_is_not_taken_for_a_print(line: bytes, sentence: str) -> None:
    readers: list[Any] = [
        NodeReader(who="it", line_bytes_max=1000, value_bytes_max=1000),
        SchedulerReader(who="it", line_bytes_max=1000),
    ]
    for reader in readers:
        reader.feed(b'{"ready":{}}\n')
        with pytest.raises(RemoteProtocolError) as caught:
            reader.feed(line + b"\n")
        assert str(caught.value) == sentence


# --- programs that never speak -------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("true", 'without its first line {"ready":{}}; a Python node calls .start() at its end'),
        (
            "printf hello",
            "without its first line {\"ready\":{}} but 'hello'; a Python node calls .start() at "
            "its end",
        ),
    ],
)
def test_a_node_that_ends_without_a_word_is_told_what_was_expected(
    tmp_path: Path, printed: str, words: str
) -> None:
    async def main() -> None:
        async with world(
            tmp_path, node_start_tries_max=1, node_restart_pause_min_ms=0
        ) as here:
            here.program(f"#!/bin/sh\n{printed}\necho bye >&2\n")
            here.coordinator.give(view(whole=True, run=(assignment(0),)))
            await until(lambda: here.coordinator.failures)
            assert here.coordinator.failures[0].error == (
                f"no node of 'node.sh' got ready in 1 start: exit code 0 {words}; "
                "its stderr ended with:\nbye"
            )

    run(main)


ATTACH = """
import sys
from tasksprint.process.attach import attach_and_exec
attach_and_exec(["/bin/sh", "-c", sys.argv[2]], name="mine", version="1", socket_file=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "code"),
    [
        (
            "echo hi; sleep 60",
            "is killed: it broke the protocol: node 1 began with 'hi', expected "
            '{"ready":{}} as its first line; print to stderr, stdout carries the protocol',
            -signal.SIGKILL,
        ),
        (
            "exit 3",
            'ended without its first line {"ready":{}}; a Python node calls .start() at its end',
            3,
        ),
    ],
)
def test_an_attached_program_that_is_no_node_is_told_so_where_it_was_started(
    tmp_path: Path, script: str, words: str, code: int
) -> None:
    async def main() -> None:
        async with world(tmp_path) as here:
            jobs = (JobEntry(JobId(1), "", "attached:mine"),)
            here.coordinator.give(view(whole=True, jobs=jobs))
            node = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", ATTACH, str(socket_path(tmp_path)), script),
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
            _, told = await node.communicate()
            assert told.decode() == f"tasksprint: node 'mine' {words}\n"
            assert node.returncode == code

    run(main)


# --- jobs that can't be meant so -----------------------------------------------------

DECLARED = Manifest("job", ("s",), ("n",), params='{"samples": 5, "seed_block": 1}')


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["sampels=100"],
            "--param 'sampels' is none of the job's parameters; did you mean 'samples'?",
        ),
        (
            ["x=1"],
            "--param 'x' is none of the job's parameters; tasksprint.json has 'samples', "
            "'seed_block'",
        ),
        (["samples=1", "samples=2"], "--param 'samples' is given twice"),
        (["samples=" + "[" * 100_000], "--param 'samples' is nested too deeply"),
        (["samples=\udcff"], "--param 'samples=\\udcff' isn't UTF-8"),
        (["samples"], "--param 'samples' is not NAME=VALUE"),
    ],
)
def test_a_parameter_that_cannot_be_meant_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_params(DECLARED, options)
    assert str(caught.value) == sentence


def test_a_job_that_declares_no_parameters_takes_all() -> None:
    free = Manifest("job", ("s",), ("n",))
    assert parse_params(free, ["a=1", "b=x"]) == '{"a":1,"b":"x"}'
    # A number stays one however long it is.
    assert parse_params(free, [f"n={LONG}"]) == f'{{"n":{LONG}}}'
    assert parse_params(DECLARED, ["samples=7"]) == '{"samples":7,"seed_block":1}'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"retries": 1180591620717411303424}',
            "tasksprint.json has 'retries': 1180591620717411303424, expected an integer from 0 "
            "to 2**53 - 1",
        ),
        (
            '{"name": "\\ud800"}',
            "tasksprint.json has '\\ud800', half of a surrogate pair, in a text",
        ),
    ],
)
def test_a_manifest_is_read_exactly(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_manifest(text, directory=tmp_path)
    assert str(caught.value) == sentence


MANIFEST = {"scheduler": ["s.sh"], "node": ["attached:x"]}


def submission(**changed: Any) -> dict[str, Any]:
    """Return the members of a request that submits a job; None leaves one out."""
    manifest = {**MANIFEST, **changed.pop("manifest", {})}
    whole = {
        **{"sender": "me", "request": 1, "name": "job", "seed": 5, "params": "{}"},
        **{"program": "0" * 64, "manifest": json.dumps(manifest)},
        **changed,
    }
    return {name: value for name, value in whole.items() if value is not None}


def test_job_that_the_document_hands_in_with_curl_is_taken(tmp_path: Path) -> None:
    """The document's own lines, run by a shell up to what curl would send."""
    document = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    script = document.partition("TOKEN=$(tasksprint token")[2].partition("```")[0]
    script = script.partition("\n")[2].replace("-C examples", f"-C {ROOT}/examples")
    without_network = "curl() { :; }\n" + script
    subprocess.run(["sh", "-ec", without_network], cwd=tmp_path, check=True, timeout=30)
    command = read_submit((tmp_path / "job.json").read_bytes())
    archive = (tmp_path / "job.tar.gz").read_bytes()
    assert command.program == hashlib.sha256(archive).hexdigest()
    job = read_job(ROOT / "examples" / "wordcount")
    assert json.loads(command.params) == json.loads(job.params)
    with tarfile.open(tmp_path / "job.tar.gz") as tar:
        assert {f"./{job.scheduler[0]}", f"./{job.node[0]}"} <= set(tar.getnames())
    assert json.loads(json.loads(command.manifest)["node"]) == {"node": list(job.node)}
    assert json.loads(command.manifest)["scheduler"] == list(job.scheduler)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": -1}, "'seed' is -1, expected an integer from 0 to 2**63 - 1"),
        ({"seed": 2**63}, f"'seed' is {2**63}, expected an integer from 0 to 2**63 - 1"),
        ({"seed": 2**70}, f"'seed' is {2**70}, expected an integer from 0 to 2**63 - 1"),
        ({"seed": 1.0}, "'seed' is 1.0, expected an integer from 0 to 2**63 - 1"),
        ({"seed": True}, "'seed' is true, expected an integer from 0 to 2**63 - 1"),
        ({"seed": "5"}, "'seed' is \"5\", expected an integer from 0 to 2**63 - 1"),
        ({"seed": None}, "'seed' is null, expected an integer from 0 to 2**63 - 1"),
        ({"request": -1}, "'request' is -1, expected an integer from 0 to 2**63 - 1"),
        ({"params": "[1]"}, "the job's parameters: found [1], expected a JSON object"),
        ({"params": "5"}, "the job's parameters: found 5, expected a JSON object"),
        ({"params": {}}, "'params' is {}, expected a string"),
        ({"params": '{"a":1,"a":2}'}, "the job's parameters: 'a' stands twice in one object"),
        (
            {"params": f'{{"n":{LONG}}}'},
            "the job's parameters: a number is too large; give numbers of more than 308 digits "
            "as strings",
        ),
        ({"name": "n" * 1025}, "'name' has 1025 bytes, expected at most 1024"),
        ({"name": 5}, "'name' is 5, expected a string"),
        ({"sender": "é" * 513}, "'sender' has 1026 bytes, expected at most 1024"),
        ({"colour": "red"}, "the body has an unknown member 'colour'"),
        (
            {"manifest": {"retries": 2**70}},
            f"the manifest's 'retries' is {2**70}, expected an integer from 0 to 2**53 - 1",
        ),
        (
            {"manifest": {"timeout_ms": 1.5}},
            "the manifest's 'timeout_ms' is 1.5, expected an integer from 0 to 2**53 - 1",
        ),
        (
            {"manifest": {"seed": 2**64}},
            f"the manifest's 'seed' is {2**64}, expected an integer from 0 to 2**63 - 1",
        ),
        (
            {"manifest": {"retires": 1}},
            "the manifest has an unknown field 'retires'; did you mean 'retries'?",
        ),
        ({"manifest": {"interpreter": 5}}, "the manifest's 'interpreter' is not a string"),
        ({"manifest": {"setup": "make"}}, "the manifest's 'setup' is not a list of strings"),
        (
            {"manifest": {"environment": {"A": 1}}},
            "the manifest's 'environment' is not an object of texts",
        ),
    ],
)
def test_a_submission_that_cannot_be_meant_is_refused_exactly(
    changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Refused) as caught:
        read_submit(json.dumps(submission(**changed)).encode())
    assert str(caught.value) == sentence
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"sender":"\\ud800"}', b"[" * 100_000])
def test_a_submission_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_submit(body)
    assert caught.value.status == 400


def test_numbers_of_a_job_stay_as_they_were_written() -> None:
    params = '{"n": 1180591620717411303424, "x": 1.0e5}'
    manifest = {"params": json.loads(params), "retries": 2**53 - 1}
    fields = submission(params=params, manifest=manifest)
    command = read_submit(json.dumps(fields).encode())
    assert command.params == params
    # Those of the manifest would say it a second time, and less exactly.
    assert json.loads(command.manifest) == {
        **{"scheduler": ["s.sh"], "node": "attached:x"},
        "retries": 2**53 - 1,
    }


def test_what_is_refused_is_not_answered_with_200(tmp_path: Path) -> None:
    async def main() -> None:
        async with members(1, tmp_path) as of:
            leader = await of.leader()
            asked = json.dumps({"sender": "me", "request": 1, "reason": ""}).encode()
            for path, status, error in [
                ("/v1/jobs/7/cancel", 404, "there is no job 7"),
                ("/v1/jobs/7/forget", 404, "there is no job 7"),
            ]:
                answer = await leader.ask("POST", path, body=asked.replace(b"me", path.encode()))
                assert (answer.status, answer.json()) == (status, {"error": error})
            refused = json.dumps(submission(seed=-1)).encode()
            answer = await leader.ask("POST", "/v1/jobs", body=refused)
            assert answer.status == 400
            assert answer.json() == {
                "error": "'seed' is -1, expected an integer from 0 to 2**63 - 1"
            }

    run(main)


def test_long_names_end_the_job_and_not_the_coordinators_memory() -> None:
    for command, error in [
        (TaskSpec("n" * 1025), "task 0 has the name '" + "n" * 40 + "…' of 1025 bytes, more "),
        (TaskSpec("a", keys=("é" * 513,)), "task 0 has the key '" + "é" * 40 + "…' of 1026 byt"),
        (
            TaskSpec("a", keys=("k",) * 20 + ("k" * 1025,)),
            "task 0 has the key '" + "k" * 40 + "…' of 1025 bytes, more than 1024 (name_",
        ),
    ]:
        world = World()
        job = world.submit()
        world.answer(job, command)
        summary = world.schedule.job_summary(job)
        assert summary is not None
        assert summary["state"] == "failed"
        assert error in str(summary["error"])
    long = World()
    assert long.submit(name="n" * 1024) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run job --parm x=1", "unrecognized arguments: --parm x=1; did you mean '--param'?"),
        ("submit job --wiat", "unrecognized arguments: --wiat; did you mean '--wait'?"),
        (
            "member add 4=h:1 --coordinator=h:1 --timout 3",
            "unrecognized arguments: --timout 3; did you mean '--timeout'?",
        ),
        ("jobs --xyz", "unrecognized arguments: --xyz; see 'tasksprint jobs --help'"),
        ("jobs 7", "unrecognized arguments: 7; see 'tasksprint jobs --help'"),
        (
            "log verify --data=x f g",
            "unrecognized arguments: g; see 'tasksprint log verify --help'",
        ),
    ],
)
def test_option_that_is_misspelled_is_told_with_the_one_that_was_meant(
    line: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(line.split())
    assert str(caught.value) == words
