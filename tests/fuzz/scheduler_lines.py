"""What schedulers may say: right and wrong answers, spoiled and cut; what passes is applied.

A conversation is made up of answers whose commands are mostly well formed, name tasks that are
there or aren't, and hold odd numbers, texts and JSON; then lines are spoiled, doubled, cut
off, or cut into chunks of any size. The reader hands out messages or refuses with one sentence,
in a time in proportion to the bytes. Each answer that passes goes through the command of the
log to the state machine of a job with a living client: nothing is raised, the invariants hold,
and the job runs on or fails with a sentence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from random import Random
from typing import TypeVar

from tasksprint.coordination.commands import (
    Answer,
    AnswerPart,
    JoinClient,
    SubmitJob,
    decode_command,
    encode_command,
)
from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, JobId, ReplicaId, Slot
from tasksprint.protocol.scheduler_lines import SchedulerAnswer, SchedulerMessage, SchedulerReader
from tasksprint.settings import RULES
from tests.fuzz.outcome import Outcome, input_random, own_peak_mib

__all__ = ["NAME", "conversation", "run", "what_is_wrong"]

NAME = "scheduler lines"

_Item = TypeVar("_Item")

_JOB = JobId(1)
_LINE_BYTES_MAX = 100_000
_CLIENTS = 7  # each is an event of the job
_SECONDS_MAX = 2.0
_SENTENCE_MAX = 1_000

_NUMBERS = (
    *("0", "1", "2", "3", "-1", "-0", "1.0", "1e2", "1e999", "true", "null", '"1"', "[]", "{}"),
    *("9223372036854775807", "9223372036854775808", "1180591620717411303424", "9" * 5_000),
    *("9007199254740992", "NaN", "Infinity", "-Infinity", "01", "1.", "0x1", ""),
)
_TEXTS = (
    *('"map"', '"a"', '""', '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"é"', '"😀"', "null", "5"),
    *('"' + "n" * 1_024 + '"', '"' + "n" * 1_025 + '"', '"' + "é" * 9_000 + '"', '"\\x"', '"'),
    *('"\x1b[2J"', '"\n"', '"a\tb"', '"\\ud83d\\ude00"', "'a'", '"\u202e"'),
)
_JSON = (
    *("{}", "[]", "[1,2]", '{"a":1,"a":2}', '{"1":2}', "[" * 500 + "]" * 500, "NaN", "[NaN]"),
    *('{"\\ud800":1}', "9" * 5_000, '[{"x":[1e999]}]', "[" * 60_000, '{"a":}', "[1,]", "nul"),
    *('{"r":"' + "v" * 20_000 + '"}', "[\x1b]", "[1 2]", " [ 1 , 2 ] ", "\ufeff[]", "{1:2}"),
)
_TOKENS = (*(bytes([each]) for each in b'{}[],:"\\\0\xff\r -'), b"NaN")
_READY = (
    b'{"ready":{}}\n',
    *(b'{"ready":{},"checkpoints":true}\n', b'{"ready":{},"runtime":"CPython 3.11.7"}\n'),
    *(b"hello\n", b"\n", b'{"ready":{},"x":1}\n', b'{"ready":1}{}\n', b""),
)


def run(seconds: float, seed: int) -> Outcome:
    """Hold made-up conversations for so long."""
    findings: list[str] = []
    number = 0
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        number += 1
        wrong = what_is_wrong(conversation(input_random(seed, number)))
        if wrong is not None:
            findings.append(f"input {number}: {wrong}")
    return Outcome(NAME, number, findings, own_peak_mib())


def what_is_wrong(chunks: list[bytes]) -> str | None:
    """Read what a scheduler says and apply it; return what is wrong with that, or None."""
    before_s = time.process_time()
    try:
        wrong = _read_and_apply(chunks)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:_SENTENCE_MAX]
    took_s = time.process_time() - before_s
    if took_s > _SECONDS_MAX:
        return f"{took_s:.1f} s of processor time for {sum(map(len, chunks))} bytes"
    return wrong


def _read_and_apply(chunks: list[bytes]) -> str | None:
    reader = SchedulerReader(who="scheduler of job 1", line_bytes_max=_LINE_BYTES_MAX)
    schedule = _schedule()
    for chunk in chunks:
        try:
            messages = reader.feed(chunk)
        except RemoteProtocolError as error:
            return _what_is_wrong_with(str(error))
        for message in messages:
            wrong = _apply(schedule, message)
            if wrong is not None:
                return wrong
    return None


def _what_is_wrong_with(sentence: str) -> str | None:
    if sentence.isprintable() and 0 < len(sentence) <= _SENTENCE_MAX:
        return None
    return f"{sentence[:_SENTENCE_MAX]!r} isn't one sentence"


def _schedule() -> Schedule:
    """Return a state with a running job, and a client that may run its tasks."""
    schedule = Schedule(cluster="c", members=(ReplicaId(1),), rules=RULES)
    submit = SubmitJob("me", 1, "job", 7, "{}", "p" * 64, '{"node":"node.py"}')
    joins = [JoinClient(f"a{n}", Incarnation(f"b{n}"), None, "host", 2) for n in range(_CLIENTS)]
    schedule.apply(Slot(1), tuple(map(encode_command, (submit, *joins))))
    assert schedule.is_running(_JOB)
    return schedule


def _apply(schedule: Schedule, message: SchedulerMessage) -> str | None:
    if not isinstance(message, SchedulerAnswer):
        return None
    summary = schedule.job_summary(_JOB)
    assert summary is not None
    if summary["state"] != "running":
        return None
    next_tid = schedule.scheduler_history(_JOB).next_tid
    part = AnswerPart(message.event, message.part, message.last, next_tid, message.commands)
    data = encode_command(Answer(_JOB, (part,)))
    assert decode_command(data) == Answer(_JOB, (part,))
    schedule.apply(Slot(schedule.applied_slot + 1), (data,))
    schedule.check()
    summary = schedule.job_summary(_JOB)
    assert summary is not None
    json.dumps(summary, ensure_ascii=False).encode()
    if summary["state"] != "failed":
        return None
    error = summary["error"]
    # What the scheduler itself gave as the cause may be anything.
    if not isinstance(error, str) or (
        error.startswith("scheduler's answer") and _what_is_wrong_with(error)
    ):
        return f"the job failed with {error!r:.200}"
    return None


# --- making them up ------------------------------------------------------------------


def _mostly(random: Random, right: Sequence[_Item], odd: Sequence[_Item]) -> _Item:
    """Return one of what is right, or now and then something odd."""
    return random.choice(odd if random.randrange(12) == 0 else right)


def conversation(random: Random) -> list[bytes]:
    """Make up what one scheduler says, in the chunks that it comes in."""
    lines = [_mostly(random, _READY[:1], _READY)]
    started = 0
    for event in range(random.choice((1, 2, 3, 8))):
        line, count = _answer(random, event, started)
        started += count
        lines.append(line)
    data = bytearray(b"".join(lines))
    if random.randrange(3) == 0:
        _spoil(random, data, lines)
    whole = bytes(data)
    size = random.choice((1, 7, 100, 4_096, len(whole) or 1))
    if len(whole) > 20_000:
        size = max(size, 4_096)
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def _answer(random: Random, event: int, started: int) -> tuple[bytes, int]:
    """Return an answer, and how many tasks it starts."""
    commands = []
    count = 0
    for _ in range(random.choice((0, 0, 1, 1, 2, 5))):
        command, starts = _command(random, started + count)
        commands.append(command)
        count += starts
    number = str(event) if random.randrange(40) else random.choice(_NUMBERS)
    fields = [f'"event":{number}']
    if random.randrange(8) == 0:
        fields.append(f'"part":{_mostly(random, ("0",), _NUMBERS)}')
    if random.randrange(8) == 0:
        fields.append(f'"last":{_mostly(random, ("true", "true", "false"), _NUMBERS)}')
    if commands or random.randrange(2):
        fields.append(f'"commands":[{",".join(commands)}]')
    if random.randrange(20) == 0:
        fields.append(f'"{random.choice(("extra", "event", "commands"))}":{random.choice(_JSON)}')
    if random.randrange(10) == 0:
        random.shuffle(fields)
    return ("{" + ",".join(fields) + "}\n").encode(errors="surrogatepass"), count


def _command(random: Random, started: int) -> tuple[str, int]:
    def tid() -> str:
        if started and random.randrange(25):
            return str(random.randrange(started))
        return random.choice((str(started), *_NUMBERS))

    def tids() -> str:
        return "[" + ",".join(tid() for _ in range(random.choice((0, 1, 1, 3)))) + "]"

    def text() -> str:
        return _mostly(random, ('"map"', '"result"'), _TEXTS)

    def value() -> str:
        return _mostly(random, ("{}", '{"r":1.0e5}'), _JSON)

    def number() -> str:
        return _mostly(random, ("1", "5000"), _NUMBERS)

    match random.randrange(12):
        case 0:
            return f'{{"kill":{tid()}}}', 0
        case 1:
            return f'{{"finish":{tids()},"values":{value()}}}', 0
        case 2:
            return f'{{"fail":{text()}}}', 0
        case 3:
            return f'{{"timer":{tid()},"after_ms":{number()}}}', 0
        case 4:
            return f'{{"release":{tids()}}}', 0
        case 5:
            return f'{{"log":{text()}}}', 0
        case 6:
            return value() if random.randrange(5) == 0 else '{"log":"x"}', 0
        case _:
            pass
    fields = [f'"start":{text()}']
    if random.randrange(3) == 0:
        fields.append(f'"base":{_mostly(random, ("[]", "[1,[2.50]]"), _JSON)}')
    if random.randrange(3) == 0:
        pretasks = [tid() for _ in range(random.choice((1, 2)))]
        fields.append(f'"pretasks":[{",".join(pretasks)}]')
        fields.append(f'"prekeys":[{",".join(text() for _ in pretasks)}]')
    for name, right, odd in (
        ("keys", ("[]", '["r"]'), _JSON),
        ("tid", (str(started),), _NUMBERS),
        ("retries", ("0", "3"), _NUMBERS),
    ):
        if random.randrange(8) == 0:
            fields.append(f'"{name}":{_mostly(random, right, odd)}')
    if random.randrange(4) == 0:
        fields.append(f'"keys":[{text()},{text()}]')
    if random.randrange(8) == 0:
        fields.append(f'"timeout_ms":{number()}')
    return "{" + ",".join(fields) + "}", 1


def _spoil(random: Random, data: bytearray, lines: list[bytes]) -> None:
    for _ in range(random.choice((1, 1, 3))):
        at = random.randrange(len(data) + 1)
        match random.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << random.randrange(8)
            case 1:
                data[at:at] = random.choice(_TOKENS)
            case 2:
                del data[at : at + random.choice((1, 5, 100))]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = random.choice(lines)
            case 5:
                data[at:at] = random.randbytes(random.choice((1, 50)))
            case _:
                data[at:at] = b"x" * random.choice((10, _LINE_BYTES_MAX, _LINE_BYTES_MAX + 1))
