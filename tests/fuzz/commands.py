"""What the log may say: well-typed commands that make no sense, in an order that makes none.

A history begins with jobs, clients and tasks as they should be; what follows names them, or
others, with numbers of any size and odd texts, again and again, and scheduler's answers at the
frontier or elsewhere. Whatever it is, applying it must not raise: a replica would stop
there, and so would all others.

Checked after each entry: nothing was raised, the invariants hold, replies and events are
JSON in one line, and rows are what a store can keep. At times, and in the end: views and
summaries can be made and sent, and the state that is made anew from the rows has the same
digest and goes on in the same way.
"""

from __future__ import annotations

import json
import time
from random import Random
from typing import Any

from tasksprint.coordination.commands import inputs_digest
from tasksprint.coordination.rows import TABLES, Row
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.coordination.view import encode_view
from tasksprint.encoding import decode_json, encode_json
from tasksprint.ids import ClientId, Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.settings import Rules
from tests.coordination.mirror_rows import MirrorRows
from tests.fuzz.outcome import Outcome, input_random, own_peak_mib

__all__ = ["NAME", "History", "run", "what_is_wrong"]

NAME = "commands"

ENTRIES = 120  # of one history
# Small limits, so that short histories meet them.
_RULES = Rules(
    ahead_us=3_000,
    assigned_max=8,
    request_record_ms=10_000,
    ended_job_ms=20_000,
    ended_jobs_max=3,
    job_log_lines_max=5,
    commands_per_part_max=20,
    inline_task_bytes_max=5_000,
    inline_value_bytes_max=2_000,
    base_bytes_max=2_000,
)
_CHECK_EACH = 10
_MAX = 2**63 - 1
_NUMBERS = (0, 1, 2, 3, 5, 10, 100, 65_536, 2**31, 2**32, 2**53, 2**62, _MAX - 1, _MAX)
_TEXTS = (
    *("", "a", "x", "value", "me", "attached:me", "map", "merge", "\0", "\n", "\r\n", "\u2028"),
    *("\x1b[2J", "é", "😀", "\ufeff", "'", '"', "\\", "x" * 3_000, "NaN", "1e999", "-0", "null"),
    *(
        "{}",
        "[]",
        "[1,2]",
        '{"a":1}',
        '{"a":' * 500,
        "[" * 3_000,
        "{",
        "1" * 5_000,
        "true",
        "é" * 9,
    ),
)
# What nodes return, as clients report it: that is JSON, or base64.
_JSON = (
    "5",
    "[]",
    '{"a":1}',
    '"\u2028"',
    "1e999",
    "-0",
    "null",
    "[" * 500 + "]" * 500,
    "1" * 5_000,
)
_BASE64 = ("", "AAAA", "/+8=", "A" * 3_000)
# What is no number, text or list where one is expected.
_WRONG = (None, True, -1, 2**63, 2**64 - 1, 1.5, "x", [], {}, [[]], [None], {"a": 1}, [1, 2, 3])
_DIGESTS = tuple(digit * 64 for digit in "abc")
_MANIFESTS = (
    '{"node":"{}"}',
    '{"node":"attached:me"}',
    '{"node":"attached:x","retries":1,"timeout_ms":5}',
    '{"node":"{}","retries":9223372036854775807}',
    *('{"node":5}', '{"node":[]}', "{}", "[]", "null", "5", "", "{", '{"node":"{}","retries":-1}'),
    *('{"node":"{}","retries":"x"}', '{"node":"{}","timeout_ms":{}}', '{"node":"\\ud800"}'),
    *('{"node":"{}","retries":18446744073709551616}', '{"node":"{}","timeout_ms":1.5}'),
    *('{"node":null}', '{"scheduler":5,"node":"{}"}', '{"node":"{}","retries":true}'),
)


def run(seconds: float, seed: int) -> Outcome:
    """Apply made-up histories for so long."""
    findings: list[str] = []
    number = entries = 0
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        number += 1
        wrong = what_is_wrong(input_random(seed, number))
        entries += ENTRIES
        if wrong is not None:
            findings.append(f"input {number}: {wrong}")
    return Outcome(NAME, entries, findings, own_peak_mib())


def what_is_wrong(random: Random) -> str | None:
    """Apply one made-up history; return what is wrong with how that went, or None."""
    history = History(random)
    try:
        for number in range(ENTRIES):
            history.step(is_checked=number % _CHECK_EACH == 0)
        history.end()
    except Exception as error:
        last = [data[:300] for data in history.last]
        cause = error.__cause__ or error
        return f"slot {history.slot}, {cause!r:.200}: {last}"
    return None


class History:
    """One history, made up as it goes."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.slot = 0
        self.last: tuple[bytes, ...] = ()
        self._sent: list[bytes] = []
        self._lives: list[tuple[int, str]] = [(1, "i0")]
        self._requests = 0
        self._rows: dict[tuple[str, Any], Row] = {}
        self._schedule = self._new_schedule()
        self._apply([self._submit(_MANIFESTS[number]) for number in (0, 0, 1)])
        self._apply([self._join(is_plain=True), self._join(is_plain=True)])
        for job in (1, 2, 3):
            tasks = [["s", "map", "[]", [], [], ["x"], None, None] for _ in range(4)]
            tasks.append(["s", "merge", "[1]", [0, 1], ["x", "x"], [], 1, 1_000])
            self._apply([encode_json(["answer", job, [[0, 0, True, 0, tasks]], []])])

    def step(self, *, is_checked: bool) -> None:
        """Apply one more entry."""
        random = self.random
        makers = (
            *(self._report, self._report, self._answer, self._answer),
            *(self._work, self._work, self._work, self._work),
            *(self._tick, self._join, self._submit, self._other, self._other),
        )
        commands = []
        for _ in range(random.choice((1, 1, 2, 4))):
            if self._sent and random.randrange(8) == 0:
                commands.append(random.choice(self._sent))
                continue
            command = random.choice(makers)()
            if random.randrange(15) == 0:
                command = self._spoiled(command)
            commands.append(command)
        members = None
        if random.randrange(30) == 0:
            members = tuple(
                ReplicaId(each) for each in random.choice(((1,), (1, 2, 3), (2, 3), (7, 8, 9)))
            )
        self._apply(commands, members=members)
        if is_checked:
            self._schedule.check()
            self._read()

    def end(self) -> None:
        """Compare with the state that the rows make."""
        self._schedule.check()
        self._read()
        again = self._new_schedule(list(self._rows.values()))
        again.check()
        assert again.digest == self._schedule.digest, "another digest from the rows"
        self.slot += 1
        entry = (self._tick(), self._report(), self._answer())
        self.last = entry
        one, other = (each.apply(Slot(self.slot), entry) for each in (self._schedule, again))
        assert one == other, "the state from the rows goes on in another way"

    def _new_schedule(self, rows: list[Row] | None = None) -> Schedule:
        members = (ReplicaId(1), ReplicaId(2), ReplicaId(3))
        mirror = None if rows is None else MirrorRows(rows)
        return Schedule(cluster="c0ffee", members=members, rules=_RULES, mirror=mirror)

    def _apply(
        self, commands: list[bytes], *, members: tuple[ReplicaId, ...] | None = None
    ) -> None:
        self.slot += 1
        self.last = tuple(commands)
        self._sent = [*self._sent[-30:], *commands]
        applied = self._schedule.apply(Slot(self.slot), self.last, members=members)
        self._take(applied)

    def _take(self, applied: Applied) -> None:
        for reply in applied.replies:
            if reply is not None:
                found = json.loads(reply)
                if "cid" in found:
                    self._lives.append((found["cid"], f"i{self._requests}"))
        for _, event in applied.events:
            assert b"\n" not in event.line
            json.loads(event.line)
        for note in applied.notes:
            note.encode()
        places = set()
        for row in applied.rows:
            _check_row(row)
            place = row.table, row.key
            assert place not in places, f"two rows for {place}"
            places.add(place)
            if row.columns is None:
                self._rows.pop(place, None)
            else:
                self._rows[place] = row

    def _read(self) -> None:
        """Make what clients, people and schedulers are told."""
        schedule = self._schedule
        for cid, life in self._lives[-6:]:
            view = schedule.view(ClientId(cid), Incarnation(life), Slot(0))
            if view is not None:
                decode_json(encode_view(view))
        encode_json(schedule.jobs())
        encode_json(schedule.client_summaries())
        for job in range(1, 6):
            encode_json(schedule.job_summary(JobId(job)))
            for tid in (0, 4, 9):
                encode_json(schedule.task_info(JobId(job), TaskId(tid)))
        for running in schedule.running_jobs():
            schedule.scheduler_history(running)
        assert schedule.next_timer_ms is None or schedule.next_timer_ms >= 0

    def _spoiled(self, command: bytes) -> bytes:
        """Put something of another type somewhere into a command, or cut it."""
        random = self.random
        if random.randrange(4) == 0:
            return command[: random.randrange(len(command))]
        whole = decode_json(command)
        place = whole
        while True:
            if not isinstance(place, list | dict) or not place:
                return command
            key = (
                random.choice(list(place))
                if isinstance(place, dict)
                else random.randrange(len(place))
            )
            if isinstance(place[key], list | dict) and place[key] and random.randrange(3):
                place = place[key]
                continue
            place[key] = random.choice(_WRONG)
            return encode_json(whole)

    # --- what commands are made of ---

    def _number(self) -> int:
        random = self.random
        return random.choice(_NUMBERS) if random.randrange(3) == 0 else random.randrange(6)

    def _text(self) -> str:
        return self.random.choice(_TEXTS)

    def _job(self) -> int:
        return self._number() if self.random.randrange(8) == 0 else self.random.randrange(1, 5)

    def _life(self) -> tuple[int, str]:
        if self.random.randrange(8) == 0:
            return self._number(), self.random.choice(("i0", "i1", "former", self._text()))
        return self.random.choice(self._lives[-4:])

    def _digest(self) -> str:
        return self._text() if self.random.randrange(10) == 0 else self.random.choice(_DIGESTS)

    def _some(self, make: Any, most: int = 3) -> list[Any]:
        return [make() for _ in range(self.random.randrange(most + 1))]

    # --- commands ---

    def _submit(self, manifest: str | None = None) -> bytes:
        self._requests += 1
        params = self._text() if manifest is None else "{}"
        manifest = manifest or self.random.choice(_MANIFESTS)
        request = self._requests if self.random.randrange(4) else self._number()
        return encode_json(
            [
                "submit",
                "me",
                request,
                self._text(),
                self._number(),
                params,
                self._digest(),
                manifest,
            ]
        )

    def _join(self, *, is_plain: bool = False) -> bytes:
        self._requests += 1
        random = self.random
        identity = f"d{self._requests if is_plain else random.randrange(4)}"
        held = (
            [] if is_plain else self._some(lambda: [self._job(), self._number(), self._digest()])
        )
        slots = 2 if is_plain or random.randrange(3) else self._number()
        address = random.choice((None, "h:1", self._text()))
        life = f"i{self._requests}"
        return encode_json(["join", identity, life, address, self._text(), slots, held])

    def _tick(self) -> bytes:
        silent = self._some(lambda: [*self._life(), self._number()], 1)
        claim = self.random.choice((None, None, [self._number(), self._text()]))
        elapsed_ms = self.random.choice((0, 1, 500, 1_000, self._number()))
        return encode_json(["tick", elapsed_ms, self._number(), silent, claim])

    def _report(self) -> bytes:
        cid, life = self._life()
        self._requests += 1
        request = self._requests if self.random.randrange(5) else self._number()
        return encode_json(
            [
                *("report", cid, life, request, self._number()),
                self._some(self._completion, 4),
                self._some(self._failure, 1),
                self._some(lambda: [self._job(), self._number()], 1),
            ]
        )

    def _work(self) -> bytes:
        """Report some of what a living client has to do as done, mostly as it should."""
        random = self.random
        living = self._schedule.living_clients()
        if not living:
            return self._join(is_plain=True)
        cid, life, request = random.choice(living)
        view = self._schedule.view(cid, life, Slot(0))
        assert view is not None
        made: dict[tuple[int, int], str] = {}
        completions = []
        for one in view.run[: random.choice((1, 3, 100))]:
            consumed = [each.digest or made.get((one.job, each.tid)) for each in one.inputs]
            known = [each for each in consumed if each is not None]
            if len(known) < len(consumed) or random.randrange(10) == 0:
                continue
            digest = made[one.job, one.tid] = random.choice(_DIGESTS)
            inline = {key: ["json", random.choice(_JSON)] for key in one.spec.keys}
            inputs = inputs_digest(known) if known else None
            place = one.job, one.tid, one.attempt
            completions.append([*place, digest, self._number(), inputs, self._number(), inline])
        lost = []
        if random.randrange(5) == 0:
            lost = [[self._job(), random.randrange(6)]]
        return encode_json(["report", cid, life, request + 1, request, completions, [], lost])

    def _completion(self) -> list[Any]:
        random = self.random
        inline: dict[str, Any] = {}
        for key in random.choice(([], ["x"], ["x"], ["x", "y"], [self._text()])):
            kind, texts = random.choice((("json", _JSON), ("json", _JSON), ("bytes", _BASE64)))
            inline[key] = [kind, random.choice(texts)]
        tid = random.randrange(6) if random.randrange(6) else self._number()
        inputs = random.choice((None, None, self._digest(), inputs_digest(["a" * 64, "a" * 64])))
        attempt = random.choice((1, 1, 1, 2, 3, self._number()))
        return [
            *(self._job(), tid, attempt, self._digest(), self._number()),
            *(inputs, self._number(), inline),
        ]

    def _failure(self) -> list[Any]:
        random = self.random
        detail = random.choice(({}, {self._text(): self._number()}, {"a": [None, {}, "\0"]}))
        attempt = random.choice((1, 2, self._number()))
        return [
            *(self._job(), random.randrange(6), attempt, self._text()),
            *(random.random() < 0.3, detail),
        ]

    def _answer(self) -> bytes:
        random = self.random
        job = self._job()
        event, part, tid = self._number(), self._number(), self._number()
        end = event + random.randrange(3)
        if JobId(job) in self._schedule.running_jobs() and random.randrange(6):
            known = self._schedule.scheduler_history(JobId(job))
            (event, part), tid, end = known.answered_end, known.next_tid, known.event_count
        if random.randrange(2):
            return encode_json(["answer", job, [], [[event, min(end, _MAX)]]])
        parts = []
        for _ in range(random.choice((1, 1, 2))):
            commands = self._some(self._scheduler_command, 4)
            last = random.random() < 0.7
            parts.append([event, part, last, tid, commands])
            tid = min(tid + sum(command[0] == "s" for command in commands), _MAX)
            event, part = (min(event + 1, _MAX), 0) if last else (event, min(part + 1, _MAX))
        return encode_json(["answer", job, parts, []])

    def _scheduler_command(self) -> list[Any]:
        random = self.random
        match random.randrange(14):
            case 0:
                return ["k", self._number()]
            case 1:
                return ["f", self._some(self._number), self._text()]
            case 2:
                return ["x", self._text()]
            case 3 | 4:
                return ["t", self._number(), self._number()]
            case 5 | 6:
                return ["r", self._some(self._number)]
            case 7:
                return ["l", self._text()]
            case _:
                pretasks = self._some(self._number)
                prekeys = [random.choice(("x", "y", self._text())) for _ in pretasks]
                if random.randrange(12) == 0:
                    prekeys.append("x")
                base = self._text() if random.randrange(4) == 0 else "[]"
                keys = random.choice(([], ["x"], ["x", "x"], [self._text()]))
                retries, timeout_ms = (
                    random.choice((None, 0, 1, self._number())) for _ in range(2)
                )
                return ["s", self._text(), base, pretasks, prekeys, keys, retries, timeout_ms]

    def _other(self) -> bytes:
        random = self.random
        cid, life = self._life()
        self._requests += 1
        request = self._requests if random.randrange(4) else self._number()
        nodes = random.choice(
            (
                [["me", 1]],
                [["me", 2], ["x", 1]],
                self._some(lambda: [self._text(), self._number()]),
            )
        )
        job = self._job() if random.randrange(2) else self._number()
        made: list[Any] = random.choice(
            (
                ["leave", cid, life],
                ["attached", cid, life, request, nodes],
                ["attached", cid, life, request, nodes],
                ["cancel", "me", request, job, self._text()],
                ["forget", "me", request, job],
                ["forget", "me", request, job],
                ["out", random.choice((1, 2, 3, self._number())), job, "crashed", self._text()],
                ["out", random.choice((1, 2, 3, 9)), job, self._text(), self._text()],
                ["nonsense"],
                {},
            )
        )
        return encode_json(made)


def _check_row(row: Row) -> None:
    """See that a store can keep it."""
    table = TABLES[row.table]
    cells = zip(table.key_columns, row.key, strict=True)
    for column, cell in [*cells, *zip(table.value_columns, row.columns or (), strict=False)]:
        match cell:
            case None:
                assert column.nullable, row
            case int():
                assert column.type == "INTEGER" and -(2**63) <= cell <= _MAX, row
            case str():
                assert column.type == "TEXT", row
                cell.encode()
            case _:
                raise AssertionError(row)
