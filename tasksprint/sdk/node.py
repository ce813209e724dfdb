"""`TaskSprintNode`: the user's methods as a node of the cluster.

    from TaskSprintNode import *

    class Adder(TaskSprintNode):
        def add(self, *numbers):
            return {"sum": sum(numbers)}

    Adder().start()

A task names a method and its arguments. The method returns a dictionary of keys and values:
this is the task's result. docs/protocol.md describes the lines and errors.
"""

from __future__ import annotations

from tasksprint.sdk import channel as channels
from tasksprint.sdk.chance import seed_generators, watch_imports
from tasksprint.sdk.codec import (
    decode,
    encode,
    is_unicode,
    quote,
    why_not_encoded,
    with_article,
)
from tasksprint.sdk.limits import forget_limits, without_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tasksprint.sdk.channel import Channel

__all__ = ["Task", "TaskFailed", "TaskSprintNode"]

# A client may send so many tasks ahead: then short ones cost no round trip each.
_WINDOW = 64
# Longer texts of errors are cut in the middle: they stand in the cluster's log.
_ERROR_CHARACTERS_MAX = 2_000
_TRACEBACK_CHARACTERS_MAX = 16_000

# If an answer is longer, JSON in it of more than the second limit goes in frames.
_LINE_CHARACTERS_MAX = 256 * 1024
_FRAME_CHARACTERS_MIN = 64 * 1024

_BYTES = (bytes, bytearray, memoryview)

channels.take_over_early()


class TaskFailed(Exception):
    """Raised by a node's method: this task can't be done.

    Other exceptions count as accidents, and the task is tried again. This one says that
    trying again is in vain, unless `retry` is true.
    """

    def __init__(self, message: str = "", *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class Task:
    """A node's method may know this about the task that it runs."""

    __slots__ = ("attempt", "job", "seed", "tid")

    def __init__(self, job: int, tid: int, attempt: int, seed: int) -> None:
        self.job = job
        self.tid = tid
        self.attempt = attempt  # 1 for the first one
        self.seed = seed  # the same for every attempt

    def __repr__(self) -> str:
        return f"Task(job={self.job}, tid={self.tid}, attempt={self.attempt}, seed={self.seed})"


class TaskSprintNode:
    """Base class of nodes; every public method of a subclass can be run as a task.

    A method returns a dictionary: keys are strings, values are anything that JSON
    carries, or bytes. `self.task` says which task runs.

    Before each task `random` is seeded with the task's seed, and so is NumPy's global generator
    where it is imported. A task that runs again therefore gives the same result.
    """

    # This class takes only the names `start` and `task` away from its subclasses. A subclass
    # with a `task` of its own keeps it.
    task: Task

    def start(self) -> None:
        """Run tasks until the client has no more; returns at the end of input.

        Raises:
            SystemExit: The node was attached by hand and its client has ended (69), or
                Ctrl-C was typed (130).
        """
        if type(self).__module__ == "__mp_main__":
            return  # A child of `multiprocessing` that loads its parent's program.
        channels.greet("node")
        try:
            _Runner(self, channels.open_channel()).run()
        except KeyboardInterrupt:
            # Ctrl-C at a node attached by hand is a way to stop it, not an error.
            raise SystemExit(130) from None
        except (BrokenPipeError, ConnectionResetError):
            channels.leave_attached()
            raise SystemExit(0) from None  # The client is gone, and nobody reads the rest.
        channels.leave_attached()


class _Error(Exception):
    """The task can't give a result; running it again would end the same way."""


class _Runner:
    """Runs one node's tasks, one after the other."""

    def __init__(self, node: TaskSprintNode, channel: Channel) -> None:
        self._node = node
        self._channel = channel
        # Those that were asked for: (method, fewest arguments, most arguments).
        self._methods: dict[str, tuple[Callable[..., Any], int, float]] = {}
        self._has_own_task = any("task" in vars(cls) for cls in _user_classes(type(node)))

    def run(self) -> None:
        channel = self._channel
        watch_imports()
        head = b'{"ready":{},"frames":true,"window":%d,"runtime":"%s"}\n'
        channel.put(head % (_WINDOW, channels.runtime()))
        while True:
            line = channel.next_line()
            if line is None:
                return
            try:
                task = decode(line.decode())
            except (ValueError, RecursionError) as error:
                if not self._refuse_line(line, error):
                    return
                continue
            args = task["args"]
            if "frames" in task:
                for place, size in task["frames"]:
                    raw = channel.take(size)
                    if raw is None:
                        return
                    args[place] = raw
                    del raw
            channel.watch()
            self._run_task(task, args)
            # Nothing of this task stays until the next one comes: it may be a gigabyte.
            line = task = args = None
            if channel.printed:
                # The log tells whose lines these are by the answers before them.
                channel.printed = False
                channel.flush_prints()
                channel.flush()
            else:
                channel.flush_old()

    def _refuse_line(self, line: bytes, error: Exception) -> bool:
        """Fail a task whose arguments this Python can't hold; False at the end of input.

        The client's lines are valid JSON in a known form. Two things can be wrong: an integer
        with more digits than Python converts, or nesting deeper than its stack.
        """
        number = int(line[len(b'{"id":') : line.index(b",")])
        if line.endswith(b"]]}"):
            for _, size in decode(line[line.rindex(b'"frames":') + 9 : -1].decode()):
                if self._channel.take(size) is None:
                    return False
        text = f"the arguments can't be read: {type(error).__name__}: {error}"
        self._channel.put(_encode_failure(number, text, None, False))
        return True

    def _run_task(self, task: dict[str, Any], args: list[Any]) -> None:
        number = task["id"]
        name = task["name"]
        answer: tuple[Any, ...]
        try:
            found = self._methods.get(name)
            if found is None:
                found = self._find_method(name)
            method, fewest, most = found
            if not fewest <= len(args) <= most:
                raise _Error(_wrong_count(name, method, len(args)))
            seed = task["seed"]
            seed_generators(seed)
            if not self._has_own_task:
                self._node.task = Task(task["job"], task["task"], task["attempt"], seed)
            answer = _encode_result(number, method(*args), name)
        except KeyboardInterrupt:
            raise
        except _Error as error:
            answer = (_encode_failure(number, str(error), None, False),)
        except BaseException as error:
            # Also SystemExit: it ends the task, not the node that others wait for.
            answer = (_describe_failure(number, error),)
        forget_limits()
        self._channel.put(*answer)

    def _find_method(self, name: str) -> tuple[Callable[..., Any], int, float]:
        for cls in _user_classes(type(self._node)):
            if name in vars(cls) and not name.startswith("_"):
                method = getattr(self._node, name)
                if callable(method):
                    found = self._methods[name] = (method, *_argument_counts(method))
                    return found
                break
        names = sorted(
            {
                found
                for cls in _user_classes(type(self._node))
                for found, member in vars(cls).items()
                if not found.startswith("_") and callable(getattr(self._node, found, None))
            }
        )
        raise _Error(
            f"node {type(self._node).__name__} has no method {name!r}, "
            f"expected one of {', '.join(map(repr, names)) or '(it has none)'}"
        )


def _argument_counts(method: Any) -> tuple[int, float]:
    """Return with how few and with how many arguments a method can be called.

    Sometimes this can't be told beforehand: a decorator has `*args`, or the method isn't written
    in Python. Then the call decides, so no call is refused that would have worked.
    """
    code, bound = _code_of(method)
    if code is None:
        return 0, float("inf")
    function = without_limit(getattr(method, "__func__", method))
    if _needed_keywords(function):
        return 1, 0  # No call can be right.
    fewest = max(0, code.co_argcount - bound - len(function.__defaults__ or ()))
    return fewest, float("inf") if code.co_flags & 0x04 else max(0, code.co_argcount - bound)


def _needed_keywords(function: Any) -> list[str]:
    """Return the parameters that can only be given by name, and must be."""
    code = function.__code__
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return [name for name in names if name not in (function.__kwdefaults__ or {})]


def _code_of(method: Any) -> tuple[Any, int]:
    """Return a method's code, and how many of its parameters are given already (`self`)."""
    function = getattr(method, "__func__", method)
    bound = 0 if function is method else 1
    code = getattr(without_limit(function), "__code__", None)
    return code, bound


def _wrong_count(name: str, method: Any, given: int) -> str:
    code, bound = _code_of(method)
    taken = list(code.co_varnames[bound : code.co_argcount])
    needed = _needed_keywords(without_limit(getattr(method, "__func__", method)))
    if code.co_flags & 0x04 or needed:
        taken.append("*")
    signature = f"{name}({', '.join(taken + needed)})"
    counted = "1 argument" if given == 1 else f"{given} arguments"
    return (
        f"task {name!r} was given {counted}, and the method is {signature}; "
        "its arguments are the base and then one for each pretask"
    )


def _user_classes(cls: type) -> list[type]:
    """Return the classes that can hold the user's methods: not ours, not Python's."""
    return [each for each in cls.__mro__ if each is not TaskSprintNode and each is not object]


def _encode_result(number: int, result: Any, name: str) -> tuple[Any, ...]:
    """Return the buffers of the answer that hands out a method's result.

    Raises:
        _Error: It can't be sent.
    """
    if type(result) is not dict:
        if result is None:
            return (b'{"id":%d}\n' % number,)
        if not isinstance(result, dict):
            raise _Error(
                f"{name} returned {with_article(type(result).__name__)}, "
                "expected a dictionary of keys and values, such as {'result': 1}"
            )
        result = dict(result)
    frames: dict[str, Any] | None = None
    for key, value in result.items():
        if not isinstance(key, str):
            raise _Error(
                f"{name} returned key {key!r} of type {type(key).__name__}, expected strings"
            )
        if not key.isascii() and not is_unicode(key):
            raise _Error(
                f"{name} returned key {key!r}, which isn't Unicode text: it holds half of a "
                "surrogate pair"
            )
        if isinstance(value, _BYTES):
            frames = frames or {}
            frames[key] = _as_buffer(value)
    try:
        if frames is None:
            text = encode(result, first_key=1)
            if len(text) <= _LINE_CHARACTERS_MAX:
                return (f'{{"id":{number},"values":{text}}}\n'.encode(),)
            values, buffers = dict(result), {}
        else:
            values = {key: value for key, value in result.items() if key not in frames}
            buffers = dict(frames)
            text = encode(values, first_key=1)
        places = [f"[{quote(key)},{len(raw)}]" for key, raw in buffers.items()]
        if len(text) > _LINE_CHARACTERS_MAX:
            # JSON that is large goes like bytes: finding its end takes long.
            text = ""
            for key, value in list(values.items()):
                part = encode(value)
                if len(part) > _FRAME_CHARACTERS_MIN:
                    del values[key]
                    buffers[key] = part.encode()
                    places.append(f'[{quote(key)},{len(buffers[key])},"json"]')
            text = encode(values, first_key=1)
        head = f'{{"id":{number},"values":{text},"frames":[{",".join(places)}]}}\n'
        return (head.encode(), *buffers.values())
    except Exception:
        for key, value in result.items():
            why = why_not_encoded(value) if frames is None or key not in frames else None
            if why is not None:
                raise _Error(f"value under key {key!r} of {name} {why}") from None
        raise


def _as_buffer(value: Any) -> Any:
    """Return bytes-like data; its length is its size in bytes, and no later task changes it."""
    if isinstance(value, bytes):
        return value
    view = memoryview(value)
    if view.nbytes < channels.WAITING_BYTES_MAX or not view.c_contiguous:
        return view.tobytes()
    # So big that it is written before the next task runs.
    return view.cast("B")


def _describe_failure(number: int, error: BaseException) -> bytes:
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = "(its text can't be shown)"
    if isinstance(error, TaskFailed):
        return _encode_failure(number, text or name, None, error.retry)
    try:
        import traceback

        # The first frame is this module's.
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        shown = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:
        shown = ""
    return _encode_failure(number, f"{name}: {text}" if text else name, shown, True)


def _encode_failure(number: int, error: str, traceback: str | None, retry: bool) -> bytes:
    line = f'{{"id":{number},"error":{encode(_shorten(error, _ERROR_CHARACTERS_MAX))}'
    if traceback:
        line += f',"traceback":{encode(_shorten(traceback, _TRACEBACK_CHARACTERS_MAX))}'
    if not retry:
        line += ',"retry":false'
    return (line + "}\n").encode()


def _shorten(text: str, characters_max: int) -> str:
    if len(text) <= characters_max:
        return text
    half = characters_max // 2 - 10
    return f"{text[:half]} … {text[-half:]}"
