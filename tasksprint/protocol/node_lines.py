r"""Lines from a client to a node and back, as bytes and as messages.

A task is a line `{"id":…,"job":…,"task":…,"attempt":…,"name":…,"args":[…],"seed":…}`.
An answer is a line with the same id, and with `values` or `error`. If the node speaks frames,
raw bytes follow the line. JSON values are carried as they came, in both directions.

This module doesn't know which ids are under way, nor the meaning of a task. It reads no
file that a node names.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as _quote
from typing import Any

from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.lines import LineBuffer
from tasksprint.protocol.spans import (
    ERROR_CHARACTERS_MAX,
    EXCERPT_CHARACTERS,
    STDERR_HINT,
    TRACEBACK_CHARACTERS_MAX,
    Member,
    NotFiniteError,
    NotJsonError,
    cut_object,
    cut_ready,
    decode_line,
    excerpt,
    for_people,
    is_text,
    item_count,
    read_runtime,
    scan_carried,
    show,
    skip_space,
    why_not_ready,
)
from tasksprint.task_spec import TaskSpec

__all__ = [
    "Carried",
    "FilePath",
    "InPieces",
    "NodeFailure",
    "NodeLongLine",
    "NodeMessage",
    "NodePiece",
    "NodeReader",
    "NodeReady",
    "NodeReply",
    "NodeValue",
    "encode_task",
]


@dataclass(frozen=True, slots=True)
class FilePath:
    """The value is the content of this file; the file stays the node's."""

    path: str  # absolute


@dataclass(frozen=True, slots=True)
class InPieces:
    """The value came in pieces: those of this number."""

    number: int
    size: int


# (key, kind, data): kind "json" with the text's bytes, or "bytes" with the bytes, the
# pieces that they came in, or a file. If the line was long, `take_long` was given the data.
NodeValue = tuple[str, str, "bytes | InPieces | FilePath | Carried"]


@dataclass(frozen=True, slots=True)
class Carried:
    """A value for a node, outside memory: the writer of the line understands `content`."""

    content: object
    size: int
    is_base64: bool = False  # It is to be written as base64.


@dataclass(frozen=True, slots=True)
class NodeReady:
    """The node runs and takes tasks; always its first message."""

    frames: bool  # it speaks raw frames
    window: int  # tasks that it takes at once, at least 1
    runtime: str | None = None  # its interpreter, e.g. "cpython 3.12.1 x86_64"
    takes: tuple[str, ...] = ()  # members of `_ADDED` that it reads in its tasks' lines


@dataclass(frozen=True, slots=True)
class NodeReply:
    """A task was done."""

    id: int
    values: tuple[NodeValue, ...]  # Invariant: sorted by key, no key twice.


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A task failed, and the node says why."""

    id: int
    error: str
    traceback: str | None
    retry: bool  # False: it would fail again


@dataclass(frozen=True, slots=True)
class NodePiece:
    """More bytes of a value that is too large for memory; its reply follows later."""

    number: int  # of the value: 1, 2, 3 … for this node
    data: bytes


@dataclass(frozen=True, slots=True)
class NodeLongLine:
    """A line that takes long to read; the last message until `NodeReader.take_long`.

    The receiver calls `take_values_out` (long_lines.py) for the joined pieces, on a thread.
    """

    pieces: tuple[bytes, ...]


NodeMessage = NodeReady | NodeReply | NodeFailure | NodePiece | NodeLongLine

_LONG_LINE = "send large results as frames or files"

# Longer lines are scanned elsewhere: here it would take a tenth of a second.
_LONG_LINE_BYTES = 512 * 1024
# Values above the first limit are handed on in pieces. So are those above the second, once
# one reply has so many bytes (the third) in memory. Joining and hashing 8 MiB takes some 20 ms.
_VALUE_IN_MEMORY_MAX = 1024 * 1024
_VALUE_IN_MEMORY_MIN = 64 * 1024
_REPLY_IN_MEMORY_MAX = 8 * 1024 * 1024

_REPLY_KEYS = frozenset(("id", "values", "frames", "base64", "files"))
_FAILURE_KEYS = frozenset(("id", "error", "traceback", "retry"))
_READY_KEYS = frozenset(("ready", "frames", "window", "runtime", "takes"))

# Members of a task's line that came after release 0.2.0, each with the function that makes its
# JSON. Older nodes may refuse them, so they go only to nodes that announced them.
_ADDED: dict[str, Callable[[TaskSpec], str]] = {}

# The replies that matter for speed, spelled without spaces. They have no value, or one: a
# number, a word, or an ASCII string without escapes. All others take the long way, to the
# same end.
_SMALL_REPLY = re.compile(
    rb'\{"id":(0|[1-9][0-9]{0,17})'
    rb'(?:,"values":\{(?:"([ !#-\[\]-~]*)":'
    rb"(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
    rb'|null|true|false|"[ !#-\[\]-~]*"))?\})?\}\n'
)

# The beginning of a reply with one value of any form, spelled as above.
_ONE_VALUE = re.compile(
    rb'\{"id":(0|[1-9][0-9]{0,17}),"values":\{"([ !#-\[\]-~]*)":(?=[^ \t\r\n])'
)

_NO_VALUES: tuple[NodeValue, ...] = ()


def encode_task(
    id: int,
    job: int,
    tid: int,
    attempt: int,
    spec: TaskSpec,
    inputs: Sequence[tuple[str, bytes | Carried]],
    seed: int,
    frames: bool,
    takes: tuple[str, ...] = (),
) -> list[bytes | Carried]:
    """Return the line that gives a node a task, in buffers to be written one after the other.

    Big values are not copied: a node that speaks frames gets them behind the line.

    Args:
        id: Number of the request, not in use at this node.
        spec: The task; without newlines in its base.
        inputs: (kind, data) of the values of the pretasks, in order; they become the
            arguments behind those of the base.
        frames: The node said so in `NodeReady`.
        takes: The same.
    """
    base = spec.base
    head = (
        f'{{"id":{id},"job":{job},"task":{tid},"attempt":{attempt}'
        f',"name":{_quote(spec.name)},"args":'
    )
    end = f',"seed":{seed}'
    for name in takes:
        end += f',"{name}":{_ADDED[name](spec)}'
    if not inputs:
        return [f"{head}{base}{end}}}\n".encode()]
    first = base.strip()[1:-1].strip()
    buffers: list[bytes | Carried] = [(head + "[" + first).encode()]
    # Where bytes stand among the arguments; counted only if there are some.
    places: list[tuple[int, int]] = []
    base_count = -1
    raw: list[bytes | Carried] = []
    separator = b"," if first else b""
    for number, (kind, data) in enumerate(inputs):
        if separator:
            buffers.append(separator)
        separator = b","
        if kind == "json":
            buffers.append(data)
            continue
        assert kind == "bytes"
        if base_count < 0:
            base_count = item_count(base)
        size = len(data) if isinstance(data, bytes) else data.size
        places.append((base_count + number, size))
        if frames:
            buffers.append(b"null")
            raw.append(data)
        else:
            buffers.append(b'"')
            if isinstance(data, bytes):
                buffers.append(binascii.b2a_base64(data, newline=False))
            else:
                buffers.append(Carried(data.content, size, is_base64=True))
            buffers.append(b'"')
    tail = "]" + end
    if places and frames:
        tail += ',"frames":[' + ",".join(f"[{place},{size}]" for place, size in places) + "]"
    elif places:
        tail += ',"base64":[' + ",".join(str(place) for place, _ in places) + "]"
    buffers.append((tail + "}\n").encode())
    buffers.extend(raw)
    return buffers


class NodeReader:
    """Reads what one node says, from chunks of any size."""

    def __init__(self, *, who: str, line_bytes_max: int, value_bytes_max: int) -> None:
        """
        Args:
            who: The node, for messages: "node 3".
            line_bytes_max: Limit of one line.
            value_bytes_max: Limit of one value that follows raw.
        """
        self.ready: NodeReady | None = None  # Set by the first message.
        # A mistake behind the messages that `feed` returned last: nothing more may be fed.
        self.refusal: RemoteProtocolError | None = None
        self._who = who
        self._value_bytes_max = value_bytes_max
        self._buffer = LineBuffer(who=who, line_bytes_max=line_bytes_max, remedy=_LONG_LINE)
        # A reply that still lacks raw bytes: its id, its values so far, and
        # (key, size, kind) of the frames to come, the next one last.
        self._id = 0
        self._values: list[NodeValue] = []
        self._frames: list[tuple[str, int, str]] | None = None
        self._decoder: codecs.IncrementalDecoder | None = None  # of JSON that comes in pieces
        self._frame_bytes = 0  # of those values, in memory
        self.in_pieces = 0  # values that came in pieces so far
        self._is_waiting = False  # for `take_long`
        self._long_values: list[NodeValue] = []  # of the long line that is being read
        self._left = 0  # bytes to come of the value that comes in pieces; 0: none does

    @property
    def is_inside_message(self) -> bool:
        """Whether the node stopped in the middle of a message, if it stopped now."""
        return (
            self._is_waiting or self._frames is not None or self._buffer.pending_bytes > 0
        )

    def why_not_ready(self) -> str:
        """Return in words what is missing: the node ended before its first line."""
        return why_not_ready("node", self._buffer.pending_head(EXCERPT_CHARACTERS * 4))

    def feed(self, data: bytes) -> list[NodeMessage]:
        """Return the messages that are complete with this chunk.

        Messages before a mistake in the same chunk count: then `refusal` is set.

        Raises:
            RemoteProtocolError: The node broke the protocol. The reader must not be used
                any more.
        """
        self._buffer.feed(data)
        return [] if self._is_waiting else self._read_on([])

    def _read_on(self, messages: list[NodeMessage]) -> list[NodeMessage]:
        """Add all complete messages to those of this chunk, and return them."""
        buffer = self._buffer
        try:
            while True:
                if self._frames is not None:
                    reply = self._take_frames(messages)
                    if reply is None:
                        return messages
                    messages.append(reply)
                    continue
                if self.ready is not None:
                    small = buffer.match(_SMALL_REPLY)
                    if small is not None:
                        number, key, value = small.groups()
                        values: tuple[NodeValue, ...]
                        values = (
                            _NO_VALUES if key is None else ((key.decode(), "json", value),)
                        )
                        messages.append(NodeReply(int(number), values))
                        continue
                long = buffer.next_long_line(_LONG_LINE_BYTES)
                if long is not None and self.ready is not None:
                    self._is_waiting = True
                    messages.append(NodeLongLine(tuple(long)))
                    return messages
                line = buffer.next_line() if long is None else b"".join(long)
                if line is None:
                    return messages
                message = self._read_line(line)
                if message is not None:
                    messages.append(message)
        except RemoteProtocolError as error:
            if not messages:
                raise
            self.refusal = error
            return messages

    def take_long(
        self, line: bytes, values: Sequence[tuple[str, bytes | Carried]]
    ) -> list[NodeMessage]:
        """Go on after a `NodeLongLine`; return its messages, as `feed` does.

        Args:
            line: The rest of the long line, from `take_values_out`.
            values: The values that were taken out, as the reply is to hold them.

        Raises:
            RemoteProtocolError: As `feed`.
        """
        self._is_waiting = False
        if len(line) > _LONG_LINE_BYTES * 16:
            raise RemoteProtocolError(
                f"line from {self._who} has {len(line)} bytes beside its values; {_LONG_LINE}"
            )
        self._long_values = [(key, "json", data) for key, data in values]
        message = self._read_line(line)
        return self._read_on([] if message is None else [message])

    def _take_frames(self, messages: list[NodeMessage]) -> NodeReply | None:
        """Take raw bytes; pieces of large values go to the messages at once."""
        frames = self._frames
        assert frames is not None
        while frames:
            key, size, kind = frames[-1]
            if self._left or self._comes_in_pieces(size, kind):
                if not self._left:
                    self._left = size
                    self.in_pieces += 1
                    self._decoder = _new_decoder() if kind == "json" else None
                some = self._buffer.take_some(self._left)
                if some:
                    self._left -= len(some)
                    if self._decoder is not None:
                        self._check_text(key, some, is_last=not self._left)
                    messages.append(NodePiece(self.in_pieces, some))
                if self._left:
                    return None
                self._values.append((key, kind, InPieces(self.in_pieces, size)))
            else:
                raw = self._buffer.take(size)
                if raw is None:
                    return None
                if kind == "json":
                    self._check_json(key, raw)
                self._values.append((key, kind, raw))
                self._frame_bytes += size
            frames.pop()
        self._frames = None
        self._frame_bytes = 0
        values, self._values = self._values, []
        return _reply(self._id, values)

    def _check_json(self, key: str, raw: bytes) -> None:
        """Refuse raw bytes that aren't one JSON value in a line."""
        self._decoder = _new_decoder()
        self._check_text(key, raw, is_last=True)
        text = raw.decode()
        if scan_carried(text, 0) != len(text):
            raise RemoteProtocolError(
                f"{self._who} answered id {self._id} with a frame under key {show(key)} "
                f"that isn't JSON: {excerpt(text)}"
            )

    def _check_text(self, key: str, some: bytes, *, is_last: bool) -> None:
        """Refuse bytes that would break a line of a later reader.

        Nothing else is checked: a scanner takes seconds for values that come in pieces.
        """
        assert self._decoder is not None
        before = len(self._decoder.getstate()[0])  # bytes of a character that goes on in `some`
        newline = some.find(b"\n")
        why = "" if newline < 0 else "holds a newline"
        try:
            self._decoder.decode(some, is_last)
        except UnicodeDecodeError as error:
            # The mistake that comes first is told, however the pieces are cut.
            if newline < 0 or error.start < before + newline:
                why = "isn't UTF-8"
        if why:
            raise RemoteProtocolError(
                f"{self._who} answered id {self._id} with JSON in a frame under key {show(key)} "
                f"that {why}"
            )

    def _comes_in_pieces(self, size: int, kind: str) -> bool:
        if kind == "json":
            return size > _VALUE_IN_MEMORY_MIN
        if size > _VALUE_IN_MEMORY_MAX:
            return True
        # Of many values the later ones come in pieces. Tiny ones don't: each would cost a file.
        return size > _VALUE_IN_MEMORY_MIN and self._frame_bytes + size > _REPLY_IN_MEMORY_MAX

    def _read_line(self, line: bytes) -> NodeMessage | None:
        """Return the message of a line; `None` if raw bytes belong to it."""
        who = self._who
        if self.ready is None:
            return self._read_ready(line)
        text = decode_line(line, who=who)
        one = _ONE_VALUE.match(line)
        if one is not None:
            # So far every character is one byte, so the index in the text is the same.
            start = one.end()
            end = scan_carried(text, start)
            if end > 0 and text[end:] == "}}":
                return NodeReply(int(one[1]), ((one[2].decode(), "json", line[start:-2]),))
        try:
            members, end = cut_object(text, 0, who=who, opened="values")
        except NotFiniteError as error:
            return self._refuse_not_finite(text, error)
        except NotJsonError as error:
            error.hint = STDERR_HINT
            raise
        if skip_space(text, end) != len(text):
            raise RemoteProtocolError(
                f"line from {who} goes on after its JSON object: {excerpt(text[end:])}",
                hint=STDERR_HINT,
            )
        id = self._read_id(members, line)
        if "error" in members:
            return self._read_failure(id, members)
        return self._read_reply(id, members, text, line)

    def _read_ready(self, line: bytes) -> NodeReady:
        who = self._who
        known = "'frames', 'window', 'runtime' and 'takes'"
        members = cut_ready(line, _READY_KEYS, known, who=who)
        frames = members["frames"][0] if "frames" in members else False
        if not isinstance(frames, bool):
            raise RemoteProtocolError(
                f"{who} said ready with frames {show(frames)}, expected true or false"
            )
        window = members["window"][0] if "window" in members else 1
        if type(window) is not int or not 1 <= window < 2**31:
            raise RemoteProtocolError(
                f"{who} said ready with window {show(window)}, "
                "expected how many tasks it takes at once, at least 1"
            )
        takes = members["takes"][0] if "takes" in members else []
        if not isinstance(takes, list) or not all(map(is_text, takes)):
            raise RemoteProtocolError(
                f"{who} said ready with takes {show(takes)}, "
                "expected a list of members of its tasks' lines"
            )
        taken = tuple([name for name in _ADDED if name in takes])
        self.ready = NodeReady(frames, window, read_runtime(members, who), taken)
        return self.ready

    def _read_id(self, members: dict[str, Member], line: bytes) -> int:
        if "id" not in members:
            raise RemoteProtocolError(
                f"{self._who} answered without 'id': {excerpt(line)}; "
                "every answer carries the id of its task's line"
            )
        id = members["id"][0]
        if type(id) is not int or not 0 <= id < 2**63:
            raise RemoteProtocolError(
                f"{self._who} answered with id {show(id)}, "
                "expected the number that its task's line has"
            )
        return id

    def _read_failure(self, id: int, members: dict[str, Member]) -> NodeFailure:
        who = self._who
        unknown = [key for key in members if key not in _FAILURE_KEYS]
        if unknown:
            raise RemoteProtocolError(
                f"{who} answered id {id} with 'error' and {show(unknown[0])}, "
                "expected only 'traceback' and 'retry' beside it"
            )
        error = members["error"][0]
        if not isinstance(error, str):
            raise RemoteProtocolError(
                f"{who} answered id {id} with error {show(error)}, expected a string"
            )
        traceback = members["traceback"][0] if "traceback" in members else None
        if traceback is not None and not isinstance(traceback, str):
            raise RemoteProtocolError(
                f"{who} answered id {id} with traceback {show(traceback)}, expected a string"
            )
        retry = members["retry"][0] if "retry" in members else True
        if not isinstance(retry, bool):
            raise RemoteProtocolError(
                f"{who} answered id {id} with retry {show(retry)}, expected true or false"
            )
        if traceback is not None:
            traceback = for_people(traceback, TRACEBACK_CHARACTERS_MAX)
        return NodeFailure(id, for_people(error, ERROR_CHARACTERS_MAX), traceback, retry)

    def _read_reply(
        self, id: int, members: dict[str, Member], text: str, line: bytes
    ) -> NodeReply | None:
        who = self._who
        for key in members:
            if key not in _REPLY_KEYS:
                raise RemoteProtocolError(
                    f"{who} answered id {id} with {show(key)}, "
                    "expected 'values', 'frames', 'base64' and 'files', or 'error'"
                )
        values: list[NodeValue] = []
        if "values" in members:
            spans, start, end = members["values"]
            if text[start] != "{":
                raise RemoteProtocolError(
                    f"{who} answered id {id} with values {excerpt(text[start:end])}, "
                    "expected an object of keys and values"
                )
            # Cutting the line itself saves encoding, where one character is one byte.
            if len(text) == len(line):
                values = [(key, "json", line[start:end]) for key, (_, start, end) in spans.items()]
            else:
                values = [
                    (key, "json", text[start:end].encode())
                    for key, (_, start, end) in spans.items()
                ]
        if self._long_values:
            values += self._long_values
            self._long_values = []
        if len(members) <= 2 and "values" in members:
            return _reply(id, values)
        seen = {value[0] for value in values}
        if "base64" in members:
            for key, data in self._pairs(id, "base64", members["base64"][0], seen):
                try:
                    values.append((key, "bytes", base64.b64decode(data, validate=True)))
                except ValueError as error:
                    raise RemoteProtocolError(
                        f"{who} answered id {id} with base64 under key {show(key)} "
                        f"that can't be decoded: {_lower(str(error))}"
                    ) from None
        if "files" in members:
            for key, path in self._pairs(id, "files", members["files"][0], seen):
                if not path.startswith("/") or "\0" in path:
                    raise RemoteProtocolError(
                        f"{who} answered id {id} with file {show(path)} under key {show(key)}, "
                        "expected an absolute path"
                    )
                values.append((key, "bytes", FilePath(path)))
        if "frames" not in members:
            return _reply(id, values)
        self._frames = self._read_frames(id, members["frames"][0], seen)
        self._id = id
        self._values = values
        return None

    def _pairs(self, id: int, kind: str, found: Any, seen: set[str]) -> list[tuple[str, str]]:
        """Return the members of `base64` or `files`, checked."""
        if not isinstance(found, dict):
            raise RemoteProtocolError(
                f"{self._who} answered id {id} with {kind} {show(found)}, "
                "expected an object of keys and strings"
            )
        for key, value in found.items():
            self._check_key(id, key, seen)
            if not is_text(value):
                raise RemoteProtocolError(
                    f"{self._who} answered id {id} with {kind} {show(value)} "
                    f"under key {show(key)}, expected a string"
                )
        return list(found.items())

    def _read_frames(
        self, id: int, found: Any, seen: set[str]
    ) -> list[tuple[str, int, str]]:
        who = self._who
        assert self.ready is not None
        if not self.ready.frames:
            raise RemoteProtocolError(
                f"{who} answered id {id} with 'frames', which it didn't announce; "
                'begin with {"ready":{},"frames":true}'
            )
        if not isinstance(found, list):
            raise RemoteProtocolError(
                f"{who} answered id {id} with frames {show(found)}, "
                "expected a list of [key, bytes]"
            )
        frames: list[tuple[str, int, str]] = []
        for item in found:
            if (
                not isinstance(item, list)
                or len(item) not in (2, 3)
                or not isinstance(item[0], str)
                or type(item[1]) is not int
                or item[1] < 0
                or item[2:] not in ([], ["json"])
            ):
                raise RemoteProtocolError(
                    f"{who} answered id {id} with frame {show(item)}, "
                    'expected [key, bytes] or [key, bytes, "json"]'
                )
            key, size = item[:2]
            self._check_key(id, key, seen)
            if size > self._value_bytes_max:
                raise RemoteProtocolError(
                    f"{who} answered id {id} with {size} bytes under key {show(key)}, "
                    f"expected at most {self._value_bytes_max} (value_bytes_max); "
                    "split the value over several keys or tasks"
                )
            frames.append((key, size, "json" if len(item) == 3 else "bytes"))
        frames.reverse()
        return frames

    def _check_key(self, id: int, key: str, seen: set[str]) -> None:
        if not is_text(key):
            raise RemoteProtocolError(
                f"{self._who} answered id {id} with key {show(key)}, which isn't Unicode text"
            )
        if key in seen:
            raise RemoteProtocolError(f"{self._who} answered id {id} with key {show(key)} twice")
        seen.add(key)

    def _refuse_not_finite(self, text: str, error: NotFiniteError) -> NodeFailure:
        """Fail the one task whose value holds NaN; the node goes on.

        Raises:
            RemoteProtocolError: The line has no id to blame, or is no JSON elsewhere.
        """
        found = _ID_BEFORE_VALUES.match(text)
        if found is None:
            raise error
        return NodeFailure(
            int(found[1]),
            f"value under key {show(error.key)} holds {error.constant}, which JSON doesn't have; "
            "return None or a string instead",
            None,
            False,
        )


# Enough to find the task of a reply that can't be read to its end.
_ID_BEFORE_VALUES = re.compile(
    r'[ \t\r\n]*\{[ \t\r\n]*"id"[ \t\r\n]*:[ \t\r\n]*(0|[1-9][0-9]{0,17})'
    r'[ \t\r\n]*,[ \t\r\n]*"values"[ \t\r\n]*:[ \t\r\n]*\{'
)


_new_decoder = codecs.getincrementaldecoder("utf-8")


def _reply(id: int, values: list[NodeValue]) -> NodeReply:
    if len(values) > 1:
        values.sort(key=_key_of)
    return NodeReply(id, tuple(values))


def _key_of(value: NodeValue) -> str:
    return value[0]


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
