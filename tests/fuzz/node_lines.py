"""What nodes may say: lines and frames of theirs, right ones and spoiled ones, cut anywhere.

Half of the inputs go to the reader of node lines. Checked: nothing but `RemoteProtocolError`
comes out of it, in one short sentence; the same messages come, whatever the chunks are; they
are in order and complete; it holds no more than a line and a value.

The other half goes to a whole client, on a loop of this process, as answers of its nodes.
Checked: the task gets its result or fails, the client lives, no bug was met, its log holds
sentences, and nothing stays on the disk that no result has.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tasksprint.coordination.view import DropJob
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import JobId
from tasksprint.process.program import ExitReason
from tasksprint.protocol.long_lines import take_values_out
from tasksprint.protocol.node_lines import (
    InPieces,
    NodeFailure,
    NodeLongLine,
    NodeMessage,
    NodePiece,
    NodeReader,
    NodeReady,
    NodeReply,
)
from tasksprint.roles.client.surroundings import REAL_CLIENT
from tests.fuzz.outcome import Outcome, input_random, own_peak_mib
from tests.roles.client_world import World, assignment, view, world

__all__ = ["NAME", "conversation", "run", "what_is_wrong"]

NAME = "node_lines"

KIB = 1024
MIB = 1024 * KIB
_LINE_MAX = 900 * KIB
_VALUE_MAX = 3 * MIB
_SENTENCE_MAX = 1_000
_SECONDS_MAX = 2.0
_ANSWER_S = 10.0
# Tasks given to the client at once.
_ROUND = 20

_VALUES: tuple[str, ...] = (
    *("0", "-0", "1.50", "1e999", "9" * 30, "9" * 5_000, "null", "true", '""', '"a"', "[]", "{}"),
    *("NaN", "Infinity", "-Infinity", "01", "+1", ".5", "tru", "'a'", '"\\ud800"', '"\\u0000"'),
    *(
        '"\x01"',
        "[1,2,",
        '{"a":1,"a":2}',
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 300 + "1" + "}" * 300,
    ),
    *('"' + "x" * 70_000 + '"', "[" + "0," * 9_000 + "0]", '{"a":[1,{"b":"c"}]}', " 1 ", "1 2"),
)
_LONG_VALUES = (
    *("[" + '[1,2.5,"word\\n"],' * 40_000 + "{}]", '"' + '\\\\\\"é' * 60_000 + '"', "7" * 600_000),
    *('{"a":' * 400 + "[]" + "}" * 400, '[{"k":[]},{"k":["]"]}' + ",null" * 110_000 + "]"),
)
_KEYS = (
    "a",
    "b",
    "result",
    "",
    " ",
    "é",
    "\\ud83d\\ude00",
    "\\ud800",
    "k" * 2_000,
    "\\u0000",
    "\x7f",
)
_SIZES = (0, 1, 7, 5_000, 70_000, MIB, MIB + 1, 2 * MIB)
_WRONG_SIZES = ("-1", "1.5", '"1"', "null", "1e3", str(_VALUE_MAX + 1), "9" * 40)
_READY = (
    b'{"ready":{},"frames":true,"window":4}\n',
    b'{"ready":{}}\n',
    b' { "ready" : 1 , "frames" : false } \n',
)
_WRONG_READY = (
    *(b"\n", b"hello\n", b'{"ready":{},"frames":1}\n', b'{"ready":{},"window":0}\n', b"{}\n"),
    *(b'{"ready":{},"window":1e400}\n', b'{"ready":{},"x":1}\n', b"\xff\n", b'["ready"]\n'),
)
_NOISE = (b"", b"\n", b"\n\n", b" ", b"\0", b"\r\n", b"{", b"}", b'"', b"\xff\xfe", b"print\n")


def run(seconds: float, seed: int) -> Outcome:
    """Feed a reader, and then a client, for half of the time each."""
    logging.getLogger("tasksprint").setLevel(logging.WARNING)
    findings: list[str] = []
    number = 0
    ends_s = time.monotonic() + seconds / 2
    while time.monotonic() < ends_s and not findings:
        number += 1
        random = input_random(seed, number)
        findings += [f"input {number}: {each}" for each in what_is_wrong(random)]
    ends_s = time.monotonic() + seconds / 2
    fed, of_client = asyncio.run(
        _feed_client(seed, number, go_on=lambda number: time.monotonic() < ends_s)
    )
    return Outcome(NAME, fed, findings + of_client, own_peak_mib())


# --- what a node says ---


def conversation(random: Random, ids: list[int]) -> bytes:
    """Return what a node may say to tasks with these ids, from its first line on."""
    ready = random.choice(_READY if random.random() < 0.9 else _WRONG_READY)
    data = bytearray(ready)
    for id in ids:
        data += _answer(random, id, has_frames=b"true" in ready)
    if random.random() < 0.6:
        _spoil(random, data, first=len(ready) if random.random() < 0.8 else 0)
    return bytes(data)


def _answer(random: Random, id: int, *, has_frames: bool) -> bytes:
    is_right = random.random() < 0.7
    shown = str(id) if random.random() < 0.95 else random.choice(("-1", "77", '"1"', "9" * 25))
    if random.random() < 0.1:
        text = json.dumps("".join(random.choices("ab\n\x1bé\u202e", k=random.choice((3, 9_000)))))
        more = random.choice(("", ',"retry":false', ',"traceback":"x"', ',"retry":1', ',"x":1'))
        return f'{{"id":{shown},"error":{text}{more if not is_right else ""}}}\n'.encode()
    keys = random.sample(_KEYS[:3] if is_right else _KEYS, random.randrange(4) % 4)
    values, frames, encoded, files, raw = [], [], [], [], bytearray()
    for key in keys:
        kind = random.randrange(8)
        if kind == 0 and has_frames:
            size = random.choice(_SIZES)
            told = str(size) if is_right else random.choice(_WRONG_SIZES)
            more = random.choice(("", ',"json"', ',"text"', ",1")) if not is_right else ""
            frames.append(f'["{key}",{told}{more}]')
            raw += random.randbytes(min(size, 1_000)) * (size // min(size or 1, 1_000))
            raw += bytes(max(size - len(raw), 0))
        elif kind == 3 and has_frames:
            text = random.choice(_VALUES if not is_right else _LONG_VALUES).encode()
            frames.append(f'["{key}",{len(text)},"json"]')
            raw += text
        elif kind == 4 and random.random() < 0.2:
            values.append(f'"{key}":{random.choice(_LONG_VALUES)}')
        elif kind == 1:
            data = base64.b64encode(random.randbytes(random.choice(_SIZES[:4]))).decode()
            encoded.append(f'"{key}":"{data if is_right else data[1:]}"')
        elif kind == 2 and not is_right:
            path = random.choice(
                ("/dev/null", "/dev/zero", "/lacking", "x", "", "/", "/proc/self/mem")
            )
            files.append(f'"{key}":"{path}"')
        else:
            values.append(f'"{key}":{random.choice(_VALUES[:12] if is_right else _VALUES)}')
    members = [f'"id":{shown}', f'"values":{{{",".join(values)}}}']
    members += [f'"frames":[{",".join(frames)}]'] if frames else []
    members += [f'"base64":{{{",".join(encoded)}}}'] if encoded else []
    members += [f'"files":{{{",".join(files)}}}'] if files else []
    if not is_right:
        random.shuffle(members)
    line = f"{{{random.choice((',', ' , ')).join(members)}}}\n"
    return line.encode("utf-8", "surrogatepass") + bytes(raw)


def _spoil(random: Random, data: bytearray, first: int) -> None:
    for _ in range(random.choice((1, 1, 1, 5))):
        at = random.randrange(first, len(data) + 1)
        match random.randrange(5):
            case 0 if at < len(data):
                data[at] = random.randrange(256)
            case 1:
                data[at:at] = random.choice(_NOISE)
            case 2:
                del data[at : at + random.choice((1, 2, 100))]
            case 3:
                data[at:at] = data[first : first + random.choice((5, 300))]
            case _:
                del data[at:]
        if random.random() < 0.01:
            data[at:at] = random.choice((b" ", b"[", b'"', b"1")) * (_LINE_MAX + 9)


def _chunks(random: Random, data: bytes) -> list[bytes]:
    largest = random.choice((1, 50, 4_000, 128 * KIB)) if len(data) < 20_000 else 128 * KIB
    chunks, at = [], 0
    while at < len(data):
        size = random.randrange(1, largest + 1)
        chunks.append(data[at : at + size])
        at += size
    return chunks


# --- the reader ---


def what_is_wrong(random: Random) -> list[str]:
    """Return what a reader does wrong with a made-up conversation."""
    data = conversation(random, list(range(1, random.choice((2, 4, 30)))))
    found = []
    for chunks in ([data], _chunks(random, data)):
        started_s = time.thread_time()  # Others use this machine, too.
        try:
            found.append(_read(chunks))
        except Exception as error:
            return [f"{type(error).__name__}: {error!s:.300} for {data!r:.300}"]
        took_s = time.thread_time() - started_s
        if took_s > _SECONDS_MAX + len(chunks) * 1e-4:
            return [f"{took_s:.1f} s for {len(data)} bytes: {data!r:.300}"]
    if found[0] != found[1]:
        return [f"other messages with other chunks: {found!r:.600} for {data!r:.300}"]
    return []


def _read(chunks: list[bytes]) -> tuple[list[NodeMessage], bytes, str]:
    """Return the messages but for pieces, the bytes of those, and the refusal."""
    reader = NodeReader(who="node 1", line_bytes_max=_LINE_MAX, value_bytes_max=_VALUE_MAX)
    messages: list[NodeMessage] = []
    pieces = bytearray()  # of complete replies
    begun = bytearray()  # of the one that isn't
    for chunk in chunks:
        try:
            new = _fed(reader, chunk)
        except RemoteProtocolError as error:
            return _refused(messages, pieces, error)
        for message in new:
            if isinstance(message, NodePiece):
                assert message.data, "an empty piece"
                begun += message.data
                continue
            if isinstance(message, NodeReply):
                keys = [key for key, _, _ in message.values]
                assert keys == sorted(set(keys)), f"keys {keys}"
                sizes = [one[2].size for one in message.values if isinstance(one[2], InPieces)]
                assert sum(sizes) == len(begun), f"{len(begun)} bytes came for {sizes}"
                pieces += begun
                begun.clear()
            elif isinstance(message, NodeFailure):
                assert len(message.error) < 10_000
            messages.append(message)
        if reader.refusal is not None:
            return _refused(messages, pieces, reader.refusal)
        held = reader._buffer.pending_bytes
        assert held <= _LINE_MAX + MIB + len(chunk), f"{held} bytes are held"
    return _complete(messages), bytes(pieces), ""


def _fed(reader: NodeReader, chunk: bytes) -> list[NodeMessage]:
    """Feed a reader, and read long lines for it, as a client does."""
    messages = reader.feed(chunk)
    while messages and isinstance(messages[-1], NodeLongLine):
        try:
            line, values = take_values_out(b"".join(messages.pop().pieces), who="node 1")
            messages += reader.take_long(line, [(key, bytes(text)) for key, text in values])
        except RemoteProtocolError as error:
            if not messages:
                raise
            reader.refusal = error
    return messages


def _refused(
    messages: list[NodeMessage], pieces: bytearray, error: RemoteProtocolError
) -> tuple[list[NodeMessage], bytes, str]:
    text = str(error)
    assert len(text) < _SENTENCE_MAX and text.isprintable(), f"no sentence: {text!r:.300}"
    return _complete(messages), bytes(pieces), text


def _complete(messages: list[NodeMessage]) -> list[NodeMessage]:
    assert all(isinstance(each, NodeReady) == (n == 0) for n, each in enumerate(messages))
    return messages


# --- a client ---


class _FakeNode:
    """As a `ChildProcess`: says ready, then something made up for each task; then it ends."""

    def __init__(self, random: Random, on_data: Any, on_exit: Any) -> None:
        self._random = random
        self._on_data: Callable[[bytes], None] = on_data
        self._on_exit: Callable[[ExitReason], None] = on_exit
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._say, [random.choice(_READY)])
        self._is_paused = False
        self._unsaid: list[bytes] = []

    def write(self, data: bytes) -> None:
        ids = [int(id) for id in re.findall(rb'\{"id":(\d+),"job"', bytes(data))]
        random = self._random
        said = conversation(random, ids).partition(b"\n")[2]
        chunks = _chunks(random, said)
        self._loop.call_soon(self._say, chunks)
        # What is cut off or left out is answered by its end.
        self._loop.call_later(0.01, self.kill, "it has said all")

    def _say(self, chunks: list[bytes]) -> None:
        self._unsaid += chunks
        while self._unsaid and not self._is_paused and not self.closed.done():
            self._on_data(self._unsaid.pop(0))

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._say, [])

    async def drain(self) -> None:
        pass

    def kill(self, why: str = "killed") -> None:
        if self._unsaid and not self.closed.done() and why == "it has said all":
            self._loop.call_later(0.01, self.kill, why)
        elif not self.closed.done():
            self.closed.set_result(None)
            self._loop.call_soon(self._on_exit, ExitReason(None, 9, False, "", why))

    async def stop(self, **options: Any) -> None:
        self.kill("stopped")


async def _feed_client(
    seed: int, number: int, *, go_on: Callable[[int], bool]
) -> tuple[int, list[str]]:
    """Feed a client; return the number of the last input, and findings.

    Args:
        seed: Decides the inputs, with their numbers.
        number: Of the input before the first.
        go_on: Tells whether to go on after the input with this number.
    """
    findings: list[str] = []
    lines = _Lines()
    with tempfile.TemporaryDirectory(prefix="ts-fuzz-") as folder:
        limits = {"line_bytes_max": _LINE_MAX, "value_bytes_max": _VALUE_MAX}
        pauses = {"node_restart_pause_min_ms": 1, "node_restart_pause_max_ms": 1}
        random = input_random(seed, -number)

        async def start_node(directory: Path, command: str, **callbacks: Any) -> Any:
            return _FakeNode(random, callbacks["on_data"], callbacks["on_exit"])

        fake = dataclasses.replace(REAL_CLIENT, start_node=start_node)
        async with world(
            Path(folder), slots=4, surroundings=fake, **limits, **pauses
        ) as here:
            client = here.client
            here.program("")
            logging.getLogger("tasksprint").addHandler(lines)
            try:
                while go_on(number) and not findings:
                    first, number = number + 1, number + _ROUND
                    random = input_random(seed, first)
                    wrong = await _feed_round(here, list(range(first, number + 1)))
                    wrong += lines.wrong
                    findings = [f"inputs {first} to {number}: {each}" for each in wrong]
            finally:
                logging.getLogger("tasksprint").removeHandler(lines)
                if client.stopped.done():  # That is told; `world` would raise it.
                    client.stopped = asyncio.get_running_loop().create_future()
    return number, findings


async def _feed_round(here: World, tids: list[int]) -> list[str]:
    coordinator, client = here.coordinator, here.client
    coordinator.give(view(whole=True, run=tuple(map(assignment, tids))))

    def ended() -> set[int]:
        return {*coordinator.done(), *(one.tid for one in coordinator.failures)}

    deadline_s = time.monotonic() + _ANSWER_S
    while not ended() >= set(tids):
        if client.stopped.done():
            error = client.stopped.exception()
            return [f"the client ended: {error!r:.500}"]
        if time.monotonic() > deadline_s:
            status = client.workbench.summary()
            return [f"no end of tasks {sorted(set(tids) - ended())}: {status!r:.800}"]
        await asyncio.sleep(0.002)
    wrong = [f"bug {client.bugs.count}"] if client.bugs.count else []
    for failure in coordinator.failures:
        if len(failure.error) > 10_000:
            wrong.append(f"an error of {len(failure.error)} characters")
    client.workbench.check()
    # All that was made is dropped: then there must be no file.
    coordinator.give(view(drop_jobs=(DropJob(JobId(1), ()),)))
    coordinator.completions.clear()
    coordinator.failures.clear()
    folder = here.data_dir / "values"
    while any(folder.iterdir()) or client.workbench.summary()["held"]:
        if time.monotonic() > deadline_s:
            return [*wrong, f"files stay: {sorted(folder.iterdir())!r:.300}"]
        await asyncio.sleep(0.005)
    return wrong


class _Lines(logging.Handler):
    """Collects lines of the log that aren't sentences."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR or record.exc_info or not text.isprintable():
            with contextlib.suppress(Exception):
                error = record.exc_info[1] if record.exc_info else None
                self.wrong.append(f"logged {text!r:.300} {error!r:.300}")
