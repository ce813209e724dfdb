"""Takes stdin and stdout for the protocol, so that user code can't disturb it.

File descriptors 0 and 1 are moved away; in their place stand /dev/null and stderr. So a
`print`, a C library's `printf` and a subprocess that echoes all end up in the log. Where
the cluster started the program (stdin and stdout are one socket then), this happens as soon
as the SDK is imported; otherwise when `start()` is called.

Lines to be written are collected, because a round trip costs more than a short task. They go
out when there is nothing more to read, when they are old, or when they are many bytes. While
user code runs, a thread looks after the waiting lines: a long task doesn't hold up the answers
of the short ones before it.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, start_new_thread
from io import BytesIO
from time import monotonic, sleep

from tasksprint.sdk import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "WAITING_BYTES_MAX",
    "Channel",
    "greet",
    "leave_attached",
    "open_channel",
    "runtime",
    "take_over_early",
]

# How much is read at once.
_READ_BYTES = 256 * 1024
# From this size on bytes are read right to where they stay.
_LARGE_BYTES = 1024 * 1024
# After so many bytes of large values, and so long without a task, memory is given back.
_TRIM_BYTES = 32 * 1024 * 1024
_TRIM_AFTER_SECONDS = 0.2
# Waiting output is written once there is so much of it …
WAITING_BYTES_MAX = 64 * 1024
# … or once the oldest of it is so old.
_WAITING_SECONDS_MAX = 0.005
# How often the thread looks, and how often in vain before it ends.
_WATCH_SECONDS = 0.01
_WATCH_ROUNDS = 100

_channel: Channel | None = None


def runtime() -> bytes:
    """Return this program's runtime, for its first line: equal runtimes give equal results."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{sys.implementation.name} {version} {os.uname().machine}".encode()


def greet(program: str) -> None:
    """Tell a person at a terminal, who started a program by hand, that it waits for lines."""
    if os.isatty(0):
        print(
            f"this {program} waits for lines of the protocol on stdin; "
            "`tasksprint.pyz run` starts it as part of a job",
            file=sys.stderr,
        )


def leave_attached() -> None:
    """End a node that was attached by hand, once its client has ended, with a sentence on stderr.

    Nobody looks at the nodes that a client started: this does nothing for them, they just end.

    Raises:
        SystemExit: With 69, the exit code for "nobody there", if the node was attached.
    """
    name = os.environ.get("TASKSPRINT_ATTACHED")
    if not name or _channel is None or not _channel.is_socket:
        return
    if _channel.is_hung_up():
        # Otherwise the client has said here why it ends the node, and waits for its end.
        text = (
            f"tasksprint: node {name!r} ends: its client has gone without a word (was it "
            "killed?); start a client, and attach the node again"
        )
        try:
            print(text, file=sys.stderr, flush=True)
        except (AttributeError, ValueError, OSError):
            pass  # Closed or replaced by the user.
    raise SystemExit(69)


def open_channel() -> Channel:
    """Return the process's channel, taking stdin and stdout if they weren't taken yet."""
    global _channel
    if _channel is None:
        _channel = Channel()
    return _channel


def take_over_early() -> None:
    """Take stdin and stdout already, if they can only be the cluster's."""
    try:
        stdin, stdout = os.fstat(0), os.fstat(1)
    except OSError:
        return
    is_socket = stdin.st_mode & 0o170000 == 0o140000
    if is_socket and (stdin.st_dev, stdin.st_ino) == (stdout.st_dev, stdout.st_ino):
        open_channel()


class Channel:
    """The two streams of the protocol: lines and raw bytes in, buffers out."""

    def __init__(self) -> None:
        self.printed = False  # User code wrote to stdout or stderr; the owner resets it.
        self._is_open = True  # False in a child that user code forked.
        self.mark = ""  # Put before each line that user code prints.
        self._source = os.dup(0)
        self._target = os.dup(1)
        os.set_blocking(self._source, True)
        os.set_blocking(self._target, True)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if null != 0:
            os.close(null)
        os.dup2(2, 1)
        for stream in (sys.stdout, sys.stderr):
            self._prepare(stream)

        os.register_at_fork(after_in_child=self._leave_to_parent)

        # Input: pieces of an unfinished line, and a chunk from `_at` on.
        self._pieces: list[bytes] = []
        self._chunk = b""
        self._at = 0
        self._large_bytes = 0  # of large values that came and went since the last look

        # Output that waits. Touched only under the lock, because of the thread.
        self._lock = allocate_lock()
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._is_watched = False

    def _prepare(self, stream: Any) -> None:
        """Make a text stream show lines at once, take any text, and note that it was used."""
        try:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        except (AttributeError, ValueError, OSError):
            pass  # Replaced by the user with something else: left as it is.
        try:
            really_write = stream.write
            at_line_start = True

            def write(text: str) -> int:
                nonlocal at_line_start
                if not self.printed:
                    self.printed = True
                    self._flush_if_free()
                if not self.mark:
                    really_write(text)
                    return len(text)
                marked = []
                for line in text.splitlines(True):
                    marked.append(self.mark + line if at_line_start else line)
                    at_line_start = line.endswith("\n")
                really_write("".join(marked))
                return len(text)

            stream.write = write
        except AttributeError:
            pass  # None, or an object that can't be watched.

    def _leave_to_parent(self) -> None:
        """Let go of the protocol in a child that user code forked.

        Otherwise the child might send the waiting lines a second time, or take its parent's next
        task. It might also keep the client from noticing that the node ended.
        """
        for descriptor in (self._source, self._target):
            os.close(descriptor)
        self._is_open = False
        self._lock = allocate_lock()
        self._waiting = []
        self._pieces = []
        self._chunk = b""
        self._at = 0

    def flush_prints(self) -> None:
        """Write out what user code printed, so that it comes before later output."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, ValueError, OSError):
                pass  # Closed or replaced by the user.

    @property
    def is_socket(self) -> bool:
        """Whether the input is a socket, as a client's is; a forked child has none."""
        return self._is_open and os.fstat(self._source).st_mode & 0o170000 == 0o140000

    def is_hung_up(self) -> bool:
        """Return whether the other side has closed its socket, and not only ended its output."""
        import select

        poll = select.poll()
        poll.register(self._source, select.POLLHUP)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    # --- reading ---

    def next_line(self) -> bytes | None:
        """Return the next line, without its newline; `None` at the end of input.

        Before it waits, everything that waits to be written goes out.
        """
        end = self._chunk.find(b"\n", self._at)
        while end < 0:
            if not self._read_chunk():
                return None
            end = self._chunk.find(b"\n")
        line = self._chunk[self._at : end]
        self._at = end + 1
        if self._pieces:
            self._pieces.append(line)
            line = b"".join(self._pieces)
            self._pieces = []
            if len(line) >= _LARGE_BYTES:
                self._large_bytes += len(line)
        return line

    def take(self, count: int) -> bytes | None:
        """Return so many raw bytes; `None` if the input ends before."""
        if count >= _LARGE_BYTES:
            return self._take_large(count)
        pieces: list[bytes] = []
        while len(self._chunk) - self._at < count:
            count -= len(self._chunk) - self._at
            if not self._read_chunk():
                return None
            pieces, self._pieces = pieces + self._pieces, []
        piece = self._chunk[self._at : self._at + count]
        self._at += count
        if pieces:
            pieces.append(piece)
            piece = b"".join(pieces)
        return piece

    def _take_large(self, count: int) -> bytes | None:
        """Return so many raw bytes, read right to where they will be: never twice in memory."""
        self._large_bytes += count
        target = BytesIO()
        target.seek(count - 1)
        target.write(b"\0")
        with target.getbuffer() as view:
            some = self._chunk[self._at : self._at + count]
            self._at += len(some)
            view[: len(some)] = some
            at = len(some)
            self.flush()
            while at < count:
                try:
                    got = os.readv(self._source, [view[at : at + _LARGE_BYTES]])
                except ConnectionResetError:
                    return None
                if not got:
                    return None
                at += got
        return target.getvalue()

    def _read_chunk(self) -> bool:
        """Move the rest of the chunk to the pieces and wait for another one."""
        if self._at < len(self._chunk):
            self._pieces.append(self._chunk[self._at :] if self._at else self._chunk)
        self._chunk = b""
        self._at = 0
        self.flush()
        if not self._is_open:
            return False
        if self._large_bytes >= _TRIM_BYTES:
            self._give_back_memory()
        try:
            self._chunk = os.read(self._source, _READ_BYTES)
        except ConnectionResetError:
            pass
        return bool(self._chunk)

    def _give_back_memory(self) -> None:
        """Give the memory of large values back to the system, before a wait that may be long.

        Without this the C library keeps free memory between pieces that are still in use.
        """
        self._large_bytes = 0
        import select

        # If the next task comes at once, it will want the same memory again.
        if select.select([self._source], [], [], _TRIM_AFTER_SECONDS)[0]:
            return
        try:
            import ctypes

            ctypes.CDLL(None).malloc_trim(0)
        except (ImportError, OSError, AttributeError):
            pass  # Another C library, which has other habits.

    # --- writing ---

    def put(self, *buffers: Any) -> None:
        """Let bytes go out soon."""
        if not self._is_open:
            return
        with self._lock:
            if not self._waiting:
                self._waiting_since = monotonic()
            for buffer in buffers:
                self._waiting.append(buffer)
                self._waiting_bytes += len(buffer)
                if len(buffer) >= _LARGE_BYTES:
                    self._large_bytes += len(buffer)
            if self._waiting_bytes >= WAITING_BYTES_MAX:
                self._write_waiting()

    def flush(self) -> None:
        """Write everything that waits."""
        if self._waiting:
            with self._lock:
                self._write_waiting()

    def _flush_if_free(self) -> None:
        """Write the waiting lines before user code's first one: the log then shows whose it is."""
        if not self._waiting:
            return
        # This is inside of a user's method. If an alarm of its `@timeout` raised in the middle
        # of a write, half a line would be on the socket.
        limits.hold_alarms(True)
        try:
            if self._lock.acquire(False):
                try:
                    self._write_waiting()
                finally:
                    self._lock.release()
        finally:
            limits.hold_alarms(False)

    def flush_old(self) -> None:
        """Write everything that waits, if some of it waited long enough."""
        if self._waiting and monotonic() - self._waiting_since > _WAITING_SECONDS_MAX:
            self.flush()

    def watch(self) -> None:
        """See to it that waiting lines go out even if user code runs for long now."""
        if self._waiting and not self._is_watched:
            self._is_watched = True
            start_new_thread(self._watch, ())

    def _watch(self) -> None:
        idle_rounds = 0
        while idle_rounds < _WATCH_ROUNDS:
            sleep(_WATCH_SECONDS)
            idle_rounds = 0 if self._waiting else idle_rounds + 1
            try:
                self.flush_old()
            except OSError:
                break  # The main thread meets the same error and ends the program.
        self._is_watched = False

    def _write_waiting(self) -> None:
        """Write what waits; the caller holds the lock."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        small: list[bytes] = []
        for buffer in waiting:
            if len(buffer) < WAITING_BYTES_MAX:
                small.append(buffer)
                continue
            self._write(b"".join(small))
            small = []
            self._write(buffer)
        self._write(b"".join(small))

    def _write(self, data: Any) -> None:
        if not data:
            return
        written = os.write(self._target, data)
        if written < len(data):
            rest = memoryview(data)
            while written < len(data):
                written += os.write(self._target, rest[written:])
