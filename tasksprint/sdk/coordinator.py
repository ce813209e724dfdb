"""`TaskSprintCoordinator`: the user's scheduler, as event handlers.

    from TaskSprintCoordinator import *

    class Sum(TaskSprintCoordinator):
        def init(self, seed):
            self.start_task(name="add", base=[1, 2], keys=["sum"])

        def task_done(self, tid, values):
            self.finish(taskids=[tid], values=values)

    Sum().start()

Every replica of the coordinator runs the scheduler and feeds it the same events. The
scheduler's answers must depend on these events alone. So it reads no clock (`self.now_ms` is
the event's time) and no files. Its only randomness is `random`, seeded from the job's seed.

docs/protocol.md describes the lines. Commands are written down when they are given: if a list
changes later, this changes nothing.
"""

from __future__ import annotations

import os
import sys

from tasksprint.sdk import channel as channels
from tasksprint.sdk.chance import seed_generators, watch_imports
from tasksprint.sdk.codec import (
    TooLong,
    decode,
    decode_leniently,
    encode,
    is_unicode,
    quote,
    why_not_encoded,
    with_article,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from tasksprint.sdk.channel import Channel

__all__ = ["TaskSprintCoordinator"]

# Answers are cut after so many commands, and sooner where they are long: a part becomes a
# command of the log, and that has a limited size. Only the commands decide where an answer is
# cut: every replica must cut at the same places.
_COMMANDS_PER_PART = 1_000
_CHARACTERS_PER_PART = 512 * 1024
# The default of arguments that are lists; one look tells it from a given list.
_NOTHING: tuple[()] = ()
# Of the names of tasks and of keys: they stand in every coordinator's memory.
_NAME_BYTES_MAX = 1024
# How often a task may be tried again at most; far beyond what makes sense, and exact everywhere.
_RETRIES_END = 2**53
_PRIORITY_END = 2**31

channels.take_over_early()


class TaskSprintCoordinator:
    """Base class of schedulers; a subclass defines the handlers that it needs.

    Handlers, all optional:

        init(seed)                     the job begins
        client_joined(cid, num_nodes)  a client came (older programs take only `cid`)
        client_dead(cid)               a client is gone; its tasks are placed anew
        task_done(tid, values)         `values` holds what `keys` of the task named
        task_failed(tid, error)        all its attempts failed; without this handler,
                                       the job fails
        timer(timer)                   a timer of `start_timer` is over

    In every handler there are `self.params` (the job's parameters) and `self.now_ms`
    (the time of the event in the job, in milliseconds).
    """

    params: dict[str, Any]
    now_ms: int

    # The only state of ours in the object, under a name that no subclass meets by chance.
    __session: _Session | None = None

    def start(self) -> None:
        """Handle events until the coordinator has no more; returns at the end of input."""
        if type(self).__module__ == "__mp_main__":
            return  # A child of `multiprocessing` that loads its parent's program.
        channels.greet("scheduler")
        session = _Session(self, channels.open_channel())
        self.__session = session
        try:
            session.run()
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except (BrokenPipeError, ConnectionResetError):
            raise SystemExit(0) from None  # The coordinator is gone; nobody reads the rest.

    def start_task(
        self,
        name: str,
        base: Sequence[Any] = (),
        pretasks: Sequence[int] = (),
        prekeys: Sequence[str] = (),
        keys: Sequence[str] = (),
        retries: int | None = None,
        timeout_ms: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> int:
        """Start a task: the node's method `name`, on one of the clients.

        Args:
            name: The method.
            base: Its first arguments.
            pretasks: Tasks whose values are the arguments after those.
            prekeys: For each of them, the key of the value.
            keys: Keys of the values that `task_done` gets; others stay on the clients.
            retries: How often it may be tried again after a failure.
            timeout_ms: How long one attempt may run, in milliseconds.
            timeout: The same in seconds.
            priority: Of the tasks that can run, those with higher ones go first.

        Returns:
            The task's tid: 0, 1, 2, … in the order of the calls.

        Raises:
            ValueError: An argument can't be used; the text says which and why.
        """
        session = self.__current("start_task")
        tid = session.next_tid
        command = _encode_start(
            tid, name, base, pretasks, prekeys, keys, retries, timeout_ms, timeout
        )
        if priority:
            command = _with_priority(name, command, priority, session.rules)
        session.next_tid = tid + 1
        session.add(command)
        return tid

    def kill_task(self, tid: int) -> None:
        """Stop a task wherever it runs; tasks that depend on it are given up too."""
        session = self.__current("kill_task")
        _check_tids("kill_task", (tid,), session.next_tid)
        session.add(f'{{"kill":{tid}}}')

    def finish(self, taskids: Iterable[int] = (), values: Any = None) -> None:
        """End the job.

        Args:
            taskids: Tasks whose values stay readable.
            values: The job's result, a dictionary as a rule.

        Raises:
            ValueError: A task isn't known, or JSON can't carry a value.
        """
        session = self.__current("finish")
        if isinstance(taskids, dict):
            raise ValueError(
                "finish: taskids is a dict, expected a list of tids; name the result, as in "
                "finish(values={…})"
            )
        tids = _listed("finish", "taskids", taskids)
        _check_tids("finish", tids, session.next_tid)
        result = {} if values is None else values
        try:
            text = encode(result)
        except Exception:
            raise ValueError(f"finish: {_blame(result)}") from None
        session.add(f'{{"finish":{encode(tids)},"values":{text}}}')

    def fail(self, text: str) -> None:
        """End the job as failed, with this cause."""
        self.__current("fail").add(f'{{"fail":{encode(str(text))}}}')

    def log(self, text: str) -> None:
        """Keep a line of text with the job: once, however many replicas run this."""
        self.__current("log").add(f'{{"log":{encode(str(text))}}}')

    def start_timer(self, seconds: float) -> int:
        """Let `timer(timer)` be called after a time; returns the timer's number."""
        session = self.__current("start_timer")
        after_ms = _milliseconds("start_timer: seconds", seconds, 1000)
        timer = session.next_timer
        session.next_timer = timer + 1
        session.add(f'{{"timer":{timer},"after_ms":{after_ms}}}')
        return timer

    def release(self, tids: Iterable[int]) -> None:
        """Forget tasks that are done, and their values, before the job ends."""
        session = self.__current("release")
        tids = _listed("release", "tids", tids)
        _check_tids("release", tids, session.next_tid)
        session.add(f'{{"release":{encode(tids)}}}')

    def __current(self, what: str) -> _Session:
        session = self.__session
        if session is None or not session.is_in_event:
            raise RuntimeError(
                f"{what} was called outside of an event; call it in a handler, such as init"
            )
        return session


class _Session:
    """One scheduler's conversation with its coordinator."""

    def __init__(self, scheduler: TaskSprintCoordinator, channel: Channel) -> None:
        self.next_tid = 0
        self.next_timer = 1
        self.is_in_event = False
        self._scheduler = scheduler
        self._channel = channel
        self._event = 0
        self._part = 0
        self._commands: list[str] = []
        self._characters = 0  # in `_commands`
        # A subclass's own attributes under these names stay as they are.
        classes = [each for each in type(scheduler).__mro__ if each is not TaskSprintCoordinator]
        self._sets_params = not any("params" in vars(each) for each in classes)
        self._sets_now_ms = not any("now_ms" in vars(each) for each in classes)
        self._task_done = self._method("task_done")
        self._handlers: dict[str, Callable[[dict[str, Any]], None] | None] = {
            "init": self._on_init,
            "client_joined": self._handler("client_joined", ("cid", "num_nodes")),
            "client_dead": self._handler("client_dead", ("cid",)),
            "task_done": None if self._task_done is None else self._on_task_done,
            "task_failed": self._handler("task_failed", ("tid", "error", "detail"))
            or self._fail_job,
            "timer": self._handler("timer", ("timer",)),
        }
        self._init = self._handler("init", ("seed",))
        # A job's schedulers must answer alike, even if their SDKs are of two releases. So they
        # answer by the rules that the job began under. If a coordinator doesn't name its rules,
        # they are older ones.
        self.rules = int(os.environ.get("TASKSPRINT_RULES", "1"))

    def run(self) -> None:
        channel = self._channel
        watch_imports()
        channel.put(b'{"ready":{},"runtime":"%s"}\n' % channels.runtime())
        while True:
            line = channel.next_line()
            if line is None:
                return
            event = self._decode(line.decode())
            if event is None:
                continue
            if "control" in event:
                self._control(event)
                continue
            self._answer(event)
            if channel.printed:
                channel.printed = False
                channel.flush_prints()
            channel.flush_old()

    def _decode(self, line: str) -> dict[str, Any] | None:
        """Return an event; fail the job and return None if this Python can't hold it."""
        try:
            event: dict[str, Any] = decode(line)
            return event
        except (ValueError, RecursionError) as error:
            # Lines are valid JSON in a known form. Two things can be wrong: an integer with more
            # digits than Python converts, or nesting deeper than its stack.
            self._event, self._part = int(line[len('{"event":') : line.index(",")]), 0
            what = f"event {self._event} holds what is nested too deeply"
            if isinstance(error, ValueError):
                event = decode_leniently(line)
                what = f"{_name_of(event)} has an integer{_place_of(event)} that is too long"
            text = f"{what} for this scheduler's Python: {error}; let it come as a string"
            self._commands.append(f'{{"fail":{encode(text)}}}')
            self._send_part(last=True)
            return None

    def add(self, command: str) -> None:
        """Add a command to the answer; send a part once it is clear that it isn't the last."""
        size = len(command)
        if self._commands and (
            len(self._commands) >= _COMMANDS_PER_PART
            or self._characters + size > _CHARACTERS_PER_PART
        ):
            self._send_part(last=False)
        self._commands.append(command)
        self._characters += size

    def _answer(self, event: dict[str, Any]) -> None:
        number = event["event"]
        self._event = number
        self._part = 0
        if self._sets_now_ms:
            self._scheduler.now_ms = event["time_ms"]
        handler = self._handlers.get(event["kind"])
        if handler is not None:
            # Earlier answers must not wait for a slow handler.
            self._channel.watch()
            self.is_in_event = True
            try:
                handler(event)
            except SystemExit:
                self._channel.flush()
                raise
            except Exception as error:
                self._crash(error, event)
            self.is_in_event = False
        if self._commands or self._part:
            self._send_part(last=True)
        else:
            self._channel.put(b'{"event":%d}\n' % number)

    def _send_part(self, *, last: bool) -> None:
        commands, self._commands = self._commands, []
        self._characters = 0
        head = f'{{"event":{self._event},'
        if self._part or not last:
            head += f'"part":{self._part},"last":{"true" if last else "false"},'
        self._part += 1
        self._channel.put(f'{head}"commands":[{",".join(commands)}]}}\n'.encode())

    def _crash(self, error: Exception, event: dict[str, Any]) -> None:
        """Say on stderr what happened, and end; the coordinator reports it with these lines."""
        import traceback

        self._channel.flush()
        # The first frames are this module's.
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_globals.get("__name__") == __name__:
            frames = frames.tb_next
        print(f"scheduler failed in {_name_of(event)}:", file=sys.stderr)
        traceback.print_exception(type(error), error, frames or error.__traceback__)
        if isinstance(error, KeyError) and event["kind"] == "task_done":
            key = error.args[0] if error.args else None
            if isinstance(key, str) and key not in event["values"]:
                print(
                    f"task {event['tid']} has no value under {key!r}; "
                    "name it in keys= of start_task",
                    file=sys.stderr,
                )
        self._channel.flush_prints()
        raise SystemExit(1) from None

    def _control(self, line: dict[str, Any]) -> None:
        kind = line["control"]
        if kind == "replay":
            self._channel.mark = "[replay] "
        elif kind == "live":
            self._channel.mark = ""
        else:
            # Only schedulers that announced checkpoints are asked for them.
            print(f"scheduler got control {kind!r}, which it doesn't know", file=sys.stderr)

    # --- handlers ---

    def _method(self, name: str) -> Callable[..., Any] | None:
        """Return the user's method of this name; another attribute called so is none."""
        method = getattr(self._scheduler, name, None)
        return method if callable(method) else None

    def _handler(
        self, name: str, members: tuple[str, ...]
    ) -> Callable[[dict[str, Any]], None] | None:
        """Return a function that calls the user's handler with as many members as it takes."""
        method = self._method(name)
        if method is None:
            return None
        taken = members[: _parameter_count(method, len(members))]

        def call(event: dict[str, Any]) -> None:
            method(*[event.get(member) for member in taken])

        return call

    def _on_init(self, event: dict[str, Any]) -> None:
        seed_generators(event["seed"])
        if self._sets_params:
            self._scheduler.params = event.get("params", {})
        if self.rules >= 2:
            kinds = [kind for kind, handler in self._handlers.items() if handler is not None]
            self.add(f'{{"handles":{encode(kinds[1:])}}}')  # Not `init`, which is told to all.
        if self._init is not None:
            self._init(event)

    def _on_task_done(self, event: dict[str, Any]) -> None:
        values = event["values"]
        if "base64" in event:
            from binascii import a2b_base64

            for key, text in event["base64"].items():
                values[key] = a2b_base64(text)
        assert self._task_done is not None
        self._task_done(event["tid"], values)

    def _fail_job(self, event: dict[str, Any]) -> None:
        # Not through the object, where the user may keep something else called `fail`.
        error: str = event["error"]
        task = f"task {event['tid']} "
        if not error.startswith(task):  # The coordinator's own words name the task already.
            error = f"{task}failed: {error}"
        TaskSprintCoordinator.fail(self._scheduler, error)


def _parameter_count(method: Any, count_max: int) -> int:
    """Return with how many arguments a handler can be called, at most `count_max`."""
    function = getattr(method, "__func__", method)
    bound = 1 if function is not method else 0
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None or code.co_flags & 0x04:  # it takes *args
        return count_max
    taken: int = code.co_argcount - bound
    return min(count_max, max(0, taken))


def _name_of(event: dict[str, Any]) -> str:
    """Return e.g. "event 17 task_done(4)"."""
    name = f"event {event['event']} {event['kind']}"
    for member in ("tid", "cid"):
        if member in event:
            return f"{name}({event[member]})"
    return name


def _holds_too_long(value: Any) -> bool:
    """Return whether an integer inside a value is one that this Python doesn't read."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, TooLong):
            return True
        if isinstance(each, (dict, list)):
            waiting.extend(each.values() if isinstance(each, dict) else each)
    return False


def _place_of(event: dict[str, Any]) -> str:
    """Return under which of its keys an event has such an integer."""
    for member in ("values", "params"):
        for key, value in event.get(member, {}).items():
            if _holds_too_long(value):
                return f" under key {key!r} of {member}"
    return ""


# --- commands ---


def _encode_start(
    tid: int,
    name: Any,
    base: Any,
    pretasks: Any,
    prekeys: Any,
    keys: Any,
    retries: Any,
    timeout_ms: Any,
    timeout: Any,
) -> str:
    """Return the command that starts a task; every argument is checked first."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"start_task: name is {name!r}, expected the name of a node's method")
    if len(name) * 4 > _NAME_BYTES_MAX:
        _check_length("start_task: name", name)
    try:
        command = f'{{"start":{quote(name)}'
    except ValueError as error:
        raise ValueError(f"start_task: name {error}") from None
    if base is not _NOTHING and base is not None:
        command += f',"base":{_encode_base(name, base)}'
    if pretasks is not _NOTHING or prekeys is not _NOTHING:
        tids = _listed(f"start_task {name!r}", "pretasks", pretasks)
        names = _list_of(name, "prekeys", prekeys)
        if len(tids) != len(names):
            raise ValueError(
                f"start_task {name!r}: {len(tids)} pretasks and {len(names)} prekeys, "
                "expected one key for each pretask"
            )
        _check_tids(f"start_task {name!r}: pretasks", tids, tid)
        command += f',"pretasks":{encode(tids)},"prekeys":{encode(names)}'
    if keys is not _NOTHING:
        command += f',"keys":{encode(_list_of(name, "keys", keys))}'
    command += f',"tid":{tid}'
    if retries is not None:
        if (
            isinstance(retries, bool)
            or not isinstance(retries, int)
            or not 0 <= retries < _RETRIES_END
        ):
            raise ValueError(
                f"start_task {name!r}: retries is {_shown(retries)}, "
                "expected how often it may be tried again, an integer from 0 to 2**53 - 1"
            )
        command += f',"retries":{retries}'
    if timeout is not None:
        if timeout_ms is not None:
            raise ValueError(f"start_task {name!r}: timeout and timeout_ms are both given")
        timeout_ms = _milliseconds(f"start_task {name!r}: timeout", timeout, 1000)
    if timeout_ms is not None:
        timeout_ms = _milliseconds(f"start_task {name!r}: timeout_ms", timeout_ms, 1)
        command += f',"timeout_ms":{timeout_ms}'
    return command + "}"


def _with_priority(name: str, command: str, priority: Any, rules: int) -> str:
    """Return the command that starts a task, with a priority if the job's rules know one."""
    if (
        isinstance(priority, bool)
        or not isinstance(priority, int)
        or not -_PRIORITY_END <= priority < _PRIORITY_END
    ):
        raise ValueError(
            f"start_task {name!r}: priority is {_shown(priority)}, "
            "expected an integer from -2**31 to 2**31 - 1"
        )
    return f'{command[:-1]},"priority":{priority}}}' if rules >= 2 else command


def _encode_base(name: str, base: Any) -> str:
    arguments = None
    if not isinstance(base, (str, bytes, bytearray, memoryview, dict)):
        try:
            arguments = list(base)
        except TypeError:
            pass  # A single argument, most likely.
    if arguments is None:
        raise ValueError(
            f"start_task {name!r}: base is {type(base).__name__}, "
            "expected a list of arguments; put a single one in [ ]"
        )
    try:
        return encode(arguments)
    except Exception:
        for index, argument in enumerate(arguments):
            why = (
                "is bytes, which JSON can't carry; let a task return them, or encode them"
                if isinstance(argument, (bytes, bytearray, memoryview))
                else why_not_encoded(argument)
            )
            if why is not None:
                raise ValueError(f"start_task {name!r}: argument {index} of base {why}") from None
        raise


def _listed(where: str, what: str, items: Any) -> list[Any]:
    """Return an argument as a list; None is an empty one."""
    if items is None:
        return []
    try:
        return list(items)
    except TypeError:
        raise ValueError(f"{where}: {what} is {_shown(items)}, expected a list of tids") from None


def _shown(value: Any) -> str:
    """Return how Python writes a value, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        return f"{with_article(type(value).__name__)} that is too long to be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def _check_length(what: str, text: str) -> None:
    size = len(text.encode(errors="replace"))
    if size > _NAME_BYTES_MAX:
        raise ValueError(
            f"{what} {text[:40] + '…'!r} has {size} bytes, expected at most {_NAME_BYTES_MAX}"
        )


def _list_of(name: str, what: str, texts: Any) -> list[str]:
    if texts is None:
        return []
    if isinstance(texts, str):
        raise ValueError(
            f"start_task {name!r}: {what} is the string {texts!r}, expected a list of strings"
        )
    try:
        listed = list(texts)
    except TypeError:
        raise ValueError(
            f"start_task {name!r}: {what} is {_shown(texts)}, expected a list of strings"
        ) from None
    for text in listed:
        if not isinstance(text, str):
            raise ValueError(
                f"start_task {name!r}: {what} holds {text!r} of type {type(text).__name__}, "
                "expected strings"
            )
        if len(text) * 4 > _NAME_BYTES_MAX:
            _check_length(f"start_task {name!r}: {what} holds", text)
        if not is_unicode(text):
            raise ValueError(f"start_task {name!r}: {what} holds {text!r}, no Unicode text")
    return listed


def _check_tids(what: str, tids: Sequence[Any], end_tid: int) -> None:
    # Checks of the whole list at once, before the steps that find the wrong one.
    if not tids or (set(map(type, tids)) == {int} and min(tids) >= 0 and max(tids) < end_tid):
        return
    for tid in tids:
        if isinstance(tid, bool) or not isinstance(tid, int):
            raise ValueError(f"{what}: {_shown(tid)} is no tid, expected what start_task returned")
        if not 0 <= tid < end_tid:
            known = (
                f"expected a tid from 0 to {end_tid - 1}" if end_tid else "none was started yet"
            )
            raise ValueError(f"{what}: task {_shown(tid)} isn't known, {known}")


def _milliseconds(what: str, amount: Any, factor: int) -> int:
    if (
        isinstance(amount, bool)
        or not isinstance(amount, (int, float))
        or not 0 < amount * factor < 2**53
    ):
        raise ValueError(f"{what} is {_shown(amount)}, expected a number above 0")
    return max(1, int(amount * factor))


def _blame(result: Any) -> str:
    """Return which of a result's values can't be encoded, and why."""
    if isinstance(result, dict):
        for key, value in result.items():
            if isinstance(value, (bytes, bytearray, memoryview)):
                return (
                    f"value under key {key!r} is bytes, which JSON can't carry; name its task "
                    "in taskids, so that it can be read from there, and leave it out"
                )
            why = why_not_encoded(value)
            if why is not None:
                return f"value under key {key!r} {why}"
    return f"values {why_not_encoded(result)}"
