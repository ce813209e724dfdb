"""Real node programs over a socket: what they return, refuse, print and survive."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasksprint.protocol.node_lines import NodeReady, NodeReply
from tests.sdk.programs import ROOT, NodeDriver, Program, write_program

NODE = """
    from TaskSprintNode import *
    from tasksprint import TaskFailed
    import ctypes, os, random, subprocess, sys, time

    print("before start")

    class Node(TaskSprintNode):
        total = 0

        def echo(self, *args): return {"args": list(args)}
        def nothing(self): return None
        def empty(self): return {}
        def constant(self): return {"r": 1}

        # --- results ---
        def big_number(self): return {"r": 2**70}
        def arabic(self): return {"نتيجة": "قيمة"}
        def bytes_of(self, size): return {"data": b"\\n\\xff" * (size // 2), "size": size}
        def small_numbers(self, count): return {"r": list(range(count))}
        def changing(self):
            self.shared = bytearray(b"first")
            return {"r": self.shared, "view": memoryview(self.shared)[::2]}
        def change(self):
            self.shared[:] = b"xxxxx"
            return {}
        def lengths(self, *args): return {"r": [type(a).__name__ + str(len(a)) for a in args]}
        def half_surrogate(self): return {"r": "\\ud800"}

        # --- results that can't be sent ---
        def nan(self): return {"good": 1.0, "bad": [1.0, float("nan")]}
        def infinite(self): return {"bad": {"deep": float("-inf")}}
        def a_list(self): return [1]
        def an_int(self): return 1
        def integer_key(self): return {1: 2}
        def a_set(self): return {"good": 1, "bad": {"x": {1, 2}}}
        def inner_bytes(self): return {"bad": [b"x"]}
        def itself(self):
            loop = []
            loop.append(loop)
            return {"bad": loop}
        def own_class(self): return {"bad": Node}

        # --- errors ---
        def divide(self): return {"r": 1 / 0}
        def leave(self): sys.exit(3)
        def give_up(self): raise TaskFailed("no such block")
        def try_again(self): raise TaskFailed("busy", retry=True)
        def silent(self): raise ValueError
        def long_error(self): raise ValueError("x" * 100000)
        def odd_error(self):
            class Odd(Exception):
                def __str__(self): raise RuntimeError
            raise Odd
        def recurse(self): return self.recurse()

        # --- prints ---
        def shout(self, text):
            print(text)
            os.write(1, b"raw\\n")
            ctypes.CDLL(None).puts(b"from C")
            ctypes.CDLL(None).fflush(None)
            subprocess.run(["echo", "from a child"])
            sys.stdout.write("without newline")
            return {"r": text}
        def read_stdin(self): return {"r": sys.stdin.read()}

        # --- chance ---
        def chance(self): return {"r": random.random()}
        def which(self): return {"r": [self.task.tid, self.task.job, self.task.attempt,
                                       self.task.seed], "text": repr(self.task)}

        # --- time ---
        def slow(self, seconds):
            time.sleep(seconds)
            return {"r": seconds}
        def wait_for(self, path):
            while not os.path.exists(path): time.sleep(0.005)
            return {"r": path}

        def _private(self): return {}
        not_callable = 5

    Node().start()
    print("after start")
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeDriver]:
    """One node for all tests that leave it as it was; starting one takes longer than a test."""
    folder = tmp_path_factory.mktemp("node")
    with Program(write_program(folder / "node.py", NODE), stderr=folder / "stderr") as program:
        yield NodeDriver(program)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeDriver]:
    argv = write_program(tmp_path / "node.py", NODE)
    with Program(argv, stderr=tmp_path / "stderr") as program:
        yield NodeDriver(program)


def test_node_says_that_it_takes_frames_and_many_tasks(shared: NodeDriver) -> None:
    assert shared.ready == NodeReady(True, 64, shared.ready.runtime)


# --- results ---


def test_arguments_come_and_values_go_unchanged(shared: NodeDriver) -> None:
    args = [1, "نص", 2**70, [None, True, {"a": 1.5}], -0.0]
    assert json.loads(shared.values("echo", *args)["args"]) == args  # type: ignore[arg-type]


def test_inputs_follow_the_base(shared: NodeDriver) -> None:
    inputs = [("json", b"[1.50]"), ("bytes", b"\n" * 70_000), ("bytes", b"")]
    assert shared.values("lengths", "ab", inputs=inputs) == {
        "r": b'["str2","list1","bytes70000","bytes0"]'
    }


def test_nothing_and_an_empty_dictionary_are_results(shared: NodeDriver) -> None:
    assert shared.values("nothing") == {}
    assert shared.values("empty") == {}


def test_integer_beyond_64_bits_keeps_its_digits(shared: NodeDriver) -> None:
    assert shared.values("big_number") == {"r": b"1180591620717411303424"}


def test_keys_and_strings_of_any_alphabet(shared: NodeDriver) -> None:
    assert shared.values("arabic") == {"نتيجة": '"قيمة"'.encode()}


def test_five_mebibytes_of_bytes_travel_raw(shared: NodeDriver) -> None:
    size = 5 << 20
    assert shared.values("bytes_of", size) == {
        "data": b"\n\xff" * (size // 2),
        "size": b"%d" % size,
    }


def test_hundred_thousand_small_numbers(shared: NodeDriver) -> None:
    expected = json.dumps(list(range(100_000)), separators=(",", ":")).encode()
    assert shared.values("small_numbers", 100_000) == {"r": expected}


def test_buffer_that_the_next_task_changes_was_sent_as_it_was(shared: NodeDriver) -> None:
    shared.program.send(*shared.line("changing"), *shared.line("change"))
    first = shared.next()
    assert isinstance(first, NodeReply)
    assert first.values == (("r", "bytes", b"first"), ("view", "bytes", b"frt"))
    assert isinstance(shared.next(), NodeReply)


def test_half_a_surrogate_pair_is_sent_escaped(shared: NodeDriver) -> None:
    assert shared.values("half_surrogate") == {"r": b'"\\ud800"'}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "value under key 'bad' of nan holds NaN or Infinity, which JSON doesn't have; "
                "use None or a string"),
        ("infinite", "value under key 'bad' of infinite holds NaN or Infinity"),
        ("a_list", "a_list returned a list, expected a dictionary of keys and values, "
                   "such as {'result': 1}"),
        ("an_int", "an_int returned an int, expected a dictionary of keys and values"),
        ("integer_key", "integer_key returned key 1 of type int, expected strings"),
        ("a_set", "value under key 'bad' of a_set holds a set, which JSON can't carry; make it "
                  "of str, int, float, bool, None, list and dict, or return bytes"),
        ("inner_bytes", "value under key 'bad' of inner_bytes holds bytes inside, which JSON "
                        "can't carry; put them under a key of their own"),
        ("itself", "value under key 'bad' of itself can't be written as JSON: circular "
                   "reference detected"),
        ("own_class", "value under key 'bad' of own_class holds a type, which JSON can't carry"),
        ("nope", "node Node has no method 'nope', expected one of 'a_list', 'a_set', 'an_int'"),
        ("_private", "node Node has no method '_private', expected one of"),
        ("start", "node Node has no method 'start', expected one of"),
        ("__init__", "node Node has no method '__init__', expected one of"),
        ("not_callable", "node Node has no method 'not_callable', expected one of"),
        ("give_up", "no such block"),
    ],
)  # fmt: skip
def test_what_would_fail_again_is_not_retried(shared: NodeDriver, name: str, message: str) -> None:
    failure = shared.failure(name)
    assert failure.error.startswith(message)
    assert failure.retry is False
    # The node goes on, and the encoder has forgotten what it was inside of.
    assert shared.values("constant") == {"r": b"1"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divide", "ZeroDivisionError: division by zero"),
        ("leave", "SystemExit: 3"),
        ("silent", "ValueError"),
        ("odd_error", "Odd: (its text can't be shown)"),
        ("recurse", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_exception_fails_the_attempt_with_its_name(
    shared: NodeDriver, name: str, message: str
) -> None:
    failure = shared.failure(name)
    assert failure.error.startswith(message)
    assert failure.retry is True
    assert shared.values("constant") == {"r": b"1"}


def test_traceback_begins_in_the_users_code(shared: NodeDriver) -> None:
    traceback = shared.failure("divide").traceback
    assert traceback is not None
    assert "1 / 0" in traceback and "ZeroDivisionError: division by zero" in traceback
    assert "sdk" not in traceback


def test_failure_that_asks_for_it_is_retried(shared: NodeDriver) -> None:
    failure = shared.failure("try_again")
    assert (failure.error, failure.retry) == ("busy", True)


def test_very_long_error_is_cut(shared: NodeDriver) -> None:
    failure = shared.failure("long_error")
    assert len(failure.error) < 3_000 and " … " in failure.error
    assert failure.traceback is not None and len(failure.traceback) < 20_000


# --- prints and streams ---


def test_prints_of_all_kinds_go_to_stderr(node: NodeDriver) -> None:
    assert node.values("shout", "صباح") == {"r": '"صباح"'.encode()}
    assert node.values("constant") == {"r": b"1"}
    node.program.end_input()
    assert node.program.wait() == 0
    shown = node.program.stderr()
    for text in ("before start", "صباح\n", "raw\n", "from C\n", "from a child\n", "after start"):
        assert text in shown
    assert "Traceback" not in shown


def test_print_before_start_is_harmless_even_unbuffered(tmp_path: Path) -> None:
    """A cluster's node has one socket as stdin and stdout; it is taken on import already."""
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        import os
        print("loading model", flush=True)
        os.system("echo loading more")
        class Node(TaskSprintNode):
            def f(self): return {"r": 1}
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        assert NodeDriver(program).values("f") == {"r": b"1"}
        assert program.stderr() == "loading model\nloading more\n"


def test_node_works_over_two_pipes_as_well(tmp_path: Path) -> None:
    argv = write_program(tmp_path / "node.py", NODE)
    with Program(argv, stderr=tmp_path / "stderr", pipes=True) as program:
        node = NodeDriver(program)
        assert node.values("shout", "x") == {"r": b'"x"'}
        program.end_input()
        assert program.wait() == 0


def test_user_code_that_reads_stdin_finds_it_empty(shared: NodeDriver) -> None:
    assert shared.values("read_stdin") == {"r": b'""'}


def test_end_of_input_ends_the_node_quietly(node: NodeDriver) -> None:
    node.program.end_input()
    assert node.program.wait() == 0
    assert node.program.receive() == b""


@pytest.mark.slow
def test_end_of_input_inside_a_line_or_a_frame_ends_it_too(tmp_path: Path) -> None:
    for rest in (b'{"id":1,"job"', b"".join(
        [b'{"id":1,"job":1,"task":1,"attempt":1,"name":"echo","args":[null],"seed":1,',
         b'"frames":[[0,5]]}\nabc']
    )):  # fmt: skip
        argv = write_program(tmp_path / "node.py", NODE)
        with Program(argv, stderr=tmp_path / "stderr") as program:
            NodeDriver(program)
            program.send(rest)
            program.end_input()
            assert program.wait() == 0
            assert "Traceback" not in program.stderr()


def test_client_that_is_gone_ends_the_node_quietly(node: NodeDriver) -> None:
    node.program.send(*node.line("slow", 0.05))
    assert node.program._socket is not None
    node.program._socket.close()
    assert node.program.wait() == 0
    assert "Traceback" not in node.program.stderr()
    node.program._socket = None


def test_interrupt_from_the_keyboard_ends_the_node_without_a_traceback(
    node: NodeDriver,
) -> None:
    node.values("constant")
    node.program.process.send_signal(2)
    assert node.program.wait() == 130
    assert "Traceback" not in node.program.stderr()


def test_children_that_a_method_forks_keep_away_from_the_protocol(tmp_path: Path) -> None:
    """Answers that wait aren't sent twice, and a child that falls through takes no task."""
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        import multiprocessing, os
        def twice(number):
            print("child", number)
            return 2 * number
        class Node(TaskSprintNode):
            def short(self): return {"r": 1}
            def pool(self, method):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    return {"r": pool.map(twice, [1, 2, 3])}
            def fall_through(self):
                child = os.fork()
                if child == 0:
                    print("child goes on")
                    return {"r": "child"}
                return {"r": os.waitpid(child, 0)[1]}
            def leave_child(self):
                if os.fork() == 0:
                    os.execvp("sleep", ["sleep", "5"])
                if os.fork() == 0:
                    import time
                    time.sleep(5)
                    os._exit(0)
                return {}
        Node().start()
        print("end of program")
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        lines = [node.line("short"), node.line("short"), node.line("pool", "fork")]
        lines += [node.line("fall_through"), node.line("short"), node.line("leave_child")]
        program.send(b"".join(buffer for line in lines for buffer in line))
        replies = [node.next() for _ in lines]
        assert [reply.id for reply in replies] == list(range(6))  # type: ignore[union-attr]
        assert [getattr(reply, "values", reply) for reply in replies] == [
            (("r", "json", value),) for value in (b"1", b"1", b"[2,4,6]", b"0", b"1")
        ] + [()]
        shown = program.stderr()
        assert "child 3\n" in shown and "child goes on\n" in shown and "ready" not in shown
        program.end_input()
        assert program.wait() == 0
        # The children that are left don't keep the socket open.
        began = time.monotonic()
        assert program.receive() == b""
        assert time.monotonic() - began < 4


def test_child_that_falls_through_in_an_attached_node_ends_without_a_word(tmp_path: Path) -> None:
    argv = write_program(
        tmp_path / "node.py",
        """
        import os
        os.environ["TASKSPRINT_ATTACHED"] = "mine"
        from TaskSprintNode import *
        class Node(TaskSprintNode):
            def fall_through(self):
                child = os.fork()
                return {"r": os.waitpid(child, 0)[1] if child else None}
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        assert NodeDriver(program).values("fall_through") == {"r": b"0"}
        program.end_input()
        assert program.wait() == 69
        assert program.stderr() == ""


@pytest.mark.slow
def test_children_of_multiprocessing_that_load_the_program_start_no_node(
    tmp_path: Path,
) -> None:
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        import multiprocessing
        def twice(number): return 2 * number
        class Node(TaskSprintNode):
            def pool(self):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    return {"r": pool.map(twice, [1, 2])}
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        assert NodeDriver(program).values("pool") == {"r": b"[2,4]"}
        assert program.stderr() == ""


@pytest.mark.slow
def test_alarm_that_rings_while_answers_are_written_waits(tmp_path: Path) -> None:
    """A print inside of a method with a limit sends what waits; its alarm must not cut that.

    The write of 8 MiB to a client that doesn't read takes as long as the test wants.
    """
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        from tasksprint.sdk import channel
        # All that waits goes out at once, only when the next method prints.
        channel.WAITING_BYTES_MAX = 1 << 30
        channel._WAITING_SECONDS_MAX = 1000
        class Node(TaskSprintNode):
            def big(self): return {"r": b"x" * (8 << 20)}
            @timeout(0.05)
            def loud(self):
                print("now")
                while True:
                    pass
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        lines = [node.line("big"), node.line("loud")]
        program.send(b"".join(buffer for line in lines for buffer in line))
        deadline = time.monotonic() + 30
        while "now" not in program.stderr() and time.monotonic() < deadline:
            # The socket's buffer is full: read a little now and then, for 0.1 s and more.
            time.sleep(0.03)
            node.feed(program.receive())
        first, second = node.next(), node.next()
        assert isinstance(first, NodeReply) and first.values[0][2] == b"x" * (8 << 20)
        assert getattr(second, "error", "").startswith("TimeoutError: loud ran for more than")


def test_arguments_that_this_python_can_t_hold_fail_the_task_alone(shared: NodeDriver) -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    inputs = [("json", deep), ("bytes", b"x" * 10)]
    failure = shared.failure("lengths", inputs=inputs)
    assert failure.error.startswith("the arguments can't be read: RecursionError")
    assert failure.retry is False
    assert shared.values("constant") == {"r": b"1"}


def test_somebody_at_a_terminal_is_told_what_the_program_waits_for(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    argv = write_program(tmp_path / "node.py", NODE)
    with open(tmp_path / "stderr", "wb") as file:
        process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    os.close(theirs)
    os.write(ours, b"\x04")  # Ctrl-D
    assert process.wait(30) == 0
    os.close(ours)
    assert "this node waits for lines of the protocol on stdin; `tasksprint.pyz run` starts" in (
        (tmp_path / "stderr").read_text()
    )


# --- several tasks at once ---


def test_window_of_short_tasks_is_answered_in_order_and_in_few_writes(
    shared: NodeDriver,
) -> None:
    lines = [shared.line("echo", number) for number in range(64)]
    shared.program.send(b"".join(buffer for line in lines for buffer in line))
    chunks = 0
    replies: list[NodeReply] = []
    while len(replies) < 64:
        for message in shared.reader.feed(shared.program.receive()):
            assert isinstance(message, NodeReply)
            replies.append(message)
        chunks += 1
    assert [reply.values[0][2] for reply in replies] == [b"[%d]" % n for n in range(64)]
    # One would do; a busy machine may let the batch grow old in between.
    assert chunks < 32


def test_short_tasks_don_t_wait_for_a_long_one_behind_them(
    shared: NodeDriver, tmp_path: Path
) -> None:
    """The answers of two short tasks arrive while the third still runs."""
    gate = tmp_path / "gate"
    lines = [shared.line("echo", 1), shared.line("echo", 2), shared.line("wait_for", str(gate))]
    shared.program.send(b"".join(buffer for line in lines for buffer in line))
    assert isinstance(shared.next(), NodeReply)
    assert isinstance(shared.next(), NodeReply)
    gate.touch()
    assert isinstance(shared.next(), NodeReply)


# --- chance ---


def test_seed_makes_chance_and_the_task_says_who_it_is(shared: NodeDriver) -> None:
    first = shared.values("chance", seed=5)
    second = shared.values("chance", seed=6)
    assert first != second
    assert shared.values("chance", seed=5) == first
    assert shared.values("which", seed=9, tid=17) == {
        "r": b"[17,1,1,9]",
        "text": b'"Task(job=1, tid=17, attempt=1, seed=9)"',
    }


def test_generators_that_are_imported_late_are_seeded_too(tmp_path: Path) -> None:
    """`random` is imported by the task itself, and a stand-in for NumPy as well."""
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").write_text("from numpy import random\n")
    (package / "random.py").write_text(
        "value = None\ndef seed(number):\n    global value\n    value = number\n"
    )
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        import sys
        class Node(TaskSprintNode):
            def loaded(self): return {"r": [name in sys.modules for name in ("random", "json")]}
            def chance(self):
                import random
                return {"r": random.random()}
            def numpy(self):
                import numpy
                return {"r": numpy.random.value}
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr", cwd=tmp_path) as program:
        node = NodeDriver(program)
        assert node.values("loaded") == {"r": b"[false,false]"}
        first = node.values("chance", seed=5)
        assert node.values("chance", seed=6) != first
        assert node.values("chance", seed=5) == first
        assert node.values("numpy", seed=2**32 + 7) == {"r": b"7"}
        assert node.values("numpy", seed=8) == {"r": b"8"}


# --- names that clash ---


def test_class_may_use_the_names_that_the_sdk_uses(tmp_path: Path) -> None:
    argv = write_program(
        tmp_path / "node.py",
        """
        from TaskSprintNode import *
        class Helpers:
            def helped(self): return {"r": "helped"}
        class Node(Helpers, TaskSprintNode):
            params = 1
            def __init__(self):
                self.channel, self.methods, self.seed = 1, 2, 3
            def task(self): return {"r": "task"}
            def run(self): return {"r": [self.channel, self.methods, self.seed]}
            @staticmethod
            def static(number): return {"r": number}
            @classmethod
            def of_class(cls): return {"r": cls.__name__}
        Node().start()
        """,
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        node = NodeDriver(program)
        assert node.values("task") == {"r": b'"task"'}
        assert node.values("run") == {"r": b"[1,2,3]"}
        assert node.values("helped") == {"r": b'"helped"'}
        assert node.values("static", 5) == {"r": b"5"}
        assert node.values("of_class") == {"r": b'"Node"'}
        assert node.values("task") == {"r": b'"task"'}


def test_class_without_methods_says_so(tmp_path: Path) -> None:
    argv = write_program(
        tmp_path / "node.py", "from TaskSprintNode import *\nTaskSprintNode().start()\n"
    )
    with Program(argv, stderr=tmp_path / "stderr") as program:
        assert NodeDriver(program).failure("f").error == (
            "node TaskSprintNode has no method 'f', expected one of (it has none)"
        )
