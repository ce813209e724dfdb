"""Samples of what is stored and sent, and the shapes of what is declared."""

from __future__ import annotations

import asyncio
import json
import tempfile
import typing
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tasksprint.consensus import Founding, Message, encode_founding
from tasksprint.consensus import codec as frames_codec
from tasksprint.consensus.batch import encode_alone
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.marks import DurableNumbers, Mark
from tasksprint.consensus.membership import Membership, encode_membership_value
from tasksprint.consensus.messages import Envelope
from tasksprint.consensus.skips import Skip, encode_skips
from tasksprint.consensus.voters import Memberships
from tasksprint.coordination.commands import TAGS as COMMAND_TAGS
from tasksprint.coordination.commands import Command, encode_command
from tasksprint.coordination.rows import TABLES, Table
from tasksprint.coordination.schedule import Schedule
from tasksprint.coordination.view import SENT, Assignment, View, encode_view
from tasksprint.encoding import encode_json
from tasksprint.ids import Incarnation, JobId, ReplicaId, Slot, TaskId
from tasksprint.release import THIS_RELEASE
from tasksprint.scheduler_commands import SchedulerCommand
from tasksprint.settings import RULES, RULES_BY_VERSION, Rules
from tasksprint.store import backup_file
from tasksprint.task_spec import TaskSpec
from tests.consensus.test_codec import MESSAGES
from tests.coordination.test_commands import SAMPLES
from tests.coordination.test_view import VIEW
from tests.coordination.world import MEMBERS
from tests.golden import bodies, programs, story
from tests.golden.golden import FOLDER, Record, parse, shape_of, shape_of_json
from tests.store.test_backup_file import make_backup

__all__ = ["KINDS", "replayed"]


def commands() -> list[Record]:
    """Commands of the log, and what schedulers may say inside `Answer`."""
    records = [
        Record(
            shape_of(kind, COMMAND_TAGS),
            tuple(encode_command(one) for one in SAMPLES if type(one) is kind),
        )
        for kind in typing.get_args(Command)
    ]
    return records + [
        Record(shape_of(kind, COMMAND_TAGS)) for kind in typing.get_args(SchedulerCommand)
    ]


def log(rules: Rules) -> list[Record]:
    """The log of a story: the commands of each slot."""
    return [
        Record(f"slot {slot}", entry) for slot, entry in enumerate(story.tell(rules).log, start=1)
    ]


def replayed(rules: Rules = RULES) -> list[tuple[Schedule, Any]]:
    """Return the state behind each slot of the golden log (one object), and what it gave."""
    schedule = Schedule(cluster="c1", members=MEMBERS, rules=rules)
    return [
        (schedule, schedule.apply(Slot(slot), entry.samples))
        for slot, entry in enumerate(_golden("log", rules.version), start=1)
    ]


def _golden(kind: str, version: int) -> list[Record]:
    return parse((FOLDER / f"{kind}-{version}.txt").read_text(encoding="utf-8"))


def rows(rules: Rules) -> list[Record]:
    """The tables, and what each slot of the golden log writes."""
    records = [Record(_shape_of_table(table)) for table in TABLES.values()]
    for slot, (_, applied) in enumerate(replayed(rules), start=1):
        samples = tuple(encode_json([row.table, row.key, row.columns]) for row in applied.rows)
        records.append(Record(f"slot {slot}", samples))
    return records


def _shape_of_table(table: Table) -> str:
    def listed(columns: Any) -> str:
        return ", ".join(f"{c.name}: {c.type}{' or null' * c.nullable}" for c in columns)

    return f"{table.name}({listed(table.key_columns)})({listed(table.value_columns)})"


def views() -> list[Record]:
    """A client's view."""
    return [Record("view" + shape_of(View, sent={Assignment: SENT}), (encode_view(VIEW),))]


def frames() -> list[Record]:
    """Frames between replicas: each message in an envelope."""
    records = [Record("mark" + shape_of(Mark)), Record("entry" + shape_of(LogEntry))]
    for kind in typing.get_args(Message):
        envelopes = [
            Envelope(ReplicaId(1), Incarnation("aa"), ReplicaId(2), message, Mark(9, 3, 5))
            for message in MESSAGES
            if type(message) is kind
        ]
        encoded = tuple(map(frames_codec.encode, envelopes))
        records.append(Record(shape_of(kind, frames_codec.TAGS), encoded))
    return records


def stored() -> list[Record]:
    """What a replica's disk has beside log and mirror; it stands in frames as well."""
    (kind,) = [typing.get_type_hints(Founding)["members"]]
    member = typing.get_args(kind)[0]
    first, second, third = [
        member(ReplicaId(n), Incarnation(f"{n}{n}"), f"h{n}:1") for n in (1, 2, 3)
    ]
    founding = Founding("c9f1", (first, second), ("c0",), (ReplicaId(7),))
    membership = Membership(
        1, (first, second), (third,), ((ReplicaId(3), ReplicaId(2)),), (ReplicaId(7),)
    )
    memberships = Memberships()
    memberships.found(founding)
    memberships.note(Slot(20), membership)
    later = Membership(2, (first, second, third), retired=(ReplicaId(7),))
    memberships.introduce(later)
    marks = DurableNumbers(incarnation=Incarnation("11"), life=9, number=3, known=None)
    marks.hear(Incarnation("22"), Mark(12, 3, 45))
    marks.lose(17)
    known = marks.take_unwritten()
    assert known is not None
    skips = encode_skips([Skip(Slot(17), 3, "ab" * 32), Skip(Slot(4), 0, "cd" * 32)])
    return [
        Record("founding" + shape_of(Founding), (encode_founding(founding),)),
        Record("membership" + shape_of(Membership), (encode_membership_value(membership),)),
        Record("memberships", (memberships.encode(),)),
        Record("marks", (known,)),
        Record("skips", (skips,)),
        Record("founding with rules", (encode_founding(replace(founding, rules=2)),)),
        Record("a command that stands alone", (encode_alone(b'["rules",2]'),)),
    ]


def backup() -> list[Record]:
    """A whole backup, line by line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backup"
        make_backup(path)
        return [Record("backup", tuple(path.read_bytes().splitlines(keepends=True)))]


def node_lines() -> list[Record]:
    """What clients write to nodes, and what the SDK answers."""
    inputs: list[Any] = [("json", b'{"a": 1.0}'), ("bytes", b"\x00\xff\n")]
    tasks = [
        programs.task_line(*about, 6917529027641081856, frames)
        for about, frames in [
            ((1, 3, 17, 1, TaskSpec("merge", '[0.5,"ü"]'), []), False),
            ((2, 3, 18, 2, TaskSpec("merge"), inputs), True),
            ((3, 3, 18, 3, TaskSpec("merge", "[ ]"), inputs), False),
        ]
    ]
    return [Record("task", tuple(tasks)), Record("what the SDK says", programs.node_says())]


def scheduler_lines_(rules: Rules) -> list[Record]:
    """What coordinators write to schedulers, and what the SDK answers under the same rules."""
    events: dict[str, bytes] = {}
    for _, applied in replayed(rules):
        for _, event in applied.events:
            kind = json.loads(event.line)["kind"]
            # The longest of a kind has all members that it can have.
            events[kind] = max(events.get(kind, b""), event.line, key=len)
    controls = (
        b'{"control":"replay","end_event":42}\n',
        b'{"control":"live"}\n',
        b'{"control":"checkpoint","event":41}\n',
        b'{"control":"restore","event":41,"state":{"a": 1}}\n',
    )
    return [
        Record("events", tuple(events.values())),
        Record("controls", controls),
        Record("what the SDK says", programs.scheduler_says(rules.version)),
    ]


def http() -> list[Record]:
    """Bodies of HTTP: of what the log decides to the byte, of the rest the shape."""
    history = replayed(RULES_BY_VERSION[1])
    replies = [
        f"POST /v1/commands -> {shape_of_json(json.loads(reply))}"
        for _, applied in history
        for reply in applied.replies
        if reply is not None
    ]
    schedule = history[-1][0]
    described = [
        Record("GET /v1/jobs", tuple(map(encode_json, schedule.jobs()))),
        Record("GET /v1/clients", tuple(map(encode_json, schedule.client_summaries()))),
        Record("GET /v1/jobs/1/tasks/1", (encode_json(schedule.task_info(JobId(1), TaskId(1))),)),
    ]
    shapes = dict.fromkeys([*replies, *asyncio.run(bodies.shapes())])
    return described + [Record(text) for text in shapes]


# Each kind with its version of now, and what makes its records. The log, its rows and the lines of
# schedulers go by the version of the rules, which are raised in the running cluster: all that this
# release can apply.
# The others go by what their readers know.
KINDS: list[tuple[str, int, Callable[[], list[Record]]]] = [
    ("commands", RULES.version, commands),
    *[("log", version, partial(log, rules)) for version, rules in RULES_BY_VERSION.items()],
    *[("rows", version, partial(rows, rules)) for version, rules in RULES_BY_VERSION.items()],
    ("views", 1, views),
    ("frames", THIS_RELEASE.speaks.frames[1], frames),
    ("stored", 2, stored),
    ("backup", backup_file.VERSION, backup),
    ("node_lines", 1, node_lines),
    *[
        ("scheduler_lines", version, partial(scheduler_lines_, rules))
        for version, rules in RULES_BY_VERSION.items()
    ],
    ("http", 2, http),
]
