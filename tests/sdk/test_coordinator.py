"""Real scheduler programs over a socket: commands, checks, prints, replay and crashes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasksprint.protocol.scheduler_lines import (
    SchedulerAnswer,
)
from tasksprint.scheduler_commands import (
    FailJob,
    FinishJob,
    HandleEvents,
    KillTask,
    ReleaseTasks,
    StartTimer,
    WriteLog,
)
from tasksprint.task_spec import TaskSpec
from tests.sdk.programs import Program, SchedulerDriver, write_program

# Runs what the test sends as a parameter; the name of an exception and its text are logged.
SCHEDULER = """
    from TaskSprintCoordinator import *
    import random

    class Scheduler(TaskSprintCoordinator):
        def init(self, seed):
            self.chance = random.random()
            for number in range(self.params.get("tasks", 0)):
                self.start_task(name="noop")
        def client_joined(self, cid, num_nodes):
            self.log("joined %d with %d" % (cid, num_nodes))
        def client_dead(self, cid):
            self.log("dead %d" % cid)
        def task_done(self, tid, values):
            try:
                exec(values["code"], {"self": self, "random": random, "tid": tid,
                                      "values": values})
            except (ValueError, TypeError) as error:
                self.log("%s: %s" % (type(error).__name__, error))
        def timer(self, timer):
            self.log("timer %d at %d" % (timer, self.now_ms))
    Scheduler().start()
"""


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[SchedulerDriver]:
    argv = write_program(tmp_path / "scheduler.py", SCHEDULER)
    with Program(argv, stderr=tmp_path / "stderr") as program:
        yield SchedulerDriver(program)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SchedulerDriver]:
    """One scheduler with three tasks, for tests that start no others."""
    folder = tmp_path_factory.mktemp("scheduler")
    argv = write_program(folder / "scheduler.py", SCHEDULER)
    with Program(argv, stderr=folder / "stderr") as program:
        driver = SchedulerDriver(program)
        assert driver.init({"tasks": 3}) == (TaskSpec("noop"),) * 3
        yield driver


def execute(scheduler: SchedulerDriver, code: str, **more: Any) -> tuple[Any, ...]:
    return scheduler.event("task_done", tid=0, values={"code": code}, **more)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Any]:
    """Start a scheduler from its text."""
    programs: list[Program] = []

    def start(text: str) -> SchedulerDriver:
        argv = write_program(tmp_path / f"s{len(programs)}.py", text)
        program = Program(argv, stderr=tmp_path / f"stderr{len(programs)}")
        programs.append(program.__enter__())
        return SchedulerDriver(program)

    yield start
    for program in programs:
        program.__exit__()


# --- commands ---


def test_every_command_with_every_argument(scheduler: SchedulerDriver) -> None:
    scheduler.init()
    assert execute(
        scheduler,
        """
a = self.start_task("map", [1.5, "نص", 2**70, None])
b = self.start_task(name="merge", base=(1,), pretasks=[a], prekeys=("r",), keys=["x", "y"],
                    retries=0, timeout=1.5)
assert (a, b) == (0, 1)
self.start_task("slow", timeout_ms=250)
self.kill_task(tid=b)
self.log("سطر")
assert self.start_timer(0.25) == 1
assert self.start_timer(2) == 2
self.release([a])
self.finish(taskids=[a], values={"pi": 3.14})
self.finish()
self.fail("cause")
""",
    ) == (
        TaskSpec("map", '[1.5,"نص",1180591620717411303424,null]'),
        TaskSpec("merge", "[1]", (0,), ("r",), ("x", "y"), 0, 1500),
        TaskSpec("slow", timeout_ms=250),
        KillTask(1),
        WriteLog("سطر"),
        StartTimer(1, 250),
        StartTimer(2, 2000),
        ReleaseTasks((0,)),
        FinishJob((0,), '{"pi":3.14}'),
        FinishJob((), "{}"),
        FailJob("cause"),
    )  # fmt: skip


def test_list_that_changes_after_the_call_changes_nothing(scheduler: SchedulerDriver) -> None:
    scheduler.init()
    code = "base = [1]; self.start_task('a', base=base); base.append(2)"
    assert execute(scheduler, code) == (TaskSpec("a", "[1]"),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("start_task('')", "start_task: name is '', expected the name of a node's method"),
        ("start_task(None)", "start_task: name is None, expected the name"),
        ("start_task('\\ud800')", "start_task: name '\\ud800' isn't Unicode text"),
        (
            "start_task('a', base=[1, float('nan')])",
            "start_task 'a': argument 1 of base holds NaN or Infinity, which JSON doesn't have",
        ),
        (
            "start_task('a', base=[{1}])",
            "start_task 'a': argument 0 of base holds a set, which JSON can't carry",
        ),
        ("start_task('a', base=[b'x'])", "start_task 'a': argument 0 of base is bytes, which"),
        ("start_task('a', base='abc')", "base is str, expected a list of arguments; put a single"),
        ("start_task('a', base={'x': 1})", "base is dict, expected a list of arguments"),
        (
            "start_task('a', pretasks=[3], prekeys=['r'])",
            "start_task 'a': pretasks: task 3 isn't known, expected a tid from 0 to 2",
        ),
        ("start_task('a', pretasks=[-1], prekeys=['r'])", "task -1 isn't known"),
        ("start_task('a', pretasks=['0'], prekeys=['r'])", "'0' is no tid, expected what start"),
        ("start_task('a', pretasks=[True], prekeys=['r'])", "True is no tid"),
        (
            "start_task('a', pretasks=[0, 1], prekeys=['r'])",
            "start_task 'a': 2 pretasks and 1 prekeys, expected one key for each pretask",
        ),
        ("start_task('a', prekeys=['r'])", "0 pretasks and 1 prekeys, expected one key for each"),
        ("start_task('a', keys='result')", "keys is the string 'result', expected a list of str"),
        ("start_task('a', keys=[1])", "keys holds 1 of type int, expected strings"),
        ("start_task('a', pretasks=[0], prekeys='r')", "prekeys is the string 'r', expected"),
        ("start_task('a', retries=-1)", "retries is -1, expected how often it may be tried"),
        ("start_task('a', retries=True)", "retries is True, expected how often"),
        ("start_task('a', priority='high')", "priority is 'high', expected an integer from"),
        ("start_task('a', priority=2**31)", "priority is 2147483648, expected an integer from"),
        ("start_task('a', timeout=0)", "timeout is 0, expected a number above 0"),
        ("start_task('a', timeout_ms=-5)", "timeout_ms is -5, expected a number above 0"),
        ("start_task('a', timeout=1, timeout_ms=1)", "timeout and timeout_ms are both given"),
        ("kill_task(3)", "kill_task: task 3 isn't known, expected a tid from 0 to 2"),
        ("finish(taskids=[9])", "finish: task 9 isn't known"),
        ("finish(values={'x': float('inf')})", "finish: value under key 'x' holds NaN or Inf"),
        (
            "finish(values={'x': b''})",
            "finish: value under key 'x' is bytes, which JSON can't carry; name its task in "
            "taskids, so that it can be read from there, and leave it out",
        ),
        ("finish(values={1, 2})", "finish: values holds a set, which JSON can't carry"),
        ("release([7])", "release: task 7 isn't known"),
        ("start_timer(0)", "start_timer: seconds is 0, expected a number above 0"),
        ("start_timer(float('nan'))", "start_timer: seconds is nan, expected a number above 0"),
    ],
)
def test_wrong_call_raises_valueerror_with_a_sentence(
    shared: SchedulerDriver, call: str, message: str
) -> None:
    (logged,) = execute(shared, f"self.{call}")
    assert isinstance(logged, WriteLog)
    assert logged.text.startswith("ValueError: ")
    assert message in logged.text


def test_tid_before_any_task_was_started_is_refused(scheduler: SchedulerDriver) -> None:
    scheduler.init()
    assert execute(scheduler, "self.kill_task(0)") == (
        WriteLog("ValueError: kill_task: task 0 isn't known, none was started yet"),
    )


def test_call_that_failed_used_no_tid(scheduler: SchedulerDriver) -> None:
    scheduler.init()
    execute(scheduler, "self.start_task('a', keys='x')")
    assert execute(scheduler, "self.log(str(self.start_task('a')))") == (
        TaskSpec("a"),
        WriteLog("0"),
    )


# --- events ---


def test_handlers_get_what_they_ask_for(shared: SchedulerDriver) -> None:
    assert shared.event("client_joined", cid=1, num_nodes=2) == (WriteLog("joined 1 with 2"),)
    assert shared.event("client_dead", cid=1) == (WriteLog("dead 1"),)
    assert shared.event("timer", timer=5) == (WriteLog("timer 5 at 500"),)
    assert execute(shared, "self.log(repr((tid, sorted(values), values['b'])))",
                   base64={"b": "AP8="}) == (
        WriteLog("(0, ['b', 'code'], b'\\x00\\xff')"),
    )  # fmt: skip
    assert shared.event("something_new", x=1) == ()


def test_random_is_seeded_from_the_job_and_nothing_else(tmp_path: Path) -> None:
    argv = write_program(tmp_path / "scheduler.py", SCHEDULER)
    found = []
    for seed in (5, 5, 6):
        with Program(argv, stderr=tmp_path / "stderr") as program:
            driver = SchedulerDriver(program)
            driver.init(seed=seed)
            found.append(execute(driver, "self.log(repr((self.chance, random.random())))"))
    assert found[0] == found[1] != found[2]


def test_older_handlers_take_fewer_arguments(other: Any) -> None:
    scheduler = other(
        """
        from TaskSprintCoordinator import *
        import functools
        def logged(function):
            @functools.wraps(function)
            def wrapper(*args): return function(*args)
            return wrapper
        class Scheduler(TaskSprintCoordinator):
            def init(self): self.log("init")
            def client_joined(self, cid): self.log("joined %d" % cid)
            @logged
            def client_dead(self): self.log("dead")
            def task_failed(self, *args): self.log(repr(args))
        Scheduler().start()
        """
    )
    assert scheduler.init() == (WriteLog("init"),)
    assert scheduler.event("client_joined", cid=4, num_nodes=2) == (WriteLog("joined 4"),)
    assert scheduler.event("client_dead", cid=4) == (WriteLog("dead"),)
    assert scheduler.event("task_done", tid=0, values={}) == ()
    assert scheduler.event("timer", timer=1) == ()
    assert scheduler.event("task_failed", tid=1, error="e", detail={"x": 1}) == (
        WriteLog("(1, 'e', {'x': 1})"),
    )


def test_failed_task_fails_the_job_unless_there_is_a_handler(shared: SchedulerDriver) -> None:
    assert shared.event("task_failed", tid=2, error="ValueError: no", detail={}) == (
        FailJob("task 2 failed: ValueError: no"),
    )


def test_class_may_use_the_names_that_the_sdk_uses(other: Any) -> None:
    scheduler = other(
        """
        from TaskSprintCoordinator import *
        class Scheduler(TaskSprintCoordinator):
            params = "mine"
            timer = 5
            def __init__(self):
                self.session, self.fail, self.now_ms = 1, 2, 3
            def client_joined(self, cid): self.log(repr((self.params, self.session, self.fail)))
        Scheduler().start()
        """
    )
    assert scheduler.init({"x": 1}) == ()
    assert scheduler.event("client_joined", cid=1, num_nodes=1) == (WriteLog("('mine', 1, 2)"),)
    assert scheduler.event("timer", timer=1) == ()
    assert scheduler.event("task_failed", tid=0, error="e", detail={}) == (
        FailJob("task 0 failed: e"),
    )


# --- parts and batches ---


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 2_000, 2_500])
def test_answers_are_cut_after_every_thousandth_command(other: Any, count: int) -> None:
    scheduler = other(SCHEDULER)
    scheduler.program.send(scheduler.line("init", seed=1, job=1, params={"tasks": count}))
    parts: list[SchedulerAnswer] = []
    while not parts or not parts[-1].last:
        parts.append(scheduler.next())
    sizes = [len(part.commands) for part in parts]
    assert sum(sizes) == count
    assert all(size == 1_000 for size in sizes[:-1])
    assert sizes[-1] <= 1_000 and (count == 0 or sizes[-1] > 0)
    assert [part.part for part in parts] == list(range(len(parts)))


def test_many_events_at_once_are_answered_in_order_and_in_few_writes(
    shared: SchedulerDriver,
) -> None:
    lines = [shared.line("something_new") for _ in range(500)]
    shared.program.send(b"".join(lines))
    chunks = 0
    answers: list[Any] = []
    while len(answers) < 500:
        answers += shared.reader.feed(shared.program.receive())
        chunks += 1
    assert all(answer.commands == () for answer in answers)
    assert chunks < 100


# --- what it handles ---


def first_answer(tmp_path: Path, handlers: str, rules: int | None) -> tuple[Any, ...]:
    text = f"""
        from TaskSprintCoordinator import *

        class Scheduler(TaskSprintCoordinator):
            def init(self, seed): self.log("first")
            {handlers}
        Scheduler().start()
    """
    argv = write_program(tmp_path / "handles.py", text)
    with Program(argv, stderr=tmp_path / "stderr", rules=rules) as program:
        return SchedulerDriver(program).init()


@pytest.mark.parametrize(
    ("handlers", "handles"),
    [
        ("", ("task_failed",)),
        ("def task_done(self, tid, values): pass", ("task_done", "task_failed")),
        (
            "def timer(self, timer): pass; client_joined = client_dead = task_failed = timer",
            ("client_joined", "client_dead", "task_failed", "timer"),
        ),
        ("timer = 5", ("task_failed",)),
    ],
)
def test_first_answer_says_which_handlers_the_class_defines(
    tmp_path: Path, handlers: str, handles: tuple[str, ...]
) -> None:
    handlers = handlers.replace("; ", "\n            ")
    assert first_answer(tmp_path, handlers, 2) == (HandleEvents(handles), WriteLog("first"))


@pytest.mark.parametrize("rules", [None, 1])
def test_under_older_rules_it_answers_as_the_last_release_did(
    tmp_path: Path, rules: int | None
) -> None:
    """A coordinator of the last release says no rules, and has another SDK beside it."""
    assert first_answer(tmp_path, "def timer(self, timer): pass", rules) == (WriteLog("first"),)


@pytest.mark.parametrize(("rules", "priority"), [(None, 0), (1, 0), (2, 5)])
def test_priority_is_said_where_the_rules_of_the_job_know_it(
    tmp_path: Path, rules: int | None, priority: int
) -> None:
    started = first_answer(tmp_path, "def init(self): self.start_task('a', priority=5)", rules)
    assert started[-1] == TaskSpec("a", priority=priority)


# --- prints, replay, crashes ---


def test_prints_go_to_stderr_and_are_marked_while_replaying(
    scheduler: SchedulerDriver,
) -> None:
    scheduler.init()
    scheduler.program.send(b'{"control":"replay","end_event":2}\n')
    execute(scheduler, "print('old', 1); print('lines\\nof text')")
    scheduler.program.send(b'{"control":"live"}\n')
    execute(scheduler, "print('new'); import os; os.write(1, b'raw\\n')")
    scheduler.program.end_input()
    assert scheduler.program.wait() == 0
    assert scheduler.program.stderr() == (
        "[replay] old 1\n[replay] lines\n[replay] of text\nnew\nraw\n"
    )


def test_control_line_that_was_not_agreed_on_is_reported_and_survived(
    scheduler: SchedulerDriver,
) -> None:
    scheduler.program.send(b'{"control":"checkpoint","event":1}\n')
    assert scheduler.init({"tasks": 1}) == (TaskSpec("noop"),)
    assert "scheduler got control 'checkpoint', which it doesn't know" in (
        scheduler.program.stderr()
    )


def test_exception_in_a_handler_ends_the_scheduler_with_its_traceback(
    scheduler: SchedulerDriver,
) -> None:
    lines = [
        scheduler.line("init", seed=1, job=1, params={"tasks": 1}),
        scheduler.line("task_done", tid=0, values={"code": "1 / 0"}),
    ]
    scheduler.program.send(b"".join(lines))
    # What was answered before isn't lost.
    assert scheduler.next().commands == (TaskSpec("noop"),)
    assert scheduler.program.wait() == 1
    shown = scheduler.program.stderr()
    assert shown.startswith("scheduler failed in event 1 task_done(0):\nTraceback (most recent")
    assert shown.endswith("ZeroDivisionError: division by zero\n")
    assert "sdk" not in shown


@pytest.mark.parametrize(
    ("code", "is_hinted"),
    [("values['result']", True), ("{}['code']", False), ("{}[5]", False)],
)
def test_value_that_keys_did_not_name_is_told_with_the_remedy(
    scheduler: SchedulerDriver, code: str, *, is_hinted: bool
) -> None:
    scheduler.init({"tasks": 1})
    scheduler.program.send(scheduler.line("task_done", tid=0, values={"code": code}))
    assert scheduler.program.wait() == 1
    shown = scheduler.program.stderr().splitlines()
    hint = "task 0 has no value under 'result'; name it in keys= of start_task"
    assert shown[-2 if is_hinted else -1].startswith("KeyError: ")
    assert (shown[-1] == hint) == is_hinted


def test_sys_exit_in_a_handler_ends_the_scheduler_with_its_code(
    scheduler: SchedulerDriver,
) -> None:
    scheduler.init()
    scheduler.program.send(
        scheduler.line("task_done", tid=0, values={"code": "import sys; sys.exit(7)"})
    )
    assert scheduler.program.wait() == 7


def test_command_outside_of_an_event_is_refused(other: Any) -> None:
    scheduler = other(
        """
        from TaskSprintCoordinator import *
        class Scheduler(TaskSprintCoordinator):
            pass
        made = Scheduler()
        try:
            made.start_task("a")
        except RuntimeError as error:
            print(error)
        made.start()
        """
    )
    assert scheduler.init() == ()
    assert scheduler.program.stderr() == (
        "start_task was called outside of an event; call it in a handler, such as init\n"
    )


def test_end_of_input_ends_the_scheduler_quietly(scheduler: SchedulerDriver) -> None:
    scheduler.init()
    scheduler.program.end_input()
    assert scheduler.program.wait() == 0
    assert scheduler.program.stderr() == ""


def test_finish_can_return_everything_that_json_has(scheduler: SchedulerDriver) -> None:
    scheduler.init()
    (finish,) = execute(scheduler, "self.finish(values={'a': [1, None, True, {'b': 'ü'}]})")
    assert json.loads(finish.values) == {"a": [1, None, True, {"b": "ü"}]}


@pytest.mark.parametrize("images", [0, 2])
def test_example_of_the_document_finishes_whatever_its_last_task_does(
    other: Any, images: int
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    [example] = [part for part in text.split("```") if "class Shrink(" in part and "Coord" in part]
    scheduler = other(example.removeprefix("python\n"))
    commands = scheduler.init({"images": [f"{number}.png" for number in range(images)]})
    if images:
        assert [type(command) for command in commands] == [TaskSpec, TaskSpec]
        assert scheduler.event("task_done", tid=0, values={"width": 7}) == ()
        failed = scheduler.event("task_failed", tid=1, error="no", detail={"host": "vm"})
        assert failed[0] == WriteLog("1 failed on vm: no")
        commands = failed[1:]
    [finish] = commands
    assert isinstance(finish, FinishJob)
    assert json.loads(finish.values) == {"widths": {"0": 7} if images else {}}
